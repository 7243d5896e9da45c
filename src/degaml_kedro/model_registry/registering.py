"""Models into MLflow: each once, with a card, and without a pickle."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from degaml_kedro import __version__
from degaml_kedro.mlflow_server import Place, experiment_id, knock, speaking
from degaml_kedro.model_registry import serving
from degaml_kedro.model_registry.card import card_text
from degaml_kedro.model_registry.folders import (
    ModelFolder,
    content_digest,
    find_models,
)
from degaml_kedro.model_registry.serving import (
    ABOUT_FILE,
    ADAPTER,
    CONTENT,
    FORMAT,
    GENERATOR,
    POLICY,
)
from degaml_kedro.parameters import task_scoring

logger = logging.getLogger(__name__)

_CARD = "README.md"
# a database's column is no wider
_DESCRIPTION = 5000


def register_models(
    models: Path | Sequence[ModelFolder],
    tracking_uri: str,
    experiment: str,
    artifact_location: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> list[str]:
    """Register every model of a run's folder that is not registered yet, and bring the others' cards up to date.

    A model is the same where its files are the same bytes: it gets no new version.

    Args:
        models: a run's data folder, a folder with one a seed, or the models themselves.
        tracking_uri: MLflow's.
        experiment: the experiment of the runs that log them; it is made where it is not there.
        artifact_location: where a new experiment keeps its files.
        parameters: the run's; otherwise those that it recorded.

    Returns:
        The models' URIs, ``models:/degaml-generator/1``, in the order of the folder.

    Raises:
        TrackingError: MLflow's server or database cannot be used.
        DegamlError: a model cannot be read.
    """
    found = find_models(models, parameters) if isinstance(models, Path) else list(models)
    if not found:
        return []
    with speaking(tracking_uri):
        knock(tracking_uri)
        client = MlflowClient(tracking_uri)
        place = experiment_id(client, Place(tracking_uri, experiment, artifact_location))
        return [_register(client, place, model) for model in found]


def _register(client: MlflowClient, experiment: str, model: ModelFolder) -> str:
    digest = content_digest(model)
    card, short = card_text(model, digest), card_text(model, digest, in_full=False)
    short = short[:_DESCRIPTION]
    version = _version_of(client, model.name, digest)
    if version is None:
        version = _new_version(client, experiment, model, digest, card, short)
    elif version.description != short:
        client.update_model_version(model.name, version.version, short)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / _CARD
            file.write_text(card, encoding="utf-8")
            client.log_model_artifact(version.tags["logged_model"], str(file))
    if model.alias and model.alias not in version.aliases:
        client.set_registered_model_alias(model.name, model.alias, version.version)
    return f"models:/{model.name}/{version.version}"


def _version_of(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    asked = f"name = '{name}' and tags.digest = '{digest}'"
    found = client.search_model_versions(asked, max_results=1)
    # a search leaves aliases out
    return client.get_model_version(name, found[0].version) if found else None


def _new_version(
    client: MlflowClient, experiment: str, model: ModelFolder, digest: str, card: str, short: str
) -> ModelVersion:
    """A run that has the model as its output, and a version that points at it."""
    tags = {**model.tags, "digest": digest}
    title = f"{model.name} {model.alias}".strip()
    run = client.create_run(
        experiment, run_name=title, tags={**tags, "kind": "model", "model": model.kind}
    ).info.run_id
    logged = client.create_logged_model(
        experiment, name=model.name, source_run_id=run, tags=tags, model_type=model.kind
    )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        _write(model, digest, card, target, logged.artifact_location, run, logged.model_id)
        client.log_model_artifacts(logged.model_id, str(target))
    client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
    client.finalize_logged_model(logged.model_id, "READY")
    now = int(time.time() * 1000)
    metrics = [
        Metric(key, value, now, 0, model_id=logged.model_id)
        for key, value in _metrics(model).items()
    ]
    client.log_batch(run, metrics=metrics)
    client.set_terminated(run)
    try:
        client.create_registered_model(model.name, description=_ABOUT[model.kind])
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    # a server finds the model by its id; a database has no server that would
    remote = str(client.tracking_uri).startswith("http")
    return client.create_model_version(
        model.name,
        f"models:/{logged.model_id}" if remote else logged.artifact_location,
        run_id=run,
        tags={**tags, "logged_model": logged.model_id},
        description=short,
        model_id=logged.model_id,
        # it is ready at once; waiting only says that it waits
        await_creation_for=0,
    )


_ABOUT = {
    GENERATOR: "Prompts of a task in, a LoRA adapter out (DeGAML-LLM's generator).",
    POLICY: "A state of adaptation in, a strategy to refine it with out (DeGAML-LLM's policy).",
    ADAPTER: "Where DeGAML-LLM's adaptation to this task ended.",
}


def _metrics(model: ModelFolder) -> dict[str, float]:
    """``accuracy/meta_test`` and the like: means over tasks, and the number of questions behind them."""
    found: dict[str, float] = {}
    for pool in dict.fromkeys(str(row["pool"]) for row in model.results):
        rows = [row for row in model.results if row["pool"] == pool]
        found[f"n/{pool}"] = float(sum(row["n"] for row in rows))
        for key in ("accuracy", "nll", "ece"):
            values = [row.get(key) for row in rows]
            numbers = [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
            if len(numbers) == len(rows):
                found[f"{key}/{pool}"] = math.fsum(numbers) / len(rows)
    return found


def _write(
    model: ModelFolder,
    digest: str,
    card: str,
    target: Path,
    location: str,
    run: str,
    model_id: str,
) -> None:
    """MLflow's model folder: ``MLmodel``, what it needs, the card, and our files below ``data``."""
    data = target.parent / "content"
    shutil.copytree(model.path, data / CONTENT)
    about = {
        "format": FORMAT,
        "kind": model.kind,
        "name": model.name,
        "base_model": model.base_model,
        "base_model_fingerprint": model.base_model_fingerprint,
        "seed": model.seed,
        "profile": model.profile,
        "variant": model.variant,
        "task": model.task,
        "method": model.method,
        "digest": digest,
        "settings": _settings(model),
    }
    (data / ABOUT_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    signature, example = serving.interface(model.kind)
    with _quiet_mlflow():
        mlflow.pyfunc.save_model(
            path=str(target),
            loader_module=serving.__name__,
            data_path=str(data),
            mlflow_model=Model(
                artifact_path=location, model_uuid=model_id, model_id=model_id, run_id=run
            ),
            signature=signature,
            input_example=example,
            pip_requirements=[f"degaml-kedro=={__version__}"],
            metadata={key: value for key, value in about.items() if key != "settings"},
        )
    (target / _CARD).write_text(card, encoding="utf-8")


@contextmanager
def _quiet_mlflow() -> Iterator[None]:
    """Without what MLflow says of every model it saves, and pandas of MLflow."""
    told = logging.getLogger("mlflow.pyfunc")
    before = told.level
    told.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Operation with range is deprecated")
            yield
    finally:
        told.setLevel(before)


def _settings(model: ModelFolder) -> dict[str, Any]:
    """What using the model needs to know of the run's parameters."""
    given = model.parameters
    generator, policy = given.get("generator") or {}, given.get("policy") or {}
    wanted: dict[str, Any] = {
        "model": given.get("model"),
        "encoder": generator.get("encoder"),
        "prompt": given.get("prompt"),
        "scoring": _scoring(model) if model.kind == ADAPTER else given.get("scoring"),
    }
    if model.kind == POLICY:
        wanted["policy"] = policy or None
    return {name: value for name, value in wanted.items() if value is not None}


def _scoring(model: ModelFolder) -> dict[str, Any] | None:
    """How the model's task is scored; None where the record does not say, or says it in another version's way."""
    tasks, scoring = (model.parameters.get(name) for name in ("tasks", "scoring"))
    if not isinstance(tasks, Mapping) or tasks.get(model.task) is None or scoring is None:
        return None
    try:
        return task_scoring(scoring, tasks[model.task]).model_dump(mode="json")
    # what is no mapping cannot be merged
    except (ValidationError, TypeError) as error:
        first = str(error).splitlines()[-1 if isinstance(error, TypeError) else 0]
        logger.warning(
            "%s: the run's record sets the scoring of '%s' in a way that this version does not read (%s), and it is "
            "left out; serving this model will need it, so register it from a run of this version for that",
            model.path,
            model.task,
            first,
        )
        return None
