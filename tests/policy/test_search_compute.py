"""What a search records of its compute is what the model was seen to compute."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest

from degaml_kedro.config.schema import RewardParameters, RolloutParameters, SearchParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.proposers import PolicyProposer, UniformProposer
from degaml_kedro.policy.search import Tag, executed_rows
from degaml_kedro.strategies.answering import predict
from tests.policy.toys import Killed, Script, Toy, adapt, fail, identity, keep, move, roll_out
from tests.strategies.helpers import examples, make_context, state, tiny_base

ASKED = examples(8)
REAL = ActionSpace.of({"lora": {}, "ls": {"times": [1, 2]}, "ttt": {"ttl_steps": [1, 3]}})
SETTINGS = SearchParameters(rounds=3, proposals=3, early_stop=False)


@dataclass
class Seen:
    """What went through the model; tokens of the policy's own passes apart."""

    forward: int = 0
    backward: int = 0
    policy: int = 0


@dataclass
class Counted:
    """A proposer whose texts are counted, kept or not."""

    inner: object
    tokens: int = 0
    texts: list[str] = field(default_factory=list)

    def propose(self, prompts, seed):
        made = self.inner.propose(prompts, seed)
        self.tokens += sum(proposal.tokens for proposal in made)
        self.texts += [proposal.text for proposal in made]
        return made


@dataclass
class Priced:
    """A proposer whose texts cost 3 tokens each; uniform draws are free."""

    inner: object

    def propose(self, prompts, seed):
        return [replace(made, tokens=3) for made in self.inner.propose(prompts, seed)]


@pytest.fixture
def seen(monkeypatch):
    found = Seen()
    original = BaseModel.hidden_states

    def watched(self, pack, elementary=False):
        hidden = original(self, pack, elementary)
        found.forward += pack.input_ids.shape[1]
        if hidden.requires_grad:

            def back(gradient):
                found.backward += pack.input_ids.shape[1]

            hidden.register_hook(back)
        return hidden

    def written(module, arguments, given):
        if given.get("use_cache"):
            columns = given["input_ids"].shape[1]
            found.policy += int(given["attention_mask"][:, -columns:].sum())

    monkeypatch.setattr(BaseModel, "hidden_states", watched)
    handle = tiny_base().model.base_model.register_forward_pre_hook(written, with_kwargs=True)
    yield found
    handle.remove()


def adapted(proposer, space, settings=SETTINGS, finished=(), seed=3):
    return adapt(
        make_context(), space, proposer, state(), ASKED, settings, RewardParameters(), seed,
        Tag("task", "degaml"), finished,
    )  # fmt: skip


def rolled(proposer, space, settings, finished=()):
    return roll_out(
        make_context(), space, proposer, state(), ASKED, settings, RewardParameters(), 3,
        Tag("task", "degaml", 1), finished,
    )  # fmt: skip


def total(rows, name):
    return sum(row[name] for row in rows)


def costs(rows):
    return [(row["tokens"], row["forward_tokens"], row["backward_tokens"]) for row in rows]


def one_scoring():
    return sum(p.tokens for p in predict(make_context(), state(), ASKED))


def scripted(toy, *numbers):
    return Script([toy.text(number) for number in numbers])


@pytest.mark.parametrize("method", ["degaml", "random_policy"])
def test_a_search_s_tokens_are_those_the_model_was_seen_to_compute(seen, method):
    inner = UniformProposer(REAL)
    if method == "degaml":
        inner = PolicyProposer(tiny_base(), None, REAL)
    proposer = Counted(inner)
    searches = [list(adapted(proposer, REAL, seed=seed)) for seed in range(4)]
    rows = [row for search in searches for row in search]
    # families that train, and a round after one that executed something
    assert {row["family"] for row in rows} == {"lora", "ls", "ttt"}
    assert any(executed_rows(search)[:1] and executed_rows(search)[0]["round"] < 3
               for search in searches)  # fmt: skip
    assert total(rows, "forward_tokens") == seen.forward + proposer.tokens
    assert total(rows, "backward_tokens") == seen.backward > 0
    assert (proposer.tokens > 0) == (method == "degaml")
    # the last tokens of a text are counted and need no pass of their own
    assert seen.policy <= proposer.tokens <= 1.2 * seen.policy
    # more than the trials alone, which was all there was once
    assert seen.forward + seen.backward + proposer.tokens > total(rows, "tokens")


def test_rollouts_tokens_are_those_the_model_was_seen_to_compute(seen):
    proposer = Counted(PolicyProposer(tiny_base(), None, REAL, exploration=0.4))
    rows = list(rolled(proposer, REAL, RolloutParameters(count=7, at_once=3, examples=4)))
    assert {row["source"] for row in rows} == {"policy", "uniform"}
    assert total(rows, "forward_tokens") == seen.forward + proposer.tokens
    assert total(rows, "backward_tokens") == seen.backward
    # what is between trials is the first scoring, and all of it is the first row's
    extra = [row["forward_tokens"] + row["backward_tokens"] - row["tokens"] for row in rows]
    assert extra == [one_scoring(), *[0] * 6]
    assert [row["overhead_seconds"] > 0 for row in rows] == [True, False, False] * 2 + [True]


