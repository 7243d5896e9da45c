from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

from degaml_kedro.config.schema import FileDistribution, SplitSizes, SuiteDistribution
from degaml_kedro.tasks.episodes import (
    draw_episode,
    draw_tasks,
    episode_examples,
    with_drawn_tasks,
)
from degaml_kedro.tasks.example import TaskError
from degaml_kedro.tasks.suite import material

SIZES = {"support": 20, "validation": 10, "test": 20, "train": 10}
HELD_OUT = list(
    itertools.product(material.HELD_OUT_POOLS, ("rules", "domains", "labels", "templates"))
)


def distribution(**values: object) -> SuiteDistribution:
    return SuiteDistribution.model_validate({"kind": "suite", **values})


def draws(found: SuiteDistribution | FileDistribution, count: int, seed: int = 1):
    return [draw_episode(found, SIZES, seed, str(number)) for number in range(count)]


def test_the_suite_has_as_many_rules_and_messages_as_it_says():
    rules = material.rules()
    assert len(rules) >= 12
    assert all(len(found) >= 8 for found in rules.values())
    assert sum(map(len, rules.values())) >= 90
    assert all(len(table) >= 70 for found in rules.values() for table in found.values())
    topics = material.topics()
    assert len(topics) >= 12
    assert all(len(topic["intents"]) >= 8 for topic in topics.values())
    intents = [intent for topic in topics.values() for intent in topic["intents"].values()]
    assert all(len(intent["templates"]) >= 30 for intent in intents)


def test_no_two_rules_of_a_domain_agree_on_more_than_a_tenth_of_their_inputs():
    for domain, rules in material.rules().items():
        for (one, first), (two, second) in itertools.combinations(rules.items(), 2):
            shared = [asked for asked in first if asked in second]
            same = sum(first[asked][0] == second[asked][0] for asked in shared)
            assert same <= len(shared) / 10, (domain, one, two)


def test_the_held_out_pools_are_disjoint_and_none_is_empty():
    named = [
        (domain, rule)
        for pool in material.HELD_OUT_POOLS
        for domain, rules in material._pools()["rules"][pool].items()
        for rule in rules
    ]
    assert len(named) == len(set(named)) >= 32
    assert all(rule in material.rules()[domain] for domain, rule in named)
    pools = (*material.HELD_OUT_POOLS, material.TRAIN)
    for style in material.STYLES:
        words = [word for pool in pools for word in material.label_words(pool)[style]]
        assert len(words) == len(set(words))
        assert all(len(material.label_words(pool)[style]) >= 12 for pool in pools)
    for form, subjects in (("words", material.word_sets()), ("messages", material.topics())):
        assert set(pools) == {material.pool_of_subject(form, subject) for subject in subjects}
    templates = tuple(map(str, range(30)))
    parts = [material.templates_of(templates, pool) for pool in pools]
    assert sorted(itertools.chain(*parts), key=int) == list(templates)


@pytest.mark.parametrize("form", ["rules", "words", "messages"])
def test_a_draw_follows_from_its_names_alone_and_no_text_comes_twice(form):
    found = distribution(forms={form: 1})
    for (source, examples), again in zip(draws(found, 30), draws(found, 30), strict=True):
        assert again == (source, examples)
        assert episode_examples(source, SIZES) == examples
        texts = [example.question for split in examples.values() for example in split]
        assert len(texts) == len(set(texts))
        for split in ("support", "validation", "test"):
            assert len(examples[split]) == SIZES[split]
    assert draw_episode(found, SIZES, 2, "0")[0] != draw_episode(found, SIZES, 1, "0")[0]


