"""Tests that share a server or a folder run in one process: pytest-xdist has to see their groups."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("groups")
def test_groups_are_seen(request):
    # a worker's own option says "no"; this one is set where the run was started with `--dist loadgroup`
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("tests are not distributed by their groups here")
    assert request.node.nodeid.endswith("@groups")
