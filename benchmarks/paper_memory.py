"""Peak memory of the paper profiles, without a GPU and without weights: tensors that have sizes and no data.

The project's own functions run on fake tensors, and what their storages take is added up while they live. Not in it are
workspaces of a device's libraries and what its allocator leaves unused; the table allows a tenth for both. Numbers read
from tensors are 1.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.material import Settings
from benchmarks.measure import Result, Row, Spread
from benchmarks.paper_decoder import PAPER_FLOWS, PAPER_KERNEL_SIZE
from degaml_kedro.baselines import maml
from degaml_kedro.config.schema import LoraParameters, Phase, TrainingParameters
from degaml_kedro.generator.decoders.hyperconv import HyperconvDecoder, Size
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.fast.attention import ATTENTION_NAME
from degaml_kedro.llm.fast.decoder import FastDecoder, longest_packed
from degaml_kedro.llm.fast.fused import decoder_stack
from degaml_kedro.llm.finetune import AnswerSequence, initial_adapter, train_on_batches
from degaml_kedro.llm.lora import active_lora, make_adaptable
from degaml_kedro.llm.packing import TokenTree, pack_trees

# beside the tensors: workspaces, and what the allocator leaves unused
ALLOWANCE = 1.1


@dataclass(frozen=True)
class PaperScale:
    """A paper profile's sizes.

    Attributes:
        model: the published configuration's, of Qwen2.5-Instruct.
        flow: the generator's.
        device_batch_size: samples that go through the generator at once.
        at_most: bytes that a card may be asked for.
    """

    model: Mapping[str, Any]
    rank: int
    flow: tuple[Size, ...]
    device_batch_size: int
    at_most: float


SCALES = {
    "paper_0_5b": PaperScale(
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
        8,
        PAPER_FLOWS["qwen2.5-0.5b"],
        1,
        22e9,
    ),
    "paper_1_5b": PaperScale(
        {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
        16,
        PAPER_FLOWS["qwen2.5-1.5b"],
        16,
        44e9,
    ),
}  # fmt: skip
SMALL = PaperScale(
    {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    2,
    ((4, 12, 10), (8, 10, 12), (16, 4, 10)),
    2,
    1e9,
)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages made inside it that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._let_go, key).atexit = False

    def _let_go(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        found = func(*args, **(kwargs or {}))
        for one in tree_iter(found):
            if isinstance(one, Tensor):
                self.hold(one)
        return found


def fake_base(scale: PaperScale) -> BaseModel:
    """The profile's language model in bfloat16, inside a fake tensor mode."""
    config = Qwen2Config(
        vocab_size=151936, num_key_value_heads=2, tie_word_embeddings=True, **scale.model
    )
    model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model = model.eval().requires_grad_(False)
    groups = make_adaptable(model)
    model.set_attn_implementation(ATTENTION_NAME)
    fast = FastDecoder(longest_packed(config), decoder_stack(model))
    tokenizer: Any = None
    return BaseModel("fake", "fake", model, tokenizer, groups, 32768, None, fast)


def lora_of(scale: PaperScale) -> LoraParameters:
    """The profile's adapter."""
    return LoraParameters(rank=scale.rank, alpha=2.0 * scale.rank)


def texts(count: int, tokens: int, answer: int) -> list[AnswerSequence]:
    """Sequences of so many tokens, the last ``answer`` of which are the answer."""
    return [AnswerSequence(tuple(range(tokens)), answer)] * count


