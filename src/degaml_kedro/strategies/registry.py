"""The families of strategies: what a policy may choose from, and how a user adds one.

A family is one function, its verb, and a pydantic model of its configuration:

    class Scaling(Parameters):
        factor: Annotated[float, Field(ge=0.5, le=2.0), Offered(0.5, 0.8, 1.25, 2.0)]

    @family("scaling", "scale the adapter", Scaling)
    def refine(context: Context, state: AdaptedState, seen: Nothing, config: Scaling, seed: int) -> AdaptedState:
        ...

What a family may see of the task is the type of its third parameter: :class:`Nothing`, :class:`Prompts` (questions
without answers), :class:`Labeled` or :class:`Candidates` (what the search has made so far). It is given an object of
that type and nothing else.
"""

from __future__ import annotations

import inspect
import itertools
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.config.schema import Parameters
from degaml_kedro.llm.base_model import first_line
from degaml_kedro.strategies.observations import Candidates, Labeled, Nothing, Prompts
from degaml_kedro.strategies.state import AdaptedState

ENTRY_POINTS = "degaml_kedro.strategies"
_OWN = ("ttt", "mixing", "latent", "scaling", "few_shot", "in_context", "written", "ensemble")
# how many configurations an offered value is tried in before it counts as one that none accepts
_TRIED_TOGETHER = 1000

Value = int | float | bool | str
Sees = type[Nothing] | type[Prompts] | type[Labeled] | type[Candidates]
Refine = Callable[..., AdaptedState]
F = TypeVar("F", bound=Refine)


class FamilyError(DegamlError):
    """A family that cannot be registered, or one that nobody registered."""


@dataclass(frozen=True)
class Offered:
    """The values of a field, from small to large, that grammar and uniform draws offer; others in bounds are valid."""

    values: tuple[Value, ...]

    def __init__(self, *values: Value) -> None:
        object.__setattr__(self, "values", values)


@dataclass(frozen=True)
class FieldSpace:
    """One field of a family's configuration.

    Attributes:
        name: as it stands in an action, ``lambda``.
        kind: ``integer``, ``number``, ``boolean`` or ``choice``.
        offered: at least one value.
        low: smallest valid number, and ``high`` the largest; None for the others.
        optional: it has a default: actions name it only where the profile's bounds do.
    """

    name: str
    kind: str
    offered: tuple[Value, ...]
    low: float | None = None
    high: float | None = None
    optional: bool = False


@dataclass(frozen=True)
class StrategyFamily:
    """One way to refine an adapter.

    Attributes:
        name: ``ttt``.
        summary: what it does, in a few words: it stands in the policy's prompt.
        config: the pydantic model of its configuration; its bounds are the action's.
        refine: the verb: (context, state, seen, config, seed) -> state.
    """

    name: str
    summary: str
    config: type[Parameters]
    sees: Sees
    fields: tuple[FieldSpace, ...]
    refine: Refine

    @property
    def reads_answers(self) -> bool:
        """Whether it has to be scored on examples that it was not given."""
        return self.sees in (Labeled, Candidates)


_FAMILIES: dict[str, StrategyFamily] = {}


def family(name: str, summary: str, config: type[Parameters]) -> Callable[[F], F]:
    """Register a function as a family of strategies.

    Args:
        name: lower case letters, digits and underscores.
        summary: what it does, in a few words.
        config: its configuration; every number needs bounds, and ``Offered`` values unless it is a short range of
            integers, a boolean or a ``Literal``.

    Raises:
        FamilyError: the name is taken or no name, the function has another signature, a field has no bounds, or an
            offered value is not one of the field's.
    """

    def register(refine: F) -> F:
        if re.fullmatch(r"[a-z][a-z0-9_]*", name) is None:
            raise FamilyError(
                f"'{name}' is no name for a family; use lower case letters, digits and underscores"
            )
        known = _FAMILIES.get(name)
        if known is not None and known.refine.__module__ != refine.__module__:
            raise FamilyError(
                f"the family '{name}' is registered by {known.refine.__module__} and by {refine.__module__}; "
                f"give one another name"
            )
        fields = tuple(_space(name, key, info) for key, info in config.model_fields.items())
        _check_offered(name, config, fields)
        _FAMILIES[name] = StrategyFamily(name, summary, config, _sees(name, refine), fields, refine)
        return refine

    return register


