"""The baselines as nodes: what they are given, what they choose, what they cost."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import torch

from degaml_kedro.baselines import support
from degaml_kedro.baselines.compute import Compute
from degaml_kedro.baselines.learned import BaselineError, Learned
from degaml_kedro.config.loader import read_parameters
from degaml_kedro.config.schema import (
    BASELINES,
    META_TRAINED,
    READ_SUPPORT,
    BaselinesParameters,
    LoraParameters,
)
from degaml_kedro.llm.finetune import TrainingError, initial_adapter
from degaml_kedro.pipelines.baselines import nodes
from degaml_kedro.pipelines.baselines.nodes import (
    adapt_and_predict,
    adapt_baseline,
    choose_setting,
    predict_baseline,
    search_settings,
    sum_predictions,
)
from degaml_kedro.pipelines.baselines.pipeline import create_pipeline
from degaml_kedro.pipelines.checkpoints.pipeline import create_pipeline as create_checkpoints
from degaml_kedro.pipelines.naming import PARAMETERS
from degaml_kedro.pipelines.task_folds import (
    rollout_folds,
    search_fold,
    task_folds,
    warmup_folds,
)
from degaml_kedro.results.measures import PREDICTION_COLUMNS
from degaml_kedro.tasks.example import make_example
from degaml_kedro.tasks.splits import TaskSplits, splits_to_frame
from tests.llm.helpers import tiny_base
from tests.pipelines.helpers import SMOKE, smoke_parameters
from tests.test_configuration import loader

MODEL = {"source": {"kind": "random"}, "dtype": "float32", "device": "cpu"}
PROMPT = {"format": "plain", "options": "inline"}
SCORING = {"mode": "text"}
LORA = {"rank": 2, "alpha": 4.0}
TASK = {"source": {"kind": "suite", "family": "day_after"}}
DESCRIBED = {**TASK, "description": "Pick a color."}
ENCODER = {"source": {"kind": "random"}, "device": "cpu"}
SFT = [{"steps": 1, "learning_rate": 1e-3}, {"steps": 3, "learning_rate": 1e-2}]
EPISODES = {"outer_steps": 1, "inner_learning_rate": 1e-3, "outer_learning_rate": 1e-3}
BASELINE_PARAMETERS = {
    "search": {"tasks": 1, "examples": 3},
    "icl": {"settings": [{"shots": 1}, {"shots": 2}]},
    "no_meta_train_support": {"settings": SFT},
    "union_train": {"settings": SFT},
    "maml_en_llm": {**EPISODES, "settings": SFT},
    "abmll": {**EPISODES, "samples": 1, "settings": SFT},
    "metaicl": {
        "outer_steps": 1,
        "outer_learning_rate": 1e-3,
        "settings": [{"shots": 1}, {"shots": 2}],
    },
    "sentence_head": {"settings": [{"c": 1.0}, {"c": 100.0}]},
    "closed_form": {"settings": [{"scale": 1.0}, {"scale": 0.5}]},
}
ENTRIES = BaselinesParameters.model_validate(BASELINE_PARAMETERS)


def questions(name, count):
    return [make_example(f"{name} {i}?", ("red", "blue", "green"), i % 3) for i in range(count)]


FRAME = splits_to_frame(
    TaskSplits(
        questions("train", 4), questions("support", 4), questions("check", 5), questions("test", 6)
    )
)
SUPPORT = FRAME[FRAME["split"] == "support"].reset_index(drop=True)


def given(**changes):
    """The project's parameters with those of this file."""
    tasks = {"day_after": TASK, "described": DESCRIBED, "a": DESCRIBED, "b": DESCRIBED}
    generator = {**SMOKE["generator"], "encoder": ENCODER}
    every = {"model": MODEL, "prompt": PROMPT, "scoring": SCORING, "lora": LORA, "seed": 3}
    every |= {"baselines": BASELINE_PARAMETERS, "generator": generator, "methods": ["base"]}
    return smoke_parameters(tasks, **{**every, **changes})


def searched(method="no_meta_train_support", learned=None):
    return search_settings(given(), FRAME, learned, task="day_after", method=method)


