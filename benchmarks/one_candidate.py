"""One candidate strategy on one task: what a process of its own does for it, and what is done in process.

Run as a module it reads the task from standard input, loads the model and the adapter's folder, carries the candidate
out and prints what came of it. It imports nothing that this does not need.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from degaml_kedro.adapters.adapter import Adapter, parse_key
from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import (
    BaseModelParameters,
    LoraParameters,
    PromptParameters,
    RewardParameters,
    ScoringParameters,
)
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.finetune import initial_adapter
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.indicators import Indicators
from degaml_kedro.policy.trial import Trial, try_action
from degaml_kedro.strategies.context import Context
from degaml_kedro.strategies.state import AdaptedState, Member, load_state
from degaml_kedro.tasks.example import Example

# the four families of the paper
SPACE: dict[str, dict[str, list[Any]]] = {"ttt": {}, "lora": {}, "ls": {}, "tts": {}}
# small against A's entries, and not nothing
_NOISE = 0.01


@dataclasses.dataclass(frozen=True)
class Job:
    """A task and a candidate, as plain data.

    Attributes:
        model: parameters of the base model.
        prompt: how a question becomes text.
        scoring: how answers are scored.
        lora: the adapters' shape.
        state: folder of the adapted state that is refined.
        before: its indicators.
        examples: the support examples.
        action: the candidate's text.
        seed: of the trial.
    """

    model: dict[str, Any]
    prompt: dict[str, Any]
    scoring: dict[str, Any]
    lora: dict[str, Any]
    state: str
    before: dict[str, Any]
    examples: list[dict[str, Any]]
    action: str
    seed: int


def carry_out(job: Job) -> dict[str, Any]:
    """All that one process does for one candidate, and how long its parts took."""
    began = time.perf_counter()
    base = load_base_model(BaseModelParameters.model_validate(job.model))
    state = load_state(Path(job.state))
    loaded = time.perf_counter()
    context = make_context(
        base,
        PromptParameters.model_validate(job.prompt),
        ScoringParameters.model_validate(job.scoring),
        LoraParameters.model_validate(job.lora),
    )
    before = Indicators(**{**job.before, "histogram": tuple(job.before["histogram"])})
    examples = [
        Example(**{**one, "options": tuple(one["options"]), "labels": tuple(one["labels"])})
        for one in job.examples
    ]
    trial = attempt(context, state, before, examples, job.action, job.seed)
    # what it made stays here
    return {"load": loaded - began, **dataclasses.asdict(dataclasses.replace(trial, state=None))}


def attempt(
    context: Context,
    state: AdaptedState,
    before: Indicators,
    examples: Sequence[Example],
    action: str,
    seed: int,
) -> Trial:
    """A trial that has to run to its end: what failed fast must not count as fast.

    Raises:
        AssertionError: it did not.
    """
    space = ActionSpace.of(SPACE)
    trial = try_action(context, space, state, before, examples, action, RewardParameters(), seed)
    if trial.after is None:
        raise AssertionError(f"{action} did not run: {trial.error}")
    return trial


def make_context(
    base: BaseModel, prompt: PromptParameters, scoring: ScoringParameters, lora: LoraParameters
) -> Context:
    """A context whose fresh adapters are noise: how long an answer takes does not depend on the weights."""

    def draw(seed: int, number: int) -> Member:
        return Member(noisy_adapter(base, lora, derive_seed(seed, "noise", str(number))))

    return Context(base, prompt, scoring, draw)


def noisy_adapter(base: BaseModel, lora: LoraParameters, seed: int) -> Adapter:
    """An adapter that was never trained and that changes answers: its B is not zero."""
    start = initial_adapter(base, lora)
    source = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor
        if parse_key(name)[1] == "A"
        else _NOISE * torch.randn(tensor.shape, generator=source)
        for name, tensor in start.tensors.items()
    }
    return Adapter(start.config, tensors)


def main() -> int:
    """Do the job that standard input describes, and print what came of it."""
    print(json.dumps(carry_out(Job(**json.load(sys.stdin)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
