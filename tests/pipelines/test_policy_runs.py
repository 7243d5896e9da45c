"""The policy and test time, as nodes and as runs: what they see, what they leave alone, how they go on."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from kedro.framework.project import pipelines

from degaml_kedro.adapters.adapter import load_peft_folder
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import (
    BaseModelParameters,
    FactorizedDecoder,
    LoraParameters,
    ProjectParameters,
)
from degaml_kedro.generator.decoders.build import ConditionSize, Decoder
from degaml_kedro.generator.generator import (
    Generator,
    Identity,
    load_generator,
    save_generator,
)
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.io.rollouts import ROLLOUT_COLUMNS, Rollouts, RolloutsDataset
from degaml_kedro.llm.base_model import load_base_model
from degaml_kedro.llm.finetune import initial_adapter
from degaml_kedro.pipelines.evaluate import nodes as evaluate_nodes
from degaml_kedro.pipelines.evaluate.nodes import (
    choose_strategies,
    execute_strategies,
    predict_adapted,
    predict_oracle,
)
from degaml_kedro.pipelines.policy import nodes
from degaml_kedro.pipelines.policy.nodes import roll_out_task, train_policy
from degaml_kedro.pipelines.tasks.nodes import take_split
from degaml_kedro.pipelines.tokenize.nodes import encode_prompts
from degaml_kedro.policy.search import executed_rows
from degaml_kedro.strategies import registry
from degaml_kedro.strategies.registry import families
from degaml_kedro.tasks.splits import TaskSplits, splits_to_frame
from tests.conftest import Project
from tests.generator.helpers import LORA, questions, tiny_grid, tiny_scales
from tests.llm.helpers import random_adapter, tiny_base
from tests.pipelines.helpers import SMOKE, run, smoke_parameters
from tests.policy.toys import Killed, bytes_of, keep, raw

pytestmark = pytest.mark.xdist_group("policy_runs")

TASK = {"group": "one", "source": {"kind": "suite", "family": "day_after"}}
SEED = 5


# --- the graph ------------------------------------------------------------------------------------


def graph(project: Project) -> Any:
    with project.session() as session:
        session.load_context()
    return pipelines["__default__"]


def ancestors(pipeline: Any, node: Any) -> list[Any]:
    """Every node that something which this one reads was made by, near or far."""
    maker = {output: one for one in pipeline.nodes for output in one.outputs}
    found: dict[str, Any] = {}
    waiting = list(node.inputs)
    while waiting:
        made_by = maker.get(waiting.pop())
        if made_by is not None and made_by.name not in found:
            found[made_by.name] = made_by
            waiting += made_by.inputs
    return list(found.values())


def readers(pipeline: Any, node: Any, dataset: str) -> set[str]:
    """The functions through which a dataset reaches a node."""
    return {
        f"take_{one.func.keywords['split']}"
        if one.func.__name__ == "take_split"
        else one.func.__name__
        for one in (node, *ancestors(pipeline, node))
        if dataset in one.inputs
    }


def of_function(pipeline: Any, *names: str) -> list[Any]:
    found = [one for one in pipeline.nodes if one.func.__name__ in names]
    assert found
    return found


UNSEEN = (".splits", ".examples", ".predictions", ".result", ".trajectory", ".tokens")


def test_who_chooses_is_given_support_examples_and_nothing_else_of_the_task(project):
    pipeline = graph(project)
    for node in of_function(pipeline, "choose_strategies", "execute_strategies"):
        task = node.func.keywords["task"]
        given = set(node.inputs)
        assert not [name for name in given if name.endswith(UNSEEN)]
        assert f"{task}.validation" not in given
        assert {f"{task}.support", f"{task}.prompt_embeddings"} < given
        # nothing of another task either
        others = {"kind_member", "day_after", "day_before"} - {task}
        assert not [name for name in given if name.split(".")[0] in others]
    for node in of_function(pipeline, "roll_out_task"):
        assert not [name for name in node.inputs if name.endswith(UNSEEN)]


def test_the_splits_of_a_new_task_reach_who_chooses_through_two_doors(project):
    pipeline = graph(project)
    nodes = of_function(pipeline, "choose_strategies", "execute_strategies")
    assert {node.func.keywords["task"] for node in nodes} == {"day_before", "day_after"}
    for node in nodes:
        task = node.func.keywords["task"]
        doors = readers(pipeline, node, f"{task}.splits")
        if task == "day_after":
            # a task that is left out has a trajectory, which errors are measured on and nothing is learned from:
            # `test_errors_are_measured_on_the_tasks_left_out_and_nothing_is_learned_of_them`
            doors -= {"train", "train_on_examples", "train_trajectory"}
        assert doors == {"take_support", "encode_prompts"}
        assert readers(pipeline, node, f"{task}.examples") == {"deal_splits"}
        # nothing that was scored on any test split comes in
        made = {one.func.__name__ for one in ancestors(pipeline, node)}
        assert not [
            name for name in made if name.startswith(("predict", "measure_pred", "collect"))
        ]
        assert not readers(pipeline, node, f"{task}.validation")


def test_a_meta_train_task_s_splits_reach_its_rollouts_through_three_doors(project):
    # with folds the generator that rollouts start from knows nothing of the task
    project.edit("smoke/parameters.yml", policy={"folds": 2}, generator={"leave_out": []})
    pipeline = graph(project)
    for node in of_function(pipeline, "roll_out_task"):
        if node.func.keywords["iteration"] > 1:
            # the policy before it has learned from all tasks
            continue
        task = node.func.keywords["task"]
        assert readers(pipeline, node, f"{task}.splits") == {
            "take_support",
            "take_validation",
            "encode_prompts",
        }


def test_the_test_split_is_scored_once(project):
    pipeline = graph(project)
    for method in ("degaml", "random_policy"):
        scoring = [
            node
            for node in pipeline.nodes
            if f"day_before.{method}.state" in node.inputs and "day_before.splits" in node.inputs
        ]
        assert [node.func.__name__ for node in scoring] == ["predict_adapted"]


# --- nodes ----------------------------------------------------------------------------------------


def splits(seed: int, test: int = 6) -> pd.DataFrame:
    made = questions(6 + 5 + 5 + test, seed)
    parts = TaskSplits(
        train=tuple(made[:6]),
        support=tuple(made[6:11]),
        validation=tuple(made[11:16]),
        test=tuple(made[16:]),
    )
    return splits_to_frame(parts)


def states_of(frame: pd.DataFrame) -> PromptEmbeddings:
    return encode_prompts(settings(), frame, task="one")


@pytest.fixture(scope="module")
def generator() -> Generator:
    """Untrained, and with weights that make more of prompts than the mean adapter."""
    states, grid, base = states_of(splits(1)), tiny_grid(), tiny_base()
    settings = FactorizedDecoder(
        kind="factorized", condition_width=8, width=12, blocks=1, rank=4, output_scale=1.0
    )
    condition = ConditionSize(3, states.tokens, states.width, 1)
    decoder = Decoder(settings, grid, condition, 0)
    with torch.no_grad():
        heads = decoder.get_parameter("network.heads")
        heads.copy_(torch.randn(heads.shape, generator=torch.Generator().manual_seed(0)))
    identity = Identity(base.name, base.fingerprint, states.encoder, states.fingerprint)
    shape = initial_adapter(base, LORA).config
    return Generator(decoder, tiny_scales(), shape, identity, fingerprint="g" * 16)


def policy(**changes: Any) -> dict[str, Any]:
    return {**SMOKE["policy"], **changes}


def settings(given: dict[str, Any] | None = None, **changes: Any) -> ProjectParameters:
    return smoke_parameters({"one": TASK}, policy=given or policy(), seed=SEED, **changes)


def rolled(
    made: Generator, frame: pd.DataFrame, resume: Any = None, given: Any = None, **changes: Any
) -> Any:
    adapter, iteration = changes.pop("adapter", None), changes.pop("iteration", 1)
    support, validation = (take_split(frame, split=name) for name in ("support", "validation"))
    return roll_out_task(
        settings(given, **changes), resume, made, states_of(frame), support, validation, adapter,
        task="one", iteration=iteration,
    )  # fmt: skip


def chosen(
    made: Generator, frame: pd.DataFrame, resume: Any = None, given: Any = None, **changes: Any
) -> Any:
    adapter = changes.pop("adapter", None)
    support = take_split(frame, split="support")
    return choose_strategies(
        settings(given, **changes), resume, made, states_of(frame), support, adapter,
        task="one", method="degaml" if adapter else "random_policy",
    )  # fmt: skip


def executed(made: Generator, frame: pd.DataFrame, rows: list[dict[str, Any]]) -> Any:
    support = take_split(frame, split="support")
    table = pd.DataFrame(rows, columns=list(ROLLOUT_COLUMNS))
    state, spent = execute_strategies(
        settings(), made, states_of(frame), support, table, task="one", method="x"
    )
    # all trials, what was between them, and carrying out what was chosen
    for name in ("forward_tokens", "backward_tokens"):
        assert spent[name] >= sum(row[name] for row in rows)
    tried = sum(row["forward_tokens"] + row["backward_tokens"] for row in rows)
    assert (spent["method"], spent["stage"], spent["task"]) == ("x", "adaptation", "one")
    assert spent["tokens"] >= tried
    assert spent["tokens"] == spent["forward_tokens"] + spent["backward_tokens"]
    assert spent["seconds"] > sum(row["seconds"] + row["overhead_seconds"] for row in rows)
    return state


def rows_of(chunks: Any) -> list[dict[str, Any]]:
    *_, last = chunks
    return [dict(row) for row in last.rows]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def with_other(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The same task with other questions and answers in some splits."""
    other = splits(77, test=9)
    kept, fresh = frame[~frame["split"].isin(names)], other[other["split"].isin(names)]
    assert not set(kept["prompt"]) & set(fresh["prompt"])
    return pd.concat([kept, fresh], ignore_index=True)


