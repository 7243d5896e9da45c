"""Names of nodes and of their common input: the stage that a node is of, and its task's name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from kedro.pipeline import node
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


def nodes_in(namespace: str, suffix: str = "") -> Callable[..., Node]:
    """A function that makes nodes of a namespace; a node is called as its function, or ``name``, with the suffix.

    What else it is given are arguments of the node's function that are no data.
    """

    def make(
        function: Callable[..., Any],
        inputs: Any,
        outputs: Any,
        name: str | None = None,
        tags: str | None = None,
        **given: Any,
    ) -> Node:
        filled = bound(function, **given) if given else function
        own = f"{name or function.__name__}{suffix}"
        return node(filled, inputs, outputs, name=own, namespace=namespace, tags=tags)

    return make


def stage_of(made: Node) -> str:
    """The stage of a node: one of ``STAGES``, by the first part of its namespace."""
    stage = (made.namespace or "").partition(".")[0]
    return stage if stage in STAGES else "other"
