"""The table of methods: what each is, what it needs and where it is scored. A new method is one row here.

Parameters, pipelines, results, report, MLflow and the page read this table; nothing else lists methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MethodKind = Literal["plain", "generated", "baseline", "sum", "adapted"]
MethodGroup = Literal[
    "DeGAML",
    "the paper's baselines",
    "other baselines",
    "parts of DeGAML and controls",
    "without training on the task",
    "bound, no result",
]


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        name: in the configuration's ``methods``.
        kind: which pipeline scores it: ``plain`` and ``generated`` (by a generator's adapter as it is) and ``adapted``
            (by a refined one) `evaluate`, ``baseline`` and ``sum`` (log-probabilities of two methods) `baselines`.
        group: of methods, for colors and tables.
        meaning: one sentence.
        entry: of a baseline, the key below ``baselines`` that it is set by.
        meta_trained: it learns from meta-train tasks before a task comes.
        adapts: something is done at a task, before its questions come.
        in_prompt: support examples are read when it answers: there are no weights of a task to keep.
        asks_model: the language model answers.
        needs_rollouts: it learns from, or uses, degaml's rollouts or policy.
        parts: of a sum, the methods that are added up.
    """

    name: str
    kind: MethodKind
    group: MethodGroup
    meaning: str
    entry: str | None = None
    meta_trained: bool = False
    adapts: bool = True
    in_prompt: bool = False
    asks_model: bool = True
    needs_rollouts: bool = False
    parts: tuple[str, ...] = ()

    @property
    def is_bound(self) -> bool:
        """Whether it is chosen by the test split itself: never a result, never a winner."""
        return self.group == "bound, no result"


