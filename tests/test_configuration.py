"""What is wrong with the configuration is said in a sentence with the key, the value and what is allowed."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml

from degaml_kedro.config.loader import (
    ConfigurationError,
    ProjectConfigLoader,
    current_loader,
    read_parameters,
)
from degaml_kedro.config.schema import HubModel, RandomModel, task_scoring
from degaml_kedro.pipeline_registry import with_baselines
from degaml_kedro.settings import CONFIG_LOADER_ARGS
from tests.conftest import ROOT


def loader(project, env="smoke", **parameters):
    return ProjectConfigLoader(project.conf, env, runtime_params=parameters, **CONFIG_LOADER_ARGS)


def mistake(project, **parameters):
    with pytest.raises(ConfigurationError) as caught:
        read_parameters(loader(project, **parameters))
    return str(caught.value)


def _messages() -> str:
    """A folder with a file of made-up messages, of the groups that `conf/messages` and its pools name."""
    content = yaml.safe_load((ROOT / "conf/base/parameters_distributions.yml").read_text())
    groups = {group for one in content["distributions"].values() for group in one.get("groups", ())}
    nested = {
        group: {
            f"{group} {intent}": {
                split: [f"{group} {intent} {split} {number}" for number in range(count)]
                for split, count in (("train", 30), ("test", 20))
            }
            for intent in range(8)
        }
        for group in sorted(groups)
    }
    folder = Path(tempfile.mkdtemp(prefix="messages"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "clinc150.json").write_text(json.dumps(nested))
    return str(folder)


# what an environment wants to be told
NEEDED = {"files": {"datasets": "x"}, "messages": {"datasets": _messages()}}
ENVIRONMENTS = sorted(
    path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "base"
)


def test_a_source_of_another_kind_keeps_no_key_of_the_one_before(project):
    """The embedded profile's has a package, the paper's an id and a revision."""
    for env in ("base", "paper_0_5b"):
        given = {"model": {"source": {"kind": "random", "layers": 1}}}
        model = read_parameters(loader(project, env, **given)).model
        assert model.source == RandomModel(kind="random", layers=1)
        assert model.device == "auto"
    # of the same kind it keeps them
    given = {"model": {"source": {"kind": "hub", "revision": "other"}}}
    source = read_parameters(loader(project, "paper_0_5b", **given)).model.source
    assert source == HubModel(kind="hub", id="Qwen/Qwen2.5-0.5B-Instruct", revision="other")


@pytest.mark.parametrize("path", ["data/01_raw/jama.csv", "own/jama_{split}.csv"])
def test_a_task_whose_optional_file_is_not_there_is_in_no_pool(
    project, path, tmp_path, monkeypatch, caplog
):
    project.edit("base/parameters_hub_tasks.yml", tasks={"jama": {"source": {"path": path}}})
    monkeypatch.chdir(tmp_path)
    without = read_parameters(loader(project, "paper_0_5b"))
    assert without.absent == ("jama",)
    assert without.meta_test == ("gsm8k", "math", "divlogiceval", "socialiqa", "codemmlu")
    with project.session("paper_0_5b") as session:
        session.load_context()
    assert f"Without jama: its file {path} is not there. JAMA Clinical Challenge." in caplog.text
    file = tmp_path / path.replace("{split}", "test")
    file.parent.mkdir(parents=True)
    file.write_text("")
    there = read_parameters(loader(project, "paper_0_5b"))
    assert (there.absent, there.meta_test[-1]) == ((), "jama")
    # any other file that is not there stops the run
    project.edit("base/parameters_hub_tasks.yml", tasks={"jama": {"source": {"optional": None}}})
    file.unlink()
    assert read_parameters(loader(project, "paper_0_5b")).absent == ()


def test_a_file_may_ask_the_command_line(project):
    source = {"kind": "file", "path": "${runtime_params:datasets}/a.json"}
    project.edit("smoke/parameters.yml", tasks={"day_after": {"source": None}})
    project.edit("smoke/parameters.yml", tasks={"day_after": {"source": source}})
    with pytest.raises(
        ConfigurationError, match=r"tasks\.day_after\.source\.path .*'datasets' .*--params"
    ):
        read_parameters(loader(project))
    given = loader(project, datasets="/data")
    assert read_parameters(given).tasks["day_after"].source.path == "/data/a.json"


def test_every_loader_of_a_process_has_its_own_values(project):
    """Globals that the command line fills in, and groups of another environment."""
    for seed in (1, 2):
        data = loader(project, "comparison", seed=seed)["globals"]["data"]
        assert data == f"data/comparison/seed_{seed}"
    project.edit("paper_0_5b/parameters.yml", seed=7)
    assert read_parameters(loader(project, "paper_1_5b")).seed == 7


def test_an_unknown_key_names_its_place_and_the_nearest_one(project):
    project.edit("smoke/parameters.yml", trajectory={"training": {"batchsize": 4}})
    message = mistake(project)
    assert "unknown key 'batchsize' in trajectory.training" in message
    assert "did you mean 'batch_size'?" in message


def test_an_unknown_key_that_is_near_nothing_lists_what_there_is(project):
    project.edit("smoke/parameters.yml", zzz=1)
    assert "unknown key 'zzz' in the parameters" in mistake(project)
    assert "there are profile, seed, model" in mistake(project)


def test_a_value_out_of_range(project):
    project.edit("smoke/parameters.yml", lora={"rank": 0})
    assert "lora.rank is 0: " in mistake(project)
    assert "greater than or equal to 1" in mistake(project)


def test_a_value_inside_a_list(project):
    project.edit("smoke/parameters.yml", warmup={"phases": [{"steps": -1, "learning_rate": 1e-3}]})
    assert "warmup.phases.0.steps is -1" in mistake(project)


def test_a_missing_key_is_looked_for_in_its_group(project):
    project.edit("smoke/parameters.yml", warmup={"phases": None})
    message = mistake(project)
    assert "warmup.phases is missing" in message


def test_all_mistakes_are_named_at_once(project):
    project.edit("smoke/parameters.yml", seed=-1, profil="x")
    assert len(mistake(project).splitlines()) == 2


def test_an_unknown_kind_of_source_lists_the_kinds(project):
    project.edit("smoke/parameters.yml", tasks={"day_after": {"source": {"kind": "suit"}}})
    message = mistake(project)
    assert "tasks.day_after.source.kind is 'suit'" in message
    assert "'suite', 'file', 'hub'" in message


def test_a_key_of_another_kind_of_source(project):
    project.edit("smoke/parameters.yml", tasks={"day_after": {"source": {"famly": "x"}}})
    message = mistake(project)
    assert "unknown key 'famly' in tasks.day_after.source" in message
    assert "did you mean 'family'?" in message


def test_an_unknown_mode(project):
    project.edit("smoke/parameters.yml", scoring={"mode": "words"})
    assert "scoring.mode is 'words'" in mistake(project)
    assert "'letter', 'text' or 'generate'" in mistake(project)


def test_an_unknown_task_in_a_pool(project):
    project.edit("smoke/parameters.yml", meta_test=["nights"])
    message = mistake(project)
    assert "meta_test names the unknown task(s) nights" in message
    assert "day_after" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"meta_train": ["day_after", "day_after"]}, "names a task twice"),
        ({"meta_test": ["day_after"]}, "in both meta_train and meta_test"),
        ({"rollout_tasks": ["day_after"]}, "in both meta_train and rollout_tasks"),
        (
            {
                "rollout_tasks": ["month_after"],
                "policy": {"iterations": 1},
                "tasks": {"month_after": {"source": {"kind": "suite", "family": "month_after"}}},
            },
            "iterations after the first",
        ),
        (
            {
                "rollout_tasks": ["month_after"],
                "tasks": {
                    "month_after": {
                        "source": {"kind": "suite", "family": "month_after"},
                        "splits": {"train": 8, "support": 4, "validation": 0, "test": 4},
                    }
                },
            },
            "rewarded on validation examples",
        ),
        ({"methods": ["base", "base"]}, "names a method twice"),
        ({"tasks": {"day_after": {"scoring": "letter"}}}, "are letters, those of others texts"),
        (
            {"tasks": {"pool": {"source": {"kind": "suite", "family": "day_after"}}}},
            "called 'pool'",
        ),
    ],
)
def test_what_does_not_go_together(project, changes, expected):
    project.edit("smoke/parameters.yml", **changes)
    assert expected in mistake(project)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (
            {"kind": "utility", "noise": 0.1},
            "reward.noise is 0.1, but .* with kind 'utility' there are none; leave it out",
        ),
        (
            {"kind": "improvement", "price_per_second": 0.005},
            "reward.price_per_second is 0.005, but with kind 'improvement' .* kind: utility",
        ),
        ({"price_per_second": 0.005}, "seconds have no price"),
    ],
)
def test_a_key_of_the_reward_that_would_do_nothing(project, reward, expected):
    project.edit("smoke/parameters.yml", policy={"reward": reward})
    message = mistake(project)
    assert re.search(expected, message)


@pytest.mark.parametrize(
    "reward",
    [
        {"kind": "utility", "price_per_second": 0.005, "noise": 0.0},
        {"kind": "improvement", "noise": 0.1, "price_per_second": 0.0},
    ],
)
def test_keys_of_the_reward_that_do_something(project, reward):
    project.edit("smoke/parameters.yml", policy={"reward": reward})
    read_parameters(loader(project))


# --- the generator --------------------------------------------------------------------------------

FACTORIZED = {"kind": "factorized"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"leave_out": [["day_before"]]}, "has the group [day_before]; a group names meta-train"),
        ({"leave_out": [["nights"]]}, "each once: kind_member, day_after"),
        ({"leave_out": [[]]}, "has the group []"),
        ({"leave_out": [["day_after", "day_after"]]}, "has the group [day_after, day_after]"),
        ({"leave_out": [["day_after", "kind_member"]]}, "leaves out every meta-train task"),
        ({"leave_out": [["day_after"], ["day_after"]]}, "leaves a task out in two groups"),
        (
            {"variants": {"mse": {"training": {"mse": 0.0}}}},
            "mse and sft are both 0, so there is nothing to train on",
        ),
        ({"prompts": 0}, "generator.prompts is 0: "),
        ({"draws": 0}, "generator.draws is 0: "),
        ({"tokenization": {"token_width": 0}}, "generator.tokenization.token_width is 0: "),
        ({"tokenization": {"center": "median"}}, "generator.tokenization.center is 'median': "),
        ({"encoder": {"tokens": 0}}, "generator.encoder.tokens is 0: "),
        ({"encoder": {"source": {"kind": "bert"}}}, "generator.encoder.source.kind is 'bert'; use"),
        (
            {"variants": {"mse": {"decoder": {"kind": "mlp"}}}},
            "generator.variants.mse.decoder.kind is 'mlp'; use",
        ),
        (
            {"variants": {"mse": {"training": {"stepps": 1}}}},
            "unknown key 'stepps' in generator.variants.mse.training; ",
        ),
        (
            {"variants": {"mse": {"decoder": {"widht": 1}}}},
            "did you mean 'width'?",
        ),
        (
            {"variants": {"mse": {"training": {"sft": -1}}}},
            "generator.variants.mse.training.sft is -1: ",
        ),
    ],
)
def test_a_mistake_in_the_generator_s_parameters(project, changes, expected):
    project.edit("smoke/parameters.yml", generator=changes)
    assert expected in mistake(project)


def test_a_flow_needs_sizes_of_three_numbers(project):
    for flow in ([], [[3, 24], [4, 18]]):
        decoder = {"kind": "hyperconvolutional", "flow": flow}
        project.edit("smoke/parameters.yml", generator={"variants": {"mse": {"decoder": None}}})
        project.edit("smoke/parameters.yml", generator={"variants": {"mse": {"decoder": decoder}}})
        assert "generator.variants.mse.decoder.flow" in mistake(project)


@pytest.mark.parametrize(
    "method", ["generalisation_only", "generalization_only_all", "other_prompts_", "mean"]
)
def test_an_unknown_method_lists_what_there_is(project, method):
    project.edit("smoke/parameters.yml", methods=["base", method])
    message = mistake(project)
    assert f"unknown method '{method}'" in message
    known = ("base", "no_meta_train", "pooled", "mean_adapter", "generalization_only")
    for name in (*known, "generalization_only_sft", "other_prompts", "other_prompts_mse"):
        assert name in message.split("use of: ")[1].split(", "), name


def test_a_generated_method_needs_a_generator(project):
    for folder in ("base", "smoke"):
        project.edit(f"{folder}/parameters.yml", generator=None)
    assert "the method degaml needs the key 'generator'" in mistake(project)
    project.edit("smoke/parameters.yml", methods=["base", "generalization_only"])
    message = mistake(project)
    assert "unknown method 'generalization_only'" in message
    assert "other_prompts" not in message.split("use of: ")[1]


def test_methods_say_which_variants_are_trained(project):
    project.edit(
        "smoke/parameters.yml", methods=["base", "other_prompts", "generalization_only_sft"]
    )
    parameters = read_parameters(loader(project))
    assert parameters.generated_methods == {
        "other_prompts": "mse",
        "generalization_only_sft": "sft",
    }
    assert parameters.trained_variants == ("mse", "sft")
    project.edit("smoke/parameters.yml", methods=["base", "generalization_only_sft"])
    assert read_parameters(loader(project)).trained_variants == ("sft",)


def test_a_mistake_on_the_command_line(project):
    assert "seed is -1" in mistake(project, seed=-1)
    assert "unknown key 'sede' in the parameters" in mistake(project, sede=1)


def test_the_command_line_changes_one_key_of_a_group_and_nothing_else(project):
    # base has the group, smoke does not
    project.edit("smoke/parameters.yml", splits=None)
    base = read_parameters(loader(project)).splits
    changed = read_parameters(loader(project, splits={"test": 9})).splits
    assert changed.test == 9
    assert changed.model_copy(update={"test": base.test}) == base
    # both have it: the environment's stands
    assert read_parameters(loader(project, lora={"rank": 3})).lora.alpha == 4.0
    assert read_parameters(loader(project, seed=5)).seed == 5


def test_bad_yaml_names_the_file(project):
    (project.conf / "smoke/parameters.yml").write_text("profile: [unclosed\nseed: 1")
    with pytest.raises(ConfigurationError, match=r"smoke/parameters\.yml"):
        read_parameters(loader(project))


def test_an_unknown_environment_names_the_nearest(project):
    with pytest.raises(ConfigurationError, match="no environment 'smok' .* did you mean 'smoke'"):
        loader(project, "smok")


def test_outside_a_session_the_environment_variable_decides(project, monkeypatch):
    ProjectConfigLoader.current = None
    monkeypatch.setenv("KEDRO_ENV", "smoke")
    assert read_parameters(current_loader()).profile == "smoke"
    monkeypatch.setenv("KEDRO_ENV", "local")
    assert read_parameters(current_loader()).profile == "smoke", "the loader is remembered"
    ProjectConfigLoader.current = None
    assert read_parameters(current_loader()).profile == "embedded"


def test_every_baseline_gets_as_many_settings(project):
    one = [{"steps": 1, "learning_rate": 1e-3}]
    project.edit("smoke/parameters.yml", baselines={"union_train": {"settings": one}})
    message = mistake(project)
    assert "same number of settings" in message
    assert "union_train 1" in message
    assert "icl 2" in message


@pytest.mark.parametrize(
    ("method", "entry"),
    [
        ("abmll", "abmll"),
        ("maml_en_llm_first_order", "maml_en_llm"),
        ("icl", "icl"),
        ("metaict", "metaicl"),
        ("sentence_head", "sentence_head"),
        ("closed_form", "closed_form"),
    ],
)
def test_a_baseline_needs_its_entry(project, method, entry):
    for folder in ("base", "smoke"):
        project.edit(f"{folder}/parameters.yml", baselines={entry: None})
    project.edit("smoke/parameters.yml", methods=["base", method])
    assert f"the method {method} needs the key 'baselines.{entry}'" in mistake(project)


def test_a_sentence_head_needs_an_encoder(project):
    project.edit("smoke/parameters.yml", methods=["base", "sentence_head"])
    for folder in ("base", "smoke"):
        project.edit(f"{folder}/parameters.yml", generator=None, policy=None)
    assert "sentence_head reads questions with generator.encoder" in mistake(project)
    # asked for by its name the pipeline runs the others
    project.edit("smoke/parameters.yml", methods=["base"])
    added = with_baselines(read_parameters(loader(project))).methods
    assert "metaict" in added
    assert "sentence_head" not in added


def test_settings_are_chosen_on_tasks_that_are_held_out(project):
    project.edit("smoke/parameters.yml", methods=["base", "icl"], generator={"leave_out": []})
    project.edit("smoke/parameters.yml", meta_train=["day_after"])
    assert "name at least two" in mistake(project)


def test_baselines_need_validation_examples(project):
    project.edit("smoke/parameters.yml", methods=["base", "icl"], splits={"validation": 0})
    assert "set splits.validation" in mistake(project)


@pytest.mark.parametrize(
    ("scoring", "expected"),
    [
        ({"extraction": "numbr"}, ["scoring.extraction", "'letter', 'number' or 'text'"]),
        ({"extraction": {"regex": "(a"}}, ["extraction.regex is no regular expression"]),
        ({"extraction": {"regex": "a", "takes": "last"}}, ["unknown key 'takes'", "'take'"]),
        ({"extraction": {"regex": "a", "take": "second"}}, ["'first' or 'last'"]),
        ({"extraction": {"regex": "a" * 501}}, ["scoring.extraction"]),
        ({"extraction": {}}, ["scoring.extraction", "regex"]),
    ],
)
@pytest.mark.parametrize("place", ["scoring", "task"])
def test_an_extraction_that_is_none_is_named(project, scoring, expected, place):
    changes = {"scoring": scoring}
    if place == "task":
        changes = {"tasks": {"day_before": changes}}
    project.edit("smoke/parameters.yml", **changes)
    message = mistake(project)
    assert all(part in message for part in expected), message


def test_a_task_is_scored_as_the_profile_says_but_for_its_own_values(project):
    own = {"mode": "generate", "extraction": {"regex": "x", "take": "last"}}
    tasks = {"day_before": {"scoring": own}, "day_after": {"scoring": "letter"}}
    project.edit("smoke/parameters.yml", tasks=tasks, scoring={"batch_tokens": 100})
    project.edit("smoke/parameters.yml", trajectory={"start": "shared_random"}, methods=["base"])
    parameters = read_parameters(loader(project))
    before, after = (parameters.scoring_of(name) for name in ("day_before", "day_after"))
    assert (before.mode, before.extraction.take, before.batch_tokens) == ("generate", "last", 100)
    assert (before.answers, before.is_open, after.mode, after.room) == ("text", True, "letter", 0)
    raw = loader(project)["parameters"]
    assert task_scoring(raw["scoring"], raw["tasks"]["day_before"]) == before


def test_open_questions_need_answers_that_are_written(project):
    entry = {"source": {"kind": "file", "path": "x.csv", "open_answers": True, "family": None}}
    project.edit("smoke/parameters.yml", tasks={"day_before": entry})
    assert "the questions of day_before have no options" in mistake(project)
    project.edit("smoke/parameters.yml", tasks={"day_before": {"scoring": "generate"}})
    assert "the questions of day_before have no options" in mistake(project)
    scoring = {"mode": "generate", "extraction": "number"}
    project.edit("smoke/parameters.yml", tasks={"day_before": {"scoring": scoring}})
    assert "sentence_head chooses among the answers" in mistake(project)
    smoke = yaml.safe_load((project.conf / "smoke/parameters.yml").read_text())
    methods = [name for name in smoke["methods"] if name != "sentence_head"]
    project.edit("smoke/parameters.yml", methods=methods)
    assert read_parameters(loader(project)).scoring_of("day_before").is_open


def test_what_starts_from_the_pool_asks_for_the_pool(project):
    project.edit(
        "smoke/parameters.yml",
        methods=["base", "union_train", "maml_en_llm", "icl"],
        trajectory={"start": "shared_random"},
    )
    parameters = read_parameters(loader(project))
    assert parameters.baselines_from_pool == ("union_train", "maml_en_llm")
    assert parameters.needs_warmup
    project.edit("smoke/parameters.yml", baselines={"maml_en_llm": {"start": "shared_random"}})
    project.edit("smoke/parameters.yml", methods=["base", "maml_en_llm", "icl"])
    parameters = read_parameters(loader(project))
    assert parameters.baselines_from_pool == ()
    assert not parameters.needs_warmup
