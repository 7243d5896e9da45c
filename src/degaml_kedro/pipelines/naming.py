"""Names of nodes: the stage that a node is of, and its task's name, bound when the pipeline is made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from kedro.pipeline.node import Node

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


def bound(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """A node function with some names filled in; it keeps its own name and can be sent to another process."""
    return update_wrapper(partial(function, **names), function)


def stage_of(node: Node) -> str:
    """The stage of a node: one of ``STAGES``, by the first part of its namespace."""
    stage = (node.namespace or "").partition(".")[0]
    return stage if stage in STAGES else "other"
