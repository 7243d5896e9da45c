"""What the nodes of the tokenize and generator pipelines refuse, and what a killed training goes on from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.adapters.scales import TokenScales
from degaml_kedro.adapters.tokens import GridError
from degaml_kedro.config.schema import BaseModelParameters, LoraParameters, ProjectParameters
from degaml_kedro.generator.decoders.hyperconv import FlowError
from degaml_kedro.generator.generator import Generator, GeneratorError
from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.io.generators import GeneratorProgress
from degaml_kedro.io.tokens import TokenSequence
from degaml_kedro.llm.base_model import ModelError, load_base_model
from degaml_kedro.llm.finetune import initial_adapter
from degaml_kedro.pipelines.evaluate import pipeline as evaluate
from degaml_kedro.pipelines.evaluate.nodes import generate_adapters
from degaml_kedro.pipelines.generator.nodes import read_health, train
from degaml_kedro.pipelines.policy.nodes import prompts_among
from degaml_kedro.pipelines.task_folds import TaskFold, task_folds
from degaml_kedro.pipelines.tokenize.nodes import (
    MixedTrajectoriesError,
    encode_prompts,
    measure_tokens,
    take_scales,
    tokenize_trajectory,
)
from degaml_kedro.tasks.splits import TaskSplits, splits_to_frame
from tests.generator.helpers import questions
from tests.llm.helpers import random_adapter
from tests.pipelines.helpers import SMOKE, smoke_parameters

LORA = LoraParameters(rank=2, alpha=4.0)
TASKS = ("one", "two")
TASK_ENTRIES = {
    name: {"group": name, "source": {"kind": "suite", "family": "day_after"}}
    for name in (*TASKS, "three")
}


def parameters(**changes: Any) -> ProjectParameters:
    return smoke_parameters(TASK_ENTRIES, **changes)


def base_model(**changes: Any) -> Any:
    source = {**SMOKE["model"]["source"], **changes}
    return load_base_model(BaseModelParameters.model_validate({**SMOKE["model"], "source": source}))


class FakeTrajectory:
    """Random adapters where a trained trajectory would be."""

    def __init__(self, number: int, lora: LoraParameters = LORA, **model: Any) -> None:
        base = base_model(**model)
        self.adapters = [random_adapter(base, lora, seed=100 * number + i) for i in range(3)]
        self.config = self.adapters[0].config
        self.steps = (1, 2, 3)
        self.fingerprint = f"trajectory {number}"
        self.about = {
            "base_model": base.name,
            "base_model_fingerprint": base.fingerprint,
            "start": "start",
        }

    def __len__(self) -> int:
        return 3

    def adapter(self, step: int) -> Adapter:
        return self.adapters[step - 1]


def tokens_of(task: str, number: int, lora: LoraParameters = LORA, **model: Any) -> TokenSequence:
    made: Any = FakeTrajectory(number, lora, **model)
    return tokenize_trajectory(parameters(), made, task=task)


def scales_of(*sequences: TokenSequence) -> TokenScales:
    statistics = [measure_tokens(part, task=part.about["task"]) for part in sequences]
    return take_scales(parameters(), *sequences, *statistics)


def splits(seed: int, train: int = 6, support: int = 2) -> pd.DataFrame:
    made = questions(train + support + 4, seed)
    ends = (train, train + support, train + support + 2)
    parts = TaskSplits(
        train=tuple(made[: ends[0]]),
        support=tuple(made[ends[0] : ends[1]]),
        validation=tuple(made[ends[1] : ends[2]]),
        test=tuple(made[ends[2] :]),
    )
    return splits_to_frame(parts)


def states_of(frame: pd.DataFrame, **changes: Any) -> PromptEmbeddings:
    encoder = {**SMOKE["generator"]["encoder"], **changes}
    given = parameters(generator={**SMOKE["generator"], "encoder": encoder})
    return encode_prompts(given, frame, task="one")


# --- tokenize -------------------------------------------------------------------------------------


def test_a_trajectory_s_tokens_are_its_adapters() -> None:
    made: Any = FakeTrajectory(1)
    tokens = tokenize_trajectory(parameters(), made, task="one")
    assert len(tokens) == 3
    for step, index in ((1, 0), (3, 2)):
        found = tokens.grid.detokenize(tokens.read(index))
        for name, tensor in made.adapter(step).tensors.items():
            assert torch.equal(found[name], tensor)
    modules = [slot.module.rsplit(".", 1)[-1] for slot in tokens.grid.slots if slot.layer == 0]
    order = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert modules[::2] == modules[1::2] == order


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            LORA.model_copy(update={"rank": 3}),
            "of one has rank 2, the trajectory of two has rank 3",
        ),
        (
            LORA.model_copy(update={"target_modules": ("q_proj", "v_proj")}),
            "the trajectory of one has .*k_proj.*, the trajectory of two has .*v_proj",
        ),
    ],
)
def test_trajectories_of_different_shapes_are_both_named(
    lora: LoraParameters, message: str
) -> None:
    with pytest.raises(GridError, match=message):
        scales_of(tokens_of("one", 1), tokens_of("two", 2, lora))


def test_trajectories_of_different_scales_are_both_named() -> None:
    louder = LORA.model_copy(update={"alpha": 8.0})
    with pytest.raises(
        MixedTrajectoriesError, match=r"of one has lora.alpha 4.0, .* of two has 8.0"
    ):
        scales_of(tokens_of("one", 1), tokens_of("two", 2, louder))


@pytest.mark.parametrize("model", [{"seed": 1}, {"hidden_size": 64}])
def test_trajectories_of_different_base_models_are_both_named(model: dict[str, int]) -> None:
    with pytest.raises(MixedTrajectoriesError) as caught:
        scales_of(tokens_of("one", 1), tokens_of("two", 2, **model))
    message = str(caught.value)
    for base in (base_model(), base_model(**model)):
        assert base.name in message
        assert base.fingerprint in message
    assert "the trajectory of one" in message
    assert "the trajectory of two" in message
    assert "tokenizer" in message


def test_another_tokenizer_is_another_base_model() -> None:
    one, two = tokens_of("one", 1), tokens_of("two", 2)
    # the fingerprint is of the weights, the configuration and the tokenizer
    about = {**two.about, "base_model_fingerprint": "0" * 16}
    with pytest.raises(MixedTrajectoriesError, match="another base model or tokenizer"):
        scales_of(one, dataclasses.replace(two, about=about))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_placed(value: float) -> None:
    made: Any = FakeTrajectory(1)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    made.adapters[1].tensors[name][0, 0] = value
    tokens = tokenize_trajectory(parameters(), made, task="one")
    with pytest.raises(
        GridError, match=r"checkpoint 2 of the trajectory of one .*layer 1, mlp\.up_proj, B"
    ):
        measure_tokens(tokens, task="one")


def test_prompts_are_those_of_train_then_support_and_no_others() -> None:
    frame = splits(1)
    states = states_of(frame, train_prompts=4)
    assert len(states) == 4 + 2
    unseen = frame.copy()
    # answers, validation and test may be anything
    rows = unseen["split"].isin(["validation", "test"])
    unseen.loc[rows, "prompt"] = [f"other {i}" for i in range(rows.sum())]
    unseen["response"] = "other"
    assert states_of(unseen, train_prompts=4).prompts_digest == states.prompts_digest


def test_examples_are_prompts_with_their_answers() -> None:
    frame = splits(1)
    encoder = {**SMOKE["generator"]["encoder"], "tokens": 200}
    reading = {**SMOKE["generator"], "encoder": encoder, "condition": "examples"}
    own = parameters(generator=reading, methods=["generalization_only"])
    states = encode_prompts(own, frame, task="one")
    other = frame.copy()
    rows = other["split"].isin(["validation", "test"])
    other.loc[rows, "prompt"] = [f"other {i}" for i in range(rows.sum())]
    assert encode_prompts(own, other, task="one").prompts_digest == states.prompts_digest
    other.loc[other["split"] == "support", "gold"] ^= 1
    assert encode_prompts(own, other, task="one").prompts_digest != states.prompts_digest
    with pytest.raises(
        ValueError, match=r"generator\.condition is 'examples'; leave .* degaml out"
    ):
        parameters(generator=reading, methods=["degaml"])


def test_no_prompts_are_an_error_with_a_way_out() -> None:
    with pytest.raises(ModelError, match="no prompt"):
        states_of(splits(1, train=0, support=0))


# --- training -------------------------------------------------------------------------------------


def material(**states: Any) -> list[Any]:
    frames = [splits(1), splits(2)]
    tokens = [tokens_of(name, i + 1) for i, name in enumerate(TASKS)]
    embeddings = [states_of(frames[0]), states_of(frames[1], **states)]
    return [*tokens, *embeddings, *frames]


def run(
    parts: list[Any],
    resume: GeneratorProgress | None = None,
    variant: str = "mse",
    stop: int | None = None,
    **changes: Any,
) -> list[Generator | GeneratorProgress]:
    names, left_out = changes.pop("names", TASKS), changes.pop("left_out", ())
    made = parts[: len(names)]
    scales = changes.pop("scales", None) or scales_of(*made)
    given = parameters(**{"seed": 3, **changes})
    fold = TaskFold(names, left_out, False)
    chunks = []
    for chunk in train(given, resume, scales, *parts, variant=variant, fold=fold):
        chunks.append(chunk)
        if len(chunks) == stop:
            break
    return chunks


def weights(made: Generator | GeneratorProgress) -> torch.Tensor:
    assert isinstance(made, Generator)
    return torch.cat([parameter.detach().flatten() for parameter in made.decoder.parameters()])


def settings(**changes: Any) -> dict[str, Any]:
    """The smoke profile's generator with other values, by dotted path."""
    made = yaml.safe_load(yaml.safe_dump(SMOKE["generator"], sort_keys=False))
    for path, value in changes.items():
        *way, last = path.split("__")
        place = made
        for key in way:
            place = place[key]
        place[last] = value
    return made


