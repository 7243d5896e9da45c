"""Several adapters in one batched forward, against plain PEFT asked one adapter after the other."""

from __future__ import annotations

import pytest
import torch

from degaml_kedro.adapters.adapter import Adapter, parse_key
from degaml_kedro.config.schema import LoraParameters, PromptParameters, ScoringParameters
from degaml_kedro.llm.base_model import ModelError
from degaml_kedro.llm.lora import active_lora
from degaml_kedro.llm.packing import TokenTree, pack_trees
from degaml_kedro.llm.scoring import compare_options
from tests.llm.helpers import by_modules, peft_copy, random_adapter, tiny_base
from tests.llm.test_scoring import reference_scores
from tests.strategies.helpers import examples

PLAIN = PromptParameters(format="plain", options="inline")
# with a normalization the scores are log-probabilities, and not up to a constant
TEXT = ScoringParameters(mode="text", normalization="tokens")
SEQUENCES = [(1, 2, 3, 4, 5), (7,), (9, 8, 7), (3, 3)]


@pytest.fixture(params=["stack", "library"])
def base(request):
    """The model as one function, and as the library's code runs it."""
    found = tiny_base()
    return found if request.param == "stack" else by_modules(found)


def adapters_of(base, targets, layer=None, count=3):
    lora = LoraParameters(rank=3, alpha=6.0, target_modules=targets)
    found = [random_adapter(base, lora, seed) for seed in range(count)]
    if layer is None:
        return found
    return [
        Adapter(
            adapter.config,
            {k: v for k, v in adapter.tensors.items() if f"layers.{layer}." in parse_key(k)[0]},
        )
        for adapter in found
    ]


@pytest.mark.parametrize(
    ("targets", "layer"),
    [
        ("all-linear", None),
        # groups of which some layers are adapted, and groups of which none are
        (("k_proj", "up_proj"), None),
        (("q_proj", "v_proj", "o_proj", "down_proj"), None),
        ("all-linear", 0),
        (("v_proj", "gate_proj"), 1),
    ],
    ids=["all", "second_of_a_group", "some", "first_layer", "some_of_the_last_layer"],
)
def test_hidden_states_are_those_of_plain_peft_one_by_one(base, targets, layer):
    adapters = adapters_of(base, targets, layer)
    trees = [TokenTree(ids) for ids in SEQUENCES]
    pack = pack_trees(trees * len(adapters), base.device, base.dtype)
    with torch.no_grad(), active_lora(base.activate_adapters(adapters)):
        together = base.hidden_states(pack)
    starts = iter([*pack.starts, pack.tokens])
    first = next(starts)
    for adapter in adapters:
        plain = peft_copy(base, adapter)
        for ids in SEQUENCES:
            last = next(starts)
            with torch.no_grad():
                expected = plain.base_model.model.model(torch.tensor([ids])).last_hidden_state[0]
            assert torch.allclose(together[first:last], expected, atol=1e-5, rtol=1e-5)
            first = last


@pytest.mark.parametrize("tokens", [64, 4096])
def test_scores_are_those_of_plain_peft_one_by_one(base, tokens):
    adapters = adapters_of(base, "all-linear")
    asked = examples(4)
    scoring = TEXT.model_copy(update={"batch_tokens": tokens})
    found = compare_options(base, asked, PLAIN, scoring, adapters)
    assert len(found.scores) == len(adapters)
    for adapter, rows in zip(adapters, found.scores, strict=True):
        plain = peft_copy(base, adapter)
        for example, row in zip(asked, rows, strict=True):
            sums = reference_scores(base, example, PLAIN, "text", plain)
            # a token is a byte here, and the space before an option counts
            expected = [
                total / len(f" {option}".encode())
                for total, option in zip(sums, example.options, strict=True)
            ]
            assert row == pytest.approx(expected, abs=1e-5)


def test_tokens_are_counted_for_all_adapters(base):
    asked = examples(3)
    alone = compare_options(base, asked, PLAIN, TEXT, adapters_of(base, "all-linear", count=1))
    every = compare_options(base, asked, PLAIN, TEXT, adapters_of(base, "all-linear", count=3))
    assert every.tokens == [3 * count for count in alone.tokens]


def test_a_change_of_hidden_states_sees_every_adapter_s_questions_in_order(base):
    adapters, asked, seen = adapters_of(base, "all-linear", count=2), examples(3), []

    def steer(hidden, starts, questions):
        seen.append((hidden.shape[0], starts, [question.prompt for question in questions]))
        return torch.zeros(len(questions), hidden.shape[1])

    plain = compare_options(base, asked, PLAIN, TEXT, adapters)
    assert compare_options(base, asked, PLAIN, TEXT, adapters, steer).scores == plain.scores
    (rows, starts, prompts) = seen[0]
    sizes = [end - start for start, end in zip(starts, (*starts[1:], rows), strict=True)]
    assert sizes[:3] == sizes[3:]
    assert prompts[:3] == prompts[3:]
    assert len(set(prompts)) == 3


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([LoraParameters(rank=2, alpha=6.0)], "different layers or ranks"),
        ([LoraParameters(rank=3, target_modules=("q_proj",))], "some adapt layers that others"),
        # of the same group, another layer
        (
            [
                LoraParameters(rank=3, target_modules=("q_proj",)),
                LoraParameters(rank=3, target_modules=("k_proj",)),
            ],
            "some adapt layers that others|different layers or ranks",
        ),
        ([None], "some adapt layers that others"),
    ],
    ids=["rank", "layers", "layer_of_a_group", "base_model"],
)
def test_adapters_that_do_not_go_together_are_refused(base, others, message):
    every = [random_adapter(base, LoraParameters(rank=3, alpha=6.0))]
    if len(others) > 1:
        every = []
    every += [other and random_adapter(base, other) for other in others]
    for order in (every, every[::-1]):
        with pytest.raises(ModelError, match=f"2 adapters cannot answer together: .*({message})"):
            compare_options(base, examples(2), PLAIN, TEXT, order)


def test_an_adapter_of_another_model_is_refused_among_others(base):
    found = adapters_of(base, "all-linear", count=2)
    strange = {k.replace("q_proj", "other"): v for k, v in found[1].tensors.items()}
    with pytest.raises(ModelError, match=r"names the layer .*other"):
        base.activate_adapters([found[0], Adapter(found[1].config, strange)])
