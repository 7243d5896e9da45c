"""A family: a skill, and an endless stream of questions that exercise it.

A family is one small function that draws a question and its wrong answers. Everything that must
hold for all families is done here, once: which position is right, that no question comes twice,
that the options can be told apart.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from degaml_kedro.tasks.example import Example, TaskError, make_example

# Prompt length in words, options included: about 60 tokens of an English tokenizer.
MAX_WORDS = 48
# So many rejected draws in a row mean that hardly anything new is left to be drawn.
PATIENCE = 3000


@dataclass(frozen=True, slots=True)
class SuiteQuestion:
    """A question, its one right answer and its wrong ones."""

    text: str
    answer: str
    wrong: tuple[str, ...]


# A draw takes the random source and the number of options. None stands for "this draw led nowhere".
Draw = Callable[[random.Random, int], SuiteQuestion | None]


@dataclass(frozen=True)
class Family:
    """A skill whose questions vary inside.

    Attributes:
        name: Its name, unique in the suite.
        draw: Draws one question with the given number of options.
        options: The numbers of options that occur, each as often as the others.
    """

    name: str
    draw: Draw = field(repr=False)
    options: tuple[int, ...] = (4,)

    def generate(self, count: int, seed: int) -> list[Example]:
        """The first ``count`` examples of the stream that ``seed`` starts.

        The stream does not depend on ``count``: a longer run begins with the shorter one. Among
        examples with k options, every k in a row have their right answers in k different positions.
        No two examples have the same question with the same set of options.

        Raises:
            TaskError: The family cannot make that many different examples.
        """
        draws = random.Random(f"{self.name}/draws/{seed}")
        order = random.Random(f"{self.name}/order/{seed}")
        positions: dict[int, list[int]] = {}
        examples: list[Example] = []
        seen: set[tuple[str, frozenset[str]]] = set()
        rejected = 0
        while len(examples) < count:
            size = draws.choice(self.options)
            question = self.draw(draws, size)
            if question is None or not _is_sound(question, size) or _key(question) in seen:
                rejected += 1
                if rejected == PATIENCE:
                    raise TaskError(
                        f"The family '{self.name}' makes about {len(examples)} different examples, "
                        f"but {count} were asked for; lower the split sizes of tasks that use it."
                    )
                continue
            rejected = 0
            seen.add(_key(question))
            if not positions.get(size):
                positions[size] = order.sample(range(size), size)
            gold = positions[size].pop()
            options = order.sample(question.wrong, len(question.wrong))
            options.insert(gold, question.answer)
            examples.append(make_example(question.text, options, gold))
        return examples


def _key(question: SuiteQuestion) -> tuple[str, frozenset[str]]:
    return question.text, frozenset((question.answer, *question.wrong))


def _is_sound(question: SuiteQuestion, size: int) -> bool:
    """As many options as asked for, none the beginning of another, and a short prompt."""
    options = sorted(option.casefold() for option in (question.answer, *question.wrong))
    # In sorted order a text that begins with another one comes right after it or after one that
    # begins with it too.
    distinct = all(not b.startswith(a) for a, b in itertools.pairwise(options))
    words = len(question.text.split()) + sum(1 + len(option.split()) for option in options)
    return len(options) == size and distinct and words <= MAX_WORDS
