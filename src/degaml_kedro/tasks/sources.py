"""Where a task's examples come from: a family of the suite, a drawn episode, files, or the Hugging Face hub."""

from __future__ import annotations

from degaml_kedro.config.schema import (
    EpisodeSource,
    FileSource,
    HubSource,
    SplitSizes,
    SuiteSource,
)
from degaml_kedro.tasks.episodes import SPLITS, episode_examples
from degaml_kedro.tasks.example import Example, TaskError, did_you_mean
from degaml_kedro.tasks.files import load_files
from degaml_kedro.tasks.hub import load_hub
from degaml_kedro.tasks.splits import keep_apart
from degaml_kedro.tasks.suite import FAMILIES


def load_examples(
    source: SuiteSource | FileSource | HubSource | EpisodeSource,
    sizes: SplitSizes,
    seed: int,
    task: str,
) -> dict[str, list[Example]]:
    """A task's examples: by split where the source has splits, else all of them as ``"all"``.

    A family of the suite makes exactly as many as the splits take. A prompt that a source has in two of its splits
    (see ``keep_apart``) is refused in files, unless their entry says otherwise; of published benchmarks, which nobody
    can put right, it stays where it is tested on.

    Raises:
        TaskError: The source does not exist, cannot be read, or holds something that is no example.
    """
    if isinstance(source, EpisodeSource):
        return episode_examples(source, sizes.model_dump())
    if isinstance(source, FileSource):
        return keep_apart(load_files(source, task), task, source.overlap)
    if isinstance(source, HubSource):
        return keep_apart(load_hub(source, task), task, "drop_from_train")
    if source.family not in FAMILIES:
        hint = did_you_mean(
            source.family, FAMILIES, f"use one of {', '.join(sorted(FAMILIES))}.", 3
        )
        raise TaskError(
            f"Task '{task}': the built-in suite has no family '{source.family}'; {hint}"
        )
    # train, which grows most, is cut last from the stream and moves no other split
    counts = {name: int(getattr(sizes, name)) for name in SPLITS}
    stream = iter(FAMILIES[source.family].generate(sum(counts.values()), seed))
    return {name: [next(stream) for _ in range(count)] for name, count in counts.items()}
