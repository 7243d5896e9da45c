"""Several adapters in one batched forward pass, against one after the other.

Three peers, all on the same questions and options:

- ours, one adapter at a time: what batching alone brings.
- PEFT on the library's own model, all adapters loaded, ``set_adapter``, one padded forward pass an adapter over the
  same token trees (a prompt is computed once for its options, positions and mask say so) and the same few rows of the
  LM head: equal work, token by token.
- PEFT as it is commonly used: a padded row for every prompt with an option, all logits.

PEFT's adapters are loaded before the clock starts, in the model's dtype, its fastest way here. Ours are moved and
stacked inside the clock, as they are in a run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.material import Settings, peer_model, require
from benchmarks.measure import Result, Row, now
from benchmarks.strategies import (
    context_for,
    members_of,
    task_examples,
    times_as_long,
    tokens_of,
)
from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.llm.packing import pack_trees
from degaml_kedro.llm.prompting import EncodedQuestion, encode_questions

# the peer builds its trees and reads its rows with the same functions, so that no other work is compared
from degaml_kedro.llm.scoring import answer_log_probabilities, compare_options, question_tree
from degaml_kedro.strategies.context import Context
from degaml_kedro.tasks.example import Question

ADAPTERS = 8
# by adapter, by question, by option
Scores = list[list[tuple[float, ...]]]


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions, and the adapters that all of them are asked.

    Attributes:
        context: the model.
        questions: without answers.
        adapters: of one shape.
    """

    context: Context
    questions: Sequence[Question]
    adapters: Sequence[Adapter]

    def together(self) -> Scores:
        """In one pass."""
        return self._compare(self.adapters)

    def one_by_one(self) -> Scores:
        """An adapter after the other."""
        return [self._compare([adapter])[0] for adapter in self.adapters]

    def encoded(self) -> list[EncodedQuestion]:
        """As token ids."""
        context = self.context
        return encode_questions(
            context.base, self.questions, context.prompt, context.scoring.answers
        )

    def _compare(self, adapters: Sequence[Adapter]) -> Scores:
        context = self.context
        return compare_options(
            context.base, self.questions, context.prompt, context.scoring, adapters
        ).scores


def run(settings: Settings) -> Result:
    """A task's support examples, and one question alone."""
    require("peft")
    base = settings.base()
    context = context_for(base)
    adapters = [member.adapter for member in members_of(context, settings.either(ADAPTERS, 3))]
    model = peft_model(base, adapters)
    rows: list[Row] = []
    details: dict[str, Any] = {"adapters": len(adapters)}
    plans = [(settings.either(20, 3), settings.either(3, 1)), (1, settings.either(10, 1))]
    for count, turns in plans:
        questions = [Question.of(example) for example in task_examples(count)]
        asked = Asked(context, questions, adapters)
        seconds, found = compare(asked, model, turns)
        ours = seconds.pop("ours")
        about = f"{len(adapters)} adapters, {count} question{'s' if count > 1 else ''}, in one pass"
        for name, taken in seconds.items():
            target = 2.0 if name == "PEFT" and not settings.quick else None
            rows.append(times_as_long(f"{about}; {_NAMES[name]}", ours, taken, target))
        lengths = [len(question_tree(question)) for question in asked.encoded()]
        details[f"questions_{count}"] = {
            **tokens_of(settings, lengths),
            "seconds": {"ours": ours, **seconds},
            "same_choice": {
                name: same_choice(found["ours"], scores)
                for name, scores in found.items()
                if name != "ours"
            },
        }
    return Result("tts_batch", rows, details)


_NAMES = {
    "one by one": "ours one by one",
    "PEFT": "PEFT one by one, the same tokens",
    "PEFT, rows": "PEFT one by one, a row an option",
}


