"""Loads an SV4D 2.0 checkpoint tensor by tensor."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .clip_vision import CLIPVision
from .config import ModelConfig
from .layout import (
    EXPECTED_UNUSED,
    NEEDED,
    PARTS,
    CheckpointError,
    Header,
    parts_of,
    read_config,
    read_header,
)
from .model import Model
from .safetensors_stream import DTYPE_NAMES
from .unet import UNet
from .vae import VAEDecoder, VAEEncoder

_READABLE = tuple(DTYPE_NAMES.values())
_PREFIX = {part.name: part.prefix for part in PARTS}

_logger = logging.getLogger(__name__)


def load_checkpoint(
    path: str | os.PathLike[str],
    variant: str = "auto",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Model:
    """Return the networks of a checkpoint in the official layout, frozen and in evaluation mode.

    Tensors go one by one from the memory-mapped file to the wanted dtype and device, so that the resident
    memory is that of the result.

    Args:
        path: a safetensors file: official, or written by `convert_checkpoint`.
        variant: ``sv4d2``, ``sv4d2_8views`` or ``auto`` (metadata, then the file name).
        dtype: float32, float16 or bfloat16, for all networks but the VAE decoder, which stays float32.
        device: where the weights go.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is something else, damaged or incomplete, or its variant cannot be told.
        ValueError: a dtype that is not one of the three.
    """
    if dtype not in DTYPE_NAMES:
        raise ValueError(
            f"Expected dtype float32, float16 or bfloat16; got {dtype}. Choose one of the three."
        )
    header = read_header(path)
    config = read_config(header, variant)
    networks = checked_networks(header, config)
    with open_tensors(header) as file:
        if encoders_are_equal(header, file, networks["frame_encoder"]):
            networks["view_encoder"] = networks["frame_encoder"]
        for name, network in networks.items():
            if name == "view_encoder" and network is networks["frame_encoder"]:
                continue
            _fill(network, file, _PREFIX[name], stored_dtype(name, dtype), device)
    return Model(config, **networks)


def stored_dtype(part: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that a part's weights take when ``dtype`` is asked for.

    The reference decodes in float32 whatever the rest runs in, so the decoder is never narrowed.
    """
    return torch.float32 if part == "decoder" else dtype


def build_networks(config: ModelConfig) -> dict[str, Any]:
    """Return the five networks by their field of `Model`, without memory for weights (``meta`` device)."""
    meta: dict[str, Any] = {"device": "meta"}
    return {
        "unet": UNet(config.unet, **meta),
        "clip": CLIPVision(config.clip, **meta),
        "frame_encoder": VAEEncoder(config.vae, **meta),
        "view_encoder": VAEEncoder(config.vae, **meta),
        "decoder": VAEDecoder(config.vae, **meta),
    }


def checked_networks(header: Header, config: ModelConfig) -> dict[str, Any]:
    """Return the networks of a file without memory for weights, once the file is known to hold them all.

    Raises:
        CheckpointError: missing keys, wrong shapes or data types that are not read.
    """
    networks = build_networks(config)
    required = required_shapes(header, networks)
    check_tensors(header, required)
    warn_of_unexpected(header, required)
    return networks


def required_shapes(header: Header, networks: dict[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return key and shape of every tensor that a file of these networks must hold."""
    return {
        part.prefix + key: tuple(tensor.shape)
        for part in parts_of(header)
        for key, tensor in networks[part.name].state_dict().items()
    }


def check_tensors(
    header: Header, required: dict[str, tuple[int, ...]], readable: tuple[str, ...] = _READABLE
) -> None:
    """Raise CheckpointError for missing keys, wrong shapes or data types that are not read.

    Args:
        header: what `read_header` returned.
        required: key and shape of every tensor that is needed.
        readable: data types by their safetensors names; a host may read more than this project.
    """
    name = header.path.name
    if missing := missing_keys(header, required):
        raise CheckpointError(
            f"{name} lacks {count_text(missing, 'key')} that the model needs: {first_text(missing)}. The "
            f"file is incomplete or belongs to another model. {NEEDED}"
        )
    wrong = [key for key, shape in required.items() if header.tensors[key].shape != shape]
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"{name} has {count_text(wrong, 'tensor')} of another shape: expected {key} "
            f"{list(required[key])}; got {list(header.tensors[key].shape)}. {NEEDED}"
        )
    unreadable = [key for key in required if header.tensors[key].dtype not in readable]
    if unreadable:
        dtypes = ", ".join(sorted({header.tensors[key].dtype for key in unreadable}))
        raise CheckpointError(
            f"{name} holds {count_text(unreadable, 'tensor')} of type {dtypes} ({first_text(unreadable)}); "
            f"expected {', '.join(readable)}. Use the official file or an fp16/bf16 conversion of it."
        )


def warn_of_unexpected(header: Header, required: dict[str, tuple[int, ...]]) -> None:
    """Log one line when a file holds keys that are neither needed nor known parts of the official file."""
    if keys := unexpected_keys(header, required):
        _logger.warning(
            "%s: %s not used: %s", header.path.name, count_text(keys, "unexpected key"), first_text(keys)
        )


@contextmanager
def open_tensors(header: Header) -> Iterator[Any]:
    """Open the tensors of a file for reading one by one, with the library's errors made readable."""
    try:
        file = safe_open(header.path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise CheckpointError(f"{header.path.name} is damaged ({error}). Download it again.") from error
    with file:
        yield file


def encoders_are_equal(header: Header, file: Any, encoder: nn.Module) -> bool:
    """Return whether one VAE encoder serves frames and views: declared so, or stored twice bit for bit."""
    if all(part.name != "view_encoder" for part in parts_of(header)):
        return True
    frames, views = _PREFIX["frame_encoder"], _PREFIX["view_encoder"]
    keys = encoder.state_dict().keys()
    # Both sides are views into the mapped file, so the comparison takes no memory of its own.
    return all(header.tensors[frames + key] == header.tensors[views + key] for key in keys) and all(
        torch.equal(file.get_tensor(frames + key), file.get_tensor(views + key)) for key in keys
    )


def _fill(network: nn.Module, file: Any, prefix: str, dtype: torch.dtype, device: torch.device | str) -> None:
    # copy=True: a tensor that needs no conversion must not keep the mapped file alive.
    state: dict[str, Tensor] = {
        key: file.get_tensor(prefix + key).to(device=device, dtype=dtype, copy=True)
        for key in network.state_dict()
    }
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(False).eval()
    left = [k for k, t in chain(network.named_parameters(), network.named_buffers()) if t.is_meta]
    if left:
        raise RuntimeError(f"No values for {first_text(left)} of {prefix}*: these are not in the state dict.")


def missing_keys(header: Header, required: Iterable[str]) -> list[str]:
    """Return the keys that the model needs and the file lacks."""
    return [key for key in required if key not in header.tensors]


def unexpected_keys(header: Header, required: dict[str, tuple[int, ...]]) -> list[str]:
    """Return the keys that are neither needed nor known parts of the official file."""
    return [key for key in header.tensors if key not in required and not EXPECTED_UNUSED.match(key)]


def count_text(keys: Sequence[str], noun: str) -> str:
    """Return for example ``3 keys``."""
    return f"{len(keys)} {noun}{'' if len(keys) == 1 else 's'}"


def first_text(keys: Sequence[str]) -> str:
    """Return the first three keys."""
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