def test_a_killed_training_goes_on_and_ends_bit_identical() -> None:
    parts = material()
    *resting, whole = run(parts)
    # four steps, saved every two, and the last one is the generator itself
    assert [chunk.state.step for chunk in resting] == [2]  # type: ignore[union-attr]
    again = run(parts, resume=resting[0])[-1]  # type: ignore[arg-type]
    assert torch.equal(weights(again), weights(whole))
    assert isinstance(whole, Generator)
    assert isinstance(again, Generator)
    assert again.fingerprint == whole.fingerprint
    for name in ("records", "checks"):
        mine, theirs = (
            pd.DataFrame(list(getattr(made, name))).drop(columns="seconds", errors="ignore")
            for made in (whole, again)
        )
        pd.testing.assert_frame_equal(mine, theirs)
    steps, checks = read_health(whole)
    assert list(steps["step"]) == [1, 2, 3, 4]
    assert set(checks["step"]) == {2, 4}
    assert set(checks["task"]) == set(TASKS)
    assert checks[checks["matrix"] == "all"]["accuracy"].between(0, 1).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"generator": settings(prompts=2)},
        {"generator": settings(tokenization__center="matrix")},
        {"generator": settings(variants__mse__training__learning_rate=1e-2)},
        {"generator": settings(variants__mse__decoder__blocks=2)},
        {"prompt": {**SMOKE["prompt"], "options": "hidden"}},
    ],
    ids=["seed", "prompts", "center", "rate", "blocks", "prompt"],
)
def test_what_was_made_with_other_settings_is_not_gone_on_with(
    changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    parts = material()
    (resting,) = run(parts, stop=1)
    caplog.set_level("INFO")
    fresh = run(parts, **changes)[-1]
    again = run(parts, resume=resting, **changes)[-1]  # type: ignore[arg-type]
    assert "made with other settings; it starts over" in caplog.text
    assert torch.equal(weights(fresh), weights(again))


def test_other_data_are_not_gone_on_with(caplog: pytest.LogCaptureFixture) -> None:
    (resting,) = run(material(), stop=1)
    caplog.set_level("INFO")
    parts = material()
    parts[1] = tokens_of("two", 7)
    run(parts, resume=resting)  # type: ignore[arg-type]
    assert "it starts over" in caplog.text


def test_errors_are_measured_on_the_tasks_left_out_and_nothing_is_learned_of_them() -> None:
    parts = material()
    names, left_out = ("one",), ("two",)
    made = run(parts, names=names, left_out=left_out)[-1]
    assert isinstance(made, Generator)
    held_out = {row["task"]: row["held_out"] for row in made.checks}
    assert held_out == {"one": False, "two": True}
    # other tokens of the task left out, the same generator
    parts[1] = tokens_of("two", 7)
    assert torch.equal(weights(made), weights(run(parts, names=names, left_out=left_out)[-1]))


def test_the_task_left_out_must_be_of_the_same_shape() -> None:
    parts = material()
    parts[1] = tokens_of("two", 2, LORA.model_copy(update={"rank": 3}))
    with pytest.raises(GridError, match="of one has rank 2, the trajectory of two has rank 3"):
        run(parts, names=("one",), left_out=("two",))


def test_trajectories_of_another_base_model_than_the_run_s() -> None:
    model = {**SMOKE["model"], "source": {**SMOKE["model"]["source"], "seed": 5}}
    with pytest.raises(GeneratorError, match=r"makes adapters for .* but the base model is"):
        run(material(), model=model)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (
            {"source": {"kind": "random", "hidden_size": 16, "seed": 1}},
            "the prompts of two were read",
        ),
        ({"source": {"kind": "random", "hidden_size": 8}}, "the prompts of two were read"),
        ({"tokens": 9}, "of the prompts of two 9 tokens are kept, of those of one 24"),
    ],
)
def test_prompts_of_different_encoders_are_both_named(states: dict[str, Any], message: str) -> None:
    with pytest.raises(GeneratorError, match=message):
        run(material(**states))


