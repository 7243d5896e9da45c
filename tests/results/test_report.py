"""The report says what was measured, in HTML and Markdown alike, what is missing, and escapes all that it is given."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from plotly.graph_objects import Figure

from degaml_kedro.pipelines.report import create_pipeline
from degaml_kedro.results import statistics
from degaml_kedro.results.figures import accuracy_compute_figure, comparison_figure
from degaml_kedro.results.paper import paper_table
from degaml_kedro.results.report import (
    PAGE,
    Code,
    Emphasis,
    Strong,
    Table,
    _escaped,
    _fenced,
    _grid,
    context,
    meaning,
    results_table,
    write,
)
from degaml_kedro.results.runs import Run, Runs
from degaml_kedro.results.statistics import AIM, find, resampled_means, winner
from tests.results.test_generator_figure import checks, steps
from tests.results.test_policy_measures import by_task, two_iterations

METHODS = ("base", "union_train", "maml_en_llm", "degaml", "oracle_strategy")
TASKS = ("months", "capitals")
QUESTIONS = 40
# how many questions each answers right of QUESTIONS, on every task and seed
RIGHT = {"base": 12, "union_train": 20, "maml_en_llm": 18, "degaml": 34, "oracle_strategy": 40}
TOKENS = {"union_train": 4000, "maml_en_llm": 9000, "degaml": 8000}


def make_run(
    seed=999,
    methods=METHODS,
    tasks=None,
    right=RIGHT,
    profile="embedded",
    questions=QUESTIONS,
    without=(),
    **more,
):
    """A run in which every method answers so many of the first questions right."""
    tasks = {"meta_test": TASKS} if tasks is None else tasks
    results, answers, compute = [], [], []
    rng = np.random.default_rng(seed)
    for pool, names in tasks.items():
        for task in names:
            for method in methods:
                if (method, task) in without or method in without:
                    continue
                count = right.get(method, 16)
                own = np.zeros(questions, dtype=int)
                own[:count] = 1
                rng.shuffle(own)
                confidence = np.clip(rng.normal(0.45 + 0.3 * own, 0.15), 0.05, 1.0)
                answers.append(
                    pd.DataFrame(
                        {
                            "task": task,
                            "pool": pool,
                            "method": method,
                            "draw": 0,
                            "index": range(questions),
                            "right": own,
                            "confidence": confidence,
                        }
                    )
                )
                results.append(
                    {
                        "task": task,
                        "group": "words",
                        "pool": pool,
                        "method": method,
                        "profile": profile,
                        "seed": seed,
                        "model": "SmolLM2-135M",
                        "split": f"{task}-{seed}",
                        "n": questions,
                        "accuracy": float(own.mean()),
                        "chance": 0.25,
                        "nll": 1.25,
                        "ece": 0.125,
                        "seconds": 5.0,
                    }
                )
                if method in TOKENS:
                    spent = {"forward_tokens": TOKENS[method], "backward_tokens": TOKENS[method]}
                    row = {
                        "method": method,
                        "stage": "adaptation",
                        "task": task,
                        "pool": pool,
                        "seconds": 4.0,
                    }
                    compute.append({**row, **spent})
    for method in TOKENS:
        if method in methods and method not in without:
            row = {
                "method": method,
                "stage": "meta_training",
                "task": None,
                "pool": None,
                "seconds": 90.0,
            }
            compute.append({**row, "forward_tokens": 2_000_000, "backward_tokens": 1_000_000})
    for row in compute:
        row["tokens"] = row["forward_tokens"] + row["backward_tokens"]
    columns = ["method", "stage", "task", "pool", "forward_tokens", "backward_tokens", "tokens"]
    columns += ["seconds"]
    names = ["task", "pool", "method", "draw", "index", "right", "confidence"]
    record = {
        "command": f"kedro run --env comparison --params seed={seed}",
        "versions": {"degaml-kedro": "0.1", "torch": "2.13.0"},
        "machine": {"processor": "A processor", "cores": 2},
        "parameters": {"seed": seed, "lora": {"rank": 8, "target_modules": ["q", "v"]}},
    }
    return Run(
        name=f"seed_{seed}",
        seed=seed,
        profile=profile,
        results=pd.DataFrame(
            results, columns=None if results else ["task", "pool", "method", "chance"]
        ),
        answers=pd.concat(answers) if answers else pd.DataFrame(columns=names),
        compute=pd.DataFrame(compute, columns=columns),
        **{"record": record, **more},
    )


def make_runs(seeds=(999, 1000), methods=METHODS, tasks=None, asked=None, **more):
    """Runs of several seeds."""
    tasks = {"meta_test": TASKS} if tasks is None else tasks
    runs = tuple(make_run(seed, methods, tasks, **more) for seed in seeds)
    return Runs(runs, tuple(asked or methods), tasks)


TRIED = [
    {"method": "union_train", "task": task, "number": number, "n": 60, "nll": 1.0}
    | {"setting": {"steps": steps_}, "accuracy": accuracy, "chosen": number == 1}
    for number, (steps_, accuracy) in enumerate([(5, 0.4), (10, 0.55)])
    for task in ("colors", "days")
]
TABLES = {
    "strategies": by_task().assign(iteration=0),
    "policy_rollouts": two_iterations(),
    "generator_steps": steps().assign(variant="mse"),
    "generator_health": checks().assign(variant="mse"),
    "settings": pd.DataFrame(TRIED),
}


VOID = {"meta", "wbr", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """What a browser would find: that tags are closed, what is loaded, the tables' cells, and what titles head."""

    def __init__(self, page):
        super().__init__()
        self.open, self.starts, self.loads, self.scripts = [], [], [], []
        self.tables, self.ids, self.said = [], set(), {}
        self._cell, self._titles = None, []
        self.feed(page)
        self.close()
        assert self.open == []
        self.said = {key: " ".join(text.split()) for key, text in self.said.items()}

    @property
    def tags(self):
        return {tag for tag, _ in self.starts}

    def handle_starttag(self, tag, attributes):
        self.starts.append((tag, [(name, value or "") for name, value in attributes]))
        for name, value in attributes:
            inside = (value or "").startswith("#")
            if name in ("src", "href", "srcset", "data", "action") and not inside:
                self.loads.append((tag, value))
            if name == "id":
                assert value not in self.ids
                self.ids.add(value)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""
        elif tag == "script":
            self.scripts.append("")
        elif re.fullmatch("h[1-3]", tag):
            # what stands below a title of a third level stands below that of the second, too
            level = int(tag[1])
            self._titles = [*self._titles[: level - 1], dict(attributes).get("id", "")]
            self.said[self._titles[-1]] = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._cell)
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data
        elif self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            for title in self._titles:
                self.said[title] += data


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """What is tested here is what is said, not how sure it is."""
    with pytest.MonkeyPatch.context() as patch:
        few = partial(resampled_means, resamples=1000)
        patch.setattr("degaml_kedro.results.statistics.resampled_means", few)
        yield


