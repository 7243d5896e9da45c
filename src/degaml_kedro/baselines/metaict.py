"""``metaict``: in-context tuning (Chen et al., 2022): ``metaicl`` with the task's instruction in front.

    min over θ   E_{task, k}  -log p_θ(y | I, x_1 y_1 ... x_k y_k, x),      I the task's instruction

The instruction is the task's ``description`` in the configuration. It enters as the system message does: with ``chat``
once, before all demonstrations; with ``plain`` in front of every question. An example that has a system message keeps
it behind the instruction. Where a task has no description this is ``metaicl``, with the same episodes and settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from degaml_kedro.tasks.example import Example

METHOD = "metaict"


def instructed(examples: Sequence[Example], instruction: str) -> list[Example]:
    """Examples with their task's instruction in front of the system message."""
    return [
        replace(example, system="\n\n".join(filter(None, (instruction, example.system))))
        for example in examples
    ]
