"""A LoRA adapter as data: its shape, its tensors, and the PEFT folder both are kept in.

Shapes: r rank, I inputs and O outputs of the adapted layer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.folders import replaced_folder

if TYPE_CHECKING:
    from peft import LoraConfig

_PREFIX = "base_model.model."
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_KEY = re.compile(re.escape(_PREFIX) + r"(.*)\.lora_([AB])\.weight", re.DOTALL)
_SUFFIXES = (".lora_A.weight", ".lora_B.weight")
_BASE_SUFFIX = ".base_layer.weight"
# of a JSON file that describes something: far above any of ours, and far below what would fill the memory
MAX_JSON = 16 * 2**20
_MAX_RANK, _MAX_ALPHA = 65536, 1e6
# settings of PEFT that are computed, or that change nothing about what an adapter computes
_COMPUTED = (
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "fan_in_fan_out", "peft_type", "task_type", "inference_mode", "auto_mapping"),
    *("base_model_name_or_path", "revision", "peft_version", "runtime_config", "megatron_core"),
    *("qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
)
# values that switch a setting off, and starts that leave the base model's weights as they are
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "none")
FREEZING_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
_WAY_OUT = (
    "train without this setting, or, where the start changed the base model (PiSSA, OLoRA, CorDA), save it as plain "
    "LoRA with PEFT's `path_initial_model_for_weight_conversion`"
)
# layers of a model's blocks have the block's number in their names
_IN_BLOCK = re.compile(r"\.\d+\.")
# of the patterns of a stranger, which are matched with the layers' names: what could take for ever is refused
_MAX_NAME, _MAX_REPEATS = 256, 6
# numbers after all ranks are made the largest one, for each number of the file
_MAX_FILLING = 64
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class AdapterError(DegamlError):
    """An adapter folder or a set of LoRA tensors that cannot be used."""


@dataclass(frozen=True)
class AdapterConfig:
    """What PEFT needs to rebuild the adapter.

    Attributes:
        target_modules: names of the adapted layers: the last part of the module path, or more of it.
        base_model: hub id, folder or package of the base model.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    base_model: str

    @property
    def scale(self) -> float:
        """The factor of the product: alpha / r."""
        return self.alpha / self.rank


