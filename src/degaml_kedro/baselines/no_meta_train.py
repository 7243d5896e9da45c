"""No meta-training: LoRA on the task alone, from the initialization that all runs share.

On the task's own train split (the paper's in-domain rows) it is trained as any other run of this project, by
``llm/finetune.py``; here is the other row: the support examples are all it gets.
"""

from __future__ import annotations

from collections.abc import Sequence

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines.learned import Learned
from degaml_kedro.baselines.support import train_on_support
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.parameters import AdaptationSetting, AnswerForm, PromptParameters
from degaml_kedro.tasks.example import Example


def adapt(
    base: BaseModel,
    start: Adapter,
    support: Sequence[Example],
    prompt: PromptParameters,
    mode: AnswerForm,
    setting: AdaptationSetting,
    seed: int,
) -> Learned:
    """Fine-tuning on the support examples from the shared initialization.

    Args:
        base: the frozen model.
        start: the shared initialization.
        support: the labelled examples.
        prompt: how an example becomes text.
        mode: what the answer is.
        setting: steps, learning rate and batch size.
        seed: decides the order of the examples.
    """
    return train_on_support(
        "no_meta_train_support", base, start, support, prompt, mode, setting, seed
    )
