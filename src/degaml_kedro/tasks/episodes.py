"""Tasks that only examples define, drawn from a distribution without end.

A task is a rule over bare inputs (``France`` -> ``euro``), or a classification: some of the classes of a word set, of
a topic of messages or of a file, under their names or under words of one's own. Nothing in a question says what is
asked. What is drawn is small (:class:`~degaml_kedro.config.schema.EpisodeSource`) and its examples follow from it.

Wrong options of a bare input are the answers of the domain's other training rules to the same input, and the rule's own
answers to other inputs; none of them is right. The options of a classification are its labels, in one order.
Messages of support and training come from other templates than those of validation and test.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, TypeVar

from pydantic import ValidationError

from degaml_kedro.common.seeds import derive_seed
from degaml_kedro.config.schema import (
    DrawnTasks,
    EpisodeSource,
    FileDistribution,
    Parameters,
    SplitSizes,
    SuiteDistribution,
)
from degaml_kedro.tasks.example import Example, TaskError, make_example
from degaml_kedro.tasks.labeled import ALL, read_labeled_texts
from degaml_kedro.tasks.suite import material

P = TypeVar("P", bound=Parameters)

# in the order in which a task's texts are dealt; train takes what is left, the others are whole
SPLITS = ("support", "validation", "test", "train")
_ASKED = ("validation", "test")
# so many draws in a row that do not have enough texts mean that the distribution has no such tasks
_PATIENCE = 200
# so many draws of what was drawn already are passed over
_REPEATS = 40
# so many filled templates in a row that are there already mean that a class has no others
_FILLS = 60
_STYLE_WEIGHTS = (3, 1, 1)
# a domain and its rule, or a word set or topic, its classes and their labels
_Drawn = tuple[str, tuple[str, ...], tuple[str, ...]]
# by split and place of the class: what gives its next text
_Streams = Mapping[tuple[str, int], Iterator[str]]
# so many examples of a split, or as many as there are left
_Draw = Callable[[str, int], list[Example]]


class TooFewTextsError(TaskError):
    """A task with fewer texts than are asked for."""


def draw_episode(
    distribution: SuiteDistribution | FileDistribution,
    sizes: Mapping[str, int],
    seed: int,
    *names: str,
) -> tuple[EpisodeSource, dict[str, list[Example]]]:
    """One task of a distribution, and its examples by split.

    Args:
        distribution: what is drawn from.
        sizes: examples a split (:data:`SPLITS`); ``train`` may come out smaller, no other.
        seed: the run's.
        *names: which draw: the same names give the same task.

    Raises:
        TaskError: no task of the distribution has so many examples, or its file cannot be read.
    """
    rng = random.Random(derive_seed(seed, "episode", *names))
    for _ in range(_PATIENCE):
        source = _draw(distribution, rng)
        try:
            return source, episode_examples(source, sizes)
        except TooFewTextsError:
            continue
    wanted = ", ".join(f"{count} {name}" for name, count in sizes.items())
    raise TaskError(
        f"{_PATIENCE} tasks were drawn, and none has {wanted} examples; ask for fewer of them, or for more labels"
    )


def draw_tasks(
    distribution: SuiteDistribution | FileDistribution,
    splits: SplitSizes,
    count: int,
    seed: int,
    name: str,
    in_turn: bool = False,
) -> dict[str, dict[str, Any]]:
    """Entries of the configuration's ``tasks`` for so many tasks of a distribution, different ones first.

    Args:
        distribution: what is drawn from; its own ``splits`` come first.
        splits: the profile's split sizes.
        count: how many.
        seed: the run's.
        name: the distribution's: tasks are called ``NAME_001`` and so on, and grouped by it.
        in_turn: the forms of tasks take turns, whatever their weights: a few tasks have some of each.

    Raises:
        TaskError: no task of the distribution has so many examples.
    """
    sizes = distribution.splits or splits
    found: dict[str, dict[str, Any]] = {}
    known: set[tuple[Any, ...]] = set()
    repeats = 0
    among = [distribution]
    if in_turn and isinstance(distribution, SuiteDistribution):
        forms = [form for form, weight in distribution.drawn_forms.items() if weight > 0]
        among = [distribution.model_copy(update={"forms": {form: 1.0}}) for form in forms]
    while len(found) < count:
        number = len(found) + repeats
        source, examples = draw_episode(
            among[len(found) % len(among)], sizes.model_dump(), seed, name, "tasks", str(number)
        )
        key = (source.form, source.subject, source.classes, source.labels)
        # where there are few, as of held-out rules, a second draw of one asks other questions
        if key in known and repeats < _REPEATS:
            repeats += 1
            continue
        known.add(key)
        own = {**sizes.model_dump(), "train": len(examples["train"])}
        found[f"{name}_{len(found) + 1:03d}"] = {
            "group": name,
            "source": source.model_dump(mode="json"),
            "splits": own,
        }
    return found


def with_drawn_tasks(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Raw parameters with the tasks that their pools ask for drawn from the distributions they name.

    ``meta_train: {distribution: NAME, trajectory_tasks: n}``, ``meta_test: {NAME: n, …}`` and ``development`` like it
    become lists of names, and the tasks stand under ``tasks``; ``rollout_tasks: m`` beside ``trajectory_tasks`` becomes
    the list of that name. Under ``meta_train`` forms of tasks take turns: its few tasks are what strategies are
    compared on. Anything else is left for validation to judge.

    Raises:
        TaskError: a pool names a distribution that is not there, or one that has no such tasks, or something that
            tasks are drawn by is no valid setting; the message names the key.
    """
    result = dict(parameters)
    pools = {name: result.get(name) for name in ("meta_train", "development", "meta_test")}
    wanted = {name: pool for name, pool in pools.items() if isinstance(pool, Mapping)}
    if "meta_train" in wanted:
        drawn = _validated(DrawnTasks, wanted["meta_train"], "meta_train")
        wanted["meta_train"] = {drawn.distribution: drawn.trajectory_tasks + drawn.rollout_tasks}
        result["meta_train_distribution"] = drawn.distribution
    result["tasks"] = tasks = dict(result.get("tasks") or {})
    for pool, counts in wanted.items():
        # tasks of development are never those that are scored, though one distribution may give both
        apart = "tuning_" if pool == "development" else ""
        result[pool] = []
        for name, count in counts.items():
            if type(count) is not int or count < 1:
                raise TaskError(
                    f"{pool}.{name} is {count!r}; it is how many tasks are drawn, 1 or more"
                )
            made = draw_tasks(
                _distribution(result.get("distributions") or {}, name),
                _validated(SplitSizes, result["splits"], "splits"),
                count,
                int(result["seed"]),
                f"{apart}{name}",
                in_turn=pool == "meta_train",
            )
            tasks |= made
            result[pool] += made
    if "meta_train" in wanted:
        every = result["meta_train"]
        result["meta_train"] = every[: drawn.trajectory_tasks]
        result["rollout_tasks"] = every[drawn.trajectory_tasks :]
    return result