@dataclass(frozen=True, eq=False)
class Adapter:
    """LoRA weights over named layers.

    Attributes:
        tensors: PEFT's names, ``base_model.model.<layer>.lora_A.weight`` [r, I] and ``lora_B`` [O, r].
    """

    config: AdapterConfig
    tensors: Mapping[str, Tensor]

    def layers(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A [r, I] and B [O, r] by layer name, in the order of the tensors.

        Raises:
            AdapterError: a layer has only one of the two, or a tensor is not LoRA's.
        """
        return _layers(self.tensors)


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, kind = parse_key(key)
        found.setdefault(name, {})[kind] = tensor
    for name, parts in found.items():
        if set(parts) != {"A", "B"}:
            missing = "B" if "A" in parts else "A"
            raise AdapterError(f"the adapter's layer {name} has no lora_{missing} tensor")
    return {name: (parts["A"], parts["B"]) for name, parts in found.items()}


@dataclass(frozen=True, eq=False)
class PeftModuleAdapter(Adapter):
    """An adapter that is more than products of two matrices: it is scored through PEFT's own module, and no more.

    Attributes:
        settings: PEFT's; its ``target_modules`` are whole names of layers.
        weights: all tensors of the folder, by PEFT's names.
        why: which setting makes it so, and where it stands.
    """

    tensors: Mapping[str, Tensor] = field(init=False, repr=False)
    settings: LoraConfig
    weights: Mapping[str, Tensor]
    why: str

    def __getattr__(self, name: str) -> Any:
        """Refuses ``tensors``, which whatever refines, mixes, cuts or saves adapters reads.

        Raises:
            AdapterError: always for ``tensors``.
        """
        if name != "tensors":
            raise AttributeError(name)
        raise AdapterError(
            f"{self.why}, which is more than plain LoRA: this adapter can be scored, alone, and not be refined, "
            f"mixed, cut into tokens, saved or asked behind examples; {_WAY_OUT}"
        )


def unflatten(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of a flat vector with the names and shapes of ``like``, one behind the other in its order."""
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return {
        name: part.view(tensor.shape)
        for (name, tensor), part in zip(like.items(), parts, strict=True)
    }


def average_adapters(adapters: Sequence[Adapter]) -> Adapter:
    """The element-wise mean of adapters, of A and B apart, in float32 and with the first one's configuration.

    Raises:
        AdapterError: there is none, or two differ in rank, alpha, layers or shapes.
    """
    if not adapters:
        raise AdapterError("there are no adapters to take the mean of; name at least one task")
    first = adapters[0]
    mine = _shape(first)
    for number, other in enumerate(adapters[1:], start=2):
        theirs = _shape(other)
        for name in mine | theirs:
            if mine.get(name) != theirs.get(name):
                raise AdapterError(
                    f"{name} is {mine.get(name, 'missing')} in adapter 1 and {theirs.get(name, 'missing')} in adapter "
                    f"{number}; the mean needs adapters of one shape"
                )
    tensors = {}
    for name in first.tensors:
        total: Any = sum(adapter.tensors[name].double() for adapter in adapters)
        tensors[name] = (total / len(adapters)).float()
    return Adapter(first.config, tensors)


def _shape(adapter: Adapter) -> dict[str, Any]:
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
    return {"rank": adapter.config.rank, "alpha": adapter.config.alpha, **shapes}


def tensor_key(layer: str, kind: str) -> str:
    """PEFT's name of a layer's A or B tensor."""
    return f"{_PREFIX}{layer}.lora_{kind}.weight"


def parse_key(key: str) -> tuple[str, str]:
    """The layer's name and ``A`` or ``B`` from PEFT's tensor name.

    Raises:
        AdapterError: the name is not a LoRA tensor's.
    """
    if found := _KEY.fullmatch(key):
        return found[1], found[2]
    raise AdapterError(
        f"'{key}' is not the name of a LoRA tensor: expected "
        f"'{_PREFIX}<layer>.lora_A.weight' or '….lora_B.weight'"
    )


def save_peft_folder(adapter: Adapter, path: Path) -> None:
    """Write a folder that plain PEFT opens, in place of an earlier one; whole or not at all."""
    with replaced_folder(path) as folder:
        write_peft_files(adapter, folder)


def write_peft_files(adapter: Adapter, folder: Path) -> None:
    """Write the two files that plain PEFT opens into a folder that nobody reads before it is whole."""
    from peft import LoraConfig  # takes seconds to import, and reading adapters does not need it

    alpha = adapter.config.alpha
    LoraConfig(
        r=adapter.config.rank,
        # other readers of these files take it for an integer, as PEFT's own type says
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,  # type: ignore[arg-type]
        target_modules=sorted(adapter.config.target_modules),
        base_model_name_or_path=adapter.config.base_model,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(str(folder))
    # PEFT writes a set in the order of its hashes; the same adapter should give the same bytes
    file = folder / CONFIG_FILE
    config = json.loads(file.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {k: v.detach().to("cpu").contiguous() for k, v in adapter.tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_peft_folder(path: Path) -> Adapter:
    """Read a PEFT LoRA folder, with the layers, ranks and scales that PEFT gives it.

    Where layers differ (``rank_pattern``, ``alpha_pattern``, ``use_rslora``) all get the largest rank, with zeros for
    what they lack, and one scale, with the quotient in B.

    Returns:
        Plain LoRA; a ``PeftModuleAdapter`` for DoRA, PiSSA, OLoRA, aLoRA, ``modules_to_save`` and layers that are in no
        block of the model.

    Raises:
        AdapterError: a file is missing or unreadable, another setting changes the sum, or a tensor has the wrong shape
            or is not finite.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise AdapterError(
                f"{path} is not a PEFT adapter folder: it has no {name}; "
                f"point at a folder that `save_pretrained` wrote"
            )
    raw = _read_config(path / CONFIG_FILE)
    if raw.get("peft_type") != "LORA":
        raise AdapterError(
            f"{path / CONFIG_FILE}: peft_type is {raw.get('peft_type')!r}; only LORA adapters can be read"
        )
    own = _own_settings(raw, path / CONFIG_FILE)
    try:
        tensors = load_file(path / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path / WEIGHTS_FILE} cannot be read ({error}); the file is truncated or damaged: make it again"
        ) from error
    if not tensors:
        raise AdapterError(f"{path / WEIGHTS_FILE} holds no tensors; make the adapter again")
    # beside A and B: whole modules, the magnitudes of DoRA, and the head that PEFT saves beside its LoRA
    pairs = {
        name: tensor
        for name, tensor in tensors.items()
        if name.endswith(_SUFFIXES) or not (own or name.endswith(_BASE_SUFFIX))
    }
    layers = _layers(pairs)
    for name, tensor in tensors.items():
        shaped = tensor.dim() == 2 or name not in pairs
        if not shaped or tensor.dtype not in _FLOATS or tensor.numel() == 0:
            raise AdapterError(
                f"{path / WEIGHTS_FILE}: '{name}' is {str(tensor.dtype).removeprefix('torch.')} "
                f"{list(tensor.shape)}, and LoRA has matrices of floating-point numbers; make the adapter again"
            )
    settings = _checked_settings(raw, path / CONFIG_FILE, list(layers), own)
    scales = _scales(layers, settings, path)
    outside = [
        name
        for name in scales
        if not _IN_BLOCK.search(name) or f"{_PREFIX}{name}{_BASE_SUFFIX}" in tensors
    ]
    if outside:
        # such as the LM head, of whose weights alone logits are made
        own["target_modules"] = outside
    rank = max(layers[name][0].shape[0] for name in scales)
    targets: Any = settings.target_modules
    narrowed = settings.layers_to_transform is not None or settings.exclude_modules
    if narrowed or isinstance(targets, str):
        targets = list(scales)
    config = AdapterConfig(
        rank,
        float(settings.lora_alpha),
        tuple(sorted(targets)),
        settings.base_model_name_or_path or "",
    )
    if own:
        settings.target_modules = list(scales)
        settings.layers_to_transform = settings.layers_pattern = settings.exclude_modules = None
        told = ", ".join(f"{key} is {str(value)[:60]!r}" for key, value in own.items())
        _check_finite(tensors, path)
        return PeftModuleAdapter(config, settings, tensors, f"{path / CONFIG_FILE}: {told}")
    kept = {name: tensor for name, tensor in pairs.items() if parse_key(name)[0] in scales}
    adapter = Adapter(config, _with_one_scale(kept, config, scales, path))
    _check_finite(adapter.tensors, path)
    return adapter


def _own_settings(raw: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Settings that only PEFT's own module computes, by name.

    Raises:
        AdapterError: one that changes the sum in a way that nothing here computes, or that is not known.
    """
    checks: dict[str, Callable[[Any], bool]] = {
        "use_dora": lambda value: value is True,
        "modules_to_save": lambda value: _are(
            value, lambda name: isinstance(name, str) and re.fullmatch(r"[\w.]+", name)
        ),
        "alora_invocation_tokens": lambda value: _are(
            value, lambda token: type(token) is int and token >= 0
        ),
        "init_lora_weights": lambda value: value in ("pissa", "olora"),
    }
    own = {}
    for key, value in raw.items():
        harmless = _NOTHING if key != "init_lora_weights" else FREEZING_STARTS
        if key in _COMPUTED or value in harmless:
            continue
        if key not in checks or not checks[key](value):
            raise AdapterError(
                f"{file}: {key} is {str(value)[:60]!r}, which is not plain LoRA: its sum would be "
                f"another than PEFT's; {_WAY_OUT}"
            )
        own[key] = value
    return own


def _are(values: Any, fits: Callable[[Any], Any]) -> bool:
    return isinstance(values, list) and bool(values) and all(map(fits, values))


def _scales(
    layers: Mapping[str, tuple[Tensor, Tensor]], settings: LoraConfig, path: Path
) -> dict[str, float]:
    """The factor of B A by layer, for the layers that PEFT adapts; it ignores the tensors of others.

    Raises:
        AdapterError: a layer has another rank than the settings say, or there is none.
    """
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    def chosen(pattern: Mapping[str, Any] | None, name: str, default: Any) -> Any:
        pattern = pattern or {}
        return pattern.get(get_pattern_key(list(pattern), name), default)

    found = {}
    try:
        for name, (a, b) in layers.items():
            if not check_target_module_exists(settings, name):
                continue
            rank = chosen(settings.rank_pattern, name, settings.r)
            if a.shape[0] != rank or b.shape[1] != rank:
                raise AdapterError(
                    f"{path / WEIGHTS_FILE}: layer {name} has A {tuple(a.shape)} and B {tuple(b.shape)}, "
                    f"but {CONFIG_FILE} says r = {rank}"
                )
            alpha = chosen(settings.alpha_pattern, name, settings.lora_alpha)
            found[name] = alpha / (math.sqrt(rank) if settings.use_rslora else rank)
    except re.error as error:
        raise AdapterError(
            f"{path / CONFIG_FILE}: a pattern is no regular expression ({error}); make the adapter again"
        ) from error
    if not found:
        raise AdapterError(
            f"{path / CONFIG_FILE} names no layer that {WEIGHTS_FILE} holds, by target_modules, exclude_modules and "
            f"layers_to_transform; make the adapter again"
        )
    return found


def _with_one_scale(
    tensors: Mapping[str, Tensor], config: AdapterConfig, scales: Mapping[str, float], path: Path
) -> dict[str, Tensor]:
    """Tensors of one rank whose products are those of the scales under the configuration's one scale."""
    factors = {name: scale / config.scale for name, scale in scales.items()}
    layers = _layers(tensors)
    if set(factors.values()) == {1} and {len(a) for a, _ in layers.values()} == {config.rank}:
        return dict(tensors)
    size = sum(config.rank * max(tensor.shape) for tensor in tensors.values())
    if size > _MAX_FILLING * sum(tensor.numel() for tensor in tensors.values()):
        raise AdapterError(
            f"{path}: its largest rank is {config.rank}, and most layers have far smaller ones: with one rank for all "
            f"it would be more than {_MAX_FILLING} times as large; make it with ranks that are closer"
        )
    made = {}
    for key, tensor in tensors.items():
        name, kind = parse_key(key)
        # half precision would round the factor in
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        if kind == "A":
            made[key] = nn.functional.pad(wide, (0, 0, 0, config.rank - len(wide)))
        else:
            filled = nn.functional.pad(wide, (0, config.rank - wide.shape[1]))
            made[key] = filled * factors[name]
    return made


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(
                f"{path / WEIGHTS_FILE}: '{key}' holds NaN or infinite weights; make the adapter again"
            )


def _read_config(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_JSON:
            raise AdapterError(
                f"{file} is larger than {MAX_JSON // 2**20} MB; it is no adapter's configuration: make the adapter "
                f"again"
            )
        raw = json.loads(file.read_text(encoding="utf-8"))
    except AdapterError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{file} is not valid JSON: {error}; make the adapter again") from error
    if not isinstance(raw, dict):
        raise AdapterError(f"{file} is not a JSON object; make the adapter again")
    return raw


_Rank = Annotated[int, Field(ge=1, le=_MAX_RANK)]
_Alpha = Annotated[int | float, Field(gt=0, le=_MAX_ALPHA)]
_Names = Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]


class _PeftSettings(BaseModel):
    """What is read of a configuration file that anybody may have written."""

    model_config = ConfigDict(strict=True)

    r: _Rank
    lora_alpha: _Alpha
    target_modules: _Names
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    exclude_modules: _Names | None = None
    layers_pattern: _Names | None = None
    layers_to_transform: int | list[int] | None = None
    use_rslora: bool | None = None
    base_model_name_or_path: str | None = None


def _checked_settings(
    raw: Mapping[str, Any], file: Path, layers: Sequence[str], own: Mapping[str, Any]
) -> LoraConfig:
    """PEFT's settings, of what anybody may have written, for an adapter of these layers."""
    from peft import LoraConfig  # takes seconds to import

    # what is empty is not set
    optional = [
        name for name, field in _PeftSettings.model_fields.items() if not field.is_required()
    ]
    known = {key: value for key, value in raw.items() if key not in optional or value}
    known = {**known, "layers_to_transform": raw.get("layers_to_transform")}
    try:
        settings = _PeftSettings.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        found = f"{key} is {str(raw[key])[:40]!r}" if key in raw else f"there is no {key}"
        raise AdapterError(
            f"{file}: {found} ({first['msg'].lower()}); make the adapter again"
        ) from error
    if settings.target_modules == "all-linear":
        settings.target_modules = list(layers)
    _check_patterns(settings, file, layers)
    given = {key: value for key, value in settings if value is not None}
    try:
        return LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **given, **own)
    except ValueError as error:
        raise AdapterError(f"{file} is refused by PEFT: {error}; make the adapter again") from error


def _check_patterns(settings: _PeftSettings, file: Path, layers: Iterable[str]) -> None:
    """Refuse regular expressions that could be matched for ever: repeated groups, many repeats, long names."""
    patterns = [*(settings.rank_pattern or {}), *(settings.alpha_pattern or {})]
    for one in (settings.target_modules, settings.exclude_modules):
        patterns += [one] if isinstance(one, str) else []
    blocks = settings.layers_pattern or []
    patterns += [blocks] if isinstance(blocks, str) else blocks
    for pattern in patterns:
        # neither `(?` nor the mark of a lazy repeat
        repeats = re.findall(r"[*+?{]", re.sub(r"\(\?|(?<=[*+?}])\?", "(", pattern))
        if len(repeats) > _MAX_REPEATS or re.search(r"\)[*+{]", pattern):
            raise AdapterError(
                f"{file}: the pattern {pattern[:60]!r} repeats a group, or more than {_MAX_REPEATS} times, which could "
                f"take for ever to match; name the layers instead"
            )
    if patterns and any(len(name) > _MAX_NAME for name in layers):
        raise AdapterError(
            f"{file}: a layer's name is longer than {_MAX_NAME} characters; make the adapter again"
        )