@pytest.fixture
def words_alone(monkeypatch):
    """No figures: what is tested is what tables and sentences say, and figures take most of a report's time."""
    for name in (
        "accuracy_compute_figure",
        "comparison_figure",
        "generator_figure",
        "policy_figure",
        "reliability_figure",
        "strategy_map",
    ):
        monkeypatch.setattr(f"degaml_kedro.results.report.{name}", lambda *_, **__: Figure())


@pytest.fixture(scope="module")
def full():
    runs = make_runs(tables=TABLES)
    return runs, find(runs)


@pytest.fixture(scope="module")
def values(full):
    return context(full[1])


@pytest.fixture(scope="module")
def written(full):
    return write(full[1])


@pytest.fixture(scope="module")
def page(written):
    return Reader(written[0])


def said(runs_or_findings):
    """What the sections of a report say, by their keys."""
    findings = find(runs_or_findings) if isinstance(runs_or_findings, Runs) else runs_or_findings
    return Reader(write(findings)[0]).said


def tables_of(values, pool="meta_test"):
    """Accuracies, intervals, and contrasts."""
    (view,) = [view for view in values["comparison"] if view["name"] == pool]
    return [*view["tables"], *(one["table"] for one in view.get("contrasts", ()))]


def pool_tables(runs, pool="meta_test"):
    return tables_of(context(find(runs)), pool)


def rows_of(table):
    """Without the titles of groups."""
    return [tuple(row) for row in table.rows if not isinstance(row[0], Emphasis)]


def row_of(table, name):
    (row,) = [row for row in rows_of(table) if row[0] == name]
    return dict(zip(table.columns, row, strict=True))


def markdown_tables(text):
    """The cells of each table, and whether its lines are of one length of cells."""
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        lines = block.strip().splitlines()
        yield [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for number, line in enumerate(lines)
            if number != 1
        ]


def plain(cell):
    cell = re.sub(r"\\([\\`*\[\]<>&|~_])", r"\1", cell)
    for mark in ("**", "*", "`"):
        if len(cell) > 2 * len(mark) and cell.startswith(mark) and cell.endswith(mark):
            cell = cell.removeprefix(mark).removesuffix(mark)
    return cell


