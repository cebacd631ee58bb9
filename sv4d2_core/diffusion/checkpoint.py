"""Loads an SV4D 2.0 checkpoint: its header is described once, then the networks are built, then filled."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..files import is_out_of_memory
from .clip import CLIPVision
from .config import CLIPVisionConfig, ModelConfig
from .layout import EXPECTED_UNUSED, PARTS, PREFIXES, parts_of, read_clip, read_config, variant_of
from .model import Model
from .safetensors_stream import DTYPE_NAMES, NEEDED, CheckpointError, Header, TensorInfo, read_header
from .unet import UNet
from .vae import VAEDecoder, VAEEncoder

_READABLE = tuple(DTYPE_NAMES.values())

log = logging.getLogger(__name__)


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
            if name != "view_encoder" or network is not networks["frame_encoder"]:
                _fill(network, file, PREFIXES[name], stored_dtype(name, dtype), device)
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

    Logs one line when the file holds keys that are neither needed nor known parts of the official file.

    Raises:
        CheckpointError: missing keys, wrong shapes or data types that are not read.
    """
    networks = build_networks(config)
    required = required_shapes(header, networks)
    check_tensors(header, required)
    if keys := _unexpected_keys(header, required):
        log.warning(
            "%s: %s not used: %s", header.path.name, _count_text(keys, "unexpected key"), _first_text(keys)
        )
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
    if missing := [key for key in required if key not in header.tensors]:
        raise CheckpointError(
            f"{name} lacks {_count_text(missing, 'key')} that the model needs: {_first_text(missing)}. The "
            f"file is incomplete or belongs to another model. {NEEDED}"
        )
    wrong = [key for key, shape in required.items() if header.tensors[key].shape != shape]
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"{name} has {_count_text(wrong, 'tensor')} of another shape: expected {key} "
            f"{list(required[key])}; got {list(header.tensors[key].shape)}. {NEEDED}"
        )
    unreadable = [key for key in required if header.tensors[key].dtype not in readable]
    if unreadable:
        dtypes = ", ".join(sorted({header.tensors[key].dtype for key in unreadable}))
        raise CheckpointError(
            f"{name} holds {_count_text(unreadable, 'tensor')} of type {dtypes} ({_first_text(unreadable)}); "
            f"expected {', '.join(readable)}. Use the official file or an fp16/bf16 conversion of it."
        )


@contextmanager
def open_tensors(header: Header) -> Iterator[Any]:
    """Open the tensors of a file for reading one by one, with the library's errors made readable."""
    try:
        file = safe_open(header.path, framework="pt", device="cpu")
    except SafetensorError as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{header.path.name} is damaged ({error}). Download it again.") from error
    with file:
        yield file


def encoders_are_equal(header: Header, file: Any, encoder: nn.Module) -> bool:
    """Return whether one VAE encoder serves frames and views: declared so, or stored twice bit for bit."""
    if all(part.name != "view_encoder" for part in parts_of(header)):
        return True
    frames, views = PREFIXES["frame_encoder"], PREFIXES["view_encoder"]
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
        raise RuntimeError(
            f"No values for {_first_text(left)} of {prefix}*: these are not in the state dict."
        )


def _unexpected_keys(header: Header, required: Collection[str]) -> list[str]:
    return [key for key in header.tensors if key not in required and not EXPECTED_UNUSED.match(key)]


def _count_text(keys: Sequence[str], noun: str) -> str:
    """Return for example ``3 keys``."""
    return f"{len(keys)} {noun}{'' if len(keys) == 1 else 's'}"


def _first_text(keys: Sequence[str]) -> str:
    """Return the first three keys."""
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


