"""The table of methods and the files of the baselines say the same."""

from __future__ import annotations

import pytest

from degaml_kedro.baselines.baseline import baseline
from degaml_kedro.config.methods import METHODS
from degaml_kedro.config.schema import BaselinesParameters


@pytest.mark.parametrize("row", [row for row in METHODS.values() if row.kind == "baseline"])
def test_a_baseline_is_a_row_and_the_file_that_it_names(row):
    own = baseline(row.name)
    assert callable(own.adapt)
    assert hasattr(own, "fit") == row.meta_trained
    assert row.entry in BaselinesParameters.model_fields