@pytest.fixture(scope="module")
def adapter() -> Any:
    return random_adapter(tiny_base(), LoraParameters.model_validate(SMOKE["policy"]["lora"]))


def test_the_test_split_changes_no_bit_of_what_is_chosen(generator, adapter):
    frame = splits(1)
    for learned in (None, adapter):
        for other in (with_other(frame, "test"), with_other(frame, "test", "validation")):
            one, two = (rows_of(chosen(generator, f, adapter=learned)) for f in (frame, other))
            assert len(one) >= 2
            assert timeless(one) == timeless(two)
            states = [executed(generator, f, one) for f in (frame, other)]
            assert bytes_of(states[0]) == bytes_of(states[1])


def test_the_test_split_changes_no_bit_of_rollouts(generator):
    frame = splits(1)
    one, two = (rows_of(rolled(generator, f)) for f in (frame, with_other(frame, "test")))
    assert len(one) == 3
    assert timeless(one) == timeless(two)


def test_the_support_and_the_validation_split_are_what_is_seen(generator):
    # or the tests above would show nothing
    frame = splits(1)
    choice = timeless(rows_of(chosen(generator, frame)))
    assert timeless(rows_of(chosen(generator, with_other(frame, "support")))) != choice
    trials = timeless(rows_of(rolled(generator, frame)))
    assert timeless(rows_of(rolled(generator, with_other(frame, "validation")))) != trials