def _distribution(entries: Mapping[str, Any], name: str) -> SuiteDistribution | FileDistribution:
    if name not in entries:
        known = ", ".join(entries) or "none"
        raise TaskError(
            f"there is no distribution '{name}' under 'distributions'; there are {known}"
        )
    entry, place = entries[name], f"distributions.{name}"
    if entry.get("kind") == "file":
        return _validated(FileDistribution, entry, place)
    return _validated(SuiteDistribution, entry, place)


def _validated(kind: type[P], value: Any, place: str) -> P:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (place, *first["loc"])))
        raise TaskError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error


def describe(source: EpisodeSource) -> str:
    """A drawn task in a few words: ``country: currency``, ``library: renew loan = maple, opening hours = cloud``."""
    if source.form == "rules":
        return f"{source.subject}: {source.classes[0]}"
    pairs = zip(source.classes, source.labels, strict=True)
    return f"{source.subject}: " + ", ".join(
        label if _plain(name) == label else f"{_plain(name)} = {label}" for name, label in pairs
    )


# --- drawing --------------------------------------------------------------------------------------


def _draw(distribution: SuiteDistribution | FileDistribution, rng: random.Random) -> EpisodeSource:
    if isinstance(distribution, FileDistribution):
        return _draw_of_file(distribution, rng)
    forms = distribution.drawn_forms
    (form,) = rng.choices(list(forms), list(forms.values()))
    seed = rng.getrandbits(62)
    if form == "rules":
        subject, classes, labels = _draw_rule(distribution, rng)
    else:
        subject, classes, labels = _draw_classes(distribution, form, rng)
    return EpisodeSource(
        kind="episode",
        form=form,
        subject=subject,
        classes=classes,
        labels=labels,
        options=distribution.options,
        pool=distribution.pool,
        unseen=distribution.unseen,
        seed=seed,
    )


