"""The paper's own numbers, as printed, to stand beside a run in its setting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from degaml_kedro.results.measures import ResultsError

Setting = Literal["in_domain", "out_of_domain"]
AVERAGE = "Avg"
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
# our pool's name: the paper's
SETTINGS: Mapping[str, Setting] = {"meta_train": "in_domain", "meta_test": "out_of_domain"}
_PROFILES = {"paper_0_5b": "Qwen2.5-0.5B-Instruct", "paper_1_5b": "Qwen2.5-1.5B-Instruct"}
# values and averages have one decimal: they are apart by 0.05 each at most, if an average is the mean of its row
_ROUNDING = 0.1 + 1e-9

Percent = Annotated[float, Field(ge=0, le=100)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PaperSource(_Entry):
    """Where the numbers stand.

    Attributes:
        title: the paper's.
        authors: likewise.
        tables: what each table shows, by its number.
        rows: the number of the table that each method's rows are from.
        note: how they were copied.
        discrepancies: where the paper contradicts itself, in sentences.
    """

    title: str
    authors: tuple[str, ...]
    tables: dict[str, str]
    rows: dict[str, str]
    note: str
    discrepancies: tuple[str, ...]

    @property
    def line(self) -> str:
        """The source in one line."""
        numbers = " and ".join(self.tables)
        return f"{', '.join(self.authors)}: {self.title}, Tables {numbers}"


class PaperResults(_Entry):
    """Accuracies in percent.

    Attributes:
        source: where they stand.
        models: by model, setting, method and benchmark, with the printed average as ``Avg``.
    """

    source: PaperSource
    models: dict[str, dict[Setting, dict[str, dict[str, Percent]]]]


@cache
def paper_results() -> PaperResults:
    """All numbers, checked.

    Raises:
        ResultsError: the package's file is damaged.
    """
    file = resources.files(__package__).joinpath("paper_results.json")
    try:
        results = PaperResults.model_validate(json.loads(file.read_text("utf-8")))
    except (OSError, json.JSONDecodeError, ValidationError) as error:
        raise ResultsError(
            f"{file} does not hold the paper's results ({error}); install degaml-kedro again"
        ) from error
    for model, settings in results.models.items():
        for setting, methods in settings.items():
            columns = {tuple(row) for row in methods.values()}
            if len(columns) != 1 or next(iter(columns))[-1] != AVERAGE:
                raise ResultsError(
                    f"{file}, {model}, {setting}: the methods' rows have different columns; install degaml-kedro "
                    f"again"
                )
    return results


def paper_source() -> PaperSource:
    """Where the numbers stand."""
    return paper_results().source


def paper_table(model: str, setting: Setting) -> pd.DataFrame:
    """One of the paper's tables, as printed.

    Args:
        model: a model of the paper's: ``Qwen2.5-0.5B-Instruct``.
        setting: ``in_domain`` or ``out_of_domain``.

    Returns:
        Accuracy in percent, a row a method (our names), a column a benchmark (the paper's names), ``Avg`` last.

    Raises:
        ResultsError: the paper has no such model or setting.
    """
    models = paper_results().models
    if model not in models or setting not in models[model]:
        raise ResultsError(
            f"the paper has no results of {model}, {setting}; it has {', '.join(models)}, each in_domain and "
            f"out_of_domain"
        )
    return pd.DataFrame.from_dict(models[model][setting], orient="index").astype("float64")


def differing_averages(model: str, setting: Setting) -> dict[str, float]:
    """Methods whose printed average is not the mean of their printed row, beyond what rounding explains.

    Args:
        model: a model of the paper's.
        setting: ``in_domain`` or ``out_of_domain``.

    Returns:
        The mean of the row by method.

    Raises:
        ResultsError: the paper has no such model or setting.
    """
    table = paper_table(model, setting)
    means = table.drop(columns=AVERAGE).mean(axis=1)
    far = np.abs(means - table[AVERAGE]) > _ROUNDING
    return {str(method): float(mean) for method, mean in means[far].items()}


def matching_profile(profile: str) -> str | None:
    """The paper's model whose setting a profile has; None if it has none's.

    Args:
        profile: the configuration's name.

    Example:
        >>> matching_profile("paper_0_5b")
        'Qwen2.5-0.5B-Instruct'
        >>> matching_profile("embedded") is None
        True
    """
    return _PROFILES.get(profile)
