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
from dataclasses import dataclass

import torch

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines import icl
from degaml_kedro.baselines.compute import Clock
from degaml_kedro.baselines.episodes import Draw, Episode, draw_episodes, tasks_of_step
from degaml_kedro.baselines.learned import Learned, Progress, TaskExamples
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import AnswerSequence, computed_tokens, train_on_batches
from degaml_kedro.llm.in_context import fitting, in_context_sequences
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.scoring import Prediction
from degaml_kedro.parameters import (
    AnswerForm,
    InContextSetting,
    MetaIclParameters,
    Phase,
    PromptParameters,
    ScoringParameters,
    TrainingParameters,
)
from degaml_kedro.seeds import derive_seed
from degaml_kedro.tasks.example import Example

METHOD = "metaicl"


@dataclass(frozen=True)
class Demonstrated:
    """A task's examples as they stand in the prompt, and the weights that read them.

    Attributes:
        examples: in order.
        adapter: the meta-trained LoRA; None for the base model, which is ``icl``.
    """

    examples: tuple[Example, ...]
    adapter: Adapter | None = None


def fit(
    base: BaseModel,
    tasks: Sequence[TaskExamples],
    prompt: PromptParameters,
    mode: AnswerForm,
    parameters: MetaIclParameters,
    start: Adapter,
    seed: int,
    progress: Progress | None = None,
    method: str = METHOD,
    draw: Draw | None = None,
) -> Learned:
    """Meta-train the LoRA with AdamW, a step on the queries of ``tasks_per_step`` episodes.

    Compute: every token that is computed is read once and a gradient goes back through it once.

    The seed decides the episodes and their numbers of demonstrations; the order of the tasks does not matter. With
    ``draw`` tasks come from a source without end in place of the list. ``metaict`` trains the same way.

    Returns:
        The LoRA; a record an outer step: ``loss`` of the queries before it, ``seconds``, ``tokens``.

    Raises:
        BaselineError: there are no tasks, or one has too few examples.
        TrainingError: the loss stops being finite.
        PromptError: an example alone is longer than the model's context.
        ModelError: the start does not fit the model.
    """
    clock = Clock()

    def batch(step: int) -> list[AnswerSequence]:
        pool = tasks_of_step(tasks, draw, parameters.tasks_per_step, step)
        shots = _shots(parameters.support, step, seed)
        most = parameters.max_tokens // parameters.tasks_per_step
        return [
            sequence
            for episode in draw_episodes(pool, parameters, step, seed, entry=METHOD)
            for sequence in _sequences(base, episode, shots, prompt, mode, most)
        ]

    training = TrainingParameters(
        phases=(Phase(steps=parameters.outer_steps, learning_rate=parameters.outer_learning_rate),),
        max_gradient_norm=parameters.max_gradient_norm,
    )
    adapter, records = start, []
    for step in train_on_batches(base, batch, training, start, share_prefixes=True):
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
    return Learned(method, adapter, {}, records, clock.compute, about)


def adapt(
    learned: Learned | None, support: Sequence[Example], setting: InContextSetting, seed: int
) -> Demonstrated:
    """The demonstrations of a task, chosen as ``icl`` chooses them, and the meta-trained LoRA.

    Without a meta-trained LoRA it is the base model that reads them. The seed decides their order.
    """
    adapter = None if learned is None else learned.adapter
    return Demonstrated(icl.adapt(support, setting, seed), adapter)


def predict(
    base: BaseModel,
    demonstrated: Demonstrated,
    examples: Sequence[Example],
    prompt: PromptParameters,
    scoring: ScoringParameters,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answers to examples behind the demonstrations, under the meta-trained LoRA (see :func:`icl.predict`)."""
    with active_lora(base.activate_adapter(demonstrated.adapter)):
        return icl.predict(base, demonstrated.examples, examples, prompt, scoring, progress)


def _shots(most: int, step: int, seed: int) -> int:
    """The number of demonstrations of a step's episodes: 1 to ``most``."""
    generator = torch.Generator().manual_seed(derive_seed(seed, METHOD, "shots", str(step)))
    return int(torch.randint(1, most + 1, (), generator=generator))


def _sequences(
    base: BaseModel,
    episode: Episode,
    shots: int,
    prompt: PromptParameters,
    mode: AnswerForm,
    most: int,
) -> list[AnswerSequence]:
    """An episode's queries behind its demonstrations, in at most so many tokens where one of each fits in them."""
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
