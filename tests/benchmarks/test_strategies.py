from __future__ import annotations

import dataclasses

import pytest
import torch
from benchmarks.material import Settings
from benchmarks.strategies import context_for, members_of, profile, task_examples, times_as_long
from benchmarks.tts_batch import Asked, peft_model, peft_rows, peft_trees, same_choice

from benchmarks import candidates, latent_steps, one_candidate, tts_batch
from degaml_kedro.llm.base_model import load_base_model
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.indicators import measure_indicators
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.state import AdaptedState, save_state
from degaml_kedro.tasks.example import Question

QUICK = Settings(quick=True)
EXACT = QUICK.model.model_copy(update={"dtype": "float32", "device": "cpu"})


def _context():
    return context_for(load_base_model(EXACT))


def _questions(count):
    return [Question.of(example) for example in task_examples(count)]


def test_candidates_are_twenty_of_all_families_and_inside_the_bounds():
    space = ActionSpace.of(one_candidate.SPACE)
    actions = [action for block in candidates.BLOCKS for action in block]
    assert len({space.parse(action.text)[0].text for action in actions}) == 20
    assert all({a.family for a in block} == set(space.fields) for block in candidates.BLOCKS)
    # the processes stand for all: each family is tried by one of them, and as often as the others in process
    assert {block[-1].family for block in candidates.BLOCKS} == set(space.fields)
    assert {sum(a.family == name for a in actions) for name in space.fields} == {5}


def test_candidates_run_to_their_end():
    result = candidates.run(QUICK)
    assert [row.met for row in result.rows] == [None, None]
    assert len(result.details["trials"]) == 20
    assert all(trial["tokens"] > 0 for trial in result.details["trials"])
    each = sum(result.details["process_seconds"]) / 4
    assert result.details["all_seconds_by_processes"] == pytest.approx(20 * each)


def test_a_candidate_that_fails_is_not_a_fast_one():
    context = _context()
    state = AdaptedState((members_of(context, 1)[0],))
    examples = task_examples(2)
    before = measure_indicators(predict(context, state, examples))
    with pytest.raises(AssertionError, match="did not run"):
        one_candidate.attempt(context, state, before, examples, '{"family":"ls"}', 1)


@pytest.mark.slow
def test_a_process_does_the_same_as_is_done_here(tmp_path):
    context, own = _context(), profile()
    state = AdaptedState((members_of(context, 1)[0],))
    examples = task_examples(3)
    before = measure_indicators(predict(context, state, examples))
    save_state(state, tmp_path / "state")
    action = candidates.BLOCKS[3][-1].text  # it draws fresh adapters
    job = one_candidate.Job(
        model=EXACT.model_dump(mode="json"),
        prompt=own.prompt.model_dump(mode="json"),
        scoring=own.scoring.model_dump(mode="json"),
        lora=own.lora.model_dump(mode="json"),
        state=str(tmp_path / "state"),
        before=dataclasses.asdict(before),
        examples=[dataclasses.asdict(example) for example in examples],
        action=action,
        seed=7,
    )
    found = candidates.in_child(job)
    here = one_candidate.attempt(context, state, before, examples, action, 7)
    assert found["after"]["accuracy"] == here.after.accuracy
    assert found["after"]["nll"] == pytest.approx(here.after.nll, abs=1e-5)
    assert found["reward"] == here.reward
    assert found["tokens"] == here.tokens


@pytest.mark.parametrize("count", [1, 5])
def test_all_ways_to_ask_several_adapters_find_the_same(count):
    context = _context()
    adapters = [member.adapter for member in members_of(context, 3)]
    asked = Asked(context, _questions(count), adapters)
    model = peft_model(context.base, adapters)
    ours = asked.together()
    assert ours[0] != ours[1]
    for found in (asked.one_by_one(), peft_trees(asked, model), peft_rows(asked, model)):
        for mine, theirs in zip(ours, found, strict=True):
            for one, other in zip(mine, theirs, strict=True):
                # options share a constant
                expected, got = (torch.tensor(row).log_softmax(0) for row in (one, other))
                torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
        assert same_choice(ours, found) == 1.0


def test_batches_are_compared_at_two_sizes_with_every_peer():
    result = tts_batch.run(QUICK)
    assert len(result.rows) == 6
    assert all(row.ratio is not None and row.met is None for row in result.rows)
    assert set(result.details) == {"adapters", "questions_1", "questions_3"}


def test_choices_are_compared_pair_by_pair():
    some = [[(0.0, 1.0), (2.0, 1.0)]]
    assert same_choice(some, [[(0.0, 1.0), (1.0, 2.0)]]) == 0.5


def test_steps_in_full_make_the_same_answers():
    context = _context()
    member = members_of(context, 1)[0]
    sides = latent_steps.sides_of(context, member, _questions(4))
    found = {name: side() for name, side in sides.items()}
    for name in ("whole model", "whole head"):
        assert latent_steps.largest_difference(found["ours"], found[name]) < 1e-3
    # and the steps change them
    assert latent_steps.largest_difference(found["ours"], found["no steps"]) > 0.01


def test_latent_steps_run():
    result = latent_steps.run(QUICK)
    assert len(result.rows) == 2
    assert all(row.ratio is not None and row.met is None for row in result.rows)
    assert result.details["questions"] == 4


def test_ratio_is_how_many_times_as_long_the_peer_takes():
    row = times_as_long("steps", [1.0, 2.0], [5.0, 10.0], at_least=5.0)
    assert row.ratio.median == 5.0
    assert row.met is True
