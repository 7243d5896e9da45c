"""What the methods and pools of a report are called and mean."""

from __future__ import annotations

from collections.abc import Mapping

from degaml_kedro.config.methods import method_of

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
POOL_TITLES: Mapping[str, str] = {
    "meta_train": "In domain: tasks of meta-training",
    "left_out": "Left out: tasks of meta-training that this generator has not seen",
    "meta_test": "Out of domain: held-out tasks",
}
SHORT: Mapping[str, str] = {
    "meta_train": "in domain",
    "left_out": "left out",
    "meta_test": "out of domain",
}


def meaning(method: str) -> str:
    """One sentence on a method."""
    row = method_of(method)
    if row is None:
        return "A method of this configuration."
    if method == row.name or row.name == "other_prompts":
        return row.meaning
    return "The unrefined adapter of another variant of the generator."