def test_a_task_with_the_test_split_in_hand_answers_the_test_split(generator):
    frame = splits(1)
    state = executed(generator, frame, rows_of(chosen(generator, frame)))
    found = predict_adapted(
        settings(), generator, states_of(frame), frame, state, task="one", method="x"
    )
    assert len(found) == 6
    assert list(found["gold"]) == list(frame[frame["split"] == "test"]["gold"])


def test_a_split_alone_holds_no_other():
    frame = splits(1)
    for name in ("support", "validation"):
        alone = take_split(frame, split=name)
        assert set(alone["split"]) == {name}
        assert list(alone.index) == list(range(5))
        hidden = set(frame[frame["split"] != name]["prompt"])
        assert not hidden & set(alone["prompt"])


def test_where_nothing_was_executed_the_state_is_what_the_generator_made(generator):
    frame = splits(1)
    rows = [{**row, "executed": False} for row in rows_of(chosen(generator, frame))]
    state = executed(generator, frame, rows)
    # the first adapter of `generalization_only`
    states = states_of(frame)
    own = derive_seed(SEED, "one", "generalization_only")
    expected = generator.sample(states, own, 0, range(len(states) - 5, len(states)))
    (member,) = state.members
    assert (state.vote, state.steering) == (None, None)
    for name, tensor in expected.tensors.items():
        assert torch.equal(member.adapter.tensors[name], tensor)


