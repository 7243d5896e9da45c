"""The baselines by name: each file's two verbs behind one signature, for whoever runs all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines import abmll, icl, maml, no_meta_train, union_train
from degaml_kedro.baselines.learned import BaselineError, Learned, Progress, TaskExamples
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.scoring import Prediction, score_examples
from degaml_kedro.parameters import (
    BASELINES,
    AbmllParameters,
    AdaptationSetting,
    BaselinesParameters,
    InContextSetting,
    MamlParameters,
    PromptParameters,
    ScoringMode,
    ScoringParameters,
)
from degaml_kedro.tasks.example import Example

Setting = AdaptationSetting | InContextSetting
Entry = TypeVar("Entry")


def settings_of(method: str, parameters: BaselinesParameters) -> tuple[Setting, ...]:
    """The settings that a search tries for a method.

    Raises:
        BaselineError: the method is no baseline, or has no entry.
    """
    entry = getattr(parameters, BASELINES[method], None) if method in BASELINES else None
    if entry is None:
        raise BaselineError(
            f"there are no settings for '{method}'; add baselines.{BASELINES.get(method, method)}"
        )
    found: tuple[Setting, ...] = entry.settings
    return found


def setting_of(method: str, values: Mapping[str, Any]) -> Setting:
    """A setting from what JSON holds of it."""
    kind = InContextSetting if method == "icl" else AdaptationSetting
    return kind.model_validate(values)


def fit(
    method: str,
    base: BaseModel,
    tasks: Sequence[TaskExamples],
    prompt: PromptParameters,
    mode: ScoringMode,
    parameters: BaselinesParameters,
    start: Adapter,
    seed: int,
    progress: Progress | None = None,
) -> Learned:
    """Meta-training by episodes: MAML-en-LLM and ABMLL.

    Args:
        method: which.
        base: the frozen model.
        tasks: the meta-train tasks.
        prompt: how an example becomes text.
        mode: what the answer is.
        parameters: all baselines'.
        start: where the shared weights start.
        seed: decides tasks and examples of every episode.
        progress: called with (outer steps done, outer steps in all).

    Raises:
        BaselineError: the method has no episodes, a task has too few examples, or the loss stops being finite.
    """
    if method == "abmll":
        own = _entry(method, parameters, AbmllParameters)
        return abmll.fit(base, tasks, prompt, mode, own, start, seed, progress)
    first_order = method == "maml_en_llm_first_order"
    given = _entry(method, parameters, MamlParameters)
    return maml.fit(base, tasks, prompt, mode, given, start, seed, first_order, progress)


def adapt(
    method: str,
    base: BaseModel,
    learned: Learned,
    support: Sequence[Example],
    prompt: PromptParameters,
    mode: ScoringMode,
    parameters: BaselinesParameters,
    setting: AdaptationSetting,
    seed: int,
) -> Learned:
    """A method's weights for a task, from its support examples.

    Args:
        method: any but ``icl``, which has no weights.
        base: the frozen model.
        learned: what meta-training left; the shared initialization for ``no_meta_train_support``.
        support: the labelled examples.
        prompt: how an example becomes text.
        mode: what the answer is.
        parameters: all baselines'.
        setting: steps, learning rate and batch size.
        seed: decides orders and draws.
    """
    if method == "no_meta_train_support":
        return no_meta_train.adapt(base, learned.adapter, support, prompt, mode, setting, seed)
    if method == "union_train":
        return union_train.adapt(base, learned, support, prompt, mode, setting, seed)
    if method == "abmll":
        own = _entry(method, parameters, AbmllParameters)
        return abmll.adapt(base, learned, support, prompt, mode, own, setting, seed)
    given = _entry(method, parameters, MamlParameters)
    return maml.adapt(base, learned, support, prompt, mode, given, setting, seed)


def answer(
    method: str,
    base: BaseModel,
    adapted: Learned | Sequence[Example],
    examples: Sequence[Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    parameters: BaselinesParameters,
    seed: int,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answers to examples.

    Args:
        method: which.
        base: the frozen model.
        adapted: what :func:`adapt` returned; for ``icl`` its demonstrations.
        examples: what is asked; their answers are only copied into the predictions.
        prompt: how an example becomes text.
        scoring: how answers are scored.
        parameters: all baselines'.
        seed: decides weight samples.
        progress: called with (examples done, examples in all).
    """
    if not isinstance(adapted, Learned):
        return icl.predict(base, adapted, examples, prompt, scoring, progress)
    if method == "abmll":
        samples = _entry(method, parameters, AbmllParameters).samples
        return abmll.predict(base, adapted, examples, prompt, scoring, samples, seed, progress)
    return score_examples(base, examples, prompt, scoring, adapted.adapter, progress)


def _entry(method: str, parameters: BaselinesParameters, kind: type[Entry]) -> Entry:
    entry = getattr(parameters, BASELINES.get(method, ""), None)
    if not isinstance(entry, kind):
        raise BaselineError(
            f"'{method}' has no entry of its kind; add baselines.{BASELINES.get(method, method)}"
        )
    return entry
