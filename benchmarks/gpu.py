"""All that is to be measured on a card, in one go: ``python -m benchmarks gpu [--parts A,B] [--quick] [--device cpu]``.

Each part runs in a process of its own, one after another; what it found, or why it failed, goes into one file,
``results/gpu.json``, which is written anew after every part. Weights that would have to be downloaded are random: what
is timed does not depend on them. Peak memory is that of tensors on a card, of the process on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from benchmarks import fused, generation, scoring
from benchmarks.material import PROMPT, SEED, Settings, peer_model, require, suite_examples
from benchmarks.measure import child, describe_machine, now, write
from benchmarks.memory import peak_bytes
from benchmarks.paper_decoder import PAPER_KERNEL_SIZE
from benchmarks.paper_memory import SCALES, SMALL, PaperScale, fake_base, lora_of, texts
from degaml_kedro.adapters.scales import TokenScales, TokenStatistics
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.config.schema import (
    GeneratorTraining,
    HyperconvolutionalDecoder,
    LoraParameters,
    Phase,
    ScoringParameters,
    TrainingParameters,
)
from degaml_kedro.generator.decoders.build import Computing, ConditionSize, Decoder
from degaml_kedro.generator.decoders.hyperconv import decoder_cost
from degaml_kedro.generator.generator import Generator, Identity
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.generator.training import TrainingTask, train_generator
from degaml_kedro.llm.base_model import choose_device, choose_dtype, load_base_model
from degaml_kedro.llm.fast.decoder import largest_difference
from degaml_kedro.llm.finetune import fine_tune, initial_adapter, train_on_batches
from degaml_kedro.llm.scoring import score_examples

_ROOT = Path(__file__).parents[1]
# settings that are off until measured, and where each stands
OPTIONS = {
    "compile": "training",
    "prefetch": "training",
    "cast_weights": "training",
    "pad_channels": "decoder",
}
WARM_UP = 2


def measured_peak(device: torch.device) -> int:
    """The most bytes so far: of tensors on a card, since its last reset; else of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()


def _fresh_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


# --- the paper's decoder ---------------------------------------------------------------------------


def paper_generator(scale: PaperScale, pad_channels: bool = False) -> Generator:
    """A generator with the profile's decoder and fresh weights, for adapters of the flow's last size."""
    (prompts, tokens, width), (count, height, columns) = scale.flow[0], scale.flow[-1]
    rank, token_width = height - 2, columns - 2
    # one module of as many tokens: how its cells belong to layers does not matter here
    shapes = {
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": (rank, token_width),
        "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": ((count - 1) * token_width, rank),
    }  # fmt: skip
    grid = TokenGrid.from_shapes(shapes, token_width)
    settings = HyperconvolutionalDecoder(
        kind="hyperconvolutional",
        flow=scale.flow,
        kernel_size=PAPER_KERNEL_SIZE,
        checkpoint=True,
        pad_channels=pad_channels,
    )
    decoder = Decoder(settings, grid, ConditionSize(prompts, tokens, width), SEED)
    noise = torch.randn(count, rank, token_width, generator=torch.Generator().manual_seed(SEED))
    statistics_ = TokenStatistics.of(grid, (noise, -0.5 * noise), "noise")
    lora = LoraParameters(rank=rank, alpha=2.0 * rank)
    base = Settings(quick=True).base()
    return Generator(
        decoder,
        TokenScales.from_statistics(grid, statistics_, "matrix"),
        initial_adapter(base, lora).config,
        Identity(base.name, base.fingerprint, "noise", "noise"),
    )


def _states(condition: ConditionSize) -> PromptEmbeddings:
    """Random states of twice as many prompts as a condition has, all of full length."""
    count = 2 * condition.prompts
    source = torch.Generator().manual_seed(SEED)
    drawn = torch.randn(count * condition.tokens, condition.width, generator=source).half()
    starts = torch.arange(count) * condition.tokens
    lengths = torch.full((count,), condition.tokens, dtype=torch.int32)
    return PromptEmbeddings(
        drawn, starts, lengths, condition.tokens, condition.width, "noise", "noise", "noise"
    )


