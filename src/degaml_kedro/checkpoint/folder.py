"""The folders of a trained pair and of a saved adaptation: both are written, and read, by the same steps.

- A pair: ``pair.json`` (settings, sizes and digests of the files), ``generator`` (safetensors and JSON), ``policy`` (a
  PEFT folder), ``examples`` (the generator that reads examples, where there is one), ``README.md`` (a model card).
- An adaptation: ``adapter_config.json`` and ``adapter_model.safetensors`` (the adapter; of several, the one that counts
  most), ``degaml.json`` (what it was made for, with what settings, its report, and the files' sizes and digests),
  ``state`` (several adapters, contexts, or a vector δ; only where there are any), ``README.md``.

``pair.json`` and ``degaml.json`` hold a digest of their own content, too. Both folders are read as untrusted input:
nothing is opened but these files, none through a link, and nothing but safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from degaml_kedro import __version__
from degaml_kedro.adaptation import Report
from degaml_kedro.adapters.adapter import CONFIG_FILE as PEFT_CONFIG
from degaml_kedro.adapters.adapter import MAX_JSON, Adapter, load_peft_folder, write_peft_files
from degaml_kedro.adapters.adapter import WEIGHTS_FILE as PEFT_WEIGHTS
from degaml_kedro.adapters.tokens import TokenGrid
from degaml_kedro.checkpoint.card import FileRecord, adaptation_card, pair_card
from degaml_kedro.checkpoint.layout import (
    ADAPTATION_CONTENTS,
    CARD_FILE,
    PAIR_CONTENTS,
    CheckpointError,
    check_overwritable,
)
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.folders import replaced_folder
from degaml_kedro.common.texts import printable
from degaml_kedro.config.schema import (
    BaseModelParameters,
    ComparedScoring,
    EncoderParameters,
    FactorizedDecoder,
    HyperconvolutionalDecoder,
    Parameters,
    PolicyParameters,
    PromptParameters,
)
from degaml_kedro.generator.decoders.build import ConditionSize, whole_flow
from degaml_kedro.generator.decoders.hyperconv import decoder_cost
from degaml_kedro.generator.examples import (
    ExampleGenerator,
    load_example_generator,
    save_example_generator,
)
from degaml_kedro.generator.generator import CONFIG_FILE as GENERATOR_CONFIG
from degaml_kedro.generator.generator import WEIGHTS_FILE as GENERATOR_WEIGHTS
from degaml_kedro.generator.generator import Generator, load_generator, save_generator
from degaml_kedro.generator.prompt_encoder import load_prompt_encoder
from degaml_kedro.llm.base_model import BaseModel
from degaml_kedro.strategies.state import AdaptedState, Member, load_state, save_state
from degaml_kedro.tasks.example import MAX_OPTIONS

FORMAT: Literal[1] = 1
PAIR_FILE, GENERATOR_FOLDER, POLICY_FOLDER = "pair.json", "generator", "policy"
WRITER_FOLDER = "examples"
ADAPTATION_FILE, STATE_FOLDER = "degaml.json", "state"
_GENERATOR_FILES, _WRITER_FILES = (
    (f"{folder}/{GENERATOR_CONFIG}", f"{folder}/{GENERATOR_WEIGHTS}")
    for folder in (GENERATOR_FOLDER, WRITER_FOLDER)
)
_POLICY_FILES = (f"{POLICY_FOLDER}/{PEFT_CONFIG}", f"{POLICY_FOLDER}/{PEFT_WEIGHTS}")
# all of a pair that is ever opened or fetched, but for the card
PAIR_FILES = (PAIR_FILE, *_GENERATOR_FILES, *_POLICY_FILES, *_WRITER_FILES)

StoredAs = Literal["float32", "bfloat16"]
_STORED_AS = "stored_as"
# in a folder's description: of all else in it; older versions wrote none
_DIGEST = "sha256"
# of one adapter: LoRA of rank 64 on a model of 70 billion has 0.8 billion
_MAX_WEIGHTS = 10**9
_MAKE_PAIR = (
    "fetch the pair again, or make it again with `python -m degaml_kedro.checkpoint.shipping`"
)
_MAKE_ADAPTATION = "save the adaptation again"
T = TypeVar("T", bound=Parameters)
AnyGenerator = TypeVar("AnyGenerator", Generator, ExampleGenerator)


class AnswerSettings(Parameters):
    """All that answers depend on, but for weights."""

    model: BaseModelParameters
    prompt: PromptParameters
    scoring: ComparedScoring
    # reads questions: for the generator, and for what compares them with prompts or examples
    encoder: EncoderParameters


class PairSettings(AnswerSettings):
    """What using a pair needs to know of the parameters of the run that trained it: the search for strategies, too."""

    policy: PolicyParameters

    @property
    def answering(self) -> AnswerSettings:
        """Without the search."""
        return AnswerSettings(**{name: getattr(self, name) for name in AnswerSettings.model_fields})


@dataclass(frozen=True, eq=False)
class TrainedPair:
    """A generator and its policy.

    Attributes:
        policy: the adapter under which a language model proposes strategies; without one they are drawn uniformly.
        about: the meta-train tasks, the run's seed and profile, the version that trained it; plain JSON.
        source: where it was read from, as the user would name it.
        writer: the generator that reads examples, for the family ``written``.

    Raises:
        CheckpointError: the generator reads another number of tokens than the settings say.
    """

    name: str
    generator: Generator
    policy: Adapter | None
    settings: PairSettings
    about: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    writer: ExampleGenerator | None = None

    def __post_init__(self) -> None:
        tokens = self.generator.decoder.condition.tokens
        if self.settings.encoder.tokens != tokens:
            raise CheckpointError(
                f"the generator of the pair '{self.name}' reads {tokens} tokens a prompt, but its settings say "
                f"encoder.tokens: {self.settings.encoder.tokens}; take the settings of the run that trained it"
            )

    @property
    def base_model(self) -> str:
        """The name of the base model that both serve."""
        return self.generator.identity.base_model

    @property
    def base_model_fingerprint(self) -> str:
        """Of that model's weights and tokenizer."""
        return self.generator.identity.base_model_fingerprint


