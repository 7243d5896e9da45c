"""Reading the configuration, and saying what is wrong with it: which key, which value, what is allowed."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

import yaml
from kedro.config import AbstractConfigLoader, OmegaConfigLoader
from kedro.framework.project import settings
from kedro.utils import find_kedro_project
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError
from pydantic import Tag, ValidationError
from pydantic_core import ErrorDetails

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.config.schema import Parameters, ProjectParameters
from degaml_kedro.policy.actions import ActionError, ActionSpace, ActionSpaceError
from degaml_kedro.tasks.episodes import with_drawn_tasks
from degaml_kedro.tasks.files import split_paths

_NOT_THERE = object()


class ConfigurationError(DegamlError):
    """A parameter file, or a parameter given on the command line, that cannot be used."""


class ProjectConfigLoader(OmegaConfigLoader):
    """Kedro's loader with seven differences.

    A parameter given on the command line changes that one key, also where the environment does not mention its
    group (Kedro replaces the whole group then). A source or decoder given with another ``kind`` is given whole: the
    keys of the kind before it are gone. Tasks that a pool draws from a distribution stand among ``tasks``
    (``tasks/episodes.py``). Those whose optional file is not there stand in no pool, but under ``absent``.
    ``${given:seed, 999}`` is ``${runtime_params:seed, 999}`` for ``globals.yml``, where Kedro does not allow that: runs
    of different seeds can so keep their data apart. ``${same_as:paper_0_5b, policy}`` is the group ``policy`` of that
    environment's ``parameters.yml``. And the last loader made is remembered: pipelines are generated from
    configuration, and Kedro asks for them without saying which environment it means.
    """

    current: ClassVar[ProjectConfigLoader | None] = None

    def __init__(self, conf_source: str | Path, env: str | None = None, **options: Any) -> None:
        """Point at a configuration folder.

        Args:
            conf_source: the folder that holds the environments.
            env: the environment laid over ``base``.
            **options: Kedro's own.

        Raises:
            ConfigurationError: there is no such environment.
        """
        folder = Path(conf_source)
        if env is not None and folder.is_dir() and not (folder / env).is_dir():
            known = sorted(path.name for path in folder.iterdir() if path.is_dir())
            raise ConfigurationError(
                f"there is no environment '{env}' in {folder}; {_suggestion(env, known)}"
            )
        given = options.get("runtime_params") or {}
        # Kedro registers a resolver once a process, and so the first loader's
        OmegaConf.register_new_resolver(
            "given", lambda name, default: given.get(name, default), replace=True
        )
        OmegaConf.register_new_resolver(
            "same_as",
            lambda env, group: OmegaConf.load(folder / env / "parameters.yml")[group],
            replace=True,
        )
        super().__init__(conf_source, env, **options)
        ProjectConfigLoader.current = self

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Read and merge the files of one kind."""
        config = super().__getitem__(key)
        return _without_absent(with_drawn_tasks(config)) if key == "parameters" else config

    def _merge_and_resolve(self, key: str, config_per_file: dict[Path, Any]) -> dict[str, Any]:
        given: Mapping[str, Any] = self.runtime_params or {}
        files: Any = None
        if key == "parameters" and config_per_file and _names_a_kind(given):
            # before what is given is merged into them
            files = OmegaConf.to_container(OmegaConf.merge(*config_per_file.values()), resolve=True)
        merge: Any = super()._merge_and_resolve
        merged: dict[str, Any] = merge(key, config_per_file)
        if files is not None:
            _drop_other_kinds(merged, files, given)
        return merged

    def _merge_configs(
        self, config: dict[str, Any], env_config: dict[str, Any], key: str, env_path: str
    ) -> Any:
        if key == "parameters":
            # both have the command line's parameters in them already; a group that the environment has from
            # there alone must not replace the base's
            given = self.runtime_params or {}
            env_config = {k: v for k, v in env_config.items() if v != given.get(k, _NOT_THERE)}
        return super()._merge_configs(config, env_config, key, env_path)


def _names_a_kind(given: Mapping[str, Any]) -> bool:
    return "kind" in given or any(
        _names_a_kind(one) for one in given.values() if isinstance(one, Mapping)
    )


def _drop_other_kinds(merged: dict[str, Any], files: Any, given: Mapping[str, Any]) -> None:
    """Leave of each source and decoder whose given kind is not the files' what was given alone."""
    for name, group in given.items():
        before = files.get(name)
        if not isinstance(group, Mapping) or not isinstance(before, Mapping):
            continue
        # kinds of these have keys of their own; a reward's have the same
        is_union = name in ("source", "decoder") and "kind" in group
        if is_union and group["kind"] != before.get("kind"):
            merged[name] = {key: merged[name][key] for key in group}
        else:
            _drop_other_kinds(merged[name], before, group)


