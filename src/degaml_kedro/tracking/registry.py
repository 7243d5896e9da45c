"""Trained pairs and adaptations as registered MLflow models: the folders of :mod:`~degaml_kedro.checkpoint.folder`.

A model's files are such a folder, ``data/checkpoint`` below MLflow's own description, and nothing else: safetensors and
JSON, no pickle and no code. ``Session.load("models:/degaml-pair/1")`` reads it as the untrusted input that it is. This
module is also the loader that the description names: what ``mlflow.pyfunc.load_model`` asks.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature, infer_signature
from mlflow.tracking import MlflowClient

from degaml_kedro import __version__
from degaml_kedro.adaptation import Accuracy, Report, Tried
from degaml_kedro.adapters.adapter import CONFIG_FILE as ADAPTER_FILE
from degaml_kedro.adapters.adapter import save_peft_folder
from degaml_kedro.checkpoint.folder import (
    ADAPTATION_FILE,
    PAIR_FILE,
    SavedAdaptation,
    TrainedPair,
    load_adaptation,
    read_pair,
    save_adaptation,
    save_pair,
)
from degaml_kedro.checkpoint.hub import read_record, read_run
from degaml_kedro.checkpoint.layout import (
    ADAPTATION_CONTENTS,
    CARD_FILE,
    PAIR_CONTENTS,
    CheckpointError,
    check_overwritable,
)
from degaml_kedro.config.schema import task_scoring
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.llm.base_model import choose_device
from degaml_kedro.policy.actions import ActionSpace
from degaml_kedro.policy.describe import describe_action, describe_strategy
from degaml_kedro.session import AdaptedModel
from degaml_kedro.strategies.state import AdaptedState, load_state
from degaml_kedro.tasks.example import Question, make_example
from degaml_kedro.tracking.server import CHECKPOINT, Place, experiment_id, owner_tags, using

PAIR = "degaml-pair"
_MODELS, _OUTPUT, _REPORTING = "06_models", "07_model_output", "08_reporting"
_METHOD = "degaml"
_STATE = f".{_METHOD}.state"
# a database's column is no wider
_DESCRIPTION = 5000


def register_models(folder: Path, place: Place) -> list[str]:
    """Register what is not registered yet: a folder's trained pairs and its adaptations to tasks that are named.

    A model is the same where its files are the same bytes: it gets no new version. Adaptations to tasks that were drawn
    from a distribution are for measuring alone.

    The folder is a checkpoint's; a run's data folder; or one with a folder a seed.

    Returns:
        The models' URIs, ``models:/degaml-pair/1``.

    Raises:
        CheckpointError: a run is not done, or its files are damaged.
        TrackingError: MLflow's server or database cannot be used.
    """
    with using(place.uri), warnings.catch_warnings():
        # MLflow's advice to give examples, and on columns of integers
        warnings.simplefilter("ignore", UserWarning)
        experiment = experiment_id(MlflowClient(), place)
        if is_checkpoint(folder):
            with _temporary() as own:
                shutil.copytree(folder, own, symlinks=True)
                return [_register(own, f"degaml-{folder.resolve().name}", {}, experiment)]
        runs = [folder] if (folder / _MODELS).is_dir() else sorted(folder.glob("*/"))
        return [
            uri
            for run in runs
            # only runs of the method degaml end in a pair
            if (run / _MODELS / "policy" / ADAPTER_FILE).is_file()
            for uri in _register_run(run, experiment)
        ]


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a trained pair's or an adaptation's."""
    return any((folder / name).is_file() for name in (PAIR_FILE, ADAPTATION_FILE))


def _register_run(run: Path, experiment: str) -> Iterator[str]:
    pair = read_run(run)
    tags = {name: str(pair.about[name]) for name in ("profile", "seed") if name in pair.about}
    with _temporary() as own:
        save_pair(pair, own)
        yield _register(own, PAIR, tags, experiment)
    parameters = read_record(run)[1]
    for folder in sorted((run / _MODELS).glob(f"*{_STATE}")):
        task = folder.name.removesuffix(_STATE)
        if task not in (parameters.get("tasks") or {}):
            continue
        try:
            state, about = _adaptation(pair, run, parameters, task)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{run}: the adaptation to {task} cannot be registered, for what was tried and measured cannot be read "
                f"({error}); `kedro run --only-missing-outputs` makes what is missing"
            ) from error
        # written answers are for a Kedro run to score
        if about.settings.scoring.mode != "generate":
            with _temporary() as own:
                save_adaptation(state, about, own)
                yield _register(own, f"degaml-adapter-{task}", tags, experiment)


@contextmanager
def _temporary() -> Iterator[Path]:
    """The place of a folder to be made, which has the name that MLflow keeps it by."""
    with tempfile.TemporaryDirectory(prefix="degaml-model-") as temporary:
        yield Path(temporary) / Path(CHECKPOINT).name


