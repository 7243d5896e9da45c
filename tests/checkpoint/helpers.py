"""A tiny pair on the random base model and the random encoder: all of it is made here, in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from degaml_kedro.adapters.adapter import save_peft_folder
from degaml_kedro.adapters.scales import TokenScales, TokenStatistics
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.checkpoint.folder import PairSettings, TrainedPair, save_pair
from degaml_kedro.config.schema import AssociativeDecoder, FactorizedDecoder, LoraParameters
from degaml_kedro.generator.decoders.build import ConditionSize, Decoder
from degaml_kedro.generator.examples import ExampleGenerator
from degaml_kedro.generator.generator import Generator, Identity, save_generator
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.io.prompt_embeddings import write_prompt_embeddings
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.finetune import initial_adapter
from degaml_kedro.llm.prompting import question_text
from degaml_kedro.tasks.example import Question, make_example
from degaml_kedro.tasks.splits import TaskSplits, splits_to_frame
from tests.llm.helpers import random_adapter, tiny_base

LORA = LoraParameters(rank=2, alpha=4.0)
WRITER = AssociativeDecoder(kind="associative", depths=(0.3,), rank=4, metric_rank=2)
CPU = {"dtype": "float32", "device": "cpu"}


def tiny_settings(**changes: Any) -> PairSettings:
    """What the tiny pair was, so to say, trained with; ``changes`` replace whole groups."""
    content: dict[str, Any] = {
        "model": {"source": {"kind": "random"}, **CPU},
        "prompt": {"format": "plain", "options": "hidden"},
        "scoring": {"mode": "text"},
        "encoder": {"source": {"kind": "random"}, **CPU, "tokens": 24, "options": "hidden"},
        "policy": {
            "lora": LORA.model_dump(mode="json"),
            "families": {
                "ttt": {"ttl_steps": [1, 2], "batch_size": [1, 4]},
                "lora": {},
                "ls": {"times": [1, 2]},
                "tts": {"num_prompt_batches": [2, 3]},
                "sft": {"steps": [1, 2], "batch_size": [1, 4]},
            },
            "iterations": 2,
            "rollouts": {"count": 3},
            "training": {"epochs": 1, "learning_rate": 1e-3},
            "search": {"rounds": 2, "proposals": 3},
        },
    }
    return PairSettings.model_validate({**content, **changes})


def tiny_generator(seed: int = 0, base: BaseModel | None = None) -> Generator:
    """A generator whose adapters differ with the prompts and change answers; nothing is trained."""
    base = tiny_base() if base is None else base
    encoder = load_prompt_encoder(tiny_settings().encoder)
    adapters = [random_adapter(base, LORA, seed=seed + i) for i in range(3)]
    shapes = {name: tuple(tensor.shape) for name, tensor in adapters[0].tensors.items()}
    grid = TokenGrid.from_shapes(shapes, 32)
    checkpoints = [grid.tokenize(adapter.tensors) for adapter in adapters]
    scales = TokenScales.from_statistics(
        grid, TokenStatistics.of(grid, checkpoints, "tests"), "element"
    )
    settings = FactorizedDecoder(
        kind="factorized", condition_width=8, width=12, blocks=1, rank=4, output_scale=1.0
    )
    condition = ConditionSize(prompts=4, tokens=24, width=encoder.width)
    decoder = Decoder(settings, grid, condition, seed).eval()
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        heads = decoder.get_parameter("network.heads")
        heads.copy_(torch.randn(heads.shape, generator=source))
    return Generator(
        decoder,
        scales,
        initial_adapter(base, LORA).config,
        Identity(base.name, base.fingerprint, encoder.name, encoder.fingerprint),
        fingerprint=f"tests {seed}",
        about={"tasks": ["day_after"], "version": "0.0.0"},
        records=[{"step": 1}],
        checks=[{"step": 1}],
    )


def tiny_pair(
    seed: int = 0, policy: bool = True, writer: bool = False, **changes: Any
) -> TrainedPair:
    """A pair that a session can work with.

    Args:
        seed: of all its weights.
        policy: whether it has one.
        writer: whether it has a generator that reads examples.
        **changes: of the settings, as for :func:`tiny_settings`.
    """
    base = tiny_base()
    return TrainedPair(
        name="tiny",
        generator=tiny_generator(seed),
        policy=random_adapter(base, LORA, seed=seed + 10) if policy else None,
        settings=tiny_settings(**changes),
        about={"tasks": ["day_after"], "seed": seed, "profile": "tests", "version": "0.0.0"},
        source="tests",
        writer=ExampleGenerator.fresh(base, WRITER, LORA) if writer else None,
    )


def write_tiny_pair(folder: Path, **changes: Any) -> Path:
    """Its folder; what was there is replaced. ``changes`` as for :func:`tiny_pair`."""
    save_pair(tiny_pair(**changes), folder)
    return folder


def is_tiny(pair: TrainedPair) -> bool:
    """Whether these are the tiny pair's weights and settings."""
    expected = tiny_pair()
    assert pair.settings == tiny_settings()
    assert pair.base_model_fingerprint == expected.base_model_fingerprint
    theirs = pair.generator.decoder.state_dict()
    policy = pair.policy.tensors
    return all(
        torch.equal(value, theirs[name])
        for name, value in expected.generator.decoder.state_dict().items()
    ) and all(torch.equal(value, policy[name]) for name, value in expected.policy.tensors.items())