class SavedAdaptation(Parameters):
    """``degaml.json``: what there is to know of a finished adaptation but for its state, which lies beside it.

    Attributes:
        more_than_peft: whether a folder ``state`` holds it, of which PEFT sees a part.
        labels: the answers that its examples shared; none where they shared none.
        files: sizes and digests of the files beside it; none in what older versions wrote.
    """

    format: Literal[1] = FORMAT
    version: str = __version__
    base_model: str
    base_model_fingerprint: str
    settings: AnswerSettings
    more_than_peft: bool
    report: Annotated[Report, PlainValidator(Report.from_json), PlainSerializer(Report.as_json)]
    # what version 0.1.0 wrote has none
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), max_length=MAX_OPTIONS)
    files: dict[str, FileRecord] = Field({}, max_length=1000)


class _PairFile(Parameters):
    """``pair.json``."""

    format: Literal[1]
    name: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")
    base_model: str = Field(max_length=1000)
    base_model_fingerprint: str = Field(max_length=200)
    settings: PairSettings
    about: dict[str, Any]
    files: dict[str, FileRecord]


# --- writing --------------------------------------------------------------------------------------


def save_pair(
    pair: TrainedPair,
    folder: Path,
    dtype: StoredAs = "float32",
    card: str | None = None,
    replace: bool = True,
) -> None:
    """Write a pair's folder, whole or not at all, without the generator's health checks and its training record.

    Anything but a pair in the folder is left alone, and so is an earlier pair unless ``replace``. ``~`` is the user's
    home.

    Args:
        dtype: what matrices are stored as; vectors (biases, scales) stay in float32. Rounding to bfloat16 halves
            the size, and gives the generator another fingerprint.
        card: the text of ``README.md``; None for a short one.

    Raises:
        CheckpointError: something else is in the folder, or it cannot be written.
        FolderError: somebody else is writing it, or it is there and not to be replaced.
    """
    with _written(folder, PAIR_CONTENTS, "pair", replace) as temporary:
        save_generator(_without_records(pair.generator, dtype), temporary / GENERATOR_FOLDER)
        if pair.policy is not None:
            (temporary / POLICY_FOLDER).mkdir()
            write_peft_files(pair.policy, temporary / POLICY_FOLDER)
        if pair.writer is not None:
            save_example_generator(_without_records(pair.writer, dtype), temporary / WRITER_FOLDER)
        files: dict[str, FileRecord] = {}
        for name in PAIR_FILES[1:]:
            path = temporary / name
            if path.is_file():
                if dtype != "float32" and path.suffix == ".safetensors":
                    _round_file(path, dtype)
                files[name] = _record(path)
        content = _PairFile(
            format=FORMAT,
            name=pair.name,
            base_model=pair.base_model,
            base_model_fingerprint=pair.base_model_fingerprint,
            settings=pair.settings,
            about=dict(pair.about),
            files=files,
        )
        _describe(temporary / PAIR_FILE, content, card or pair_card(pair, files))


