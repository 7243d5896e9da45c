"""``metaicl``: a LoRA that is meta-trained to answer from the examples in its prompt (Min et al., 2022); ``metaict``.

    min over θ   E_{task, k}  -log p_θ(y | x_1 y_1 ... x_k y_k, x)

with k demonstrations and the queries of one task in an episode, k uniform from 1 to ``support``, and the loss on the
queries' answers alone (their section 3.1, with a LoRA in place of all weights). A new task's support examples stand in
the prompt, as those of ``icl`` do; no gradient follows.

All queries of an episode stand behind the same demonstrations, which are computed once (``TokenTrie``).

``metaict``, in-context tuning (Chen et al., 2022), is the same with the task's instruction in front: the
``description`` in the configuration, which enters as the system message does, before an example's own. Tasks that are
drawn have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from degaml_kedro.baselines import icl
from degaml_kedro.baselines.baseline import Setup, learned_by_steps
from degaml_kedro.baselines.episodes import Draw, Episode, draw_episodes, tasks_of_step
from degaml_kedro.baselines.learned import Learned, TaskExamples
from degaml_kedro.common.progress import Progress
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import (
    InContextSetting,
    MetaIclParameters,
    Phase,
    TrainingParameters,
)
from degaml_kedro.llm.finetune import AnswerSequence, computed_tokens, train_on_batches
from degaml_kedro.llm.in_context import fitting, in_context_sequences
from degaml_kedro.llm.scoring import Prediction
from degaml_kedro.tasks.example import Example


def fit(
    setup: Setup,
    tasks: Sequence[TaskExamples],
    draw: Draw | None,
    seed: int,
    progress: Progress | None = None,
) -> Learned:
    """Meta-train the LoRA with AdamW, a step on the queries of ``tasks_per_step`` episodes.

    The seed decides the episodes and their numbers of demonstrations; the order of the tasks does not matter.

    Raises:
        BaselineError: there are no tasks, or one has too few examples.
        TrainingError: the loss stops being finite.
        PromptError: an example alone is longer than the model's context.
    """
    parameters: MetaIclParameters = setup.entry
    if setup.method == "metaict":
        tasks = [replace(one, examples=instructed(one.examples, one.instruction)) for one in tasks]

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
    names = sorted(task.name for task in tasks)
    return learned_by_steps(
        setup,
        setup.start,
        train_on_batches(setup.base, batch, training, setup.start, share_prefixes=True),
        {**parameters.model_dump(mode="json"), "seed": seed, "tasks": names},
        ("step", "loss", "seconds", "tokens"),
        progress,
        parameters.outer_steps,
    )


def adapt(
    setup: Setup,
    learned: Learned | None,
    support: Sequence[Example],
    setting: InContextSetting,
    seed: int,
) -> icl.Demonstrated:
    """The demonstrations of a task, for the LoRA."""
    return icl.adapt(setup, learned, _asked(setup, support), setting, seed)


def predict(
    setup: Setup,
    demonstrated: icl.Demonstrated,
    examples: Sequence[Example],
    seed: int,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answers to examples behind the demonstrations."""
    return icl.predict(setup, demonstrated, _asked(setup, examples), seed, progress)


def _asked(setup: Setup, examples: Sequence[Example]) -> Sequence[Example]:
    return instructed(examples, setup.instruction) if setup.method == "metaict" else examples


def instructed(examples: Sequence[Example], instruction: str) -> list[Example]:
    """Examples with their task's instruction in front of the system message."""
    return [
        replace(example, system="\n\n".join(filter(None, (instruction, example.system))))
        for example in examples
    ]


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