def decoder_steps(scale: PaperScale, steps: int, option: str | None = None) -> dict[str, Any]:
    """Times, rates and peak memory of the decoder's forward pass and of steps of two micro-batches each.

    Args:
        scale: which decoder, and how many samples go through it at once.
        steps: that count.
        option: one of ``OPTIONS``, to be turned on.
    """
    device = choose_device("auto")
    _fresh_peak(device)
    generator = paper_generator(scale, pad_channels=option == "pad_channels")
    decoder = generator.decoder.to(device).eval()
    stored, at_once = _states(decoder.condition), scale.device_batch_size
    rows = torch.arange(decoder.condition.prompts).expand(at_once, -1)
    states, lengths = (one.to(device) for one in stored.rows(rows))
    computing = Computing(choose_dtype("auto", device), device)
    forward = []
    permutation = torch.ones(at_once, 1, device=device)
    for _ in range(steps + WARM_UP):
        began = now(device)
        with torch.no_grad(), computing.context():
            decoder(states.float(), lengths, permutation)
        forward.append(now(device) - began)
    forward_peak = measured_peak(device)
    _fresh_peak(device)
    training = GeneratorTraining(
        steps=steps + WARM_UP,
        batch_size=2 * at_once,
        device_batch_size=at_once,
        precision="auto",
        **{name: True for name in (option,) if name and OPTIONS[name] == "training"},
    )
    grid = generator.grid
    source = torch.Generator().manual_seed(SEED)
    kept = [torch.randn(grid.tokens, grid.rank, grid.token_width, generator=source)]
    task = TrainingTask("noise", stored, range(len(stored)), lambda _: kept[0], 1)
    seconds, losses = [], []
    began = now(device)
    taken = train_generator(
        generator, [task], training, SEED, Accelerator(cpu=device.type == "cpu")
    )
    for step in taken:
        seconds.append(now(device) - began)
        losses.append(step.record.loss)
        began = now(device)
    step_seconds = statistics.median(seconds[WARM_UP:])
    forward_seconds = statistics.median(forward[WARM_UP:])
    flop = 2 * decoder_cost(scale.flow, PAPER_KERNEL_SIZE).multiply_adds
    return {
        "parameters": decoder.parameter_count,
        "samples_at_once": at_once,
        "dtype": str(computing.dtype).removeprefix("torch."),
        "forward_seconds": forward_seconds,
        "forward_tflop_per_second": flop * at_once / forward_seconds / 1e12,
        "forward_peak_gb": forward_peak / 1e9,
        "step_samples": 2 * at_once,
        "step_seconds": step_seconds,
        # forward, backward, and the features that are computed again
        "step_tflop_per_second": 4 * flop * 2 * at_once / step_seconds / 1e12,
        "step_peak_gb": measured_peak(device) / 1e9,
        "first_step_seconds": seconds[0],
        "losses": losses,
    }


def _scale(profile: str, settings: Settings) -> PaperScale:
    return SMALL if settings.quick else SCALES[profile]


def decoder_part(profile: str) -> Callable[[Settings], dict[str, Any]]:
    """The decoder of a paper profile."""
    return lambda settings: decoder_steps(_scale(profile, settings), settings.either(5, 1))


def option_ratios(settings: Settings) -> dict[str, Any]:
    """A step of the 0.5B decoder without and with each setting that is off until measured; above 1, it helps."""
    scale, steps = _scale("paper_0_5b", settings), settings.either(5, 1)
    if settings.quick:
        # minutes of a compiler, for numbers that mean nothing
        torch.compile = partial(torch.compile, backend="eager")
    found: dict[str, Any] = {"off": (off := decoder_steps(scale, steps))}
    for option in OPTIONS:
        try:
            found[option] = on = decoder_steps(scale, steps, option)
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            # out of memory, or no compiler: the others are measured all the same
            found[option] = {"error": f"{type(error).__name__}: {error}"}
        else:
            on["times_as_fast"] = off["step_seconds"] / on["step_seconds"]
            on["loss_difference"] = max(
                abs(a - b) for a, b in zip(off["losses"], on["losses"], strict=True)
            )
    return found


# --- the language model ----------------------------------------------------------------------------


