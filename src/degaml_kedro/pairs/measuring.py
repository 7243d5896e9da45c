"""What a pair's weights, rounded for shipping, still do: measured on the run's own test questions, once."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from degaml_kedro.io.prompt_embeddings import read_prompt_embeddings
from degaml_kedro.llm.base_model import load_base_model
from degaml_kedro.llm.scoring import Prediction
from degaml_kedro.pairs.pair import PairError, TrainedPair
from degaml_kedro.parameters import task_scoring
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.proposers import PolicyProposer, Proposer, UniformProposer
from degaml_kedro.policy.search import Tag, adapt, build_state, executed_rows
from degaml_kedro.results.measures import wilson_interval
from degaml_kedro.seeds import derive_seed
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.generated import generated_state, generated_workbench
from degaml_kedro.strategies.state import AdaptedState
from degaml_kedro.strategies.workbench import Workbench
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.splits import TaskSplits, frame_to_splits

GENERATED, ADAPTED = "generalization_only", "degaml"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeanAccuracy:
    """An accuracy; of several draws, their mean.

    Attributes:
        accuracy: 0 to 1.
        n: how many questions.
    """

    accuracy: float
    n: int

    @property
    def text(self) -> str:
        """With the 95 % Wilson interval: ``0.92 (0.87–0.95)``."""
        low, high = wilson_interval(round(self.accuracy * self.n), self.n)
        return f"{self.accuracy:.2f} ({low:.2f}–{high:.2f})"


@dataclass(frozen=True)
class Measured:
    """A task that neither the generator nor the policy has seen.

    Attributes:
        task: its name.
        chance: accuracy of a uniform guess.
        base: the base model's, from the run.
        run: by method, what the run measured with the weights as they were trained.
        pair: by method, the same with the pair's weights.
        strategy: what the pair's policy chose, in order.
    """

    task: str
    chance: float
    base: MeanAccuracy
    run: Mapping[str, MeanAccuracy]
    pair: Mapping[str, MeanAccuracy]
    strategy: tuple[str, ...]


def measure_pair(pair: TrainedPair, folder: Path, parameters: Mapping[str, Any]) -> list[Measured]:
    """Generate and adapt for the run's meta-test tasks with a pair's weights, and ask the test questions.

    Prompts, seeds and questions are the run's, so that nothing but the weights differs.

    Args:
        pair: with the weights to measure.
        folder: the run's data folder.
        parameters: the run's.

    Raises:
        PairError: the run did not measure these tasks.
        DegamlError: its data are damaged.
    """
    measured = []
    for task in parameters.get("meta_test") or ():
        measured.append(_measure(pair, folder, parameters, str(task)))
        one = measured[-1]
        logger.info(
            "%s: generated %s, adapted %s; as trained: %s, %s",
            task,
            *(scores[method].text for scores in (one.pair, one.run) for method in scores),
        )
    if not measured:
        raise PairError(
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
    base_result, generated_result, adapted_result = (
        _result(folder, task, method) for method in ("base", by_run, ADAPTED)
    )
    splits = _splits(folder, task)
    embeddings = read_prompt_embeddings(
        folder / "04_feature" / f"{task}.prompt_embeddings.safetensors"
    )
    settings, count = pair.settings, len(embeddings)
    bench = generated_workbench(
        load_base_model(settings.model),
        settings.prompt,
        task_scoring(parameters["scoring"], parameters["tasks"][task]),
        pair.generator,
        embeddings,
        # the support prompts are the last ones
        range(count - len(splits.support), count),
        settings.encoder,
    )
    draws = [
        generated_state(bench, derive_seed(seed, task, by_run), draw)
        for draw in range(int(generator.get("draws", 1)))
    ]
    state, strategy = _adapt(pair, bench, splits.support, seed, task)
    return Measured(
        task=task,
        chance=float(base_result["chance"]),
        base=_score(base_result),
        run={GENERATED: _score(generated_result), ADAPTED: _score(adapted_result)},
        pair={
            GENERATED: _mean([predict(bench, draw, splits.test) for draw in draws]),
            ADAPTED: _mean([predict(bench, state, splits.test)]),
        },
        strategy=strategy,
    )


def _adapt(
    pair: TrainedPair, bench: Workbench, support: Sequence[Example], seed: int, task: str
) -> tuple[AdaptedState, tuple[str, ...]]:
    """As the method ``degaml`` does in a run."""
    policy = pair.settings.policy
    space = ActionSpace.of(policy.families)
    start = generated_state(bench, derive_seed(seed, task, GENERATED))
    rows = list(
        adapt(
            bench,
            space,
            _proposer(pair, space),
            start,
            support,
            policy.search,
            policy.reward.model_copy(update={"noise": 0.0}),
            derive_seed(seed, task, ADAPTED),
            Tag(task, ADAPTED),
        )
    )
    state = build_state(bench, space, start, support, rows)
    return state, tuple(str(row["action"]) for row in executed_rows(rows))


def _proposer(pair: TrainedPair, space: ActionSpace) -> Proposer:
    if pair.policy is None:
        return UniformProposer(space)
    policy = pair.settings.policy
    pilot = load_base_model(policy.model or pair.settings.model)
    return PolicyProposer(pilot, pair.policy, space, policy.search_temperature(policy.search))


def _splits(folder: Path, task: str) -> TaskSplits:
    path = folder / "02_intermediate" / f"{task}.parquet"
    if not path.is_file():
        raise PairError(
            f"{folder} is not whole: the splits of {task} are missing ({path.name}); let the run finish with `kedro "
            f"run --only-missing-outputs`"
        )
    return frame_to_splits(pd.read_parquet(path))


def _result(folder: Path, task: str, method: str) -> Mapping[str, Any]:
    path = folder / "07_model_output" / f"{task}.{method}.json"
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _score(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PairError(
            f"{folder} has no accuracy of {method} on {task} ({error!r}); let the run finish with `kedro run "
            f"--only-missing-outputs`, with base, {GENERATED} and {ADAPTED} among its methods"
        ) from error
    return content


def _score(result: Mapping[str, Any]) -> MeanAccuracy:
    return MeanAccuracy(float(result["accuracy"]), int(result["n"]))


def _mean(draws: Sequence[Sequence[Prediction]]) -> MeanAccuracy:
    right = [one.predicted == one.gold for predictions in draws for one in predictions]
    return MeanAccuracy(sum(right) / len(right), len(draws[0]))