_ROWS = (
    Method(
        "base",
        "plain",
        "without training on the task",
        "The base model as it is, with no adapter and no examples.",
        adapts=False,
    ),
    Method(
        "icl",
        "baseline",
        "without training on the task",
        "The base model with the support examples in the prompt, as many as were chosen and fit. Not in the paper.",
        entry="icl",
        in_prompt=True,
    ),
    Method(
        "no_meta_train",
        "plain",
        "the paper's baselines",
        "LoRA fine-tuning on the task's own training split, without meta-training: far more examples than the support "
        "set.",
    ),
    Method(
        "no_meta_train_support",
        "baseline",
        "the paper's baselines",
        "LoRA fine-tuning on the task's support examples alone, without meta-training.",
        entry="no_meta_train_support",
    ),
    Method(
        "pooled",
        "plain",
        "without training on the task",
        "One LoRA fine-tuned on all meta-train tasks together, not adapted to the task.",
        meta_trained=True,
        adapts=False,
    ),
    Method(
        "union_train",
        "baseline",
        "the paper's baselines",
        "One LoRA fine-tuned on all meta-train tasks together, then fine-tuned on the support examples.",
        entry="union_train",
        meta_trained=True,
    ),
    Method(
        "maml_en_llm",
        "baseline",
        "the paper's baselines",
        "MAML over LoRA weights, second order, adapted by its inner loop on the support examples (Sinha et al., 2024).",
        entry="maml_en_llm",
        meta_trained=True,
    ),
    Method(
        "maml_en_llm_first_order",
        "baseline",
        "the paper's baselines",
        "The same without the second-order term of the meta-gradient.",
        entry="maml_en_llm",
        meta_trained=True,
    ),
    Method(
        "abmll",
        "baseline",
        "the paper's baselines",
        "Amortized Bayesian meta-learning over LoRA: a posterior from the support examples, and predictions averaged "
        "over weight samples (Zhang, Snell and Griffiths, 2025).",
        entry="abmll",
        meta_trained=True,
    ),
    Method(
        "metaicl",
        "baseline",
        "other baselines",
        "One LoRA meta-trained to answer from examples in the prompt; a task's support examples stand in the prompt, "
        "without a gradient (Min et al., 2022). Not in the paper.",
        entry="metaicl",
        meta_trained=True,
        in_prompt=True,
    ),
    Method(
        "metaict",
        "baseline",
        "other baselines",
        "The same with the task's instruction in front, where it has one (in-context tuning, Chen et al., 2022). Not "
        "in the paper.",
        entry="metaicl",
        meta_trained=True,
        in_prompt=True,
    ),
    Method(
        "sentence_head",
        "baseline",
        "other baselines",
        "Logistic regression on the frozen sentence encoder's embeddings of the support questions; the language model "
        "is not asked. Not in the paper.",
        entry="sentence_head",
        in_prompt=True,
        asks_model=False,
    ),
    Method(
        "closed_form",
        "baseline",
        "other baselines",
        "An adapter of one layer, written from the support examples by ridge regression: no training, no gradient, no "
        "context. Not in the paper.",
        entry="closed_form",
    ),
    Method(
        "metaicl_union",
        "sum",
        "other baselines",
        "metaicl and union_train together: their log-probabilities are summed. Not in the paper.",
        meta_trained=True,
        parts=("metaicl", "union_train"),
    ),
    Method(
        "mean_adapter",
        "plain",
        "parts of DeGAML and controls",
        "The mean of the meta-train tasks' adapters, the same for every task. Not in the paper.",
        meta_trained=True,
        adapts=False,
    ),
    Method(
        "generalization_only",
        "generated",
        "parts of DeGAML and controls",
        "The adapter that the generator makes of the support prompts, unrefined; an associative "
        "decoder reads their answers, too.",
        meta_trained=True,
    ),
    Method(
        "other_prompts",
        "generated",
        "parts of DeGAML and controls",
        "A control: the adapter that the generator makes of another task's support set.",
        meta_trained=True,
    ),
    Method(
        "shuffled_answers",
        "generated",
        "parts of DeGAML and controls",
        "A control: what a generator that reads answers makes of the support questions with each other's answers.",
        meta_trained=True,
    ),
    Method(
        "random_policy",
        "adapted",
        "parts of DeGAML and controls",
        "The generated adapter, refined by strategies drawn uniformly, as many as the policy may propose; the best on "
        "the support examples is executed. Not in the paper.",
        meta_trained=True,
    ),
    Method(
        "tabular_policy",
        "adapted",
        "parts of DeGAML and controls",
        "The same, with strategies drawn by a logistic regression on the policy's rollouts in place of a language "
        "model. Not in the paper.",
        meta_trained=True,
        needs_rollouts=True,
    ),
    Method(
        "best_fixed",
        "adapted",
        "parts of DeGAML and controls",
        "The generated adapter, refined by the one strategy that was best in the policy's rollouts, without a search. "
        "Not in the paper.",
        meta_trained=True,
        needs_rollouts=True,
    ),
    Method(
        "no_generator",
        "adapted",
        "parts of DeGAML and controls",
        "The pooled adapter under the same search: degaml without its generator. Not in the paper.",
        meta_trained=True,
        needs_rollouts=True,
    ),
    Method(
        "paper_families",
        "adapted",
        "parts of DeGAML and controls",
        "degaml with the paper's four families of strategies alone: ttt, lora, ls and tts.",
        meta_trained=True,
        needs_rollouts=True,
    ),
    Method(
        "oracle_strategy",
        "adapted",
        "bound, no result",
        "The generated adapter with the strategy that scores best on the test split itself: a bound, never a result.",
        meta_trained=True,
    ),
    Method(
        "degaml",
        "adapted",
        "DeGAML",
        "The generated adapter, refined by strategies that the trained policy proposes; the best on the support "
        "examples is executed.",
        meta_trained=True,
    ),
)
METHODS = {row.name: row for row in _ROWS}


def names(chosen: Callable[[Method], bool]) -> tuple[str, ...]:
    """The methods that a condition holds for, in the table's order."""
    return tuple(row.name for row in _ROWS if chosen(row))


def method_of(name: str) -> Method | None:
    """The row of a method; of ``generalization_only_NAME`` and other generated ones the row of the first part.

    Args:
        name: as the configuration's ``methods`` has it. None for one that is in no row, as another version's may be.
    """
    if name in METHODS:
        return METHODS[name]
    return next(
        (row for row in _ROWS if row.kind == "generated" and name.startswith(f"{row.name}_")), None
    )


def method_group(name: str) -> MethodGroup:
    """Which group of methods one belongs to; one in no row counts as without training on the task."""
    row = method_of(name)
    return row.group if row else "without training on the task"