def test_no_wrong_option_is_right_and_half_are_other_rules_answers_to_the_same_input():
    foreign = 0
    for source, examples in draws(distribution(forms={"rules": 1}), 60):
        domain = material.rules()[source.subject]
        rule = domain[source.classes[0]]
        for example in itertools.chain(*examples.values()):
            wrong = [text for place, text in enumerate(example.options) if place != example.gold]
            assert example.options[example.gold] == rule[example.question][0]
            assert not set(wrong) & set(rule[example.question])
            assert len(set(example.options)) == len(example.options) == 4
            held = {
                answers[example.question][0]
                for name, answers in domain.items()
                if example.question in answers
                and material.pool_of_rule(source.subject, name)[0] != material.TRAIN
            }
            known = {
                answers[example.question][0]
                for name, answers in domain.items()
                if example.question in answers
                and material.pool_of_rule(source.subject, name)[0] == material.TRAIN
            }
            own = {answers[0] for answers in rule.values()}
            # a training task shows no held-out rule's answers but those that it has in common with others
            assert not set(wrong) & (held - known - own)
            foreign += len(set(wrong) & known)
    assert foreign > 60 * 60 * 1.5


@pytest.fixture(scope="module")
def train():
    return draws(distribution(), 150)


@pytest.mark.parametrize(("pool", "unseen"), HELD_OUT)
def test_what_is_held_out_is_in_no_training_task(pool, unseen, train):
    held = draws(distribution(pool=pool, unseen=unseen), 20)
    rules = {(s.subject, s.classes[0]) for s, _ in train if s.form == "rules"}
    subjects = {(s.form, s.subject) for s, _ in train}
    words = {label for s, _ in train if s.form != "rules" for label in s.labels} & {
        word for style in material.label_words(pool).values() for word in style
    }
    texts = {
        example.question
        for source, found in train
        if source.form == "messages"
        for example in itertools.chain(*found.values())
    }
    for source, examples in held:
        if unseen == "rules":
            assert (source.subject, source.classes[0]) not in rules
        if unseen == "domains":
            assert (source.form, source.subject) not in subjects
        if unseen == "labels":
            assert not words
            allowed = {word for style in material.label_words(pool).values() for word in style}
            assert set(source.labels) <= allowed
        if unseen == "templates":
            assert not {e.question for e in examples["test"]} & texts


def test_labels_come_in_one_order_and_each_has_its_share():
    for source, examples in draws(distribution(forms={"words": 1, "messages": 1}), 40):
        assert 2 <= len(source.labels) <= 6
        assert {e.options for e in itertools.chain(*examples.values())} == {source.labels}
        counts = Counter(example.gold for example in examples["support"])
        assert len(counts) == len(source.labels)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_listed_tasks_are_drawn_by_the_seed_and_stand_among_the_tasks():
    raw = {
        "seed": 7,
        "splits": {"train": 10, "support": 20, "validation": 10, "test": 20},
        "tasks": {"mine": {}},
        "distributions": {
            "drawn": {"kind": "suite"},
            "new_rules": {"kind": "suite", "pool": "development", "unseen": "rules"},
        },
        "meta_train": {"distribution": "drawn", "trajectory_tasks": 3, "rollout_tasks": 2},
        "meta_test": {"new_rules": 2},
    }
    found = with_drawn_tasks(raw)
    assert found["meta_train"] == ["drawn_001", "drawn_002", "drawn_003"]
    assert found["rollout_tasks"] == ["drawn_004", "drawn_005"]
    assert found["meta_test"] == ["new_rules_001", "new_rules_002"]
    assert found["meta_train_distribution"] == "drawn"
    assert set(found["tasks"]) == {
        "mine",
        *found["meta_train"],
        *found["rollout_tasks"],
        *found["meta_test"],
    }
    assert found["tasks"]["new_rules_001"]["group"] == "new_rules"
    # what strategies are compared on has some of each form
    assert [found["tasks"][name]["source"]["form"] for name in found["meta_train"]] == [
        "rules",
        "words",
        "messages",
    ]
    json.dumps(found)
    assert with_drawn_tasks(raw) == found
    assert with_drawn_tasks({**raw, "seed": 8})["tasks"] != found["tasks"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"meta_test": {"nowhere": 2}}, "no distribution 'nowhere'"),
        ({"distributions": {"drawn": {"kind": "suite", "pool": "final_1"}}}, "says what is unseen"),
        ({"distributions": {"drawn": {"kind": "suite", "coded": 2}}}, "distributions.drawn.coded"),
        ({"meta_train": {"distribution": "drawn"}}, "meta_train.trajectory_tasks"),
        ({"meta_test": {"drawn": "many"}}, "meta_test.drawn is 'many'"),
        ({"splits": {"train": -1}}, "splits.train"),
        ({"distributions": {"drawn": {"kind": "suite", "forms": {"rules": 0}}}}, "no weight"),
    ],
)
def test_a_mistake_in_a_distribution_is_named(change, says):
    raw = {
        "seed": 7,
        "splits": {"train": 10, "support": 20, "validation": 10, "test": 20},
        "distributions": {"drawn": {"kind": "suite"}},
        "meta_train": {"distribution": "drawn", "trajectory_tasks": 1},
        **change,
    }
    with pytest.raises(TaskError, match=says):
        with_drawn_tasks(raw)


