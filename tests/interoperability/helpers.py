"""What the tests of other tools share: a saved adaptation beside its base model, and the lines of the documentation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from degaml_kedro.adaptation import Report
from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.checkpoint.folder import AnswerSettings, SavedAdaptation, save_adaptation
from degaml_kedro.config.schema import (
    BaseModelParameters,
    EncoderParameters,
    LoraParameters,
    PromptParameters,
    ScoringParameters,
)
from degaml_kedro.llm.base_model import BaseModel, load_base_model
from degaml_kedro.llm.prompting import answer_texts, render_prompt
from degaml_kedro.strategies.state import AdaptedState, Member
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.suite import FAMILIES
from tests.conftest import ROOT
from tests.llm.helpers import plain_copy, random_adapter, tiny_base

PAGE = ROOT / "docs" / "interoperability.md"
PROMPT = PromptParameters(format="plain", options="inline")
TEXT = ScoringParameters(mode="text")


@dataclass(frozen=True)
class Place:
    """A folder with ``base`` and ``adapter`` in it, as the documentation's lines expect them.

    Attributes:
        folder: the folder.
        base: the base model, loaded from there in float32.
        adapter: the weights that were saved.
        examples: to compare answers on.
    """

    folder: Path
    base: BaseModel
    adapter: Adapter
    examples: list[Example]


def float32(folder: Path) -> BaseModel:
    """A base model's folder, in float32: there tools agree to the last digits."""
    source = {"kind": "folder", "path": str(folder)}
    content = {"source": source, "dtype": "float32", "device": "cpu"}
    return load_base_model(BaseModelParameters.model_validate(content))


def tiny_place(folder: Path, count: int = 12) -> Place:
    """A random model on disk, and a random adapter of rank 8 over all its linear layers."""
    tiny = tiny_base()
    plain_copy(tiny).save_pretrained(folder / "base")
    tiny.tokenizer.save_pretrained(folder / "base")
    base = float32(folder / "base")
    adapter = random_adapter(base, LoraParameters())
    save(folder / "adapter", base, AdaptedState((Member(adapter),)))
    return Place(folder, base, adapter, some_examples(count))


def some_examples(count: int) -> list[Example]:
    """From families whose answers are of one and of several tokens."""
    names = ("month_after", "element_symbol", "capital_of_country", "addition")
    share = -(-count // len(names))
    every = [FAMILIES[name].generate(share, seed=3) for name in names]
    return [example for together in zip(*every, strict=True) for example in together][:count]


def save(
    folder: Path,
    base: BaseModel,
    state: AdaptedState,
    prompt: PromptParameters = PROMPT,
    scoring: ScoringParameters = TEXT,
) -> None:
    """What ``AdaptedModel.save`` writes."""
    source = {"kind": "folder", "path": base.name}
    settings = AnswerSettings(
        model=BaseModelParameters.model_validate(
            {"source": source, "dtype": "float32", "device": "cpu"}
        ),
        prompt=prompt,
        scoring=scoring,
        encoder=EncoderParameters.model_validate({"source": {"kind": "random"}}),
    )
    about = SavedAdaptation(
        base_model=base.name,
        base_model_fingerprint=base.fingerprint,
        settings=settings,
        more_than_peft=not state.is_one_adapter,
        report=Report(support=20, held_out=0, base_model=base.name),
    )
    save_adaptation(state, about, folder)


def write_examples(path: Path, examples: list[Example]) -> None:
    """In the layout of the public benchmarks' files."""
    keys = ("prompt", "response", "system")
    lines = [json.dumps({key: getattr(one, key) for key in keys}) for one in examples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def documented(heading: str, language: str, number: int = 0) -> str:
    """A block of code of the documentation, to be run as it stands there.

    Args:
        heading: of its section.
        language: that the block is marked with.
        number: which of the section's blocks in that language.
    """
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[number]


def run_documented(heading: str, number: int = 0, **names: Any) -> dict[str, Any]:
    """Run a Python block of the documentation in the working folder.

    Returns:
        The names it defined.
    """
    exec(documented(heading, "python", number), names)
    return names


@torch.inference_mode()
def log_probabilities(
    model: Any, tokenizer: PreTrainedTokenizerBase, example: Example, base: BaseModel
) -> list[float]:
    """Log p(answer | prompt) of every option, one plain forward pass an option: none of our scoring runs in it."""
    prompt = render_prompt(example, PROMPT, base)
    start = len(tokenizer(prompt).input_ids)
    found = []
    for answer in answer_texts(example, "text", PROMPT):
        ids = torch.tensor([tokenizer(prompt + answer).input_ids])
        rows = model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
        found.append(float(rows.gather(1, ids[0, start:, None]).sum()))
    return found


def same_up_to_a_constant(ours: tuple[float, ...], theirs: list[float], tolerance: float) -> bool:
    """Our scores of an example leave out what its options have in common."""
    a, b = torch.tensor(ours).double(), torch.tensor(theirs).double()
    return bool(((a - a[0]) - (b - b[0])).abs().max() <= tolerance)


def best(scores: tuple[float, ...] | list[float]) -> int:
    """The first of the highest."""
    return max(range(len(scores)), key=scores.__getitem__)


def margin(scores: tuple[float, ...] | list[float]) -> float:
    """How far the best option is ahead."""
    first, second = sorted(scores, reverse=True)[:2]
    return first - second
