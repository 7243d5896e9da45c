"""The four splits of a task, and examples as a table.

Which example goes where depends on the example itself, the task and the seed, never on how many
others there are: raising one size leaves the smaller splits' examples in place as far as there are
enough.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

from degaml_kedro.config.schema import SplitSizes
from degaml_kedro.tasks.example import Example, TaskError, shorten

logger = logging.getLogger(__name__)

SPLITS = ("train", "support", "validation", "test")
ALL = "all"
COLUMNS = ("prompt", "response", "system", "options", "labels", "gold")

# Where a split's examples come from, best first, when the source has splits of its own.
_POOLS = {
    "test": ("test",),
    "support": ("support", "train", "validation"),
    "validation": ("validation", "train"),
    "train": ("train",),
}
Overlap = Literal["error", "drop_from_train"]


@dataclass(frozen=True)
class TaskSplits:
    """A task's examples. No prompt is in two of the splits.

    Attributes:
        train: What adapters are trained on.
        support: The few labeled examples known of a new task.
        validation: What choices are made on.
        test: Scored once, at the end.
    """

    train: tuple[Example, ...]
    support: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]

    def __post_init__(self) -> None:
        home: dict[str, str] = {}
        for name in SPLITS:
            for example in self[name]:
                other = home.setdefault(example.prompt, name)
                if other != name:
                    raise TaskError(
                        f"The prompt {shorten(example.prompt)} is in both '{other}' and '{name}'; "
                        f"remove it from one of them."
                    )

    def __getitem__(self, name: str) -> tuple[Example, ...]:
        """The examples of a split by its name.

        Raises:
            TaskError: There is no such split.
        """
        if name not in SPLITS:
            raise TaskError(f"There is no split '{name}'; use one of {', '.join(SPLITS)}.")
        examples: tuple[Example, ...] = getattr(self, name)
        return examples


def check_split_names(names: Iterable[str], where: str, task: str) -> None:
    """Refuse names that are none of a split.

    Raises:
        TaskError: One is.
    """
    if unknown := [name for name in names if name not in SPLITS]:
        raise TaskError(
            f"Task '{task}': {where} names the unknown split '{unknown[0]}'; use {', '.join(SPLITS)}."
        )


def split_examples(
    examples: Sequence[Example] | Mapping[str, Sequence[Example]],
    sizes: SplitSizes,
    seed: int,
    task: str,
) -> TaskSplits:
    """Deal a task's examples out to its splits.

    A plain sequence, or a mapping with one entry, is one pool for all splits. A source with splits
    of its own keeps them: ``test`` is dealt from its test examples only; ``support`` and
    ``validation``, where the source has none of that name, come out of ``train``.

    Raises:
        TaskError: A split is missing or too small, a prompt is in two splits, or a prompt comes
            twice with different answers.
    """
    pools = dict(examples) if isinstance(examples, Mapping) else {ALL: examples}
    if not pools:
        raise TaskError(f"Task '{task}': the source has no examples at all; check its path.")
    if len(pools) > 1:
        check_split_names(pools, "the source", task)
    unique = {name: _without_repeats(pool, name, task) for name, pool in pools.items()}
    keep_apart(unique, task, "error")
    dealt = {
        name: sorted(pool, key=lambda e: _rank(e, seed, task)) for name, pool in unique.items()
    }

    in_turn = ("support", "validation", "test", "train")
    homes = {name: _pool_of(name, getattr(sizes, name), unique, task) for name in in_turn}
    taken: dict[str, tuple[Example, ...]] = dict.fromkeys(SPLITS, ())
    for name, home in homes.items():
        if home is None:
            continue
        wanted, pool = getattr(sizes, name), dealt[home]
        if len(pool) < wanted:
            sharing = [
                f"{split} {getattr(sizes, split)}"
                for split in SPLITS
                if getattr(sizes, split) and homes[split] == home
            ]
            place = "the source" if home == ALL else f"the source's split '{home}'"
            raise TaskError(
                f"Task '{task}': the splits taken from {place} need {' + '.join(sharing)} examples, but it has "
                f"{len(unique[home])}; lower the task's 'splits' or add examples."
            )
        taken[name], dealt[home] = tuple(pool[:wanted]), pool[wanted:]
    return TaskSplits(**taken)


def _pool_of(
    name: str, wanted: int, pools: Mapping[str, Sequence[Example]], task: str
) -> str | None:
    """The pool that a split is dealt from; None for an empty split that has none."""
    if len(pools) == 1:
        return next(iter(pools))
    for pool in _POOLS[name]:
        if pool in pools:
            return pool
    if wanted == 0:
        return None
    raise TaskError(
        f"Task '{task}': the split '{name}' needs {wanted} examples, but the source only has the splits "
        f"{', '.join(pools)}; add {' or '.join(_POOLS[name])}, or set splits.{name} to 0."
    )


def _without_repeats(pool: Sequence[Example], name: str, task: str) -> list[Example]:
    by_prompt: dict[str, Example] = {}
    for example in pool:
        first = by_prompt.setdefault(example.prompt, example)
        if first.response != example.response:
            raise TaskError(
                f"Task '{task}', split '{name}': the prompt {shorten(example.prompt)} comes twice with different "
                f"answers, {first.response} and {example.response}; keep the right one."
            )
    if repeats := len(pool) - len(by_prompt):
        logger.warning(
            "Task '%s', split '%s': %d repeated example(s) are used once.", task, name, repeats
        )
    return list(by_prompt.values())


def keep_apart(
    pools: Mapping[str, Sequence[Example]], task: str, overlap: Overlap
) -> dict[str, list[Example]]:
    """The source's splits with every prompt in one of them only.

    A prompt in two splits is refused, or stays where it is tested on (test, then validation, then support).

    Raises:
        TaskError: A prompt is in two splits and ``overlap`` is ``"error"``.
    """
    kept: dict[str, list[Example]] = {}
    home: dict[str, str] = {}
    for name in sorted(pools, key=(ALL, "test", "validation", "support", "train").index):
        shared = [example for example in pools[name] if example.prompt in home]
        if shared and overlap == "error":
            raise TaskError(
                f"Task '{task}': {len(shared)} prompt(s) of the source's '{name}' split are in its "
                f"'{home[shared[0].prompt]}' split too, for one {shorten(shared[0].prompt)}; "
                f"remove them from one of the two."
            )
        if shared:
            told = "Task '%s': %d example(s) of '%s' are in a split that is tested on and are left out."
            logger.warning(told, task, len(shared), name)
        kept[name] = [example for example in pools[name] if example.prompt not in home]
        home |= {example.prompt: name for example in kept[name]}
    return {name: kept[name] for name in pools}


def _rank(example: Example, seed: int, task: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{task}\0{example.prompt}".encode()).digest()


def examples_to_frame(examples: Iterable[Example]) -> pd.DataFrame:
    """A table with one row per example and the columns of ``COLUMNS``; options and labels are lists."""
    frame = pd.DataFrame(map(asdict, examples), columns=list(COLUMNS))
    for name in ("options", "labels"):
        frame[name] = frame[name].map(list)
    return frame.astype({"gold": "int64"})


def frame_to_examples(frame: pd.DataFrame) -> list[Example]:
    """The examples of a table made by ``examples_to_frame``, also after a trip through Parquet.

    Raises:
        TaskError: A column is missing.
    """
    _check_columns(frame, COLUMNS)
    return [
        Example(prompt, response, system, tuple(options), tuple(labels), int(gold))
        for prompt, response, system, options, labels, gold in frame[list(COLUMNS)].itertuples(
            index=False
        )
    ]


def splits_to_frame(splits: TaskSplits) -> pd.DataFrame:
    """One table for all splits, with a ``split`` column in front."""
    frame = examples_to_frame(example for name in SPLITS for example in splits[name])
    frame.insert(0, "split", [name for name in SPLITS for _ in splits[name]])
    return frame


def frame_to_splits(frame: pd.DataFrame) -> TaskSplits:
    """The splits of a table that ``splits_to_frame`` made.

    Raises:
        TaskError: A column is missing, a split's name is unknown, or a prompt is in two splits.
    """
    _check_columns(frame, ("split",))
    if unknown := sorted(set(frame["split"]) - set(SPLITS)):
        raise TaskError(
            f"The table of splits has the unknown split '{unknown[0]}'; use one of {', '.join(SPLITS)}."
        )
    return TaskSplits(
        **{name: tuple(frame_to_examples(frame[frame["split"] == name])) for name in SPLITS}
    )


def _check_columns(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    if missing := [column for column in columns if column not in frame]:
        raise TaskError(
            f"The table of examples lacks the column(s) {', '.join(missing)}; make it anew from the task's source."
        )
