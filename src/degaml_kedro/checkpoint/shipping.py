"""Make the pair that ships with the package from a run: ``python -m degaml_kedro.checkpoint.shipping DATA_FOLDER``.

The run is that of the environment ``shipped`` (``make shipped`` does both). Weights are rounded, measured again on the
run's meta-test tasks, and written with a model card; more than 20 MB are refused.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import pandas as pd

from degaml_kedro.adaptation import task_refinement
from degaml_kedro.checkpoint.card import pair_card
from degaml_kedro.checkpoint.folder import StoredAs, TrainedPair, read_files, read_pair, save_pair
from degaml_kedro.checkpoint.hub import SHIPPED, read_record, read_run
from degaml_kedro.checkpoint.layout import PAIR_CONTENTS, CheckpointError, check_overwritable
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import EpisodeSource, task_scoring
from degaml_kedro.io.prompt_embeddings import read_prompt_embeddings
from degaml_kedro.llm.base_model import load_base_model
from degaml_kedro.llm.scoring import Prediction
from degaml_kedro.policy.search import Tag, executed_rows
from degaml_kedro.results.measures import wilson_interval
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.generated import generated_context, generated_state
from degaml_kedro.tasks.episodes import describe
from degaml_kedro.tasks.splits import frame_to_splits

MAX_BYTES = 20_000_000
NAME = "degaml-kedro's trained pair"
GENERATED, ADAPTED = "generalization_only", "degaml"

logger = logging.getLogger(__name__)


def ship(data: Path, folder: Path, dtype: StoredAs = "bfloat16") -> TrainedPair:
    """Make a pair's folder from a run's data folder, with a model card; the pair as it is read back.

    A pair that is in the folder by now is replaced once the new one is measured; anything else is left alone.

    Raises:
        CheckpointError: the run has no pair or is not done, or its pair is too large to ship.
        DegamlError: the run's data are damaged, or somebody else wrote the folder meanwhile.
    """
    # minutes before it is written
    check_overwritable(folder, PAIR_CONTENTS)
    replace_earlier = (folder / PAIR_CONTENTS[0]).exists()
    trained = replace(read_run(data), name=NAME)
    record, parameters = read_record(data)
    with tempfile.TemporaryDirectory(prefix="degaml-pair-") as temporary:
        rounded = Path(temporary) / "pair"
        save_pair(trained, rounded, dtype)
        files = read_files(rounded)
        total = sum(file.bytes for file in files.values())
        if total > MAX_BYTES:
            largest = max(files, key=lambda name: files[name].bytes)
            raise CheckpointError(
                f"the pair of {data} takes {total / 1e6:.1f} MB as {dtype}, and at most {MAX_BYTES / 1e6:.0f} MB are "
                f"shipped; its largest file is {largest} ({files[largest].bytes / 1e6:.1f} MB): train with a smaller "
                f"decoder rank and policy.lora.rank, as conf/shipped does"
            )
        pair = read_pair(rounded)
        measured = measure_pair(pair, data, parameters)
        training = _training(pair, data, record, parameters, measured)
        save_pair(pair, folder, dtype, pair_card(pair, files, training), replace_earlier)
    return read_pair(folder)


# --- what the weights still do --------------------------------------------------------------------


@dataclass(frozen=True)
class MeanAccuracy:
    """An accuracy over ``n`` questions; of several draws, their mean."""

    accuracy: float
    n: int

    @property
    def text(self) -> str:
        """With the 95 % Wilson interval: ``0.92 (0.87–0.95)``."""
        low, high = wilson_interval(round(self.accuracy * self.n), self.n)
        return f"{self.accuracy:.2f} ({low:.2f}–{high:.2f})"


@dataclass(frozen=True)
class Measured:
    """What a pair came to on a task that neither its generator nor its policy has seen.

    Attributes:
        chance: accuracy of a uniform guess.
        scores: by what was measured: :data:`SCORES`, in this order.
        strategy: what the pair's policy chose, in order.
    """

    task: str
    chance: float
    scores: Mapping[str, MeanAccuracy]
    strategy: tuple[str, ...]


# the run's base model, then what the run measured with the weights as they were trained, and what the pair's do
SCORES = ("base", "generated, as trained", "generated", "adapted, as trained", "adapted")


def measure_pair(pair: TrainedPair, folder: Path, parameters: Mapping[str, Any]) -> list[Measured]:
    """Generate and adapt for the run's meta-test tasks with a pair's weights, and ask the test questions.

    Prompts, seeds and questions are those of the run whose data folder and parameters are given, so that nothing but
    the weights differs.

    Raises:
        CheckpointError: the run did not measure these tasks.
        DegamlError: its data are damaged.
    """
    measured = []
    for task in parameters.get("meta_test") or ():
        measured.append(_measure(pair, folder, parameters, str(task)))
        told = [f"{name} {score.text}" for name, score in measured[-1].scores.items()]
        logger.info("%s: %s", task, "; ".join(told))
    if not measured:
        raise CheckpointError(
            f"{folder}: the run has no meta-test tasks, so nothing can be said of what the pair does; name a run with "
            f"`meta_test` in its parameters"
        )
    return measured


def _measure(pair: TrainedPair, folder: Path, parameters: Mapping[str, Any], task: str) -> Measured:
    seed, generator = int(parameters["seed"]), parameters["generator"]
    first = next(iter(generator["variants"]))
    variant = pair.settings.policy.variant or first
    # what the run calls the adapters of this pair's generator
    by_run = GENERATED if variant == first else f"{GENERATED}_{variant}"
    found = [_result(folder, task, method) for method in ("base", by_run, ADAPTED)]
    path = folder / "02_intermediate" / f"{task}.parquet"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not whole: the splits of {task} are missing ({path.name}); let the run finish with `kedro "
            f"run --only-missing-outputs`"
        )
    splits = frame_to_splits(pd.read_parquet(path))
    embeddings = read_prompt_embeddings(
        folder / "04_feature" / f"{task}.prompt_embeddings.safetensors"
    )
    settings, count = pair.settings, len(embeddings)
    context = generated_context(
        load_base_model(settings.model),
        settings.prompt,
        task_scoring(parameters["scoring"], parameters["tasks"][task]),
        pair.generator,
        embeddings,
        # the support prompts are the last ones
        range(count - len(splits.support), count),
        settings.encoder,
        pair.writer,
    )
    draws = [
        generated_state(context, derive_seed(seed, task, by_run), draw)
        for draw in range(int(generator.get("draws", 1)))
    ]
    # as the method degaml does in a run
    own = derive_seed(seed, task, GENERATED)
    refinement = task_refinement(context, settings.policy, splits.support, own)
    policy_model = load_base_model(settings.policy.model or settings.model)
    proposer = refinement.proposer(policy_model, pair.policy)
    rows = list(refinement.search(proposer, derive_seed(seed, task, ADAPTED), Tag(task, ADAPTED)))
    adapted = refinement.execute(rows).state
    base, generated, refined = (MeanAccuracy(one["accuracy"], one["n"]) for one in found)
    own_generated = _mean([predict(context, draw, splits.test) for draw in draws])
    own_refined = _mean([predict(context, adapted, splits.test)])
    scores = (base, generated, own_generated, refined, own_refined)
    return Measured(
        task=task,
        chance=float(found[0]["chance"]),
        scores=dict(zip(SCORES, scores, strict=True)),
        strategy=tuple(str(row["action"]) for row in executed_rows(rows)),
    )


def _result(folder: Path, task: str, method: str) -> Mapping[str, Any]:
    path = folder / "07_model_output" / f"{task}.{method}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {**content, "accuracy": float(content["accuracy"]), "n": int(content["n"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} has no accuracy of {method} on {task} ({error!r}); let the run finish with `kedro run "
            f"--only-missing-outputs`, with base, {GENERATED} and {ADAPTED} among its methods"
        ) from error


def _mean(draws: Sequence[Sequence[Prediction]]) -> MeanAccuracy:
    right = [one.predicted == one.gold for predictions in draws for one in predictions]
    return MeanAccuracy(sum(right) / len(right), len(draws[0]))


# --- what the card says of it ---------------------------------------------------------------------


def _training(
    pair: TrainedPair,
    data: Path,
    record: Mapping[str, Any],
    parameters: Mapping[str, Any],
    measured: Sequence[Measured],
) -> dict[str, Any]:
    """What ``card.md.j2`` is told of the run."""
    rows = ([one.chance, *(s.accuracy for s in one.scores.values())] for one in measured)
    return {
        "warmup": _warmup(pair.about.get("drawn_from"), parameters.get("warmup") or {}),
        "tasks": [_described(str(task), parameters) for task in pair.about.get("tasks") or ()],
        "took": _took(record, data),
        "support": (parameters.get("splits") or {}).get("support", "a task's"),
        "draws": (parameters.get("generator") or {}).get("draws", 1),
        "measured": measured,
        "means": [fmean(column) for column in zip(*rows, strict=True)],
    }


def _warmup(drawn_from: str | None, warmup: Mapping[str, Any]) -> str:
    """What all adapters start from."""
    steps = sum(int(phase["steps"]) for phase in warmup.get("phases") or ())
    if drawn_from is None:
        return f"One LoRA was trained on all tasks below together ({steps} steps)."
    origin = "what the package makes" if drawn_from == "suite" else "a file of texts with labels"
    return (
        f"One LoRA was trained for {steps} steps on tasks drawn without end from {origin}, new ones in every step; "
        f"{100 * float(warmup.get('context_share') or 0):.0f} % of the steps had examples of the task in the prompt."
    )


def _described(task: str, parameters: Mapping[str, Any]) -> str:
    source = ((parameters.get("tasks") or {}).get(task) or {}).get("source") or {}
    if source.get("kind") != "episode":
        return task
    return f"{task}: {describe(EpisodeSource.model_validate(source))}"


def _took(record: Mapping[str, Any], data: Path) -> str:
    """The machine and the versions, and the time, where the run wrote them down."""
    machine, versions = record.get("machine") or {}, record.get("versions") or {}
    dtype = str(machine.get("dtype", "?")).removeprefix("torch.")
    told = (
        f"Trained on {machine.get('cores', '?')} cores ({machine.get('processor', 'not recorded')}), device "
        f"{machine.get('device', '?')}, with the base model in {dtype}"
    )
    path = data / "07_model_output" / f"{ADAPTED}.meta_training.compute.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        minutes = float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) / 60
        told += f": {minutes:.0f} minutes of computing, added up over nodes that ran side by side"
    known = ("degaml-kedro", "torch", "transformers", "peft")
    named = ", ".join(f"{name} {versions[name]}" for name in known if name in versions)
    return (
        f"{told}. Profile {record.get('profile')}, seed {record.get('seed')}; "
        f"{named or 'versions not recorded'}."
    )


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
    for name, file in files.items():
        print(f"{file.bytes:>12,} {name}")
    total = sum(file.bytes for file in files.values())
    print(f"{total:>12,} bytes in all: {pair.name}, for {pair.base_model}, in {asked.out}")


if __name__ == "__main__":
    main()