def families(wanted: Iterable[str] | None = None) -> Mapping[str, StrategyFamily]:
    """Families by name: this project's, then those of installed packages that name an entry point.

    Args:
        wanted: names that are to be among them; where all are there already, no installed package is loaded, so that
            one that is broken only stops who asks for a family that is not here. None loads all.

    Raises:
        FamilyError: an entry point cannot be loaded.
    """
    for module in _OWN:
        import_module(f"degaml_kedro.strategies.{module}")
    if wanted is None or not _FAMILIES.keys() >= set(wanted):
        for point in entry_points(group=ENTRY_POINTS):
            _load(point)
    return dict(_FAMILIES)


def _load(point: EntryPoint) -> None:
    before = set(_FAMILIES)
    try:
        point.load()
    except Exception as error:
        # what it registered before it failed is no family either
        for name in set(_FAMILIES) - before:
            del _FAMILIES[name]
        owner = "an installed package" if point.dist is None else f"the package {point.dist.name}"
        raise FamilyError(
            f"the entry point '{point.name}' ({ENTRY_POINTS}) of {owner} cannot be loaded: {_told(error)}. "
            f"Uninstall or fix the package; without a family that is not this project's own it is not needed"
        ) from error


def find_family(name: str) -> StrategyFamily:
    """A family by its name.

    Raises:
        FamilyError: there is none of that name.
    """
    known = families([name])
    if name not in known:
        raise FamilyError(
            f"there is no strategy family '{name}'; there are {', '.join(known)}. A family of your own is registered "
            f"by the decorator `family`, and found through the entry point group {ENTRY_POINTS}"
        )
    return known[name]


def _sees(name: str, refine: Refine) -> Sees:
    parameters = list(inspect.signature(refine).parameters)
    if len(parameters) != 5:
        raise FamilyError(
            f"the family '{name}' takes ({', '.join(parameters)}); it has to take "
            f"(context, state, seen, config, seed)"
        )
    try:
        found = typing.get_type_hints(refine).get(parameters[2])
    except NameError:  # an annotation that is imported for type checkers only
        found = None
    if found not in (Nothing, Prompts, Labeled, Candidates):
        raise FamilyError(
            f"the family '{name}' does not say what it may see: annotate its third parameter '{parameters[2]}' with "
            f"Nothing, Prompts, Labeled or Candidates"
        )
    return typing.cast(Sees, found)


def _space(family_name: str, key: str, info: FieldInfo) -> FieldSpace:
    name, kind = info.alias or key, info.annotation
    where = f"the field '{name}' of the family '{family_name}'"
    low, high = (
        next((getattr(item, bound) for item in info.metadata if hasattr(item, bound)), None)
        for bound in ("ge", "le")
    )
    offered = next((m.values for m in info.metadata if isinstance(m, Offered)), None)
    if kind is bool or typing.get_origin(kind) is typing.Literal:
        called, low, high = "boolean" if kind is bool else "choice", None, None
        every = (False, True) if kind is bool else typing.get_args(kind)
    elif kind not in (int, float):
        raise FamilyError(f"{where} is {kind}; use int, float, bool or a Literal of strings")
    elif low is None or high is None:
        raise FamilyError(f"{where} has no bounds; give it ge and le")
    else:
        called = "integer" if kind is int else "number"
        few = kind is int and high - low <= 64
        every = tuple(range(int(low), int(high) + 1)) if few else ()
        if offered is None and not few:
            raise FamilyError(f"{where} has too many values; name some with Offered(…)")
    offered = every if offered is None else offered
    if not offered:
        raise FamilyError(f"{where} offers nothing")
    return FieldSpace(name, called, offered, low, high, not info.is_required())


def _check_offered(name: str, config: type[Parameters], fields: Sequence[FieldSpace]) -> None:
    """Every offered value is part of a configuration that its model accepts, or proposals of it would all be invalid.

    Raises:
        FamilyError: one is not.
    """
    for space in fields:
        others = [other for other in fields if other is not space and not other.optional]
        for value in space.offered:
            reason = None
            every = itertools.product(*(other.offered for other in others))
            for chosen in itertools.islice(every, _TRIED_TOGETHER):
                values = dict(zip((other.name for other in others), chosen, strict=True))
                try:
                    config.model_validate({**values, space.name: value}, strict=True)
                except Exception as error:  # noqa: BLE001 - a validator may raise anything
                    reason = reason or _told(error)
                else:
                    break
            else:
                raise FamilyError(
                    f"the field '{space.name}' of the family '{name}' offers {value!r}, which its configuration "
                    f"does not accept ({reason})"
                )


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join((*map(str, first["loc"]), first["msg"]))
    return (
        str(error)
        if isinstance(error, DegamlError)
        else f"{type(error).__name__}: {first_line(error)}"
    )
