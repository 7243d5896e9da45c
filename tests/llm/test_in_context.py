"""Questions behind demonstrations that were computed before: scores as if every whole prompt stood alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig

from degaml_kedro.config.schema import LoraParameters, PromptParameters, ScoringParameters
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.fast import FastDecoder
from degaml_kedro.llm.fast.attention import ATTENTION_NAME
from degaml_kedro.llm.in_context import (
    PrefixMemory,
    compare_in_context,
    encode_in_context,
    in_context_prompt,
)
from degaml_kedro.llm.lora import active_lora, make_adaptable
from degaml_kedro.llm.packing import Pack, TokenTree, pack_trees
from degaml_kedro.llm.scoring import OptionScores, score_examples
from degaml_kedro.tasks.example import Example, Question, make_example
from tests.llm.helpers import by_modules, random_adapter, tiny_base

PLAIN = PromptParameters(format="plain", options="hidden")
VERBATIM = PromptParameters(format="plain", plain_prefix="", plain_suffix="")
TEXT = ScoringParameters(mode="text", batch_tokens=128)


def unrecognised(config: object) -> BaseModel:
    """A model whose attention runs in the library's own modules."""
    config._attn_implementation = ATTENTION_NAME  # type: ignore[attr-defined]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        for weights in model.parameters():
            torch.nn.init.normal_(weights, std=0.2)
    tokenizer = tiny_base().tokenizer
    return BaseModel(
        "tiny", "tiny", model, tokenizer, make_adaptable(model), 1024, fast=FastDecoder(None, None)
    )


BASES = {
    "llama": tiny_base,
    "llama by modules": lambda: by_modules(tiny_base()),
    "gpt2": lambda: unrecognised(
        GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=1024)
    ),
    "neox": lambda: unrecognised(
        GPTNeoXConfig(
            vocab_size=259,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    ),
}


def capitals(count: int, first: int = 0) -> list[Example]:
    return [
        make_example(f"What is {i} and 1{'?' * (i % 3)}", [str(i), f"{i + 1}."], gold=1)
        for i in range(first, first + count)
    ]


SHOWN, ASKED = capitals(5), capitals(9, 5)


