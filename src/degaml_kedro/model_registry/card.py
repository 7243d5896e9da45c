"""What a registered model says of itself: ``README.md`` beside it, and its version's description."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from degaml_kedro.model_registry.folders import ModelFolder

_WHAT = {
    "generator": (
        "A generator of LoRA adapters (DeGAML-LLM): unlabelled prompts of a task in, one adapter of the base model "
        "out. No answer is read and no gradient is taken."
    ),
    "policy": (
        "A policy of DeGAML-LLM: a LoRA adapter under which a language model writes the next strategy to refine an "
        "adapter with, as JSON, held to the grammar of the action space."
    ),
    "adapter": (
        "Where DeGAML-LLM's adaptation to one task ended: a generated LoRA adapter after the strategies that were "
        "chosen on the task's support examples. It may be several adapters with a vote, or have a steering vector, or "
        "support examples that stand in the prompt, which it holds as text."
    ),
}
_LIMITS = {
    "generator": (
        "It fits this base model alone, and reads prompts through the encoder it was trained with. Tasks unlike "
        "those it was trained on get adapters that may be worse than none."
    ),
    "policy": (
        "It was rewarded on the tasks above with adapters of its run's generator; with another generator nothing "
        "is known of it."
    ),
    "adapter": "It fits this base model and this task alone.",
}
_LOAD = {"generator": "load_generator", "policy": "load_policy", "adapter": "load_adapter"}
# by kind, what of the parameters made it, where its own files do not say it
_SETTINGS = {"generator": ("generator",), "policy": ("policy",), "adapter": ("policy",)}


def card_text(model: ModelFolder, digest: str, in_full: bool = True) -> str:
    """The card, in Markdown.

    Args:
        model: what is known of it.
        digest: of its files.
        in_full: with all settings.
    """
    facts = {
        "base model": model.base_model or "not known",
        "its fingerprint": model.base_model_fingerprint or "not known",
        "task": model.task,
        "method": model.method if model.kind == "adapter" else "",
        "variant": model.variant,
        "meta-trained on": ", ".join(model.tasks),
        "profile": model.profile,
        "seed": "" if model.seed is None else str(model.seed),
        "files (SHA-256)": digest,
    }
    call = f'{_LOAD[model.kind]}("models:/{model.name}/VERSION")'
    license_note = (
        "These weights come from this project's code (Apache-2.0) and from the base model and data named above, "
        "whose own licenses hold for what is made from them: look there before you pass the weights on."
    )
    return "\n".join(
        [
            f"# {model.name}",
            "",
            _WHAT[model.kind],
            "",
            *(f"- {name}: {value}" for name, value in facts.items() if value),
            "",
            "## Results",
            "",
            *_results(model),
            "",
            *(("## Settings", "", *_settings(model), "") if in_full else ()),
            "## Use",
            "",
            "```python",
            f"from degaml_kedro.model_registry import {_LOAD[model.kind]}",
            f"{model.kind} = {call}",
            "```",
            "",
            "## Limits",
            "",
            _LIMITS[model.kind],
            "",
            "## License",
            "",
            license_note,
            "",
        ]
    )


def _results(model: ModelFolder) -> list[str]:
    if not model.results:
        return ["None were measured when this was written."]
    rows = [
        f"| {row['task']} | {row['pool']} | {row['accuracy']:.3f} | {_interval(row)} | {row['n']} |"
        for row in model.results
    ]
    head = ["| task | pool | accuracy | 95 % interval | n |", "|---|---|---|---|---|"]
    method = str(model.results[0]["method"])
    return [f"On test questions, as the method `{method}`:", "", *head, *rows]


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row.get("accuracy_low"), row.get("accuracy_high")
    if not isinstance(low, float) or not isinstance(high, float):
        return "not known"
    return f"{low:.3f} to {high:.3f}"


def _settings(model: ModelFolder) -> list[str]:
    made_by = model.made_by or {
        name: model.parameters[name] for name in _SETTINGS[model.kind] if name in model.parameters
    }
    if not made_by:
        return ["The run left no record of its parameters."]
    return ["```json", json.dumps(made_by, indent=1, sort_keys=True, default=str), "```"]
