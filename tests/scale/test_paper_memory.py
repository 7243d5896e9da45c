"""What the paper profiles do beside a generator's training step is under the bar of memory, too."""

from __future__ import annotations

import pytest
from benchmarks.paper_memory import ALLOWANCE, PARTS, SCALES, generator_step, peak_of


@pytest.mark.slow
@pytest.mark.parametrize("profile", SCALES)
@pytest.mark.parametrize("part", [name for name, one in PARTS.items() if one is not generator_step])
def test_it_fits_the_card(part: str, profile: str) -> None:
    scale = SCALES[profile]
    peak = peak_of(PARTS[part], scale)
    assert peak > 1e9  # the base model alone
    assert peak * ALLOWANCE < scale.at_most