def test_a_search_tries_every_setting_on_validation_examples_alone():
    found = searched()
    assert list(found["number"]) == [0, 1]
    assert [json.loads(text)["steps"] for text in found["setting"]] == [1, 3]
    assert set(found["n"]) == {3}
    # three steps go back three times as far as one, over the same four examples
    assert found["backward_tokens"][1] == 3 * found["backward_tokens"][0] > 0
    assert (found["forward_tokens"] > found["backward_tokens"]).all()
    # nothing of the test or train split is read
    other = FRAME.copy()
    unread = other["split"].isin(["test", "train"])
    other.loc[unread, "prompt"] = "other " + other["prompt"]
    same = search_settings(given(), other, task="day_after", method="no_meta_train_support")
    columns = ["accuracy", "nll", "forward_tokens"]
    assert found[columns].equals(same[columns])


def test_a_setting_that_diverges_is_not_chosen(monkeypatch):
    adapt = support.adapt

    def diverging(*given):
        if any(getattr(value, "steps", 0) == 3 for value in given):
            raise TrainingError("the loss became nan at step 2")
        return adapt(*given)

    monkeypatch.setattr(support, "adapt", diverging)
    found = searched()
    assert list(found["accuracy"])[1] == 0
    assert math.isinf(found["nll"][1])
    assert "nan at step 2" in found["error"][1]
    record, _ = choose_setting(None, given(), found, method="no_meta_train_support")
    assert record["chosen"] == 0


def test_a_method_that_fails_with_every_setting_says_so(monkeypatch):
    def failing(*_):
        raise BaselineError("diverged")

    monkeypatch.setattr(support, "adapt", failing)
    named = r"every setting that baselines\.no_meta_train_support\.settings"
    with pytest.raises(BaselineError, match=named):
        searched()


def start():
    return initial_adapter(tiny_base(), LoraParameters(rank=2, alpha=4.0))


def trials(*accuracies, nll=(1.0, 1.0), task="a", **changes):
    settings = [s.model_dump_json() for s in ENTRIES.union_train.settings]
    rows = [
        {
            "method": "union_train",
            "task": task,
            "number": number,
            "setting": settings[number],
            "accuracy": accuracy,
            "nll": nll[number],
            "n": 60,
            "seed": 3,
            "error": None,
            "forward_tokens": 10,
            "backward_tokens": 5,
            "seconds": 1.0,
            **changes,
        }
        for number, accuracy in enumerate(accuracies)
    ]
    return pd.DataFrame(rows)


def chosen(*frames, learned=None):
    return choose_setting(learned, given(), *frames, method="union_train")


def test_the_best_mean_is_chosen_and_the_likelier_answers_between_equal_ones():
    record, spent = chosen(trials(0.9, 0.1), trials(0.5, 0.7, task="b"))
    assert (record["chosen"], record["setting"]["steps"]) == (0, 1)
    assert (spent["stage"], spent["task"], spent["forward_tokens"]) == ("search", None, 40)
    # 0.1 + 0.2 and 0.3 + 0 are the same number of right answers
    record, _ = chosen(trials(0.1, 0.3, nll=(2.0, 1.0)), trials(0.2, 0.0, nll=(2.0, 1.0), task="b"))
    assert record["chosen"] == 1
    # what it learned for the search is a part of the search's cost
    learned = Learned("union_train", start(), compute=Compute(100, 50, 2.0))
    _, spent = chosen(trials(0.9, 0.1), learned=learned)
    assert (spent["forward_tokens"], spent["backward_tokens"], spent["seconds"]) == (120, 60, 4.0)


def test_a_search_of_other_settings_is_refused():
    stale = trials(0.9, 0.1)
    stale.loc[0, "setting"] = '{"steps":80,"learning_rate":0.1,"batch_size":8}'
    with pytest.raises(BaselineError, match=r"(?s)union_train on a tried .*80.*delete the files"):
        chosen(stale)
    with pytest.raises(BaselineError, match="delete the files"):
        chosen(trials(0.9))


def test_a_search_of_two_seeds_is_refused():
    with pytest.raises(BaselineError, match="begun with seed 3 and goes on with 4"):
        chosen(trials(0.9, 0.1), trials(0.9, 0.1, task="b", seed=4))


@pytest.mark.parametrize("method", [name for name in BASELINES if name not in READ_SUPPORT])
def test_adapting_sees_the_support_examples_and_counts_what_it_takes(method):
    learned = fitted(method) if method in META_TRAINED else None
    record = {"setting": {"scale": 0.5} if method == "closed_form" else SFT[1]}
    settings = (given(), record, SUPPORT, learned)
    adapted, spent = adapt_baseline(*settings, task="day_after", method=method)
    assert (spent["method"], spent["stage"], spent["task"]) == (method, "adaptation", "day_after")
    assert spent["tokens"] == spent["forward_tokens"] + spent["backward_tokens"] > 0
    again, _ = adapt_baseline(*settings, task="day_after", method=method)
    for key, tensor in adapted.adapter.tensors.items():
        assert torch.equal(tensor, again.adapter.tensors[key])
    frame = predict_baseline(given(), FRAME, adapted, task="day_after", method=method)
    assert len(frame) == 6
    assert list(frame["gold"]) == [i % 3 for i in range(6)]


