"""The paper's own numbers, as printed, to stand beside a run in its setting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd

AVERAGE = "Avg"
# rows of the paper's Table 1, in its order
PAPER_ROWS = (
    "no_meta_train",
    "union_train",
    "abmll",
    "maml_en_llm",
    "base",
    "generalization_only",
    "degaml",
)
# our task's name: the paper's
BENCHMARKS: Mapping[str, str] = {
    "arc_challenge": "ARC-c",
    "arc_easy": "ARC-e",
    "hellaswag": "HellaSwag",
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "winogrande": "WinoGrande",
    "gsm8k": "GSM-8K",
    "math": "MATH",
    "divlogiceval": "DivLogicEval",
    "socialiqa": "SocialIQA",
    "codemmlu": "CodeMMLU",
    "jama": "JAMA",
}
# our pool's name: the paper's. In domain are tasks of the meta-train pool, each from what was trained without it
SETTINGS: Mapping[str, str] = {"left_out": "in_domain", "meta_test": "out_of_domain"}
# our profile's name: the paper's model
PROFILES: Mapping[str, str] = {
    "paper_0_5b": "Qwen2.5-0.5B-Instruct",
    "paper_1_5b": "Qwen2.5-1.5B-Instruct",
}
# values and averages have one decimal: they are apart by 0.05 each at most, if an average is the mean of its row
_ROUNDING = 0.1 + 1e-9


@cache
def paper_results() -> Mapping[str, Any]:
    """The package's ``paper_results.json``.

    Returns:
        ``source`` (``title``, ``authors``, what each of the ``tables`` shows, the table that each method's ``rows`` are
        from, a ``note`` on how they were copied, and ``discrepancies`` within the paper) and ``models``: accuracies in
        percent by model, setting (``in_domain``, ``out_of_domain``), method and benchmark, with the printed ``Avg``.
    """
    results: Mapping[str, Any] = json.loads(
        resources.files(__package__).joinpath("paper_results.json").read_text("utf-8")
    )
    return results


def paper_table(model: str, setting: str) -> pd.DataFrame:
    """One of the paper's tables, as printed, of a ``setting`` (``in_domain`` or ``out_of_domain``).

    Accuracy in percent, a row a method (our names), a column a benchmark (the paper's names), ``Avg`` last.
    """
    rows = paper_results()["models"][model][setting]
    return pd.DataFrame.from_dict(rows, orient="index").astype("float64")


def differing_averages(model: str, setting: str) -> dict[str, float]:
    """The row's mean, of methods whose printed average is another one beyond what rounding explains."""
    table = paper_table(model, setting)
    means = table.drop(columns=AVERAGE).mean(axis=1)
    far = (means - table[AVERAGE]).abs() > _ROUNDING
    return {str(method): float(mean) for method, mean in means[far].items()}