def test_a_round_whose_texts_are_alike_pays_for_all_of_them(seen):
    toy = Toy(identity)
    # one of three is kept, then one of two, then the one that is missing
    script = Counted(scripted(toy, 1, 1, 1, 2, 1, 3))
    rows = list(adapted(script, toy.space, SETTINGS.model_copy(update={"rounds": 1})))
    assert [row["action"] for row in rows] == [toy.text(1), toy.text(2), toy.text(3)]
    assert len(script.texts) == 6
    trial = one_scoring()
    own = trial + 3
    assert costs(rows) == [(own, own + trial + 3 * 3, 0), (own, own, 0), (own, own, 0)]
    assert total(rows, "forward_tokens") == seen.forward - trial + script.tokens


def test_rounds_that_keep_nothing_are_the_last_row_s_cost():
    toy = Toy(identity)
    script = Counted(scripted(toy, 1))
    settings = SearchParameters(rounds=3, proposals=2, early_stop=False)
    (row,) = adapted(script, toy.space, settings)
    # round 1: one of 2 + 1 is kept; rounds 2 and 3 write 2 for nothing and are not asked again
    assert len(script.texts) == 3 + 2 + 2
    assert row["tokens"] == one_scoring() + 3
    assert row["forward_tokens"] == 2 * one_scoring() + script.tokens


def test_what_was_executed_between_rounds_is_counted_once(seen):
    toy = Toy(move)
    script = Counted(scripted(toy, *range(12)))
    settings = SearchParameters(rounds=2, proposals=6)
    rows = list(adapted(script, toy.space, settings))
    assert [row["round"] for row in rows] == [1] * 6 + [2] * 6
    trial = one_scoring()
    extra = [row["forward_tokens"] - row["tokens"] for row in rows]
    # the first scoring; what the first round executed, scored
    assert extra == [trial, *[0] * 5, trial, *[0] * 5]
    assert [row["overhead_seconds"] > 0 for row in rows] == [True, *[False] * 5] * 2


def test_an_execution_that_fails_is_the_cost_of_the_row_before_it(caplog):
    def costly(context, one, questions, *rest):
        predict(context, one, ASKED)
        return fail() if len(questions.questions) > 4 else move(context, one, questions, *rest)

    toy = Toy(costly)
    settings = SearchParameters(rounds=2, proposals=12, examples=4)
    rows = list(adapted(UniformProposer(toy.space), toy.space, settings))
    assert len(executed_rows(rows)) == 1
    assert "carrying it out on all 8 support examples failed" in caplog.text
    assert rows[-1]["forward_tokens"] - rows[-1]["tokens"] == one_scoring()
    assert rows[-1]["overhead_seconds"] > 0
    assert {row["round"] for row in rows} == {1}


def test_seconds_stay_the_trial_s_own():
    dear = RewardParameters(kind="utility", price_per_second=1.0)
    toy = Toy(identity)
    rows = list(
        adapt(make_context(), toy.space, UniformProposer(toy.space), state(), ASKED,
              SearchParameters(rounds=1, proposals=2), dear, 1, Tag("task", "degaml"))
    )  # fmt: skip
    assert [row["reward"] for row in rows] == [-row["seconds"] for row in rows]
    assert rows[0]["overhead_seconds"] > 0


@pytest.mark.parametrize("done", range(10))
def test_a_resumed_search_counts_as_one_that_never_stopped(done):
    # of three offered strategies two rounds of four proposals find nothing else; and rounds that execute
    still, moving = Toy(identity), Toy(move)
    three = replace(still.space.fields["toy"][0], offered=(0, 1, 2))
    few = Priced(UniformProposer(replace(still.space, fields={"toy": (three,)})))
    for proposer, toy in ((few, still), (Priced(UniformProposer(moving.space)), moving)):
        every = list(adapted(proposer, toy.space))
        stored = json.loads(json.dumps(every[:done]))
        assert costs(adapted(proposer, toy.space, finished=stored)) == costs(every[done:])


def test_finished_rows_that_nobody_counted_are_gone_on_from():
    toy = Toy(move)
    every = list(adapted(UniformProposer(toy.space), toy.space))
    added = ("forward_tokens", "backward_tokens", "overhead_seconds")
    old = [{**row, **dict.fromkeys(added)} for row in every[:4]]
    rest = list(adapted(UniformProposer(toy.space), toy.space, finished=old))
    assert costs(rest) == costs(every[4:])


def test_a_row_waits_at_the_end_of_a_round_and_nowhere_else():
    settings = SearchParameters(rounds=2, proposals=6)
    toy = Toy(move)
    ran = [len(toy.calls) for _ in adapted(UniformProposer(toy.space), toy.space, settings)]
    # the sixth comes once the first round's best, the seventh call, has been carried out
    assert ran == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13]

    def killed(*arguments):
        if len(toy.calls) == 7:
            raise Killed
        return move(*arguments)

    every = list(adapted(UniformProposer(toy.space), toy.space, settings))
    toy = Toy(killed)
    rows = []
    with pytest.raises(Killed):
        keep(adapted(UniformProposer(toy.space), toy.space, settings), rows)
    assert costs(rows) == costs(every[:5])