# --- one source, two files ------------------------------------------------------------------------


def test_markdown_and_page_hold_the_same_tables(written, page):
    text = written[1]
    in_text = [[[plain(cell) for cell in row] for row in table] for table in markdown_tables(text)]
    assert len(in_text) > 10
    assert in_text == page.tables


def test_every_markdown_table_has_as_many_cells_in_every_line(written):
    for table in markdown_tables(written[1]):
        assert len({len(row) for row in table}) == 1


def test_figures_are_in_the_page_and_pointed_to_from_markdown(written, page):
    keys = re.findall(rf"\(<{PAGE}#(figure-[a-z0-9-]+)>\)", written[1])
    assert keys == [
        "figure-accuracy-meta-test",
        "figure-accuracy-compute",
        "figure-reliability",
        "figure-strategies",
        "figure-policy",
        "figure-generator-1",
        "figure-generator-2",
    ]
    assert set(keys) <= page.ids


def test_the_page_is_below_six_megabytes(written):
    assert len(written[0].encode()) < 6e6


def test_only_the_page_s_own_scripts_may_run(written, page):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', written[0]).group(
        1
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert sum("plotly.js v" in program for program in page.scripts) == 1
    digests = [
        base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
        for program in page.scripts
    ]
    assert re.findall(r"sha256-([A-Za-z0-9+/=]+)", policy) == digests


def test_a_page_can_be_read_by_all(written, page):
    assert written[0].startswith("<!DOCTYPE html>")
    assert '<html lang="en">' in written[0]
    attributes = [(tag, dict(pairs)) for tag, pairs in page.starts]
    assert {own.get("scope") for tag, own in attributes if tag == "th"} == {"col"}
    drawn = [own["aria-label"] for _, own in attributes if own.get("role") == "img"]
    assert len(drawn) == 7
    assert all(drawn)
    # every entry of the contents leads somewhere
    targets = {own["href"][1:] for tag, own in attributes if tag == "a"}
    assert {"content", "summary", "comparison", "glossary"} <= targets <= page.ids
    assert "@media print" in written[0]


# --- what is said ---------------------------------------------------------------------------------


def test_the_summary_gives_the_verdict_with_its_numbers(page):
    said = page.said["summary"]
    # 34 of 40 against 20 of 40
    assert (
        "degaml has a mean accuracy of 85.0 %. The best baseline, union_train, has 50.0 %." in said
    )
    assert "Difference: +35.0 points, at least 2" in said
    assert (
        "Adaptation to a task takes degaml 16.0 k tokens; the costliest baseline takes 18.0 k (maml_en_llm): within."
        in said
    )
    assert "Time beside it, which does not decide: 4.0 s, and 4.0 s at most" in said
    # of the four that were asked for, two have no answers
    assert "both corrected for 4 comparisons (n = 160 pairs" in said
    assert "Holm-adjusted p: for 3 comparisons." in page.said["out-of-domain-held-out-tasks"]
    assert "2 seeds (999 and 1000)" in said
    assert "A claim wants 3 seeds" in said
    # two of the four baselines are missing
    assert said.startswith("Summary Whether the aim is met is open")
    assert "abmll (months, capitals)" in said


@pytest.mark.usefixtures("words_alone")
@pytest.mark.parametrize(("count", "verdict"), [(34, "The aim is met"), (20, "The aim is not met")])
def test_the_aim(count, verdict):
    methods = ("no_meta_train_support", "union_train", "maml_en_llm", "abmll", "degaml")
    runs = make_runs(methods=methods, right={**RIGHT, "degaml": count})
    counted = []
    for run in runs.runs:
        known = run.compute[run.compute["method"] == "union_train"]
        others = [known.assign(method=name) for name in ("no_meta_train_support", "abmll")]
        counted.append(replace(run, compute=pd.concat([run.compute, *others])))
    found = said(replace(runs, runs=tuple(counted)))["summary"]
    assert found.startswith(f"Summary {verdict}: the aim is {100 * AIM:.0f} points")


def test_tables_hold_percent_and_deltas(values):
    accuracies, intervals, contrasts = tables_of(values)
    row = row_of(accuracies, "union_train")
    # 20 of 40, base 12 of 40
    assert (row["months"], row["Avg"]) == ("50.0 (+20.0)", "50.0 (+20.0)")
    assert row_of(accuracies, "base")["months"] == "30.0"
    assert row_of(intervals, "union_train")["months (n\u00a0=\u00a080)"] == "39.3 to 60.7"
    difference = row_of(contrasts, "union_train")
    assert difference["difference"] == "+35.0"
    assert difference["pairs"] == "160"
    # a bound is no method to be compared with
    assert [row[0] for row in rows_of(contrasts)] == ["base", "union_train", "maml_en_llm"]


