"""``closed_form``: an adapter written from the support examples without training (ours, not in the paper).

See :mod:`~degaml_kedro.llm.associative`. An answer costs what the base model's costs.
"""

from __future__ import annotations

from collections.abc import Sequence

from degaml_kedro.baselines.baseline import Setup
from degaml_kedro.baselines.compute import Clock
from degaml_kedro.baselines.learned import BaselineError, Learned
from degaml_kedro.config.schema import ClosedFormSetting
from degaml_kedro.llm.associative import write_closed_form
from degaml_kedro.llm.finetune import answer_sequences
from degaml_kedro.tasks.example import Example


def adapt(
    setup: Setup,
    learned: Learned | None,
    support: Sequence[Example],
    setting: ClosedFormSetting,
    seed: int,
) -> Learned:
    """Write an adapter from the support examples.

    Raises:
        BaselineError: there are no examples.
        TrainingError: the model has no layer to write to.
    """
    if not support:
        raise BaselineError("closed_form has no support examples to write; set splits.support")
    clock = Clock()
    sequences = answer_sequences(setup.base, support, setup.prompt, setup.scoring.answers)
    adapter = write_closed_form(setup.base, sequences, setup.start.config, setting)
    clock.read(sum(len(one.ids) for one in sequences))
    return Learned(setup.method, adapter, {}, [], clock.compute, setting.model_dump(mode="json"))
