from __future__ import annotations

import pytest
import torch
from benchmarks.gemm_limit import measure, products_alone, step_flop
from benchmarks.material import Settings, peer_model
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks for a property by its old name
def test_operations_are_those_that_the_library_needs():
    base = Settings(quick=True).base()
    rank, tokens = 4, 24
    model = peer_model(base)
    # written out, so that the counter sees every product
    model.set_attn_implementation("eager")
    config = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    peft = get_peft_model(model, config)
    ids = torch.arange(3, 3 + tokens)[None]
    with FlopCounterMode(display=False) as counter:
        peft(ids).logits.float().logsumexp(-1).sum().backward()
    # one sequence of answer tokens only: every row of the LM head counts
    needed = step_flop(base, [(0, tokens)], rank)
    shape = model.config
    width = shape.hidden_size // shape.num_attention_heads
    # the library computes all pairs of tokens, half of which are masked
    masked = tokens * tokens - tokens * (tokens + 1) // 2
    masked_flop = 2 * 6 * masked * width * shape.num_attention_heads * shape.num_hidden_layers
    assert counter.get_total_flops() == needed + masked_flop


def test_turns_have_rates():
    base = Settings(quick=True).base()
    turns = measure(base, 2, 2, 64)
    assert len(turns) == 2
    assert all(min(turn.step, turn.products, turn.limit) > 0 for turn in turns)
    assert products_alone(base, 8, 2) > 0
