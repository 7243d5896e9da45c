"""Prompt embeddings on disk: one safetensors file, written whole or not at all, read by slices.

``states`` [all tokens, C] in half precision, ``starts`` and ``lengths`` [P]; the header's metadata says which encoder
made them of which prompts.
"""

from __future__ import annotations

from pathlib import Path

import torch

from degaml_kedro.generator.prompt_embeddings import PromptEmbeddings
from degaml_kedro.io.local import LocalDataset
from degaml_kedro.io.tensors import DTYPES, MappedTensor, opened, safetensors_head, write_pieces

FORMAT = "degaml prompt embeddings 1"
_DTYPES = {"starts": torch.int64, "lengths": torch.int32, "states": torch.float16}


class PromptEmbeddingsDataset(LocalDataset[PromptEmbeddings, PromptEmbeddings]):
    """A task's prompt embeddings as one safetensors file.

    Example catalog entry:
        ``"{task}.prompt_embeddings": {type: degaml_kedro.io.prompt_embeddings.PromptEmbeddingsDataset, filepath:
        data/04_feature/{task}/prompt_embeddings.safetensors}``
    """

    def _read(self) -> PromptEmbeddings:
        """Open the embeddings; states leave the disk when they are asked for.

        Raises:
            StoredDataError: the file is not there, truncated, damaged or something else.
        """
        return read_prompt_embeddings(self._path)

    def _write(self, data: PromptEmbeddings) -> None:
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
    head = safetensors_head(
        [(name, _DTYPES[name], tensor.shape) for name, tensor in tensors.items()], metadata
    )
    write_pieces(path, head, (tensor.to(_DTYPES[name]) for name, tensor in tensors.items()))


def read_prompt_embeddings(path: Path) -> PromptEmbeddings:
    """Open a file of embeddings; only its header, starts and lengths are read.

    The states have no checksum, which would read them all: what can be seen from the outside is seen, a number
    changed inside is not.

    Raises:
        StoredDataError: the file is not there, truncated, damaged or something else; the message names it and says
            how it is made again.
    """
    with opened(path) as (file, about):
        if about.get("format") != FORMAT:
            raise ValueError(f"its format is {about.get('format')}, not {FORMAT}")
        for name, dtype in _DTYPES.items():
            if (found := file.get_slice(name).get_dtype()) != DTYPES[dtype]:
                raise ValueError(f"its {name} are {found}, not {DTYPES[dtype]}")
        # copies: views would keep the file mapped under a dataset that is written again
        starts, lengths = file.get_tensor("starts").clone(), file.get_tensor("lengths").clone()
        count, width = file.get_slice("states").get_shape()
        tokens = int(about["tokens"])
        if starts.dim() != 1 or starts.shape != lengths.shape:
            raise ValueError("its starts and lengths are not one of each for every prompt")
        outside = (starts < 0) | (lengths < 0) | (lengths > tokens) | (starts + lengths > count)
        if outside.any():
            raise ValueError(f"it names tokens outside its {count} of at most {tokens} a prompt")
        return PromptEmbeddings(
            token_states=MappedTensor(path, "states"),
            starts=starts,
            lengths=lengths,
            tokens=tokens,
            width=width,
            encoder=about["encoder"],
            fingerprint=about["fingerprint"],
            prompts_digest=about["prompts_digest"],
        )