def test_too_many_examples_are_refused():
    with pytest.raises(TaskError, match="ask for fewer"):
        draw_episode(distribution(), {"support": 20, "test": 2000}, 1, "0")


# --- files of texts with labels -------------------------------------------------------------------

MESSAGES = {
    "bank": {
        name: [f"{name} message number {number}" for number in range(30)]
        for name in ("lost_card", "balance", "transfer")
    },
    "work": {name: [f"{name} text {number}" for number in range(30)] for name in ("leave", "pay")},
}


def write(folder, kind):
    rows = [
        {"text": text, "label": label, "group": group, "split": "train" if n < 20 else "test"}
        for group, labels in MESSAGES.items()
        for label, texts in labels.items()
        for n, text in enumerate(texts)
    ]
    path = folder / f"messages.{kind.removeprefix('nested.')}"
    if kind == "nested.json":
        nested = {
            group: {
                label: {"train": texts[:20], "test": texts[20:]} for label, texts in labels.items()
            }
            for group, labels in MESSAGES.items()
        }
        path.write_text(json.dumps({"source": "us", "domains": nested}), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        lines = ["text;label;group;split"] + [";".join(row.values()) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["nested.json", "jsonl", "csv"])
@pytest.mark.parametrize("coded", [0.0, 1.0])
def test_tasks_are_drawn_from_any_file_of_texts_and_labels(tmp_path, kind, coded):
    file = {"path": str(write(tmp_path, kind)), "group": "group", "split": "split"}
    found = FileDistribution.model_validate(
        {"kind": "file", "file": file, "groups": ["bank"], "labels": [2, 3], "coded": coded}
    )
    sizes = {"support": 10, "validation": 4, "test": 12, "train": 6}
    source, examples = draw_episode(found, sizes, 3, "0")
    assert source.subject == "bank"
    plain = {name.replace("_", " ") for name in MESSAGES["bank"]}
    assert (set(source.labels) <= plain) == (coded == 0)
    for split, own in examples.items():
        for example in own:
            name = source.classes[source.labels.index(example.options[example.gold])]
            number = MESSAGES["bank"][name].index(example.question)
            assert (number >= 20) == (split == "test")


def test_a_file_of_labels_that_cannot_be_read_is_named(tmp_path):
    def read(path, **columns):
        distribution = {"kind": "file", "file": {"path": str(path), **columns}, "labels": [2, 2]}
        draw_episode(FileDistribution.model_validate(distribution), {"support": 2}, 1, "0")

    with pytest.raises(TaskError, match="no file"):
        read(tmp_path / "missing.csv")
    with pytest.raises(TaskError, match="no column 'intent'"):
        read(write(tmp_path, "csv"), label="intent")
    (tmp_path / "texts.docx").write_text("x")
    with pytest.raises(TaskError, match="convert it to .json"):
        read(tmp_path / "texts.docx")
    for text, told in (
        ("[{", "cut off"),
        ("{", "cannot be read"),
        ('{"a": {"b": 1}}', "label: .split"),
    ):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(TaskError, match=f"broken.json.*{told}"):
            read(tmp_path / "broken.json")


def test_split_sizes_of_a_distribution_come_before_the_profile_s():
    own = SplitSizes(train=4, support=10, validation=4, test=8)
    found = distribution(splits=own.model_dump())
    entry = next(
        iter(draw_tasks(found, SplitSizes(train=9, validation=9, test=9), 1, 1, "d").values())
    )
    assert {k: v for k, v in entry["splits"].items() if k != "train"} == {
        "support": 10,
        "validation": 4,
        "test": 8,
    }