def test_a_task_without_train_prompts() -> None:
    parts = material()
    parts[3], parts[5] = states_of(splits(2, train=0)), splits(2, train=0)
    with pytest.raises(GeneratorError, match="the task two has no prompts"):
        run(parts)


def test_a_flow_that_does_not_fit_is_refused_before_training() -> None:
    decoder = {"kind": "hyperconvolutional", "flow": [[3, 25, 16], [5, 4, 18]], "kernel_size": 3}
    with pytest.raises(FlowError, match="prompt tokens \\(L\\) 24 instead of 25"):
        run(material(), generator=settings(variants__mse__decoder=decoder))


def test_what_auto_is_here_is_stored_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for native, precision in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        made = run(material(), generator=settings(variants__mse__training__precision="auto"))[-1]
        assert made.about["training"]["precision"] == precision
        assert f"multiply-adds a sample, in {precision}" in caplog.text
        explicit = settings(variants__mse__training__precision=precision)
        assert run(material(), generator=explicit)[-1].fingerprint == made.fingerprint


# --- generating -----------------------------------------------------------------------------------


def generate(
    made: Any, states: PromptEmbeddings, frame: pd.DataFrame, **changes: Any
) -> list[Adapter]:
    model = changes.pop("model", SMOKE["model"])
    *adapters, spent = generate_adapters(
        parameters(seed=3, model=model, generator={**SMOKE["generator"], **changes}),
        made,
        states,
        frame,
        task="three",
        method="generalization_only",
        prompts_of="three",
    )
    # an adapter costs no token of the base model
    assert (spent["stage"], spent["task"], spent["tokens"]) == ("adaptation", "three", 0)
    return adapters