def test_only_winners_are_bold(full, values, page):
    (accuracies, *_) = tables_of(values)
    bold = {
        (row[0], accuracies.columns[column])
        for row in rows_of(accuracies)
        for column, cell in enumerate(row)
        if isinstance(cell, Strong)
    }
    assert winner(full[1].pools["meta_test"]) == "degaml"
    # oracle_strategy is higher everywhere
    assert bold == {("degaml", "months"), ("degaml", "capitals"), ("degaml", "Avg")}
    notes = page.said["out-of-domain-held-out-tasks"]
    assert "Bold: better beyond chance than every other" in notes
    assert "corrected for the comparisons within a column, not over columns" in notes


@pytest.mark.usefixtures("words_alone")
@pytest.mark.parametrize("pool", ["meta_train", "left_out", "meta_test"])
def test_a_yardstick_does_not_compete_where_it_sees_more(pool):
    methods = ("base", "no_meta_train", "degaml")
    runs = make_runs(methods=methods, tasks={pool: TASKS}, right={**RIGHT, "no_meta_train": 39})
    findings = find(runs)
    seen = pool == "meta_train"
    assert findings.winners[pool, "mean"] == ("no_meta_train" if seen else "degaml")
    (accuracies, *_) = tables_of(context(findings), pool)
    assert isinstance(row_of(accuracies, "no_meta_train")["Avg"], Strong) == seen
    found = said(findings)
    notes = found["comparison"]
    assert ("no_meta_train is a yardstick, no competitor" in notes) != seen
    assert ("(no_meta_train, a yardstick, left out)" in found["summary"]) != seen


@pytest.mark.usefixtures("words_alone")
def test_nothing_is_bold_where_methods_are_alike():
    findings = find(make_runs(right=dict.fromkeys(METHODS, 20)))
    (accuracies, *_) = tables_of(context(findings))
    assert not any(isinstance(cell, Strong) for row in rows_of(accuracies) for cell in row)
    assert "nothing is bold" in said(findings)["out-of-domain-held-out-tasks"]


def test_bounds_stand_apart_and_are_called_that(values):
    *_, (title, *_), (method, *_) = tables_of(values)[0].rows
    assert (title, method) == ("bound, no result", "oracle_strategy")
    assert isinstance(title, Emphasis)


# --- what is missing ------------------------------------------------------------------------------


@pytest.mark.usefixtures("words_alone")
def test_missing_methods_are_missing_and_not_0():
    runs = make_runs(
        methods=("base", "degaml"),
        asked=("base", "abmll", "degaml"),
        without=(("degaml", "months"),),
    )
    findings = find(runs)
    accuracies, intervals, contrasts = tables_of(context(findings))
    assert set(row_of(accuracies, "abmll").values()) == {"abmll", None}
    assert set(row_of(intervals, "abmll").values()) == {"abmll", None}
    assert row_of(accuracies, "degaml") == {
        "method": "degaml",
        "months": None,
        "capitals": "85.0 (+55.0)",
        "Avg": None,
    }
    assert row_of(contrasts, "abmll")["difference"] is None
    notes = " ".join(accuracies.notes)
    assert "No results here: abmll." in notes
    assert (
        "Not among this configuration's methods: union_train, maml_en_llm and generalization_only."
        in notes
    )
    assert "degaml: 85.0 over the 1 of 2 tasks that are there" in notes
    assert "left out: degaml: months" in " ".join(contrasts.notes)
    page, text = write(findings)
    assert ">—</td>" in page
    assert re.search(r"^\| abmll +\| +— \| +— \| +— \|$", text, re.MULTILINE)
    assert "missing; there is no result, which is not a result of 0." in page


@pytest.mark.usefixtures("words_alone")
def test_a_method_with_fewer_seeds_says_so():
    runs = make_runs()
    second = replace(
        runs.runs[1],
        answers=runs.runs[1].answers[runs.runs[1].answers["method"] != "union_train"],
    )
    accuracies, intervals, _ = pool_tables(replace(runs, runs=(runs.runs[0], second)))
    assert "union_train: 1 of 2 seeds with all its tasks." in accuracies.notes
    assert row_of(intervals, "union_train")["months (n\u00a0=\u00a080)"].endswith("(n = 40)")


