"""Generators, policies and adapted states as registered MLflow models, and the way back to our own objects.

A model is a folder of our own files (safetensors, PEFT folders, JSON) with MLflow's description around it. There is no
pickle and no code in it: MLflow's ``loader_module`` names the module ``serving``. Loading reads the folder as untrusted
input: no path leads out of it, and nothing but safetensors and JSON is opened.

Registered names are ``degaml-generator``, ``degaml-policy`` and ``degaml-adapter-<task>``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import mlflow
import numpy as np
import pandas as pd
import yaml
from mlflow.entities import LoggedModelOutput, Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path

from degaml_kedro import __version__
from degaml_kedro.adapters.adapter import CONFIG_FILE as ADAPTER_FILE
from degaml_kedro.adapters.adapter import Adapter, load_peft_folder
from degaml_kedro.generator.generator import CONFIG_FILE as GENERATOR_FILE
from degaml_kedro.generator.generator import Generator
from degaml_kedro.generator.generator import load_generator as read_generator
from degaml_kedro.policy.fallback import FALLBACK_FILE, with_fallback
from degaml_kedro.strategies.state import AdaptedState
from degaml_kedro.tracking import serving
from degaml_kedro.tracking.server import (
    Place,
    check_server,
    experiment_id,
    flat_texts,
    masked,
    translate_errors,
)
from degaml_kedro.tracking.serving import (
    ABOUT_FILE,
    ADAPTER,
    CONTENT,
    FORMAT,
    GENERATOR,
    POLICY,
    RegistryError,
)

_MODELS, _OUTPUT, _REPORTING = "06_models", "07_model_output", "08_reporting"
_GROUP = "without_"
_CARD = "README.md"
# a database's column is no wider
_DESCRIPTION = 5000
# formats that run code when they are read
_RUNS_CODE = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz", ".dill")
# the second is where the module was until 2026-11-27
_LOADERS = (serving.__name__, "degaml_kedro.model_registry.serving")


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk, and what is known of it.

    Attributes:
        path: a generator's folder, an adapted state's, or a PEFT folder.
        kind: ``generator``, ``policy`` or ``adapter``.
        base_model: the base model that it serves, by name.
        base_model_fingerprint: of that model's weights and tokenizer; empty where nobody knows.
        seed: of the run.
        profile: of the run.
        variant: a generator's, else empty.
        task: an adapter's, else empty.
        method: an adapter's, else empty.
        tasks: the meta-train tasks that it comes from.
        parameters: all of the run's.
        results: its method's measures, as the run stored them.
    """

    path: Path
    kind: str
    base_model: str
    base_model_fingerprint: str
    seed: int | None = None
    profile: str = ""
    variant: str = ""
    task: str = ""
    method: str = ""
    tasks: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The registered model's."""
        return f"degaml-adapter-{self.task}" if self.kind == ADAPTER else f"degaml-{self.kind}"

    @property
    def alias(self) -> str:
        """What finds the version by where it comes from: ``comparison-999-mse``."""
        extra = self.variant or (self.method if self.kind == ADAPTER else "")
        parts = [self.profile, "" if self.seed is None else str(self.seed), extra]
        return re.sub(r"[^\w-]", "_", "-".join(part for part in parts if part))

    @property
    def about(self) -> dict[str, Any]:
        """What to search for, and what the model's description says."""
        names = ("kind", "base_model", "base_model_fingerprint", "profile", "seed")
        return {name: getattr(self, name) for name in (*names, "variant", "task", "method")}


# --- what a run left ------------------------------------------------------------------------------


def find_models(folder: Path, parameters: Mapping[str, Any] | None = None) -> list[ModelFolder]:
    """The models of a run's data folder, or of the folders of several seeds.

    Generators and policies of groups that leave tasks out are for measuring alone, and not among them.

    Args:
        folder: one with ``06_models`` in it, or with such folders.
        parameters: the run's; otherwise those that ``08_reporting/run.json`` holds.

    Raises:
        RegistryError: there is no such folder, or a file of it is damaged.
    """
    if (folder / _MODELS).is_dir():
        return _models_of(folder, parameters)
    runs = sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (path / _MODELS).is_dir() and (path / _REPORTING).is_dir()
    )
    if not runs:
        raise RegistryError(
            f"{folder} is no run's data folder: it has no {_MODELS}, and holds no folders that have; name the one "
            f"that globals.yml calls `data`, or the one above several seeds"
        )
    return [model for run in runs for model in _models_of(run, None)]


