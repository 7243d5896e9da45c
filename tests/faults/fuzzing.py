"""Damaged input for everything that reads what others wrote: a sentence, or the result that it gives, never a crash."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pandas as pd

import degaml_kedro
from degaml_kedro.checkpoint.folder import load_adaptation, read_pair, save_adaptation, save_pair
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.config.schema import FileSource
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.tasks.files import load_files
from degaml_kedro.tasks.pasted import read_file, read_pasted
from tests.checkpoint.helpers import tiny_pair, write_tiny_pair
from tests.checkpoint.test_saving import save
from tests.conftest import MEMORY
from tests.faults.counts import read_counts, write_counts
from tests.faults.writers import tree
from tests.pipelines.helpers import SMOKE

RECORDS = [
    {"question": "Is fire hot?", "options": ["yes", "no"], "answer": "A"},
    {"question": "Wie heißt „ö“? 🦊", "options": ["o", "ö", "0"], "answer": 1},
]
PASTED = "Is fire hot? => yes\nIs ice hot? => no\n\nWhich?\nA) pear\nB) oak\nAnswer: A\n"
SHIPPED = Path(degaml_kedro.__file__).parent / "shipped" / "pair"
# what cuts records, quotes, escapes, counts and encodes
_PIECES = (
    *"\"'{}[],:;\\\n\r\t\0=|#",
    "=>",
    "\ufeff",
    "\ud800",
    "1e999",
    "null",
    "-1",
    "A)",
    "{" * 3000,
)


def mutated(data: bytes, source: random.Random) -> bytes:
    """The bytes with one to four changes: bits, pieces, cuts, repeats."""
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(data) + 1)
        end = min(len(data), place + source.randint(1, 40))
        match source.randrange(5):
            case 0 if place < len(data):
                data = (
                    data[:place]
                    + bytes([data[place] ^ 1 << source.randrange(8)])
                    + data[place + 1 :]
                )
            case 1:
                piece = source.choice(_PIECES).encode("utf-8", "surrogatepass")
                data = data[:place] + piece + data[place:]
            case 2:
                data = data[:place]
            case 3:
                data = data[:place] + data[end:]
            case _:
                data = data[:place] + data[place:end] * 2 + data[end:]
    return data


def _samples(folder: Path) -> dict[str, bytes]:
    """A file of every kind that is read, by its suffix."""
    table = pd.DataFrame(RECORDS).astype({"answer": str})
    table["options"] = table["options"].map("|".join)
    table.to_parquet(folder / "sample.parquet")
    with zipfile.ZipFile(folder / "sample.xlsx", "w") as workbook:
        workbook.writestr("xl/worksheets/sheet1.xml", "<worksheet><sheetData/></worksheet>")
    json_lines = pd.DataFrame(RECORDS).to_json(orient="records", lines=True, force_ascii=False)
    return {
        ".json": pd.DataFrame(RECORDS).to_json(orient="records").encode(),
        ".jsonl": json_lines.encode(),
        ".csv": table.to_csv(index=False).encode(),
        ".tsv": table.to_csv(index=False, sep="\t").encode("utf-16"),
        ".txt": PASTED.encode(),
        ".parquet": (folder / "sample.parquet").read_bytes(),
        # no kind that is read: a sentence, whatever is in it
        ".xlsx": (folder / "sample.xlsx").read_bytes(),
    }


def readers(folder: Path, source: random.Random) -> Iterator[Callable[[], object]]:
    """Mutated files and pasted texts, each as a call that reads it."""
    samples = _samples(folder)
    while True:
        suffix = source.choice(list(samples))
        data = mutated(samples[suffix], source)
        path = folder / f"file{suffix}"
        path.write_bytes(data)
        yield lambda path=path: read_file(path)
        yield lambda path=path: load_files(FileSource(kind="file", path=str(path)), "task")
        yield lambda data=data: read_pasted(
            data.decode("utf-8", "surrogatepass" if data.isascii() else "replace")
        )


def actions(source: random.Random) -> Iterator[Callable[[], object]]:
    """Mutated answers of a policy."""
    space = ActionSpace.of(SMOKE["policy"]["families"])
    texts = [action.text.encode() for action in space.pooling]
    texts.append(b'{"family": "sft", "steps": 2, "learning_rate": 0.0003, "batch_size": 2}')
    while True:
        text = mutated(source.choice(texts), source).decode("utf-8", "replace")
        yield lambda text=text: space.parse(text)


# of the page's endpoints: values that it takes, those of an adaptation too few to begin one
REQUESTS: dict[str, list[Any]] = {
    "tasks": [],
    "task": ["day_after", 0],
    "read": [PASTED, "a.txt"],
    "adapt": ["Is fire hot? => yes", 1, None, 1, 1, 1.0, 0],
    "predict": ["a model", "Is fire hot?", ["yes", "no"]],
    "download": ["a model"],
    "forget": [""],
}
_ODD = (
    None,
    True,
    -1,
    2**70,
    1e308,
    float("nan"),
    "",
    "\0",
    "\ud800",
    "x" * 9000,
    [],
    [[[]]],
    {"a": {}},
)


def requests(source: random.Random) -> Iterator[tuple[str, bytes]]:
    """An endpoint of the page, and a request's body: odd values, and half of them with bytes changed."""
    while True:
        endpoint = source.choice(list(REQUESTS))
        values = [
            source.choice(_ODD) if source.random() < 0.3 else one for one in REQUESTS[endpoint]
        ]
        asked = {"data": values, "session_hash": "fuzzing"}
        if source.random() < 0.2:
            asked[source.choice(["data", "session_hash", "event_data", "fn_index"])] = (
                source.choice(_ODD)
            )
        body = json.dumps(asked).encode()
        yield endpoint, mutated(body, source) if source.random() < 0.5 else body


