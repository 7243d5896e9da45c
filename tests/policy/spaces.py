"""Toy families, and the space of their actions: nothing here is registered."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from degaml_kedro.config.schema import Parameters
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.strategies.observations import Nothing, Prompts
from degaml_kedro.strategies.registry import FieldSpace, StrategyFamily


class Train(Parameters):
    steps: Annotated[int, Field(ge=1, le=50)]
    learning_rate: Annotated[float, Field(ge=1e-6, le=1e-3)]
    shuffle: bool


class Mix(Parameters):
    amount: Annotated[float, Field(ge=-1, le=1, alias="lambda")]


class Vote(Parameters):
    method: Literal["mean", "más", 'q"x']
    members: Annotated[int, Field(ge=1, le=8)]
    distance: Literal["euclidean", "cosine"] = "euclidean"

    @model_validator(mode="after")
    def _at_least_two_for_a_mean(self) -> Vote:
        if self.method == "mean" and self.members == 7:
            raise ValueError("seven have no mean")
        return self


class Rest(Parameters):
    pass


def _unused(*_: object) -> None:
    raise AssertionError("an action was executed")


KNOWN = {
    "train": StrategyFamily(
        "train",
        "train on the prompts",
        Train,
        Prompts,
        (
            FieldSpace("steps", "integer", (1, 5, 10, 50), 1, 50),
            FieldSpace("learning_rate", "number", (1e-6, 1e-4, 1e-3), 1e-6, 1e-3),
            FieldSpace("shuffle", "boolean", (False, True)),
        ),
        _unused,  # type: ignore[arg-type]
    ),
    "mix": StrategyFamily(
        "mix",
        "mix the\n halves",
        Mix,
        Nothing,
        (FieldSpace("lambda", "number", (-1, 0, 0.5, 1), -1, 1),),
        _unused,  # type: ignore[arg-type]
    ),
    "vote": StrategyFamily(
        "vote",
        "ask several",
        Vote,
        Prompts,
        (
            FieldSpace("method", "choice", ("mean", "más", 'q"x')),
            FieldSpace("members", "integer", (1, 2, 8), 1, 8),
            FieldSpace("distance", "choice", ("euclidean", "cosine"), optional=True),
        ),
        _unused,  # type: ignore[arg-type]
    ),
    "rest": StrategyFamily("rest", "change nothing", Rest, Nothing, (), _unused),  # type: ignore[arg-type]
}
SPACE = ActionSpace.of({name: {} for name in KNOWN}, KNOWN)