@pytest.mark.parametrize(
    "error", [TypeError("no\nnumber"), KeyError("x"), MemoryError(), AssertionError()], ids=repr
)
def test_the_oracle_survives_a_candidate_that_fails(error, generator, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    frame = splits(1)

    def fails(*_: Any) -> Any:
        raise error

    families()
    own = registry._FAMILIES["lora"]
    changed = {**registry._FAMILIES, "lora": dataclasses.replace(own, refine=fails)}
    monkeypatch.setattr(registry, "_FAMILIES", changed)
    given = policy(families={"lora": {}}, oracle_candidates=2)
    found = predict_oracle(None, settings(given), generator, states_of(frame), frame, task="one")
    assert set(found["strategy"]) == {"unrefined"}
    assert len(found) == 6
    assert caplog.text.count("is no candidate") == 2
    assert f"({type(error).__name__}: " in caplog.text


# --- the generator is frozen ----------------------------------------------------------------------


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_no_gradient_and_no_byte_of_the_generator_changes(generator, tmp_path):
    folder = tmp_path / "generator"
    save_generator(generator, folder)
    stored, frame = folder_bytes(folder), splits(1)
    made = load_generator(folder)
    weights = {name: raw(t) for name, t in made.decoder.state_dict().items()}
    scales = {name: raw(t) for name, t in made.scales.tensors().items()}
    base = load_base_model(BaseModelParameters.model_validate(SMOKE["model"]))
    model = {name: raw(t) for name, t in base.model.state_dict().items()}
    # every family, and two iterations with learning between them
    learned = None
    for iteration in (1, 2):
        rows = rows_of(rolled(made, frame, adapter=learned, iteration=iteration,
                              given=policy(rollouts={"count": 10, "at_once": 5, "examples": 4})))  # fmt: skip
        assert any(row["reward"] > 0 for row in rows)
        learned, record = train_policy(learned, settings(), pd.DataFrame(rows), iteration=iteration)
        assert record["steps"] > 0
    rows = rows_of(chosen(made, frame, adapter=learned))
    executed(made, frame, rows)
    for parameter in (*made.decoder.parameters(), *base.model.parameters()):
        assert parameter.grad is None
    assert {name: raw(t) for name, t in made.decoder.state_dict().items()} == weights
    assert {name: raw(t) for name, t in made.scales.tensors().items()} == scales
    assert {name: raw(t) for name, t in base.model.state_dict().items()} == model
    assert folder_bytes(folder) == stored
    again = tmp_path / "again"
    save_generator(made, again)
    assert folder_bytes(again) == stored


def test_what_is_made_for_strategies_is_detached(generator):
    frame = splits(1)
    for parameter in generator.decoder.parameters():
        assert parameter.requires_grad
    state = executed(generator, frame, [])
    for tensor in state.members[0].adapter.tensors.values():
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
    assert not state.members[0].prompts.requires_grad


# --- going on -------------------------------------------------------------------------------------


@pytest.fixture
def tries(monkeypatch):
    """Counts trials; ``tries.stop`` is the number of trials after which the process dies."""
    from degaml_kedro.policy import search

    counted: Any = type("Tries", (), {"count": 0, "stop": None})()
    real = search.try_action

    def counting(*arguments: Any, **named: Any) -> Any:
        if counted.count == counted.stop:
            raise Killed
        counted.count += 1
        return real(*arguments, **named)

    monkeypatch.setattr(search, "try_action", counting)
    return counted


@pytest.mark.parametrize(
    "node",
    [rolled, partial(chosen, given=policy(search={"rounds": 1, "proposals": 3}))],
    ids=["rollouts", "choice"],
)
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_killed_node_goes_on_and_repeats_no_trial(node, stop, generator, tries):
    frame = splits(1)
    whole = list(node(generator, frame))
    every = rows_of(whole)
    # nothing, a trial more each time, and that they are all
    assert [(len(one.rows), one.complete) for one in whole] == [
        *((count, False) for count in range(len(every) + 1)),
        (len(every), True),
    ]
    tries.count, tries.stop, chunks = 0, stop, []
    with pytest.raises(Killed):
        keep(node(generator, frame), chunks)
    left = chunks[-1]
    assert len(left.rows) == stop
    tries.count, tries.stop = 0, None
    start, *rest = node(generator, frame, left)
    assert start == left
    assert timeless(rows_of(rest)) == timeless(every)
    assert tries.count == len(every) - stop


@pytest.mark.parametrize("node", [rolled, chosen], ids=["rollouts", "choice"])
def test_rows_of_other_proposals_are_tried_again(node, generator, tries, tmp_path, caplog):
    frame = splits(1)
    whole = list(node(generator, frame))
    every = rows_of(whole)
    wrong = [{**row, "action": '{"family":"rest"}'} for row in every[:1]]
    left = Rollouts(whole[0].fingerprint, tuple(wrong))
    tries.count = 0
    # through the dataset, where the rows that are wrong are on the disk already
    dataset = RolloutsDataset(filepath=tmp_path / "x.rollouts.parquet")
    for chunk in (left, *(chunks := list(node(generator, frame, left)))):
        dataset.save(chunk)
    assert [len(chunk.rows) for chunk in chunks[:3]] == [1, 0, 1]
    assert timeless(rows_of(chunks)) == timeless(every)
    assert tries.count == len(every)
    assert "from trial 0 on, the rows on disk are of other proposals; these are tried again" in (
        caplog.text
    )
    assert list(dataset.load()["action"]) == [row["action"] for row in every]


@pytest.mark.parametrize("node", [rolled, chosen], ids=["rollouts", "choice"])
def test_a_finished_node_tries_nothing(node, generator, tries):
    frame = splits(1)
    *_, whole = node(generator, frame)
    tries.count = 0
    assert list(node(generator, frame, whole)) == [whole]
    assert tries.count == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": {**SMOKE["prompt"], "options": "hidden"}},
        {"scoring": {**SMOKE["scoring"], "normalization": "tokens"}},
        {"given": policy(reward={"tie_break": "none"})},
        {"given": policy(families={"lora": {}})},
        {"given": policy(temperature=0.5)},
    ],
    ids=["prompt", "scoring", "reward", "families", "temperature"],
)
@pytest.mark.parametrize("node", [rolled, chosen], ids=["rollouts", "choice"])
def test_other_settings_start_over(node, changes, generator, caplog):
    caplog.set_level(logging.INFO)
    frame = splits(1)
    *_, whole = node(generator, frame)
    start = next(iter(node(generator, frame, whole, **changes)))
    assert not start.rows
    assert start.fingerprint != whole.fingerprint
    assert (
        "made with other settings, data, weights or another policy; they start over" in caplog.text
    )