def test_time_training(settings: Settings) -> dict[str, Any]:
    """Steps on 32 texts of 450 tokens, all but the first answers, by both models' sizes with random weights."""
    count, tokens = settings.either(32, 2), settings.either(450, 20)
    device, steps = choose_device("auto"), settings.either(5, 1)
    found = {}
    for profile, scale in {"small": SMALL}.items() if settings.quick else SCALES.items():
        _fresh_peak(device)
        with torch.device(device):
            base = fake_base(scale)
        phases = (Phase(steps=steps + WARM_UP, learning_rate=1e-4),)
        training = TrainingParameters(phases=phases, batch_size=count)
        start = initial_adapter(base, lora_of(scale))
        seconds, began = [], now(device)
        for _ in train_on_batches(
            base, lambda _: texts(count, tokens, tokens - 1), training, start
        ):
            seconds.append(now(device) - began)
            began = now(device)
        median = statistics.median(seconds[WARM_UP:])
        found[profile] = {
            "texts": count,
            "tokens": tokens,
            "dtype": str(base.dtype).removeprefix("torch."),
            "step_seconds": median,
            "tokens_per_second": count * tokens / median,
            "peak_gb": measured_peak(device) / 1e9,
        }
        del base
    return found


def fast_path(settings: Settings) -> dict[str, Any]:
    """Whether the fast path computes in bfloat16 what the library's modules do, and how fast.

    Both are compared with the modules in float32: the fast path is right where it is no further off than rounding
    takes the modules themselves, twice over.
    """
    base = load_base_model(settings.model.model_copy(update={"dtype": "bfloat16"}))
    exact = load_base_model(settings.model.model_copy(update={"dtype": "float32"}))
    if base.fast is None or base.fast.stack is None or exact.fast is None:
        return {"recognised": False, "model": base.name}
    modules = replace(base, fast=replace(base.fast, stack=None))
    exact = replace(exact, fast=replace(exact.fast, stack=None))
    examples = suite_examples(settings.either(64, 4))
    steps = settings.either(8, 2)
    phases = (Phase(steps=steps, learning_rate=5e-4),)
    training = TrainingParameters(phases=phases, batch_size=min(8, len(examples)))

    def scores(model: Any) -> torch.Tensor:
        answers = score_examples(model, examples, PROMPT, ScoringParameters(mode="text"), None)
        # up to a constant that an example's options share
        parts = [torch.tensor(one.option_scores).log_softmax(0) for one in answers]
        return torch.cat(parts)

    def losses(model: Any) -> torch.Tensor:
        start = initial_adapter(model, LoraParameters())
        taken = fine_tune(model, examples, PROMPT, "text", training, start, SEED)
        return torch.tensor([step.loss for step in taken])

    found: dict[str, Any] = {"recognised": True, "model": base.name}
    with torch.inference_mode():
        found["largest_relative_difference_of_logits"] = largest_difference(base)
    for what, measure in (("scores", scores), ("losses", losses)):
        truth = measure(exact)
        fast, library = ((measure(one) - truth).abs().max().item() for one in (base, modules))
        found[what] = {"fast_off": fast, "modules_off": library, "equal": fast <= 2 * library}
    found["speed"] = fused.compare(base, settings).as_json()["rows"]
    return found


def scoring_rate(settings: Settings) -> dict[str, Any]:
    """Tokens a second of scoring, against lm-evaluation-harness with the batch size that it finds by itself."""
    require("lm_eval")
    base = settings.base()
    blocks, size = settings.either(5, 1), settings.either(192, 4)
    examples = suite_examples(size * (blocks + 1))
    harness = scoring.open_harness(base, peer_model(base), "auto", max_batch_size=settings.either(1024, 4))  # fmt: skip
    prompt = scoring.prompt_for("text")
    found = scoring.compare(base, harness, examples, prompt, "text", size, warm_up=True)
    # of prompt and options, as the harness reads them: a row an option
    rows = scoring.row_tokens(base, examples[size:], prompt, "text") / (len(examples) - size)
    ratios = [ours / peer for ours, peer in zip(found.ours, found.peer, strict=True)]
    return {
        "dtype": str(base.dtype).removeprefix("torch."),
        "tokens_an_example": rows,
        "tokens_per_second": statistics.median(found.ours) * rows,
        "peer_tokens_per_second": statistics.median(found.peer) * rows,
        "ratios": ratios,
        "answers": scoring.accuracies(found),
    }


