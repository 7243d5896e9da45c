"""The baselines by name: each file's two verbs behind one signature, for whoever runs all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines import (
    abmll,
    closed_form,
    maml,
    metaicl,
    sentence_head,
)
from degaml_kedro.baselines.episodes import Draw
from degaml_kedro.baselines.learned import BaselineError, Learned, Progress, TaskExamples
from degaml_kedro.baselines.support import train_on_support
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.scoring import Prediction, score_examples
from degaml_kedro.parameters import (
    BASELINES,
    READ_SUPPORT,
    AbmllParameters,
    AdaptationSetting,
    AnswerForm,
    BaselinesParameters,
    ClosedFormSetting,
    InContextSetting,
    MamlParameters,
    MetaIclParameters,
    PromptParameters,
    RegressionSetting,
    ScoringParameters,
)
from degaml_kedro.tasks.example import Example

Setting = AdaptationSetting | ClosedFormSetting | InContextSetting | RegressionSetting
# a method on a task: weights, or what reads the support examples when it answers
Adapted = Learned | metaicl.Demonstrated | sentence_head.Classifier
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
    if method == sentence_head.METHOD:
        return RegressionSetting.model_validate(values)
    if method == closed_form.METHOD:
        return ClosedFormSetting.model_validate(values)
    kind = InContextSetting if method in READ_SUPPORT else AdaptationSetting
    return kind.model_validate(values)


def fit(
    method: str,
    base: BaseModel,
    tasks: Sequence[TaskExamples],
    prompt: PromptParameters,
    mode: AnswerForm,
    parameters: BaselinesParameters,
    start: Adapter,
    seed: int,
    progress: Progress | None = None,
    draw: Draw | None = None,
) -> Learned:
    """Meta-training by episodes: MAML-en-LLM, ABMLL, MetaICL and in-context tuning.

    The weights start from ``start``; the seed decides tasks and examples of every episode. With ``draw`` tasks come
    from a source without end in place of the list.

    Raises:
        BaselineError: the method has no episodes, a task has too few examples, or the loss stops being finite.
    """
    if method == "abmll":
        own = _entry(method, parameters, AbmllParameters)
        return abmll.fit(base, tasks, prompt, mode, own, start, seed, progress, draw)
    if method in READ_SUPPORT:
        reading = _entry(method, parameters, MetaIclParameters)
        return metaicl.fit(base, tasks, prompt, mode, reading, start, seed, progress, method, draw)
    first_order = method == "maml_en_llm_first_order"
    given = _entry(method, parameters, MamlParameters)
    return maml.fit(base, tasks, prompt, mode, given, start, seed, first_order, progress, draw)


def adapt(
    method: str,
    base: BaseModel,
    learned: Learned | None,
    support: Sequence[Example],
    prompt: PromptParameters,
    mode: AnswerForm,
    parameters: BaselinesParameters,
    setting: Setting,
    seed: int,
    embed: sentence_head.Embed | None = None,
) -> Adapted:
    """A method on a task, from its support examples.

    ``learned`` is what meta-training left, the shared initialization where there was none, and None for ``icl`` and
    ``sentence_head``, which have no weights. The latter needs ``embed``. The seed decides orders and draws.

    Raises:
        BaselineError: what the method needs is missing, or its loss stops being finite.
    """
    if isinstance(setting, InContextSetting):
        return metaicl.adapt(learned, support, setting, seed)
    if isinstance(setting, RegressionSetting):
        if embed is None:
            raise BaselineError(f"{method} has no encoder to read questions with; give it one")
        return sentence_head.adapt(embed, support, setting)
    if learned is None:
        raise BaselineError(f"{method} has no weights to start from; fit it first")
    if isinstance(setting, ClosedFormSetting):
        return closed_form.adapt(base, learned.adapter.config, support, prompt, mode, setting)
    if method in ("no_meta_train_support", "union_train"):
        start = learned.adapter
        return train_on_support(method, base, start, support, prompt, mode, setting, seed)
    if method == "abmll":
        own = _entry(method, parameters, AbmllParameters)
        return abmll.adapt(base, learned, support, prompt, mode, own, setting, seed)
    given = _entry(method, parameters, MamlParameters)
    return maml.adapt(base, learned, support, prompt, mode, given, setting, seed)


def answer(
    method: str,
    base: BaseModel,
    adapted: Adapted,
    examples: Sequence[Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    parameters: BaselinesParameters,
    seed: int,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answers to examples.

    The right answers are only copied into the predictions; the seed decides weight samples.
    """
    if isinstance(adapted, metaicl.Demonstrated):
        return metaicl.predict(base, adapted, examples, prompt, scoring, progress)
    if isinstance(adapted, sentence_head.Classifier):
        return sentence_head.predict(adapted, examples, prompt, scoring, progress)
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
