"""``closed_form``: an adapter written from the support examples without training (ours, not in the paper).

See :mod:`~degaml_kedro.llm.associative`. An answer costs what the base model's costs.
"""

from __future__ import annotations

from collections.abc import Sequence

from degaml_kedro.adapters.adapter import AdapterConfig
from degaml_kedro.baselines.compute import Clock
from degaml_kedro.baselines.learned import BaselineError, Learned
from degaml_kedro.llm.associative import write_closed_form
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import answer_sequences
from degaml_kedro.parameters import AnswerForm, ClosedFormSetting, PromptParameters
from degaml_kedro.tasks.example import Example

METHOD = "closed_form"


def adapt(
    base: BaseModel,
    shape: AdapterConfig,
    support: Sequence[Example],
    prompt: PromptParameters,
    mode: AnswerForm,
    setting: ClosedFormSetting,
) -> Learned:
    """Write an adapter from the support examples.

    Raises:
        BaselineError: there are no examples.
        TrainingError: the model has no layer to write to.
    """
    if not support:
        raise BaselineError("closed_form has no support examples to write; set splits.support")
    clock = Clock()
    sequences = answer_sequences(base, support, prompt, mode)
    adapter = write_closed_form(base, sequences, shape, setting)
    clock.read(sum(len(one.ids) for one in sequences))
    return Learned(METHOD, adapter, {}, [], clock.compute, setting.model_dump(mode="json"))