def test_every_part_without_data_says_what_makes_it():
    runs = make_runs(methods=("base",), record={})
    runs = replace(
        runs,
        runs=tuple(
            replace(
                run,
                compute=run.compute.iloc[:0],
                answers=run.answers.assign(confidence=np.nan),
                tables={},
            )
            for run in runs.runs
        ),
    )
    page = Reader(write(find(runs))[0])
    for key, how in {
        "accuracy-against-compute": "kedro run",
        "reliability": "scoring modes",
        "strategies-by-task": "kedro run --pipeline evaluate",
        "how-the-policy-learned": "kedro run --pipeline policy",
        "generator-health": "kedro run --pipeline generator",
        "search-for-settings": "kedro run --pipeline baselines",
        "beside-the-paper-s-figures": "kedro run --env paper_0_5b",
        "versions-and-machines": "08_reporting/run.json",
        "every-setting": "08_reporting/run.json",
        "out-of-domain-held-out-tasks": "degaml has no results here",
        "summary": "degaml has no mean accuracy",
    }.items():
        assert how in page.said[key], key
    assert {name for name in page.ids if name.startswith("figure-")} == {
        "figure-accuracy-meta-test"
    }


def test_no_results_at_all_are_a_report_without_programs():
    text, _ = write(find(make_runs(without=METHODS, tables={})))
    page = Reader(text)
    assert "No method has results here" in page.said["out-of-domain-held-out-tasks"]
    assert "degaml has no mean accuracy" in page.said["summary"]
    assert "<script" not in text
    assert "script-src 'none'" in text


@pytest.mark.usefixtures("words_alone")
def test_many_generators_are_shown_of_the_first_run_only(full):
    many = pd.concat([steps().assign(variant=name) for name in ("a", "b", "c", "d")])
    findings = replace(full[1], runs=make_runs(tables={"generator_steps": many}))
    assert context(findings)["generators"] == [
        f"Generator {name}, seed_999" for name in ("a", "b", "c", "d")
    ]
    assert (
        "Figures of seed_999; those of seed_1000 are beside" in said(findings)["generator-health"]
    )


@pytest.mark.usefixtures("words_alone")
def test_drawn_tasks_have_a_row_a_distribution():
    methods = ("base", "degaml")
    tasks = {"meta_test": ("a_1", "a_2", "b_1")}
    runs = make_runs(methods=methods, tasks=tasks)
    marked = tuple(
        replace(
            run,
            results=run.results.assign(drawn=True, group=run.results["task"].str.split("_").str[0]),
        )
        for run in runs.runs
    )
    runs = replace(runs, runs=marked)
    findings = find(runs)
    pool = findings.pools["meta_test"]
    assert pool.distributions == {"a": ("a_1", "a_2"), "b": ("b_1",)}
    found = statistics.table(pool).set_index(["method", "task"])
    assert set(found.index) == {(m, t) for m in methods for t in ("a", "b", "mean")}
    own = pool.accuracies["degaml"]
    of_a = own[own.index.get_level_values("task").str.startswith("a")]
    assert found.loc[("degaml", "a"), "accuracy"] == pytest.approx(of_a.mean())
    assert found.loc[("degaml", "a"), "tasks"] == 2
    assert findings.tasks("meta_test") == ["a", "b"]
    contrasts = findings.contrasts.set_index("distribution")
    assert contrasts.loc["b", "tasks"] == ("b_1",)
    assert "2 distributions (3 tasks a seed)" in said(findings)["summary"]
    captions = [one.caption for one in tables_of(context(findings))]
    assert "degaml against every method, b" in captions


# --- costs and calibration ------------------------------------------------------------------------


def costs_of(values, method):
    (row,) = [row for row in rows_of(values["compute"]) if row[0] == method]
    return row


def test_costs_are_tokens_and_time(values):
    assert costs_of(values, "degaml") == (
        "degaml",
        "85.0",
        "8.00 k",
        "8.00 k",
        "16.0 k",
        "4.0 s",
        "0.12 s",
        None,
        None,
        "3.00 M",
        "90.0 s",
    )
    assert costs_of(values, "oracle_strategy (bound)")
    assert costs_of(values, "base")[4] == "0"


@pytest.mark.usefixtures("words_alone")
def test_of_some_methods_only_the_sum_of_tokens_is_known():
    runs = make_runs(methods=("base", "degaml"))
    spent = runs.runs[0].compute.assign(forward_tokens=np.nan, backward_tokens=np.nan)
    for unknown in (spent, spent.astype({"forward_tokens": object}).replace({np.nan: None})):
        runs = replace(runs, runs=(replace(runs.runs[0], compute=unknown),))
        values = context(find(runs))
        assert costs_of(values, "degaml")[2:6] == (None, None, "16.0 k", "4.0 s")
    assert any("of tokens maybe only the sum" in n for n in values["compute"].all_notes)


