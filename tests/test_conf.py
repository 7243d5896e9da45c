"""The configuration that is shipped."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml
from benchmarks.paper_decoder import PAPER_FLOWS

from degaml_kedro.adapters.adapter import tensor_key
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.config.loader import ProjectConfigLoader, check_action_space, read_parameters
from degaml_kedro.config.schema import HubModel, HubSource, HyperconvolutionalDecoder, SuiteSource
from degaml_kedro.generator.decoders.build import ConditionSize, whole_flow
from degaml_kedro.pipeline_registry import register_pipelines
from degaml_kedro.settings import CONFIG_LOADER_ARGS
from degaml_kedro.tasks.hub import MAPPINGS
from degaml_kedro.tasks.suite import FAMILIES
from tests.conftest import ROOT
from tests.test_configuration import ENVIRONMENTS, NEEDED, loader

PAPER = ("paper_0_5b", "paper_1_5b")
# hidden, key and value, intermediate width and layers of Qwen2.5-0.5B and 1.5B
SMALL = (896, 128, 4864, 24)
LARGE = (1536, 256, 8960, 28)


@pytest.fixture
def shipped(bootstrapped):
    """The parameters of an environment, each read once."""
    yield _shipped
    ProjectConfigLoader.current = None


@cache
def _shipped(env):
    given = NEEDED.get(env, {})
    return read_parameters(
        ProjectConfigLoader(ROOT / "conf", env, runtime_params=given, **CONFIG_LOADER_ARGS)
    )


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_environment_is_valid(shipped, env):
    check_action_space(shipped(env))


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_task_has_a_source_that_exists(shipped, env):
    parameters = shipped(env)
    for task in parameters.tasks.values():
        if isinstance(task.source, SuiteSource):
            assert task.group
            assert task.source.family in FAMILIES
        elif isinstance(task.source, HubSource):
            assert task.source.mapping in MAPPINGS


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_a_profile_is_called_as_its_environment(shipped, env):
    """The command that a run records, and the report prints, takes one for the other."""
    others = {"local": "embedded"}
    assert shipped(env).profile == others.get(env, env)


@pytest.mark.parametrize("env", PAPER)
def test_the_paper_s_numbers(shipped, env):
    parameters = shipped(env)
    assert len(parameters.meta_train) == len((*parameters.meta_test, *parameters.absent)) == 6
    assert parameters.absent == ("jama",)
    assert [(p.steps, p.learning_rate) for p in parameters.trajectory.training.phases] == [
        (75, 1e-4),
        (50, 1e-5),
    ]
    assert parameters.trajectory.training.batch_size == 32
    assert parameters.trajectory.training.max_examples == 5000
    assert parameters.trajectory_is_no_meta_train
    assert parameters.seed == parameters.lora.initialization_seed == 999
    assert parameters.lora.alpha == 2 * parameters.lora.rank


def rehearsed() -> dict[str, Any]:
    """The parameters that `kedro run --config conf/rehearsal.yml` gives."""
    return yaml.safe_load((ROOT / "conf/rehearsal.yml").read_text())["run"]["params"]


def leaves(group: dict[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value with the keys that lead to it; a source is one value."""
    for name, value in group.items():
        if isinstance(value, dict) and name != "source":
            yield from leaves(value, *path, name)
        else:
            yield (*path, name), value


def test_a_rehearsal_is_the_paper_s_profile_but_for_what_it_says(project):
    found = []
    for given in ({}, rehearsed()):
        parameters = read_parameters(loader(project, "paper_0_5b", **given))
        graph = {
            (name, node.name, *node.inputs, "->", *node.outputs)
            for name, pipeline in register_pipelines().items()
            for node in pipeline.nodes
        }
        found.append((dict(leaves(parameters.model_dump())), graph))
    (paper, whole), (small, graph) = found
    assert graph == whole
    assert len({node for pipeline, node, *_ in graph if pipeline == "__default__"}) > 1000
    assert paper.keys() == small.keys()
    changed = {path for path, value in paper.items() if small[path] != value}
    said = {path for path, _ in leaves(rehearsed())}
    # a value of `scoring` or `splits` of a task is written beside the group's others
    assert changed <= said
    assert small["model", "source"]["kind"] == "random"


def test_the_paper_s_tasks_may_be_learned_from_examples_with_any_model(project, shipped):
    own = project, "paper_examples"
    parameters = read_parameters(loader(*own, model={"source": {"id": "some/model"}}))
    assert isinstance(parameters.model.source, HubModel)
    assert parameters.model.source.id == "some/model"
    assert parameters.trained_variants == ("mse", "examples")
    assert parameters.writer_variant == "examples"
    paper = shipped("paper_0_5b")
    assert parameters.generator == paper.generator
    assert (paper.trained_variants, paper.writer_variant) == (("mse",), None)


def test_the_embedded_profile_is_scored_on_development_pools_alone(shipped):
    """`make run` may be repeated as often as one likes; final pools are scored once."""
    parameters = shipped("local")
    sources = [parameters.tasks[name].source for name in parameters.meta_test]
    assert {source.pool for source in sources} == {"development"}
    assert {source.unseen for source in sources} == {"rules", "domains", "labels", "templates"}


@pytest.mark.parametrize(("env", "sizes"), [("paper_0_5b", SMALL), ("paper_1_5b", LARGE)])
def test_the_paper_s_decoder_ends_on_its_model_s_grid(shipped, env, sizes):
    parameters = shipped(env)
    generator = parameters.generator
    assert generator is not None
    hidden, kv, intermediate, layers = sizes
    widths = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, kv),
        "self_attn.v_proj": (hidden, kv),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, intermediate),
        "mlp.up_proj": (hidden, intermediate),
        "mlp.down_proj": (intermediate, hidden),
    }
    rank = parameters.lora.rank
    shapes = {}
    for layer in range(layers):
        for module, (inputs, outputs) in widths.items():
            name = f"model.layers.{layer}.{module}"
            shapes[tensor_key(name, "A")] = (rank, inputs)
            shapes[tensor_key(name, "B")] = (outputs, rank)
    grid = TokenGrid.from_shapes(shapes, generator.tokenization.token_width)
    (name,) = parameters.trained_variants
    variant = generator.variants[name]
    # the encoder's width is all-MiniLM-L6-v2's
    condition = ConditionSize(generator.prompts, generator.encoder.tokens, 384)
    assert isinstance(variant.decoder, HyperconvolutionalDecoder)
    flow = whole_flow(variant.decoder, grid, condition)
    assert flow == PAPER_FLOWS[{"paper_0_5b": "qwen2.5-0.5b", "paper_1_5b": "qwen2.5-1.5b"}[env]]
    assert variant.training.sft == 0
    # in-domain results come from generators that never saw the task
    assert [name for group in generator.leave_out for name in group] == list(parameters.meta_train)
