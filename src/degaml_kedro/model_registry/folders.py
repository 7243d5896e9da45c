"""What a run's data folder holds that can be registered, and what is known of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from degaml_kedro.adapters.adapter import CONFIG_FILE as ADAPTER_FILE
from degaml_kedro.errors import DegamlError
from degaml_kedro.generator.generator import CONFIG_FILE as GENERATOR_FILE
from degaml_kedro.model_registry.serving import (
    ADAPTER,
    GENERATOR,
    POLICY,
)
from degaml_kedro.policy.fallback import FALLBACK_FILE, with_fallback

GENERATOR_NAME = "degaml-generator"
POLICY_NAME = "degaml-policy"
ADAPTER_NAME = "degaml-adapter-"

_MODELS, _OUTPUT, _REPORTING = "06_models", "07_model_output", "08_reporting"
_GROUP = "without_"
# what a generator's file says of how it came to be, but for long lists
_MADE_BY = ("training", "decoder", "parameter_count", "version")
# formats that run code when they are read
_RUNS_CODE = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz", ".dill")


class RegistryError(DegamlError):
    """A model that cannot be registered or loaded."""


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
        made_by: settings that the model's own files record.
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
    made_by: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The registered model's."""
        if self.kind == ADAPTER:
            return f"{ADAPTER_NAME}{self.task}"
        return GENERATOR_NAME if self.kind == GENERATOR else POLICY_NAME

    @property
    def alias(self) -> str:
        """What finds the version by where it comes from: ``comparison-999-mse``."""
        extra = self.variant or (self.method if self.kind == ADAPTER else "")
        parts = [self.profile, "" if self.seed is None else str(self.seed), extra]
        return re.sub(r"[^\w-]", "_", "-".join(part for part in parts if part))

    @property
    def tags(self) -> dict[str, str]:
        """What to search for."""
        tags = {
            "kind": self.kind,
            "base_model": self.base_model,
            "base_model_fingerprint": self.base_model_fingerprint,
            "profile": self.profile,
            "seed": "" if self.seed is None else str(self.seed),
            "variant": self.variant,
            "task": self.task,
            "method": self.method,
        }
        return {key: value for key, value in tags.items() if value}


def find_models(folder: Path, parameters: Mapping[str, Any] | None = None) -> list[ModelFolder]:
    """The models of a run's data folder, or of the folders of several seeds.

    Generators and policies of groups that leave tasks out are for measuring alone, and not among them.

    Args:
        folder: one with ``06_models`` in it, or with such folders.
        parameters: the run's; otherwise those that ``08_reporting/run.json`` holds.

    Raises:
        RegistryError: there is no such folder.
        DegamlError: a model's folder is damaged.
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
    record = _json(folder / _REPORTING / "run.json") or _json(folder / _REPORTING / "results.json")
    settings = parameters or record.get("parameters") or {}
    if not isinstance(settings, Mapping):
        raise RegistryError(
            f"{folder / _REPORTING}: the run's record has 'parameters' that are no settings by name; delete "
            f"run.json there, then `kedro run --only-missing-outputs` makes it again"
        )
    results = _results(folder / _OUTPUT)
    models = folder / _MODELS
    found: list[ModelFolder] = []
    about = ModelFolder(
        models,
        GENERATOR,
        "",
        "",
        seed=settings.get("seed", record.get("seed")),
        profile=str(settings.get("profile", record.get("profile", ""))),
        parameters=settings,
    )
    for path in _folders(models, ".generator"):
        content = _json(path / GENERATOR_FILE)
        identity, learned = content.get("identity", {}), content.get("about", {})
        variant = path.name.removesuffix(".generator")
        method = _generated_by(variant, settings)
        found.append(
            replace(
                about,
                path=path,
                base_model=str(identity.get("base_model", "")),
                base_model_fingerprint=str(identity.get("base_model_fingerprint", "")),
                seed=learned.get("seed", about.seed),
                variant=variant,
                tasks=tuple(learned.get("tasks", ())),
                made_by={name: learned[name] for name in _MADE_BY if name in learned},
                results=tuple(row for row in results if row["method"] == method),
            )
        )
    # what refines a generator's adapters serves the same base model
    serving = next(iter(found), None)
    policies = [models / "policy"] if (models / "policy" / ADAPTER_FILE).is_file() else []
    adapted = [
        path
        for path in _folders(models, ".degaml.state")
        if path.name.removesuffix(".degaml.state").count(".") == 0
    ]
    learned = _json(models / FALLBACK_FILE) or None
    searched = {**settings, "policy": with_fallback(settings.get("policy") or {}, learned)}
    for path in (*policies, *adapted):
        task = path.name.split(".")[0] if path in adapted else ""
        found.append(
            replace(
                about,
                path=path,
                parameters=settings if task else searched,
                kind=ADAPTER if task else POLICY,
                base_model=serving.base_model if serving else "",
                base_model_fingerprint=serving.base_model_fingerprint if serving else "",
                seed=serving.seed if serving else about.seed,
                task=task,
                method="degaml",
                tasks=serving.tasks if serving else (),
                results=tuple(
                    row
                    for row in results
                    if row["method"] == "degaml" and (not task or row["task"] == task)
                ),
            )
        )
    return found


def _folders(models: Path, ending: str) -> list[Path]:
    return sorted(
        path
        for path in models.glob(f"*{ending}")
        if path.is_dir() and not path.name.startswith((_GROUP, "."))
    )


def _generated_by(variant: str, parameters: Mapping[str, Any]) -> str:
    """The method that scores a variant's adapters as they are."""
    variants = list((parameters.get("generator") or {}).get("variants") or ())
    if not variants or variant == variants[0]:
        return "generalization_only"
    return f"generalization_only_{variant}"


def _results(folder: Path) -> list[Mapping[str, Any]]:
    """What was measured of the models of all tasks; a group that leaves tasks out has models of its own."""
    found: list[Mapping[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith(_GROUP):
            continue
        content = _json(path)
        complete = {"task", "method", "pool", "accuracy", "n"} <= set(content)
        if complete and content["pool"] != "left_out":
            found.append(content)
    return found


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
    # 2: descriptions have had the prompt's and the scoring's settings since
    digest = hashlib.sha256(f"{model.kind} 2\0".encode())
    files = sorted(path for path in model.path.rglob("*") if path.is_file())
    if not files:
        raise RegistryError(f"{model.path} holds no model; name the folder that a run wrote")
    for path in files:
        check_file(path, model.path)
        with path.open("rb") as stream:
            own = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.relative_to(model.path).as_posix()}\0{own}\0".encode())
    return digest.hexdigest()


def check_file(path: Path, folder: Path) -> None:
    """Refuse what a model has no use for.

    Args:
        path: a file or folder in the model's.
        folder: the model's.

    Raises:
        RegistryError: it is a link, or of a format that runs code when it is read.
    """
    inside = path.relative_to(folder).as_posix()
    if path.is_symlink():
        raise RegistryError(f"{folder}: '{inside}' is a link; a model holds plain files")
    if path.suffix.lower() in _RUNS_CODE:
        raise RegistryError(
            f"{folder}: '{inside}' is of a format that can run code when it is read; models here hold safetensors "
            f"and JSON alone"
        )
