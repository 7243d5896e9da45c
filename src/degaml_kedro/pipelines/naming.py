"""How nodes get their task's name: bound when the pipeline is made, so that it is in the node's signature."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

# the tag of nodes that nearly everything waits for: StageRunner runs them by themselves
ALONE = "alone"


def bound(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """A node function with some names filled in; it keeps its own name and can be sent to another process."""
    return update_wrapper(partial(function, **names), function)
