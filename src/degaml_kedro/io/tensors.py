"""The head of a safetensors file that is written piece by piece: the library's own writer holds all of it in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence

import torch

# the format's names of the types that are written here
DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
}


def safetensors_head(
    tensors: Iterable[tuple[str, torch.dtype, Sequence[int]]], metadata: Mapping[str, str]
) -> bytes:
    """All that stands in front of the tensors' own bytes, padded to a multiple of eight.

    Args:
        tensors: name, type and shape of each, in the order in which their bytes follow.
        metadata: of the file.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, dtype, shape in tensors:
        end = position + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {
            "dtype": DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
