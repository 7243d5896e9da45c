"""Actions: one JSON object that names a family and its configuration, and the space of those that are allowed.

What a language model writes is untrusted text: :meth:`ActionSpace.parse` is the one door it comes in by. The space is
the families' own bounds, narrowed by ``policy.families``. A grammar and uniform draws use the values that a family
offers; a text may hold any value inside the bounds.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.config.schema import Parameters
from degaml_kedro.llm.base_model import first_line
from degaml_kedro.strategies.observations import Candidates
from degaml_kedro.strategies.registry import FieldSpace, StrategyFamily, Value, families

FAMILY_KEY = "family"
LONGEST_TEXT = 2000  # characters; an action has about a hundred
_QUOTED_WIDTH = 60


class ActionError(DegamlError):
    """A text that is no action of the space."""


class ActionSpaceError(DegamlError):
    """A narrowing of the action space that cannot be meant."""


@dataclass(frozen=True)
class Action:
    """One strategy to try.

    Attributes:
        config: value by field, in the family's order.
    """

    family: str
    config: Mapping[str, Value]

    @property
    def text(self) -> str:
        """The action as compact JSON, the family first; equal actions have equal texts."""
        return _json({FAMILY_KEY: self.family, **self.config})


@dataclass(frozen=True)
class ActionSpace:
    """The actions that may be tried.

    Attributes:
        families: the enabled ones.
        fields: by family, the fields of its actions with their narrowed bounds. For choices and booleans the offered
            values are the bounds.
    """

    families: tuple[StrategyFamily, ...]
    fields: Mapping[str, tuple[FieldSpace, ...]]

    @classmethod
    def of(
        cls,
        narrowed: Mapping[str, Mapping[str, Sequence[Value]]],
        known: Mapping[str, StrategyFamily] | None = None,
    ) -> ActionSpace:
        """The space that ``policy.families`` describes.

        Args:
            narrowed: by enabled family, by field: ``[low, high]`` for a number, the allowed values for a choice or a
                boolean. A field that is not named keeps the family's own bounds, or its default if it has one: then
                actions do not name it.
            known: the families there are; None for those that are registered.

        Raises:
            ActionSpaceError: a family or field does not exist, or a narrowing leaves nothing or goes outside of the
                family's own bounds.
            FamilyError: a family of an installed package cannot be registered.
        """
        known = families(narrowed) if known is None else known
        fields = {}
        for name, limits in narrowed.items():
            if name not in known:
                raise ActionSpaceError(f"policy.families.{name}: {_unknown(name, known)}")
            spaces = {space.name: space for space in known[name].fields}
            if FAMILY_KEY in spaces:
                raise ActionSpaceError(
                    f"policy.families.{name}: the family has a field called '{FAMILY_KEY}', which an action's family "
                    f"is called; give the field an alias"
                )
            for field in limits:
                if field not in spaces:
                    raise ActionSpaceError(
                        f"policy.families.{name}.{field}: {_unknown(field, spaces)}"
                    )
            fields[name] = tuple(
                _narrow(space, limits.get(space.name), f"policy.families.{name}.{space.name}")
                for space in spaces.values()
                if space.name in limits or not space.optional
            )
        return cls(tuple(known[name] for name in narrowed), fields)

    @property
    def proposed(self) -> tuple[StrategyFamily, ...]:
        """The families that are proposed: those that need nothing that was tried before them."""
        return tuple(family for family in self.families if family.sees is not Candidates)

    @property
    def pooling(self) -> tuple[Action, ...]:
        """What a search tries after its proposals: of families that put these together, the first offered values."""
        return tuple(
            Action(
                family.name, {space.name: space.offered[0] for space in self.fields[family.name]}
            )
            for family in self.families
            if family.sees is Candidates
        )

    def family(self, name: str) -> StrategyFamily:
        """An enabled family by its name."""
        return next(family for family in self.families if family.name == name)

    def parse(self, text: str) -> tuple[Action, Parameters]:
        """An action that somebody else wrote, and its family's configuration.

        Raises:
            ActionError: it is not JSON, not an action, or outside of the space.
        """
        record = _read(text)
        if FAMILY_KEY not in record:
            raise ActionError(f"the action names no '{FAMILY_KEY}'")
        name = record.pop(FAMILY_KEY)
        if not isinstance(name, str) or name not in self.fields:
            raise ActionError(
                f"the action's family is {_quoted(name)}; there are {', '.join(self.fields)}"
            )
        spaces = {space.name: space for space in self.fields[name]}
        for key in record:
            if key not in spaces:
                raise ActionError(f"the family '{name}' has no field {_quoted(key)}")
        for field in spaces:
            if field not in record:
                raise ActionError(f"the action of the family '{name}' lacks the field '{field}'")
        try:
            parameters = self.family(name).config.model_validate(record, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join((name, *(str(part) for part in first["loc"])))
            raise ActionError(f"{place}: {first['msg']}") from error
        except Exception as error:
            # a validator may be anybody's code, and must not end the run
            raise ActionError(
                f"{name}: its configuration cannot be validated ({type(error).__name__}: {first_line(error)})"
            ) from error
        config = {field: _inside(record[field], spaces[field], name) for field in spaces}
        return Action(name, config), parameters

    def grammar(self) -> str:
        """The texts of the offered actions that are proposed, and no others, as a grammar in Lark's notation.

        A JSON schema would do, but llguidance writes its numbers in another way than JSON does (``0.000001`` for
        ``1e-06``, ``1`` for ``1.0``): a policy that is trained on actions' texts could then not write them.
        """
        branches = []
        for family in self.proposed:
            text = "{" + _json(FAMILY_KEY) + ":" + _json(family.name)
            parts = []
            for space in self.fields[family.name]:
                parts.append(_json(f"{text},{_json(space.name)}:"))
                # every text of a value once: an ambiguous grammar is a slow one
                values = dict.fromkeys(_json(value) for value in space.offered)
                parts.append("(" + " | ".join(_json(value) for value in values) + ")")
                text = ""
            branches.append(" ".join([*parts, _json(text + "}")]))
        return "start: " + "\n     | ".join(branches) + "\n"

    def describe(self, order: Sequence[str]) -> str:
        """The families and their fields for a reader with little attention, a line a family in the given order."""
        summaries = {family.name: " ".join(family.summary.split()) for family in self.families}
        lines = []
        for name in order:
            fields = ", ".join(f"{space.name} {_range(space)}" for space in self.fields[name])
            lines.append(f"{name} ({summaries[name]})" + (f": {fields}" if fields else ""))
        return "\n".join(lines)

    def draw(self, rng: np.random.Generator, turn: int | None = None) -> Action:
        """An action by chance: every family that is proposed is as likely as another, and so is every offered value.

        ``turn`` says which family it is, counted round and round; None: it is drawn, too.
        """
        families = self.proposed
        turn = int(rng.integers(len(families))) if turn is None else turn
        family = families[turn % len(families)]
        spaces = self.fields[family.name]
        config = {space.name: space.offered[rng.integers(len(space.offered))] for space in spaces}
        return Action(family.name, config)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _quoted(value: object) -> str:
    """What somebody else wrote, fit for a message: short, and nothing in it that cannot be printed."""
    if isinstance(value, list | dict):  # may be nested too deeply to be written
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value)
    return text if len(text) <= _QUOTED_WIDTH else f"{text[: _QUOTED_WIDTH - 1]}…"


def _unknown(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"there is none of that name, there are {', '.join(known) or 'none'}{hint}"


# --- narrowing ------------------------------------------------------------------------------------


def _narrow(space: FieldSpace, limits: Sequence[Value] | None, where: str) -> FieldSpace:
    """A field with its bounds narrowed; None leaves them."""
    if space.kind == "number":
        # 1 and 1.0 are the same number and have to be the same text, and so are -0.0 and 0.0
        space = replace(space, offered=tuple(float(value) + 0.0 for value in space.offered))
    if limits is None:
        return space
    if not limits:
        raise ActionSpaceError(f"{where} is empty; give it a list with values")
    if space.low is None or space.high is None:
        known = [(type(value), value) for value in space.offered]  # 1 is not true
        for value in limits:
            if (type(value), value) not in known:
                raise ActionSpaceError(
                    f"{where} allows {_quoted(value)}, which the family does not; it has {_range(space)}"
                )
        return replace(space, offered=tuple(value for value in space.offered if value in limits))
    if len(limits) != 2:
        raise ActionSpaceError(f"{where} has {len(limits)} values; give it [low, high]")
    for value in limits:
        if isinstance(value, bool | str):
            raise ActionSpaceError(f"{where} has the bound {_quoted(value)}, which is no number")
        if not space.low <= value <= space.high:  # NaN lies nowhere
            raise ActionSpaceError(
                f"{where} has the bound {_quoted(value)}, which is not inside of the family's own "
                f"[{space.low:g}, {space.high:g}]"
            )
        if space.kind == "integer" and value != int(value):
            raise ActionSpaceError(
                f"{where} has the bound {value}; the field is an integer, and so are its bounds"
            )
    kind = int if space.kind == "integer" else float
    low, high = (kind(value) + kind(0) for value in limits)
    if low > high:
        raise ActionSpaceError(f"{where} is [{low:g}, {high:g}]; the lower bound comes first")
    inside = tuple(value for value in space.offered if low <= float(value) <= high)
    return replace(space, low=low, high=high, offered=inside or tuple(dict.fromkeys((low, high))))


def _range(space: FieldSpace) -> str:
    if space.low is None or space.high is None:
        return "/".join(v if isinstance(v, str) else _json(v) for v in space.offered)
    if space.low == space.high:
        return f"{space.low:g}"
    return f"{space.low:g}{'-' if space.low >= 0 else ' to '}{space.high:g}"


# --- reading --------------------------------------------------------------------------------------


def _read(text: str) -> dict[str, Any]:
    if len(text) > LONGEST_TEXT:
        raise ActionError(
            f"the action is {len(text)} characters long; it has at most {LONGEST_TEXT}"
        )
    try:
        record = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ActionError(
            f"the action is not JSON with every key once ({_quoted(text)})"
        ) from error
    if not isinstance(record, dict):
        raise ActionError(f"the action is no JSON object ({_quoted(text)})")
    return record


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key twice")
    return record


def _inside(value: Any, space: FieldSpace, family: str) -> Value:
    """A value that its family accepts, checked to be inside of the narrowed bounds."""
    low, high = space.low, space.high
    # infinity and NaN lie between no bounds
    if not (value in space.offered if low is None or high is None else low <= value <= high):
        raise ActionError(
            f"{family}.{space.name} is {_quoted(value)}; it has to be {_range(space)}"
        )
    # adding zero makes -0.0 the zero that equal actions share
    return float(value) + 0.0 if space.kind == "number" else value
