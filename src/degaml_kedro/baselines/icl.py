"""``icl``: in-context learning, the support examples in the prompt (ours, not in the paper).

The order of the demonstrations is a shuffle that the seed decides; a smaller number of them is a beginning of the
same shuffle. What stands in the prompt, and how it is scored, is in ``llm/in_context.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines.baseline import Setup
from degaml_kedro.baselines.learned import Learned
from degaml_kedro.common.progress import Progress
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import InContextSetting
from degaml_kedro.llm.generation import write_texts
from degaml_kedro.llm.in_context import (
    PrefixMemory,
    compare_in_context,
    encode_in_context,
    fitting,
    shuffled,
)
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.prompting import without_options
from degaml_kedro.llm.scoring import Prediction, graded, predictions_of, written_answers
from degaml_kedro.tasks.example import Example, Question

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Demonstrated:
    """A task's examples as they stand in the prompt, in order, and the LoRA that reads them, if there is one."""

    examples: tuple[Example, ...]
    adapter: Adapter | None = None


def adapt(
    setup: Setup,
    learned: Learned | None,
    support: Sequence[Example],
    setting: InContextSetting,
    seed: int,
) -> Demonstrated:
    """The demonstrations: the first ``shots`` of the support examples in the seed's order.

    A task and a run have one seed, and so one order, each.
    """
    shown = shuffled(support, derive_seed(seed, "icl"))[: setting.shots]
    return Demonstrated(shown, None if learned is None else learned.adapter)


def predict(
    setup: Setup,
    demonstrated: Demonstrated,
    examples: Sequence[Example],
    seed: int,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answers to examples behind demonstrations, as many of them as fit in front of the longest.

    Answers of ``examples`` are only compared with in the end.

    Returns:
        One prediction an example, in order. ``tokens`` is what no other example needed, and a share of the rest.

    Raises:
        PromptError: an example alone is longer than the model's context.
    """
    base, prompt, scoring = setup.base, setup.prompt, setup.scoring
    generated = scoring.mode == "generate"
    questions = [Question.of(example) for example in examples]
    if generated:
        questions = without_options(questions)
    wanted, form, room = len(demonstrated.examples), scoring.answers, scoring.room
    count = fitting(base, demonstrated.examples, questions, prompt, form, wanted, room)
    if count < wanted:
        logger.info(
            "%d of %d demonstrations fit in the %d tokens of %s in front of the longest question",
            count,
            wanted,
            base.context_length,
            base.name,
        )
    shown = [demonstrated.examples[:count]] * len(questions)
    with active_lora(base.activate_adapter(demonstrated.adapter)):
        asked = encode_in_context(base, questions, shown, prompt, form, shared=True, room=room)
        if generated:
            written = write_texts(base, asked.encoded, prompt, scoring, progress=progress)
            asked = asked.answered([[one] for one in written])
            compared = compare_in_context(base, asked, prompt, scoring, PrefixMemory())
            return graded(examples, written_answers(written, compared), scoring)
        found = compare_in_context(base, asked, prompt, scoring, PrefixMemory(), progress=progress)
        return predictions_of(examples, found.scores[0], found.tokens, prompt, scoring)
