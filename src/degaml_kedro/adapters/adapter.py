"""A LoRA adapter as data: its shape, its tensors, and the PEFT folder both are kept in.

Shapes: r rank, I inputs and O outputs of the adapted layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from degaml_kedro.errors import DegamlError
from degaml_kedro.folders import replaced_folder

_PREFIX = "base_model.model."
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# of a JSON file that describes something: far above any of ours, and far below what would fill the memory
MAX_JSON = 16 * 2**20
_MAX_RANK, _MAX_ALPHA = 65536, 1e6
# settings of PEFT that change what an adapter computes, and their values that do not; PiSSA, OLoRA and the like change
# the base model's weights when they are loaded
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "none")
_HARMLESS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            *(
                "use_dora",
                "use_rslora",
                "use_qalora",
                "rank_pattern",
                "alpha_pattern",
                "modules_to_save",
            ),
            *(
                "alora_invocation_tokens",
                "layer_replication",
                "trainable_token_indices",
                "target_parameters",
            ),
            *("bias", "lora_bias", "exclude_modules", "use_bdlora", "arrow_config"),
        ),
        _NOTHING,
    ),
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
}
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class AdapterError(DegamlError):
    """An adapter folder or a set of LoRA tensors that cannot be used."""


@dataclass(frozen=True)
class AdapterConfig:
    """What PEFT needs to rebuild the adapter.

    Attributes:
        rank: r.
        alpha: the product is scaled by alpha / r.
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