def test_other_data_another_policy_or_another_generator_start_over(generator, adapter, monkeypatch):
    frame = splits(1)
    first = next(iter(rolled(generator, frame))).fingerprint
    others = [
        rolled(generator, with_other(frame, "validation")),
        rolled(generator, with_other(frame, "support")),
        rolled(generator, frame, adapter=adapter),
        rolled(generator, frame, iteration=2),
        rolled(dataclasses.replace(generator, fingerprint="h" * 16), frame),
    ]
    assert first not in [next(iter(chunks)).fingerprint for chunks in others]
    # the same settings, and other weights in the policy's own model
    real = nodes.load_policy_model

    def retrained(*arguments):
        return dataclasses.replace(real(*arguments), fingerprint="m" * 16)

    with monkeypatch.context() as patch:
        for place in (nodes, evaluate_nodes):
            patch.setattr(place, "load_policy_model", retrained)
        assert next(iter(rolled(generator, frame))).fingerprint != first
        other = next(iter(chosen(generator, frame, adapter=adapter))).fingerprint
        drawn = next(iter(chosen(generator, frame))).fingerprint
    assert next(iter(chosen(generator, frame, adapter=adapter))).fingerprint != other
    # uniform draws ask no model
    assert next(iter(chosen(generator, frame))).fingerprint == drawn
    # what only matters later does not matter
    same = rolled(generator, frame, given=policy(search={"rounds": 1, "proposals": 9}))
    assert next(iter(same)).fingerprint == first


