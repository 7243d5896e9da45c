"""A generator's training step at the paper's sizes is under the bar of memory."""

from __future__ import annotations

import pytest
from benchmarks.paper_memory import ALLOWANCE, SCALES, generator_step, peak_of


@pytest.mark.parametrize("profile", SCALES)
def test_a_generators_step_fits_the_card(profile: str) -> None:
    scale = SCALES[profile]
    peak = peak_of(generator_step, scale)
    assert peak > 4 * 4e9  # weights, gradients and both moments
    assert peak * ALLOWANCE < scale.at_most
