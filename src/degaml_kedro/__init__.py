"""DeGAML-LLM as a Kedro project: generate LoRA adapters from prompts, then choose how to refine them."""

from __future__ import annotations

__version__ = "0.1.0"
