"""What baselines are given, on the tiny random model."""

from __future__ import annotations

from typing import Any

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.baselines.baseline import Setup
from degaml_kedro.config.schema import LoraParameters, PromptParameters, ScoringParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import initial_adapter
from tests.llm.helpers import tiny_base


def setup(
    method: str,
    entry: Any = None,
    *,
    prompt: PromptParameters,
    base: BaseModel | None = None,
    start: Adapter | None = None,
    scoring: ScoringParameters | None = None,
    **more: Any,
) -> Setup:
    """A method that answers with texts and starts as LoRA does, where nothing else is said."""
    base = base or tiny_base()
    start = start or initial_adapter(base, LoraParameters(rank=2, alpha=4))
    scoring = scoring or ScoringParameters(mode="text")
    return Setup(method, base, prompt, scoring, entry, start, **more)
