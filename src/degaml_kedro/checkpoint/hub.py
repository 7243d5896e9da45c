"""A trained pair by its source: the package, a folder, a run's data, MLflow, or the Hugging Face hub.

Nothing here needs a Kedro session or project; MLflow and the hub's client are imported where they are asked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from degaml_kedro.adapters.adapter import load_peft_folder
from degaml_kedro.checkpoint.folder import (
    PAIR_FILE,
    PAIR_FILES,
    PairSettings,
    TrainedPair,
    first_mistake,
    read_pair,
)
from degaml_kedro.checkpoint.layout import CARD_FILE, CheckpointError
from degaml_kedro.generator.examples import ExampleGenerator, load_example_generator
from degaml_kedro.generator.generator import load_generator
from degaml_kedro.policy.fallback import FALLBACK_FILE, with_fallback

SHIPPED = Path(__file__).parents[1] / "shipped" / "pair"

_MODELS, _REPORTING = "06_models", "08_reporting"
_HUB = re.compile(
    r"^(?P<marked>hf://)?(?P<id>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w./-]*))?$"
)
_FORMS = (
    "a folder that `python -m degaml_kedro.checkpoint.shipping` wrote; a run's data folder (with 06_models in it); "
    "models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN/NAME of MLflow; "
    "OWNER/NAME or hf://OWNER/NAME[@REVISION] of the Hugging Face hub; nothing, for the pair that comes with the "
    "package"
)
_OF_THE_PACKAGE = "the pair that comes with the package"
_FINISH = (
    "name a run with the method degaml, such as that of `make run`, or let this one finish with `kedro run "
    "--only-missing-outputs`"
)


def load_trained_pair(
    source: str | Path | None = None,
    *,
    revision: str | None = None,
    tracking_uri: str | None = None,
) -> TrainedPair:
    """Read a pair.

    Args:
        source: None: the pair that comes with the package; a pair's folder; a Kedro run's data folder; MLflow's
            ``models:/…`` or ``runs:/…``; ``owner/name`` or ``hf://owner/name[@revision]`` of the
            hub. A folder that is there comes before a hub id.
        revision: the hub's: a branch, a tag or a commit. A commit alone stays what it is.
        tracking_uri: MLflow's; None for the one that MLflow is set to.

    Raises:
        CheckpointError: there is no such pair, or it is damaged.
        DegamlError: MLflow cannot be used, or a model there is none of ours.
    """
    text = "" if source is None else str(source)
    folder = Path(text).expanduser()
    # an empty path would be the folder that one is in
    is_there = bool(text.strip()) and os.path.exists(folder)  # noqa: PTH110 - a name too long is no error there
    of_hub = None if is_there or not isinstance(source, str) else _HUB.match(text)
    if revision is not None and not of_hub:
        raise CheckpointError(
            f"`revision` is {revision}, but only pairs of the Hugging Face hub have one, and the source is "
            f"{text or _OF_THE_PACKAGE}; leave it out"
        )
    if source is None:
        if not (SHIPPED / PAIR_FILE).is_file():
            raise CheckpointError(
                "this installation of degaml-kedro came without its trained pair; install the package again, make the "
                "pair with `make shipped`, or name another source"
            )
        return read_pair(SHIPPED, _OF_THE_PACKAGE)
    if text.startswith(("models:", "runs:")):
        # takes seconds to import, and the other sources do without it
        from degaml_kedro.tracking.server import download_checkpoint

        with _temporary() as temporary:
            return read_pair(download_checkpoint(text, temporary, tracking_uri), text)
    if is_there:
        return _from_folder(folder, text)
    if of_hub:
        return _from_hub(of_hub, revision)
    raise CheckpointError(
        f"'{text}' is no trained pair, and no folder of that name is there; give {_FORMS}"
    )


# --- on this machine ------------------------------------------------------------------------------


def _from_folder(folder: Path, source: str) -> TrainedPair:
    if (folder / PAIR_FILE).exists():
        return read_pair(folder, source)
    if (folder / _MODELS).is_dir():
        return read_run(folder, source)
    if folder.is_dir():
        runs = sorted(path.name for path in folder.iterdir() if (path / _MODELS).is_dir())
        if runs:
            raise CheckpointError(
                f"{source} holds the data of several runs ({', '.join(runs)}); name one of them: "
                f"{os.path.join(source, runs[0])}"  # noqa: PTH118
            )
    raise CheckpointError(
        f"{source} is there, but is no trained pair: it has no {PAIR_FILE} and no {_MODELS}; give {_FORMS}"
    )


def read_run(folder: Path, source: str | None = None) -> TrainedPair:
    """The generator and the policy that a Kedro run left in its data folder; ``source`` is what to call it.

    Raises:
        CheckpointError: the run left no record, trained no policy or is not done, or its files are damaged.
    """
    where = source or str(folder)
    record, parameters = read_record(folder, where)
    for part in ("generator", "policy"):
        if not isinstance(parameters.get(part), Mapping):
            raise CheckpointError(
                f"{where}: this run's parameters have no '{part}', so it trained none; {_FINISH}"
            )
    generator_settings, policy_settings = parameters["generator"], parameters["policy"]
    variants: Mapping[str, Any] = generator_settings.get("variants") or {"": {}}
    variant = policy_settings.get("variant") or next(iter(variants))
    models = folder / _MODELS
    writer: ExampleGenerator | None = None
    try:
        generator = load_generator(models / f"{variant}.generator")
        policy = load_peft_folder(models / "policy")
        fallback = models / FALLBACK_FILE
        learned = json.loads(fallback.read_text(encoding="utf-8")) if fallback.is_file() else None
        policy_settings = with_fallback(policy_settings, learned)
        if "written" in policy_settings["families"]:
            kinds = {name: one["decoder"]["kind"] for name, one in variants.items()}
            reads_examples = next(name for name in kinds if kinds[name] == "associative")
            writer = load_example_generator(models / f"{reads_examples}.generator")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise CheckpointError(f"{where} cannot be used: {error}; {_FINISH}") from error
    settings = {
        **{name: parameters.get(name) for name in ("model", "prompt", "scoring")},
        "encoder": generator_settings.get("encoder"),
        "policy": policy_settings,
    }
    try:
        checked = PairSettings.model_validate(
            {name: value for name, value in settings.items() if value is not None}
        )
    except ValidationError as error:
        raise CheckpointError(
            f"{where} does not say what it was trained with in a way that this version reads ({first_mistake(error)}); "
            f"make its record again, use degaml-kedro of that time, or train it again"
        ) from error
    distribution = parameters.get("meta_train_distribution")
    seed, profile = (record.get(name, parameters.get(name)) for name in ("seed", "profile"))
    known = {
        "version": generator.about.get("version"),
        "seed": seed,
        "profile": profile,
        "variant": variant,
        # the kind of distribution that meta-train tasks were drawn from, `suite` or `file`
        "drawn_from": ((parameters.get("distributions") or {}).get(distribution) or {}).get("kind"),
    }
    return TrainedPair(
        name=f"{profile or 'run'}, seed {seed}",
        generator=generator,
        policy=policy,
        settings=checked,
        about={
            "tasks": list(generator.about.get("tasks") or ()),
            **{name: value for name, value in known.items() if value is not None},
        },
        source=where,
        writer=writer,
    )


def read_record(
    folder: Path, source: str | None = None
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What a run wrote of itself in its data folder, and its parameters in there.

    Raises:
        CheckpointError: the record is missing or damaged.
    """
    where = source or str(folder)
    for name in ("run.json", "results.json"):
        path = folder / _REPORTING / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{where}: {_REPORTING}/{name} cannot be read ({error}); delete it, then `kedro run "
                f"--only-missing-outputs` makes it again"
            ) from error
        parameters = content.get("parameters") if isinstance(content, dict) else None
        if isinstance(parameters, dict) and parameters:
            return content, parameters
    raise CheckpointError(
        f"{where}: {_REPORTING}/run.json, which holds the run's parameters, is missing or has none; run `kedro run "
        f"--pipelines report --only-missing-outputs` with the run's environment"
    )


