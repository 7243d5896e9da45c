"""``no_meta_train_support``: fine-tuning on the support examples, from the initialization that all runs share.

``union_train`` does the same from the pooled adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from degaml_kedro.baselines.baseline import Setup, learned_by_steps
from degaml_kedro.baselines.learned import Learned
from degaml_kedro.config.schema import AdaptationSetting, Phase, TrainingParameters
from degaml_kedro.llm.finetune import AnswerSequence, FineTuneStep, batch_indices, fine_tune
from degaml_kedro.tasks.example import Example


def support_batches(
    sequences: Sequence[AnswerSequence], setting: AdaptationSetting, seed: int
) -> list[list[AnswerSequence]]:
    """A batch of the support examples, at least one, for every step."""
    # only the batch size is read; a plain gradient step's rate may be one that AdamW's may not
    order = _training(1, 1.0, setting.batch_size, len(sequences))
    return [
        [sequences[i] for i in batch_indices(len(sequences), order, step, seed)]
        for step in range(1, setting.steps + 1)
    ]


def adapt(
    setup: Setup,
    learned: Learned | None,
    support: Sequence[Example],
    setting: AdaptationSetting,
    seed: int,
) -> Learned:
    """AdamW on the support examples' answers, at one learning rate; no steps leave the start as it is.

    Raises:
        TrainingError: there are no examples, or the loss stops being finite.
    """
    start = setup.start if learned is None else learned.adapter
    steps: Iterable[FineTuneStep] = ()
    if setting.steps:
        training = _training(setting.steps, setting.learning_rate, setting.batch_size, len(support))
        mode = setup.scoring.answers
        steps = fine_tune(setup.base, support, setup.prompt, mode, training, start, seed)
    return learned_by_steps(setup, start, steps, setting.model_dump(mode="json"))


def _training(steps: int, rate: float, batch_size: int, count: int) -> TrainingParameters:
    """A batch is never larger than what there is: an example twice in a batch is a higher rate in disguise."""
    return TrainingParameters(
        phases=(Phase(steps=steps, learning_rate=rate),), batch_size=min(batch_size, count) or 1
    )
