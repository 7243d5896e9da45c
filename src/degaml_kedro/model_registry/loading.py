"""Registered models by MLflow's URI, read as what anybody may have put there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import mlflow
import yaml
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from degaml_kedro.adapters.adapter import Adapter, load_peft_folder
from degaml_kedro.generator.generator import Generator
from degaml_kedro.generator.generator import load_generator as read_generator
from degaml_kedro.mlflow_server import knock, masked, speaking
from degaml_kedro.model_registry import serving
from degaml_kedro.model_registry.folders import (
    RegistryError,
    check_file,
)
from degaml_kedro.model_registry.serving import (
    ADAPTER,
    CONTENT,
    GENERATOR,
    POLICY,
)
from degaml_kedro.strategies.state import AdaptedState


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
        RegistryError: there is no such model, it is of another kind, or its folder is not one of ours.
        GeneratorError: its files are damaged.
        TrackingError: MLflow's server or database cannot be used.
    """
    with _opened(uri, tracking_uri, GENERATOR) as (content, _):
        return read_generator(content)


def load_policy(uri: str, tracking_uri: str | None = None) -> Adapter:
    """Read a registered policy: the adapter under which the language model proposes strategies.

    Args:
        uri: ``models:/degaml-policy/1``, or any other form that :func:`load_generator` takes.
        tracking_uri: MLflow's; None for the one that MLflow is set to.

    Raises:
        RegistryError: there is no such model, it is of another kind, or its folder is not one of ours.
        AdapterError: its files are damaged.
        TrackingError: MLflow's server or database cannot be used.
    """
    with _opened(uri, tracking_uri, POLICY) as (content, _):
        return load_peft_folder(content)


def load_adapter(uri: str, tracking_uri: str | None = None) -> AdaptedState:
    """Read a registered adapter: where adaptation to a task ended.

    Args:
        uri: ``models:/degaml-adapter-TASK/1``, or any other form that :func:`load_generator` takes.
        tracking_uri: MLflow's; None for the one that MLflow is set to.

    Returns:
        The state; a plain PEFT folder comes as a state of one member.

    Raises:
        RegistryError: there is no such model, it is of another kind, or its folder is not one of ours.
        StateError: its files are damaged.
        AdapterError: a plain PEFT folder's files are.
        TrackingError: MLflow's server or database cannot be used.
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
        RegistryError: they serve different base models, or one does not say which.
        DegamlError: as for both of them alone.
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

    Args:
        uri: as for :func:`load_generator`, of a model of any kind.
        tracking_uri: MLflow's; None for the one that MLflow is set to.

    Raises:
        RegistryError: there is no such model, or its folder is not one of ours.
        TrackingError: MLflow's server or database cannot be used.
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
        folder = _fetched(uri, tracking_uri, Path(temporary))
        data = data_folder(folder, uri)
        about = serving.read_about(data, uri)
        if kind is not None and about["kind"] != kind:
            raise RegistryError(f"{uri} is a {about['kind']}, and a {kind} was asked for")
        try:
            yield data / CONTENT, about
        except RegistryError:
            raise
        # anybody may have written these files: what is not the shape of ours ends in one of these
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # the way out that our readers name is for a run's own folders
            reason = str(error).split(";")[0].replace(str(data), uri)
            raise RegistryError(
                f"{uri} cannot be read ({reason}); register it again from the run's folder"
            ) from error


def _fetched(uri: str, tracking_uri: str | None, temporary: Path) -> Path:
    if not uri.startswith(("models:", "runs:")):
        folder = _local(uri)
        if not folder.is_dir():
            raise RegistryError(
                f"'{uri}' is no model: give models:/NAME/VERSION, models:/NAME@ALIAS, runs:/RUN/NAME, or a folder"
            )
        return folder
    server = tracking_uri or mlflow.get_tracking_uri()
    with speaking(server):
        knock(server)
        client = MlflowClient(server)
        try:
            location = _location(client, uri)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise RegistryError(
                f"{uri} is not in {masked(server)} ({masked(str(error).splitlines()[0])}); `python -m "
                f"degaml_kedro.comparison_tracking FOLDER` registers what a run left in FOLDER"
            ) from error
        if urlparse(location).scheme in ("", "file"):
            return _local(location)
        return Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=location, dst_path=str(temporary), tracking_uri=server
            )
        )


def _local(uri: str) -> Path:
    """The path that a file's URI or a plain path stands for."""
    parts = urlparse(uri)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else Path(uri)


def _location(client: MlflowClient, uri: str) -> str:
    """Where a model's files are, by a client of its own: MLflow's resolver only knows the server it is set to."""
    scheme, _, rest = uri.partition(":")
    name, _, version = rest.lstrip("/").rstrip("/").partition("/")
    if scheme == "runs":
        run = client.get_run(name)
        outputs = run.outputs.model_outputs if run.outputs else []
        for output in outputs:
            model = client.get_logged_model(output.model_id)
            if model.name == version:
                return str(model.artifact_location)
        raise RegistryError(f"{uri}: the run {name} has no model named '{version}'")
    if "@" in name:
        name, alias = name.split("@", 1)
        version = str(client.get_model_version_by_alias(name, alias).version)
    elif not version:
        return str(client.get_logged_model(name).artifact_location)
    elif version == "latest":
        found = client.search_model_versions(f"name = '{name}'")
        if not found:
            raise RegistryError(f"{uri}: there is no registered model '{name}'")
        version = str(max(int(one.version) for one in found))
    location = str(client.get_model_version_download_uri(name, version))
    if location.startswith("models:/"):
        return _location(client, location)
    return location


def data_folder(folder: Path, uri: str) -> Path:
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
    if loader != serving.__name__ or flavor.get("code"):
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
        check_file(one, folder)
    return folder / path
