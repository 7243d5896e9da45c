"""A runner that starts nodes in the order that serves who waits for them."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import ThreadRunner
from pluggy import PluginManager

from degaml_kedro.pipelines.naming import ALONE, STAGES, stage_of

Turn = tuple[int, int, str]


class StageRunner(ThreadRunner):
    """Kedro's ``ThreadRunner``, which starts waiting nodes stage by stage.

    Kedro hands nodes to its threads as their inputs come, first come, first served, and those that come together in the
    order of a set, which is another one in every process. Sixteen trainings that nothing waits for are then begun
    before the one that everything waits for, and before the first result. Here a free thread takes, of all nodes that
    could run:

    1. the base model's results, which need no training: the first line of the table is there in a minute;
    2. the earliest stage's: later stages wait for it, and what nothing waits for fills the threads it leaves free;
    3. in a stage the one furthest from the beginning: what was begun is finished first.

    A node with the tag ``alone``, which nearly everything waits for, runs by itself, and PyTorch has all threads.

    ``kedro run --runner degaml_kedro.runners.StageRunner``
    """

    def _run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol[Any, Any],
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        self._turns = turns(pipeline)
        super()._run(pipeline, catalog, hook_manager, run_id)

    def _get_executor(self, max_workers: int) -> ThreadPoolExecutor:
        return _InTurn(max_workers, self._turns)


def turns(pipeline: Pipeline) -> dict[Node, Turn]:
    """By node, what it is sorted by: the smallest goes first."""
    return {
        node: (_stage(node), -depth, node.name)
        for depth, group in enumerate(pipeline.grouped_nodes)
        for node in group
    }


def _stage(node: Node) -> int:
    if node.name.endswith((".predict_base", ".measure_base")):
        return -1
    return STAGES.index(stage_of(node))


class _InTurn(ThreadPoolExecutor):
    """Threads that take the waiting task whose turn it is, not the one that came first; some of them run alone.

    What is submitted is a request to run whichever task is then the best. So a future is not that of the task it was
    given for; Kedro asks a future which node it ran.
    """

    def __init__(self, max_workers: int, turns: Mapping[Node, Turn]) -> None:
        super().__init__(max_workers)
        self._turns = turns
        self._tasks: list[tuple[Turn, Callable[[], Any]]] = []
        self._taking = threading.Lock()
        # how many tasks run, and whether one runs alone or waits to
        self._change = threading.Condition()
        self._running, self._alone = 0, False

    def __exit__(self, *error: object) -> None:
        # after a failure what has not begun is not begun; otherwise nothing is left
        self.shutdown(wait=True, cancel_futures=True)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Let a task of Kedro's wait for its turn."""
        with self._taking:
            # names of nodes are unique, so tasks are never compared
            heapq.heappush(self._tasks, (self._turns[fn.node], fn))  # type: ignore[attr-defined]
        return super().submit(self._run_next)

    def _run_next(self) -> Any:
        with self._taking:
            _, task = heapq.heappop(self._tasks)
        with self._place(alone=ALONE in task.node.tags):  # type: ignore[attr-defined]
            return task()

    @contextmanager
    def _place(self, alone: bool) -> Iterator[None]:
        with self._change:
            self._change.wait_for(lambda: not self._alone)
            self._alone = alone
            if alone:
                self._change.wait_for(lambda: not self._running)
            self._running += 1
        before = torch.get_num_threads()
        try:
            if alone:
                torch.set_num_threads(max(before, self._max_workers))
            yield
        finally:
            if alone:
                torch.set_num_threads(before)
            with self._change:
                self._running -= 1
                self._alone = self._alone and not alone
                self._change.notify_all()