def save_adaptation(
    state: AdaptedState, about: SavedAdaptation, folder: Path, replace: bool = True
) -> None:
    """Write a folder that PEFT opens, with what PEFT does not know beside it; whole or not at all.

    Anything else in the folder is left alone, and so is an earlier adaptation unless ``replace``. ``~`` is the user's
    home.

    Raises:
        CheckpointError: something else is in the folder, or it cannot be written.
        FolderError: somebody else is writing it, or it is there and not to be replaced.
        StateError: the weights are not finite.
    """
    with _written(folder, ADAPTATION_CONTENTS, "adaptation", replace) as temporary:
        write_peft_files(state.members[state.best].adapter, temporary)
        if about.more_than_peft:
            save_state(state, temporary / STATE_FOLDER)
        card = adaptation_card(state, about.base_model, about.report)
        files = {name: _record(temporary / name) for name in _adaptation_files(temporary)}
        _describe(temporary / ADAPTATION_FILE, about.model_copy(update={"files": files}), card)


def _adaptation_files(folder: Path) -> list[str]:
    """All that is read of an adaptation, but for what it says of itself."""
    state = (path for path in (folder / STATE_FOLDER).rglob("*") if path.is_file())
    return [PEFT_CONFIG, PEFT_WEIGHTS, *(path.relative_to(folder).as_posix() for path in state)]


def _record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=_sha256(path))


@contextmanager
def _written(folder: Path, contents: tuple[str, ...], what: str, replace: bool) -> Iterator[Path]:
    """A new folder to fill, which takes an earlier one's place when the block has ended.

    Raises:
        CheckpointError: something else is there, or it cannot be written.
    """
    try:
        folder = folder.expanduser()
        check_overwritable(folder, contents)
        with replaced_folder(folder, replace) as temporary:
            yield temporary
    except DegamlError:
        raise
    # safetensors: a full disk; ValueError: a NUL in a path, half a character in a text; RuntimeError: nobody's home
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        told = printable(getattr(error, "strerror", None) or str(error))
        raise CheckpointError(
            f"the {what} cannot be saved in {printable(str(folder))} ({told}); name another folder, or "
            f"make room there"
        ) from error


