"""The figures of a comparison show the numbers of its tables, and say what is missing."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from degaml_kedro.results.figures import (
    accuracy_compute_figure,
    comparison_figure,
    reliability_figure,
)
from degaml_kedro.results.formatting import in_short
from degaml_kedro.results.runs import BOUNDS
from degaml_kedro.results.statistics import MEAN, YARDSTICK, find
from tests.results.test_report import METHODS, few_resamples, make_runs

__all__ = ["few_resamples"]


@pytest.fixture(scope="module")
def findings():
    return find(make_runs(asked=(*METHODS[:3], "abmll", *METHODS[3:])))


@pytest.fixture(scope="module")
def frame(findings):
    return findings.comparison


def texts(figure):
    return [annotation.text for annotation in figure.layout.annotations]


def points(figure):
    """Where each marker stands: method, panel, percent."""
    return {
        (name, trace.xaxis): value
        for trace in figure.data
        if trace.mode == "markers"
        for name, value in zip(trace.y, trace.x, strict=True)
    }


def test_every_method_has_its_accuracy_in_every_panel(frame):
    figure = comparison_figure(frame)
    found = points(figure)
    for panel in ("x", "x2", "x3"):
        assert found["degaml", panel] == pytest.approx(85)
        assert found["base", panel] == pytest.approx(30)
    assert len(found) == 3 * len(METHODS)
    assert [text.split("</b>")[0] for text in texts(figure)[:3]] == [
        "<b>months",
        "<b>capitals",
        "<b>mean of the tasks",
    ]


def test_error_bars_are_the_table_s_intervals(frame):
    (trace,) = [t for t in comparison_figure(frame).data if t.name == "DeGAML" and t.xaxis == "x"]
    row = frame[(frame["method"] == "degaml") & (frame["task"] == "months")].iloc[0]
    assert trace.x[0] + trace.error_x.array[0] == pytest.approx(100 * row["high"])
    assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(100 * row["low"])


def test_missing_methods_keep_their_line_and_have_no_marker(frame):
    figure = comparison_figure(frame)
    words = [trace for trace in figure.data if trace.mode == "text"]
    assert [list(trace.y) for trace in words] == [["abmll"]] * 3
    assert {text for trace in words for text in trace.text} == {"missing"}
    assert "abmll" in figure.layout.yaxis.categoryarray
    assert not any(name == "abmll" for name, _ in points(figure))


def test_kinds_differ_in_more_than_color(frame):
    figure = comparison_figure(frame)
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    looks = {trace.name: (trace.marker.color, trace.marker.symbol) for trace in dots}
    assert len({color for color, _ in looks.values()}) == len(looks)
    assert len({symbol for _, symbol in looks.values()}) == len(looks)
    # each is in the legend once
    shown = [trace.name for trace in dots if trace.showlegend]
    assert sorted(shown) == sorted(looks)


def test_one_task_needs_no_mean():
    frame = find(make_runs(tasks={"meta_test": ("months",)})).comparison
    assert len(texts(comparison_figure(frame))) == 1


def test_accuracy_over_compute(frame):
    figure = accuracy_compute_figure(frame)
    by_place = {(trace.name, trace.xaxis): trace for trace in figure.data}
    degaml = by_place["degaml", "x"]
    assert (degaml.x[0], degaml.y[0]) == (16_000, pytest.approx(85))
    assert by_place["degaml", "x2"].x[0] == 3_000_000
    mean = frame[(frame["method"] == "degaml") & (frame["task"] == MEAN)].iloc[0]
    assert degaml.y[0] + degaml.error_y.array[0] == pytest.approx(100 * mean["high"])
    assert figure.layout.xaxis.type == "log"
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    looks = {(trace.marker.color, trace.marker.symbol) for trace in dots}
    assert len(looks) == len({trace.name for trace in dots})


def test_the_frontier_joins_what_nothing_beats_at_less_cost(frame):
    cheap = frame["method"].isin(["base", "pooled", "sentence_head"])
    priced = frame.assign(answer_seconds=np.where(cheap, 0.01, 0.5))
    figure = accuracy_compute_figure(priced)
    (line,) = [t for t in figure.data if t.name == "frontier" and t.xaxis == "x4"]
    own = priced[priced["task"] == MEAN].set_index("method")["accuracy"]
    best = own.drop([*BOUNDS, YARDSTICK, "sentence_head"], errors="ignore").dropna()
    assert list(line.x) == [0.01, 0.5]
    assert list(line.y) == pytest.approx(
        [100 * best[best.index.isin(["base", "pooled"])].max(), 100 * best.max()]
    )


def test_no_compute_has_a_place_on_the_logarithmic_axis(frame):
    figure = accuracy_compute_figure(frame)
    (base,) = [t for t in figure.data if t.name == "base" and t.xaxis == "x"]
    ticks = dict(zip(figure.layout.xaxis.tickvals, figure.layout.xaxis.ticktext, strict=True))
    assert ticks[base.x[0]] == "0"
    assert base.x[0] < 8_000
    assert list(base.customdata[0]) == ["0"]
    assert list(ticks.values())[1:] == ["1 k", "10 k", "100 k"]


def test_what_has_no_cost_or_no_accuracy_is_named(frame):
    notes = texts(accuracy_compute_figure(frame))[-1]
    assert "Not shown: abmll (no accuracy on all tasks)." in notes
    assert (
        "Not shown: adaptation tokens for a task and meta-training tokens and adaptation seconds for a task of "
        "oracle_strategy (not counted)." in notes.replace("<br>", " ")
    )


def test_reliability_curves_are_the_bins(findings):
    bins = findings.bins
    figure = reliability_figure(bins)
    (curve,) = [trace for trace in figure.data if trace.name == "degaml"]
    own = bins[(bins["method"] == "degaml") & (bins["n"] > 0)]
    assert list(curve.x) == pytest.approx(own["confidence"].tolist())
    assert list(curve.y) == pytest.approx(own["accuracy"].tolist())
    assert [row[0] for row in curve.customdata] == own["n"].tolist()
    (title,) = [text for text in texts(figure) if text.startswith("<b>degaml<")]
    assert f"ECE {own['ece'].iloc[0]:.3f}, n = 160" in title


def test_methods_without_a_likelihood_are_named(findings):
    bins = findings.bins.copy()
    bins.loc[bins["method"] == "base", ["n", "confidence", "accuracy"]] = [0, None, None]
    figure = reliability_figure(bins)
    assert "Not shown: base (its answers have no likelihood)." in texts(figure)[-1]
    assert "base" not in {trace.name for trace in figure.data}


@pytest.mark.parametrize("draw", [comparison_figure, accuracy_compute_figure, reliability_figure])
def test_nothing_is_said_to_be_nothing(draw):
    figure = draw(pd.DataFrame())
    assert not figure.data
    assert "nothing to show" in figure.layout.title.text


def test_figures_are_strict_and_the_same_every_time(findings, frame):
    for draw, rows in (
        (comparison_figure, frame),
        (accuracy_compute_figure, frame),
        (reliability_figure, findings.bins),
    ):
        text = draw(rows).to_json()
        assert text == draw(rows.copy()).to_json()
        # no browser reads NaN
        json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.7, "1.00 k"),
        (1_000, "1.00 k"),
        (12_345, "12.3 k"),
        (999_960, "1.00 M"),
        (3_000_000, "3.00 M"),
        (2.5e9, "2.50 G"),
    ],
)
def test_counts_in_short(value, text):
    assert in_short(value) == text