def is_refused(page: httpx.Client, endpoint: str, body: bytes) -> bool:
    """Whether the page refuses a request in a sentence.

    Raises:
        AssertionError: it answers with neither a sentence nor a result.
    """
    # some do not say what they send
    headers = {"content-type": "application/json"} if len(body) % 8 else {}
    asked = page.post(f"/call/{endpoint}", content=body, headers=headers)
    if 400 <= asked.status_code < 500:
        return True
    assert asked.status_code == 200, (endpoint, body, asked.status_code, asked.text)
    answer = page.get(f"/call/{endpoint}/{asked.json()['event_id']}").text
    *_, event, data = answer.strip().splitlines()
    said = json.loads(data.removeprefix("data: "))
    if event == "event: complete":
        return False
    assert event == "event: error", (endpoint, body, answer)
    sentence = said["error"] if isinstance(said, dict) else said
    assert isinstance(sentence, str), (endpoint, body, answer)
    assert len(sentence) > 9, (endpoint, body, answer)
    assert "Traceback" not in answer, (endpoint, body, answer)
    return True


@contextmanager
def served_page(folder: Path) -> Iterator[httpx.Client]:
    """A client of the page over the tiny pair, which this process serves."""
    from demo.app import DemoApp
    from demo.service import DemoSettings

    pair = str(write_tiny_pair(folder / "page"))
    with patch.dict(os.environ, {"GRADIO_TEMP_DIR": str(folder / "gradio")}):
        app = DemoApp(DemoSettings(port=0, pairs=(("tiny", pair),)))
        _, url, _ = app.launch(prevent_thread_lock=True)
        try:
            with httpx.Client(base_url=f"{url}gradio_api", timeout=60) as client:
                yield client
        finally:
            app.close(verbose=False)


def told(call: Callable[[], object]) -> bool:
    """Whether a call ended in a sentence; any other error is raised."""
    try:
        call()
    except DegamlError as error:
        return bool(str(error).strip())
    return False


# how a byte is damaged: the file is cut at it, or these bits of it are turned
CUT, BITS = 0, tuple(1 << bit for bit in range(8))


@dataclass(frozen=True)
class Damage:
    """One damage to one file of a folder."""

    name: str
    place: int
    bits: int

    @contextmanager
    def done_to(self, folder: Path) -> Iterator[None]:
        """The file is damaged, in its place, and then whole again."""
        with (folder / self.name).open("r+b", buffering=0) as file:
            file.seek(self.place)
            rest = file.read(-1 if self.bits == CUT else 1)
            file.seek(self.place)
            if self.bits == CUT:
                file.truncate()
            else:
                file.write(bytes([rest[0] ^ self.bits]))
            try:
                yield
            finally:
                file.seek(self.place)
                file.write(rest)


