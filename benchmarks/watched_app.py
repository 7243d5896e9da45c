"""The page in a process of its own, with a second port that tells what goes on in it.

``python -m benchmarks.watched_app PORT [ARGUMENT …]`` is ``python -m demo [ARGUMENT …]``, and answers on PORT, loopback
only, with the adaptations that run, the adapted models that are alive, the threads, and the memory. The page knows
nothing of it: threads are looked at from outside, and models are counted among the interpreter's objects.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Watched:
    """What goes on in the page's process.

    Attributes:
        running: threads inside of ``Session.adapt``, or that wait for a process that is.
        models: adapted models that something still holds.
        threads: of all kinds.
        rss: resident memory in bytes.
        cpu: seconds of processor time since the start, without what looking has cost.
    """

    running: int
    models: int
    threads: int
    rss: int
    cpu: float


class AppProcess:
    """The page, started and answering.

    Attributes:
        url: where it listens.
        log: the file that its output goes to.
        temporary: its folder for temporary files.
    """

    def __init__(
        self, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it; use :func:`running_app` to have it stopped as well.

        Args:
            folder: for its log and temporary files.
            arguments: of ``python -m demo``, without the port.
            environment: variables besides this process's.
        """
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.log = folder / "app.log"
        port, self._watch_port = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "benchmarks.watched_app", str(self._watch_port)]
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(port), *arguments],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    "HF_HUB_OFFLINE": "1",
                    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
                    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))),
                    "PYTHONUNBUFFERED": "1",
                    "TMPDIR": str(self.temporary),
                    # a page that was made in this process has set it
                    "GRADIO_TEMP_DIR": "",
                    **(environment or {}),
                },
            )

    def wait(self, seconds: float = 120) -> None:
        """Wait until it answers.

        Raises:
            RuntimeError: it ended, or is not there in time; with its last words.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the page ended with {self.process.returncode}: {self.words()}")
            with (
                contextlib.suppress(OSError, urllib.error.URLError),
                urllib.request.urlopen(f"{self.url}/config", timeout=5) as answer,
            ):
                if answer.status == 200:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"the page does not answer after {seconds:g} s: {self.words()}")

    def words(self, characters: int = 3000) -> str:
        """The end of what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    def watch(self) -> Watched:
        """What goes on in it now."""
        address = f"http://127.0.0.1:{self._watch_port}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            return Watched(**json.load(answer))

    def wait_idle(self, seconds: float = 30, models: int | None = None) -> Watched:
        """Wait until nothing is adapted, and so many models are left.

        Raises:
            RuntimeError: that does not happen in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            now = self.watch()
            if now.running == 0 and (models is None or now.models <= models):
                return now
            if time.monotonic() > deadline:
                raise RuntimeError(f"after {seconds:g} s there is still {now}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, gently at first."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def running_app(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[AppProcess]:
    """The page, for as long as the block lasts (see :class:`AppProcess`)."""
    app = AppProcess(folder, *arguments, environment=environment)
    try:
        app.wait()
        yield app
    finally:
        app.stop()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def look() -> Watched:
    """What goes on in this process."""
    from demo.workers import Worker

    from degaml_kedro.session import AdaptedModel, Session

    work = {Session.adapt.__code__, Worker.adapt.__code__}

    def adapts(frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code in work:
                return True
            frame = frame.f_back
        return False

    gc.collect()
    # by type(): isinstance asks lazy modules for their class, which imports them
    models = sum(type(one) is AdaptedModel for one in gc.get_objects())
    if not models and not gc.get_freeze_count():
        # modules and the base model, which stay: a walk over all of them takes a second
        gc.freeze()
    return Watched(
        running=sum(adapts(frame) for frame in sys._current_frames().values()),
        models=models,
        threads=threading.active_count(),
        rss=int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_SIZE,
        cpu=time.process_time() - time.thread_time() - sum(_looked),
    )


# processor time of each thread that looked: on a slow machine a walk over all objects takes most of a second
_looked: list[float] = []


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(look().__dict__).encode()
        _looked.append(time.thread_time())
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


def main() -> int:
    """Serve both."""
    from demo.__main__ import main as demo

    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return demo(sys.argv[2:]) or 0


if __name__ == "__main__":
    sys.exit(main())
