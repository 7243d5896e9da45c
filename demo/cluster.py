"""Adaptations on a Ray cluster: an actor for each that goes on at once, which keeps its models for the next."""

from __future__ import annotations

import importlib
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.session import AdaptationCancelled, AdaptedModel, Progress, Session
from degaml_kedro.tasks.example import Example

if TYPE_CHECKING:
    from demo.service import Adaptation

_POLL_SECONDS = 0.2
# how often an adaptation is begun again whose worker or machine is gone
_RETRIES = 3
# how long an actor that is to stop may take for its current step, before it is ended
_PATIENCE = 10.0


class AdaptationActor:
    """Adapts in a worker of the cluster, one task at a time, while others ask how far it is."""

    def __init__(self) -> None:
        self._sessions: dict[str | None, Session] = {}
        self._id, self._cancelled = "", threading.Event()
        self._told: list[Progress] = []

    def adapt(
        self,
        run: str,
        source: str | None,
        examples: Sequence[Example],
        how: Mapping[str, Any],
    ) -> tuple[dict[str, bytes], list[Progress]]:
        """The files of the adapted model's folder by name, and the progress that nobody asked for yet."""
        self._id, self._cancelled, self._told = run, threading.Event(), []
        if source not in self._sessions:
            self._sessions[source] = Session.load(source)
        adapted = self._sessions[source].adapt(
            examples,
            **how,
            progress=lambda progress: self._told.append(progress),
            cancel=self._cancelled,
        )
        with tempfile.TemporaryDirectory() as temporary:
            folder = adapted.save(Path(temporary, "adapter"))
            paths = [path for path in folder.rglob("*") if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return files, self.news(0)

    def news(self, pause: float = _POLL_SECONDS) -> list[Progress]:
        """What was reported since the last time, after a pause."""
        time.sleep(pause)
        told, self._told = self._told, []
        return told

    def stop(self, run: str) -> None:
        """Stop an adaptation after its current step, if it is still the one that goes on."""
        if run == self._id:
            self._cancelled.set()


class Cluster:
    """Sends adaptations to a Ray cluster; every thread has an actor of its own, begun again where its worker dies."""

    def __init__(self, address: str) -> None:
        """Connect to the cluster at an address; ``local`` starts one on this machine.

        Raises:
            DegamlError: Ray is not installed, or nothing answers there.
        """
        try:
            ray: Any = importlib.import_module("ray")
            ray.init(address=address, logging_level="WARNING", log_to_driver=False)
        except (ImportError, ConnectionError, ValueError) as error:
            raise DegamlError(
                f"adaptations cannot go to the Ray cluster '{address}' ({error}); pip install '.[ray]', "
                f"and name a cluster that runs (HOST:6379), or 'local'"
            ) from error
        self._ray = ray
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0))
        # one that adapts, one that is asked for news, one that is told to stop
        self._actor_class: Any = ray.remote(AdaptationActor).options(
            num_cpus=1,
            num_gpus=gpus,
            max_concurrency=3,
            max_restarts=-1,
            max_task_retries=_RETRIES,
        )
        # by the thread that it is of
        self._actors: dict[int, Any] = {}

    def adapt(
        self,
        run: Adaptation,
        source: str | None,
        examples: Sequence[Example],
        **how: Any,
    ) -> AdaptedModel:
        """What :meth:`~degaml_kedro.session.Session.adapt` makes, made by this thread's actor.

        Raises:
            DegamlError: as it was raised there.
            AdaptationCancelled: it was stopped.
        """
        if source is not None and Path(source).is_dir():
            source = str(Path(source).resolve())
        thread = threading.get_ident()
        if thread not in self._actors:
            self._actors[thread] = self._actor_class.remote()
        actor = self._actors[thread]
        made = actor.adapt.remote(run.id, source, examples, how)
        news, stopped = actor.news.remote(), None
        while made not in (ready := self._ray.wait([made, news], timeout=_POLL_SECONDS)[0]):
            if news in ready:
                self._tell(run, self._get(news))
                news = actor.news.remote()
            if run.cancelled.is_set():
                stopped = stopped or time.monotonic()
                if time.monotonic() - stopped > _PATIENCE:
                    self._ray.kill(self._actors.pop(thread))
                    raise AdaptationCancelled
                # again and again: an actor that has just begun anew knows nothing of it
                actor.stop.remote(run.id)
        files, told = self._get(made)
        self._tell(run, [*self._get(news), *told])
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "adapter")
            for name, content in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return AdaptedModel.open(folder)

    def close(self) -> None:
        """Leave the cluster; its actors end."""
        self._ray.shutdown()

    def _get(self, reference: Any) -> Any:
        """What a call came to; its error as it was raised."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    @staticmethod
    def _tell(run: Adaptation, told: Sequence[Progress]) -> None:
        for progress in told:
            run.tell(progress)