@pytest.fixture(scope="module")
def trained() -> Any:
    return run(material(), generator=settings(variants__mse__training__learning_rate=0.1))[-1]


def test_adapters_are_made_of_support_prompts_alone(trained: Generator) -> None:
    frame = splits(3, support=4)
    adapters = generate(trained, states_of(frame), frame, draws=3)
    assert len(adapters) == 3
    shape = initial_adapter(base_model(), LORA)
    for adapter in adapters:
        assert adapter.config == shape.config
        assert adapter.tensors.keys() == shape.tensors.keys()
    names = list(shape.tensors)
    assert any(not torch.equal(adapters[0].tensors[n], adapters[1].tensors[n]) for n in names)
    # whatever the other splits say
    again = generate(trained, *with_others(frame, "train", "validation", "test"), draws=3)
    for one, two in zip(adapters, again, strict=True):
        assert all(torch.equal(one.tensors[n], two.tensors[n]) for n in names)


def with_others(frame: pd.DataFrame, *parts: str) -> tuple[PromptEmbeddings, pd.DataFrame]:
    """The same splits with other prompts in some of them."""
    other, rows = frame.copy(), frame["split"].isin(parts)
    other.loc[rows, "prompt"] = [f"other {i}" for i in range(rows.sum())]
    return states_of(other), other