def _without_absent(parameters: dict[str, Any]) -> dict[str, Any]:
    """Raw parameters whose pools name no task whose optional file is not there; anything odd is left for validation."""

    def is_absent(task: Any) -> bool:
        entry = parameters["tasks"].get(task) if isinstance(task, str) else None
        source = entry.get("source") if isinstance(entry, Mapping) else None
        if not isinstance(source, Mapping) or source.get("optional") is not True:
            return False
        return not any(path.exists() for path in split_paths(str(source.get("path"))).values())

    pools = {name: parameters.get(name) for name in ("meta_train", "development", "meta_test")}
    named = {name: pool for name, pool in pools.items() if isinstance(pool, list)}
    absent = [task for pool in named.values() for task in pool if is_absent(task)]
    if not absent:
        return parameters
    kept = {name: [task for task in pool if task not in absent] for name, pool in named.items()}
    return {**parameters, **kept, "absent": absent}


def current_loader() -> ProjectConfigLoader:
    """The session's loader; outside a session one for ``KEDRO_ENV``, or for Kedro's default environment."""
    if ProjectConfigLoader.current is not None:
        return ProjectConfigLoader.current
    project = find_kedro_project(Path.cwd()) or Path.cwd()
    return ProjectConfigLoader(
        project / settings.CONF_SOURCE, os.environ.get("KEDRO_ENV"), **settings.CONFIG_LOADER_ARGS
    )


def read_parameters(loader: AbstractConfigLoader) -> ProjectParameters:
    """Read and validate all parameters.

    Args:
        loader: knows the files, the environment and the parameters from the command line.

    Raises:
        ConfigurationError: one sentence per mistake, naming the key, its value and what is allowed.
    """
    try:
        raw = loader["parameters"]
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{error} Correct the file's syntax there.") from error
    except InterpolationResolutionError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigurationError(
            f"{error.full_key} cannot be filled in: {reason}; a value for it can be given with "
            f"--params NAME=VALUE"
        ) from error
    try:
        return ProjectParameters.model_validate(raw)
    except ValidationError as error:
        sentences = [_sentence(detail, raw) for detail in error.errors()]
        raise ConfigurationError("\n".join(sentences)) from None


def check_action_space(parameters: ProjectParameters) -> None:
    """Check ``policy.families`` against the families that there are, where a method needs them.

    Args:
        parameters: of the configuration.

    Raises:
        ConfigurationError: a family or field does not exist, bounds cannot be, or nothing can be proposed; it names the
            key.
        FamilyError: a family of an installed package cannot be registered.
    """
    if parameters.policy is None or not parameters.adapted_methods:
        return
    try:
        space = ActionSpace.of(parameters.policy.families)
        if not space.proposed:
            raise ActionSpaceError(
                f"policy.families enables {', '.join(space.fields)} alone, which puts together what others made; "
                f"enable one of these, too"
            )
        for action in space.pooling:
            space.parse(action.text)
    except (ActionSpaceError, ActionError) as error:
        raise ConfigurationError(str(error)) from None


def _sentence(detail: ErrorDetails, raw: Any) -> str:
    path = _data_path(detail["loc"], raw)
    name = ".".join(map(str, path))
    context = detail.get("ctx", {})
    if detail["type"] == "extra_forbidden":
        group = ".".join(map(str, path[:-1])) or "the parameters"
        known = list(_model_at(detail["loc"][:-1]).model_fields)
        return f"unknown key '{path[-1]}' in {group}; {_suggestion(str(path[-1]), known)}"
    if detail["type"] == "missing":
        return f"{name} is missing; add it"
    if detail["type"] == "union_tag_invalid":
        return f"{name}.kind is '{context['tag']}'; use one of {context['expected_tags']}"
    if detail["type"] == "union_tag_not_found":
        return f"{name}.kind is missing; add it"
    if detail["type"] == "value_error":
        return f"{name}: {context['error']}" if path else str(context["error"])
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{name} is {detail['input']!r}: {message}"


def _suggestion(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"there are {', '.join(known)}"


def _data_path(location: Sequence[str | int], raw: Any) -> list[str | int]:
    """The keys as they stand in the file: without the names that pydantic adds for a union's members."""
    path: list[str | int] = []
    node = raw
    for index, key in enumerate(location):
        inside = isinstance(node, Mapping) and key in node
        if inside or (isinstance(node, Sequence) and isinstance(key, int) and key < len(node)):
            path.append(key)
            node = node[key]
        elif index == len(location) - 1:
            path.append(key)
    return path


def _model_at(location: Sequence[str | int]) -> type[Parameters]:
    """The parameter group that a location leads to."""
    model = reduce(_annotation_of, location, ProjectParameters)
    (member,) = _members(model)
    return member  # type: ignore[no-any-return]


def _annotation_of(annotation: Any, key: str | int) -> Any:
    members = _members(annotation)
    if len(members) > 1:
        return next(member for member in members if _tag(member) == key)
    (member,) = members
    if get_origin(member) is dict:
        return get_args(member)[1]
    if get_origin(member) is tuple:
        return get_args(member)[0]
    return member.model_fields[key].annotation


def _tag(member: Any) -> str:
    """What pydantic calls a member of a union: a tag of its own, or the value of its key ``kind``."""
    if get_origin(member) is Annotated:
        return str(next(mark.tag for mark in get_args(member) if isinstance(mark, Tag)))
    return str(get_args(member.model_fields["kind"].annotation)[0])


def _members(annotation: Any) -> list[Any]:
    """What a union may be, None left out; anything else is its own only member."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        return [member for member in get_args(annotation) if member is not type(None)]
    return [annotation]
