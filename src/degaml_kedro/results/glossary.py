"""What the methods, pools and words of a report mean, and which kind of method one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

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

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "base": "The base model as it is, with no adapter and no examples.",
        "icl": "The base model with the support examples in the prompt, as many as were chosen and fit. Not in the "
        "paper.",
        "no_meta_train": "LoRA fine-tuning on the task's own training split, without meta-training: far more examples "
        "than the support set.",
        "no_meta_train_support": "LoRA fine-tuning on the task's support examples alone, without meta-training.",
        "pooled": "One LoRA fine-tuned on all meta-train tasks together, not adapted to the task.",
        "union_train": "One LoRA fine-tuned on all meta-train tasks together, then fine-tuned on the support examples.",
        "maml_en_llm": "MAML over LoRA weights, second order, adapted by its inner loop on the support examples (Sinha "
        "et al., 2024).",
        "maml_en_llm_first_order": "The same without the second-order term of the meta-gradient.",
        "abmll": "Amortized Bayesian meta-learning over LoRA: a posterior from the support examples, and predictions "
        "averaged over weight samples (Zhang, Snell and Griffiths, 2025).",
        "metaicl": "One LoRA meta-trained to answer from examples in the prompt; a task's support examples stand in "
        "the prompt, without a gradient (Min et al., 2022). Not in the paper.",
        "metaict": "The same with the task's instruction in front, where it has one (in-context tuning, Chen et al., "
        "2022). Not in the paper.",
        "sentence_head": "Logistic regression on the frozen sentence encoder's embeddings of the support questions; "
        "the language model is not asked. Not in the paper.",
        "closed_form": "An adapter of one layer, written from the support examples by ridge regression: no "
        "training, no gradient, no context. Not in the paper.",
        "metaicl_union": "metaicl and union_train together: their log-probabilities are summed. Not in the paper.",
        "mean_adapter": "The mean of the meta-train tasks' adapters, the same for every task. Not in the paper.",
        "generalization_only": "The adapter that the generator makes from the support prompts, without their "
        "answers, unrefined.",
        "random_policy": "The generated adapter, refined by strategies drawn uniformly, as many as the policy may "
        "propose; the best on the support examples is executed. Not in the paper.",
        "tabular_policy": "The same, with strategies drawn by a logistic regression on the policy's rollouts in place "
        "of a language model. Not in the paper.",
        "best_fixed": "The generated adapter, refined by the one strategy that was best in the policy's rollouts, "
        "without a search. Not in the paper.",
        "no_generator": "The pooled adapter under the same search: degaml without its generator. Not in the paper.",
        "paper_families": "degaml with the paper's four families of strategies alone: ttt, lora, ls and tts.",
        "oracle_strategy": "The generated adapter with the strategy that scores best on the test split itself: a "
        "bound, never a result.",
        "degaml": "The generated adapter, refined by strategies that the trained policy proposes; the best on the "
        "support examples is executed.",
    }
)
_VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        "generalization_only": "The unrefined adapter of another variant of the generator.",
        "other_prompts": "A control: the adapter that the generator makes from another task's prompts.",
    }
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
    if method in METHODS:
        return METHODS[method]
    stem = next((stem for stem in _VARIANTS if method.startswith(stem)), None)
    return _VARIANTS[stem] if stem else "A method of this configuration."


def kind(method: str, bounds: Sequence[str]) -> str:
    """To which group of methods one belongs, for colors and markers."""
    if method in bounds:
        return "bound, no result"
    if method == "degaml":
        return "DeGAML"
    if method.startswith(("no_meta_train", "union_train", "maml_en_llm", "abmll")):
        return "the paper's baselines"
    if method.startswith(("metaic", "sentence_head", "closed_form")):
        return "other baselines"
    if method in (
        "random_policy",
        "tabular_policy",
        "best_fixed",
        "no_generator",
        "paper_families",
        "mean_adapter",
    ) or method.startswith(("generalization_only", "other_prompts")):
        return "parts of DeGAML and controls"
    return "without training on the task"
