"""Names of nodes and of their common input: the stage that a node is of, and its task's name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from kedro.pipeline.node import Node

# the dataset of all parameters as one ProjectParameters: `ParametersHook` puts it into the catalog
PARAMETERS = "project_parameters"

# in the order of the data flow; `other` holds the nodes of somebody else's pipelines
STAGES = (
    "tasks",
    "checkpoints",
    "tokenize",
    "generator",
    "policy",
    "baselines",
    "evaluate",
    "report",
    "other",
)

# the tag of nodes that nearly everything waits for: StageRunner runs them by themselves
ALONE = "alone"


def bound(function: Callable[..., Any], *first: Any, **names: Any) -> Callable[..., Any]:
    """A node function with its first arguments and some names filled in.

    It keeps its own name and can be sent to another process.
    """
    return update_wrapper(partial(function, *first, **names), function)


def stage_of(node: Node) -> str:
    """The stage of a node: one of ``STAGES``, by the first part of its namespace."""
    stage = (node.namespace or "").partition(".")[0]
    return stage if stage in STAGES else "other"
