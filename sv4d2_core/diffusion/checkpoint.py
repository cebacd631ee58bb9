"""Loads an SV4D 2.0 checkpoint tensor by tensor."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .clip import CLIPVision
from .config import CLIPVisionConfig, ModelConfig
from .layout import EXPECTED_UNUSED, PARTS, parts_of, read_clip, read_config, variant_of
from .model import Model
from .safetensors_stream import DTYPE_NAMES, NEEDED, CheckpointError, Header, read_header
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


CLIP_HELP = (
    "Give an SV4D 2.0 checkpoint (its image tower is used), an OpenCLIP file, or a CLIP vision file such as "
    "those in ComfyUI's models/clip_vision, as safetensors."
)

# Widths of heads that are not 64: ViT-H and ViT-bigG.
_HEAD_WIDTHS = {1280: 80, 1664: 104}
# Up to this width the towers in CLIP vision files are OpenAI's, whose activation is a quick GELU.
_WIDEST_OPENAI = 1024
_IN_PROJECTION = "transformer.resblocks.0.attn.in_proj_weight"
_VISION, _PROJECTION = "vision_model.", "visual_projection.weight"
_CLASS, _LAYERS = _VISION + "embeddings.class_embedding", _VISION + "encoder.layers."

# Our names, which are OpenCLIP's, and those in CLIP vision files.
_NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_LAYER_NAMES = {
    name.format(kind): tuple(other.format(kind) for other in others)
    for kind in ("weight", "bias")
    for name, others in {
        "ln_1.{}": ("layer_norm1.{}",),
        "ln_2.{}": ("layer_norm2.{}",),
        "attn.in_proj_{}": ("self_attn.q_proj.{}", "self_attn.k_proj.{}", "self_attn.v_proj.{}"),
        "attn.out_proj.{}": ("self_attn.out_proj.{}",),
        "mlp.c_fc.{}": ("mlp.fc1.{}",),
        "mlp.c_proj.{}": ("mlp.fc2.{}",),
    }.items()
}


def load_clip_vision(
    path: str | os.PathLike[str], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> CLIPVision:
    """Return the image tower of a file, frozen and in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file holds no CLIP image tower, or not all of it.
    """
    stored = read_header(path)
    sources = _sources(stored)
    header = _in_our_names(stored, sources)
    width = header.tensors["conv1.weight"].shape[0]
    try:
        usual = CLIPVisionConfig(head_width=_HEAD_WIDTHS.get(width, 64))
        metadata = {key.removeprefix("sv4d2."): value for key, value in stored.metadata.items()}
        config = read_clip(header, "", metadata, usual)
        quick_gelu = _CLASS in stored.tensors and width <= _WIDEST_OPENAI
        tower = CLIPVision(replace(config, quick_gelu=quick_gelu), device="meta")
        check_tensors(header, {key: tuple(tensor.shape) for key, tensor in tower.state_dict().items()})
    except ValueError as error:
        raise CheckpointError(f"{stored.path.name} is no complete CLIP image tower: {error}") from error
    with open_tensors(stored) as file:
        tensors = {key: _joined(file, names) for key, names in sources.items() if key in tower.state_dict()}
    state = {key: tensor.to(device, dtype, copy=True) for key, tensor in tensors.items()}
    tower.load_state_dict(state, strict=True, assign=True)
    return tower.requires_grad_(False).eval()


def _sources(header: Header) -> dict[str, tuple[str, ...]]:
    """Return from which of the file's tensors each of the tower's is made."""
    if _CLASS in header.tensors:
        layers = {m[1] for key in header.tensors if (m := re.match(rf"{_LAYERS}(\d+)\.", key))}
        names = {ours: (_VISION + theirs,) for ours, theirs in _NAMES.items()}
        for n in layers:
            names |= {
                f"transformer.resblocks.{n}.{ours}": tuple(f"{_LAYERS}{n}.{name}" for name in theirs)
                for ours, theirs in _LAYER_NAMES.items()
            }
        return {**names, "proj": (_PROJECTION,)}
    found = next((key for key in header.tensors if key.endswith(_IN_PROJECTION)), "")
    prefix = found.removesuffix(_IN_PROJECTION)
    if not found or prefix + "conv1.weight" not in header.tensors:
        raise CheckpointError(f"{header.path.name} holds no CLIP image tower. {CLIP_HELP}")
    return {key.removeprefix(prefix): (key,) for key in header.tensors if key.startswith(prefix)}


def _in_our_names(header: Header, sources: dict[str, tuple[str, ...]]) -> Header:
    """Return what the file would say of itself if its tensors were called and joined as the tower's are."""
    tensors = {}
    for key, names in sources.items():
        parts = [header.tensors[name] for name in names if name in header.tensors]
        if len(parts) < len(names) or not parts[0].shape:
            raise CheckpointError(f"{header.path.name} lacks {', '.join(names)}. {CLIP_HELP}")
        rows, *rest = parts[0].shape
        shape = (rows * len(parts), *rest)
        tensors[key] = parts[0]._replace(shape=shape[::-1] if names == (_PROJECTION,) else shape)
    return replace(header, tensors=tensors)


def _joined(file: Any, names: tuple[str, ...]) -> Tensor:
    tensor = torch.cat([file.get_tensor(name) for name in names])
    return tensor.T if names == (_PROJECTION,) else tensor


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