def _models_of(folder: Path, parameters: Mapping[str, Any] | None) -> list[ModelFolder]:
    models = folder / _MODELS
    record = _json(folder / _REPORTING / "run.json") or _json(folder / _REPORTING / "results.json")
    settings = parameters or record.get("parameters") or {}
    if not isinstance(settings, Mapping):
        raise RegistryError(
            f"{folder / _REPORTING}: the run's record has 'parameters' that are no settings by name; delete "
            f"run.json there, then `kedro run --only-missing-outputs` makes it again"
        )
    results = _results(folder / _OUTPUT)
    run = ModelFolder(
        models,
        GENERATOR,
        "",
        "",
        seed=settings.get("seed", record.get("seed")),
        profile=str(settings.get("profile", record.get("profile", ""))),
        parameters=settings,
    )
    found = [_generator(path, run, results) for path in _folders(models, ".generator")]
    # what refines a generator's adapters serves the same base model
    refining = replace(next(iter(found), run), variant="", method="degaml")
    own = tuple(row for row in results if row["method"] == "degaml")
    if (models / "policy" / ADAPTER_FILE).is_file():
        learned = _json(models / FALLBACK_FILE) or None
        searched = {**settings, "policy": with_fallback(settings.get("policy") or {}, learned)}
        found.append(
            replace(refining, path=models / "policy", kind=POLICY, parameters=searched, results=own)
        )
    for path in _folders(models, ".degaml.state"):
        task = path.name.removesuffix(".degaml.state")
        if "." not in task:
            measured = tuple(row for row in own if row["task"] == task)
            found.append(replace(refining, path=path, kind=ADAPTER, task=task, results=measured))
    return found


def _generator(path: Path, run: ModelFolder, results: Sequence[Mapping[str, Any]]) -> ModelFolder:
    content = _json(path / GENERATOR_FILE)
    identity, learned = content.get("identity", {}), content.get("about", {})
    variant = path.name.removesuffix(".generator")
    # the method that scores a variant's adapters as they are
    variants = list((run.parameters.get("generator") or {}).get("variants") or ())
    first = not variants or variant == variants[0]
    method = "generalization_only" if first else f"generalization_only_{variant}"
    return replace(
        run,
        path=path,
        base_model=str(identity.get("base_model", "")),
        base_model_fingerprint=str(identity.get("base_model_fingerprint", "")),
        seed=learned.get("seed", run.seed),
        variant=variant,
        tasks=tuple(learned.get("tasks", ())),
        results=tuple(row for row in results if row["method"] == method),
    )


def _folders(models: Path, ending: str) -> list[Path]:
    return sorted(
        path
        for path in models.glob(f"*{ending}")
        if path.is_dir() and not path.name.startswith((_GROUP, "."))
    )


def _results(folder: Path) -> list[Mapping[str, Any]]:
    """What was measured of the models of all tasks; a group that leaves tasks out has models of its own."""
    paths = sorted(path for path in folder.glob("*.json") if not path.name.startswith(_GROUP))
    rows = [_json(path) for path in paths]
    needed = {"task", "method", "pool", "accuracy", "n"}
    return [row for row in rows if needed <= set(row) and row["pool"] != "left_out"]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RegistryError(
            f"{path} cannot be read ({error}); delete it, then `kedro run --only-missing-outputs` makes it again"
        ) from error
    return content if isinstance(content, dict) else {}


def content_digest(model: ModelFolder) -> str:
    """Of the model's files: their names and their bytes.

    Raises:
        RegistryError: there are no files, or one of them would run code when it is read.
    """
    # changes with what is written around the files: 3 since the module that serves them has this place
    digest = hashlib.sha256(f"{model.kind} 3\0".encode())
    files = sorted(path for path in model.path.rglob("*") if path.is_file())
    if not files:
        raise RegistryError(f"{model.path} holds no model; name the folder that a run wrote")
    for path in files:
        _check_file(path, model.path)
        with path.open("rb") as stream:
            own = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.relative_to(model.path).as_posix()}\0{own}\0".encode())
    return digest.hexdigest()