def fitted(method):
    if method == "union_train":
        return Learned(method, start())
    parameters = dict(BASELINE_PARAMETERS)
    entry = BASELINES[method]
    parameters[entry] = {**parameters[entry], "support": 2, "query": 2, "tasks_per_step": 1}
    return nodes.fit_baseline(
        None, given(baselines=parameters), FRAME, FRAME, method=method, tasks=("a", "b")
    )


def test_both_orders_of_maml_see_the_same_episodes():
    first, second = fitted("maml_en_llm_first_order"), fitted("maml_en_llm")
    # before anything has been learned their losses are of the same examples
    assert first.records[0]["loss_before"] == pytest.approx(second.records[0]["loss_before"], 1e-5)
    assert first.about["seed"] == second.about["seed"]


def answered(method, setting, task="day_after"):
    learned = fitted(method) if method in META_TRAINED else None
    return adapt_and_predict(
        given(), FRAME, {"setting": setting}, SUPPORT, learned, task=task, method=method
    )


@pytest.mark.parametrize("method", READ_SUPPORT)
def test_reading_the_support_examples_costs_nothing_until_it_answers(method):
    head = method == "sentence_head"
    frame, spent = answered(method, {"c": 1.0} if head else {"shots": 2})
    assert (spent["method"], spent["tokens"]) == (method, 0)
    assert len(frame) == 6
    assert (frame["tokens"] == 0).all() == head
    assert (frame["seconds"] > 0).all()


def test_metaict_reads_the_description_where_there_is_one():
    without, with_it = (
        answered("metaict", {"shots": 2}, task)[0] for task in ("day_after", "described")
    )
    assert with_it["tokens"].sum() > without["tokens"].sum()
    # in meta-training, too: the episodes are those of metaicl, and longer
    plain, instructed = fitted("metaicl"), fitted("metaict")
    assert plain.about == instructed.about
    assert plain.records[0]["tokens"] < instructed.records[0]["tokens"]


@pytest.mark.parametrize("method", ["metaicl", "metaict", "sentence_head", "closed_form"])
def test_all_that_take_no_gradient_are_searched(method):
    learned = fitted(method) if method in META_TRAINED else None
    found = search_settings(given(), FRAME, learned, task="described", method=method)
    assert list(found["number"]) == [0, 1]
    assert found["error"].isna().all()
    assert set(found["backward_tokens"]) == {0}
    assert (found["forward_tokens"] == 0).all() == (method == "sentence_head")


# --- what is searched on --------------------------------------------------------------------------


def test_the_search_is_on_the_policy_s_first_fold(project):
    parameters = read_parameters(loader(project, "named_rules"))
    everything = task_folds(parameters)[0]
    searched = search_fold(parameters, everything)
    assert searched == rollout_folds(parameters, everything)[parameters.meta_train[0]]
    # its warm-up is one that the policy needs anyway
    assert len({fold.label for fold in warmup_folds(parameters)}) == 3
    # nobody is tried on what it was fitted to
    assert not set(searched.tasks) & set(searched.left_out)


def test_with_tasks_of_development_nothing_is_fitted_for_the_search(project):
    parameters = read_parameters(loader(project, "comparison"))
    assert parameters.baselines_from_pool
    assert [fold.label for fold in warmup_folds(parameters)] == [
        fold.label for fold in task_folds(parameters)
    ]


def test_without_folds_every_other_task_is_held_out(project):
    project.edit("smoke/parameters.yml", methods=["base", "icl", "union_train"])
    parameters = read_parameters(loader(project))
    searched = search_fold(parameters, task_folds(parameters)[0])
    assert (searched.left_out, searched.tasks) == (("kind_member",), ("day_after",))
    names = {node.name for node in create_pipeline(parameters).nodes}
    assert "baselines.search.union_train.try_on_kind_member" in names
    assert "baselines.search.icl.choose" in names
    made = create_checkpoints(parameters).all_outputs()
    assert f"{searched.pool}.trajectory" in made
    # everything that the pipeline reads is made by those before it, or is in the catalog as data of a task
    free = create_pipeline(parameters).inputs() - made
    assert {name.split(".")[-1] for name in free if name != PARAMETERS} == {
        "splits",
        "support",
    }


