"""Sizes of the networks, read from the shapes of a file's tensors and from its metadata."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .config import CLIPVisionConfig, UNetConfig, VAEConfig
from .safetensors_stream import NEEDED, CheckpointError, Header


class MetadataReader:
    """Reads a metadata string as a type, with the field of the official config as default."""

    def __init__(self, metadata: Mapping[str, str], official: object) -> None:
        self.metadata = metadata
        self.official = official

    def __call__(self, field: str, parse: Callable[[str], Any], key: str = "") -> Any:
        """Return a field, from metadata ``sv4d2.<key>`` (default: the field's name) where there is one."""
        key = key or field
        if key not in self.metadata:
            return getattr(self.official, field)
        try:
            return parse(self.metadata[key])
        except ValueError as error:
            raise CheckpointError(
                f"The metadata sv4d2.{key} = {self.metadata[key]!r} cannot be read: {error}. Correct it."
            ) from error


def positive_int(text: str) -> int:
    """Return a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError("expected a whole number of at least 1")
    return value


def three_ints(text: str) -> tuple[int, int, int]:
    """Return the three whole numbers of a list such as ``256,512,512``."""
    values = [positive_int(x) for x in text.split(",")]
    if len(values) != 3:
        raise ValueError(f"expected three integers such as 256,512,512, got {len(values)}")
    return values[0], values[1], values[2]


def true_or_false(text: str) -> bool:
    """Return a truth value written ``true`` or ``false``."""
    if text not in ("true", "false"):
        raise ValueError("expected true or false")
    return text == "true"


def _shape(header: Header, key: str, ndim: int) -> tuple[int, ...]:
    """Return the shape of a tensor from which sizes are read."""
    if key not in header.tensors:
        raise CheckpointError(
            f"{header.path.name} lacks {key}, from which the model's size is read: the file is incomplete. "
            f"{NEEDED}"
        )
    shape = header.tensors[key].shape
    if len(shape) != ndim:
        raise CheckpointError(f"Expected {key} with {ndim} dimensions; got {list(shape)}. {NEEDED}")
    return shape


def _has(header: Header, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in header.tensors)


def _indices(header: Header, prefix: str) -> range:
    """Return 0..highest index n for which a key ``prefix + n + '.'`` exists."""
    found = (re.match(r"(\d+)\.", k.removeprefix(prefix)) for k in header.tensors if k.startswith(prefix))
    return range(max((int(m[1]) + 1 for m in found if m), default=0))


def _multiple(channels: int, base: int, key: str) -> int:
    if base <= 0 or channels <= 0 or channels % base:
        raise ValueError(f"{key} has {channels} channels, which is no multiple of the base width {base}.")
    return channels // base


def read_unet(header: Header, prefix: str, metadata: Mapping[str, str], official: UNetConfig) -> UNetConfig:
    """Return the UNet's sizes.

    Raises:
        CheckpointError: a key that they are read from is missing.
        ValueError: levels that differ in their structure.
    """
    base = _shape(header, prefix + "input_blocks.0.0.weight", 4)[0]
    # Each level is a list of (channel multiplier, has attention), one entry per residual block.
    levels: list[list[tuple[int, bool]]] = [[]]
    for i in _indices(header, prefix + "input_blocks.")[1:]:
        block = f"{prefix}input_blocks.{i}."
        if _has(header, block + "0.op."):
            levels.append([])
            continue
        key = block + "0.in_layers.2.weight"
        attention = _has(header, block + "1.")
        levels[-1].append((_multiple(_shape(header, key, 4)[0], base, key), attention))
    if not levels[0] or any(len(level) != len(levels[0]) or len(set(level)) != 1 for level in levels):
        counts = [len(level) for level in levels]
        raise ValueError(
            f"The UNet's levels must have equally many, equal blocks; got {counts} blocks per level."
        )
    attention = [level[0][1] for level in levels]
    if attention != sorted(attention, reverse=True):
        raise ValueError(f"Attention must fill the UNet's levels from the top; got {attention}.")
    read = MetadataReader(metadata, official)
    return UNetConfig(
        view_mixing=read("view_mixing", str),
        base=base,
        multipliers=tuple(level[0][0] for level in levels),
        res_blocks=len(levels[0]),
        attention_levels=sum(attention),
        head_channels=read("head_channels", positive_int, "num_head_channels"),
        context_dim=_shape(header, prefix + "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        vector_dim=_shape(header, prefix + "label_emb.0.0.weight", 2)[1],
        latent_channels=_shape(header, prefix + "out.2.weight", 4)[0],
    )


def read_vae(header: Header, prefix: str) -> VAEConfig:
    """Return the autoencoder's sizes, read from its encoder."""
    base = _shape(header, prefix + "encoder.conv_in.weight", 4)[0]
    multipliers = []
    for i in _indices(header, prefix + "encoder.down."):
        key = f"{prefix}encoder.down.{i}.block.0.conv1.weight"
        multipliers.append(_multiple(_shape(header, key, 4)[0], base, key))
    return VAEConfig(
        base=base,
        multipliers=tuple(multipliers),
        res_blocks=len(_indices(header, prefix + "encoder.down.0.block.")),
        latent_channels=_shape(header, prefix + "quant_conv.weight", 4)[0] // 2,
    )


def read_clip(
    header: Header, prefix: str, metadata: Mapping[str, str], official: CLIPVisionConfig
) -> CLIPVisionConfig:
    """Return the sizes of the CLIP image tower."""
    width, _, patch, _ = _shape(header, prefix + "conv1.weight", 4)
    tokens = _shape(header, prefix + "positional_embedding", 2)[0]
    config = CLIPVisionConfig(
        width=width,
        layers=len(_indices(header, prefix + "transformer.resblocks.")),
        head_width=MetadataReader(metadata, official)("head_width", positive_int, "clip_head_width"),
        mlp_width=_shape(header, prefix + "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        patch=patch,
        embed_dim=_shape(header, prefix + "proj", 2)[1],
    )
    if width % config.head_width:
        raise ValueError(f"The CLIP width {width} is no multiple of its head width {config.head_width}.")
    # One token is the class token, the others are a square of patches.
    return replace(config, image_size=round((tokens - 1) ** 0.5) * patch)
