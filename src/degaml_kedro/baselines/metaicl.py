"""``metaicl``: a LoRA that is meta-trained to answer from the examples in its prompt (Min et al., 2022).

    min over θ   E_{task, k}  -log p_θ(y | x_1 y_1 ... x_k y_k, x)

with k demonstrations and the queries of one task in an episode, k uniform from 1 to ``support``, and the loss on the
queries' answers alone (their section 3.1, with a LoRA in place of all weights). A new task's support examples stand in
the prompt, as those of ``icl`` do; no gradient follows.

All queries of an episode stand behind the same demonstrations, which are computed once (``TokenTrie``): a step costs
little more than the demonstrations and the queries themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from degaml_kedro.baselines.baseline import Setup
from degaml_kedro.baselines.compute import Clock
from degaml_kedro.baselines.episodes import Draw, Episode, draw_episodes, tasks_of_step
from degaml_kedro.baselines.icl import adapt, predict
from degaml_kedro.baselines.learned import Learned, Progress, TaskExamples
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import MetaIclParameters, Phase, TrainingParameters
from degaml_kedro.llm.finetune import AnswerSequence, computed_tokens, train_on_batches
from degaml_kedro.llm.in_context import fitting, in_context_sequences

__all__ = ["adapt", "fit", "predict"]


def fit(
    setup: Setup,
    tasks: Sequence[TaskExamples],
    draw: Draw | None,
    seed: int,
    progress: Progress | None = None,
) -> Learned:
    """Meta-train the LoRA with AdamW, a step on the queries of ``tasks_per_step`` episodes.

    Compute: every token that is computed is read once and a gradient goes back through it once.

    The seed decides the episodes and their numbers of demonstrations; the order of the tasks does not matter.

    Returns:
        The LoRA; a record an outer step: ``loss`` of the queries before it, ``seconds``, ``tokens``.

    Raises:
        BaselineError: there are no tasks, or one has too few examples.
        TrainingError: the loss stops being finite.
        PromptError: an example alone is longer than the model's context.
        ModelError: the start does not fit the model.
    """
    clock = Clock()
    parameters: MetaIclParameters = setup.entry

    def batch(step: int) -> list[AnswerSequence]:
        pool = tasks_of_step(tasks, draw, parameters, step)
        shots = _shots(parameters.support, step, seed)
        most = parameters.max_tokens // parameters.tasks_per_step
        return [
            sequence
            for episode in draw_episodes(pool, parameters, step, seed, entry="metaicl")
            for sequence in _sequences(setup, episode, shots, most)
        ]

    training = TrainingParameters(
        phases=(Phase(steps=parameters.outer_steps, learning_rate=parameters.outer_learning_rate),),
        max_gradient_norm=parameters.max_gradient_norm,
    )
    adapter, records = setup.start, []
    for step in train_on_batches(setup.base, batch, training, adapter, share_prefixes=True):
        clock.trained(step.tokens)
        adapter = step.adapter
        records.append(
            {"step": step.step, "loss": step.loss, "seconds": step.seconds, "tokens": step.tokens}
        )
        if progress is not None:
            progress(step.step, parameters.outer_steps)
    about = {
        **parameters.model_dump(mode="json"),
        "seed": seed,
        "tasks": sorted(task.name for task in tasks),
    }
    return Learned(setup.method, adapter, {}, records, clock.compute, about)


def _shots(most: int, step: int, seed: int) -> int:
    """The number of demonstrations of a step's episodes: 1 to ``most``."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "metaicl", "shots", str(step)))
    return int(torch.randint(1, most + 1, (), generator=generator))


def _sequences(setup: Setup, episode: Episode, shots: int, most: int) -> list[AnswerSequence]:
    """An episode's queries behind its demonstrations, in at most so many tokens where one of each fits in them."""
    base, prompt, mode = setup.base, setup.prompt, setup.scoring.answers
    query = episode.query
    shots = fitting(base, episode.support, query, prompt, mode, shots)
    while True:
        shown = [episode.support[:shots]] * len(query)
        sequences = in_context_sequences(base, query, shown, prompt, mode)
        tokens = computed_tokens(sequences, share_prefixes=True)
        if tokens <= most or (shots <= 1 and len(query) == 1):
            return sequences
        if shots > 1:
            shots = max(1, min(shots - 1, shots * most // tokens))
        else:
            query = query[: len(query) // 2]