def found(
    base: BaseModel,
    memory: PrefixMemory,
    asked: Sequence[Example] = ASKED,
    shown: Sequence[Example] = SHOWN,
    prompt: PromptParameters = PLAIN,
) -> OptionScores:
    questions = [Question.of(example) for example in asked]
    every = [shown] * len(asked)
    encoded = encode_in_context(base, questions, every, prompt, "text", shared=True)
    return compare_in_context(base, encoded, prompt, TEXT, memory)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every pass from now on."""
    computed: list[int] = []
    hidden_states = BaseModel.hidden_states

    def counted(self: BaseModel, pack: Pack, elementary: bool = False) -> torch.Tensor:
        computed.append(pack.tokens)
        return hidden_states(self, pack, elementary)

    monkeypatch.setattr(BaseModel, "hidden_states", counted)
    return computed


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize("adapted", [False, True])
def test_scores_are_those_of_every_whole_prompt_by_itself(
    name: str, form: str, adapted: bool
) -> None:
    base = BASES[name]()
    assert base.fast is not None
    assert (base.fast.stack is not None) == (name == "llama")
    prompt = PromptParameters(format=form, options="hidden")  # type: ignore[arg-type]
    layers = {"gpt2": ("c_attn",), "neox": ("dense",)}.get(name, ("q_proj", "down_proj"))
    lora = LoraParameters(rank=2, target_modules=layers)
    adapter = random_adapter(base, lora) if adapted else None
    # one reads like a demonstration, which is left out for it
    asked = [*ASKED, SHOWN[2]]
    memory = PrefixMemory()
    with active_lora(base.activate_adapter(adapter)):
        mine = [found(base, memory, asked, prompt=prompt).scores[0] for _ in range(2)]
    expected = []
    for example in asked:
        text = in_context_prompt(base, Question.of(example), SHOWN, prompt, "text")
        whole = dataclasses.replace(example, prompt=text, system="")
        if form == "chat":
            # without the space that plain answers begin with
            options = tuple(example.options)
            ids = base.tokenizer(text, add_special_tokens=False).input_ids
            answers = [base.tokenizer(o, add_special_tokens=False).input_ids for o in options]
            scores = []
            with torch.no_grad(), active_lora(base.activate_adapter(adapter)):
                for answer in answers:
                    logits = base.model(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
                    places = range(len(ids) - 1, len(ids) + len(answer) - 1)
                    scores.append(
                        sum(float(logits[p, t]) for p, t in zip(places, answer, strict=True))
                    )
            expected.append(tuple(scores))
        else:
            expected += [
                p.option_scores for p in score_examples(base, [whole], VERBATIM, TEXT, adapter)
            ]
    for scores in mine:
        for one, other in zip(scores, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("name", BASES)
def test_trees_behind_beginnings_of_a_prefix_are_whole_sequences(name: str) -> None:
    base = BASES[name]()
    head = (11, 12, 13, 14, 15)
    trees = [TokenTree((21, 22), ((23, 24), (25,))), TokenTree((31,)), TokenTree((41, 42, 43))]
    behind = (5, 3, 0)
    whole = [
        TokenTree(head[:count] + tree.prefix, tree.branches)
        for tree, count in zip(trees, behind, strict=True)
    ]
    with torch.inference_mode():
        prefix = base.read_prefix(head)
        short = base.hidden_states(pack_trees(trees, base.device, base.dtype, prefix, behind))
        pack = pack_trees(whole, base.device, base.dtype)
        long = base.hidden_states(pack)
    rows = [
        row
        for start, tree, count in zip(pack.starts, trees, behind, strict=True)
        for row in range(start + count, start + count + len(tree))
    ]
    torch.testing.assert_close(short, long[rows], atol=1e-4, rtol=1e-4)


def test_demonstrations_are_computed_once_whatever_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, memory = tiny_base(), PrefixMemory()
    computed = watched(monkeypatch)
    first = found(base, memory)
    assert sum(first.tokens) == sum(computed)
    head = computed[0]
    assert head > max(computed[1:])
    computed.clear()
    again = found(base, memory)
    assert again.scores == first.scores
    assert sum(again.tokens) == sum(computed) == sum(first.tokens) - head
    # by itself, the one that leaves a demonstration out, and behind fewer of them
    for asked, shown in (([ASKED[0]], SHOWN), ([SHOWN[4]], SHOWN), (ASKED, SHOWN[:3])):
        computed.clear()
        found(base, memory, asked, shown)
        assert max(computed) < head
        assert len(computed) == 1 or shown != SHOWN
    # more of them, others, and another model are read anew
    for model, shown in ((base, capitals(6)), (base, SHOWN[::-1]), (tiny_base(seed=1), SHOWN)):
        computed.clear()
        found(model, memory, ASKED[1:], shown)
        assert computed[0] >= head - 8
        computed.clear()
        found(model, memory, ASKED[1:], shown)
        assert max(computed) <= TEXT.batch_tokens < head


def test_a_copy_remembers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    base, memory = tiny_base(), PrefixMemory()
    found(base, memory)
    computed = watched(monkeypatch)
    for other in (copy.copy(memory), copy.deepcopy(memory)):
        computed.clear()
        found(base, other)
        assert computed[0] > TEXT.batch_tokens
    computed.clear()
    found(base, memory)
    assert max(computed) <= TEXT.batch_tokens


def test_nothing_learns_behind_a_prefix() -> None:
    base = tiny_base()
    adapter = random_adapter(base, LoraParameters(rank=2))
    layers = {
        name: (a.requires_grad_(), b.requires_grad_()) for name, (a, b) in adapter.layers().items()
    }
    prefix = base.read_prefix((5, 6, 7))
    pack = pack_trees([TokenTree((8, 9))], base.device, base.dtype, prefix, (3,))
    with (
        active_lora(base.activate(layers, 1.0)),
        pytest.raises(RuntimeError, match="learned behind a prefix"),
    ):
        base.hidden_states(pack)


def test_no_demonstrations_are_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    computed = watched(monkeypatch)
    mine = found(base, PrefixMemory(), shown=[])
    assert sum(mine.tokens) == sum(computed)
    plain = score_examples(base, ASKED, PLAIN, TEXT)
    for one, other in zip(mine.scores[0], plain, strict=True):
        assert one == pytest.approx(other.option_scores, abs=1e-5)
    assert found(base, PrefixMemory(), asked=[]) == OptionScores([[]], [])