def generation_latency(settings: Settings) -> dict[str, Any]:
    """From prompts to an adapter's folder, with the embedded profile's generator."""
    return generation.run(settings).as_json()


# --- whole runs ------------------------------------------------------------------------------------


def profile_run(env: str, quick_pipeline: str) -> Callable[[Settings], dict[str, Any]]:
    """A profile's run on whatever device there is, in folders of its own; a quick one runs one pipeline alone."""

    def part(settings: Settings) -> dict[str, Any]:
        from kedro.framework.session import KedroSession
        from kedro.framework.startup import bootstrap_project

        bootstrap_project(_ROOT)
        with tempfile.TemporaryDirectory() as folder:
            conf, data = Path(folder) / "conf", Path(folder) / "data"
            shutil.copytree(_ROOT / "conf", conf)
            for name in ("base", "smoke"):
                (conf / name / "globals.yml").write_text(f"data: {data}\n", encoding="utf-8")
            tracking = yaml.safe_load((conf / "base/mlflow.yml").read_text(encoding="utf-8"))
            tracking["server"] = {"mlflow_tracking_uri": f"sqlite:///{folder}/mlflow.db"}
            (conf / "base/mlflow.yml").write_text(yaml.safe_dump(tracking), encoding="utf-8")
            given: dict[str, Any] = {"model": {"device": "auto", "dtype": "auto"}}
            given["generator"] = {"encoder": {"device": "auto", "dtype": "auto"}}
            session = KedroSession.create(_ROOT, env=env, conf_source=str(conf), runtime_params=given)  # fmt: skip
            began = time.perf_counter()
            with session:
                session.run(pipeline_names=[quick_pipeline] if settings.quick else None)
            seconds = time.perf_counter() - began
            results = data / "08_reporting/results.json"
            told = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
        device = choose_device("auto")
        return {
            "seconds": seconds,
            "device": str(device),
            "peak_gb": measured_peak(device) / 1e9,
            "results": told.get("results"),
        }

    return part


PARTS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "smoke": profile_run("smoke", "checkpoints"),
    "fast_path": fast_path,
    "decoder_0_5b": decoder_part("paper_0_5b"),
    "decoder_1_5b": decoder_part("paper_1_5b"),
    "options": option_ratios,
    "generation": generation_latency,
    "test_time_training": test_time_training,
    "scoring": scoring_rate,
    "embedded": profile_run("base", "tasks"),
}


def in_child(name: str, quick: bool, device: str) -> dict[str, Any]:
    """What a part finds in a process of its own, or how that ended."""
    # a process that sees no card takes the CPU
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    began = time.perf_counter()
    done = child(
        "benchmarks.gpu",
        name,
        *(["--quick"] if quick else []),
        env={**os.environ, **hidden},
        stderr=subprocess.PIPE,
    )
    told: dict[str, Any] = {"wall_seconds": time.perf_counter() - began}
    if done.returncode == 0:
        return {**told, **json.loads(done.stdout.splitlines()[-1])}
    said = "\n".join(done.stderr.strip().splitlines()[-15:])
    return {**told, "error": f"exit status {done.returncode}: {said}"}


def main(arguments: Sequence[str], results: Path) -> int:
    """Run the parts, print each, write what they found; 1 where one failed.

    Args:
        arguments: of the command line.
        results: where the file goes unless the command says so.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--parts", help=f"of {','.join(PARTS)}, with commas between; all of them")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks the code")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results, none when quick")
    asked = parser.parse_args(arguments)
    parts = asked.parts.split(",") if asked.parts else list(PARTS)
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"there is no part '{unknown[0]}'; there are {', '.join(PARTS)}")
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "there is no CUDA device here; --device cpu --quick checks the code without one"
        )
    output = asked.output or (None if asked.quick else results)
    found: dict[str, Any] = {}
    for name in parts:
        print(f"{name} …", file=sys.stderr, flush=True)
        found[name] = in_child(name, asked.quick, asked.device)
        print(json.dumps({name: found[name]}, ensure_ascii=False), flush=True)
        if output is not None:
            content = {
                "benchmark": "gpu",
                "quick": asked.quick,
                "device": asked.device,
                "parts": found,
            }
            write(output / "gpu.json", content, describe_machine())
    return int(any("error" in part for part in found.values()))


if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](Settings(quick="--quick" in sys.argv[2:]))))
