"""Where a task's examples come from: the built-in suite, a drawn episode, files, or the Hugging Face hub."""

from __future__ import annotations

import difflib

from degaml_kedro.errors import DegamlError
from degaml_kedro.parameters import (
    EpisodeSource,
    FileSource,
    HubSource,
    SplitSizes,
    SuiteSource,
)
from degaml_kedro.tasks.episodes import episode_examples
from degaml_kedro.tasks.example import Example
from degaml_kedro.tasks.files import load_files
from degaml_kedro.tasks.hub import load_hub
from degaml_kedro.tasks.splits import Overlap, keep_apart
from degaml_kedro.tasks.suite import FAMILIES

# The order in which a family's stream is cut up: the split that grows most comes last and moves no
# other.
_STREAM_ORDER = ("support", "validation", "test", "train")


class SourceError(DegamlError):
    """A source that does not exist."""


def load_examples(
    source: SuiteSource | FileSource | HubSource | EpisodeSource,
    sizes: SplitSizes,
    seed: int,
    task: str,
    overlap: Overlap | None = None,
) -> dict[str, list[Example]]:
    """Load a task's examples.

    Args:
        source: Where they come from.
        sizes: How many the splits take; the suite makes exactly that many.
        seed: What the suite draws from.
        task: The task's name, for messages.
        overlap: What to do about a prompt that the source has in two of its splits (see ``keep_apart``). By
            default files do as their entry says (refused, unless it says otherwise), and published benchmarks,
            which nobody can put right, keep the prompt where it is tested on.

    Returns:
        The examples by split where the source has splits, else all of them as ``"all"``.

    Raises:
        DegamlError: The source does not exist, cannot be read, or holds something that is no
            example.
    """
    if isinstance(source, SuiteSource):
        return _from_suite(source, sizes, seed, task)
    if isinstance(source, EpisodeSource):
        return episode_examples(source, sizes.model_dump())
    if isinstance(source, FileSource):
        return keep_apart(load_files(source, task), task, overlap or source.overlap)
    return keep_apart(load_hub(source, task), task, overlap or "drop_from_train")


def _from_suite(
    source: SuiteSource, sizes: SplitSizes, seed: int, task: str
) -> dict[str, list[Example]]:
    family = FAMILIES.get(source.family)
    if family is None:
        near = difflib.get_close_matches(source.family, FAMILIES, n=3)
        hint = (
            f"did you mean {' or '.join(repr(name) for name in near)}?"
            if near
            else f"use one of {', '.join(sorted(FAMILIES))}."
        )
        raise SourceError(
            f"Task '{task}': the built-in suite has no family '{source.family}'; {hint}"
        )
    counts = {name: int(getattr(sizes, name)) for name in _STREAM_ORDER}
    stream = iter(family.generate(sum(counts.values()), seed))
    return {name: [next(stream) for _ in range(count)] for name, count in counts.items()}