def test_adapters_are_made_of_a_pool_of_unlabelled_prompts_where_there_is_one(
    trained: Generator,
) -> None:
    def made(states: PromptEmbeddings, frame: pd.DataFrame, kind: str) -> list[torch.Tensor]:
        return [*generate(trained, states, frame, draws=1, prompts_from=kind)[0].tensors.values()]

    def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return all(map(torch.equal, one, other))

    frame = splits(3, support=4)
    pooled = made(states_of(frame), frame, "train")
    assert not same(pooled, made(states_of(frame), frame, "support"))
    assert same(pooled, made(*with_others(frame, "support", "validation", "test"), "train"))
    assert not same(pooled, made(*with_others(frame, "train"), "train"))
    # without a pool it is the support prompts
    bare = splits(3, train=0, support=4)
    states = states_of(bare)
    assert same(made(states, bare, "train"), made(states, bare, "support"))
    # rollouts have the same rule
    assert prompts_among(states_of(frame), 4, unlabelled=True) == range(len(states_of(frame)) - 4)
    assert prompts_among(states, 4, unlabelled=True) == range(4)


def test_a_pool_of_unlabelled_prompts_has_no_answers() -> None:
    with pytest.raises(ValueError, match="with condition 'examples' answers are read"):
        parameters(generator=settings(condition="examples", prompts_from="train"))


def test_fewer_support_prompts_than_a_batch_are_enough(trained: Generator) -> None:
    frame = splits(3, support=1)
    assert len(generate(trained, states_of(frame), frame)) == 2


def test_a_generator_of_another_base_model_or_encoder_is_refused(trained: Generator) -> None:
    frame = splits(3)
    other = {**SMOKE["model"], "source": {**SMOKE["model"]["source"], "seed": 5}}
    with pytest.raises(GeneratorError, match="the generator makes adapters for"):
        generate(trained, states_of(frame), frame, model=other)
    source = {"kind": "random", "hidden_size": 16, "seed": 1}
    with pytest.raises(GeneratorError, match="encode them with the generator's encoder"):
        generate(trained, states_of(frame, source=source), frame)
    with pytest.raises(GeneratorError, match=r"set generator\.encoder\.tokens to 24"):
        generate(trained, states_of(frame, tokens=9), frame)


# --- which tasks belong together ------------------------------------------------------------------


def test_folds_leave_tasks_out() -> None:
    everything, fold = task_folds(smoke_parameters())
    assert everything == TaskFold(("kind_member", "day_after"), (), False)
    assert fold == TaskFold(("kind_member",), ("day_after",), True)
    assert (everything.label, fold.label) == ("all", "without_day_after")
    assert everything.name("token_scales") == "token_scales"
    assert fold.name("token_scales") == "without_day_after.token_scales"
    assert (everything.pool, fold.pool) == ("pool", "without_day_after.pool")
    assert fold.trajectory_of("day_after") == "without_day_after.day_after"


def test_trajectories_from_the_shared_start_serve_every_fold() -> None:
    trajectory = {**SMOKE["trajectory"], "start": "shared_random"}
    _, fold = task_folds(smoke_parameters(trajectory=trajectory))
    assert fold.trajectory_of("day_after") == "day_after"


@pytest.mark.parametrize(
    ("meta_test", "leave_out", "expected"),
    [
        # a stranger is preferred to a relative
        (["day_before"], [], {"day_before": "kind_member"}),
        (["day_before"], [["day_after"]], {"day_after": "day_before", "day_before": "kind_member"}),
        # the only unseen task: its prompts would be no control
        ([], [["kind_member"]], {"kind_member": "day_after"}),
    ],
)
def test_the_control_gets_another_task_s_prompts(
    meta_test: list[str], leave_out: list[list[str]], expected: dict[str, str]
) -> None:
    generator = {**SMOKE["generator"], "leave_out": leave_out}
    given = smoke_parameters(generator=generator, meta_test=meta_test)
    cells = [cell for cell in evaluate.evaluation_cells(given) if cell.pool != "meta_train"]
    assert {cell.task: evaluate.other_task(given, cell) for cell in cells} == expected


def test_what_the_generator_needs_is_made_only_where_a_method_needs_it(tmp_path: Path) -> None:
    assert smoke_parameters().trained_variants == ("mse", "sft", "examples")
    assert smoke_parameters(methods=["base", "generalization_only"]).trained_variants == ("mse",)
    assert smoke_parameters(methods=["base", "other_prompts_sft"]).trained_variants == ("sft",)
