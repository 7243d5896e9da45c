"""Toy families that tell what they were given, and proposers that say what they are told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from pydantic import Field

from degaml_kedro.config.schema import (
    Parameters,
    PolicyParameters,
    RewardParameters,
    SearchParameters,
)
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.proposers import Proposal
from degaml_kedro.policy.search import CarriedOut, Refinement, Row
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.observations import Labeled, Nothing, Prompts
from degaml_kedro.strategies.registry import FieldSpace, StrategyFamily
from degaml_kedro.strategies.state import AdaptedState
from tests.strategies.helpers import adapter


class Which(Parameters):
    which: Annotated[int, Field(ge=0, le=99)]


@dataclass
class Call:
    """What a toy was given."""

    state: AdaptedState
    seen: Nothing | Prompts | Labeled
    which: int
    seed: int


@dataclass
class Toy:
    """A family of one field that does as it is told, and keeps what it was given."""

    does: Callable[..., Any]
    sees: Any = Prompts
    name: str = "toy"
    calls: list[Call] = field(default_factory=list)

    def refine(
        self, context: Context, state: AdaptedState, seen: Any, config: Which, seed: int
    ) -> Any:
        self.calls.append(Call(state, seen, config.which, seed))
        return self.does(context, state, seen, config, seed)

    @property
    def family(self) -> StrategyFamily:
        offered = tuple(range(12))
        fields = (FieldSpace("which", "integer", offered, 0, 99),)
        return StrategyFamily(self.name, "a toy", Which, self.sees, fields, self.refine)

    @property
    def space(self) -> ActionSpace:
        return space_of(self)

    def text(self, which: int = 0) -> str:
        return f'{{"family":"{self.name}","which":{which}}}'


def space_of(*toys: Toy) -> ActionSpace:
    return ActionSpace.of({toy.name: {} for toy in toys}, {toy.name: toy.family for toy in toys})


def identity(context: Any, state: AdaptedState, *_: Any) -> AdaptedState:
    return state


def fail(*_: Any) -> AdaptedState:
    raise RuntimeError("this one fails\nand says more")


def moved(state: AdaptedState, which: int) -> AdaptedState:
    """Every member moved a little way, one direction a number: some ways are better, some worse."""
    members = []
    for member in state.members:
        way = adapter(1000 + which, scale=0.05)
        tensors = {k: v + way.tensors[k] for k, v in member.adapter.tensors.items()}
        members.append(replace(member, adapter=replace(member.adapter, tensors=tensors)))
    return replace(state, members=tuple(members))


def move(context: Any, state: AdaptedState, seen: Any, config: Which, seed: int) -> AdaptedState:
    return moved(state, config.which)


class Killed(BaseException):
    """The end of a process: nothing records it."""


@dataclass
class Script:
    """A proposer that says a text after the other, whoever asks; the same ones from the start for the same seed."""

    texts: Sequence[str]
    asked: list[tuple[tuple[str, ...], int]] = field(default_factory=list)
    given: int = 0

    def propose(self, prompts: Sequence[str], seed: int) -> list[Proposal]:
        self.asked.append((tuple(prompts), seed))
        found = []
        for prompt in prompts:
            found.append(Proposal(self.texts[self.given % len(self.texts)], prompt, "policy", 3))
            self.given += 1
        return found


def bytes_of(state: AdaptedState) -> bytes:
    """Everything that a state holds."""
    parts = []
    for member in state.members:
        parts += [
            f"{k}{v.dtype}{v.shape}".encode() + raw(v) for k, v in member.adapter.tensors.items()
        ]
        parts.append(b"" if member.prompts is None else raw(member.prompts))
    steering = state.steering
    if steering is not None and steering.vectors is not None:
        parts.append(raw(steering.vectors))
    return b"|".join(parts) + repr((state.vote, steering and steering.times)).encode()


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def keep(chunks: Iterable[Any], kept: list[Any]) -> None:
    """Take what comes, and have it still where something comes no more."""
    for chunk in chunks:
        kept.append(chunk)


def refinement(context, space, start, support, settings=None, reward=None) -> Refinement:
    """A refinement with parameters of its search alone: toys are no registered families."""
    policy = PolicyParameters.model_construct(
        search=settings or SearchParameters(), reward=reward or RewardParameters()
    )
    return Refinement(context, space, policy, start, support)


def adapt(
    context, space, proposer, start, support, settings, reward, seed, tag, finished=()
) -> Iterator[Row]:
    """The trials of a search."""
    made = refinement(context, space, start, support, settings, reward)
    return made.search(proposer, seed, tag, finished)


def roll_out(
    context, space, proposer, start, examples, settings, reward, seed, tag, finished=(), shown=()
) -> Iterator[Row]:
    """Episodes on ``examples``; ``shown`` is the support set."""
    policy = PolicyParameters.model_construct(rollouts=settings, reward=reward)
    made = Refinement(context, space, policy, start, shown)
    return made.roll_out(proposer, examples, seed, tag, finished)


def carry_out(context, space, start, support, rows) -> CarriedOut:
    """What was chosen, carried out by somebody who did not search."""
    return refinement(context, space, start, support).execute(rows)