def compare(
    asked: Asked, model: Any, turns: int
) -> tuple[dict[str, list[float]], dict[str, Scores]]:
    """Seconds of all sides, and what they found, with a turn before that does not count.

    Args:
        asked: questions and adapters.
        model: of :func:`peft_model`, with the same adapters.
        turns: how many.
    """
    device = asked.context.base.device
    sides: dict[str, Callable[[], Scores]] = {
        "ours": asked.together,
        "PEFT": lambda: peft_trees(asked, model),
        "one by one": asked.one_by_one,
        "PEFT, rows": lambda: peft_rows(asked, model),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, Scores] = {}
    for turn in range(turns + 1):
        for name, side in sides.items():
            began = now(device)
            found[name] = side()
            if turn:
                seconds[name].append(now(device) - began)
    return seconds, found


def same_choice(some: Scores, others: Scores) -> float:
    """Share of (adapter, question) pairs that have the same best option."""
    pairs = [
        (one.index(max(one)), other.index(max(other)))
        for mine, theirs in zip(some, others, strict=True)
        for one, other in zip(mine, theirs, strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


def peft_model(base: BaseModel, adapters: Sequence[Adapter]) -> Any:
    """Plain PEFT on the library's own model, with all adapters loaded under their numbers."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    first = adapters[0].config
    config = LoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    with warnings.catch_warnings():
        # PEFT asks Transformers for a property by its old name
        warnings.simplefilter("ignore", FutureWarning)
        model: Any = get_peft_model(
            peer_model(base), config, adapter_name="0", autocast_adapter_dtype=False
        )
        for number, adapter in enumerate(adapters):
            if number:
                model.add_adapter(str(number), config, autocast_adapter_dtype=False)
            loaded: Any = set_peft_model_state_dict(
                model, dict(adapter.tensors), adapter_name=str(number)
            )
            if loaded.unexpected_keys:
                raise AssertionError(f"PEFT does not know {loaded.unexpected_keys[0]}")
    return model.to(base.dtype).eval()


@torch.inference_mode()
def peft_trees(asked: Asked, model: Any) -> Scores:
    """One adapter after the other over padded token trees; an option's sum of log-probabilities."""
    base, encoded = asked.context.base, asked.encoded()
    pack = pack_trees([question_tree(question) for question in encoded], base.device, base.dtype)
    ids, positions = pack.input_ids[0][pack.gather], pack.position_ids[0][pack.gather]
    few = asked.context.scoring.normalization == "none"
    decoder = model.get_base_model().model
    found: Scores = []
    for number in range(len(asked.adapters)):
        model.set_adapter(str(number))
        states = decoder(
            input_ids=ids, attention_mask=pack.bias, position_ids=positions, use_cache=False
        ).last_hidden_state
        hidden = states.flatten(0, 1)[pack.scatter]
        sums = answer_log_probabilities(hidden, base, pack.starts, encoded, few)
        found.append([tuple(row) for row in sums])
    return found


@torch.inference_mode()
def peft_rows(asked: Asked, model: Any) -> Scores:
    """One adapter after the other over padded rows, one for each option of each question."""
    base, encoded = asked.context.base, asked.encoded()
    whole = [
        (*question.prompt, *answer) for question in encoded for answer in question.answers
    ]  # [rows]
    # the last token predicts nothing
    lengths = torch.tensor([len(ids) - 1 for ids in whole])
    longest = int(lengths.max())
    rows = torch.full((len(whole), longest), base.tokenizer.pad_token_id)
    for row, ids in zip(rows, whole, strict=True):
        row[: len(ids) - 1] = torch.tensor(ids[:-1])
    mask = (torch.arange(longest) < lengths[:, None]).long().to(base.device)
    rows = rows.to(base.device)
    found: Scores = []
    for number in range(len(asked.adapters)):
        model.set_adapter(str(number))
        logits = model(input_ids=rows, attention_mask=mask, use_cache=False).logits
        row, scores = 0, []
        for question in encoded:
            sums = []
            for answer in question.answers:
                first = len(question.prompt) - 1
                wanted = logits[row, first : first + len(answer)].float().log_softmax(-1)
                sums.append(float(wanted[range(len(answer)), list(answer)].sum()))
                row += 1
            scores.append(tuple(sums))
        found.append(scores)
    return found
