"""A local mirror of the benchmarks' repositories: a few rows each, one of them malformed, in the published schema.

Names, types and splits are those of the dataset cards. Two could not be read where this was written: the schema of
DivLogicEval is what its mapping reads, and that of CodeMMLU an older card, which names no `answer`, with it added.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import datasets
import httpx2
import huggingface_hub
import pytest
from datasets import ClassLabel, Features, List, Value
from huggingface_hub.utils._http import default_client_factory

ROWS = 110  # one malformed row in a hundred is left out
COMMIT = "0123456789abcdef0123456789abcdef01234567"
EXPORT = "refs/convert/parquet"
TEXT, LETTERS = Value("string"), "ABCD"
OPTIONS = ["a red one", "a blue one", "a green one", "a white one"]
Make = Callable[[int], dict[str, Any]]


def texts(*names: str) -> Features:
    return Features(dict.fromkeys(names, TEXT))


def named(number: int, place: str) -> str:
    """A question of its own in every place."""
    return f"Which of these is number {number} of {place}?"


def arc(number: int, place: str) -> dict[str, Any]:
    choices = {"text": OPTIONS, "label": [*LETTERS]}
    key = LETTERS[number % 4] if number else "E"
    return {
        "id": f"q{number}",
        "question": named(number, place),
        "choices": choices,
        "answerKey": key,
    }


def hellaswag(number: int, place: str) -> dict[str, Any]:
    begun = {"ctx_a": named(number, place), "ctx_b": "it", "ctx": f"{named(number, place)} It"}
    about = {"ind": number, "activity_label": "Counting", "source_id": "s", "split": "val"}
    label = str(number % 4) if number else "9"
    return {**about, **begun, "endings": OPTIONS, "split_type": "indomain", "label": label}


def boolq(number: int, place: str) -> dict[str, Any]:
    # the first question comes again with the other answer
    question = named(number or 1, place).lower()
    return {"question": question, "answer": bool(number % 2), "passage": "Nothing."}


def piqa(number: int, place: str) -> dict[str, Any]:
    second = OPTIONS[1] if number else ""
    return {"goal": named(number, place), "sol1": OPTIONS[0], "sol2": second, "label": number % 2}


def winogrande(number: int, place: str) -> dict[str, Any]:
    answer = str(number % 2 + 1) if number else "3"
    sentence = f"Ann beat Bob in game {number} of {place} as _ was fast."
    return {"sentence": sentence, "option1": "Ann", "option2": "Bob", "answer": answer}


def gsm8k(number: int, place: str) -> dict[str, Any]:
    end = f"#### {number + 2}" if number else "It is two."
    solution = f"It is <<{number}+2={number + 2}>>{number + 2}.\n{end}"
    return {"question": f"What is {number} + 2 in {place}?", "answer": solution}


def math(number: int, place: str) -> dict[str, Any]:
    end = rf"$\boxed{{\frac{{{number}}}{{7}}}}$" if number else "nothing"
    problem = {"problem": f"What is {number} / 7 in {place}?", "level": f"Level {number % 5 + 1}"}
    return {**problem, "type": "Algebra", "solution": f"It is {end}."}


def divlogiceval(number: int, place: str) -> dict[str, Any]:
    answer = LETTERS[number % 4] if number else "Z"
    premise = {"context": f"If it rains in {place}, {number} pours.", "question": "What follows?"}
    return {**premise, "options": OPTIONS, "answer": answer}


def socialiqa(number: int, place: str) -> dict[str, Any]:
    answers = {"answerA": "hurt", "answerB": "glad", "answerC": "rich"}
    asked = {"context": f"Kai fell {number} times in {place}.", "question": "How does Kai feel?"}
    return {**asked, **answers, "label": str(number % 3 + 1) if number else "7"}


def codemmlu(number: int, place: str) -> dict[str, Any]:
    choices = OPTIONS if number else OPTIONS[:1]
    asked = {"task_id": f"k{number}", "question": named(number, place), "choices": choices}
    return {**asked, "answer": LETTERS[number % len(choices)]}


TRAINED = ("train", "validation")
SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
    *("number_theory", "prealgebra", "precalculus"),
)
CODE = (
    *("api_frameworks", "code_completion", "code_repair", "dbms_sql", "execution_prediction"),
    *("fill_in_the_middle", "others", "programming_syntax", "software_principles"),
)
# by repository: its configurations, splits, features and rows; one of "default" has no name in the card
PUBLISHED: dict[str, tuple[tuple[str, ...], tuple[str, ...], Features, Any]] = {
    "allenai/ai2_arc": (
        ("ARC-Challenge", "ARC-Easy"),
        (*TRAINED, "test"),
        Features(
            {
                **texts("id", "question"),
                "choices": {"text": List(TEXT), "label": List(TEXT)},
                "answerKey": TEXT,
            }
        ),
        arc,
    ),
    "Rowan/hellaswag": (
        ("default",),
        (*TRAINED, "test"),
        Features(
            {
                "ind": Value("int32"),
                **texts("activity_label", "ctx_a", "ctx_b", "ctx", "source_id"),
                "endings": List(TEXT),
                **texts("split", "split_type", "label"),
            }
        ),
        hellaswag,
    ),
    "google/boolq": (
        ("default",),
        TRAINED,
        Features({"question": TEXT, "answer": Value("bool"), "passage": TEXT}),
        boolq,
    ),
    "ybisk/piqa": (
        ("plain_text",),
        (*TRAINED, "test"),
        Features({**texts("goal", "sol1", "sol2"), "label": ClassLabel(names=["0", "1"])}),
        piqa,
    ),
    "allenai/winogrande": (
        ("winogrande_xl",),
        (*TRAINED, "test"),
        texts("sentence", "option1", "option2", "answer"),
        winogrande,
    ),
    "openai/gsm8k": (("main", "socratic"), ("train", "test"), texts("question", "answer"), gsm8k),
    "EleutherAI/hendrycks_math": (
        SUBJECTS,
        ("train", "test"),
        texts("problem", "level", "type", "solution"),
        math,
    ),
    "ttchungc/DivLogicEval": (
        ("default",),
        ("polished",),
        Features({**texts("context", "question"), "options": List(TEXT), "answer": TEXT}),
        divlogiceval,
    ),
    "allenai/social_i_qa": (
        ("default",),
        TRAINED,
        texts("context", "question", "answerA", "answerB", "answerC", "label"),
        socialiqa,
    ),
    "Fsoft-AIC/CodeMMLU": (
        CODE,
        ("test",),
        Features({**texts("task_id", "question"), "choices": List(TEXT), "answer": TEXT}),
        codemmlu,
    ),
}
# published as a loading script: the mirror has the hub's export of them
EXPORTED = ("ybisk/piqa", "allenai/social_i_qa")


def write_mirror(folder: Path, rows: int = ROWS) -> None:
    """The repositories' files, as the hub lays them out."""
    for repository, (configs, splits, features, make) in PUBLISHED.items():
        card = ["---", "configs:"]
        for config in configs:
            card += [f"- config_name: {config}", "  data_files:"]
            for split in splits:
                many = [make(number, f"{config} {split}") for number in range(rows)]
                file = f"{config}/{split}-00000-of-00001.parquet"
                if repository in EXPORTED:
                    file = f"{config}/{split}/0000.parquet"
                card += [f"  - split: {split}", f"    path: {file}"]
                path = folder / repository / file
                path.parent.mkdir(parents=True, exist_ok=True)
                datasets.Dataset.from_list(many, features=features).to_parquet(str(path))
        if repository not in EXPORTED:
            (folder / repository / "README.md").write_text("\n".join([*card, "---", ""]))