def test_what_does_nothing_at_a_task_costs_nothing_there():
    runs = make_runs(methods=("base", "pooled", "mean_adapter", "degaml"))
    findings = find(runs)
    values = context(findings)
    for method in ("pooled", "mean_adapter"):
        assert costs_of(values, method)[2:6] == ("0", "0", "0", "0.0 s")
    figure = accuracy_compute_figure(findings.comparison)
    shown = {trace.name for trace in figure.data if trace.xaxis == "x"}
    assert {"pooled", "mean_adapter"} <= shown


def test_calibration_is_that_of_the_curves(full, values):
    row = row_of(values["calibration"], "degaml")
    bins = full[1].bins
    own = bins[(bins["method"] == "degaml") & (bins["n"] > 0)]
    by_hand = float((own["n"] * (own["accuracy"] - own["confidence"]).abs()).sum() / own["n"].sum())
    assert row["ECE, all answers"] == f"{by_hand:.3f}"
    assert row["ECE, mean of tasks"] == "0.125"
    assert row["n"] == "160"


# --- settings, commands, paper --------------------------------------------------------------------


def test_the_search_shows_what_was_tried_and_chosen(values, page):
    assert rows_of(values["settings"]) == [
        ("union_train", "steps 5", "", "999, 1000", "40.0", "40.0"),
        ("union_train", "steps 10", "chosen", "999, 1000", "55.0", "55.0"),
    ]
    notes = page.said["search-for-settings"]
    assert "on validation questions (n = 60 each) of meta-train tasks" in notes
    assert "Every baseline had the same number of settings to choose from." in notes
    assert "policy's settings were set by hand on meta-train tasks (docs/comparison.md)" in notes


@pytest.mark.usefixtures("words_alone")
def test_seeds_that_searched_for_themselves_have_rows_of_their_own(full):
    runs = make_runs(tables=TABLES)
    other = pd.DataFrame(TRIED).assign(accuracy=0.25)
    second = replace(runs.runs[1], tables={"settings": other})
    runs = replace(runs, runs=(runs.runs[0], second))
    tried = context(replace(full[1], runs=runs))["settings"]
    assert [row[3] for row in rows_of(tried)] == ["999", "999", "1000", "1000"]


def test_commands_are_those_of_the_runs(values, written):
    command = "kedro run --env comparison --params seed=SEED --to-nodes"
    assert f"{command} evaluate.TASK.measure_degaml" in values["commands"]
    assert f"{command} baselines.TASK.measure_union_train" in values["commands"]
    assert f"\n\n```sh\n{values['commands'][0]}\n" in written[1]
    assert [row[3] for row in rows_of(values["run_table"])] == [
        f"kedro run --env comparison --params seed={seed}" for seed in (999, 1000)
    ]


@pytest.mark.usefixtures("words_alone")
def test_a_run_without_a_command(full):
    found = context(replace(full[1], runs=make_runs(record={})))
    assert found["commands"][0].startswith("kedro run --params")
    assert rows_of(found["run_table"])[0] == ("seed_999", "999", "embedded", None)


def test_settings_are_flat_and_those_that_differ_stand_first(values):
    differing, alike = values["parameters"]
    assert rows_of(differing) == [("seed", "999", "1000")]
    assert rows_of(alike) == [("lora.rank", "8"), ("lora.target_modules", '["q", "v"]')]
    assert ("torch", "2.13.0") in rows_of(values["versions"][0])
    assert values["machines"][0].caption == "Machines of all runs"


@pytest.mark.usefixtures("words_alone")
def test_versions_that_differ_stand_side_by_side(full):
    runs = make_runs()
    record = {**runs.runs[1].record, "versions": {"torch": "2.14.0"}}
    runs = replace(runs, runs=(runs.runs[0], replace(runs.runs[1], record=record)))
    (versions,) = context(replace(full[1], runs=runs))["versions"]
    assert versions.columns == ("package", "seed_999", "seed_1000")
    assert rows_of(versions) == [("degaml-kedro", "0.1", None), ("torch", "2.13.0", "2.14.0")]


