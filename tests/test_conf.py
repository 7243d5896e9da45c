"""The configuration that is shipped."""

from __future__ import annotations

import pytest

from degaml_kedro.parameters import HubSource, SuiteSource
from degaml_kedro.tasks.hub import MAPPINGS
from degaml_kedro.tasks.suite import FAMILIES
from tests.test_configuration import ENVIRONMENTS, NEEDED, loader, read_parameters

PAPER = ("paper_0_5b", "paper_1_5b")


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_task_has_a_source_that_exists(project, env):
    parameters = read_parameters(loader(project, env, **NEEDED.get(env, {})))
    for task in parameters.tasks.values():
        if isinstance(task.source, SuiteSource):
            assert task.group == FAMILIES[task.source.family].group
        elif isinstance(task.source, HubSource):
            assert task.source.mapping in MAPPINGS


@pytest.mark.parametrize("env", PAPER)
def test_the_paper_s_numbers(project, env):
    parameters = read_parameters(loader(project, env))
    assert len(parameters.meta_train) == len(parameters.meta_test) == 6
    assert [(p.steps, p.learning_rate) for p in parameters.trajectory.training.phases] == [
        (75, 1e-4),
        (50, 1e-5),
    ]
    assert parameters.trajectory.training.batch_size == 32
    assert parameters.trajectory.training.max_examples == 5000
    assert parameters.trajectory_is_no_meta_train
    assert parameters.seed == parameters.lora.initialization_seed == 999
    assert parameters.lora.alpha == 2 * parameters.lora.rank


def test_the_embedded_profile_has_the_pools_it_promises(project):
    parameters = read_parameters(loader(project, "local"))
    assert len(parameters.meta_train) >= 8
    assert len(parameters.meta_test) >= 6