def _check_file(path: Path, folder: Path) -> None:
    """Refuse a link, and a format that runs code when it is read."""
    inside = path.relative_to(folder).as_posix()
    if path.is_symlink():
        raise RegistryError(f"{folder}: '{inside}' is a link; a model holds plain files")
    if path.suffix.lower() in _RUNS_CODE:
        raise RegistryError(
            f"{folder}: '{inside}' is of a format that can run code when it is read; models here hold safetensors "
            f"and JSON alone"
        )


# --- registering ----------------------------------------------------------------------------------


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
        RegistryError: a model cannot be read.
    """
    found = find_models(models, parameters) if isinstance(models, Path) else list(models)
    if not found:
        return []
    with translate_errors(tracking_uri):
        check_server(tracking_uri)
        client = MlflowClient(tracking_uri)
        place = experiment_id(client, Place(tracking_uri, experiment, artifact_location))
        return [_register(client, place, model) for model in found]


def _register(client: MlflowClient, experiment: str, model: ModelFolder) -> str:
    digest = content_digest(model)
    card = card_text(model, digest)
    asked = f"name = '{model.name}' and tags.digest = '{digest}'"
    if found := client.search_model_versions(asked, max_results=1):
        # a search leaves aliases out
        version = client.get_model_version(model.name, found[0].version)
    else:
        version = _new_version(client, experiment, model, digest)
    if version.description != card[:_DESCRIPTION]:
        client.update_model_version(model.name, version.version, card[:_DESCRIPTION])
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / _CARD
            file.write_text(card, encoding="utf-8")
            client.log_model_artifact(version.tags["logged_model"], str(file))
    if model.alias and model.alias not in version.aliases:
        client.set_registered_model_alias(model.name, model.alias, version.version)
    return f"models:/{model.name}/{version.version}"


def _new_version(
    client: MlflowClient, experiment: str, model: ModelFolder, digest: str
) -> ModelVersion:
    """A run that has the model as its output, and a version that points at it.

    By a client: ``mlflow.pyfunc.log_model`` knows one server and one active run, those that MLflow is set to.
    """
    tags = {name: str(value) for name, value in model.about.items() if value not in ("", None)}
    tags["digest"] = digest
    run = client.create_run(
        experiment,
        run_name=f"{model.name} {model.alias}".strip(),
        tags={**tags, "kind": "model", "model": model.kind},
    ).info.run_id
    logged = client.create_logged_model(
        experiment, name=model.name, source_run_id=run, tags=tags, model_type=model.kind
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder, data = Path(temporary) / "model", Path(temporary) / "content"
        shutil.copytree(model.path, data / CONTENT)
        about = {"format": FORMAT, "name": model.name, **model.about, "digest": digest}
        text = json.dumps({**about, "settings": _settings(model)}, indent=1) + "\n"
        (data / ABOUT_FILE).write_text(text, encoding="utf-8")
        with warnings.catch_warnings():
            # MLflow's advice to give examples, and on columns of integers
            warnings.simplefilter("ignore", UserWarning)
            mlflow.pyfunc.save_model(
                path=str(folder),
                loader_module=serving.__name__,
                data_path=str(data),
                mlflow_model=Model(
                    artifact_path=logged.artifact_location,
                    model_uuid=logged.model_id,
                    model_id=logged.model_id,
                    run_id=run,
                ),
                signature=serving.signature(model.kind),
                pip_requirements=[f"degaml-kedro=={__version__}"],
                metadata=about,
            )
        client.log_model_artifacts(logged.model_id, str(folder))
    client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
    client.finalize_logged_model(logged.model_id, "READY")
    part = GENERATOR if model.kind == GENERATOR else POLICY
    client.log_batch(
        run,
        _metrics(model, logged.model_id),
        [Param(*one) for one in flat_texts({part: model.parameters.get(part)})],
    )
    client.set_terminated(run)
    try:
        client.create_registered_model(model.name, description=_WHAT[model.kind])
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # a server finds the model by its id; a database has no server that would
    remote = str(client.tracking_uri).startswith("http")
    return client.create_model_version(
        model.name,
        f"models:/{logged.model_id}" if remote else logged.artifact_location,
        run_id=run,
        tags={**tags, "logged_model": logged.model_id},
        model_id=logged.model_id,
        # it is ready at once; waiting only says that it waits
        await_creation_for=0,
    )


def _metrics(model: ModelFolder, model_id: str) -> list[Metric]:
    """``accuracy/meta_test`` and the like: means over tasks, and the number of questions behind them."""
    if not model.results:
        return []
    keys = ["accuracy", "nll", "ece"]
    rows = pd.DataFrame(model.results).set_index("pool").reindex(columns=[*keys, "n"])
    pools = (
        rows.apply(pd.to_numeric, errors="coerce")
        .replace([np.inf, -np.inf], np.nan)
        .groupby(level="pool")
    )
    # a mean that misses a task is none
    means = pools[keys].mean().where(pools[keys].count().eq(pools.size(), axis=0))
    now = int(time.time() * 1000)
    return [
        Metric(f"{key}/{pool}", float(value), now, 0, model_id=model_id)
        for pool, row in means.assign(n=pools["n"].sum()).iterrows()
        for key, value in row.dropna().items()
    ]


def _settings(model: ModelFolder) -> dict[str, Any]:
    """What using the model needs to know of the run's parameters."""
    given = model.parameters
    wanted: dict[str, Any] = {
        "model": given.get("model"),
        "encoder": (given.get("generator") or {}).get("encoder"),
        "prompt": given.get("prompt"),
        "scoring": _scoring(model) if model.kind == ADAPTER else given.get("scoring"),
        "policy": given.get("policy") or None if model.kind == POLICY else None,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _scoring(model: ModelFolder) -> dict[str, Any] | None:
    """How the model's task is scored, as the profile and the task's own entry say; None where the record does not."""
    tasks, scoring = (model.parameters.get(name) for name in ("tasks", "scoring"))
    try:
        return {**scoring, **(tasks[model.task].get("scoring") or {})}  # type: ignore[dict-item, index]
    # not recorded, or in another version's way
    except (AttributeError, KeyError, TypeError):
        return None


# --- the card -------------------------------------------------------------------------------------

_WHAT = {
    GENERATOR: (
        "A generator of LoRA adapters (DeGAML-LLM): unlabelled prompts of a task in, one adapter of the base model "
        "out. No answer is read and no gradient is taken."
    ),
    POLICY: (
        "A policy of DeGAML-LLM: a LoRA adapter under which a language model writes the next strategy to refine an "
        "adapter with, as JSON, held to the grammar of the action space."
    ),
    ADAPTER: (
        "Where DeGAML-LLM's adaptation to one task ended: a generated LoRA adapter after the strategies that were "
        "chosen on the task's support examples. It may be several adapters with a vote, or have a steering vector, or "
        "support examples that stand in the prompt, which it holds as text."
    ),
}
_LIMITS = {
    GENERATOR: (
        "It fits this base model alone, and reads prompts through the encoder it was trained with. Tasks unlike "
        "those it was trained on get adapters that may be worse than none."
    ),
    POLICY: (
        "It was rewarded on the tasks above with adapters of its run's generator; with another generator nothing "
        "is known of it."
    ),
    ADAPTER: "It fits this base model and this task alone.",
}
_TEMPLATE = """# {name}

{what}

{facts}

## Results

{results}

## Use

```python
from degaml_kedro.tracking.registry import load_{kind}
{kind} = load_{kind}("models:/{name}/VERSION")
```

## Limits

{limits}

## License

These weights come from this project's code (Apache-2.0) and from the base model and data named above, whose own \
licenses hold for what is made from them: look there before you pass the weights on.
"""


def card_text(model: ModelFolder, digest: str) -> str:
    """The card, in Markdown: ``README.md`` in the model, and the version's description.

    Args:
        model: what is known of it.
        digest: of its files.
    """
    facts = {
        "base model": model.base_model or "not known",
        "its fingerprint": model.base_model_fingerprint or "not known",
        "task": model.task,
        "method": model.method if model.kind == ADAPTER else "",
        "variant": model.variant,
        "meta-trained on": ", ".join(model.tasks),
        "profile": model.profile,
        "seed": "" if model.seed is None else str(model.seed),
        "files (SHA-256)": digest,
    }
    return _TEMPLATE.format(
        name=model.name,
        kind=model.kind,
        what=_WHAT[model.kind],
        facts="\n".join(f"- {name}: {value}" for name, value in facts.items() if value),
        results=_result_table(model),
        limits=_LIMITS[model.kind],
    )


def _result_table(model: ModelFolder) -> str:
    if not model.results:
        return "None were measured when this was written."
    rows = [
        f"On test questions, as the method `{model.results[0]['method']}`:",
        "",
        "| task | pool | accuracy | 95 % interval | n |",
        "|---|---|---|---|---|",
    ]
    for row in model.results:
        ends = [row.get(end) for end in ("accuracy_low", "accuracy_high")]
        known = all(isinstance(end, float) for end in ends)
        interval = f"{ends[0]:.3f} to {ends[1]:.3f}" if known else "not known"
        named = f"{row['task']} | {row['pool']} | {row['accuracy']:.3f}"
        rows.append(f"| {named} | {interval} | {row['n']} |")
    return "\n".join(rows)


# --- loading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A generator and the policy that refines its adapters, of one base model.

    Attributes:
        generator: the generator.
        policy: the policy's adapter.
        base_model: the name of the base model that both serve.
        base_model_fingerprint: of its weights and its tokenizer.
    """

    generator: Generator
    policy: Adapter
    base_model: str
    base_model_fingerprint: str


def load_generator(uri: str, tracking_uri: str | None = None) -> Generator:
    """Read a registered generator.

    Args:
        uri: ``models:/degaml-generator/1``, ``models:/degaml-generator@comparison-999-mse``,
            ``runs:/<run>/degaml-generator``, or a model's folder.
        tracking_uri: MLflow's; None for the one that MLflow is set to.

    Raises:
        RegistryError: there is no such model, it is of another kind, its folder is not one of ours, or it is damaged.
        TrackingError: MLflow's server or database cannot be used.
    """
    with _opened(uri, tracking_uri, GENERATOR) as (content, _):
        return read_generator(content)


def load_policy(uri: str, tracking_uri: str | None = None) -> Adapter:
    """Read a registered policy: the adapter under which the language model proposes strategies.

    Arguments and errors are those of :func:`load_generator`.
    """
    with _opened(uri, tracking_uri, POLICY) as (content, _):
        return load_peft_folder(content)


def load_adapter(uri: str, tracking_uri: str | None = None) -> AdaptedState:
    """Read a registered adapter: where adaptation to a task ended. A plain PEFT folder is a state of one member.

    Arguments and errors are those of :func:`load_generator`.
    """
    with _opened(uri, tracking_uri, ADAPTER) as (content, _):
        return serving.read_state(content)


def load_pair(generator_uri: str, policy_uri: str, tracking_uri: str | None = None) -> Pair:
    """Read a generator and a policy that belong together.

    Args:
        generator_uri: as for :func:`load_generator`.
        policy_uri: as for :func:`load_policy`.
        tracking_uri: MLflow's; None for the one that MLflow is set to.

    Raises:
        RegistryError: they serve different base models, one does not say which, or one cannot be loaded.
        TrackingError: MLflow's server or database cannot be used.
    """
    generator = load_generator(generator_uri, tracking_uri)
    identity = generator.identity
    with _opened(policy_uri, tracking_uri, POLICY) as (adapter, about):
        name, fingerprint = str(about["base_model"]), str(about["base_model_fingerprint"])
        if not fingerprint:
            raise RegistryError(
                f"{policy_uri} does not say which base model it serves; register it again from a run's folder that "
                f"holds its generator"
            )
        if fingerprint != identity.base_model_fingerprint:
            raise RegistryError(
                f"{generator_uri} makes adapters for {identity.base_model} (fingerprint "
                f"{identity.base_model_fingerprint}), and {policy_uri} refines those of {name} ({fingerprint}); "
                f"take a generator and a policy of one base model"
            )
        policy = load_peft_folder(adapter)
    return Pair(generator, policy, identity.base_model, identity.base_model_fingerprint)


def describe_model(uri: str, tracking_uri: str | None = None) -> Mapping[str, Any]:
    """What a registered model says of itself: its base model, its seed, and the settings that using it needs.

    Arguments and errors are those of :func:`load_generator`; the model may be of any kind.
    """
    with _opened(uri, tracking_uri, None) as (_, about):
        return about


@contextmanager
def _opened(
    uri: str, tracking_uri: str | None, kind: str | None
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """A model's own folder, fetched and checked, and its description."""
    # the tensors that were read may be the files themselves, which some systems then do not delete
    with tempfile.TemporaryDirectory(
        prefix="degaml-model-", ignore_cleanup_errors=True
    ) as temporary:
        data = _data_folder(_fetched(uri, tracking_uri, Path(temporary)), uri)
        about = serving.read_about(data, uri)
        if kind is not None and about["kind"] != kind:
            raise RegistryError(f"{uri} is a {about['kind']}, and a {kind} was asked for")
        try:
            yield data / CONTENT, about
        except RegistryError:
            raise
        # anybody may have written these files: what is not the shape of ours ends in one of these
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # the fix that our readers name is for a run's own folders
            reason = str(error).split(";")[0].replace(str(data), uri)
            raise RegistryError(
                f"{uri} cannot be read ({reason}); register it again from the run's folder"
            ) from error


def _fetched(uri: str, tracking_uri: str | None, temporary: Path) -> Path:
    """The model's folder on this machine, downloaded where it is on another."""
    if not uri.startswith(("models:", "runs:")):
        folder = Path(local_file_uri_to_path(uri))
        if not folder.is_dir():
            raise RegistryError(
                f"'{uri}' is no model: give models:/NAME/VERSION, models:/NAME@ALIAS, runs:/RUN/NAME, or a folder"
            )
        return folder
    server = tracking_uri or mlflow.get_tracking_uri()
    with translate_errors(server):
        check_server(server)
        try:
            location = _location(MlflowClient(server), uri)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise RegistryError(
                f"{uri} is not in {masked(server)} ({masked(str(error).splitlines()[0])}); `python -m "
                f"degaml_kedro.tracking FOLDER` registers what a run left in FOLDER"
            ) from error
        if urlparse(location).scheme in ("", "file"):
            return Path(local_file_uri_to_path(location))
        return Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=location, dst_path=str(temporary), tracking_uri=server
            )
        )


