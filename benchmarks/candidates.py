"""Twenty candidate strategies for one task in this process, against a new process for each of them.

The public reference starts a process a candidate, which imports its libraries and loads the model. The peer does that
with this project's own code and nothing more than one candidate needs: no generator and no encoder, files in the
page cache, support examples and the initialization's score handed over. So what is compared is the process alone.

Every block of candidates has all four families in it. After it one of its candidates, of another family each time, is
tried again by a new process. Four processes are measured and stand for twenty.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.material import SEED, Settings
from benchmarks.measure import Result, Row, Spread, found_in_child
from benchmarks.one_candidate import Job, attempt, carry_out
from benchmarks.strategies import (
    TASK,
    context_for,
    members_of,
    profile,
    task_examples,
    times_as_long,
)
from degaml_kedro.policy.actions import Action
from degaml_kedro.policy.indicators import measure_indicators
from degaml_kedro.strategies.answering import predict
from degaml_kedro.strategies.state import AdaptedState, save_state


def _ttt(steps: int, learning_rate: float) -> Action:
    config = {"ttl_steps": steps, "learning_rate": learning_rate, "batch_size": 4}
    return Action("ttt", {**config, "shuffle_data": True})


def _mixing(mix: float) -> Action:
    return Action("lora", {"lambda": mix})


def _steering(times: int, learning_rate: float) -> Action:
    return Action("ls", {"times": times, "learning_rate": learning_rate})


def _scaling(count: int, method: str) -> Action:
    return Action("tts", {"num_prompt_batches": count, "method": method})


# small settings, inside the embedded profile's bounds; the last of a block is the one that a process tries as well
BLOCKS = (
    (
        _mixing(0.1),
        _steering(1, 0.1),
        _scaling(2, "majority_vote"),
        _ttt(1, 1e-4),
        _ttt(3, 1e-4),
    ),
    (
        _ttt(2, 5e-5),
        _steering(2, 0.03),
        _scaling(3, "sum_logprobs"),
        _mixing(0.3),
        _mixing(0.5),
    ),
    (
        _ttt(5, 3e-4),
        _mixing(0.7),
        _scaling(4, "max_confidence"),
        _steering(3, 0.1),
        _steering(5, 0.03),
    ),
    (
        _ttt(8, 1e-5),
        _mixing(1.0),
        _steering(5, 0.3),
        _scaling(2, "sum_logprobs"),
        _scaling(4, "majority_vote"),
    ),
)


def run(settings: Settings) -> Result:
    """Try all candidates, and one of each block in a process of its own; a quick run does without the process."""
    base, own = settings.base(), profile()
    examples = task_examples(settings.either(own.support, 3))
    context = context_for(base)
    state = AdaptedState((members_of(context, 1)[0],))
    # the first forward passes of this process, too: they grow the allocator's pools
    before = measure_indicators(predict(context, state, examples))
    ours, trials, children, peer = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "state"
        save_state(state, place)
        for block in BLOCKS:
            began = time.perf_counter()
            tried = [
                attempt(context, state, before, examples, action.text, SEED) for action in block
            ]
            ours.append((time.perf_counter() - began) / len(block))
            trials += tried
            job = Job(
                model=settings.model.model_dump(mode="json"),
                prompt=own.prompt.model_dump(mode="json"),
                scoring=own.scoring.model_dump(mode="json"),
                lora=own.lora.model_dump(mode="json"),
                state=str(place),
                before=dataclasses.asdict(before),
                examples=[dataclasses.asdict(example) for example in examples],
                action=block[-1].text,
                seed=SEED,
            )
            began = time.perf_counter()
            found = carry_out(job) if settings.quick else in_child(job)
            peer.append(time.perf_counter() - began)
            if found["after"]["n"] != len(examples) or found["tokens"] != tried[-1].tokens:
                raise AssertionError(f"the process did not do the same: {block[-1].text}")
            children.append(found)
    count = sum(len(block) for block in BLOCKS)
    starts = [
        whole - found["seconds"] for whole, found in zip(peer, children, strict=True)
    ]  # imports, model, adapter
    alone, each = sum(trial.seconds for trial in trials), statistics.mean(peer)
    once = statistics.median(starts) + alone
    rows = [
        times_as_long(
            f"a candidate strategy of {count}, against a new process for it ({len(peer)} measured)",
            ours,
            peer,
            at_least=None if settings.quick else 10.0,
        ),
        Row(
            f"{count} candidates and one start of a process, against {count} starts (extrapolated)",
            "s",
            Spread.of([once]),
            Spread.of([count * each]),
            Spread.of([count * each / once]),
        ),
    ]
    details: dict[str, Any] = {
        "task": TASK,
        "examples": len(examples),
        "dtype": str(base.dtype),
        "extrapolated": f"{len(peer)} processes, one of each family, stand for {count}",
        "process_seconds": peer,
        "process_start_seconds": starts,
        "process_load_seconds": [found["load"] for found in children],
        "process_trial_seconds": [found["seconds"] for found in children],
        "all_seconds": alone,
        "all_seconds_by_processes": count * each,
        "trials": [
            {"action": action.text, "seconds": trial.seconds, "tokens": trial.tokens}
            for action, trial in zip(
                (action for block in BLOCKS for action in block), trials, strict=True
            )
        ],
    }
    return Result("candidates", rows, details)


def in_child(job: Job) -> dict[str, Any]:
    """The job in a process that does nothing else."""
    return found_in_child("benchmarks.one_candidate", given=json.dumps(dataclasses.asdict(job)))
