"""What every baseline is given, and the file that defines it.

A baseline is a file of this folder and a row of the table in ``config/methods.py`` that names it. The file has the
functions

- ``fit(setup, tasks, draw, seed, progress) -> Learned``, where the method is meta-trained: on listed ``tasks``, or on
  those that ``draw`` makes without end in their place;
- ``adapt(setup, learned, support, setting, seed)``: to a task, from its support examples. ``learned`` is what ``fit``
  gave, None where nothing was fitted. It gives weights (``Learned``), or what reads the examples at every answer;
- ``predict(setup, adapted, examples, seed, progress) -> list[Prediction]``; without one the adapter of the weights
  answers. The right answers are only copied into the predictions.

``seed`` decides orders and draws. What cannot be done raises :class:`~degaml_kedro.baselines.learned.BaselineError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines.compute import Clock
from degaml_kedro.baselines.learned import Learned
from degaml_kedro.common.progress import Progress
from degaml_kedro.config.methods import METHODS
from degaml_kedro.config.schema import PromptParameters, ScoringParameters, WarmupParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import FineTuneStep
from degaml_kedro.llm.scoring import Prediction, score_examples
from degaml_kedro.tasks.example import Example, Question

# sentence embeddings of questions, float32 [Q, C]
Embed = Callable[[Sequence[Question]], Tensor]


@dataclass(frozen=True)
class Setup:
    """A method on a task, or on meta-train tasks that are scored alike.

    Attributes:
        entry: the method's entry of the parameters ``baselines``.
        start: where weights start that are not meta-trained; in ``fit``, where meta-training starts.
        instruction: the task's description.
        embed: reads questions, for a method that does not ask the language model.
        warmup: the pooled warm-up's training.
    """

    method: str
    base: BaseModel
    prompt: PromptParameters
    scoring: ScoringParameters
    entry: Any
    start: Adapter
    instruction: str = ""
    embed: Embed | None = None
    warmup: WarmupParameters | None = None


def baseline(method: str) -> Any:
    """The file of a baseline, as a module."""
    return import_module(f"degaml_kedro.baselines.{METHODS[method].module}")


def answer(
    setup: Setup,
    adapted: Any,
    examples: Sequence[Example],
    seed: int,
    progress: Progress | None = None,
) -> list[Prediction]:
    """An adapted baseline's answers to examples."""
    predict = getattr(baseline(setup.method), "predict", None)
    if predict is None:
        return score_examples(
            setup.base, examples, setup.prompt, setup.scoring, adapted.adapter, progress
        )
    found: list[Prediction] = predict(setup, adapted, examples, seed, progress)
    return found


def learned_by_steps(
    setup: Setup,
    start: Adapter,
    steps: Iterable[FineTuneStep],
    about: Mapping[str, Any],
    measured: Sequence[str] = ("step", "loss"),
    progress: Progress | None = None,
    total: int = 0,
) -> Learned:
    """The weights after the last step of a fine-tuning, with a record a step of what is ``measured``."""
    clock, last, records = Clock(), None, []
    for step in steps:
        clock.trained(step.tokens)
        last = step
        records.append({name: getattr(step, name) for name in measured})
        if progress is not None:
            progress(step.step, total)
    adapter = start if last is None else last.adapter
    return Learned(setup.method, adapter, {}, records, clock.compute, about)
