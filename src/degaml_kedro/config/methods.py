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


# the strategies of the paper (its section F.1): what `paper_families` chooses from
PAPER_FAMILIES = ("ttt", "lora", "ls", "tts")


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        name: in the configuration's ``methods``.
        kind: which pipeline scores it: ``plain`` and ``generated`` (by a generator's adapter as it is) and ``adapted``
            (by a refined one) `evaluate`, ``baseline`` and ``sum`` (log-probabilities of two methods) `baselines`.
        group: of methods, for colors and tables.
        meaning: one sentence.
        module: of a baseline, its file in the folder `baselines`.
        entry: of a baseline, the key below ``baselines`` that it is set by.
        meta_trained: it learns from meta-train tasks before a task comes.
        fitted_by_warmup: its meta-training is the pooled warm-up.
        adapts: something is done at a task, before its questions come.
        in_prompt: support examples are read when it answers: there are no weights of a task to keep.
        asks_model: the language model answers; where it does not, a classifier of the prompt encoder's embeddings
            chooses among the support examples' answers.
        adapter: a fold's adapter, a dataset, that is scored as it is, or refined in place of a generated one.
        control: what a generator is given in place of the task's support examples.
        proposer: of one that refines, who proposes strategies to try. Without one there is no search: what was best in
            the rollouts is executed.
        families: the families of strategies that it chooses from, where these are not all.
        needs_rollouts: it learns from, or uses, degaml's rollouts or policy.
        parts: of a sum, the methods that are added up.
    """

    name: str
    kind: MethodKind
    group: MethodGroup
    meaning: str
    module: str = ""
    entry: str | None = None
    meta_trained: bool = False
    fitted_by_warmup: bool = False
    adapts: bool = True
    in_prompt: bool = False
    asks_model: bool = True
    adapter: str | None = None
    control: Literal["other task", "shuffled answers"] | None = None
    proposer: Literal["policy", "tabular_policy", "uniform"] | None = None
    families: tuple[str, ...] = ()
    needs_rollouts: bool = False
    parts: tuple[str, ...] = ()

    @property
    def is_bound(self) -> bool:
        """Whether it is chosen by the test split itself: never a result, never a winner."""
        return self.group == "bound, no result"

    @property
    def executes_fallback(self) -> bool:
        """Whether it refines by what was best in the rollouts, without a search."""
        return self.kind == "adapted" and self.proposer is None and not self.is_bound


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
        module="icl",
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
        module="support",
        entry="no_meta_train_support",
    ),
    Method(
        "pooled",
        "plain",
        "without training on the task",
        "One LoRA fine-tuned on all meta-train tasks together, not adapted to the task.",
        meta_trained=True,
        adapts=False,
        adapter="pool.warmup_adapter",
    ),
    Method(
        "union_train",
        "baseline",
        "the paper's baselines",
        "One LoRA fine-tuned on all meta-train tasks together, then fine-tuned on the support examples.",
        module="union_train",
        entry="union_train",
        meta_trained=True,
        fitted_by_warmup=True,
    ),
    Method(
        "maml_en_llm",
        "baseline",
        "the paper's baselines",
        "MAML over LoRA weights, second order, adapted by its inner loop on the support examples (Sinha et al., 2024).",
        module="maml",
        entry="maml_en_llm",
        meta_trained=True,
    ),
    Method(
        "maml_en_llm_first_order",
        "baseline",
        "the paper's baselines",
        "The same without the second-order term of the meta-gradient.",
        module="maml",
        entry="maml_en_llm",
        meta_trained=True,
    ),
    Method(
        "abmll",
        "baseline",
        "the paper's baselines",
        "Amortized Bayesian meta-learning over LoRA: a posterior from the support examples, and predictions averaged "
        "over weight samples (Zhang, Snell and Griffiths, 2025).",
        module="abmll",
        entry="abmll",
        meta_trained=True,
    ),
    Method(
        "metaicl",
        "baseline",
        "other baselines",
        "One LoRA meta-trained to answer from examples in the prompt; a task's support examples stand in the prompt, "
        "without a gradient (Min et al., 2022). Not in the paper.",
        module="metaicl",
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
        module="metaicl",
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
        module="sentence_head",
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
        module="closed_form",
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
        adapter="mean.adapter",
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
        control="other task",
    ),
    Method(
        "shuffled_answers",
        "generated",
        "parts of DeGAML and controls",
        "A control: what a generator that reads answers makes of the support questions with each other's answers.",
        meta_trained=True,
        control="shuffled answers",
    ),
    Method(
        "random_policy",
        "adapted",
        "parts of DeGAML and controls",
        "The generated adapter, refined by strategies drawn uniformly, as many as the policy may propose; the best on "
        "the support examples is executed. Not in the paper.",
        meta_trained=True,
        proposer="uniform",
    ),
    Method(
        "tabular_policy",
        "adapted",
        "parts of DeGAML and controls",
        "The same, with strategies drawn by a logistic regression on the policy's rollouts in place of a language "
        "model. Not in the paper.",
        meta_trained=True,
        needs_rollouts=True,
        proposer="tabular_policy",
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
        adapter="pool.warmup_adapter",
        proposer="policy",
    ),
    Method(
        "paper_families",
        "adapted",
        "parts of DeGAML and controls",
        "degaml with the paper's four families of strategies alone: ttt, lora, ls and tts.",
        meta_trained=True,
        needs_rollouts=True,
        proposer="policy",
        families=PAPER_FAMILIES,
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
        proposer="policy",
        needs_rollouts=True,
    ),
)
METHODS = {row.name: row for row in _ROWS}


def names(chosen: Callable[[Method], bool]) -> tuple[str, ...]:
    """The methods that a condition holds for, in the table's order."""
    return tuple(row.name for row in _ROWS if chosen(row))


def method_of(name: str) -> Method | None:
    """The row of a method, or None: of ``generalization_only_NAME`` and other generated ones that of the first part."""
    generated = (
        row for row in _ROWS if row.kind == "generated" and name.startswith(f"{row.name}_")
    )
    return METHODS.get(name) or next(generated, None)


def method_group(name: str) -> MethodGroup:
    """Which group of methods one belongs to; one in no row counts as without training on the task."""
    row = method_of(name)
    return row.group if row else "without training on the task"
