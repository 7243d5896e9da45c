"""What the strategies' benchmarks work on: the embedded profile's prompts, scoring and adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from benchmarks.material import SEED, Settings
from benchmarks.measure import Row, Spread
from benchmarks.one_candidate import make_context
from degaml_kedro.config.schema import LoraParameters, PromptParameters, ScoringParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.state import Member
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.suite import FAMILIES

_PROFILE = Path(__file__).resolve().parent.parent / "conf" / "base" / "parameters.yml"
TASK = "who_owns"


@dataclass(frozen=True)
class Profile:
    """What the profile says of asking, answering and adapters.

    Attributes:
        prompt: how a question becomes text.
        scoring: how answers are scored.
        lora: the adapters' shape.
        support: how many support examples a task has.
    """

    prompt: PromptParameters
    scoring: ScoringParameters
    lora: LoraParameters
    support: int


@cache
def profile() -> Profile:
    """The embedded profile's own, so that a benchmark never measures last month's settings."""
    content = yaml.safe_load(_PROFILE.read_text(encoding="utf-8"))
    return Profile(
        PromptParameters.model_validate(content["prompt"]),
        ScoringParameters.model_validate(content["scoring"]),
        LoraParameters.model_validate(content["lora"]),
        int(content["splits"]["support"]),
    )


def context_for(base: BaseModel) -> Context:
    """A context as the profile asks, with adapters of noise."""
    own = profile()
    return make_context(base, own.prompt, own.scoring, own.lora)


def members_of(context: Context, count: int) -> list[Member]:
    """Adapters of noise."""
    assert context.draw is not None
    return [context.draw(SEED, number) for number in range(count)]


def task_examples(count: int) -> list[Example]:
    """Questions of one family of the suite."""
    return list(FAMILIES[TASK].generate(count, SEED))


def tokens_of(settings: Settings, tokens: Sequence[int]) -> dict[str, float | int | str]:
    """What a reader needs to know of the work."""
    return {
        "dtype": str(settings.base().dtype),
        "questions": len(tokens),
        "tokens_a_question": sum(tokens) / len(tokens),
    }


def times_as_long(
    name: str, ours: Sequence[float], peer: Sequence[float], at_least: float | None = None
) -> Row:
    """How many times as long the peer takes, in seconds taken in turn, pair by pair."""
    ratios = [theirs / own for own, theirs in zip(ours, peer, strict=True)]
    return Row(name, "s", Spread.of(ours), Spread.of(peer), Spread.of(ratios), at_least)