def answering(folder: Path) -> Callable[[httpx2.Request], httpx2.Response]:
    """What answers as the hub does, of the repositories in a folder, whatever commit is asked for."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        address = unquote(request.url.path)
        found = re.fullmatch(
            rf"/(api/)?datasets/([^/]+/[^/]+)(?:/(\w[\w-]*)/({EXPORT}|[^/]+))?(?:/(.*))?", address
        )
        if found is None or not (folder / found[2]).is_dir():
            return httpx2.Response(404, headers={"X-Error-Code": "RepoNotFound"}, request=request)
        is_api, repository, verb, _, path = found.groups()
        root = folder / repository
        if verb == "resolve":
            return _file(root / path, request)
        if not is_api:
            return httpx2.Response(404, request=request)
        files = sorted(one for one in root.rglob("*") if one.is_file())
        if verb in (None, "revision"):
            siblings = [{"rfilename": str(one.relative_to(root))} for one in files]
            return _json({"id": repository, "sha": COMMIT, "siblings": siblings}, request)
        if verb == "tree":
            within = root / (path or "")
            if not within.is_dir():
                headers = {"X-Error-Code": "EntryNotFound"}
                return httpx2.Response(404, headers=headers, request=request)
            return _json([_entry(root, one) for one in sorted(within.rglob("*"))], request)
        if verb == "paths-info":
            form = httpx2.QueryParams(request.content.decode())
            asked = [root / one for one in form.get_list("paths") if (root / one).exists()]
            return _json([_entry(root, one) for one in asked], request)
        return httpx2.Response(404, request=request)

    return answer


def _entry(root: Path, path: Path) -> dict[str, Any]:
    kind = "file" if path.is_file() else "directory"
    size = path.stat().st_size if path.is_file() else 0
    return {"type": kind, "path": str(path.relative_to(root)), "size": size, "oid": "0" * 40}


def _json(content: Any, request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json=content, request=request)


def _file(path: Path, request: httpx2.Request) -> httpx2.Response:
    if not path.is_file():
        return httpx2.Response(404, headers={"X-Error-Code": "EntryNotFound"}, request=request)
    content = path.read_bytes()
    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hash(content):x}"'}
    if request.method == "HEAD":
        headers["Content-Length"] = str(len(content))
        return httpx2.Response(200, headers=headers, request=request)
    return httpx2.Response(200, headers=headers, content=content, request=request)


@contextmanager
def mirrored(folder: Path, cache: Path) -> Iterator[None]:
    """The hub is the folder's mirror meanwhile, and its cache another."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("huggingface_hub.constants", "datasets.config"):
            patch.setattr(f"{name}.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", cache / "datasets")
        transport = httpx2.MockTransport(answering(folder))
        huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=transport))
        try:
            yield
        finally:
            huggingface_hub.set_client_factory(default_client_factory)
