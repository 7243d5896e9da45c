"""The picture of a generator's health shows what was measured, and says what was not."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from degaml_kedro.results import figures
from degaml_kedro.results.figures import figure_page

MODULES = ("self_attn.q_proj", "mlp.down_proj")


def steps(count=6, mse=True, sft=False):
    number = np.arange(1, count + 1)
    frame = pd.DataFrame({"step": number})
    frame["mse"] = 1.0 / number if mse else np.nan
    frame["sft"] = 4.0 / number if sft else np.nan
    frame["loss"] = frame[["mse", "sft"]].sum(axis=1)
    frame["learning_rate"] = 1e-3
    return frame


def line(step, task, held_out=False, layer=-1, module="all", matrix="all", **values):
    measured = {"relative_error": 0.5, "norm_ratio": 0.25, "accuracy": None, "questions": 0}
    place = {"layer": layer, "module": module, "matrix": matrix}
    return {"step": step, "task": task, "held_out": held_out, **place, **measured, **values}


def checks(accuracy=True):
    rows = []
    for step in (3, 6):
        for task, held_out in (("capitals", False), ("colors", False), ("days", True)):
            asked = {"accuracy": 0.5 + step / 20, "questions": 20} if accuracy else {}
            rows.append(line(step, task, held_out, relative_error=3 / step + held_out, **asked))
            for layer in (0, 1):
                for module in MODULES:
                    for matrix in "AB":
                        error = layer + step / 10 + (0.2 if task == "colors" else 0.0)
                        place = {"layer": layer, "module": module, "matrix": matrix}
                        rows.append(line(step, task, held_out, **place, relative_error=error))
    return pd.DataFrame(rows)


def generator_figure(steps, checks, title="Generator"):
    return figures.generator_figure(steps, checks, title)


def titles(figure):
    return [a.text.split("</b>")[0].removeprefix("<b>") for a in figure.layout.annotations]


def notes(figure):
    return " ".join(a.text for a in figure.layout.annotations if "<b>" not in a.text)


def named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def maps(figure):
    return [trace for trace in figure.data if trace.type == "heatmap"]


def test_all_parts_are_there():
    figure = generator_figure(steps(), checks(), "Generator mse without days")
    assert titles(figure)[:6] == [
        "Loss",
        "Learning rate",
        "Relative error by module and layer",
        "Norm ratio by module and layer",
        "Error of whole adapters by task",
        "Accuracy of generated adapters",
    ]
    assert notes(figure) == ""
    assert "Generator mse without days" in figure.layout.title.text
    assert "2 tasks seen; 1 held out: days; last check at step 6" in figure.layout.title.text


def test_the_maps_are_means_over_seen_tasks_at_the_last_check():
    error, ratio = maps(generator_figure(steps(), checks()))
    assert list(error.y) == ["q_proj A", "q_proj B", "down_proj A", "down_proj B"]
    assert list(error.x) == ["0", "1"]
    np.testing.assert_allclose(error.z, [[0.7, 1.7]] * 4)
    np.testing.assert_allclose(ratio.z, [[0.25, 0.25]] * 4)
    assert (error.zmin, error.zmax) == (0, pytest.approx(1.7))
    # 1 is always on the scale: it is what errors and ratios are read against
    assert ratio.zmax == 1.0


def test_curves_are_means_over_tasks_with_intervals_of_their_questions():
    figure = generator_figure(steps(), checks())
    seen = [trace for trace in figure.data if trace.name == "2 tasks seen"]
    held_out = [trace for trace in figure.data if trace.name == "1 task held out"]
    assert [list(trace.y) for trace in seen] == [[1.0, 0.5], [0.65, 0.8]]
    assert [list(trace.y) for trace in held_out] == [[2.0, 1.5], [0.65, 0.8]]
    # colors are not the only difference
    assert seen[0].line.dash != held_out[0].line.dash
    assert seen[0].marker.symbol != held_out[0].marker.symbol
    # Wilson's interval of 32 right answers of 40
    assert seen[1].y[1] + seen[1].error_y.array[1] == pytest.approx(0.895, abs=1e-3)
    assert seen[1].y[1] - seen[1].error_y.arrayminus[1] == pytest.approx(0.652, abs=1e-3)
    assert {"capitals", "colors"} <= {trace.name for trace in figure.data}


@pytest.mark.parametrize(
    ("mse", "sft", "curves"),
    [
        (True, False, {"mse"}),
        (False, True, {"sft"}),
        (True, True, {"mse", "sft", "loss (weighted sum)"}),
    ],
)
def test_the_objectives_that_there_are(mse, sft, curves):
    figure = generator_figure(steps(mse=mse, sft=sft), checks())
    assert {trace.name for trace in figure.data if trace.xaxis == "x"} == curves
    assert ("learned from answers alone" in notes(figure)) == (not mse)


def test_long_trainings_are_drawn_as_means():
    figure = generator_figure(steps(count=20_000), pd.DataFrame())
    raw, smooth = (trace for trace in figure.data if trace.xaxis == "x")
    assert len(raw.x) == len(smooth.x) == 1000
    assert raw.x[0] == 10.5
    assert "mean of 1000 steps" in figure.layout.annotations[0].text


def test_what_was_not_measured_is_left_out_with_a_note():
    figure = generator_figure(steps(), pd.DataFrame([]))
    assert len([title for title in titles(figure) if "Not shown" not in title]) == 2
    for part in ("relative error by module", "norm ratio by module", "error by task", "accuracy"):
        assert f"Not shown: {part}" in notes(figure)
    figure = generator_figure(steps(), checks(accuracy=False))
    assert "Accuracy of generated adapters" not in titles(figure)
    assert "training.check_every" in notes(figure)


def test_nothing_at_all_is_a_picture_too():
    figure = generator_figure(pd.DataFrame([]), pd.DataFrame([]))
    assert not figure.data
    assert "Not shown: the loss" in notes(figure)


def test_a_task_without_checkpoints_has_no_errors():
    rows = [line(3, "capitals", relative_error=None, norm_ratio=None, accuracy=0.5, questions=4)]
    figure = generator_figure(steps(), pd.DataFrame(rows))
    assert titles(figure)[:3] == ["Loss", "Learning rate", "Accuracy of generated adapters"]


def test_infinite_values_are_left_out_and_counted():
    frame = checks()
    odd = (frame["module"] == MODULES[0]) & (frame["matrix"] == "B") & (frame["layer"] == 0)
    frame.loc[odd, ["relative_error", "norm_ratio"]] = np.inf
    error, ratio = maps(figure := generator_figure(steps(), frame))
    assert np.isnan(np.array(error.z, dtype=float)).sum() == 1
    assert np.isnan(np.array(ratio.z, dtype=float)).sum() == 1
    assert "2 of 16 values are infinite or missing" in notes(figure)
    # strict JSON: no browser reads NaN
    json.loads(figure.to_json(), parse_constant=pytest.fail)
    frame[["relative_error", "norm_ratio"]] = np.inf
    figure = generator_figure(steps(), frame)
    assert not maps(figure)
    assert "no value is finite" in notes(figure)


def test_one_odd_matrix_does_not_take_the_color_from_the_others():
    rows = [
        line(1, "capitals", layer=layer, module="q_proj", matrix="A", relative_error=error)
        for layer, error in enumerate([0.5] * 99 + [40.0])
    ]
    (error, _) = maps(generator_figure(steps(), pd.DataFrame(rows)))
    assert error.zmax == 1.0
    assert error.colorbar.ticktext[-1] == "≥ 1"


def test_modules_that_end_alike_keep_their_paths_and_some_have_no_layer():
    rows = [
        line(1, "capitals", layer=layer, module=module, matrix="A")
        for layer, module in ((-1, "lm_head"), (0, "encoder.q_proj"), (0, "decoder.q_proj"))
    ]
    (error, _) = maps(generator_figure(steps(), pd.DataFrame(rows)))
    assert list(error.y) == ["lm_head A", "encoder.q_proj A", "decoder.q_proj A"]
    assert list(error.x) == ["none", "0"]


def test_only_held_out_tasks_are_shown_as_such():
    rows = checks()
    figure = generator_figure(steps(), rows[rows["held_out"]])
    assert "mean of 1 task (held out)" in figure.layout.annotations[2].text


def test_a_page_fetches_nothing_and_is_the_same_every_time():
    page = figure_page(generator_figure(steps(), checks(), "</title><b>x"))
    # names cannot break out of it
    assert "<title>&lt;/title&gt;&lt;b&gt;x</title>" in page[: page.index("</head>")]
    # the drawing program is inside, not linked
    assert not re.search(r"<script[^>]*\ssrc", page)
    assert "<link" not in page
    assert page == figure_page(generator_figure(steps(), checks(), "</title><b>x"))