def _adaptation(
    pair: TrainedPair, run: Path, parameters: Mapping[str, Any], task: str
) -> tuple[AdaptedState, SavedAdaptation]:
    """Where a run's adaptation to a task ended, with a report of what the run tried and measured."""
    settings = parameters["tasks"][task]
    space = ActionSpace.of(pair.settings.policy.families)
    rows = pd.read_parquet(run / _REPORTING / "strategies.parquet")
    own = rows[(rows["task"] == task) & (rows["method"] == _METHOD)].astype(object)
    records: list[Any] = own.where(own.notna(), None).to_dict("records")
    tried = tuple(
        replace(
            Tried.of(row, describe_action(space, str(row["action"]))),
            executed=bool(row["executed"]),
        )
        for row in records
    )
    strategy = tuple(one.action for one in tried if one.executed)
    adapted = _measured(run, task, _METHOD)
    report = Report(
        support=(settings.get("splits") or parameters["splits"])["support"],
        held_out=0 if adapted is None else adapted.n,
        base=_measured(run, task, "base"),
        generated=_measured(run, task, "generalization_only"),
        adapted=adapted,
        tried=tried,
        strategy=strategy,
        words=describe_strategy(space, strategy),
        base_model=pair.base_model,
        source=pair.name,
        seed=int(pair.about["seed"]),
    )
    answering = pair.settings.answering.model_copy(
        update={"scoring": task_scoring(parameters["scoring"], settings)}
    )
    state = load_state(run / _MODELS / f"{task}{_STATE}")
    return state, SavedAdaptation(
        base_model=pair.base_model,
        base_model_fingerprint=pair.base_model_fingerprint,
        settings=answering,
        more_than_peft=not state.is_one_adapter,
        report=report,
    )


def _measured(run: Path, task: str, method: str) -> Accuracy | None:
    """A method's accuracy on the task's test questions; None where it was not measured."""
    path = run / _OUTPUT / f"{task}.{method}.json"
    if not path.is_file():
        return None
    found = pd.read_json(path, typ="series")
    return Accuracy(round(float(found["accuracy"]) * int(found["n"])), int(found["n"]))


def _register(folder: Path, name: str, tags: Mapping[str, str], experiment: str) -> str:
    """Register a checkpoint's folder under a name, with the alias ``{profile}-{seed}``, where it is not yet."""
    client, digest = MlflowClient(), _digest(folder)
    asked = f"name = '{name}' and tags.digest = '{digest}'"
    if found := client.search_model_versions(asked, max_results=1):
        version = found[0].version
    else:
        of = {**tags, **owner_tags(), "kind": "model", "model": name}
        with mlflow.start_run(experiment_id=experiment, run_name=name, nested=True, tags=of):
            logged = mlflow.pyfunc.log_model(
                name=name,
                loader_module=__name__,
                data_path=str(folder),
                signature=_signature(folder),
                pip_requirements=[f"degaml-kedro=={__version__}"],
                registered_model_name=name,
                tags={**of, "digest": digest},
                await_registration_for=0,
            )
        version = logged.registered_model_version
        card = (folder / CARD_FILE).read_text(encoding="utf-8")
        client.update_model_version(name, version, card[:_DESCRIPTION])
    if alias := "-".join(re.sub(r"[^\w-]", "_", value) for value in tags.values()):
        client.set_registered_model_alias(name, alias, version)
    return f"models:/{name}/{version}"


def _digest(folder: Path) -> str:
    """Of the names and bytes of a checkpoint's files.

    Raises:
        CheckpointError: it is damaged, or holds what is no part of a checkpoint.
    """
    is_pair = (folder / PAIR_FILE).is_file()
    check_overwritable(folder, PAIR_CONTENTS if is_pair else ADAPTATION_CONTENTS)
    if is_pair:
        read_pair(folder)
    else:
        load_adaptation(folder)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


# --- as MLflow's own model ------------------------------------------------------------------------


def _signature(folder: Path) -> ModelSignature:
    if (folder / PAIR_FILE).is_file():
        prompts = pd.DataFrame({"prompt": ["Which day follows Monday?"]})
        made = pd.DataFrame({"adapter": ["a folder"]})
        return infer_signature(prompts, made, {"seed": 0, "folder": ""})
    questions = {"question": ["Which day follows Monday?"], "options": [["Friday", "Tuesday"]]}
    answers = {"answer": ["Tuesday"], "index": [1]}
    return infer_signature(pd.DataFrame(questions), pd.DataFrame(answers))


def _load_pyfunc(path: str) -> SimpleNamespace:
    """MLflow's entry: what a checkpoint's folder holds, with a function ``predict``."""
    folder = Path(path)
    if (folder / PAIR_FILE).is_file():
        pair = read_pair(folder)
        pair.generator.to(choose_device(pair.settings.model.device))
        return SimpleNamespace(predict=partial(_write_adapter, pair))
    return SimpleNamespace(predict=partial(_answer, AdaptedModel.open(folder)))


def _write_adapter(
    pair: TrainedPair, model_input: Any, params: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Write the adapter of unlabelled prompts of one task, in the column ``prompt``.

    Where there are more than the generator reads, some are drawn: ``params`` may have the ``seed`` of that draw, and
    the ``folder`` to write to, else a new temporary one.

    Returns:
        One row: the PEFT folder's path, on this machine, in the column ``adapter``.
    """
    asked, encoder = params or {}, pair.settings.encoder
    prompts = [str(text) for text in pd.DataFrame(model_input)["prompt"]]
    embeddings = load_prompt_encoder(encoder).encode(prompts, encoder.tokens, encoder.batch_tokens)
    adapter = pair.generator.sample(embeddings, int(asked.get("seed") or 0))
    folder = str(asked.get("folder") or tempfile.mkdtemp(prefix="degaml-adapter-"))
    save_peft_folder(adapter, Path(folder))
    return pd.DataFrame({"adapter": [folder]})


def _answer(
    adapted: AdaptedModel, model_input: Any, params: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Answer questions: their texts in the column ``question``, the texts of their options in ``options``.

    Returns:
        The option that is likeliest, in the column ``answer``, and its place, from 0, in ``index``.
    """
    asked = pd.DataFrame(model_input)
    questions = [
        Question.of(make_example(str(question), [str(text) for text in options], gold=0))
        for question, options in zip(asked["question"], asked["options"], strict=True)
    ]
    answers = adapted.predict(questions)
    return pd.DataFrame(
        {"answer": [one.text for one in answers], "index": [one.choice for one in answers]}
    )
