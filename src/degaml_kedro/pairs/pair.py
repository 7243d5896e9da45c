"""A generator and the policy that refines its adapters, with all that using them needs, and the folder of both.

A folder holds ``pair.json`` (what it is, settings, sizes and digests of the files), ``generator`` (safetensors and
JSON), ``policy`` (a PEFT folder) and ``README.md`` (a model card). It is read as what anybody may have put there:
no file is opened but these, none through a link, and nothing but safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from degaml_kedro.adapters.adapter import CONFIG_FILE as POLICY_CONFIG
from degaml_kedro.adapters.adapter import WEIGHTS_FILE as POLICY_WEIGHTS
from degaml_kedro.adapters.adapter import Adapter, load_peft_folder, save_peft_folder
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.errors import DegamlError
from degaml_kedro.folders import replaced_folder
from degaml_kedro.generator.decoders.hyperconv import flow_costs, total_cost
from degaml_kedro.generator.generator import CONFIG_FILE as GENERATOR_CONFIG
from degaml_kedro.generator.generator import WEIGHTS_FILE as GENERATOR_WEIGHTS
from degaml_kedro.generator.generator import Generator, load_generator, save_generator
from degaml_kedro.parameters import (
    BaseModelParameters,
    ComparedScoring,
    EncoderParameters,
    FactorizedDecoder,
    HyperconvolutionalDecoder,
    Parameters,
    PolicyParameters,
    PromptParameters,
)

PAIR_FILE = "pair.json"
CARD_FILE = "README.md"
FORMAT = 1
GENERATOR_FOLDER, POLICY_FOLDER = "generator", "policy"
GENERATOR_FILES = (
    f"{GENERATOR_FOLDER}/{GENERATOR_CONFIG}",
    f"{GENERATOR_FOLDER}/{GENERATOR_WEIGHTS}",
)
POLICY_FILES = (f"{POLICY_FOLDER}/{POLICY_CONFIG}", f"{POLICY_FOLDER}/{POLICY_WEIGHTS}")
# all that is ever opened or fetched
PAIR_FILES = (PAIR_FILE, *GENERATOR_FILES, *POLICY_FILES)

StoredAs = Literal["float32", "bfloat16"]
_STORED_AS = "stored_as"
_MAX_JSON = 16 * 2**20
# of one adapter: LoRA of rank 64 on a model of 70 billion has 0.8 billion
_MAX_WEIGHTS = 10**9


class PairError(DegamlError):
    """A trained pair that cannot be found, read or used."""


class PairSettings(Parameters):
    """What using a pair needs to know of the parameters of the run that trained it."""

    model: BaseModelParameters
    prompt: PromptParameters
    scoring: ComparedScoring
    encoder: EncoderParameters
    policy: PolicyParameters


@dataclass(frozen=True, eq=False)
class TrainedPair:
    """A generator and its policy.

    Attributes:
        name: for people.
        generator: makes adapters.
        policy: the adapter under which a language model proposes strategies; None where there is none, and
            strategies are drawn uniformly.
        settings: of the base model, the prompts, scoring, the encoder, and the search for strategies.
        about: the meta-train tasks, the run's seed and profile, the version that trained it; plain JSON.
        source: where it was read from, as the user would name it.
        base_model: the name of the base model that both serve.
        base_model_fingerprint: of its weights and its tokenizer.

    Raises:
        PairError: the parts do not belong together.
    """

    name: str
    generator: Generator
    policy: Adapter | None
    settings: PairSettings
    about: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    base_model: str = ""
    base_model_fingerprint: str = ""

    def __post_init__(self) -> None:
        identity, tokens = self.generator.identity, self.generator.decoder.condition.tokens
        if self.base_model_fingerprint != identity.base_model_fingerprint:
            raise PairError(
                f"the pair '{self.name}' is for {self.base_model} (fingerprint {self.base_model_fingerprint}), but its "
                f"generator makes adapters for {identity.base_model} ({identity.base_model_fingerprint}); take a "
                f"generator and a policy of one base model"
            )
        if self.settings.encoder.tokens != tokens:
            raise PairError(
                f"the generator of the pair '{self.name}' reads {tokens} tokens a prompt, but its settings say "
                f"encoder.tokens: {self.settings.encoder.tokens}; take the settings of the run that trained it"
            )


class _File(Parameters):
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _PairFile(Parameters):
    """``pair.json``."""

    format: Literal[1]
    name: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")
    base_model: str = Field(max_length=1000)
    base_model_fingerprint: str = Field(max_length=200)
    settings: PairSettings
    about: dict[str, Any]
    files: dict[str, _File]


def save_pair(
    pair: TrainedPair, folder: Path, dtype: StoredAs = "float32", card: str | None = None
) -> None:
    """Write a pair's folder; whole or not at all.

    The generator's health checks and its training record stay out.

    Args:
        pair: what to save.
        folder: where; an earlier one there is replaced.
        dtype: what matrices are stored as; vectors (biases, scales) stay in float32. Rounding to bfloat16 halves
            the size, and gives the generator another fingerprint.
        card: the text of ``README.md``; None for a short one.
    """
    policy = pair.policy
    with replaced_folder(folder) as temporary:
        save_generator(_lean(pair.generator, dtype), temporary / GENERATOR_FOLDER)
        _round_file(temporary / GENERATOR_FOLDER / GENERATOR_WEIGHTS, dtype)
        if policy is not None:
            save_peft_folder(policy, temporary / POLICY_FOLDER)
            _round_file(temporary / POLICY_FOLDER / POLICY_WEIGHTS, dtype)
        names = GENERATOR_FILES if policy is None else (*GENERATOR_FILES, *POLICY_FILES)
        content = _PairFile(
            format=FORMAT,
            name=pair.name,
            base_model=pair.base_model,
            base_model_fingerprint=pair.base_model_fingerprint,
            settings=pair.settings,
            about=dict(pair.about),
            files={name: _recorded(temporary / name) for name in names},
        )
        text = json.dumps(content.model_dump(mode="json"), indent=1) + "\n"
        (temporary / PAIR_FILE).write_text(text, encoding="utf-8")
        (temporary / CARD_FILE).write_text(card or _short_card(pair), encoding="utf-8")
        # safetensors writes for the owner alone, and an installed package is read by others
        for name in names:
            (temporary / name).chmod((temporary / PAIR_FILE).stat().st_mode)


def read_pair(folder: Path, source: str | None = None) -> TrainedPair:
    """Read a pair's folder.

    Args:
        folder: where :func:`save_pair` wrote.
        source: what to call it; None for the folder's path.

    Returns:
        The pair, on the CPU, in float32.

    Raises:
        PairError: a file is missing, damaged, a link or of another format, weights are not finite, or the parts do
            not belong together.
    """
    where = source or str(folder)
    content = _read_pair_file(folder, where)
    _check_files(folder, content, where)
    try:
        _check_size(folder / GENERATOR_FOLDER)
        generator = load_generator(folder / GENERATOR_FOLDER)
        if not isinstance(generator.about, Mapping) or not isinstance(generator.fingerprint, str):
            raise PairError("its generator does not say what it was trained on")
        policy = None
        if POLICY_FILES[0] in content.files:
            policy = _in_float32(load_peft_folder(folder / POLICY_FOLDER))
            _check_layers(policy)
    # anybody may have written these files: what is not the shape of ours ends in one of these
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # the way out that our readers name is for a run's own folders
        reason = str(error).split(";")[0]
        raise _damaged(where, reason) from error
    except (RuntimeError, MemoryError) as error:
        raise _damaged(where, f"its sizes are not those of a generator: {error}") from error
    pilot = content.settings.policy.model
    if policy is not None and pilot is None and policy.config.base_model != content.base_model:
        raise _damaged(
            where,
            f"its policy is an adapter of {policy.config.base_model or 'no named model'}, its generator makes "
            f"adapters for {content.base_model}",
        )
    return TrainedPair(
        name=content.name,
        generator=generator,
        policy=policy,
        settings=content.settings,
        about=content.about,
        source=where,
        base_model=content.base_model,
        base_model_fingerprint=content.base_model_fingerprint,
    )


def read_files(folder: Path) -> dict[str, tuple[int, str]]:
    """Sizes in bytes and SHA-256 of the generator's and the policy's files, as ``pair.json`` has them.

    Args:
        folder: a pair's.

    Raises:
        PairError: ``pair.json`` is missing or damaged.
    """
    content = _read_pair_file(folder, str(folder))
    return {name: (one.bytes, one.sha256) for name, one in content.files.items()}


# --- writing --------------------------------------------------------------------------------------


def _lean(generator: Generator, dtype: StoredAs) -> Generator:
    """Without the lists of its training, under a fingerprint that tells rounded weights apart."""
    about, fingerprint = dict(generator.about), generator.fingerprint
    if dtype != "float32" and about.get(_STORED_AS) != dtype:
        about[_STORED_AS] = dtype
        fingerprint = hashlib.sha256(f"{fingerprint} {dtype}".encode()).hexdigest()
    return replace(generator, about=about, fingerprint=fingerprint, records=(), checks=())


def _round_file(path: Path, dtype: StoredAs) -> None:
    if dtype == "float32":
        return
    rounded = {
        name: tensor.to(getattr(torch, dtype)) if tensor.dim() > 1 else tensor
        for name, tensor in load_file(path).items()
    }
    # the tensors may be the file itself: a new one takes its place
    path.unlink()
    save_file(rounded, path, metadata={"format": "pt"})


def _recorded(path: Path) -> _File:
    return _File(bytes=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _short_card(pair: TrainedPair) -> str:
    tasks = ", ".join(str(task) for task in pair.about.get("tasks") or ()) or "not recorded"
    return "\n".join(
        [
            f"# {pair.name}",
            "",
            "A generator of LoRA adapters and the policy that refines them (DeGAML-LLM).",
            "",
            f"- base model: {pair.base_model} (fingerprint {pair.base_model_fingerprint})",
            f"- prompt encoder: {pair.generator.identity.encoder}",
            f"- meta-trained on: {tasks}",
            "",
            "```python",
            "from degaml_kedro.session import Session",
            'session = Session.load("this folder")',
            "```",
            "",
        ]
    )


# --- reading --------------------------------------------------------------------------------------


def _read_pair_file(folder: Path, where: str) -> _PairFile:
    path = folder / PAIR_FILE
    if path.is_symlink() or not path.is_file():
        raise PairError(
            f"{where} is not a trained pair: it has no {PAIR_FILE} of its own; name a folder that "
            f"`python -m degaml_kedro.pairs.shipping` wrote"
        )
    try:
        if path.stat().st_size > _MAX_JSON:
            raise _damaged(where, f"its {PAIR_FILE} is larger than {_MAX_JSON // 2**20} MB")
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and raw.get("format") != FORMAT:
            raise PairError(
                f"{where}: its {PAIR_FILE} has format {raw.get('format')!r}, this version reads {FORMAT}; use the "
                f"version of degaml-kedro that wrote it, or make the pair again"
            )
        return _PairFile.model_validate(raw)
    except PairError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise _damaged(where, f"its {PAIR_FILE} is wrong at {place}: {first['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(where, f"its {PAIR_FILE} cannot be read ({error})") from error


def _check_files(folder: Path, content: _PairFile, where: str) -> None:
    """Every file is there, is no link, and has the size and the digest that were written down."""
    listed = set(content.files)
    if listed not in ({*GENERATOR_FILES}, {*GENERATOR_FILES, *POLICY_FILES}):
        odd = sorted(listed ^ {*GENERATOR_FILES, *POLICY_FILES})
        raise _damaged(
            where,
            f"its {PAIR_FILE} does not list the files of a generator and a policy: it is {odd[0]!r} that is missing, "
            f"or too many",
        )
    for name, recorded in content.files.items():
        path = folder / name
        if path.is_symlink() or path.parent.is_symlink():
            raise _damaged(where, f"'{name}' is a link, and a pair holds plain files")
        if not path.is_file():
            raise _damaged(where, f"it has no {name}")
        size = path.stat().st_size
        if size != recorded.bytes:
            raise _damaged(
                where, f"'{name}' has {size} bytes, and {recorded.bytes} were written down"
            )
        if name.endswith(".json") and size > _MAX_JSON:
            raise _damaged(where, f"'{name}' is larger than {_MAX_JSON // 2**20} MB")
        if _sha256(path) != recorded.sha256:
            raise _damaged(where, f"'{name}' is not the file that was written down (SHA-256)")


def _check_size(folder: Path) -> None:
    """Refuse sizes that would fill the memory before anything is compared with the weights.

    Args:
        folder: the generator's.

    Raises:
        PairError: the numbers that are described do not fit in the file.
    """
    content = json.loads((folder / GENERATOR_CONFIG).read_text(encoding="utf-8"))
    # at least two bytes each
    room = (folder / GENERATOR_WEIGHTS).stat().st_size // 2
    _check_condition(content["condition"])
    grid = TokenGrid.from_json(content["grid"])
    cells = grid.rank * grid.token_width
    kinds: dict[tuple[str, str], int] = {}
    for slot in grid.slots:
        key = (slot.module, slot.matrix)
        kinds[key] = max(slot.count, kinds.get(key, 0))
    heads = sum(kinds.values())
    # the scales have a number a token, and a factorized decoder sorts tokens by kind
    if (
        grid.tokens > room
        or grid.tokens * cells > _MAX_WEIGHTS
        or grid.tokens * heads > _MAX_WEIGHTS
    ):
        raise PairError(
            f"its generator's tokens ({grid.tokens} of {cells} numbers) do not fit its file"
        )
    settings: HyperconvolutionalDecoder | FactorizedDecoder = TypeAdapter(
        HyperconvolutionalDecoder | FactorizedDecoder
    ).validate_python(content["decoder"])
    if isinstance(settings, HyperconvolutionalDecoder):
        needed = total_cost(flow_costs(settings.flow, settings.kernel_size)).parameters
    else:
        inputs = int(content["condition"]["width"]) + int(content["condition"]["states"])
        needed = (
            heads * settings.rank * cells
            + settings.blocks * 4 * settings.width**2
            + settings.condition_width * (settings.width + settings.condition_width + inputs)
        )
    if needed > room:
        raise PairError(
            f"its generator's decoder is to have at least {needed} parameters, and its file has room for {room}"
        )


def _check_condition(condition: Mapping[str, Any]) -> None:
    """Sizes within the bounds of a run's parameters."""
    for name, most in (("prompts", 65536), ("tokens", 8192), ("width", 65536), ("states", 65536)):
        size = condition.get(name, 1)
        if type(size) is not int or not 1 <= size <= most:
            raise PairError(
                f"its generator's condition.{name} is {str(size)[:40]!r}, and it is from 1 to {most}"
            )


def _check_layers(adapter: Adapter) -> None:
    """Every layer has A and B, of finite numbers."""
    for name, tensors in adapter.layers().items():
        if not all(torch.isfinite(tensor).all() for tensor in tensors):
            raise PairError(f"the policy's layer {name} holds NaN or infinite weights")


def _in_float32(adapter: Adapter) -> Adapter:
    tensors: dict[str, Tensor] = {name: t.float() for name, t in adapter.tensors.items()}
    return Adapter(adapter.config, tensors)


def _damaged(where: str, reason: str) -> PairError:
    return PairError(
        f"{where} cannot be used: {reason}; fetch the pair again, or make it again with "
        f"`python -m degaml_kedro.pairs.shipping`"
    )