def _location(client: MlflowClient, uri: str) -> str:
    """Where a model's files are, by this client: MLflow's own download knows the one server that it is set to."""
    if uri.startswith("runs:"):
        run, _, name = uri.removeprefix("runs:").strip("/").partition("/")
        outputs = client.get_run(run).outputs
        for output in outputs.model_outputs if outputs else ():
            model = client.get_logged_model(output.model_id)
            if model.name == name:
                return str(model.artifact_location)
        raise RegistryError(f"{uri}: the run {run} has no model named '{name}'")
    named = get_model_name_and_version(client, uri)
    if len(named) == 1:
        return str(client.get_logged_model(named[0]).artifact_location)
    location = str(client.get_model_version_download_uri(*named))
    return _location(client, location) if location.startswith("models:/") else location


def _data_folder(folder: Path, uri: str) -> Path:
    """The folder of our files in a fetched model, after a look at everything in there.

    Args:
        folder: MLflow's model folder.
        uri: where it came from, for messages.

    Raises:
        RegistryError: ``MLmodel`` is missing, is no model of ours or leads out of the folder; there are links, or
            files that run code when they are read.
    """
    file = folder / "MLmodel"
    try:
        flavor = yaml.safe_load(file.read_text(encoding="utf-8"))["flavors"]["python_function"]
        data, loader = str(flavor["data"]), flavor["loader_module"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise RegistryError(
            f"{uri} is no model of this project: its MLmodel cannot be read ({error})"
        ) from error
    if loader not in _LOADERS or flavor.get("code"):
        raise RegistryError(
            f"{uri} is no model of this project: its MLmodel names the loader {loader!r}, ours is "
            f"{serving.__name__!r} and brings no code of its own"
        )
    path = PurePosixPath(data)
    if path.is_absolute() or ".." in path.parts or "\\" in data or ":" in data:
        raise RegistryError(
            f"{uri}: its MLmodel says that the data are in '{data}', outside the model's folder; it is not opened"
        )
    for one in sorted(folder.rglob("*")):
        _check_file(one, folder)
    return folder / path
