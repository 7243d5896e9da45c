"""What people are told of an adaptation."""

from __future__ import annotations

import pytest

from degaml_kedro.adaptation import Accuracy, Report, Tried, explain
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.describe import describe_action


def tried(reward, **changes):
    given = {"number": 1, "round": 1, "action": "x", "family": "ls", "words": "Do it"}
    scores = {"before": Accuracy(1, 2), "after": Accuracy(2, 2), "reward": reward, "seconds": 1.0}
    return Tried(**{**given, **scores, **changes})


@pytest.mark.parametrize(
    ("shots", "order", "words"),
    [
        (
            20,
            "given",
            "up to 20 examples with their answers in front of every question, the first ones, in the order given",
        ),
        (
            1,
            "random",
            "up to 1 example with its answer in front of every question, in a random order",
        ),
        (
            5,
            "nearest",
            "up to 5 examples with their answers in front of every question, those most like it, the most alike last",
        ),
    ],
)
def test_a_context_in_plain_words(shots, order, words):
    action = f'{{"family":"context","shots":{shots},"order":"{order}"}}'
    assert describe_action(ActionSpace.of({"context": {}}), action) == f"Show the model {words}"
    with_encoder = describe_action(
        ActionSpace.of({"context": {"encoder": [0, 1]}}),
        action.replace("}", ',"encoder":0.5}'),
    )
    assert with_encoder == (
        f"Show the model {words}; where they have all of a question's options as answers, multiply with the "
        f"probabilities of a classifier of sentence embeddings (weight 0.5)"
    )


def test_with_nothing_tried_nothing_failed_to_beat_the_adapter():
    told = explain(Report(2, 0, words="Keep it"))
    assert "No strategy was tried" in told
    assert "Chosen: Keep it.\n" in told
    assert "No strategy beat" not in told


@pytest.mark.parametrize(("reward", "beaten"), [(0.0, True), (0.5, False)])
def test_what_was_better_and_failed_later_was_better(reward, beaten):
    told = explain(Report(2, 0, words="Keep it", tried=(tried(reward),)))
    assert ("No strategy beat" in told) is beaten
    assert "No strategy was tried" not in told


@pytest.mark.parametrize(("scored", "cut"), [(200, True), (250, False)])
def test_it_says_why_n_differs(scored, cut):
    report = Report(
        250, 0, base_support=Accuracy(1, 250), generated_support=Accuracy(2, scored), words="Keep"
    )
    assert ("strategies are tried on the first 200" in explain(report)) is cut


def test_the_text_of_a_file_steers_no_terminal():
    odd = "a\x1b[2J\x9b\x7f\nChosen: forged"
    report = Report(2, 0, words=odd, warnings=(odd,), tried=(tried(0.0, words=odd, error=odd),))
    told = explain(report).splitlines()
    assert all(line.isprintable() for line in told)
    assert [line.startswith("Chosen: ") for line in told].count(True) == 1
    assert not any(line.startswith("Chosen: forged") for line in told)


@pytest.mark.parametrize(
    ("decided", "executed", "reason"),
    [
        ("test", True, "that a paired test on the support examples prefers"),
        ("fallback", True, "cannot tell whether another is better"),
        ("initialization", False, "prefers no strategy to the generated adapter"),
    ],
)
def test_it_says_what_a_paired_choice_rests_on(decided, executed, reason):
    one = tried(0.0, decided_by=decided, executed=executed)
    report = Report(2, 0, words="Do it", tried=(one,), strategy=("x",) * executed)
    told = explain(report)
    assert told.count("Chosen: Do it. ") == 1
    assert reason in told
    assert "scored best" not in told
    assert Report.from_json(report.as_json()) == report


@pytest.mark.parametrize(
    ("weights", "counting"), [("equal", "equally"), ("fitted", "as well as it answered")]
)
def test_an_ensemble_in_plain_words(weights, counting):
    text = f'{{"family":"ensemble","members":3,"weights":"{weights}"}}'
    told = describe_action(ActionSpace.of({"ensemble": {}}), text)
    assert told.startswith("Ask the best strategies that were tried so far together, 3 at most")
    assert told.endswith(f"counting {counting}")