def _draw_rule(distribution: SuiteDistribution, rng: random.Random) -> _Drawn:
    wanted = (distribution.pool, distribution.unseen or "")
    choices = [
        (domain, rule)
        for domain, found in material.rules().items()
        for rule in found
        if material.pool_of_rule(domain, rule) == wanted
    ]
    domain = rng.choice(sorted({domain for domain, _ in choices}))
    return domain, (rng.choice([rule for known, rule in choices if known == domain]),), ()


def _draw_classes(distribution: SuiteDistribution, form: str, rng: random.Random) -> _Drawn:
    """A word set or a topic, some of its classes, and their names or the words that stand for them."""
    pool, unseen = distribution.pool, distribution.unseen
    subjects = material.word_sets() if form == "words" else material.topics()
    held = pool if unseen == "domains" else material.TRAIN
    subject = rng.choice(
        [name for name in subjects if material.pool_of_subject(form, name) == held]
    )
    if form == "words":
        names = {name: name for name in material.word_sets()[subject]}
    else:
        intents = material.topics()[subject]["intents"]
        names = {name: intent["label"] for name, intent in intents.items()}
    classes = _some(rng, list(names), distribution.labels)
    if unseen != "labels" and rng.random() >= distribution.coded:
        return subject, classes, tuple(names[name] for name in classes)
    # only where label words are what is new, they are the pool's own
    words = pool if unseen in ("labels", "domains") else material.TRAIN
    return subject, classes, _codes(rng, words, len(classes))


def _draw_of_file(distribution: FileDistribution, rng: random.Random) -> EpisodeSource:
    texts = read_labeled_texts(distribution.file)
    if unknown := sorted(set(distribution.groups) - set(texts)):
        raise TaskError(
            f"{distribution.file.path} has no group '{unknown[0]}'; it has {', '.join(texts)}"
        )
    fewest = distribution.labels[0]
    groups = [name for name in distribution.groups or texts if len(texts[name]) >= fewest]
    if not groups:
        raise TaskError(f"no group of {distribution.file.path} has {fewest} labels")
    group = rng.choice(groups)
    classes = _some(rng, list(texts[group]), distribution.labels)
    coded = rng.random() < distribution.coded
    labels = _codes(rng, distribution.pool, len(classes)) if coded else tuple(map(_plain, classes))
    if len(set(labels)) < len(labels):
        labels = classes  # labels that differ in an underscore alone
    return EpisodeSource(
        kind="episode",
        form="file",
        subject=group,
        classes=classes,
        labels=labels,
        pool=distribution.pool,
        file=distribution.file,
        seed=rng.getrandbits(62),
    )


def _some(rng: random.Random, names: list[str], bounds: tuple[int, int]) -> tuple[str, ...]:
    fewest, most = bounds
    return tuple(rng.sample(names, rng.randint(min(fewest, len(names)), min(most, len(names)))))


def _codes(rng: random.Random, pool: str, count: int) -> tuple[str, ...]:
    words = material.label_words(pool)
    (style,) = rng.choices(material.STYLES, _STYLE_WEIGHTS)
    return tuple(rng.sample(words[style], count))


def _plain(name: str) -> str:
    return name.replace("_", " ")


# --- examples -------------------------------------------------------------------------------------


def episode_examples(source: EpisodeSource, sizes: Mapping[str, int]) -> dict[str, list[Example]]:
    """A drawn task's examples by split; ``train`` has what the others leave, up to its size.

    Raises:
        TooFewTextsError: it has fewer.
    """
    rng = random.Random(source.seed)
    draw = _draws_of_rule(source, rng) if source.form == "rules" else _draws_of_texts(source, rng)
    found: dict[str, list[Example]] = {}
    for split in SPLITS:
        wanted = sizes.get(split, 0)
        found[split] = draw(split, wanted)
        if len(found[split]) < wanted and split != "train":
            raise TooFewTextsError(f"{describe(source)} has fewer than {wanted} texts for {split}")
    return found


def _draws_of_texts(source: EpisodeSource, rng: random.Random) -> _Draw:
    """Draws a split of a classification: its classes in turn, so that each has its share."""
    streams = (
        _message_texts(source, rng) if source.form == "messages" else _listed_texts(source, rng)
    )
    seen: set[str] = set()

    def draw(split: str, wanted: int) -> list[Example]:
        rows: list[tuple[str, int]] = []
        turns = rng.sample(range(len(source.classes)), len(source.classes))
        while len(rows) < wanted and turns:
            place = turns.pop(0)
            # no text comes twice in the task
            text = next((text for text in streams[split, place] if text not in seen), None)
            if text is not None:
                seen.add(text)
                rows.append((text, place))
                turns.append(place)
        rng.shuffle(rows)
        return [make_example(text, source.labels, place) for text, place in rows]

    return draw