_CLIP_HELP = (
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
    header = read_header(path)
    state = _clip_tensors(header)
    infos = {k: TensorInfo(DTYPE_NAMES.get(x.dtype, str(x.dtype)), tuple(x.shape)) for k, x in state.items()}
    named = replace(header, tensors=infos)
    width = len(state["conv1.weight"])
    try:
        usual = CLIPVisionConfig(head_width=_HEAD_WIDTHS.get(width, 64))
        metadata = {key.removeprefix("sv4d2."): value for key, value in header.metadata.items()}
        quick_gelu = _CLASS in header.tensors and width <= _WIDEST_OPENAI
        config = replace(read_clip(named, "", metadata, usual), quick_gelu=quick_gelu)
        tower = CLIPVision(config, device="meta")
        needed = {key: tuple(tensor.shape) for key, tensor in tower.state_dict().items()}
        check_tensors(named, needed)
    except ValueError as error:
        raise CheckpointError(f"{header.path.name} is no complete CLIP image tower: {error}") from error
    tower.load_state_dict(
        {key: state[key].to(device, dtype, copy=True) for key in needed}, strict=True, assign=True
    )
    return tower.requires_grad_(False).eval()


def _clip_tensors(header: Header) -> dict[str, Tensor]:
    """Return the tensors of an image tower by our names."""
    sources = _clip_sources(header)
    for names in sources.values():
        if not all(name in header.tensors for name in names):
            raise CheckpointError(f"{header.path.name} lacks {', '.join(names)}. {_CLIP_HELP}")
    state = {}
    with open_tensors(header) as file:
        for key, names in sources.items():
            first, *others = (file.get_tensor(name) for name in names)
            state[key] = torch.cat([first, *others]) if others else first
    if _CLASS in header.tensors:
        state["proj"] = state["proj"].T
    return state


def _clip_sources(header: Header) -> dict[str, tuple[str, ...]]:
    """Return from which of the file's tensors, joined, each of the tower's is made."""
    if _CLASS in header.tensors:
        sources: dict[str, tuple[str, ...]] = {"proj": (_PROJECTION,)}
        sources |= {ours: (_VISION + theirs,) for ours, theirs in _NAMES.items()}
        for n in {m[1] for key in header.tensors if (m := re.match(rf"{_LAYERS}(\d+)\.", key))}:
            for ours, theirs in _LAYER_NAMES.items():
                names = tuple(f"{_LAYERS}{n}.{name}" for name in theirs)
                sources[f"transformer.resblocks.{n}.{ours}"] = names
        return sources
    found = next((key for key in header.tensors if key.endswith(_IN_PROJECTION)), "")
    prefix = found.removesuffix(_IN_PROJECTION)
    if not found or prefix + "conv1.weight" not in header.tensors:
        raise CheckpointError(f"{header.path.name} holds no CLIP image tower. {_CLIP_HELP}")
    return {key.removeprefix(prefix): (key,) for key in header.tensors if key.startswith(prefix)}


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
            lines.append(f"  missing: {_count_text(self.missing, 'key')}: {_first_text(self.missing)}")
        if self.unexpected:
            lines.append(
                f"  unexpected: {_count_text(self.unexpected, 'key')}: {_first_text(self.unexpected)}"
            )
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
        missing = [key for key in required if key not in header.tensors]
        unexpected = _unexpected_keys(header, required)
        check_tensors(header, required)
        variant = variant_of(header)
        config = read_config(header)
    except CheckpointError as error:
        problem = str(error)
    return CheckpointInfo(
        header.path.name,
        header.file_size,
        variant,
        config,
        tuple(_part_infos(header)),
        tuple(missing),
        tuple(unexpected),
        problem,
    )


def _part_infos(header: Header) -> Iterator[PartInfo]:
    keys_of = {part.title: [key for key in header.tensors if part.owns(key)] for part in PARTS}
    used = set(chain(*keys_of.values()))
    keys_of[_UNUSED] = [key for key in header.tensors if key not in used]
    for title, keys in keys_of.items():
        infos = [header.tensors[key] for key in keys]
        if infos:
            dtypes = tuple(sorted({info.dtype for info in infos}))
            n_bytes = sum(info.n_bytes for info in infos)
            yield PartInfo(title, sum(info.numel for info in infos), n_bytes, dtypes)
