"""Runners: one that starts nodes in the order that serves who waits for them, and one for a Ray cluster."""

from __future__ import annotations

import functools
import heapq
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from kedro.framework.hooks.manager import _NullPluginManager
from kedro.framework.startup import bootstrap_project
from kedro.io import CatalogProtocol, DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import AbstractRunner, ThreadRunner
from kedro.runner.task import Task
from kedro.utils import find_kedro_project
from pluggy import PluginManager

from degaml_kedro.common.errors import DegamlError
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

    A node with the tag ``alone``, which nearly everything waits for, runs by itself, and PyTorch has all threads: sums
    are rounded otherwise than with one thread, so numbers differ from those of Kedro's runners in their last bits.

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


# --- a Ray cluster ----------------------------------------------------------------------------------

# how often a node is begun again whose worker or machine is gone
RETRIES = 3


class RayRunnerError(DegamlError):
    """A pipeline that cannot run on a Ray cluster."""


class RayRunner(AbstractRunner):
    """Runs every node as a task of Ray, on the cluster that ``RAY_ADDRESS`` names, or on this machine alone.

    A node's tags say what it takes: ``cpu_2``, ``gpu``, ``gpu_0.5``, ``memory_8e9`` (bytes); without one it is one CPU.
    Where the cluster has no GPU none is asked for. Every machine needs the project under the same path, and the data
    folder on a disk that all share: nodes hand each other nothing but what the catalog keeps. A node whose worker is
    gone is begun again elsewhere, ``RETRIES`` times, from what its datasets kept of it. Hooks run in this process
    alone, so it alone logs to MLflow.

    ``kedro run --runner degaml_kedro.runners.RayRunner``
    """

    def __init__(self, is_async: bool = False) -> None:
        """Look for Ray.

        Raises:
            RayRunnerError: it is not installed, or ``--async`` was given, which nodes that yield cannot have.
        """
        try:
            import ray
        except ImportError as error:
            raise RayRunnerError(
                f"RayRunner needs Ray ({error}); install it with: pip install '.[ray]'"
            ) from error
        if is_async:
            raise RayRunnerError("RayRunner has no --async; leave it out")
        super().__init__()
        self._ray: Any = ray

    def _run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol[Any, Any],
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        handed_over = pipeline.all_outputs() & pipeline.all_inputs()
        kept = [name for name in handed_over if isinstance(catalog.get(name), MemoryDataset)]
        if kept:
            raise RayRunnerError(
                f"{', '.join(sorted(kept))} would stay in the memory of the worker that makes it; give it an entry in "
                f"the catalog"
            )
        if not self._ray.is_initialized():
            self._ray.init(logging_level="WARNING")
        super()._run(pipeline, catalog, hook_manager, run_id)

    def _get_required_workers_count(self, pipeline: Pipeline) -> int:
        return len(pipeline.nodes)

    def _get_executor(self, max_workers: int) -> Executor:
        return _Cluster(self._ray)


class _Cluster(Executor):
    """Sends Kedro's tasks to Ray."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._project = str(find_kedro_project(Path.cwd()) or Path.cwd())
        self._has_gpu = ray.cluster_resources().get("GPU", 0) > 0
        self._remote = ray.remote(_run_node)
        self._sent: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send a node, with the datasets that it reads and writes."""
        assert isinstance(fn, Task)
        node = fn.node
        datasets: Any = {name: fn.catalog.get(name) for name in (*node.inputs, *node.outputs)}
        options = {"name": node.name, "max_retries": RETRIES, **resources(node)}
        if not self._has_gpu:
            options.pop("num_gpus", None)
        sent = self._remote.options(**options).remote(
            node, DataCatalog(datasets), fn.run_id, self._project
        )
        self._sent.append(sent)
        done: Future[Any] = Future()
        sent.future().add_done_callback(functools.partial(_hand_over, node, done))
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """After a failure: end what still runs. It is begun again in the next run."""
        for sent in self._sent:
            self._ray.cancel(sent, force=True)


def _hand_over(node: Node, done: Future[Any], ended: Future[Any]) -> None:
    """End Kedro's future as Ray's ended: with the node, or with the error that it raised."""
    error = ended.exception()
    if error is None:
        done.set_result(node)
    else:
        done.set_exception(getattr(error, "cause", None) or error)


def resources(node: Node) -> dict[str, float]:
    """What a node asks of a cluster, by its tags: ``num_cpus``, ``num_gpus`` and ``memory`` in bytes.

    Raises:
        RayRunnerError: the amount of a tag is no number.
    """
    asked: dict[str, float] = {"num_cpus": 1}
    names = {"cpu": "num_cpus", "gpu": "num_gpus", "memory": "memory"}
    for tag in node.tags:
        kind, _, amount = tag.partition("_")
        if kind in names:
            try:
                asked[names[kind]] = float(amount or 1)
            except ValueError:
                raise RayRunnerError(
                    f"the node {node.name} has the tag '{tag}'; it is like cpu_2, gpu, gpu_0.5 or memory_8e9"
                ) from None
    return asked


def _run_node(node: Node, catalog: DataCatalog, run_id: str | None, project: str) -> None:
    """Run a node in a worker of the cluster."""
    _bootstrap(project)
    no_hooks: Any = _NullPluginManager()
    Task(node, catalog, is_async=False, hook_manager=no_hooks, run_id=run_id).execute()


@functools.cache
def _bootstrap(project: str) -> None:
    """Set the project up, once a worker."""
    bootstrap_project(Path(project))