def _listed_texts(source: EpisodeSource, rng: random.Random) -> _Streams:
    if source.file is None:
        words = [material.word_sets()[source.subject][name] for name in source.classes]
        pools: Mapping[str, Sequence[Sequence[str]]] = dict.fromkeys(SPLITS, words)
    else:
        group = read_labeled_texts(source.file)[source.subject]
        pools = {
            split: [_split_texts(group, name, split) for name in source.classes] for split in SPLITS
        }
    # splits that are dealt from one list go on where the other stopped
    streams = {id(texts): iter(rng.sample(texts, len(texts))) for texts in chain(*pools.values())}
    return {
        (split, place): streams[id(texts)]
        for split in SPLITS
        for place, texts in enumerate(pools[split])
    }


def _split_texts(
    group: Mapping[str, Mapping[str, Sequence[str]]], name: str, split: str
) -> Sequence[str]:
    texts = group[name]
    if ALL in texts:
        return texts[ALL]
    wanted = "test" if split == "test" else "train"
    return texts.get(wanted) or next(iter(texts.values()))


def _message_texts(source: EpisodeSource, rng: random.Random) -> _Streams:
    topic = material.topics()[source.subject]
    held = material.pool_of_subject("messages", source.subject) != material.TRAIN
    sides: list[tuple[Iterator[str], Iterator[str]]] = []
    for name in source.classes:
        every = topic["intents"][name]["templates"]
        known = every if held else material.templates_of(every, material.TRAIN)
        mixed = rng.sample(known, len(known))
        shown, asked = mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
        if source.unseen == "templates":
            shown, asked = mixed, material.templates_of(every, source.pool)
        sides.append((_filled(shown, topic["slots"], rng), _filled(asked, topic["slots"], rng)))
    return {
        (split, place): sides[place][split in _ASKED]
        for split in SPLITS
        for place in range(len(sides))
    }


def _filled(templates: Sequence[str], slots: material.Classes, rng: random.Random) -> Iterator[str]:
    """Templates in turn with their slots filled, until most fills are repeats."""
    known: set[str] = set()
    repeats = 0 if templates else _FILLS
    while repeats < _FILLS:
        for template in templates:
            text = re.sub(r"\{(\w+)\}", lambda match: rng.choice(slots[match[1]]), template)
            text = text[0].upper() + text[1:]
            repeats = repeats + 1 if text in known else 0
            known.add(text)
            yield text


def _draws_of_rule(source: EpisodeSource, rng: random.Random) -> _Draw:
    """Draws a split of a rule's inputs, each of which comes once in the task."""
    domain = material.rules()[source.subject]
    name = source.classes[0]
    rule = domain[name]
    _, unseen = material.pool_of_rule(source.subject, name)
    # of a domain that is held out every rule is; elsewhere no other held-out rule's answers are shown
    others = [
        other
        for key, other in domain.items()
        if key != name
        and (unseen == "domains" or material.pool_of_rule(source.subject, key)[0] == material.TRAIN)
    ]
    own = list(dict.fromkeys(answers[0] for answers in rule.values()))
    inputs = rng.sample(list(rule), len(rule))

    def examples() -> Iterator[Example]:
        for asked in inputs:
            foreign = [other[asked][0] for other in others if asked in other]
            wrong = _wrong_options(rule[asked], own, foreign, source.options - 1, rng)
            if wrong is not None:
                options = rng.sample([rule[asked][0], *wrong], source.options)
                yield make_example(asked, options, options.index(rule[asked][0]))

    stream = examples()
    return lambda split, wanted: list(islice(stream, wanted))


def _wrong_options(
    right: Sequence[str], own: Sequence[str], foreign: Sequence[str], count: int, rng: random.Random
) -> list[str] | None:
    """Half from other rules of the same input, the rest from the rule at other inputs; None where there are too few."""
    foreign = list(dict.fromkeys(text for text in foreign if text not in right))
    near = [text for text in own if text not in right]
    chosen = rng.sample(foreign, min(len(foreign), (count + 1) // 2))
    for pool in (near, foreign):
        left = [text for text in pool if text not in chosen]
        chosen += rng.sample(left, min(len(left), count - len(chosen)))
    return chosen if len(chosen) == count else None