def tiny_parameters(**changes: Any) -> dict[str, Any]:
    """A run's parameters, as far as pairs read them."""
    settings = tiny_settings().model_dump(mode="json")
    content: dict[str, Any] = {
        "profile": "tests",
        "seed": 7,
        "model": settings["model"],
        "prompt": settings["prompt"],
        "scoring": settings["scoring"],
        "generator": {"encoder": settings["encoder"], "variants": {"mse": {}}, "draws": 2},
        "policy": settings["policy"],
        "methods": ["base", "generalization_only", "degaml"],
        "tasks": {"day_after": {"source": {"kind": "suite", "family": "day_after"}}},
        "meta_test": ["day_after"],
        "splits": {"support": 4},
    }
    return {**content, **changes}


def write_run(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """The data folder of a run that trained the tiny pair and measured it on one task.

    Args:
        folder: where.
        seed: of the pair's weights.
        **changes: of the parameters.
    """
    pair, parameters = tiny_pair(seed), tiny_parameters(**changes)
    save_generator(pair.generator, folder / "06_models" / "mse.generator")
    assert pair.policy is not None
    save_peft_folder(pair.policy, folder / "06_models" / "policy")
    for name in ("02_intermediate", "04_feature", "07_model_output", "08_reporting"):
        (folder / name).mkdir()
    every = [
        make_example(f"How much is {i} and {i + 1}?", [str(2 * i), str(2 * i + 1), "no"], gold=1)
        for i in range(14)
    ]
    splits = TaskSplits(tuple(every[:2]), tuple(every[2:6]), (), tuple(every[6:]))
    splits_to_frame(splits).to_parquet(folder / "02_intermediate" / "day_after.parquet")
    encoder = pair.settings.encoder
    texts = [question_text(Question.of(one), encoder.options) for one in every[:6]]
    read = load_prompt_encoder(encoder).encode(texts, encoder.tokens)
    file = folder / "04_feature" / "day_after.prompt_embeddings.safetensors"
    write_prompt_embeddings(read, file)
    for method in parameters["methods"]:
        row = {"task": "day_after", "method": method, "accuracy": 0.375, "n": 8, "chance": 0.25}
        write_json(folder / "07_model_output" / f"day_after.{method}.json", row)
    record = {"profile": "tests", "seed": 7, "parameters": parameters}
    write_json(folder / "08_reporting" / "run.json", record)
    return folder


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
