"""``metaict``: in-context tuning (Chen et al., 2022): ``metaicl`` with the task's instruction in front.

    min over θ   E_{task, k}  -log p_θ(y | I, x_1 y_1 ... x_k y_k, x),      I the task's instruction

The instruction is the task's ``description`` in the configuration. It enters as the system message does: with ``chat``
once, before all demonstrations; with ``plain`` in front of every question. An example that has a system message keeps
it behind the instruction. Where a task has no description this is ``metaicl``, with the same episodes and settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from degaml_kedro.baselines import icl, metaicl
from degaml_kedro.baselines.baseline import Setup
from degaml_kedro.baselines.episodes import Draw
from degaml_kedro.baselines.learned import Learned, Progress, TaskExamples
from degaml_kedro.config.schema import InContextSetting
from degaml_kedro.llm.scoring import Prediction
from degaml_kedro.tasks.example import Example


def fit(
    setup: Setup,
    tasks: Sequence[TaskExamples],
    draw: Draw | None,
    seed: int,
    progress: Progress | None = None,
) -> Learned:
    """Meta-train as ``metaicl`` does; tasks that are drawn have no instruction."""
    told = [replace(one, examples=instructed(one.examples, one.instruction)) for one in tasks]
    return metaicl.fit(setup, told, draw, seed, progress)


def adapt(
    setup: Setup,
    learned: Learned | None,
    support: Sequence[Example],
    setting: InContextSetting,
    seed: int,
) -> icl.Demonstrated:
    """The demonstrations of a task, each with the instruction."""
    return icl.adapt(setup, learned, instructed(support, setup.instruction), setting, seed)


def predict(
    setup: Setup,
    demonstrated: icl.Demonstrated,
    examples: Sequence[Example],
    seed: int,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answers to examples behind the instruction and the demonstrations."""
    asked = instructed(examples, setup.instruction)
    return icl.predict(setup, demonstrated, asked, seed, progress)


def instructed(examples: Sequence[Example], instruction: str) -> list[Example]:
    """Examples with their task's instruction in front of the system message."""
    return [
        replace(example, system="\n\n".join(filter(None, (instruction, example.system))))
        for example in examples
    ]
