from __future__ import annotations

import pytest
from benchmarks.material import Settings
from benchmarks.training import PEERS, WARM_UP, compare

pytest.importorskip("accelerate", reason="the bench extra is not installed")


@pytest.mark.parametrize("peer", PEERS)
def test_both_sides_train_on_the_same_tokens_to_the_same_loss(peer):
    base = Settings(quick=True).base()
    steps = WARM_UP + 2
    ours, theirs = compare(base, 4, steps, **PEERS[peer])
    assert ours.tokens == theirs.tokens
    assert len(ours.seconds) == len(theirs.seconds) == steps
    assert len(ours.rates()) == 2
    assert ours.losses == pytest.approx(theirs.losses, abs=0.05)