def _describe(path: Path, content: Parameters, card: str) -> None:
    raw = content.model_dump(mode="json")
    text = json.dumps({**raw, _DIGEST: _content_digest(raw)}, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
    (path.parent / CARD_FILE).write_text(card, encoding="utf-8")


def _without_records(generator: AnyGenerator, dtype: StoredAs) -> AnyGenerator:
    """Without the lists of its training, under a fingerprint that tells rounded weights apart."""
    about, fingerprint = dict(generator.about), generator.fingerprint
    if dtype != "float32" and about.get(_STORED_AS) != dtype:
        about[_STORED_AS] = dtype
        fingerprint = hashlib.sha256(f"{fingerprint} {dtype}".encode()).hexdigest()
    return replace(generator, about=about, fingerprint=fingerprint, records=(), checks=())


def _round_file(path: Path, dtype: StoredAs) -> None:
    rounded = {
        name: tensor.to(getattr(torch, dtype)) if tensor.dim() > 1 else tensor
        for name, tensor in load_file(path).items()
    }
    # the tensors may be the file itself: a new one takes its place
    path.unlink()
    save_file(rounded, path, metadata={"format": "pt"})


def _content_digest(raw: Mapping[str, Any]) -> str:
    """Of what a folder says of itself, however it is spaced and ordered."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- reading --------------------------------------------------------------------------------------


def read_pair(folder: Path, source: str | None = None) -> TrainedPair:
    """Read a pair's folder, which :func:`save_pair` wrote; ``source`` is what to call it, else its path.

    Returns:
        The pair, on the CPU, in float32.

    Raises:
        CheckpointError: a file is missing, damaged, a link or of another format, weights are not finite, or the parts
            do not belong together.
    """
    where = source or str(folder)
    content = _pair_file(folder, where)
    with _read(folder, where, _MAKE_PAIR):
        _check_files(folder, content.files)
        _check_size(folder / GENERATOR_FOLDER)
        generator = load_generator(folder / GENERATOR_FOLDER)
        _check_generator(generator, content)
        writer: ExampleGenerator | None = None
        policy: Adapter | None = None
        if _WRITER_FILES[0] in content.files:
            writer = load_example_generator(folder / WRITER_FOLDER)
            _check_generator(writer, content)
        if _POLICY_FILES[0] in content.files:
            policy = load_peft_folder(folder / POLICY_FOLDER)
            # a policy is plain LoRA: what has other tensors is refused here
            policy.layers()
            policy = replace(policy, tensors={k: t.float() for k, t in policy.tensors.items()})
            own_model = content.settings.policy.model is not None
            if not own_model and policy.config.base_model != content.base_model:
                raise CheckpointError(
                    f"its policy is an adapter of {policy.config.base_model or 'no named model'}, its generator makes "
                    f"adapters for {content.base_model}"
                )
    return TrainedPair(
        content.name, generator, policy, content.settings, content.about, where, writer
    )


def _check_generator(generator: Generator | ExampleGenerator, content: _PairFile) -> None:
    if not isinstance(generator.about, Mapping) or not isinstance(generator.fingerprint, str):
        raise CheckpointError("its generator does not say what it was trained on")
    identity = generator.identity
    if identity.base_model_fingerprint != content.base_model_fingerprint:
        raise CheckpointError(
            f"it is for {content.base_model} (fingerprint {content.base_model_fingerprint}), but its generator makes "
            f"adapters for {identity.base_model} ({identity.base_model_fingerprint}), and a pair has one base model"
        )


def read_files(folder: Path) -> dict[str, FileRecord]:
    """Sizes and digests of the generator's and the policy's files, as a pair's ``pair.json`` has them.

    Raises:
        CheckpointError: ``pair.json`` is missing or damaged.
    """
    return _pair_file(folder, str(folder)).files


def load_adaptation(folder: Path) -> tuple[AdaptedState, SavedAdaptation]:
    """Read an adaptation's folder, which :func:`save_adaptation` wrote: its state, and what it says of itself.

    Raises:
        CheckpointError: a file is missing, damaged, a link or of another format.
    """
    path = folder / ADAPTATION_FILE
    if not path.is_file():
        fix = "name a folder that `degaml adapt --out` or AdaptedModel.save wrote"
        if (folder / PEFT_CONFIG).is_file():
            fix = "a plain PEFT folder does not say how questions were asked: load it with PEFT"
        raise CheckpointError(
            f"{folder} is no saved adaptation: it has no {ADAPTATION_FILE}; {fix}"
        )
    with _read(folder, str(folder), _MAKE_ADAPTATION):
        link = next((one for one in folder.rglob("*") if one.is_symlink()), None)
        if link is not None:
            raise CheckpointError(
                f"'{link.relative_to(folder)}' is a link, and an adaptation holds plain files"
            )
        about = _description(path, SavedAdaptation)
        if about.more_than_peft != (folder / STATE_FOLDER).exists():
            told = "is missing" if about.more_than_peft else "is there, and is not to be"
            raise CheckpointError(f"by its {ADAPTATION_FILE} the folder {STATE_FOLDER} {told}")
        if about.files:
            if odd := sorted(about.files.keys() ^ set(_adaptation_files(folder))):
                raise CheckpointError(f"'{odd[0]}' is missing, or too many")
            _check_records(folder, about.files, "an adaptation")
            about = about.model_copy(update={"files": {}})
        if about.more_than_peft:
            state = load_state(folder / STATE_FOLDER)
        else:
            state = AdaptedState((Member(load_peft_folder(folder)),))
    return state, about


def check_widths(
    state: AdaptedState, folder: Path, base: BaseModel, encoder_settings: EncoderParameters
) -> None:
    """What is beside the adapters was made for the base model and the prompt encoder.

    Raises:
        CheckpointError: it was made for others.
        ModelError: the encoder cannot be loaded, and answers need it.
    """

    def check(name: str, vectors: torch.Tensor | None, model: str, needed: int) -> None:
        if vectors is not None and vectors.shape[1] != needed:
            raise CheckpointError(
                f"{folder} cannot be used: '{name}' is {vectors.shape[1]} wide, and {model} is {needed}; "
                f"{_MAKE_ADAPTATION}"
            )

    if state.steering is not None:
        check("steering.vectors", state.steering.vectors, base.name, base.head.shape[1])
    # loading the encoder takes a while
    if state.needs_encoder:
        encoder = load_prompt_encoder(encoder_settings)
        for number, member in enumerate(state.members):
            check(f"prompts.{number}", member.prompts, encoder.name, encoder.width)


@contextmanager
def _read(folder: Path, where: str, fix: str) -> Iterator[None]:
    """What is wrong with a folder's files, which anybody may have written, in one sentence.

    Raises:
        CheckpointError: something is.
    """
    try:
        yield
    # what is not the shape of ours ends in one of these
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # the fix that our readers name is for a run's own folders
        reason = str(error).split(";")[0].replace(f"{folder}{os.sep}", "")
        raise CheckpointError(f"{where} cannot be used: {reason}; {fix}") from error
    except (RuntimeError, MemoryError) as error:
        raise CheckpointError(
            f"{where} cannot be used: its sizes are not those of its weights: {error}; {fix}"
        ) from error


def _description(path: Path, kind: type[T]) -> T:
    """What a folder says of itself.

    Raises:
        CheckpointError: it is too large, no JSON, of another format, or not in the shape of ours.
    """
    if path.stat().st_size > MAX_JSON:
        raise CheckpointError(f"its {path.name} is larger than {MAX_JSON // 2**20} MB")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"its {path.name} cannot be read ({error})") from error
    if isinstance(raw, dict) and raw.get("format") != FORMAT:
        raise CheckpointError(
            f"its {path.name} has format {raw.get('format')!r}, this version reads {FORMAT}: another version of "
            f"degaml-kedro wrote it"
        )
    digest = raw.pop(_DIGEST, None) if isinstance(raw, dict) else None
    if digest is not None and digest != _content_digest(raw):
        raise CheckpointError(
            f"its {path.name} is not what was written down (SHA-256 of its content)"
        )
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise CheckpointError(f"its {path.name} is wrong at {first_mistake(error)}") from error


def first_mistake(error: ValidationError) -> str:
    """Where the first of the mistakes is, and what: ``policy.lora: Field required``."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"


def _pair_file(folder: Path, where: str) -> _PairFile:
    path = folder / PAIR_FILE
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(
            f"{where} is not a trained pair: it has no {PAIR_FILE} of its own; name a folder that "
            f"`python -m degaml_kedro.checkpoint.shipping` wrote"
        )
    with _read(folder, where, _MAKE_PAIR):
        return _description(path, _PairFile)


def _check_files(folder: Path, files: Mapping[str, FileRecord]) -> None:
    """Every file is there, is no link, and has the size and the digest that were written down."""
    optional = (part for part in (_POLICY_FILES, _WRITER_FILES) if part[0] in files)
    if odd := sorted(set(files) ^ {*_GENERATOR_FILES}.union(*optional)):
        raise CheckpointError(
            f"its {PAIR_FILE} does not list the files of a generator and a policy: it is {odd[0]!r} that is missing, "
            f"or too many"
        )
    _check_records(folder, files, "a pair")


def _check_records(folder: Path, files: Mapping[str, FileRecord], what: str) -> None:
    for name, recorded in files.items():
        path = folder / name
        # the folder itself may be one
        inside = (one for one in (path, *path.parents) if folder in one.parents)
        if any(one.is_symlink() for one in inside):
            raise CheckpointError(f"'{name}' is a link, and {what} holds plain files")
        if not path.is_file():
            raise CheckpointError(f"it has no {name}")
        size = path.stat().st_size
        if size != recorded.bytes:
            raise CheckpointError(
                f"'{name}' has {size} bytes, and {recorded.bytes} were written down"
            )
        if name.endswith(".json") and size > MAX_JSON:
            raise CheckpointError(f"'{name}' is larger than {MAX_JSON // 2**20} MB")
        if _sha256(path) != recorded.sha256:
            raise CheckpointError(f"'{name}' is not the file that was written down (SHA-256)")


def _check_size(folder: Path) -> None:
    """Refuse a generator whose sizes would fill the memory, before anything is compared with its weights.

    Raises:
        CheckpointError: the numbers that are described do not fit in the file.
    """
    content = json.loads((folder / GENERATOR_CONFIG).read_text(encoding="utf-8"))
    # at least two bytes each
    room = (folder / GENERATOR_WEIGHTS).stat().st_size // 2
    # within the bounds of a run's parameters
    for name, most in (("prompts", 65536), ("tokens", 8192), ("width", 65536), ("states", 65536)):
        size = content["condition"].get(name, 1)
        if type(size) is not int or not 1 <= size <= most:
            raise CheckpointError(
                f"its generator's condition.{name} is {str(size)[:40]!r}, and it is from 1 to {most}"
            )
    grid = TokenGrid.from_json(content["grid"])
    cells = grid.rank * grid.token_width
    kinds: dict[tuple[str, str], int] = {}
    for slot in grid.slots:
        key = (slot.module, slot.matrix)
        kinds[key] = max(slot.count, kinds.get(key, 0))
    heads = sum(kinds.values())
    # the scales have a number a token, and a factorized decoder sorts tokens by kind
    if grid.tokens > room or grid.tokens * max(cells, heads) > _MAX_WEIGHTS:
        raise CheckpointError(
            f"its generator's tokens ({grid.tokens} of {cells} numbers) do not fit its file"
        )
    settings: HyperconvolutionalDecoder | FactorizedDecoder = TypeAdapter(
        HyperconvolutionalDecoder | FactorizedDecoder
    ).validate_python(content["decoder"])
    if isinstance(settings, HyperconvolutionalDecoder):
        flow = whole_flow(settings, grid, ConditionSize(**content["condition"]))
        needed = decoder_cost(flow, settings.kernel_size).parameters
    else:
        inputs = int(content["condition"]["width"]) + int(content["condition"]["states"])
        needed = (
            heads * settings.rank * cells
            + settings.blocks * 4 * settings.width**2
            + settings.condition_width * (settings.width + settings.condition_width + inputs)
        )
    if needed > room:
        raise CheckpointError(
            f"its generator's decoder is to have at least {needed} parameters, and its file has room for {room}"
        )