# --- the hub --------------------------------------------------------------------------------------


def _from_hub(found: re.Match[str], revision: str | None) -> TrainedPair:
    if revision and found["revision"] and revision != found["revision"]:
        raise CheckpointError(
            f"{found[0]} names the revision {found['revision']}, and `revision` is {revision}; name one of them"
        )
    # only this source needs it
    from huggingface_hub import errors, snapshot_download

    name, revision = found["id"], revision or found["revision"]
    title = f"hf://{name}" + (f"@{revision}" if revision else "")
    try:
        snapshot = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=[*PAIR_FILES, CARD_FILE], repo_type="model"
            )
        )
    # of the hub, of the network and the disk, of a name that cannot be one
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        here = "" if found["marked"] else f", and there is no folder '{name}' here"
        raise CheckpointError(
            f"{title} cannot be fetched{here} ({' '.join(str(error).split())}); check the name and the revision, log "
            f"in with `hf auth login` where the owner asks for it, go online (unset HF_HUB_OFFLINE), or give {_FORMS}"
        ) from error
    with _temporary() as own:
        _copy_snapshot(snapshot, own, title)
        # the hub's cache names a snapshot after its commit
        is_commit = re.fullmatch(r"[0-9a-f]{40}", snapshot.name)
        return read_pair(own, f"hf://{name}@{snapshot.name}" if is_commit else title)


@contextmanager
def _temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="degaml-pair-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _copy_snapshot(snapshot: Path, target: Path, title: str) -> None:
    """The pair's files, and no other; in the hub's cache they are links to files beside the snapshot."""
    inside = [snapshot.resolve()]
    if snapshot.parent.name == "snapshots":
        inside.append((snapshot.parent.parent / "blobs").resolve())
    for name in PAIR_FILES:
        path = snapshot / name
        real = path.resolve()
        if not path.exists():
            continue
        if not real.is_file() or not any(real.is_relative_to(folder) for folder in inside):
            raise CheckpointError(
                f"{title}: '{name}' is a link out of the folder that was fetched; it is not opened"
            )
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(real, target / name)
