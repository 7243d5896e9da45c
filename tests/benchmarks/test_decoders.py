from __future__ import annotations

import pytest
from benchmarks.decoders import faithful_decoder, in_child, run
from benchmarks.generator_material import encoder_of, grid_of, sizes
from benchmarks.material import Settings

from degaml_kedro.generator.decoders.build import ConditionSize, whole_flow
from degaml_kedro.generator.decoders.hyperconv import decoder_cost

QUICK = Settings(quick=True)


def _condition() -> ConditionSize:
    size = sizes(quick=True)
    return ConditionSize(size.prompts, size.encoder.tokens, encoder_of(QUICK).width)


def test_counts_times_and_memory_of_both():
    result = run(QUICK)
    assert len(result.rows) == 7
    assert all(row.ratio is not None and row.met is None for row in result.rows)
    # flow and kernel decide what the faithful one takes
    flow = faithful_decoder(_condition(), grid_of(QUICK), quick=True)
    cost = decoder_cost(flow.flow, flow.kernel_size)
    assert result.details["counts"]["faithful"] == (cost.parameters, cost.multiply_adds)


def test_the_full_flow_leads_from_the_profile_s_condition_to_any_grid():
    size, grid = sizes(quick=False), grid_of(QUICK)
    condition = ConditionSize(size.prompts, size.encoder.tokens, 384)
    flow = whole_flow(faithful_decoder(condition, grid, quick=False), grid, condition)
    assert flow[-1] == grid.shape


@pytest.mark.slow
def test_child_measures_the_decoder_that_it_is_handed():
    grid, condition = grid_of(QUICK), _condition()
    flow = faithful_decoder(condition, grid, quick=True)
    found = in_child(flow, grid, condition)
    cost = decoder_cost(flow.flow, flow.kernel_size)
    assert found["parameters"] == cost.parameters
    assert 0 < found["held_bytes"] < 1e9
