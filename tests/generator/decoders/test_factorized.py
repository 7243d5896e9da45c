"""The efficient decoder: what its output may depend on, what is shared, and what it costs."""

from __future__ import annotations

import torch
from benchmarks.paper_decoder import PAPER_FLOWS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.config.schema import FactorizedDecoder
from degaml_kedro.generator.decoders.build import ConditionSize, Decoder
from degaml_kedro.generator.decoders.factorized import FactorizedNetwork
from degaml_kedro.generator.decoders.hyperconv import decoder_cost
from tests.adapters.test_tokens import lora_shapes, small_grid

WIDTH, TOKENS, PROMPTS, STATES = 8, 6, 4, 2
SIZES = {"condition_width": 8, "width": 12, "blocks": 2, "rank": 3}


def network(
    grid: TokenGrid, seed: int = 0, warm: bool = True, **changes: float
) -> FactorizedNetwork:
    torch.manual_seed(seed)
    parameters = FactorizedDecoder(kind="factorized", **{**SIZES, **changes})  # type: ignore[arg-type]
    made = FactorizedNetwork(grid, WIDTH, STATES, parameters).eval()
    if warm:
        with torch.no_grad():
            made.heads.normal_()
            made.state.weight.normal_()
    return made


def batch(count: int = 2, prompts: int = PROMPTS, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, TOKENS + 1, (count, prompts), generator=source)
    states = torch.randn(count, prompts, TOKENS, WIDTH, generator=source)
    inside = torch.arange(TOKENS) < lengths[..., None]
    hot = torch.eye(STATES)[torch.arange(count) % STATES]
    return states * inside[..., None], lengths, hot


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_prompts_does_not_matter() -> None:
    made = network(small_grid())
    states, lengths, hot = batch()
    order = torch.tensor([2, 0, 3, 1])
    assert close(made(states, lengths, hot), made(states[:, order], lengths[:, order], hot))


def test_what_stands_behind_a_prompt_s_end_is_not_read() -> None:
    made = network(small_grid())
    states, lengths, hot = batch()
    inside = torch.arange(TOKENS) < lengths[..., None]
    assert not inside.all()
    noise = torch.where(inside[..., None], states, 7 * torch.randn(states.shape))
    assert torch.equal(made(states, lengths, hot), made(noise, lengths, hot))
    # and more room for padding changes nothing either
    longer = torch.cat([states, torch.zeros(*states.shape[:2], 3, WIDTH)], dim=2)
    assert close(made(states, lengths, hot), made(longer, lengths, hot))


def test_every_token_of_every_prompt_is_read() -> None:
    made = network(small_grid())
    states, lengths, hot = batch(count=1)
    before = made(states, lengths, hot)
    for prompt in range(PROMPTS):
        for token in range(int(lengths[0, prompt])):
            other = states.clone()
            other[0, prompt, token] += torch.randn(WIDTH)
            assert not torch.equal(before, made(other, lengths, hot)), (prompt, token)


def test_samples_of_a_batch_do_not_mix() -> None:
    made = network(small_grid())
    states, lengths, hot = batch(3)
    together = made(states, lengths, hot)
    for i in range(3):
        assert close(together[i], made(states[i : i + 1], lengths[i : i + 1], hot[i : i + 1])[0])
    assert not close(together[0], together[2])


def test_the_permutation_state_is_read_and_a_fresh_network_has_no_preference() -> None:
    states, lengths, _ = batch(1)
    one, other = torch.eye(STATES)[:1], torch.eye(STATES)[1:]
    warm = network(small_grid())
    assert not close(warm(states, lengths, one), warm(states, lengths, other))
    torch.manual_seed(0)
    fresh = network(small_grid(), warm=False)
    assert not fresh.state.weight.any()


def test_a_fresh_network_makes_zeros_and_learns_from_there() -> None:
    made = network(small_grid(), warm=False)
    tokens = made(*batch())
    assert not tokens.any()
    tokens.sum().backward()
    assert made.heads.grad is not None
    assert made.heads.grad.abs().max() > 0


