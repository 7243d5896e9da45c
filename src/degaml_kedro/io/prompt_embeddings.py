"""Prompt embeddings on disk: one safetensors file, written whole or not at all, read by slices.

``states`` [all tokens, C] in half precision, ``starts`` and ``lengths`` [P]; the header's metadata says which encoder
made them of which prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings, PromptEmbeddingsError
from degaml_kedro.io.atomic import replace_file
from degaml_kedro.io.local import LocalDataset
from degaml_kedro.io.tensors import DTYPES, safetensors_head

FORMAT = "degaml prompt embeddings 1"
_DTYPES = {"starts": torch.int64, "lengths": torch.int32, "states": torch.float16}


class MappedStates:
    """The states in a file: mapped into memory when they are first sliced, read page by page.

    Another process opens the file for itself: only the path travels.
    """

    def __init__(self, path: Path) -> None:
        """Point at a file of prompt embeddings; it is not opened yet."""
        self.path = path
        self._file: safe_open | None = None
        self._slice: Any = None

    def __getitem__(self, tokens: slice, /) -> Tensor:
        """The states of some tokens, [tokens, C]: a view of the file.

        Raises:
            PromptEmbeddingsError: the file is gone or damaged.
        """
        try:
            if self._slice is None:
                self._file = safe_open(self.path, framework="pt")
                self._slice = self._file.get_slice("states")
            states: Tensor = self._slice[tokens]
        except (SafetensorError, OSError) as error:
            raise _unreadable(self.path, str(error)) from error
        return states

    def __getstate__(self) -> dict[str, Any]:
        """An open file stays in its process."""
        return {"path": self.path, "_file": None, "_slice": None}


class PromptEmbeddingsDataset(LocalDataset[PromptEmbeddings, PromptEmbeddings]):
    """A task's prompt embeddings as one safetensors file.

    Example catalog entry:
        ``"{task}.prompt_embeddings": {type: degaml_kedro.io.prompt_embeddings.PromptEmbeddingsDataset, filepath:
        data/04_feature/{task}/prompt_embeddings.safetensors}``
    """

    def load(self) -> PromptEmbeddings:
        """Open the embeddings; states leave the disk when they are asked for.

        Raises:
            PromptEmbeddingsError: the file is not there, truncated, damaged or something else.
        """
        return read_prompt_embeddings(self._path)

    def save(self, data: PromptEmbeddings) -> None:
        """Write the embeddings, whole or not at all."""
        write_prompt_embeddings(data, self._path)


def write_prompt_embeddings(embeddings: PromptEmbeddings, path: Path) -> None:
    """Write embeddings; an earlier file stays until the new one is whole."""
    tensors = {
        "starts": embeddings.starts,
        "lengths": embeddings.lengths,
        "states": embeddings.token_states[:],
    }
    metadata = {
        "format": FORMAT,
        "tokens": str(embeddings.tokens),
        "encoder": embeddings.encoder,
        "fingerprint": embeddings.fingerprint,
        "prompts_digest": embeddings.prompts_digest,
    }
    parts = [(name, _DTYPES[name], tensor.shape) for name, tensor in tensors.items()]
    head = safetensors_head(parts, metadata)

    def write(file: BinaryIO) -> None:
        file.write(head)
        for name, tensor in tensors.items():
            file.write(tensor.to(_DTYPES[name]).contiguous().numpy().data)

    replace_file(path, write)


def read_prompt_embeddings(path: Path) -> PromptEmbeddings:
    """Open a file of embeddings; only its header, starts and lengths are read.

    The states have no checksum, which would read them all: what can be seen from the outside is seen, a number
    changed inside is not.

    Raises:
        PromptEmbeddingsError: the file is not there, truncated, damaged or something else; the message names it and
            says how it is made again.
    """
    if not path.is_file():
        raise PromptEmbeddingsError(f"{path} is not there; {_MAKE}")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise _unreadable(path, f"its format is {about.get('format')}, not {FORMAT}")
            for name, dtype in _DTYPES.items():
                code = DTYPES[dtype]
                if (found := file.get_slice(name).get_dtype()) != code:
                    raise _unreadable(path, f"its {name} are {found}, not {code}")
            starts, lengths = file.get_tensor("starts"), file.get_tensor("lengths")
            count, width = file.get_slice("states").get_shape()
            tokens = int(about["tokens"])
            # copies: views would keep the file mapped under a dataset that is written again
            embeddings = PromptEmbeddings(
                token_states=MappedStates(path),
                starts=starts.clone(),
                lengths=lengths.clone(),
                tokens=tokens,
                width=width,
                encoder=about["encoder"],
                fingerprint=about["fingerprint"],
                prompts_digest=about["prompts_digest"],
            )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, PromptEmbeddingsError):
            raise
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    outside = starts.dim() != 1 or starts.shape != lengths.shape
    if not outside:
        wrong = (starts < 0) | (lengths < 0) | (lengths > tokens) | (starts + lengths > count)
        outside = bool(wrong.any())
    if outside:
        raise _unreadable(path, f"it names tokens outside its {count} of at most {tokens} a prompt")
    return embeddings


_MAKE = "`kedro run --only-missing-outputs` makes what is missing"


def _unreadable(path: Path, why: str) -> PromptEmbeddingsError:
    return PromptEmbeddingsError(
        f"{path} cannot be read as prompt embeddings ({why}). It is truncated, damaged or another file: "
        f"delete it, then {_MAKE}"
    )