@pytest.mark.parametrize("without", [["a"], ["b"], ["a", "c"], ["a", "b"], ["b", "c", "d"]])
def test_a_task_that_is_left_out_has_no_part_in_its_settings(without):
    names = ("a", "b", "c", "d")
    generator = {**SMOKE["generator"], "leave_out": [without]}
    methods = ["icl", "maml_en_llm", "union_train", "metaicl", "metaicl_union", "degaml"]
    parameters = smoke_parameters(
        dict.fromkeys(names, TASK), meta_train=names, generator=generator, methods=methods
    )
    fold, pipeline = task_folds(parameters)[1], create_pipeline(parameters)
    label = fold.label
    for task in without:
        results = [f"{label}.{task}.{method}.result" for method in methods[:-1]]
        used = pipeline.to_outputs(*results).inputs()
        # of the task it is answered for nothing but the support and the test split
        asked = {name for name in used if name.split(".")[0] in without}
        assert asked <= {f"{one}.{part}" for one in without for part in ("splits", "support")}
        for node in pipeline.to_outputs(*results).nodes:
            if node.namespace.startswith(("baselines.fit", "baselines.search")):
                assert not {f"{one}.splits" for one in without} & set(node.inputs), node.name
    searched = search_fold(parameters, fold)
    assert not set(searched.tasks) & set(without)
    assert (set(searched.left_out) & set(fold.tasks)) or searched == fold


def test_groups_share_what_settings_are_tried_with(project):
    parameters = read_parameters(loader(project, "paper_0_5b"))
    everything, *folds = task_folds(parameters)
    assert len(folds) == len(parameters.meta_train)
    searched = {search_fold(parameters, fold).label for fold in (everything, *folds)}
    assert len(searched) == 2
    names = [node.name for node in create_pipeline(parameters).nodes]
    of_maml = [name for name in names if name.startswith("baselines.search.maml_en_llm.fit")]
    assert len(of_maml) == 2
    assert "baselines.arc_easy.measure_abmll_without_arc_easy" in names


def test_weights_that_saw_a_task_that_is_left_out_are_refused():
    learned = Learned("union_train", start(), about={"tasks": ["a", "day_after"]})
    how = {"task": "day_after", "method": "union_train"}
    material = (given(), {"setting": SFT[0]}, SUPPORT, learned)
    with pytest.raises(BaselineError, match=r"meta-trained on a, day_after, and day_after is"):
        adapt_baseline(*material, **how, seen=False)
    assert adapt_baseline(*material, **how)[1]["task"] == "day_after"


def test_what_reads_the_support_examples_keeps_no_weights_of_a_task(project):
    project.edit("smoke/parameters.yml", methods=["base", *READ_SUPPORT])
    nodes = {node.name: node for node in create_pipeline(read_parameters(loader(project))).nodes}
    for method in READ_SUPPORT:
        inputs = nodes[f"baselines.day_before.predict_{method}"].inputs
        assert (f"{method}.learned" in inputs) == (method in META_TRAINED)
        assert f"baselines.day_before.adapt_{method}" not in nodes


def test_of_two_written_answers_the_likelier_is_taken():
    none = -math.inf
    rows = [
        ([(-3.0, none), 0, "4"], [(none, -2.0), 1, "5"], 1, "5"),
        ([(-1.0, none), 0, "4"], [(none, -2.0), 1, "5"], 0, "4"),
        ([(none, none), None, "x"], [(none, -9.0), 1, "5"], 1, "5"),
        ([(none, none), None, "x"], [(none, none), None, "y"], None, "x"),
    ]
    first, second = (
        pd.DataFrame(
            [
                (i, 0, row[side][1], list(row[side][0]), row[side][2], 1.0, 3)
                for i, row in enumerate(rows)
            ],
            columns=list(PREDICTION_COLUMNS),
        ).astype({"predicted": "Int64"})
        for side in (0, 1)
    )
    found = sum_predictions(first, second)
    assert found["predicted"].tolist() == [pd.NA if r[2] is None else r[2] for r in rows]
    assert found["text"].tolist() == [row[3] for row in rows]
    assert found["tokens"].tolist() == [6] * 4
    assert found.dtypes.equals(first.dtypes)
