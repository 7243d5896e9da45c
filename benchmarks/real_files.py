"""Base accuracy on real benchmark files, ours against lm-evaluation-harness on the same items.

``python -m benchmarks.real_files --datasets FOLDER [--limit 200] [--names ARC-e PIQA] [--dtype auto]``

The folder holds ``NAME_test.json`` in the layout ``{"prompt", "response", "system"}``. The harness runs a task of its
own on them, worded as its ``arc_easy`` is, through its own evaluator; ours scores the option texts with the options
hidden from the prompt. Both are asked for the plain and for the length-normalized answer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.material import Settings, SkippedError, peer_model, require
from benchmarks.scoring import agreement, open_harness, quiet
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.config.schema import (
    FileSource,
    Normalization,
    PromptParameters,
    ScoringParameters,
)
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.results.measures import wilson_interval
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.files import read_examples

PROMPT = PromptParameters(format="plain", options="hidden")
# what the harness calls a metric, and how this project normalizes for it
METRICS: dict[str, Normalization] = {"acc": "none", "acc_norm": "characters"}
BATCH_SIZE = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Score, print a table, write a JSON file if one is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_files", description=__doc__)
    parser.add_argument("--datasets", type=Path, required=True, help="folder with NAME_test.json")
    parser.add_argument("--names", nargs="+", default=["ARC-e", "PIQA"])
    parser.add_argument("--limit", type=int, default=200, help="examples a file, from its start")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    parser.add_argument("--output", type=Path, help="a JSON file")
    asked = parser.parse_args(arguments)
    try:
        require("lm_eval")
        files = {
            name: read(asked.datasets / f"{name}_test.json", asked.limit) for name in asked.names
        }
    except (SkippedError, DegamlError) as error:
        print(error, file=sys.stderr)
        return 2
    parameters = Settings(quick=asked.quick).model.model_copy(update={"dtype": asked.dtype})
    base = load_base_model(parameters)
    harness = open_harness(base, peer_model(base), BATCH_SIZE)
    found: list[dict[str, Any]] = []
    for name, examples in files.items():
        found += [{"file": name, **line} for line in compare(base, harness, examples)]
    print(f"{base.name}, {base.dtype}".replace("torch.", ""))
    print(table(found))
    if asked.output is not None:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        content = {"model": base.name, "dtype": str(base.dtype), "results": found}
        asked.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def read(path: Path, limit: int) -> list[Example]:
    """The first examples of a file, read as the project reads files.

    Raises:
        DegamlError: the file is missing or not well-formed.
    """
    examples = read_examples(path, FileSource(kind="file", path=str(path)))[:limit]
    # the files ask for a letter in brackets; the text of the answer is compared here, on both sides
    return [dataclasses.replace(example, system="") for example in examples]


def compare(base: BaseModel, harness: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """One line a metric: accuracy of both sides and the share of items they answer alike."""
    gold = [example.gold for example in examples]
    theirs = harness_answers(harness, examples)
    lines = []
    for metric, normalization in METRICS.items():
        scoring = ScoringParameters(mode="text", normalization=normalization)
        predictions = score_examples(base, examples, PROMPT, scoring)
        ours = [-1 if p.predicted is None else p.predicted for p in predictions]
        right = sum(a == b for a, b in zip(ours, gold, strict=True))
        lines.append(
            {
                "metric": metric,
                "items": len(gold),
                "accuracy": right / len(gold),
                "interval": list(wilson_interval(right, len(gold))),
                "harness_accuracy": agreement(theirs[metric], gold),
                "same_answer": agreement(ours, theirs[metric]),
            }
        )
    return lines


def harness_answers(harness: Any, examples: Sequence[Example]) -> dict[str, list[int]]:
    """What the harness's evaluator makes of the examples: the chosen option by metric.

    Its accuracies are compared with the ones that follow from its log-likelihoods, so that its definition of the
    normalized answer is the one used here.
    """
    with quiet():
        import datasets
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate

        records = [
            {"question": e.question, "choices": list(e.options), "gold": e.gold} for e in examples
        ]
        task = ConfigurableTask(
            config={
                "task": "local_file",
                "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(records)},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "Question: {{question}}\nAnswer:",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "gold",
                "metric_list": [{"metric": metric} for metric in METRICS],
                "metadata": {"version": 1.0},
            }
        )
        found = evaluate(harness, {"local_file": task}, bootstrap_iters=0, log_samples=True)
    answers: dict[str, list[int]] = {metric: [] for metric in METRICS}
    for sample in sorted(found["samples"]["local_file"], key=lambda sample: sample["doc_id"]):
        scores = [value for value, _ in sample["filtered_resps"]]
        lengths = [len(choice) for choice in sample["doc"]["choices"]]
        normal = [score / length for score, length in zip(scores, lengths, strict=True)]
        answers["acc"].append(max(range(len(scores)), key=scores.__getitem__))
        answers["acc_norm"].append(max(range(len(normal)), key=normal.__getitem__))
    gold = [example.gold for example in examples]
    for metric, chosen in answers.items():
        reported = found["results"]["local_file"][f"{metric},none"]
        if abs(reported - agreement(chosen, gold)) > 1e-9:
            raise AssertionError(
                f"the harness computes {metric} in another way than this benchmark"
            )
    return answers


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    rows = [
        "| file | metric | n | ours (95 % interval) | harness | same answer |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for line in lines:
        low, high = line["interval"]
        rows.append(
            f"| {line['file']} | {line['metric']} | {line['items']} | {line['accuracy']:.3f} "
            f"({low:.3f}–{high:.3f}) | {line['harness_accuracy']:.3f} | {line['same_answer']:.3f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
