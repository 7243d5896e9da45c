from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.indicators import Indicators
from degaml_kedro.policy.prompts import policy_prompt, state_numbers
from degaml_kedro.policy.tabular import RewardModel, TabularProposer, fit_rewards
from degaml_kedro.tasks.example import Question
from tests.strategies.helpers import examples

SPACE = ActionSpace.of({"lora": {}, "sft": {}, "ttt": {}})
QUESTIONS = [Question.of(example) for example in examples(2)]


def prompt(accuracy, seed=0, nll=1.25):
    measured = Indicators(20, accuracy, 0.5, 0.75, nll, -nll, (0.5, 0.25, 0.25))
    return policy_prompt(QUESTIONS, measured, [], SPACE, seed)


def rows(rewarded, count=300):
    """Uniform rollouts of tasks that stand differently, rewarded by their family and by how the task stands."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        accuracy = float(rng.choice([0.2, 0.9]))
        action = SPACE.draw(rng)
        reward = float(rewarded(action, accuracy))
        found.append({"state": prompt(accuracy), "action": action.text, "reward": reward})
    return found


def proposed(model, state, count=200):
    texts = [one.text for one in TabularProposer(SPACE, model).propose([state] * count, 7)]
    return [SPACE.parse(text)[0] for text in texts]


def test_the_numbers_of_a_state_are_read_where_they_were_written():
    expected = {"options": 3.0, "accuracy": 0.35, "confidence": 0.5, "entropy": 0.75, "nll": 1.25}
    assert state_numbers(prompt(0.35)) == expected
    assert state_numbers(prompt(0.35, nll=math.inf))["nll"] == 99
    assert state_numbers("") == {}


def test_what_was_rewarded_is_proposed():
    model = fit_rewards(rows(lambda action, _: action.family == "sft"), SPACE)
    families = [action.family for action in proposed(model, prompt(0.5))]
    assert families.count("sft") > 190


def test_the_family_depends_on_how_the_task_stands():
    def rewarded(action, accuracy):
        return action.family == ("sft" if accuracy < 0.5 else "lora")

    model = fit_rewards(rows(rewarded), SPACE)
    for accuracy, best in ((0.2, "sft"), (0.9, "lora")):
        families = [action.family for action in proposed(model, prompt(accuracy))]
        assert families.count(best) > 150


def test_the_configuration_counts():
    def rewarded(action, _):
        return action.family == "sft" and action.config["learning_rate"] >= 3e-4

    model = fit_rewards(rows(rewarded), SPACE)
    rates = [action.config["learning_rate"] for action in proposed(model, prompt(0.5))
             if action.family == "sft"]  # fmt: skip
    assert np.mean([rate >= 3e-4 for rate in rates]) > 0.9


def test_it_is_sklearn_s_regression_in_plain_numbers():
    from sklearn.linear_model import LogisticRegression

    given = [
        {"state": "", "action": f'{{"family":"lora","lambda":{x}}}', "reward": float(x > 0.4)}
        for x in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    ]
    model = fit_rewards(given, SPACE)
    x = np.array([0.1, 0.2, 0.3, 0.5, 0.7, 1.0])
    scaled = ((x - x.mean()) / x.std())[:, None]
    expected = LogisticRegression().fit(scaled, x > 0.4).decision_function(scaled)
    found = [model.log_odds({}, SPACE.parse(row["action"])[0]) for row in given]
    assert found == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_where_all_earned_alike_draws_are_uniform(reward):
    model = fit_rewards(rows(lambda *_: reward, count=10), SPACE)
    assert model == RewardModel({}, 0.0)
    families = [action.family for action in proposed(model, prompt(0.5))]
    assert all(families.count(name) > 40 for name in ("lora", "sft", "ttt"))
    assert fit_rewards([], SPACE) == model


def test_what_is_no_action_is_left_out():
    given = rows(lambda action, _: action.family == "sft", count=40)
    odd = [{"state": prompt(0.5), "action": "no", "reward": 0.0}]
    assert fit_rewards([*given, *odd], SPACE) == fit_rewards(given, SPACE)


def test_a_row_s_draw_depends_on_the_seed_and_its_number():
    proposer = TabularProposer(SPACE, fit_rewards(rows(lambda a, _: a.family == "sft"), SPACE))
    states = [prompt(0.5)] * 4
    one = proposer.propose(states, 1)
    assert proposer.propose(states, 1) == one
    assert proposer.propose(states[:2], 1) == one[:2]
    assert proposer.propose(states, 2) != one
    assert {(made.source, made.tokens, made.prompt) for made in one} == {("tabular", 0, states[0])}


def test_it_comes_back_from_a_file():
    model = fit_rewards(rows(lambda action, _: action.family == "sft", count=40), SPACE)
    assert RewardModel(**json.loads(json.dumps(asdict(model)))) == model
