"""The comparison of the baselines on the page: read from MLflow, never written there."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from demo.comparison import NOTHING, Comparisons, newest, picture

from degaml_kedro.tracking.comparison import ComparisonView, MethodRow
from degaml_kedro.tracking.server import TrackingError


def method(name, accuracy, by_seed=(), bound=False, tokens=None):
    return MethodRow(
        method=name,
        bound=bound,
        accuracy=accuracy,
        by_seed=by_seed,
        n=200.0,
        tokens=tokens,
        seconds=None,
    )


def view(*methods, pool="meta_test"):
    return ComparisonView(
        run="0",
        when=datetime(2026, 11, 23, tzinfo=UTC),
        profile="comparison",
        seeds=(999, 1000, 1001),
        pool=pool,
        methods=methods,
    )


def test_methods_are_shown_best_first_with_their_seeds_and_costs():
    html = picture(
        [
            view(
                method("base", 0.4, (0.38, 0.4, 0.42)),
                method("oracle_strategy", 0.99, (0.98, 1.0), bound=True),
                method("degaml", 0.9, (0.88, 0.92), tokens=1234.0),
                method("cut_off", None),
            )
        ]
    )
    assert html.index("degaml") < html.index(">base<") < html.index("oracle strategy (bound)")
    assert "0.900 (0.880–0.920)" in html
    assert "1,234 tokens" in html
    assert "200 test questions a task and seed" in html
    assert "3 seeds" in html
    assert "cut off" not in html


def test_one_seed_has_no_range():
    html = picture([view(method("degaml", 0.9, (0.9,)))])
    assert "0.900" in html
    assert "0.900 (" not in html


def test_names_from_mlflow_are_shown_as_text():
    html = picture([view(method("<script>alert(1)</script>", 0.9))])
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_nothing_is_made_where_nothing_is(tmp_path):
    file = tmp_path / "mlflow.db"
    assert newest(f"sqlite:///{file}") == []
    assert not file.exists()
    file.touch()
    assert newest(f"sqlite:///{file}") == []
    assert file.stat().st_size == 0
    assert newest(None) == []
    assert "make compare" in Comparisons(None).show()
    assert "`make compare`" in NOTHING


def test_what_cannot_be_read_is_told(tmp_path):
    file = tmp_path / "mlflow.db"
    file.write_text("this is no database, and long enough to be taken for one", encoding="utf-8")
    with pytest.raises(TrackingError):
        newest(f"sqlite:///{file}")
    assert "cannot be read" in Comparisons(f"sqlite:///{file}").show()
