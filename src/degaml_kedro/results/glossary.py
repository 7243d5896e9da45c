"""What the methods, pools and words of a report mean."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from degaml_kedro.methods import method_of

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
POOL_TITLES: Mapping[str, str] = MappingProxyType(
    {
        "meta_train": "In domain: tasks of meta-training",
        "left_out": "Left out: tasks of meta-training that this generator has not seen",
        "meta_test": "Out of domain: held-out tasks",
    }
)
SHORT: Mapping[str, str] = MappingProxyType(
    {"meta_train": "in domain", "left_out": "left out", "meta_test": "out of domain"}
)

WORDS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": "Share of test questions that were answered right, as a mean over seeds. Where a method is random, "
        "its draws are averaged question by question first.",
        "Wilson interval": "A 95 % interval of a share that is sound for small n and near 0 and 1.",
        "simultaneous interval": "An interval of a difference, wide enough that all intervals of one table hold "
        "together with 95 % (Bonferroni).",
        "Holm": "p values corrected for the number of comparisons in one table (Holm, 1979).",
        "stratum": "A task of one run. The bootstrap draws questions again within strata; tasks and seeds stay as they "
        "are, so that an interval says nothing about other tasks or other seeds.",
        "ECE": "Expected calibration error: how far confidence and accuracy are apart, over 15 bins of confidence.",
        "NLL": "Mean negative log-probability of the right option, in nats.",
        "tokens": "Tokens through the base model, forward and backward together.",
    }
)


def meaning(method: str) -> str:
    """One sentence on a method."""
    row = method_of(method)
    if row is None:
        return "A method of this configuration."
    if method == row.name or row.name == "other_prompts":
        return row.meaning
    return "The unrefined adapter of another variant of the generator."
