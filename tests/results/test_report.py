"""The report says what was measured, in HTML and Markdown alike, and what is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from io import BytesIO

import numpy as np
import pandas as pd
import pytest

from degaml_kedro.pipelines.report import create_pipeline
from degaml_kedro.results import comparison as statistics
from degaml_kedro.results.comparison import (
    AIM,
    distributions,
    resampled_means,
    rightness,
    winner,
)
from degaml_kedro.results.paper import paper_table
from degaml_kedro.results.report.accuracy import comparison
from degaml_kedro.results.report.costs import compute
from degaml_kedro.results.report.document import Picture, Span, Table, strong, walk
from degaml_kedro.results.report.figures import accuracy_compute_figure, comparison_figure
from degaml_kedro.results.report.findings import find
from degaml_kedro.results.report.glossary import meaning
from degaml_kedro.results.report.learning import generator
from degaml_kedro.results.report.page import html_page
from degaml_kedro.results.report.printed import beside_paper
from degaml_kedro.results.report.report import PAGE, report, write
from degaml_kedro.results.report.reproduction import reproduction
from degaml_kedro.results.report.search import settings
from degaml_kedro.results.report.summary import summary
from degaml_kedro.results.runs import Run, Runs
from tests.results.test_generator_figure import checks, steps
from tests.results.test_policy_measures import by_task, two_iterations
from tests.results.test_report_page import Reader

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
        results=pd.DataFrame(results, columns=None if results else ["task", "pool", "chance"]),
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


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """What is tested here is what is said, not how sure it is."""
    with pytest.MonkeyPatch.context() as patch:
        few = partial(resampled_means, resamples=1000)
        patch.setattr("degaml_kedro.results.comparison.resampled_means", few)
        yield


@pytest.fixture(scope="module")
def full():
    runs = make_runs(tables=TABLES)
    return runs, find(runs)


@pytest.fixture(scope="module")
def document(full):
    return report(full[1])


@pytest.fixture(scope="module")
def written(full):
    return write(find(full[0]))


def section(document, key):
    (found,) = [one for one in walk(document.sections) if one.key == key]
    return found


def words(found):
    """All text of a section."""
    texts = []
    for block in found.blocks:
        for paragraph in getattr(block, "items", [block]):
            texts += [getattr(part, "text", part) for part in getattr(paragraph, "parts", ())]
    return "".join(texts)


def tables(found):
    return [block for block in found.blocks if isinstance(block, Table)]


def text_of(cell):
    return cell.text if isinstance(cell, Span) else cell


def row_of(table, name):
    (row,) = [row for row in table.rows if text_of(row[0]) == name]
    return dict(zip(table.columns, row, strict=True))


def pool_of(runs, pool="meta_test"):
    findings = find(runs)
    (found,) = [
        one
        for one in comparison(findings, findings.comparison()).sections
        if one.key == f"pool-{pool.replace('_', '-')}"
    ]
    return found


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


def test_markdown_and_page_hold_the_same_tables(written):
    page, text = written
    reader = Reader(page)
    in_text = [[[plain(cell) for cell in row] for row in table] for table in markdown_tables(text)]
    assert len(in_text) > 10
    # a group's title is one wide cell in the page, and one cell and empty ones in Markdown
    in_page = [
        [
            [" ".join(cell.split()) for cell in row] + [""] * (len(table[0]) - len(row))
            for row in table
        ]
        for table in reader.tables
    ]
    assert in_text == in_page


def test_every_markdown_table_has_as_many_cells_in_every_line(written):
    for table in markdown_tables(written[1]):
        assert len({len(row) for row in table}) == 1


def test_figures_are_in_the_page_and_pointed_to_from_markdown(written):
    page, text = written
    keys = re.findall(rf"\(<{PAGE}#(figure-[a-z0-9-]+)>\)", text)
    assert len(keys) == 7
    assert set(keys) <= Reader(page).ids


def test_a_report_is_the_same_every_time(full, written):
    assert write(find(full[0])) == written


def test_the_page_is_below_six_megabytes(written):
    assert len(written[0].encode()) < 6e6


# --- what is said ---------------------------------------------------------------------------------


def test_the_summary_gives_the_verdict_with_its_numbers(document):
    said = words(section(document, "summary"))
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
    (contrasts,) = tables(section(document, "pool-meta-test"))[2:]
    assert any("Holm-adjusted p: for 3 comparisons." in note for note in contrasts.notes)
    assert "2 seeds (999 and 1000)" in said
    assert "A claim wants 3 seeds" in said
    # two of the four baselines are missing
    assert said.startswith("Whether the aim is met is open")
    assert "abmll (months, capitals)" in said


@pytest.mark.parametrize(("count", "verdict"), [(34, "The aim is met"), (20, "The aim is not met")])
def test_the_aim(count, verdict):
    methods = ("no_meta_train_support", "union_train", "maml_en_llm", "abmll", "degaml")
    runs = make_runs(methods=methods, right={**RIGHT, "degaml": count})
    counted = []
    for run in runs.runs:
        known = run.compute[run.compute["method"] == "union_train"]
        others = [known.assign(method=name) for name in ("no_meta_train_support", "abmll")]
        counted.append(replace(run, compute=pd.concat([run.compute, *others])))
    said = words(summary(find(replace(runs, runs=tuple(counted)))))
    assert said.startswith(f"{verdict}: the aim is {100 * AIM:.0f} points")


def test_tables_hold_percent_and_deltas(document):
    accuracies, intervals, contrasts = tables(section(document, "pool-meta-test"))
    row = row_of(accuracies, "union_train")
    # 20 of 40, base 12 of 40
    assert (row["months"], row["Avg"]) == ("50.0 (+20.0)", "50.0 (+20.0)")
    assert row_of(accuracies, "base")["months"] == "30.0"
    assert row_of(intervals, "union_train")["months (n\u00a0=\u00a080)"] == "39.3 to 60.7"
    difference = row_of(contrasts, "union_train")
    assert difference["difference"] == "+35.0"
    assert difference["pairs"] == "160"
    # a bound is no method to be compared with
    assert [row[0] for row in contrasts.rows] == ["base", "union_train", "maml_en_llm"]


def test_only_winners_are_bold(full, document):
    (table, *_) = tables(section(document, "pool-meta-test"))
    bold = {
        (text_of(row[0]), table.columns[column])
        for row in table.rows
        for column, cell in enumerate(row)
        if isinstance(cell, Span) and cell.strong
    }
    assert winner(full[0], "meta_test") == "degaml"
    # oracle_strategy is higher everywhere
    assert bold == {("degaml", "months"), ("degaml", "capitals"), ("degaml", "Avg")}
    assert any("Bold: better beyond chance than every other" in note for note in table.notes)


def test_bold_says_what_it_is_corrected_for(document):
    (table, *_) = tables(section(document, "pool-meta-test"))
    note = "corrected for the comparisons within a column, not over columns"
    assert any(note in own for own in table.notes)


@pytest.mark.parametrize("pool", ["meta_train", "left_out", "meta_test"])
def test_a_yardstick_does_not_compete_where_it_sees_more(pool):
    methods = ("base", "no_meta_train", "degaml")
    runs = make_runs(methods=methods, tasks={pool: TASKS}, right={**RIGHT, "no_meta_train": 39})
    findings = find(runs)
    seen = pool == "meta_train"
    assert findings.winners[pool, None] == ("no_meta_train" if seen else "degaml")
    (table, *_) = tables(pool_of(runs, pool))
    cell = row_of(table, "no_meta_train")["Avg"]
    assert (isinstance(cell, Span) and cell.strong) == seen
    assert any("a yardstick, no competitor" in note for note in table.notes) != seen
    said = words(summary(findings))
    assert ("(no_meta_train, a yardstick, left out)" in said) != seen


def test_nothing_is_bold_where_methods_are_alike():
    (table, *_) = tables(pool_of(make_runs(right=dict.fromkeys(METHODS, 20))))
    assert not any(isinstance(cell, Span) and cell.strong for row in table.rows for cell in row)
    assert any("nothing is bold" in note for note in table.notes)


def test_bounds_stand_apart_and_are_called_that(document):
    (table, *_) = tables(section(document, "pool-meta-test"))
    assert [group.title for group in table.groups] == [
        "methods of the paper",
        "bound, no result",
    ]
    assert [row[0] for row in table.groups[-1].rows] == ["oracle_strategy"]


# --- what is missing ------------------------------------------------------------------------------


def test_missing_methods_are_missing_and_not_0():
    runs = make_runs(
        methods=("base", "degaml"),
        asked=("base", "abmll", "degaml"),
        without=(("degaml", "months"),),
    )
    accuracies, intervals, contrasts = tables(pool_of(runs))
    assert set(row_of(accuracies, "abmll").values()) == {"abmll", None}
    assert set(row_of(intervals, "abmll").values()) == {"abmll", None}
    assert row_of(accuracies, "degaml") == {
        "method": "degaml",
        "months": None,
        "capitals": strong("85.0 (+55.0)"),
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
    page, text = write(find(runs))
    assert '<abbr title="missing">—</abbr>' in page
    assert re.search(r"^\| abmll +\| +— \| +— \| +— \|$", text, re.MULTILINE)
    assert "missing; there is no result, which is not a result of 0." in page


def test_a_method_with_fewer_seeds_says_so():
    runs = make_runs()
    second = replace(
        runs.runs[1],
        answers=runs.runs[1].answers[runs.runs[1].answers["method"] != "union_train"],
    )
    accuracies, intervals, _ = tables(pool_of(replace(runs, runs=(runs.runs[0], second))))
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
    document = report(find(runs))
    for key, how in {
        "compute": "kedro run",
        "reliability": "scoring modes",
        "strategies": "kedro run --pipeline evaluate",
        "policy": "kedro run --pipeline policy",
        "generator": "kedro run --pipeline generator",
        "settings": "kedro run --pipeline baselines",
        "paper": "kedro run --env paper_0_5b",
        "reproduction-versions": "08_reporting/run.json",
        "reproduction-settings": "08_reporting/run.json",
    }.items():
        found = section(document, key)
        assert not tables(found), key
        assert how in words(found), key
    assert [picture.key for picture in document.pictures] == ["accuracy-meta-test"]
    assert "degaml has no results here" in words(section(document, "pool-meta-test"))
    assert "degaml has no mean accuracy" in words(section(document, "summary"))


def test_no_results_at_all_are_a_report_too():
    document = report(find(make_runs(without=METHODS, tables={})))
    assert "No method has results here" in words(section(document, "pool-meta-test"))
    assert "degaml has no mean accuracy" in words(section(document, "summary"))
    assert html_page(document)


def test_sections_with_data_have_their_figures(document):
    assert [picture.key for picture in document.pictures] == [
        "accuracy-meta-test",
        "accuracy-compute",
        "reliability",
        "strategies",
        "policy",
        "generator-1",
        "generator-2",
    ]
    for key in ("compute", "reliability", "strategies", "policy", "generator"):
        assert any(isinstance(block, Picture) for block in section(document, key).blocks), key


def test_many_generators_are_shown_of_the_first_run_only(full):
    many = pd.concat([steps().assign(variant=name) for name in ("a", "b", "c", "d")])
    found = generator(replace(full[1], runs=make_runs(tables={"generator_steps": many})))
    assert [block.key for block in found.blocks if isinstance(block, Picture)] == [
        f"generator-{number}" for number in (1, 2, 3, 4)
    ]
    assert "Figures of seed_999; those of seed_1000 are beside" in words(found)


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
    assert distributions(runs, "meta_test") == {"a": ("a_1", "a_2"), "b": ("b_1",)}
    found = {(row.method, row.task): row for row in statistics.table(runs, "meta_test")}
    assert set(found) == {(m, t) for m in methods for t in ("a", "b", None)}
    right = rightness(runs)
    own = [
        v.mean() for place, v in right.items() if place.method == "degaml" and place.task[0] == "a"
    ]
    assert found["degaml", "a"].accuracy == pytest.approx(np.mean(own))
    assert found["degaml", "a"].tasks == 2
    findings = find(runs)
    assert findings.tasks("meta_test") == ["a", "b"]
    (contrast,) = findings.of_distributions["meta_test", "b"]
    assert (contrast.distribution, contrast.tasks) == ("b", ("b_1",))
    document = report(findings)
    assert "2 distributions (3 tasks a seed)" in words(section(document, "summary"))
    names = [block.caption for block in tables(section(document, "pool-meta-test"))]
    assert "degaml against every method, b" in names


# --- costs and calibration ------------------------------------------------------------------------


def test_costs_are_tokens_and_time(document):
    (table,) = tables(section(document, "compute"))
    row = dict(zip(range(len(table.columns)), row_of(table, "degaml").values(), strict=False))
    assert row[0] == "degaml"
    (cells,) = [own for own in table.rows if own[0] == "degaml"]
    assert cells == (
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
    assert any(own[0] == "oracle_strategy (bound)" for own in table.rows)
    (base,) = [own for own in table.rows if own[0] == "base"]
    assert base[4] == "0"


def test_of_some_methods_only_the_sum_of_tokens_is_known():
    runs = make_runs(methods=("base", "degaml"))
    spent = runs.runs[0].compute.assign(forward_tokens=np.nan, backward_tokens=np.nan)
    for unknown in (spent, spent.astype({"forward_tokens": object}).replace({np.nan: None})):
        runs = replace(runs, runs=(replace(runs.runs[0], compute=unknown),))
        findings = find(runs)
        (table,) = tables(compute(findings, findings.comparison()))
        (cells,) = [own for own in table.rows if own[0] == "degaml"]
        assert cells[2:6] == (None, None, "16.0 k", "4.0 s")
    assert "of tokens maybe only the sum" in table.missing


def test_what_does_nothing_at_a_task_costs_nothing_there():
    runs = make_runs(methods=("base", "pooled", "mean_adapter", "degaml"))
    findings = find(runs)
    (table,) = tables(compute(findings, findings.comparison()))
    for method in ("pooled", "mean_adapter"):
        (cells,) = [own for own in table.rows if own[0] == method]
        assert cells[2:6] == ("0", "0", "0", "0.0 s")
    figure = accuracy_compute_figure(findings.comparison())
    shown = {trace.name for trace in figure.data if trace.xaxis == "x"}
    assert {"pooled", "mean_adapter"} <= shown


def test_calibration_is_that_of_the_curves(full, document):
    runs, _ = full
    (table,) = tables(section(document, "reliability"))
    row = row_of(table, "degaml")
    bins = find(runs).bins()
    own = bins[(bins["method"] == "degaml") & (bins["n"] > 0)]
    by_hand = float((own["n"] * (own["accuracy"] - own["confidence"]).abs()).sum() / own["n"].sum())
    assert row["ECE, all answers"] == f"{by_hand:.3f}"
    assert row["ECE, mean of tasks"] == "0.125"
    assert row["n"] == "160"


# --- settings, commands, paper --------------------------------------------------------------------


def test_the_search_shows_what_was_tried_and_chosen(full):
    (table,) = tables(settings(full[1]))
    assert [tuple(text_of(cell) for cell in row) for row in table.rows] == [
        ("union_train", "steps 5", "", "999, 1000", "40.0", "40.0"),
        ("union_train", "steps 10", "chosen", "999, 1000", "55.0", "55.0"),
    ]
    notes = " ".join(table.notes)
    assert "Every baseline had the same number of settings to choose from." in notes
    assert "policy's settings were set by hand on meta-train tasks (docs/comparison.md)" in notes


def test_seeds_that_searched_for_themselves_have_rows_of_their_own(full):
    runs = make_runs(tables=TABLES)
    other = pd.DataFrame(TRIED).assign(accuracy=0.25)
    second = replace(runs.runs[1], tables={"settings": other})
    runs = replace(runs, runs=(runs.runs[0], second))
    (table,) = tables(settings(replace(full[1], runs=runs)))
    assert [row[3] for row in table.rows] == ["999", "999", "1000", "1000"]


def test_commands_are_those_of_the_runs(document):
    listing = section(document, "reproduction-commands").blocks[1].text
    assert (
        "kedro run --env comparison --params seed=SEED --to-nodes evaluate.TASK.measure_degaml"
        in listing
    )
    assert "--to-nodes baselines.TASK.measure_union_train" in listing
    (runs,) = tables(section(document, "reproduction-runs"))
    assert [text_of(row[3]) for row in runs.rows] == [
        f"kedro run --env comparison --params seed={seed}" for seed in (999, 1000)
    ]


@pytest.mark.parametrize("command", ["kedro run --env='it", "", ["kedro", "run", "--env", "a b"]])
def test_any_command_can_have_been_recorded(full, command):
    found = reproduction(replace(full[1], runs=make_runs(record={"command": command})))
    (part,) = [one for one in found.sections if one.key == "reproduction-commands"]
    listing = part.blocks[1].text
    expected = (
        "kedro run --env 'a b' --params" if isinstance(command, list) else "kedro run --params"
    )
    assert listing.startswith(expected)


def test_settings_are_flat_and_those_that_differ_stand_first(document):
    differing, alike = tables(section(document, "reproduction-settings"))
    assert [tuple(map(text_of, row)) for row in differing.rows] == [("seed", "999", "1000")]
    assert [tuple(map(text_of, row)) for row in alike.rows] == [
        ("lora.rank", "8"),
        ("lora.target_modules", '["q", "v"]'),
    ]
    versions, machine = tables(section(document, "reproduction-versions"))
    assert ("torch", "2.13.0") in versions.rows
    assert machine.notes == ("The same in all runs.",)


def test_versions_that_differ_stand_side_by_side(full):
    runs = make_runs()
    record = {**runs.runs[1].record, "versions": {"torch": "2.14.0"}}
    runs = replace(runs, runs=(runs.runs[0], replace(runs.runs[1], record=record)))
    found = reproduction(replace(full[1], runs=runs))
    (part,) = [one for one in found.sections if one.key == "reproduction-versions"]
    versions, _ = tables(part)
    assert versions.columns == ("package", "seed_999", "seed_1000")
    assert versions.rows == [("degaml-kedro", "0.1", None), ("torch", "2.13.0", "2.14.0")]


def test_the_paper_s_figures_stand_beside_ours_in_its_profile():
    pools = {"meta_train": ("arc_challenge",), "meta_test": ("gsm8k", "math")}
    runs = make_runs(tasks=pools, profile="paper_0_5b")
    seen, held_out = tables(beside_paper(find(runs)))
    assert held_out.columns == ("method", "GSM-8K", "MATH", "Avg")
    printed = paper_table("Qwen2.5-0.5B-Instruct", "out_of_domain")
    row = row_of(held_out, "degaml")
    assert row["GSM-8K"] == f"85.0 / {printed.loc['degaml', 'GSM-8K']:.1f}"
    assert row_of(held_out, "abmll")["MATH"] == "— / 7.1"
    assert row_of(seen, "base")["ARC-c"] == "30.0 / 38.3"
    assert any("Not all of the paper's tasks ran" in note for note in held_out.notes)


def test_the_appendix_has_the_paper_s_tables_as_printed(document):
    found = section(document, "appendix")
    assert "Tables 1 and 2" in words(found)
    assert len(tables(found)) == 4
    assert ("degaml", "55.5", "74.7", "48.3", "58.7", "60.1", "52.8", "58.4") in [
        row for table in tables(found) for row in table.rows
    ]


def test_all_pools_have_their_section(document):
    pools = {"meta_train": ("colors", "days"), "left_out": ("days",), "meta_test": TASKS}
    findings = find(make_runs(tasks=pools))
    found = comparison(findings, findings.comparison())
    keys = [one.key for one in found.sections]
    assert keys == ["pool-meta-train", "pool-left-out", "pool-meta-test"]
    (table, *_) = tables(found.sections[0])
    assert [row[0] for row in table.groups[0].rows] == [
        "no_meta_train",
        "union_train",
        "abmll",
        "maml_en_llm",
        "base",
        "generalization_only",
        "degaml",
    ]
    # a pool that no task is in is not spoken of, where only groups have one
    keys = [one.key for one in section(document, "comparison").sections]
    assert keys == ["pool-meta-train", "pool-meta-test"]


def test_the_glossary_has_a_sentence_for_every_method(document):
    found = section(document, "glossary-methods")
    for method in (*METHODS, "abmll"):
        assert f"{method}: " in words(found)
    assert "A method of this configuration." not in words(found)


def test_the_glossary_says_what_is_chosen_on_what():
    assert "the best on the support examples" in meaning("random_policy")
    assert "the best on the support examples" in meaning("degaml")
    assert "the support prompts" in meaning("generalization_only")


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
    assert "img" not in reader.tags
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
    assert (made["report_page"], made["report_text"]) == written
    assert list(made["contrasts"]["other"]) == ["base", "union_train", "maml_en_llm"]
    own = made["comparison"].set_index(["pool", "task", "method"])
    assert own.loc[("meta_test", "mean", "degaml"), "adaptation_tokens"] == 16_000
    assert own.loc[("meta_test", "months", "degaml"), "accuracy"] == pytest.approx(0.85)
    assert list(made["comparison"]) == list(findings.comparison())


def test_figures_can_be_made_from_what_is_stored(full):
    frame = full[1].comparison()
    file = BytesIO()
    frame.to_parquet(file)
    stored = pd.read_parquet(file)
    for draw in (comparison_figure, accuracy_compute_figure):
        assert draw(stored).to_json() == draw(frame).to_json()
    full[1].differences().to_parquet(BytesIO())
