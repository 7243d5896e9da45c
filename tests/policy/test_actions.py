"""Actions as text: what is drawn reads back, and what somebody else wrote is an action or an ActionError."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from pydantic import BaseModel, model_validator

from degaml_kedro.policy.actions import (
    LONGEST_TEXT,
    Action,
    ActionError,
    ActionSpace,
    ActionSpaceError,
)
from degaml_kedro.policy.proposers import _allowed, _grammar_tokenizer
from degaml_kedro.strategies.registry import FieldSpace, StrategyFamily
from tests.llm.helpers import tiny_base
from tests.policy.spaces import KNOWN, SPACE, Mix, Rest, Vote

TRAIN = {"family": "train", "steps": 5, "learning_rate": 1e-4, "shuffle": True}


def read(record: object, space: ActionSpace = SPACE) -> Action:
    return space.parse(json.dumps(record))[0]


def offered(space: ActionSpace) -> list[str]:
    """Every action of the offered values, written out by hand."""
    texts = []
    for family in space.families:
        fields = space.fields[family.name]
        for values in itertools.product(*(field.offered for field in fields)):
            record = {"family": family.name} | {
                f.name: v for f, v in zip(fields, values, strict=True)
            }
            texts.append(json.dumps(record, ensure_ascii=False, separators=(",", ":")))
    return texts


def matcher(space: ActionSpace) -> LLMatcher:
    grammar = LLMatcher.grammar_from_lark(space.grammar())
    return LLMatcher(_grammar_tokenizer(tiny_base()), grammar)


# --- texts ----------------------------------------------------------------------------------------


def test_the_text_is_compact_json_with_the_family_first_in_the_fields_order():
    action, _ = SPACE.parse(
        '{"shuffle": true, "learning_rate": 0.000001, "steps": 5, "family": "train"}'
    )
    assert action.text == '{"family":"train","steps":5,"learning_rate":1e-06,"shuffle":true}'


@given(seed=st.integers(0, 2**32))
def test_what_is_drawn_reads_back_as_itself(seed):
    action = SPACE.draw(np.random.default_rng(seed))
    again, config = SPACE.parse(action.text)
    assert again == action
    assert again.text == action.text
    assert isinstance(config, BaseModel)
    assert config.model_dump(by_alias=True, exclude_unset=True) == dict(action.config)


def test_draws_are_uniform_over_families_and_over_their_offered_values():
    rng = np.random.default_rng(0)
    texts = [SPACE.draw(rng) for _ in range(8000)]
    for family in KNOWN:
        assert sum(a.family == family for a in texts) == pytest.approx(2000, abs=200)
    amounts = [a.config["lambda"] for a in texts if a.family == "mix"]
    for value in (-1.0, 0.0, 0.5, 1.0):
        assert amounts.count(value) == pytest.approx(len(amounts) / 4, rel=0.2)


# --- the grammar ----------------------------------------------------------------------------------


def test_the_grammar_writes_every_offered_action_and_all_of_them_read_back():
    start = matcher(SPACE)
    tokenizer = tiny_base().tokenizer
    texts = offered(SPACE)
    assert len(texts) == 4 * 3 * 2 + 4 + 3 * 3 + 1
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        walker = start.deep_copy()
        assert walker.try_consume_tokens(ids) == len(ids), text
        assert walker.is_stopped()
        assert SPACE.parse(text)[0].text == text


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32))
def test_whatever_the_grammar_writes_is_an_offered_action(seed):
    base, rng = tiny_base(), np.random.default_rng(seed)
    walker, written = matcher(SPACE), []
    while not walker.is_stopped():
        token = int(rng.choice(_allowed(walker, base.head.shape[0])))
        assert walker.consume_token(token)
        written.append(token)
    assert base.tokenizer.decode(written) in offered(SPACE)


# --- reading --------------------------------------------------------------------------------------


def test_any_value_inside_the_bounds_is_valid_and_the_configuration_comes_with_it():
    action, config = SPACE.parse('{"family": "mix", "lambda": 0.123}')
    assert action.config == {"lambda": 0.123}
    assert config == Mix(**{"lambda": 0.123})
    integer, _ = SPACE.parse('{"family": "mix", "lambda": 1}')
    assert integer.text == '{"family":"mix","lambda":1.0}'
    assert SPACE.parse('{"family": "mix", "lambda": -0.0}')[0].text.endswith(":0.0}")


def test_a_default_is_taken_where_actions_do_not_speak_of_it():
    action, config = SPACE.parse('{"family": "vote", "method": "más", "members": 7}')
    assert "distance" not in action.config
    assert isinstance(config, Vote)
    assert config.distance == "euclidean"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TypeError("3 < None\nand more"), r"odd: its configuration .* \(TypeError: 3 < None\)$"),
        (KeyError(), r"\(KeyError: KeyError\)"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (ValueError("no sum"), "odd: Value error, no sum"),
    ],
    ids=str,
)
def test_whatever_a_family_s_validator_raises_is_an_action_error(error, message):
    class Odd(Rest):
        @model_validator(mode="after")
        def _refuse(self):
            raise error

    odd = dataclasses.replace(KNOWN["rest"], name="odd", config=Odd)
    with pytest.raises(ActionError, match=message):
        ActionSpace.of({"odd": {}}, {"odd": odd}).parse('{"family":"odd"}')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "tarin"}, "'tarin'; there are train, mix, vote, rest"),
        ({"family": 3}, "the action's family is 3"),
        ({"family": ["train"]}, "a list"),
        ({"steps": True}, r"train\.steps: Input should be a valid integer"),
        ({"steps": 5.0}, r"train\.steps: Input should be a valid integer"),
        ({"steps": "5"}, "a valid integer"),
        ({"steps": None}, "a valid integer"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"steps": 51}, "less than or equal to 50"),
        ({"steps": 10**400}, "less than or equal to 50"),
        ({"learning_rate": -1}, "train.learning_rate: .*greater than or equal to"),
        ({"learning_rate": False}, "a valid number"),
        ({"learning_rate": 10**400}, "train.learning_rate: "),
        ({"learning_rate": [[1]]}, "a valid number"),
        ({"learning_rate": {}}, "a valid number"),
        ({"shuffle": 1}, "a valid boolean"),
        ({"shuffle": "true"}, "a valid boolean"),
        ({"extra": 1}, "no field 'extra'"),
        ({"\ud800": 1}, "no field"),
    ],
)
def test_a_wrong_action_is_refused_by_its_field(change, message):
    with pytest.raises(ActionError, match=message) as caught:
        read(TRAIN | change)
    str(caught.value).encode()  # a lone surrogate could not be printed
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "no JSON object"),
        ("null", "no JSON object"),
        ("{}", "names no 'family'"),
        ('{"family":"rest"} and then', "not JSON"),
        ('{"family":"mix","lambda":NaN}', "mix.lambda"),
        ('{"family":"mix","lambda":-Infinity}', "greater than or equal to -1"),
        ('{"family":"mix","lambda":1e400}', "less than or equal to 1"),
        ('{"family":"mix"}', "lacks the field 'lambda'"),
        ('{"family":"mix","lambda":0,"lambda":1}', "with every key once"),
        ('{"family":"rest","family":"rest"}', "with every key once"),
        ('{"family":"vote","method":"mean","members":7}', "vote.*seven have no mean"),
        ('{"family":"vote","method":"mean","members":2,"distance":"cosine"}', "no field"),
        ('{"family":"mix","lambda":%s}' % ("9" * 5000), "5,?0.. characters|characters long"),
        ('{"family":"mix","lambda":%s}' % ("9" * 1900), "mix.lambda: "),
        ("[" * LONGEST_TEXT, "not JSON"),
        ('{"family":' * 180, "not JSON"),
        ('{"family":"rest"}' + " " * 100_000, "characters long"),
    ],
)
def test_what_is_no_action_is_refused(text, message):
    with pytest.raises(ActionError, match=message):
        SPACE.parse(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
RECORDS = st.builds(
    lambda name, config, more: {"family": name} | config | more,
    st.sampled_from([*KNOWN, "", "ttt"]),
    st.fixed_dictionaries(
        {},
        optional={
            name: st.sampled_from([0.5, 1, True, "mean", -1, 1e400]) | JSON
            for name in ("steps", "learning_rate", "shuffle", "lambda", "method", "members")
        },
    ),
    st.dictionaries(st.text(max_size=4), JSON, max_size=1),
)


@settings(max_examples=300)
@given(text=st.text(max_size=300) | JSON.map(json.dumps) | RECORDS.map(json.dumps))
def test_any_text_is_an_action_of_the_space_or_an_action_error(text):
    try:
        action, _ = SPACE.parse(text)
    except ActionError:
        return
    assert SPACE.parse(action.text)[0] == action
    for field in SPACE.fields[action.family]:
        value = action.config[field.name]
        if field.low is not None and field.high is not None:
            assert field.low <= float(value) <= field.high


@given(nested=st.integers(1, 199))
def test_deep_nesting_is_refused_at_every_depth(nested):
    with pytest.raises(ActionError):
        SPACE.parse('{"family":"mix","lambda":' + "[" * nested + "]" * nested + "}")
    with pytest.raises(ActionError):
        SPACE.parse('{"family":' + "[" * (5 * nested) + "]" * (5 * nested) + "}")


# --- narrowing ------------------------------------------------------------------------------------


def test_families_come_in_the_order_they_are_named_with_what_was_narrowed():
    space = ActionSpace.of(
        {
            "vote": {"method": ["más"], "distance": ["cosine"]},
            "train": {"steps": [2, 12], "learning_rate": [2e-5, 5e-5], "shuffle": [True]},
        },
        KNOWN,
    )
    assert [family.name for family in space.families] == ["vote", "train"]
    steps, rate, shuffle = space.fields["train"]
    assert (steps.low, steps.high, steps.offered) == (2, 12, (5, 10))
    assert rate.offered == (2e-5, 5e-5)  # none of the offered ones is inside: the ends are
    assert shuffle.offered == (True,)
    method, members, distance = space.fields["vote"]
    assert method.offered == ("más",)
    assert members == KNOWN["vote"].fields[1]
    assert distance.offered == ("cosine",)
    with pytest.raises(ActionError, match="steps is 1; it has to be 2-12"):
        read(TRAIN | {"steps": 1}, space)
    with pytest.raises(ActionError, match="shuffle is False; it has to be true"):
        read(TRAIN | {"learning_rate": 3e-5, "shuffle": False}, space)
    vote = {"family": "vote", "method": "más", "members": 2}
    with pytest.raises(ActionError, match="lacks the field 'distance'"):
        read(vote, space)
    assert space.parse(json.dumps(vote | {"distance": "cosine"}))[1].distance == "cosine"  # type: ignore[attr-defined]
    for text in offered(space):
        assert space.parse(text)[0].text == text


def test_a_fixed_field_keeps_its_one_value():
    space = ActionSpace.of({"train": {"steps": [7, 7]}, "mix": {"lambda": [0.25, 0.25]}}, KNOWN)
    assert space.fields["train"][0].offered == (7,)
    assert space.fields["mix"][0].offered == (0.25,)
    assert "steps 7," in space.describe(["train"])


@pytest.mark.parametrize(
    ("narrowed", "message"),
    [
        ({"trian": {}}, r"policy\.families\.trian: .*did you mean 'train'\?"),
        ({"train": {"step": [1, 2]}}, r"policy\.families\.train\.step: .*did you mean 'steps'\?"),
        ({"train": {"steps": []}}, r"policy\.families\.train\.steps is empty; give it a list"),
        ({"train": {"steps": [1, 2, 3]}}, r"train\.steps has 3 values; give it \[low, high\]"),
        ({"train": {"steps": [5, 2]}}, "lower bound comes first"),
        ({"train": {"steps": [0, 5]}}, r"bound 0, which is not inside .* \[1, 50\]"),
        ({"train": {"steps": [1, 10**400]}}, "not inside"),
        ({"train": {"steps": [1, float("nan")]}}, "nan, which is not inside"),
        ({"train": {"steps": [1.5, 5]}}, "the field is an integer"),
        ({"train": {"steps": [True, 5]}}, "True, which is no number"),
        ({"train": {"learning_rate": ["1e-5", 1e-4]}}, "'1e-5', which is no number"),
        (
            {"train": {"learning_rate": [1e-5, 1]}},
            r"policy\.families\.train\.learning_rate .*1e-06",
        ),
        ({"train": {"shuffle": [1]}}, "allows 1, which the family does not; it has false/true"),
        ({"vote": {"method": ["median"]}}, r"policy\.families\.vote\.method allows 'median'"),
    ],
)
def test_a_narrowing_that_cannot_be_meant_is_named(narrowed, message):
    with pytest.raises(ActionSpaceError, match=message):
        ActionSpace.of(narrowed, KNOWN)


def test_a_field_that_is_called_family_is_refused():
    fields = (FieldSpace("family", "choice", ("a",)),)
    known: dict[str, StrategyFamily] = {
        "odd": dataclasses.replace(KNOWN["rest"], name="odd", fields=fields)
    }
    with pytest.raises(ActionSpaceError, match=r"policy\.families\.odd: .*alias"):
        ActionSpace.of({"odd": {}}, known)


def test_the_description_has_a_line_a_family_in_the_order_asked_for():
    assert SPACE.describe(["mix", "train", "rest", "vote"]).split("\n") == [
        "mix (mix the halves): lambda -1 to 1",
        "train (train on the prompts): steps 1-50, learning_rate 1e-06-0.001, shuffle false/true",
        "rest (change nothing)",
        'vote (ask several): method mean/más/q"x, members 1-8',
    ]