def generator_step(scale: PaperScale, live: LiveBytes) -> None:
    """Two optimiser steps of two micro-batches each, as ``train_generator`` takes them, in bfloat16.

    The second finds gradients of the first micro-batch and the optimiser's moments.
    """
    decoder = HyperconvDecoder(scale.flow, PAPER_KERNEL_SIZE, checkpoint=True)
    for parameter in decoder.parameters():
        live.hold(parameter)
    optimizer = torch.optim.AdamW(decoder.parameters(), fused=True)
    shapes = (scale.flow[0], scale.flow[-1])
    with live:
        for _ in range(2):
            for _ in range(2):
                given, wanted = (torch.empty(scale.device_batch_size, *shape) for shape in shapes)
                with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                    tokens = decoder(given)
                tokens = tokens.float()
                leaf = tokens.detach().requires_grad_()
                (slope,) = torch.autograd.grad((leaf - wanted).square().mean(), leaf)
                tokens.backward(slope)
            torch.nn.utils.clip_grad_norm_(list(decoder.parameters()), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def ttt_step(scale: PaperScale, live: LiveBytes) -> None:
    """A step of test-time training on 32 texts of 450 tokens, all of them but the first answers."""
    base = _held(scale, live)
    training = TrainingParameters(phases=(Phase(steps=1, learning_rate=1e-4),), batch_size=32)
    start = initial_adapter(base, lora_of(scale))
    with live:
        for _ in train_on_batches(base, lambda _: texts(32, 450, 449), training, start):
            pass


def second_order(scale: PaperScale, live: LiveBytes, inner_steps: int = 2) -> None:
    """MAML's meta-gradient on texts of 450 tokens with answers of 4: of 20 queries, and of support in two parts."""
    base = _held(scale, live)
    start = initial_adapter(base, lora_of(scale))
    with live:
        flat = maml._flatten(start, base.device)
        support = maml.support_losses(base, texts(5, 450, 4), start, inner_steps)
        query = maml._loss_in(base, [texts(20, 450, 4)], start)
        maml.meta_gradient(query, support, flat, inner_steps, 1e-4, maml.Moments.empty(flat))


def scoring(scale: PaperScale, live: LiveBytes, tokens: int = 65536) -> None:
    """What a rollout scores at once: ``batch_tokens`` tokens of 450-token questions, the generator beside them."""
    decoder = HyperconvDecoder(scale.flow, PAPER_KERNEL_SIZE)
    for parameter in decoder.parameters():
        live.hold(parameter)
    base = _held(scale, live)
    adapter = initial_adapter(base, lora_of(scale))
    trees = [TokenTree(tuple(range(450)))] * max(1, tokens // 450)
    with live, torch.inference_mode(), active_lora(base.activate_adapter(adapter)):
        base.hidden_states(pack_trees(trees, base.device, base.dtype))


def rollout(scale: PaperScale, live: LiveBytes) -> None:
    """The larger of what a rollout does with the generator beside it: a step of test-time training, and scoring."""
    scoring(scale, live)
    decoder = HyperconvDecoder(scale.flow, PAPER_KERNEL_SIZE)
    for parameter in decoder.parameters():
        live.hold(parameter)
    ttt_step(scale, live)


def _held(scale: PaperScale, live: LiveBytes) -> BaseModel:
    base = fake_base(scale)
    for parameter in base.model.parameters():
        live.hold(parameter)
    return base


PARTS: dict[str, Callable[[PaperScale, LiveBytes], None]] = {
    "a generator's training step": generator_step,
    "a step of test-time training, 32 × 450 tokens": ttt_step,
    "MAML's second order, 450 tokens a text": second_order,
    "a rollout: test-time training and scoring, the generator beside": rollout,
}


def peak_of(part: Callable[[PaperScale, LiveBytes], None], scale: PaperScale) -> int:
    """The most bytes that tensors take in a part, at once."""
    with FakeTensorMode():
        live = LiveBytes()
        part(scale, live)
        return live.peak


def run(settings: Settings) -> Result:
    """The peaks of both profiles with the allowance; a quick run takes small sizes."""
    scales = {"small": SMALL} if settings.quick else SCALES
    rows, raw = [], {}
    for profile, scale in scales.items():
        for name, part in PARTS.items():
            raw[f"{profile}: {name}"] = peak = peak_of(part, scale)
            most = None if settings.quick else scale.at_most / 1e9
            told = Spread.of([peak * ALLOWANCE / 1e9])
            rows.append(Row(f"{profile}: {name}", "GB", told, at_most=most))
    return Result("paper_memory", rows, raw)
