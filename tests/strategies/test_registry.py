from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, Field, model_validator

from degaml_kedro.config.schema import Parameters
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.strategies import registry
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.observations import Labeled, Nothing, Prompts
from degaml_kedro.strategies.registry import (
    FamilyError,
    FieldSpace,
    Offered,
    families,
    family,
    find_family,
)
from degaml_kedro.strategies.state import AdaptedState
from degaml_kedro.tasks.example import Question
from tests.strategies.helpers import examples


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What is registered here is forgotten."""
    families()
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))


class Nudge(Parameters):
    amount: Annotated[float, Field(ge=-1, le=1), Offered(-0.5, 0.5)]


def nudge(
    context: Context, state: AdaptedState, seen: Nothing, config: Nudge, seed: int
) -> AdaptedState:
    return state


def config_of(annotation: Any) -> type[Parameters]:
    return type("Own", (Parameters,), {"__annotations__": {"one": annotation}})


# --- what is there --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sees", "fields"),
    [
        (
            "ttt",
            Prompts,
            {
                "ttl_steps": ("integer", 1, 50),
                "learning_rate": ("number", 1e-6, 1e-3),
                "batch_size": ("integer", 1, 32),
                "shuffle_data": ("boolean", None, None),
            },
        ),
        ("lora", Nothing, {"lambda": ("number", 0, 1)}),
        (
            "ls",
            Prompts,
            {
                "times": ("integer", 1, 10),
                "learning_rate": ("number", 1e-3, 1),
                "scope": ("choice", None, None),
            },
        ),
        (
            "tts",
            Prompts,
            {
                "num_prompt_batches": ("integer", 1, 20),
                "method": ("choice", None, None),
                "distance": ("choice", None, None),
            },
        ),
        (
            "sft",
            Labeled,
            {
                "steps": ("integer", 1, 100),
                "learning_rate": ("number", 1e-6, 1e-2),
                "batch_size": ("integer", 1, 32),
            },
        ),
        (
            "context",
            Labeled,
            {
                "shots": ("integer", 1, 40),
                "order": ("choice", None, None),
                "encoder": ("number", 0, 4),
            },
        ),
    ],
)
def test_the_families_are_those_of_the_design(name, sees, fields):
    found = find_family(name)
    assert found.sees is sees
    assert {f.name: (f.kind, f.low, f.high) for f in found.fields} == fields
    for field in found.fields:
        assert field.offered
        if field.low is not None:
            assert all(field.low <= value <= field.high for value in field.offered)
            assert list(field.offered) == sorted(set(field.offered))
    assert [f.name for f in found.fields if f.optional] == {
        "ls": ["scope"],
        "tts": ["distance"],
        "context": ["encoder"],
    }.get(name, [])


def test_only_the_families_that_use_answers_see_them():
    seeing = {name for name, one in families().items() if one.sees is Labeled}
    assert seeing == {"sft", "context", "written"}


def test_no_such_family():
    with pytest.raises(
        FamilyError, match="no strategy family 'tttt'; there are .*ttt.* entry point"
    ):
        find_family("tttt")


# --- one of one's own -----------------------------------------------------------------------------


def test_a_family_of_one_s_own():
    assert family("nudge", "nudge it", Nudge)(nudge) is nudge
    found = find_family("nudge")
    assert (found.name, found.summary, found.config, found.sees) == (
        "nudge",
        "nudge it",
        Nudge,
        Nothing,
    )
    assert found.fields == (FieldSpace("amount", "number", (-0.5, 0.5), -1, 1),)
    assert found.refine is nudge


@pytest.mark.parametrize("seen", [Nothing, Prompts, Labeled])
def test_what_it_may_see_is_what_its_third_parameter_is_annotated_with(seen):
    def refine(context, state, seen, config, seed):
        return state

    refine.__annotations__["seen"] = seen
    family("own", "own", Nudge)(refine)
    assert find_family("own").sees is seen


@pytest.mark.parametrize(
    "annotation",
    [
        None,
        object,
        Any,
        Question,
        tuple,
        Prompts | Labeled,
        Prompts | None,
        type("Other", (Prompts,), {}),
        "Unknown",
    ],
)
def test_a_family_that_does_not_say_what_it_may_see(annotation):
    def refine(context, state, seen, config, seed):
        return state

    if annotation is not None:
        refine.__annotations__["seen"] = annotation
    with pytest.raises(
        FamilyError, match=r"'own' .*what it may see.*Nothing, Prompts, Labeled or Candidates"
    ):
        family("own", "own", Nudge)(refine)
    assert "own" not in families()


def test_the_third_parameter_counts_and_not_another():
    def refine(context, state, examples, seen: Prompts, seed):
        return state

    with pytest.raises(FamilyError, match="annotate its third parameter 'examples'"):
        family("own", "own", Nudge)(refine)


def test_a_family_with_another_number_of_parameters():
    def few(context, state, seen: Prompts, config):
        return state

    def many(context, state, seen: Prompts, config, seed, examples):
        return state

    for refine in (few, many):
        with pytest.raises(
            FamilyError, match=r"it has to take \(context, state, seen, config, seed\)"
        ):
            family("own", "own", Nudge)(refine)


@pytest.mark.parametrize("name", ["", "Own", "own family", "1own", "own-family", "_own", "öwn"])
def test_what_is_no_name(name):
    with pytest.raises(FamilyError, match="is no name for a family"):
        family(name, "own", Nudge)(nudge)


def test_a_name_that_another_module_took():
    with pytest.raises(
        FamilyError, match=r"'ttt' is registered by degaml_kedro.strategies.ttt and by tests"
    ):
        family("ttt", "own", Nudge)(nudge)
    assert find_family("ttt").refine is not nudge


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (int, "has no bounds"),
        (float, "has no bounds"),
        (Annotated[int, Field(ge=1)], "has no bounds"),
        (Annotated[float, Field(le=1), Offered(0.5)], "has no bounds"),
        # what is open at an end is no bound that an action can be told
        (Annotated[int, Field(gt=0, lt=10)], "has no bounds"),
        (Annotated[float, Field(ge=0, le=1)], "too many values"),
        (Annotated[int, Field(ge=0, le=1000)], "too many values"),
        (
            Annotated[float, Field(ge=0, le=1), Offered(0.5, 2.0)],
            r"offers 2.0, .*less than or equal to 1",
        ),
        (Annotated[float, Field(ge=0, le=1), Offered(float("nan"))], r"offers nan, "),
        (Annotated[float, Field(ge=0, le=1), Offered()], "offers nothing"),
        (Annotated[Literal["a", "b"], Offered("c")], "offers 'c', "),
        (Annotated[bool, Offered(2)], "offers 2, "),
        (Annotated[bool, Offered(1)], "offers 1, which .* not accept .*valid boolean"),
        (Annotated[bool, Offered()], "offers nothing"),
        (Annotated[Literal["1", "2"], Offered(1)], "offers 1, "),
        (Annotated[Literal["a", "b"], Offered(["a"])], r"offers \['a'\], "),
        (
            Annotated[int, Field(ge=0, le=9), Offered(1.0, 2)],
            "offers 1.0, which .* not accept .*valid integer",
        ),
        (
            Annotated[int, Field(ge=0, le=9), Offered(True)],
            "offers True, which .* not accept .*valid integer",
        ),
        (
            Annotated[int, Field(ge=0, le=9), Offered(10**400)],
            "offers 1000.*less than or equal to 9",
        ),
        (
            Annotated[float, Field(ge=0, le=1), Offered("1")],
            "offers '1', which .* not accept .*valid number",
        ),
        (Annotated[float, Field(ge=0, le=1), Offered(True)], "offers True, which .* valid number"),
        (
            Annotated[int, Field(ge=0, le=9, multiple_of=2), Offered(2, 3)],
            r"offers 3, which its configuration does not accept \(one: Input should be a multiple of 2\)",
        ),
        (
            Annotated[float, Field(ge=0, le=1), Offered(0.5), AfterValidator(lambda _: 1 / 0)],
            r"offers 0.5, which .* not accept \(ZeroDivisionError: division by zero\)",
        ),
        (str, "use int, float, bool or a Literal"),
        (int | None, "use int, float, bool or a Literal"),
        (tuple[int, ...], "use int, float, bool or a Literal"),
    ],
)
def test_fields_that_no_action_can_hold(annotation, message):
    with pytest.raises(FamilyError, match=f"the field 'one' of the family 'own' .*{message}"):
        family("own", "own", config_of(annotation))(nudge)
    assert "own" not in families()


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Annotated[int, Field(ge=2, le=4)], FieldSpace("one", "integer", (2, 3, 4), 2, 4)),
        (
            Annotated[int, Field(ge=1, le=999), Offered(1, 7)],
            FieldSpace("one", "integer", (1, 7), 1, 999),
        ),
        (bool, FieldSpace("one", "boolean", (False, True))),
        (Literal["a", "b"], FieldSpace("one", "choice", ("a", "b"))),
        (Annotated[Literal["a", "b"], Offered("b")], FieldSpace("one", "choice", ("b",))),
        (
            Annotated[float, Field(ge=0, le=1, alias="lambda"), Offered(1.0)],
            FieldSpace("lambda", "number", (1.0,), 0, 1),
        ),
        (
            Annotated[float, Field(ge=0, le=1), Offered(0, 0.5)],
            FieldSpace("one", "number", (0, 0.5), 0, 1),
        ),
    ],
)
def test_fields_that_an_action_can_hold(annotation, expected):
    family("own", "own", config_of(annotation))(nudge)
    assert find_family("own").fields == (expected,)


def test_a_field_with_a_default_is_optional():
    class WithDefault(Parameters):
        one: Literal["a", "b"] = "a"

    family("own", "own", WithDefault)(nudge)
    assert find_family("own").fields[0].optional


def test_families_of_installed_packages_are_found(monkeypatch):
    class Point:
        def load(self):
            family("nudge", "nudge it", Nudge)(nudge)

    asked = []

    def entry_points(*, group):
        asked.append(group)
        return [Point()]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert find_family("nudge").refine is nudge
    assert set(asked) == {"degaml_kedro.strategies"}


def test_an_offered_value_has_to_go_with_some_others():
    class Pair(Parameters):
        first: Annotated[int, Field(ge=0, le=9), Offered(1, 2)]
        second: Annotated[int, Field(ge=0, le=9), Offered(2, 3, 4)]
        third: Literal["a", "b"] = "a"

        @model_validator(mode="after")
        def _ascends(self) -> Pair:
            if self.first >= self.second or self.second == 4:
                raise ValueError("they do not ascend")
            return self

    with pytest.raises(
        FamilyError, match=r"'second' .* offers 4, which .*Value error, they do not ascend"
    ):
        family("own", "own", Pair)(nudge)
    assert "own" not in families()

    class Other(Pair):
        second: Annotated[int, Field(ge=0, le=9), Offered(2, 3)]

    # 2 and 2 do not go together, and either goes with another
    family("own", "own", Other)(nudge)
    assert "own" in families()


class Point:
    """An entry point of an installed package."""

    def __init__(self, load, package="degaml-broken"):
        self.name, self.value = "own", "own_package"
        self.dist = package and type("Distribution", (), {"name": package})()
        self.load = load


def install(monkeypatch, *points):
    monkeypatch.setattr(registry, "entry_points", lambda *, group: list(points))


def missing():
    raise ImportError("No module named 'numpie'\nand more")


def half():
    family("nudge", "nudge it", Nudge)(nudge)
    family("wrong name", "wrong", Nudge)(nudge)


@pytest.mark.parametrize(
    ("load", "package", "message"),
    [
        (
            missing,
            "degaml-broken",
            r"the package degaml-broken .*ImportError: No module named 'num",
        ),
        (missing, None, "of an installed package cannot be loaded"),
        (half, "degaml-broken", "cannot be loaded: 'wrong name' is no name for a family"),
    ],
)
def test_a_package_that_cannot_be_loaded_is_named(load, package, message, monkeypatch):
    install(monkeypatch, Point(load, package))
    with pytest.raises(FamilyError, match=message) as caught:
        find_family("nudge")
    assert "entry point 'own' (degaml_kedro.strategies)" in str(caught.value)
    assert "Uninstall or fix the package" in str(caught.value)
    # and again: what it registered before it failed does not pass for a family
    with pytest.raises(FamilyError, match=message):
        find_family("nudge")


def test_a_broken_package_stops_nobody_who_does_not_need_it(monkeypatch):
    install(monkeypatch, Point(missing))
    assert find_family("ttt").name == "ttt"
    assert {"ttt", "lora"} <= families(["ttt", "lora"]).keys()
    assert [one.name for one in ActionSpace.of({"ls": {}}).families] == ["ls"]
    for wanted in (["ttt", "nudge"], None):
        with pytest.raises(FamilyError, match="degaml-broken"):
            families(wanted)


# --- what may be seen -----------------------------------------------------------------------------


def test_a_question_has_no_answer():
    for example, question in zip(examples(3), Prompts.of(examples(3)).questions, strict=True):
        assert type(question) is Question
        assert (question.prompt, question.options) == (example.prompt, example.options)
        for name in ("gold", "response", "__dict__", "__wrapped__"):
            assert not hasattr(question, name)
        # nothing in it leads back to the example
        fields = [getattr(question, name) for name in Question.__slots__]
        assert example.response not in fields
        assert all(isinstance(field, str | tuple) for field in fields)


def test_questions_of_the_same_prompt_are_the_same_whatever_the_answer():
    (one, *_) = examples(1)
    other = type(one)(one.prompt, "[C]", one.system, one.options, one.labels, 2)
    assert other.gold != one.gold
    assert Prompts.of([one]) == Prompts.of([other])


def test_other_packages_may_import_the_old_names():
    from degaml_kedro.strategies import seen, workbench

    assert (seen.Nothing, seen.Labeled, workbench.Workbench) == (Nothing, Labeled, Context)