# --- learning -------------------------------------------------------------------------------------


def table(rewards: list[float], iteration: int = 1) -> pd.DataFrame:
    rows = [
        {
            "task": f"task {i % 2}",
            "iteration": iteration,
            "state": f"accuracy 0.{i}\nStrategy:",
            "action": '{"family":"lora","lambda":0.5}',
            "reward": reward,
            "valid": True,
        }
        for i, reward in enumerate(rewards)
    ]
    return pd.DataFrame(rows)


def test_without_any_reward_the_policy_stays_and_the_log_says_so(adapter, caplog):
    caplog.set_level(logging.WARNING)
    made, record = train_policy(adapter, settings(), table([0.0, 0.0, 0.0], 2), iteration=2)
    assert made is adapter
    assert (record["steps"], record["learned"], record["reward_rate"]) == (0, 0, 0.0)
    assert "policy, iteration 2: none of 3 rollouts was rewarded" in caplog.text
    assert "the policy stays as it is" in caplog.text
    # as well where every iteration starts from the untrained one
    untrained = policy(training={**SMOKE["policy"]["training"], "start": "untrained"})
    made, _ = train_policy(adapter, settings(untrained), table([0.0], 2), iteration=2)
    assert made is adapter
    # and in the first iteration it is the untrained one
    made, _ = train_policy(None, settings(), table([0.0]), iteration=1)
    fresh = initial_adapter(tiny_base(), LoraParameters.model_validate(SMOKE["policy"]["lora"]))
    assert all(torch.equal(made.tensors[name], t) for name, t in fresh.tensors.items())


@pytest.mark.parametrize("start", ["previous", "untrained"])
@pytest.mark.parametrize("fresh", [[0.0, 0.0], []], ids=["no reward", "no rollout"])
def test_an_iteration_without_a_reward_does_not_learn_from_earlier_ones_again(
    fresh, start, adapter, caplog
):
    caplog.set_level(logging.WARNING)
    given = policy(training={**SMOKE["policy"]["training"], "start": start, "learn_from": "all"})
    old, new = table([1.0, 1.0]), table(fresh, 2)
    made, record = train_policy(adapter, settings(given), old, new, iteration=2)
    assert made is adapter
    assert (record["steps"], record["learned"], record["losses"]) == (0, 0, [])
    assert (record["rollouts"], record["reward_rate"]) == (len(fresh), 0.0)
    assert f"policy, iteration 2: none of {len(fresh)} rollouts was rewarded" in caplog.text
    # where there is a policy to keep; one reward is enough to learn from all
    made, record = train_policy(adapter, settings(given), old, table([0.0, 1.0], 2), iteration=2)
    assert made is not adapter
    assert record["learned"] == 3


def test_where_an_iteration_s_learning_starts(adapter):
    def made(start: str) -> Any:
        given = policy(training={**SMOKE["policy"]["training"], "start": start})
        return train_policy(adapter, settings(given), table([1.0], 2), iteration=2)[0]

    fresh = initial_adapter(tiny_base(), LoraParameters.model_validate(SMOKE["policy"]["lora"]))
    for start, first in (("previous", adapter), ("untrained", fresh)):
        # one step of AdamW at 1e-3 goes at most so far
        found = made(start)
        assert all((found.tensors[n] - t).abs().max() < 2e-3 for n, t in first.tensors.items())


def test_rates_are_of_this_iteration_and_learning_is_of_all_that_came_in():
    old, new = table([1.0, 1.0]), table([1.0, 0.0, 0.0, 0.0], iteration=2)
    _, record = train_policy(None, settings(), old, new, iteration=2)
    assert (record["rollouts"], record["reward_rate"], record["learned"]) == (4, 0.25, 3)


# --- runs -----------------------------------------------------------------------------------------


