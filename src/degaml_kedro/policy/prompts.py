"""What the policy reads: the state of one task, in few words, and nothing that names the task."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.llm.prompting import question_text
from degaml_kedro.policy.actions import ActionError, ActionSpace
from degaml_kedro.policy.indicators import Indicators
from degaml_kedro.tasks.example import Question

_QUESTIONS_SHOWN, _QUESTION_WIDTH = 2, 80
_TRIED_SHOWN = 4
_MEASURES = ("accuracy", "confidence", "entropy", "nll")
_MEASURED = "^" + ", ".join(rf"{name} (?P<{name}>\S+)" for name in _MEASURES) + "$"


def policy_prompt(
    questions: Sequence[Question],
    indicators: Indicators,
    tried: Sequence[tuple[str, float]],
    space: ActionSpace,
    seed: int,
) -> str:
    """The text the policy answers with an action.

    Args:
        questions: of the task; the first ones stand for it, shortened, without their options.
        tried: actions so far, as they were written, and their rewards, the oldest first; the last four are told.
        seed: decides the order of the families, so that no place in the list is a habit.
    """
    counts = [len(q.options) for q in questions] or [len(indicators.histogram)]
    low, high = min(counts), max(counts)
    shares = " ".join(f"{share:.0%}"[:-1] for share in indicators.histogram)
    lines = [
        f"Questions with {low if low == high else f'{low}-{high}'} options:",
        *(f"- {_one_line(question_text(q, 'hidden'))}" for q in questions[:_QUESTIONS_SHOWN]),
        ", ".join(f"{name} {getattr(indicators, name):.2f}" for name in _MEASURES),
        # in percent, which takes half as many tokens
        f"answers {shares} %",
    ]
    if tried:
        lines.append("Tried:")
        lines += [f"{_brief(text, space)}: {reward:.3g}" for text, reward in tried[-_TRIED_SHOWN:]]
    names = [family.name for family in space.proposed]
    order = np.random.default_rng(derive_seed(seed, "order")).permutation(len(names))
    lines += ["Choose:", space.describe([names[i] for i in order]), "Strategy:"]
    return "\n".join(lines)


def state_numbers(prompt: str) -> dict[str, float]:
    """The numbers of a state, by name, from the text that :func:`policy_prompt` made of it; none without a text."""
    options = re.search(r"^Questions with (\d+)", prompt)
    measured = re.search(_MEASURED, prompt, re.MULTILINE)
    if options is None or measured is None:
        return {}
    # an nll may be infinite
    found = {name: min(float(text), 99.0) for name, text in measured.groupdict().items()}
    return {"options": float(options[1]), **found}


def _brief(action: str, space: ActionSpace) -> str:
    """The family and its values, without the fields' names; what the policy wrote wrongly is not told again."""
    try:
        parsed, _ = space.parse(action)
    except ActionError:
        return "invalid"
    values = (v if isinstance(v, str) else json.dumps(v) for v in parsed.config.values())
    return " ".join((parsed.family, *values))


def _one_line(text: str) -> str:
    """A question on one line of at most 80 characters, and without characters that change how a text is laid out."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat if len(flat) <= _QUESTION_WIDTH else f"{flat[: _QUESTION_WIDTH - 1]}…"
