"""Says what a checkpoint file is, from its header alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from .checkpoint import (
    build_networks,
    check_tensors,
    count_text,
    first_text,
    missing_keys,
    required_shapes,
    unexpected_keys,
)
from .config import ModelConfig
from .layout import PARTS, CheckpointError, Header, read_config, read_header, variant_of

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}
_UNUSED = "not used"


@dataclass(frozen=True)
class PartInfo:
    """Size of one part of a file: number of parameters, bytes, and the data types that occur."""

    title: str
    parameters: int
    n_bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointInfo:
    """What a safetensors file is, for people.

    Args:
        name: file name.
        n_bytes: size on disk.
        variant: the variant that ``auto`` would take, or None when it cannot be told.
        config: the sizes, or None when the file cannot be used.
        parts: what is inside; the last one counts what inference does not read.
        missing: keys that the model needs and the file lacks.
        unexpected: keys that are neither needed nor known parts of the official file.
        problem: why the file cannot be loaded, or "".
    """

    name: str
    n_bytes: int
    variant: str | None
    config: ModelConfig | None
    parts: tuple[PartInfo, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    problem: str

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.n_bytes / 1e9:.2f} GB"]
        if self.config is not None:
            trained = "trained" if self.config.trained else "UNTRAINED random weights"
            lines[0] += f", SV4D 2.0, variant {self.variant or 'cannot be told'}, {trained}"
        for part in self.parts:
            size = f"{part.parameters / 1e6:10.2f} M  {part.n_bytes / 1e9:6.3f} GB  {' '.join(part.dtypes)}"
            lines.append(f"  {part.title:<26}{size}")
        if self.missing:
            lines.append(f"  missing: {count_text(self.missing, 'key')}: {first_text(self.missing)}")
        if self.unexpected:
            lines.append(f"  unexpected: {count_text(self.unexpected, 'key')}: {first_text(self.unexpected)}")
        lines.append(self.advice)
        return "\n".join(lines)

    @property
    def advice(self) -> str:
        """What to do with the file, one sentence or two."""
        if self.problem:
            return self.problem
        unused = sum(part.n_bytes for part in self.parts if part.title == _UNUSED)
        if unused or any("F32" in part.dtypes for part in self.parts if part.title == PARTS[0].title):
            return "Ready to load. `sv4d2 convert` writes a smaller copy (fp16, only what is needed)."
        return "Ready to load."


def describe_checkpoint(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Return what a safetensors file is; its tensors are not read.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: not a safetensors file, or a damaged one; the text says what it is.
    """
    header = read_header(path)
    variant = config = None
    problem = ""
    missing: list[str] = []
    unexpected: list[str] = []
    try:
        # Only one problem is reported, so the sizes are read even where the variant cannot be told.
        config = read_config(header, "auto" if "sv4d2.variant" in header.metadata else "sv4d2")
        required = required_shapes(header, build_networks(config))
        missing, unexpected = missing_keys(header, required), unexpected_keys(header, required)
        check_tensors(header, required)
        variant = variant_of(header)
        config = read_config(header)
    except CheckpointError as error:
        problem = str(error)
    return CheckpointInfo(
        name=header.path.name,
        n_bytes=header.file_size,
        variant=variant,
        config=config,
        parts=tuple(_part_infos(header)),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        problem=problem,
    )


def _part_infos(header: Header) -> Iterator[PartInfo]:
    rest = dict(header.tensors)
    groups = [(part.title, [key for key in rest if part.owns(key)]) for part in PARTS]
    used = {key for _, keys in groups for key in keys}
    for title, keys in [*groups, (_UNUSED, [key for key in rest if key not in used])]:
        infos = [rest[key] for key in keys]
        if infos:
            n_bytes = sum(info.numel * _BYTES.get(info.dtype, 1) for info in infos)
            dtypes = tuple(sorted({info.dtype for info in infos}))
            yield PartInfo(title, sum(info.numel for info in infos), n_bytes, dtypes)
