"""Safetensors files read as a header and written tensor by tensor.

The library's writer wants all tensors at once, and its reader's errors do not say what a wrong file is.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import is_out_of_memory, refuse_existing, writing_whole
from ..messages import cut

NEEDED = (
    "Needed is a Stable Video 4D 2.0 checkpoint, sv4d2.safetensors or sv4d2_8views.safetensors "
    "(huggingface.co/stabilityai/sv4d2.0, about 12 GB each), or a file that `sv4d2 convert` made of one."
)

DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_WRITABLE = {**DTYPE_NAMES, torch.uint8: "U8"}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}

# A tensor of bytes that repeats our metadata, so that loaders that hand over tensors alone keep it.
METADATA_KEY = "sv4d2_metadata"
_METADATA = "__metadata__"
_OURS = "sv4d2."

# What DistributedDataParallel and torch.compile put before the names of a model inside them.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")
_SAMPLED = 4096  # bytes at the start, middle and end of a tensor that tell whether it is all zero

_LARGEST_HEADER = 100_000_000
_LARGEST_METADATA = 1_000_000

# First bytes of files that people take for a checkpoint, and what they are.
_SIGNATURES = {
    b"PK\x03\x04": "a PyTorch pickle or another zip (.ckpt, .pt); pickles can run code and are not read",
    b"\x80": "a pickle (.ckpt, .pt); pickles can run code and are not read",
    b"GGUF": "a GGUF file (a quantised model)",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a Git LFS pointer; the file itself was not downloaded (git lfs pull)",
    b"<": "a web page; the download saved an error or login page in place of the file",
    b"Access to model": "a refusal of the download server, saved in place of the file",
    b"Invalid": "a refusal of the download server, saved in place of the file",
}


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; the text says what it is and what is needed."""


class TensorInfo(NamedTuple):
    """Data type by its safetensors name (``F32``, ``F16``, ...) and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Size in the file; data types that only others write count one byte per element."""
        return self.numel * _BYTES.get(self.dtype, 1)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself before any tensor is read."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]  # `METADATA_KEY` repeats ours, where a program has dropped them from the header
    file_size: int
    starts: dict[str, int] = field(default_factory=dict)  # bytes from the file's start
    stored: dict[str, str] = field(default_factory=dict)  # names in the file that are not ours

    def blank(self, keys: Iterable[str]) -> list[bool]:
        """Return for each tensor whether it holds nothing but zeros, by a few kilobytes of it."""
        with self.path.open("rb") as file:
            return [not any(self._sampled(file, key)) for key in keys]

    def _sampled(self, file: BinaryIO, key: str) -> Iterator[bool]:
        size = self.tensors[key].n_bytes
        for at in (0, size // 2, max(size - _SAMPLED, 0)):
            file.seek(self.starts[key] + at)
            yield any(file.read(min(_SAMPLED, size - at)))


def plain_key(key: str) -> str:
    """Return a tensor's name without ``module.`` and ``_orig_mod.``, which training leaves in it."""
    return _WRAPPERS.sub("", key)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return a file's header. Raises FileNotFoundError, or CheckpointError: truncated, or another format."""
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"Expected a checkpoint file; {path} is a folder. {NEEDED}")
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}. {NEEDED}")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        if not start:
            raise CheckpointError(f"{path.name} is empty (0 bytes): the download did not start. {NEEDED}")
        length = int.from_bytes(start[:8], "little")
        # The length is checked before the signatures: any byte may begin a valid length.
        if len(start) < 9 or start[8:9] != b"{" or length > _LARGEST_HEADER:
            kinds = (what for signature, what in _SIGNATURES.items() if start.startswith(signature))
            unknown = f"{size:,} bytes of another format"
            raise CheckpointError(
                f"{path.name} is not a safetensors file: it is {next(kinds, unknown)}. {NEEDED}"
            )
        if size < 8 + length:
            raise CheckpointError(
                f"{path.name} is truncated: it ends inside its header ({size:,} of at least {8 + length:,} "
                f"bytes). Download it again."
            )
        file.seek(8)
        text = file.read(length)
    try:
        table = json.loads(text)
        ends = [row["data_offsets"][1] for key, row in table.items() if key != _METADATA]
        end = 8 + length + max(ends, default=0)
        if size < end:
            raise CheckpointError(
                f"{path.name} is truncated: its header describes {end:,} bytes, the file has {size:,} "
                f"({size / end:.1%}). Download it again."
            )
        with safe_open(path, framework="pt"):  # checks types, shapes and places of all tensors
            pass
    except CheckpointError:
        raise
    except (SafetensorError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{path.name} looks like a safetensors file, but its header cannot be read ({cut(error)}): the "
            f"file is damaged. Download it again."
        ) from error
    metadata = table.pop(_METADATA, None) or {}
    tensors = {key: TensorInfo(row["dtype"], tuple(row["shape"])) for key, row in table.items()}
    starts = {plain_key(key): 8 + length + row["data_offsets"][0] for key, row in table.items()}
    stored = {plain_key(key): key for key in tensors if plain_key(key) != key}
    kept = next((key for key in tensors if key.endswith(METADATA_KEY)), None)
    if kept is not None and not any(key.startswith(_OURS) for key in metadata):
        begin, end = table[kept]["data_offsets"]
        with path.open("rb") as file:
            file.seek(8 + length + begin)
            metadata = {**metadata_of_bytes(file.read(min(end - begin, _LARGEST_METADATA))), **metadata}
    tensors = {plain_key(key): info for key, info in tensors.items()}
    return Header(path, tensors, metadata, size, starts, stored)


def metadata_tensor(metadata: Mapping[str, str]) -> Tensor:
    """Return metadata to store under `METADATA_KEY`: UTF-8 bytes of JSON, [N] uint8."""
    return torch.frombuffer(bytearray(json.dumps(dict(metadata)).encode()), dtype=torch.uint8)


def metadata_of_bytes(content: bytes) -> dict[str, str]:
    """Return the metadata of a `metadata_tensor`'s bytes; CheckpointError where they are something else."""
    try:
        return {str(key): str(value) for key, value in json.loads(content).items()}
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"Expected the file's metadata as JSON in the tensor {METADATA_KEY}; got {len(content)} bytes of "
            f"something else ({cut(error)}): the file is damaged. Download or convert it again."
        ) from error


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],  # dtype and shape of each key
    read: Callable[[str], Tensor],  # called once per key
    metadata: Mapping[str, str],
    overwrite: bool = False,
) -> Path:
    """Write a safetensors file tensor by tensor; the target appears complete or not at all.

    Raises FileExistsError for an existing target without ``overwrite``, OSError where it cannot be written.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} does not exist. Create it or give another target.")
    # Wide types first, as the library does: every tensor then starts at a multiple of its element size.
    order = sorted(tensors, key=lambda key: -tensors[key][0].itemsize)
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for key in order:
        dtype, shape = tensors[key]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _WRITABLE[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with writing_whole(path, overwrite, 8 + len(text) + end) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            file.write(_raw_bytes(read(key), key, *tensors[key]))
    return path


def _raw_bytes(tensor: Tensor, key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> memoryview:
    if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"Expected {key} as {dtype} {list(shape)}; got {tensor.dtype} {list(tensor.shape)}.")
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
