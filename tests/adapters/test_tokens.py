"""Tokens: any LoRA goes into them and comes back bit for bit, and the paper's grids come out of configurations."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config

from degaml_kedro.adapters.adapter import AdapterError, tensor_key
from degaml_kedro.adapters.tokens import GridError, TokenGrid, permutation_states

Shapes = dict[str, tuple[int, int]]


def lora_shapes(modules: dict[str, tuple[int, int]], rank: int) -> Shapes:
    """LoRA over modules whose (inputs, outputs) are given."""
    shapes = {}
    for name, (inputs, outputs) in modules.items():
        shapes[tensor_key(name, "A")] = (rank, inputs)
        shapes[tensor_key(name, "B")] = (outputs, rank)
    return shapes


def random_tensors(
    shapes: Shapes, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}


def small_grid(rank: int = 2, token_width: int = 4) -> TokenGrid:
    """Two layers, and a head that belongs to none."""
    modules = {
        "model.layers.0.self_attn.q_proj": (6, 8),
        "model.layers.0.mlp.up_proj": (6, 9),
        "model.layers.1.self_attn.q_proj": (6, 8),
        "lm_head": (6, 3),
    }
    return TokenGrid.from_shapes(lora_shapes(modules, rank), token_width)


@st.composite
def architectures(draw: st.DrawFn) -> Shapes:
    """Any set of linear modules, ragged over layers, with fewer key-value heads than query heads."""
    heads, shared, head = (draw(st.integers(1, 3)) for _ in range(3))
    hidden, inner = heads * shared * head, draw(st.integers(1, 12))
    kinds = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, heads * head),
        "self_attn.v_proj": (hidden, heads * head),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
        "mlp.experts.1.w1": (hidden, inner),
    }
    modules: dict[str, tuple[int, int]] = {}
    for layer in range(draw(st.integers(1, 12))):
        for kind in draw(st.lists(st.sampled_from(sorted(kinds)), unique=True)):
            modules[f"model.layers.{layer}.{kind}"] = kinds[kind]
    if not modules or draw(st.booleans()):
        modules["lm_head"] = (hidden, 7)
    return lora_shapes(modules, draw(st.integers(1, 5)))


@settings(max_examples=150)
@given(
    shapes=architectures(),
    token_width=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_any_adapter_comes_back_bit_for_bit(
    shapes: Shapes, token_width: int, dtype: torch.dtype, seed: int
) -> None:
    grid = TokenGrid.from_shapes(shapes, token_width)
    tensors = random_tensors(shapes, seed, dtype)
    tokens = grid.tokenize(tensors)
    assert tokens.shape == (grid.tokens, grid.rank, token_width)
    assert tokens.dtype == dtype
    # every weight is in a token once, and nothing else is
    assert int(grid.mask().sum()) == sum(tensor.numel() for tensor in tensors.values())
    assert not tokens[~grid.mask()].any()
    again = grid.detokenize(tokens)
    assert set(again) == set(tensors)
    for key, tensor in tensors.items():
        assert again[key].dtype == dtype
        assert torch.equal(again[key], tensor)


def test_values_that_compare_unequal_or_equal_keep_their_bits() -> None:
    grid = small_grid()
    tensors = random_tensors(grid.shapes)
    first = tensors[grid.slots[0].key]
    first.view(-1)[:4] = torch.tensor([-0.0, 1e-42, float("inf"), float("nan")])
    again = grid.detokenize(grid.tokenize(tensors))
    assert torch.equal(again[grid.slots[0].key].view(torch.int32), first.view(torch.int32))


def naive_tokens(grid: TokenGrid, tensors: dict[str, Tensor]) -> Tensor:
    """The definition, cell by cell."""
    found = []
    for slot in grid.slots:
        rows = tensors[slot.key] if slot.matrix == "A" else tensors[slot.key].T
        for start in range(0, slot.width, grid.token_width):
            token = torch.zeros(grid.rank, grid.token_width)
            for row in range(grid.rank):
                for column in range(min(grid.token_width, slot.width - start)):
                    token[row, column] = rows[row, start + column]
            found.append(token)
    return torch.stack(found)


@pytest.mark.parametrize("token_width", [1, 3, 4, 50])
def test_tokens_are_columns_of_the_matrices(token_width: int) -> None:
    grid = small_grid(token_width=token_width)
    tensors = random_tensors(grid.shapes)
    assert torch.equal(grid.tokenize(tensors), naive_tokens(grid, tensors))


def test_slots_go_by_layer_then_module_then_matrix() -> None:
    shapes = {
        tensor_key("model.layers.10.mlp.up", "B"): (5, 2),
        tensor_key("model.layers.2.mlp.up", "A"): (2, 3),
        tensor_key("model.layers.10.mlp.up", "A"): (2, 3),
        tensor_key("model.layers.2.attn.q", "A"): (2, 3),
        tensor_key("lm_head", "A"): (2, 3),
        tensor_key("lm_head", "B"): (4, 2),
        tensor_key("model.layers.2.attn.q", "B"): (3, 2),
        tensor_key("model.layers.2.mlp.up", "B"): (5, 2),
    }
    grid = TokenGrid.from_shapes(shapes, 2)
    found = [(slot.layer, slot.module, slot.matrix, slot.first, slot.count) for slot in grid.slots]
    assert found == [
        (-1, "lm_head", "A", 0, 2),
        (-1, "lm_head", "B", 2, 2),
        (2, "mlp.up", "A", 4, 2),
        (2, "mlp.up", "B", 6, 3),
        (2, "attn.q", "A", 9, 2),
        (2, "attn.q", "B", 11, 2),
        (10, "mlp.up", "A", 13, 2),
        (10, "mlp.up", "B", 15, 3),
    ]
    assert grid.shapes == shapes
    assert grid.token_slots().tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7]
    assert grid.positions().tolist() == (
        [[-1, i] for i in range(4)] + [[2, i] for i in range(9)] + [[10, i] for i in range(5)]
    )


def test_a_list_of_linear_layers_keeps_a_name() -> None:
    grid = TokenGrid.from_shapes(lora_shapes({"net.0": (3, 3), "net.2": (3, 3)}, 1), 2)
    assert [(slot.layer, slot.module) for slot in grid.slots[::2]] == [(0, "net"), (2, "net")]


@pytest.mark.parametrize(
    ("config", "rank", "token_width", "size"),
    [
        # Qwen2.5-0.5B and Qwen2.5-1.5B, from their configurations
        (
            {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14}
            | {"num_key_value_heads": 2, "intermediate_size": 4864},
            8,
            128,
            (4296, 10, 130),
        ),
        (
            {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12}
            | {"num_key_value_heads": 2, "intermediate_size": 8960},
            16,
            256,
            (4508, 18, 258),
        ),
    ],
)
def test_the_papers_grids_come_out_of_configurations(
    config: dict[str, int], rank: int, token_width: int, size: tuple[int, int, int]
) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            Qwen2Config(vocab_size=151936, tie_word_embeddings=True, **config)
        )
    linear = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    grid = TokenGrid.from_shapes(lora_shapes(linear, rank), token_width)
    assert grid.shape == size
    modules = [slot.module for slot in grid.slots if slot.layer == 0 and slot.matrix == "A"]
    assert modules == [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ]
    assert TokenGrid.from_shapes(lora_shapes(linear, rank)) == grid, "derived where none is given"
    tensors = random_tensors(grid.shapes)
    again = grid.detokenize(grid.tokenize(tensors))
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def test_gradients_flow_back_to_the_tokens() -> None:
    grid = small_grid(token_width=5)
    tokens = torch.randn(grid.tokens, 2, 5, dtype=torch.float64, requires_grad=True)
    weights = random_tensors(grid.shapes, dtype=torch.float64)
    tensors = grid.detokenize(tokens)
    sum(((tensors[key] * weights[key]).sum() for key in weights), torch.tensor(0.0)).backward()
    assert tokens.grad is not None
    # the product is linear in the tokens: its gradient is the weights' own tokens, 0 in the padding
    assert torch.equal(tokens.grad, grid.tokenize(weights))


def test_the_position_embedding_is_sines_and_cosines_of_both_positions() -> None:
    grid = small_grid(token_width=3)
    embedding = grid.position_embedding(8)
    assert embedding.shape == (grid.tokens, 8)
    assert embedding.dtype == torch.float32
    for row, (layer, index) in zip(embedding, grid.positions().tolist(), strict=True):
        expected = []
        for position in (layer, index):
            angles = [position, position / 100]
            expected += [math.sin(angle) for angle in angles]
            expected += [math.cos(angle) for angle in angles]
        assert row.tolist() == pytest.approx(expected, abs=1e-6)
    assert len(torch.unique(embedding, dim=0)) == grid.tokens
    for width in (0, 6):
        with pytest.raises(GridError, match=f"width {width} cannot be made.*multiple of 4"):
            grid.position_embedding(width)


@settings(max_examples=25)
@given(shapes=architectures(), token_width=st.integers(1, 20))
def test_a_grid_round_trips_through_json(shapes: Shapes, token_width: int) -> None:
    grid = TokenGrid.from_shapes(shapes, token_width)
    again = TokenGrid.from_json(json.loads(json.dumps(grid.as_json(), sort_keys=True)))
    assert again == grid
    grid.check_same(again, "the generator", "the adapter")


@pytest.mark.parametrize(
    "content",
    [{}, {"token_width": 3}, {"token_width": "x", "shapes": [["a", 1, 1]]}, {"shapes": [1]}],
)
def test_json_that_is_no_grid_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(GridError, match="not a stored token grid.*make it again"):
        TokenGrid.from_json(content)


Q_A, Q_B = tensor_key("layers.0.q", "A"), tensor_key("layers.0.q", "B")
K_A, K_B = tensor_key("layers.0.k", "A"), tensor_key("layers.0.k", "B")


@pytest.mark.parametrize(
    ("shapes", "token_width", "message"),
    [
        ({Q_A: (2, 3), Q_B: (3, 2)}, 0, "token_width is 0"),
        ({}, 1, "no LoRA tensor"),
        ({Q_A: (2, 3)}, 1, r"layers\.0\.q has no lora_B"),
        ({Q_B: (3, 2)}, 1, r"layers\.0\.q has no lora_A"),
        ({Q_A: (2, 3), Q_B: (3, 4)}, 1, rf"{Q_A} has rank 2, but {Q_B} has rank 4"),
        (
            {Q_A: (2, 3), Q_B: (3, 2), K_A: (4, 3), K_B: (3, 4)},
            1,
            rf"{Q_A} has rank 2, but {K_A} has rank 4",
        ),
        ({"model.layers.0.q.weight": (2, 3)}, 1, r"'model\.layers\.0\.q\.weight' is not the name"),
        ({"base_model.model.wte.lora_embedding_A": (2, 3)}, 1, "is not the name of a LoRA tensor"),
        ({Q_A: (2, 3, 1, 1), Q_B: (3, 2, 1, 1)}, 1, rf"{Q_A} has shape \(2, 3, 1, 1\)"),
        ({Q_A: (2, 0), Q_B: (3, 2)}, 1, rf"{Q_A} has shape \(2, 0\)"),
    ],
)
def test_shapes_that_form_no_grid_are_named(
    shapes: dict[str, tuple[int, ...]], token_width: int, message: str
) -> None:
    with pytest.raises((GridError, AdapterError), match=message):
        TokenGrid.from_shapes(shapes, token_width)


def test_tensors_of_another_adapter_are_named() -> None:
    grid = small_grid()
    tensors = random_tensors(grid.shapes)
    key = grid.slots[3].key
    without = {name: tensor for name, tensor in tensors.items() if name != key}
    with pytest.raises(GridError, match=f"has no tensor {key}"):
        grid.tokenize(without)
    with pytest.raises(GridError, match=f"a tensor {Q_A} that the token grid has no place for"):
        grid.tokenize({**tensors, Q_A: torch.zeros(2, 3)})
    with pytest.raises(GridError, match=rf"{key} has shape \(2, 5\).*made for \(8, 2\)"):
        grid.tokenize({**tensors, key: torch.zeros(2, 5)})
    with pytest.raises(GridError, match=rf"{key} is torch.bfloat16, its .* is torch.float32"):
        grid.tokenize({**tensors, key: tensors[key].bfloat16()})


def test_tokens_of_another_shape_are_refused() -> None:
    grid = small_grid()
    # the border still on
    with pytest.raises(GridError, match=r"have shape \(\d+, 4, 6\), the grid's are \(\d+, 2, 4\)"):
        grid.detokenize(torch.zeros(grid.shape))


def test_a_difference_of_two_grids_is_named() -> None:
    modules = {"layers.0.q": (6, 8), "layers.1.q": (6, 8)}
    grid = TokenGrid.from_shapes(lora_shapes(modules, 2), 4)

    def differs(changed: dict[str, tuple[int, int]], rank: int, width: int, message: str) -> None:
        other = TokenGrid.from_shapes(lora_shapes(changed, rank), width)
        with pytest.raises(GridError, match=message):
            grid.check_same(other, "the generator", "the adapter")

    differs(modules, 3, 4, "the generator has rank 2, the adapter has rank 3")
    differs(modules, 2, 5, "the generator has tokens of width 4, the adapter has tokens of width 5")
    one = {"layers.0.q": (6, 8)}
    differs(one, 2, 4, rf"the generator has {tensor_key('layers.1.q', 'A')} of .*has nothing more")
    more = {**modules, "layers.1.k": (6, 8)}
    differs(more, 2, 4, rf"the adapter has {tensor_key('layers.1.k', 'A')} of shape \(2, 6\)")
    wider = {**modules, "layers.1.q": (6, 7)}
    differs(wider, 2, 4, rf"{Q_B.replace('0', '1')} of shape \(8, 2\), .* of shape \(7, 2\)")
    differs(dict(reversed(modules.items())) | {"layers.0.k": (6, 8)}, 2, 4, K_A)


def test_a_token_width_that_is_not_given_divides_all_widths_or_is_padded() -> None:
    def width(*modules: tuple[int, int]) -> int:
        named = {f"layers.0.{place}": sizes for place, sizes in enumerate(modules)}
        return TokenGrid.from_shapes(lora_shapes(named, 2)).token_width

    assert width((576, 192), (1536, 576)) == 192
    assert width((64, 32), (96, 64)) == 32
    assert width((64, 48)) == 128, "16 columns a token would be too many tokens"


def test_runs_from_one_start_share_a_permutation_state() -> None:
    states = permutation_states(["b", "a", "b", "c"])
    assert states.tolist() == [0, 1, 0, 2]
    assert states.dtype == torch.long
    assert permutation_states([]).tolist() == []
