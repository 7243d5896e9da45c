"""Union: one LoRA on all meta-train tasks pooled, then fine-tuning on the support examples from there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines.learned import Learned
from degaml_kedro.baselines.support import train_on_support
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import FineTuneState, FineTuneStep, fine_tune
from degaml_kedro.parameters import (
    AdaptationSetting,
    PromptParameters,
    ScoringMode,
    TrainingParameters,
)
from degaml_kedro.tasks.example import Example


def pooled(pools: Sequence[Sequence[Example]]) -> list[Example]:
    """All tasks' examples as one set: one of each task in turn.

    In turn, so that however many of them are used every task has its share.

    Args:
        pools: a task's examples each.
    """
    turns = chain.from_iterable(zip_longest(*pools))
    return [example for example in turns if example is not None]


def fit(
    base: BaseModel,
    pools: Sequence[Sequence[Example]],
    prompt: PromptParameters,
    mode: ScoringMode,
    training: TrainingParameters,
    start: Adapter,
    seed: int,
    resume: FineTuneState | None = None,
) -> Iterator[FineTuneStep]:
    """Meta-training: supervised fine-tuning on the union of the tasks, nothing else.

    Args:
        base: the frozen model.
        pools: a meta-train task's examples each.
        prompt: how an example becomes text.
        mode: what the answer is.
        training: phases, batch size, optimiser settings.
        start: where the adapter starts.
        seed: decides the order of the examples.
        resume: state after an earlier step of the same call.

    Yields:
        One step at a time; the last one's adapter is the method's.
    """
    yield from fine_tune(base, pooled(pools), prompt, mode, training, start, seed, resume)


def adapt(
    base: BaseModel,
    learned: Learned,
    support: Sequence[Example],
    prompt: PromptParameters,
    mode: ScoringMode,
    setting: AdaptationSetting,
    seed: int,
) -> Learned:
    """Fine-tuning on the support examples from the pooled adapter.

    Args:
        base: the frozen model.
        learned: the pooled adapter.
        support: the labelled examples.
        prompt: how an example becomes text.
        mode: what the answer is.
        setting: steps, learning rate and batch size.
        seed: decides the order of the examples.
    """
    return train_on_support(
        "union_train", base, learned.adapter, support, prompt, mode, setting, seed
    )