def small(project: Project) -> Project:
    """Two tasks to learn from, one to adapt to, one family that always runs."""
    project.edit(
        "smoke/parameters.yml",
        methods=["degaml"],
        generator={"leave_out": []},
        policy={"families": None},
    )
    project.edit("smoke/parameters.yml", policy={"families": {"lora": {}}})
    return project


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tracking_database, bootstrapped):
    """All that comes before the policy."""
    project = small(Project(tmp_path_factory.mktemp("prepared"), tracking_database))
    run(project, "checkpoints", "tokenize", "generator")
    return project


@pytest.fixture
def ready(project, prepared):
    """The prepared data in a project of its own."""
    shutil.copytree(prepared.data, project.data)
    return small(project)


def made_by(data: Path) -> dict[str, Any]:
    """What the policy and what follows it made, but for how long it took."""
    found: dict[str, Any] = {}
    for path in sorted((data / "05_model_input").glob("*.parquet")):
        found[path.name] = pd.read_parquet(path).filter(regex="^(?!.*seconds)").to_json()
    for path in sorted((data / "06_models").rglob("*.safetensors")):
        found[str(path.relative_to(data))] = path.read_bytes()
    return found


@pytest.fixture
def family(monkeypatch):
    """The one family; ``family.stop`` is how often it runs before the process dies."""
    families()
    watched: Any = type("Watched", (), {"count": 0, "stop": None, "does": None})()
    own = registry._FAMILIES["lora"]

    def refine(context: Any, state: Any, seen: Any, config: Any, seed: int) -> Any:
        if watched.count == watched.stop:
            raise Killed
        watched.count += 1
        return (watched.does or own.refine)(context, state, seen, config, seed)

    changed = {**registry._FAMILIES, "lora": dataclasses.replace(own, refine=refine)}
    monkeypatch.setattr(registry, "_FAMILIES", changed)
    return watched


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory, tracking_database):
    """The run that was never killed."""
    project = small(Project(tmp_path_factory.mktemp("whole"), tracking_database))
    shutil.copytree(prepared.data, project.data)
    before = folder_bytes(project.data / "06_models/mse.generator")
    run(project, "policy", "evaluate")
    assert folder_bytes(project.data / "06_models/mse.generator") == before
    return made_by(project.data)


TRIALS = 3 * 2 * 2  # three in a task and iteration


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 8])
def test_killed_in_the_middle_of_rollouts(ready, whole, family, stop):
    import mlflow

    family.stop = stop
    with pytest.raises(Killed):
        run(ready, "policy")
    mlflow.end_run()
    assert family.count == stop
    assert list((ready.data / "05_model_input").glob("*.partial.jsonl"))
    family.count, family.stop = 0, None
    run(ready, "policy", "evaluate")
    table = pd.read_parquet(ready.data / "05_model_input/day_before.degaml.rollouts.parquet")
    # each trial once; what is executed at test time runs once more between rounds, and once for the state
    rounds = table["round"].nunique()
    executed = len(executed_rows(table.to_dict("records")))
    assert family.count == TRIALS - stop + len(table) + executed + (rounds - 1)
    assert made_by(ready.data) == whole


@pytest.mark.slow
def test_killed_in_the_policy_s_training(ready, whole, family, monkeypatch):
    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(nodes, "learn", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(ready, "policy")
    first = family.count
    assert first == TRIALS // 2
    assert not (ready.data / "06_models/policy_1.adapter").exists()
    run(ready, "policy")
    # the first iteration's rollouts are there: the second's are made
    assert family.count == TRIALS
    found = made_by(ready.data)
    assert "06_models/policy/adapter_model.safetensors" in found
    assert found == {name: whole[name] for name in found}
    run(ready, "policy")
    assert family.count == TRIALS


def test_rollouts_of_which_none_is_rewarded(ready, family, caplog):
    caplog.set_level(logging.WARNING)
    family.does = lambda context, state, *_: state
    run(ready, "policy")
    models = ready.data / "06_models"
    settings = LoraParameters.model_validate(SMOKE["policy"]["lora"])
    fresh = initial_adapter(tiny_base(), settings)
    for name in ("policy_1.adapter", "policy_2.adapter", "policy"):
        found = load_peft_folder(models / name)
        assert all(torch.equal(found.tensors[key], t) for key, t in fresh.tensors.items())
    assert caplog.text.count("there is nothing to learn from; the policy stays as it is") == 2
