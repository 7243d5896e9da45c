"""Make the pair that ships with the package from a run: ``python -m degaml_kedro.pairs.shipping DATA_FOLDER``.

The run is that of the environment ``shipped`` (``make shipped`` does both). Weights are rounded, measured again on the
run's meta-test tasks, and written with a model card; more than 20 MB are refused.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

from degaml_kedro.errors import DegamlError
from degaml_kedro.pairs.card import shipped_card
from degaml_kedro.pairs.loading import SHIPPED, read_record, read_run
from degaml_kedro.pairs.measuring import ADAPTED, measure_pair
from degaml_kedro.pairs.pair import (
    PairError,
    StoredAs,
    TrainedPair,
    read_files,
    read_pair,
    save_pair,
)

MAX_BYTES = 20_000_000
NAME = "degaml-kedro's trained pair"

logger = logging.getLogger(__name__)


def ship(data: Path, folder: Path, dtype: StoredAs = "bfloat16") -> TrainedPair:
    """Make a pair's folder from a run's data folder, with a model card.

    Args:
        data: the run's.
        folder: where to write; an earlier pair there is replaced once the new one is measured.
        dtype: what matrices are stored as.

    Returns:
        The pair as it is read back.

    Raises:
        PairError: the run has no pair or is not done, or its pair is too large to ship.
        DegamlError: the run's data are damaged.
    """
    trained = replace(read_run(data), name=NAME)
    record, parameters = read_record(data)
    with tempfile.TemporaryDirectory(prefix="degaml-pair-") as temporary:
        rounded = Path(temporary) / "pair"
        save_pair(trained, rounded, dtype)
        files = read_files(rounded)
        _check_limit(files, data, dtype)
        pair = read_pair(rounded)
        measured = measure_pair(pair, data, parameters)
        card = shipped_card(pair, record, _seconds(data), measured, files)
        save_pair(pair, folder, dtype, card)
    return read_pair(folder)


def _check_limit(files: Mapping[str, tuple[int, str]], data: Path, dtype: StoredAs) -> None:
    total = sum(size for size, _ in files.values())
    if total > MAX_BYTES:
        largest = max(files, key=lambda name: files[name][0])
        raise PairError(
            f"the pair of {data} takes {total / 1e6:.1f} MB as {dtype}, and at most {MAX_BYTES / 1e6:.0f} MB are "
            f"shipped; its largest file is {largest} ({files[largest][0] / 1e6:.1f} MB): train with a smaller decoder "
            f"rank and policy.lora.rank, as conf/shipped does"
        )


def _seconds(data: Path) -> float | None:
    """What meta-training took, where the run wrote it down."""
    path = data / "07_model_output" / f"{ADAPTED}.meta_training.compute.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def main() -> None:
    """Make the pair and say what it came to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA_FOLDER", help="a run's data folder")
    parser.add_argument(
        "--out", type=Path, default=SHIPPED, help="default: where the package has it"
    )
    parser.add_argument("--dtype", choices=get_args(StoredAs), default="bfloat16")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        pair = ship(asked.data, asked.out, asked.dtype)
    except DegamlError as error:
        sys.exit(str(error))
    files = read_files(asked.out)
    for name, (size, _) in files.items():
        print(f"{size:>12,} {name}")
    total = sum(size for size, _ in files.values())
    print(f"{total:>12,} bytes in all: {pair.name}, for {pair.base_model}, in {asked.out}")


if __name__ == "__main__":
    main()
