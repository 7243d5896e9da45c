"""A LoRA adapter as data: its shape, its tensors, and the PEFT folder both are kept in.

Shapes: r rank, I inputs and O outputs of the adapted layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from degaml_kedro.errors import DegamlError
from degaml_kedro.folders import replaced_folder

_PREFIX = "base_model.model."
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


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
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
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
    try:
        raw = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path / CONFIG_FILE} is not valid JSON: {error}") from error
    if raw.get("peft_type") != "LORA":
        raise AdapterError(
            f"{path / CONFIG_FILE}: peft_type is {raw.get('peft_type')!r}; only LORA adapters can be read"
        )
    if raw.get("use_dora") or raw.get("use_rslora") or raw.get("rank_pattern"):
        raise AdapterError(
            f"{path / CONFIG_FILE}: DoRA, rsLoRA and rank patterns are not plain LoRA; "
            f"train the adapter without them"
        )
    try:
        tensors = load_file(path / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path / WEIGHTS_FILE} cannot be read ({error}); the file is truncated or damaged: make it again"
        ) from error
    targets = raw["target_modules"]
    config = AdapterConfig(
        rank=int(raw["r"]),
        alpha=float(raw["lora_alpha"]),
        target_modules=tuple(sorted([targets] if isinstance(targets, str) else targets)),
        base_model=raw.get("base_model_name_or_path") or "",
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