@pytest.mark.usefixtures("words_alone")
def test_the_paper_s_figures_stand_beside_ours_in_its_profile():
    pools = {
        "meta_train": ("arc_challenge", "boolq"),
        "left_out": ("arc_challenge",),
        "meta_test": ("gsm8k", "math"),
    }
    findings = find(make_runs(tasks=pools, profile="paper_0_5b"))
    values = context(findings)
    seen, held_out = values["beside_paper"]
    assert held_out.columns == ("method", "GSM-8K", "MATH", "Avg")
    printed = paper_table("Qwen2.5-0.5B-Instruct", "out_of_domain")
    row = row_of(held_out, "degaml")
    assert row["GSM-8K"] == f"85.0 / {printed.loc['degaml', 'GSM-8K']:.1f}"
    assert row_of(held_out, "abmll")["MATH"] == "— / 7.1"
    assert row_of(seen, "base")["ARC-c"] == "30.0 / 38.3"
    # the paper's in-domain rows beside those of what never saw the task
    assert seen.caption == "Ours / the paper's, left out"
    assert any("Not all of the paper's tasks ran" in note for note in held_out.notes)
    told = said(findings)["beside-the-paper-s-figures"]
    assert held_out.caption in told
    assert "no group is left out" not in told
    pools.pop("left_out")
    told = said(make_runs(tasks=pools, profile="paper_0_5b"))["beside-the-paper-s-figures"]
    assert "no group is left out (generator.leave_out)" in told


@pytest.mark.usefixtures("words_alone")
def test_a_task_that_nobody_may_pass_on_is_said_to_be_missing():
    runs = make_runs()
    assert "Without " not in said(runs)["summary"]
    record = {**runs.runs[0].record, "parameters": {"absent": ["jama"]}}
    runs = replace(runs, runs=tuple(replace(run, record=record) for run in runs.runs))
    assert "Without jama: the configuration names it, and its file was" in said(runs)["summary"]


def test_the_appendix_has_the_paper_s_tables_as_printed(page, values):
    assert "Tables 1 and 2" in page.said["appendix-the-paper-s-tables"]
    assert len(values["paper_tables"]) == 4
    assert ("degaml", "55.5", "74.7", "48.3", "58.7", "60.1", "52.8", "58.4") in [
        row for table in values["paper_tables"] for row in rows_of(table)
    ]


@pytest.mark.usefixtures("words_alone")
def test_all_pools_have_their_section(page):
    pools = {"meta_train": ("colors", "days"), "left_out": ("days",), "meta_test": TASKS}
    values = context(find(make_runs(tasks=pools)))
    assert [view["name"] for view in values["comparison"]] == list(pools)
    assert [row[0] for row in rows_of(tables_of(values, "meta_train")[0])[:7]] == [
        "no_meta_train",
        "union_train",
        "abmll",
        "maml_en_llm",
        "base",
        "generalization_only",
        "degaml",
    ]
    # a pool that no task is in is not spoken of, where only groups have one
    keys = [key for key in page.said if "domain" in key or "left-out" in key]
    assert keys == ["in-domain-tasks-of-meta-training", "out-of-domain-held-out-tasks"]


def test_the_glossary_has_a_sentence_for_every_method(page):
    for method in (*METHODS, "abmll"):
        assert f"{method}: " in page.said["methods"]
    assert "A method of this configuration." not in page.said["methods"]


def test_the_glossary_says_what_is_chosen_on_what():
    assert "the best on the support examples" in meaning("random_policy")
    assert "the best on the support examples" in meaning("degaml")
    assert "the support prompts" in meaning("generalization_only")


# --- Markdown ---------------------------------------------------------------------------------------