class Damaged:
    """A pair's or an adaptation's folder, to be damaged: a sentence, or the same result."""

    def __init__(self, folder: Path, is_pair: bool = True) -> None:
        """Read it whole."""
        self.folder, self._is_pair = folder, is_pair
        self._whole = self._content()

    def damages(self) -> Iterator[Damage]:
        """Every byte cut at, turned whole and in one bit, those of JSON in each."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        # the card last: it is not opened, and reading the rest to the end takes longest
        for file in sorted(files, key=lambda path: (path.suffix == ".md", path)):
            name, is_json = str(file.relative_to(self.folder)), file.suffix == ".json"
            for place in range(file.stat().st_size):
                for bits in (CUT, 0xFF, *(BITS if is_json else [BITS[place % 8]])):
                    yield Damage(name, place, bits)

    def drawn(self, source: random.Random) -> Damage:
        """Any damage, each byte as likely as the other."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        sizes = [file.stat().st_size for file in files]
        (file,) = source.choices(files, sizes)
        place = source.randrange(file.stat().st_size)
        return Damage(str(file.relative_to(self.folder)), place, source.choice((CUT, 0xFF, *BITS)))

    def refused(self, damage: Damage) -> bool:
        """Whether what is damaged is refused in a sentence.

        Raises:
            AssertionError: it is read as something else.
        """
        with damage.done_to(self.folder):
            found: list[dict[str, bytes | None]] = []
            if told(lambda: found.append(self._content())):
                return True
        assert found == [self._whole], f"read as something else: {damage}"
        return False

    def _content(self) -> dict[str, bytes | None]:
        """All that is read of it, written anew."""
        with tempfile.TemporaryDirectory() as name:
            copy = Path(name) / "copy"
            if self._is_pair:
                save_pair(read_pair(self.folder, "it"), copy)
            else:
                save_adaptation(*load_adaptation(self.folder), copy)
            return tree(copy)


class Fuzzing:
    """Reads damaged input, and keeps count."""

    def __init__(self, folder: Path, source: random.Random) -> None:
        """Make what is damaged."""
        save_pair(tiny_pair(), folder / "tiny", "bfloat16")
        save(folder / "adaptation")
        shutil.copytree(SHIPPED, folder / "pair")
        self._tiny = {
            "a tiny pair": Damaged(folder / "tiny"),
            "an adaptation": Damaged(folder / "adaptation", is_pair=False),
        }
        self._shipped = Damaged(folder / "pair")
        self._source = source
        self._readers, self._actions = readers(folder, source), actions(source)
        self.found: dict[str, int] = read_counts().get("damaged", {})

    def texts(self) -> None:
        """Files, pasted texts and a policy's answers, a hundred of each."""
        for _ in range(100):
            for _ in range(3):
                told(next(self._readers))
            told(next(self._actions))
        self._count("files and texts", 300)
        self._count("answers of a policy", 100)

    def folders(self) -> None:
        """The shipped pair at drawn places, and small folders at every one in turn."""
        self._shipped.refused(self._shipped.drawn(self._source))
        self._count("the shipped pair", 1)
        for name, folder in self._tiny.items():
            every = list(folder.damages())
            done = self.found.get(name, 0) % len(every)
            for damage in every[done : done + 100]:
                folder.refused(damage)
                self._count(name, 1)
            self.found[f"{name}, of"] = len(every)

    def asked(self, page: httpx.Client) -> None:
        """Requests to the page."""
        for endpoint, body in islice(requests(self._source), 20):
            is_refused(page, endpoint, body)
        self._count("requests", 20)

    def _count(self, name: str, count: int) -> None:
        self.found[name] = self.found.get(name, 0) + count


def main(arguments: list[str] | None = None) -> int:
    """Read damaged input until time is up; what was tried is added to the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzzing", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    options = parser.parse_args(arguments)
    print(f"--seed {options.seed}", flush=True)
    # small files, written again and again
    tempfile.tempdir = str(MEMORY) if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as name, served_page(Path(name)) as page:
        fuzzing = Fuzzing(Path(name), random.Random(options.seed))
        end = shown = time.monotonic()
        end += 60 * options.minutes
        try:
            while time.monotonic() < end:
                fuzzing.texts()
                fuzzing.folders()
                fuzzing.asked(page)
                if time.monotonic() > shown:
                    shown += 60
                    write_counts(damaged=fuzzing.found)
                    print(fuzzing.found, flush=True)
        finally:
            write_counts(damaged=fuzzing.found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