@dataclass(frozen=True)
class Adapter:
    """LoRA weights over named layers.

    Attributes:
        config: the adapter's shape.
        tensors: PEFT's names, ``base_model.model.<layer>.lora_A.weight`` [r, I] and ``lora_B`` [O, r].
    """

    config: AdapterConfig
    tensors: Mapping[str, Tensor]

    def layers(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A [r, I] and B [O, r] by layer name, in the order of the tensors.

        Raises:
            AdapterError: a layer has only one of the two, or a tensor is not LoRA's.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            name, kind = parse_key(key)
            found.setdefault(name, {})[kind] = tensor
        for name, parts in found.items():
            if set(parts) != {"A", "B"}:
                missing = "B" if "A" in parts else "A"
                raise AdapterError(f"the adapter's layer {name} has no lora_{missing} tensor")
        return {name: (parts["A"], parts["B"]) for name, parts in found.items()}


def average_adapters(adapters: Sequence[Adapter]) -> Adapter:
    """The element-wise mean of adapters, of A and B apart.

    Args:
        adapters: at least one.

    Returns:
        float32 tensors, in the first adapter's order and with its configuration.

    Raises:
        AdapterError: there is none, or two differ in rank, alpha, layers or shapes.
    """
    if not adapters:
        raise AdapterError("there are no adapters to take the mean of; name at least one task")
    first = adapters[0]
    shapes = {name: tuple(tensor.shape) for name, tensor in first.tensors.items()}
    for number, other in enumerate(adapters[1:], start=2):
        if (other.config.rank, other.config.alpha) != (first.config.rank, first.config.alpha):
            raise AdapterError(
                f"adapter 1 has rank {first.config.rank} and alpha {first.config.alpha:g}, adapter {number} has "
                f"{other.config.rank} and {other.config.alpha:g}; the mean needs adapters of one shape"
            )
        theirs = {name: tuple(tensor.shape) for name, tensor in other.tensors.items()}
        if theirs != shapes:
            name = sorted(set(shapes.items()) ^ set(theirs.items()))[0][0]
            raise AdapterError(
                f"{name} is {shapes.get(name, 'missing')} in adapter 1 and {theirs.get(name, 'missing')} in adapter "
                f"{number}; the mean needs adapters of one shape"
            )
    tensors = {}
    for name in first.tensors:
        total = torch.zeros(shapes[name], dtype=torch.float64)
        for adapter in adapters:
            total += adapter.tensors[name].double()
        tensors[name] = (total / len(adapters)).float()
    return Adapter(first.config, tensors)


def tensor_key(layer: str, kind: str) -> str:
    """PEFT's name of a layer's A or B tensor."""
    return f"{_PREFIX}{layer}.lora_{kind}.weight"


def parse_key(key: str) -> tuple[str, str]:
    """The layer's name and ``A`` or ``B`` from PEFT's tensor name.

    Raises:
        AdapterError: the name is not a LoRA tensor's.
    """
    for kind in ("A", "B"):
        suffix = f".lora_{kind}.weight"
        if key.startswith(_PREFIX) and key.endswith(suffix):
            return key[len(_PREFIX) : -len(suffix)], kind
    raise AdapterError(
        f"'{key}' is not the name of a LoRA tensor: expected "
        f"'{_PREFIX}<layer>.lora_A.weight' or '….lora_B.weight'"
    )


def save_peft_folder(adapter: Adapter, path: Path) -> None:
    """Write a folder that plain PEFT opens; whole or not at all.

    Args:
        adapter: what to save.
        path: the folder; an earlier one there is replaced.
    """
    with replaced_folder(path) as folder:
        write_peft_files(adapter, folder)


def write_peft_files(adapter: Adapter, folder: Path) -> None:
    """Write the two files that plain PEFT opens into a folder that is there.

    Args:
        adapter: what to save.
        folder: where; whoever calls makes sure that nobody reads it before it is whole.
    """
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
    _sort_targets(folder / CONFIG_FILE)
    tensors = {k: v.detach().to("cpu").contiguous() for k, v in adapter.tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _sort_targets(file: Path) -> None:
    """PEFT writes a set in the order of its hashes; the same adapter should give the same bytes."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_peft_folder(path: Path) -> Adapter:
    """Read a PEFT LoRA folder.

    Args:
        path: the folder.

    Raises:
        AdapterError: a file is missing or unreadable, the adapter is not plain LoRA, or a tensor has the wrong
            shape or is not finite.
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
    for key, harmless in _HARMLESS.items():
        if raw.get(key) not in harmless:
            raise AdapterError(
                f"{path / CONFIG_FILE}: {key} is {str(raw[key])[:60]!r}, which is not plain LoRA: its sum would be "
                f"another than PEFT's; train the adapter without it"
            )
    try:
        tensors = load_file(path / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path / WEIGHTS_FILE} cannot be read ({error}); the file is truncated or damaged: make it again"
        ) from error
    if not tensors:
        raise AdapterError(f"{path / WEIGHTS_FILE} holds no tensors; make the adapter again")
    layers = list(dict.fromkeys(parse_key(name)[0] for name in tensors))
    config = _checked_config(raw, path / CONFIG_FILE, layers)
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or tensor.dtype not in _FLOATS or tensor.numel() == 0:
            raise AdapterError(
                f"{path / WEIGHTS_FILE}: '{name}' is {str(tensor.dtype).removeprefix('torch.')} "
                f"{list(tensor.shape)}, and LoRA has matrices of floating-point numbers; make the adapter again"
            )
    adapter = Adapter(config, tensors)
    for layer, (a, b) in adapter.layers().items():
        if a.shape[0] != config.rank or b.shape[1] != config.rank:
            raise AdapterError(
                f"{path / WEIGHTS_FILE}: layer {layer} has A {tuple(a.shape)} and B {tuple(b.shape)}, "
                f"but {CONFIG_FILE} says r = {config.rank}"
            )
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise AdapterError(
                f"{path / WEIGHTS_FILE}: layer {layer} holds NaN or infinite weights; make the adapter again"
            )
    return adapter


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


def _checked_config(raw: Mapping[str, Any], file: Path, layers: Sequence[str]) -> AdapterConfig:
    """The configuration, of what anybody may have written, for an adapter of these layers."""

    def refuse(key: str, needed: str) -> AdapterError:
        found = f"{key} is {str(raw[key])[:40]!r}" if key in raw else f"there is no {key}"
        return AdapterError(f"{file}: {found}, and {needed} is needed; make the adapter again")

    rank: Any = raw.get("r")
    alpha: Any = raw.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
        raise refuse("r", f"a whole number from 1 to {_MAX_RANK}")
    # NaN is in no range
    if type(alpha) not in (int, float) or not 0 < alpha <= _MAX_ALPHA:
        raise refuse("lora_alpha", f"a number above 0 and up to {_MAX_ALPHA:g}")
    targets = raw.get("target_modules")
    # a text is a regular expression: what it matched is in the tensors' names
    names = list(layers) if isinstance(targets, str) else targets
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise refuse("target_modules", "a list of names")
    base_model = raw.get("base_model_name_or_path") or ""
    if not isinstance(base_model, str):
        raise refuse("base_model_name_or_path", "a name")
    return AdapterConfig(rank, float(alpha), tuple(sorted(names)), base_model)