def test_a_table_in_markdown():
    rows = [(Emphasis("words"), ""), ("words", "1.5"), (Code("words"), None), (Strong("b"), "x")]
    made = Table("words", ("method", "words"), rows, ("a note",))
    assert made.all_notes == [
        "a note",
        "—: missing; there is no result, which is not a result of 0.",
    ]
    assert (
        _grid(made)
        == """\
| method   |   words |
|:---------|--------:|
| *words*  |         |
| words    |     1.5 |
| `words`  |       — |
| **b**    |       x |"""
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b", "a_b"),
        ("_a_", r"\_a\_"),
        ("<b> & [x](y) *z* ~", r"\<b\> \& \[x\](y) \*z\* \~"),
        ("two\nlines", "two lines"),
        ("1. first", r"1\. first"),
        ("# head", r"\# head"),
        ("- item", r"\- item"),
        ("---", r"\---"),
        ("-1.5 points", "-1.5 points"),
        ("3 seeds", "3 seeds"),
    ],
)
def test_markdown_escapes(text, expected):
    assert _escaped(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("a|b", "`a\\|b`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("", "")]
)
def test_code_in_markdown_tables(text, expected):
    assert f"| {expected.ljust(3)}" in _grid(Table("c", ("x",), [(Code(text),)]))


def test_code_is_fenced_with_more_than_it_holds():
    assert _fenced("```\nx", "") == "````\n```\nx\n````"


# --- hostile names ---------------------------------------------------------------------------------

HOSTILE = '</script><img src="http://evil.example/x" onerror=alert(1)>|`*_x_'


def test_hostile_names_stay_text_everywhere():
    markdown_it = pytest.importorskip("markdown_it")
    methods = (*METHODS[:-1], HOSTILE)
    tables_ = {**TABLES, "strategies": by_task().assign(task=HOSTILE, family=HOSTILE)}
    runs = make_runs(
        methods=methods,
        tasks={"meta_test": (HOSTILE, "months")},
        profile=HOSTILE,
        tables=tables_,
        record={
            "command": HOSTILE,
            "versions": {HOSTILE: HOSTILE},
            "parameters": {HOSTILE: HOSTILE},
        },
    )
    page, text = write(find(runs))
    reader = Reader(page)
    assert not reader.loads
    assert not reader.tags & {"link", "img", "iframe", "object", "embed", "base", "form"}
    assert all("onerror" not in dict(attributes) for _, attributes in reader.starts)
    assert sum("Plotly.newPlot" in script for script in reader.scripts) >= 7
    assert "http://evil.example" not in "".join(
        value
        for _, attributes in reader.starts
        for name, value in attributes
        if name != "aria-label"
    )
    # the table's cells are what they were
    assert any(row[0] == HOSTILE for table in reader.tables for row in table)
    for table in markdown_tables(text):
        assert len({len(row) for row in table}) == 1
    rendered = Reader(markdown_it.MarkdownIt().enable("table").render(text))
    assert "img" not in rendered.tags
    assert {tag for tag, _ in rendered.loads} == {"a"}
    assert all(target.startswith(f"{PAGE}#figure-") for _, target in rendered.loads)
    assert any(row[0] == HOSTILE for table in rendered.tables for row in table)


# --- the table of one run ---------------------------------------------------------------------------


def result(task, pool, method, accuracy):
    return {
        "task": task,
        "group": "words",
        "pool": pool,
        "method": method,
        "n": 200,
        "chance": 0.25,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.05,
        "accuracy_high": accuracy + 0.05,
    }


def test_tasks_down_methods_across_and_means_per_pool():
    results = pd.DataFrame(
        [
            result("capitals", "meta_train", "base", 0.25),
            result("capitals", "meta_train", "pooled", 0.75),
            result("months", "meta_train", "base", 0.35),
            result("months", "meta_train", "pooled", 0.95),
            result("days", "meta_test", "base", 0.45),
        ]
    )
    lines = results_table(results, ["base", "pooled"]).splitlines()
    assert len({len(line) for line in lines[:6]}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:6]]
    assert cells[0] == ["task", "pool", "n", "chance", "base", "pooled"]
    assert cells[2] == [
        "capitals",
        "meta_train",
        "200",
        "0.25",
        "0.25 (0.20–0.30)",
        "0.75 (0.70–0.80)",
    ]
    assert cells[4] == ["**mean**", "meta_train", "", "0.25", "0.30", "0.85"]
    # a method without a result leaves its cell empty, a single task has no mean
    assert cells[5] == ["days", "meta_test", "200", "0.25", "0.45 (0.40–0.50)", ""]
    assert "Wilson" in lines[-1]


# --- the pipeline -----------------------------------------------------------------------------------


def test_the_pipeline_makes_what_the_catalog_keeps(full, written):
    runs, findings = full
    pipeline = create_pipeline(None)
    assert pipeline.inputs() == {"runs"}
    made = {}
    for step in pipeline.nodes:
        made |= step.run({name: made.get(name, runs) for name in step.inputs})
    assert set(made) == {
        "comparison",
        "contrasts",
        "comparison_figure",
        "accuracy_compute_figure",
        "reliability_figure",
        "report_page",
        "report_text",
    }
    # a report is the same every time
    assert (made["report_page"], made["report_text"]) == written
    assert list(made["contrasts"]["other"]) == ["base", "union_train", "maml_en_llm"]
    own = made["comparison"].set_index(["pool", "task", "method"])
    assert own.loc[("meta_test", "mean", "degaml"), "adaptation_tokens"] == 16_000
    assert own.loc[("meta_test", "months", "degaml"), "accuracy"] == pytest.approx(0.85)
    assert list(made["comparison"]) == list(findings.comparison)


def test_figures_can_be_made_from_what_is_stored(full):
    frame = full[1].comparison
    file = BytesIO()
    frame.to_parquet(file)
    stored = pd.read_parquet(file)
    for draw in (comparison_figure, accuracy_compute_figure):
        assert draw(stored).to_json() == draw(frame).to_json()
    full[1].differences().to_parquet(BytesIO())
