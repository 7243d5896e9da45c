"""``union_train``: one LoRA on all meta-train tasks pooled, the pooled warm-up, then ``support.py`` from there."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines.baseline import Setup, learned_by_steps
from degaml_kedro.baselines.episodes import Draw
from degaml_kedro.baselines.learned import Learned, TaskExamples
from degaml_kedro.baselines.support import adapt
from degaml_kedro.common.progress import Progress
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import (
    AnswerForm,
    PromptParameters,
    UnionParameters,
    WarmupParameters,
)
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import (
    AnswerSequence,
    FineTuneState,
    FineTuneStep,
    answer_sequences,
    total_steps,
    train_on_batches,
)
from degaml_kedro.llm.in_context import in_context_sequences
from degaml_kedro.tasks.example import Example

__all__ = ["adapt", "episodes_of_step", "fit", "fit_on_episodes", "listed", "pooled"]


def fit(
    setup: Setup,
    tasks: Sequence[TaskExamples],
    draw: Draw | None,
    seed: int,
    progress: Progress | None = None,
) -> Learned:
    """Union's meta-training where the pooled warm-up has examples in the prompt: as many steps, without them.

    Batches are as large as the method's ``batch_size``, or as the warm-up's.
    """
    assert setup.warmup is not None
    entry: UnionParameters = setup.entry
    size = entry.batch_size or setup.warmup.batch_size
    training = setup.warmup.model_copy(update={"context_share": 0.0, "batch_size": size})
    if draw is None:
        draw = listed([task.examples for task in tasks], seed)
    steps = fit_on_episodes(
        setup.base, draw, setup.prompt, setup.scoring.answers, training, setup.start, seed
    )
    about = training.model_dump(mode="json")
    return learned_by_steps(
        setup, setup.start, steps, about, progress=progress, total=total_steps(training)
    )


def pooled(pools: Sequence[Sequence[Example]]) -> list[Example]:
    """All tasks' examples, one of each task in turn: however many of them are used, every task has its share."""
    turns = chain.from_iterable(zip_longest(*pools))
    return [example for example in turns if example is not None]


def listed(pools: Sequence[Sequence[Example]], seed: int) -> Draw:
    """Episodes of listed tasks: the tasks in turn, support and query drawn from a task's examples."""

    def draw(number: int, support: int, query: int) -> tuple[list[Example], list[Example]]:
        pool = pools[number % len(pools)]
        rng = random.Random(derive_seed(seed, "episode", str(number)))
        drawn = rng.sample(list(pool), min(len(pool), support + query))
        return drawn[query:], drawn[:query]

    return draw


def episodes_of_step(
    training: WarmupParameters, seed: int, step: int
) -> list[tuple[int, int, int]]:
    """The episodes of a step: one with support examples in the prompt, or queries of several tasks without.

    The seed decides which it is, and how many are shown; ``step`` is counted from 1.

    Returns:
        (which draw, support examples, query examples) of each.
    """
    rng = random.Random(derive_seed(seed, "share", str(step)))
    first = step * training.tasks_per_step
    if rng.random() < training.context_share:
        shots = rng.randint((training.shots + 1) // 2, training.shots)
        return [(first, shots, training.context_queries)]
    count = min(training.tasks_per_step, training.batch_size)
    size = -(-training.batch_size // count)
    return [(first + place, 0, size) for place in range(count)]


def fit_on_episodes(
    base: BaseModel,
    draw: Draw,
    prompt: PromptParameters,
    mode: AnswerForm,
    training: WarmupParameters,
    start: Adapter,
    seed: int,
    resume: FineTuneState | None = None,
) -> Iterator[FineTuneStep]:
    """Meta-training on episodes, of which a share has the support examples in the prompt.

    A step with examples in the prompt learns queries of one task behind its demonstrations (MetaICL, Min et al., 2022);
    any other learns queries of several tasks as they are. Share 0 is union training on tasks that never come twice,
    share 1 is MetaICL. The seed decides which steps have examples in the prompt, and how many.

    Raises:
        PromptError: a query with its demonstrations is longer than the model's context.
    """

    def batch(step: int) -> Sequence[AnswerSequence]:
        drawn = [draw(*one) for one in episodes_of_step(training, seed, step)]
        if drawn[0][0]:
            (support, query), *_ = drawn
            return in_context_sequences(base, query, [support] * len(query), prompt, mode)
        queries = pooled([query for _, query in drawn])
        return answer_sequences(base, queries[: training.batch_size], prompt, mode)

    # queries behind the same demonstrations: these are computed once
    yield from train_on_batches(base, batch, training, start, resume, share_prefixes=True)