def test_layers_share_the_heads_of_their_kind() -> None:
    grid = small_grid()
    made = network(grid)
    before = made(*batch(1))[0]
    places: dict[tuple[str, str, int], list[int]] = {}
    for token, slot_index in enumerate(grid.token_slots().tolist()):
        slot = grid.slots[slot_index]
        places.setdefault((slot.module, slot.matrix, token - slot.first), []).append(token)
    assert len(made.heads) == len(places) < grid.tokens
    found = []
    for head in range(len(places)):
        with torch.no_grad():
            kept = made.heads[head].clone()
            made.heads[head] += 1
            after = made(*batch(1))[0]
            made.heads[head] = kept
        changed = (after != before).flatten(1).any(dim=1).nonzero().flatten().tolist()
        found.append(changed)
    assert sorted(found) == sorted(places.values())
    assert max(len(tokens) for tokens in found) == 2


RAGGED = {
    "model.layers.0.self_attn.q_proj": (6, 8),
    "model.layers.0.mlp.up_proj": (7, 19),
    # layer 3 follows layer 0, and has modules of its own
    "model.layers.3.mlp.up_proj": (7, 11),
    "model.layers.3.mlp.down_proj": (1, 2),
    "lm_head": (6, 30),
}


@settings(max_examples=10)
@given(
    rank=st.integers(1, 5),
    token_width=st.integers(1, 12),
    modules=st.sets(st.sampled_from(sorted(RAGGED)), min_size=1),
    blocks=st.integers(0, 2),
)
def test_any_grid_is_filled(rank: int, token_width: int, modules: set[str], blocks: int) -> None:
    shapes = lora_shapes({name: RAGGED[name] for name in RAGGED if name in modules}, rank)
    grid = TokenGrid.from_shapes(shapes, token_width)
    tokens = network(grid, blocks=blocks)(*batch())
    assert tokens.shape == (2, grid.tokens, rank, token_width)
    assert torch.isfinite(tokens).all()
    found = {name: tuple(tensor.shape) for name, tensor in grid.detokenize(tokens[0]).items()}
    assert found == grid.shapes


def test_the_output_scale_scales_the_output() -> None:
    one, ten = network(small_grid()), network(small_grid(), output_scale=10.0)
    assert close(10 * one(*batch()), ten(*batch()))


def test_gradients_reach_every_parameter() -> None:
    made = network(small_grid())
    made(*batch()).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # softmax does not see a constant that is added to all its inputs
        assert parameter.grad.abs().max() > 0 or name == "pooling.query.bias", name


def test_parameters_are_counted_once() -> None:
    grid = small_grid()
    parameters = FactorizedDecoder(kind="factorized", **SIZES)  # type: ignore[arg-type]
    decoder = Decoder(parameters, grid, ConditionSize(PROMPTS, TOKENS, WIDTH, STATES), 0)
    z, d, r, cells = 8, 12, 3, grid.rank * grid.token_width
    kinds, layers, place = len(decoder.get_parameter("network.heads")), 3, 64
    pooling = 2 * WIDTH + (WIDTH * 4 + 4) + (4 * WIDTH * z + z) + 2 * (z * z + z) + 2 * z
    embeddings = (layers + kinds) * place + STATES * z
    enter = z * d + d + 3 * place * d + d
    block = 2 * d + (d * 2 * d + 2 * d) + (2 * d * d + d)
    expected = pooling + embeddings + enter + 2 * block + d * r + r + kinds * r * cells
    assert decoder.parameter_count == expected
    attention = PROMPTS * (2 * TOKENS * WIDTH * 4 + 4 * WIDTH * z) + 2 * z * z + STATES * z
    token = 3 * place * d + 2 * 4 * d * d + d * r + r * cells
    assert decoder.multiply_adds == attention + z * d + grid.tokens * token


def test_at_the_paper_s_grid_it_costs_a_tenth_at_most() -> None:
    layer = {"self_attn.q_proj": (896, 896), "self_attn.k_proj": (896, 128)}
    layer |= {"self_attn.v_proj": (896, 128), "self_attn.o_proj": (896, 896)}
    layer |= {
        "mlp.gate_proj": (896, 4864),
        "mlp.up_proj": (896, 4864),
        "mlp.down_proj": (4864, 896),
    }
    modules = {f"model.layers.{i}.{name}": size for i in range(24) for name, size in layer.items()}
    grid = TokenGrid.from_shapes(lora_shapes(modules, 8), 128)
    assert grid.shape == (4296, 10, 130)
    condition = ConditionSize(128, 384, 384)
    decoder = Decoder(FactorizedDecoder(kind="factorized"), grid, condition, seed=0)
    faithful = decoder_cost(PAPER_FLOWS["qwen2.5-0.5b"], 9)
    assert 10 * decoder.parameter_count <= faithful.parameters
    assert 10 * decoder.multiply_adds <= faithful.multiply_adds
