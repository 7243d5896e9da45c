"""Damaged input for everything that reads what others wrote: a sentence, or the result that it gives, never a crash."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

import degaml_kedro
from degaml_kedro.checkpoint.folder import read_pair
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.config.schema import FileSource
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.tasks.files import load_files
from degaml_kedro.tasks.pasted import read_file, read_pasted
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
    json_lines = pd.DataFrame(RECORDS).to_json(orient="records", lines=True, force_ascii=False)
    return {
        ".json": pd.DataFrame(RECORDS).to_json(orient="records").encode(),
        ".jsonl": json_lines.encode(),
        ".csv": table.to_csv(index=False).encode(),
        ".tsv": table.to_csv(index=False, sep="\t").encode("utf-16"),
        ".txt": PASTED.encode(),
        ".parquet": (folder / "sample.parquet").read_bytes(),
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


def told(call: Callable[[], object]) -> bool:
    """Whether a call ended in a sentence; any other error is raised."""
    try:
        call()
    except DegamlError as error:
        return bool(str(error).strip())
    return False


def damaged_pair(pair: Path, folder: Path, name: str, place: int, cut: bool) -> bool:
    """Whether a pair of which a file is cut at a byte, or has it flipped, is refused in a sentence."""
    data = (pair / name).read_bytes()
    (folder / name).write_bytes(
        data[:place] if cut else data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
    )
    try:
        return told(lambda: read_pair(folder))
    finally:
        (folder / name).write_bytes(data)


def places(pair: Path) -> list[tuple[str, int]]:
    """Every byte of a pair's files, but for the card's."""
    return [
        (str(file.relative_to(pair)), place)
        for file in sorted(pair.rglob("*"))
        if file.is_file() and file.suffix in (".json", ".safetensors")
        for place in range(file.stat().st_size)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Read damaged input until time is up, half of it the shipped pair."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzzing", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    options = parser.parse_args(arguments)
    source = random.Random(options.seed)
    print(f"--seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as name:
        folder = Path(name)
        copy = Path(shutil.copytree(SHIPPED, folder / "pair"))
        calls, parsed, drawn = readers(folder, source), actions(source), places(SHIPPED)
        end, count, bytes_tried = time.monotonic() + 60 * options.minutes, 0, 0
        while time.monotonic() < end:
            for _ in range(100):
                told(next(calls))
                told(next(parsed))
                count += 2
            place = source.choice(drawn)
            if not damaged_pair(SHIPPED, copy, *place, source.random() < 0.5):
                print(f"read as if nothing were wrong: {place}")
                return 1
            bytes_tried += 1
        print(f"{count} texts and files, {bytes_tried} damaged pairs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
