"""Checkpoints of SV4D 2.0: described once, then built, then filled; and converted into smaller ones."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..files import is_out_of_memory
from ..messages import cut, listed
from .clip import CLIPVision
from .config import CLIPVisionConfig, ModelConfig
from .layout import (
    EXPECTED_UNUSED,
    PARTS,
    PREFIXES,
    SHARED_ENCODER,
    STORED_METADATA,
    Part,
    metadata_of,
    parts_of,
    read_clip,
    read_config,
    variant_of,
)
from .model import Model
from .safetensors_stream import (
    DTYPE_NAMES,
    NEEDED,
    CheckpointError,
    Header,
    TensorInfo,
    metadata_tensor,
    read_header,
    write_safetensors,
)
from .unet import UNet
from .vae import VAEDecoder, VAEEncoder

_MAY_BE_ZERO = re.compile(r"(^|\.)(proj_out|out_layers\.3|out\.2)\.weight$")
_READABLE = tuple(DTYPE_NAMES.values())

log = logging.getLogger(__name__)


def load_checkpoint(
    path: str | os.PathLike[str],
    variant: str = "auto",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Model:
    """Return the networks of a safetensors file in the official layout, frozen and in evaluation mode.

    Tensors go one by one from the memory-mapped file to their place, so that the resident memory is that of
    the result. ``variant`` is ``sv4d2``, ``sv4d2_8views`` or ``auto`` (metadata, then the file name);
    ``dtype`` float32, float16 or bfloat16, in which all is but the VAE decoder, which stays float32.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is something else, damaged or incomplete, or its variant cannot be told.
        ValueError: a dtype that is not one of the three.
    """
    if dtype not in DTYPE_NAMES:
        raise ValueError(
            f"Expected dtype float32, float16 or bfloat16; got {dtype}. Choose one of the three."
        )
    with open_checkpoint(path, variant) as (_, config, networks, file):
        for name, network in networks.items():
            _fill(network, file.get_tensor, stored_dtype(name, dtype), device, PREFIXES[name])
    networks.setdefault("view_encoder", networks["frame_encoder"])
    return Model(config, **networks)


@contextmanager
def open_checkpoint(
    path: str | os.PathLike[str], variant: str
) -> Iterator[tuple[Header, ModelConfig, dict[str, Any], Any]]:
    """Open a checkpoint: its header, sizes, networks without memory for weights, and tensors.

    There is no network for views where one VAE encoder serves both. Raises as `load_checkpoint`.
    """
    header = read_header(path)
    config = read_config(header, variant)
    networks = build_networks(config, parts_of(header))
    required = shapes_of(networks)
    check_tensors(header, required)
    if keys := _unexpected_keys(header, required):
        log.warning("%s: %s not used", header.path.name, _some(keys, "unexpected key"))
    with open_tensors(header) as file:
        if "view_encoder" in networks and _encoders_are_equal(header, file, networks["view_encoder"]):
            del networks["view_encoder"]
        yield header, config, networks, file


def stored_dtype(part: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a part's weights; the reference decodes in float32 whatever the rest runs in."""
    return torch.float32 if part == "decoder" else dtype


def build_networks(config: ModelConfig, parts: Collection[Part] = PARTS) -> dict[str, Any]:
    """Return the networks by their field of `Model`, without memory for weights (``meta`` device).

    Raises CheckpointError for sizes that no network can have.
    """
    try:
        with torch.device("meta"):
            networks = {
                "unet": UNet(config.unet),
                "clip": CLIPVision(config.clip),
                "frame_encoder": VAEEncoder(config.vae),
                "view_encoder": VAEEncoder(config.vae),
                "decoder": VAEDecoder(config.vae),
            }
    except (ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"The sizes of this file make no network ({cut(error)}). {NEEDED}") from error
    return {part.name: networks[part.name] for part in parts}


def shapes_of(networks: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return key and shape of every tensor in a file of these networks."""
    return {
        PREFIXES[name] + key: tuple(tensor.shape)
        for name, network in networks.items()
        for key, tensor in network.state_dict().items()
    }


def check_tensors(
    header: Header, required: dict[str, tuple[int, ...]], readable: tuple[str, ...] = _READABLE
) -> None:
    """Raise CheckpointError for missing keys, wrong shapes, types not ``readable``, runs of zeros."""
    name = header.path.name
    if missing := [key for key in required if key not in header.tensors]:
        raise CheckpointError(
            f"{name} lacks {_some(missing, 'key')} that the model needs: it is damaged or another model's. "
            f"{NEEDED}"
        )
    if wrong := [key for key, shape in required.items() if header.tensors[key].shape != shape]:
        key = wrong[0]
        raise CheckpointError(
            f"{name} has {_some(wrong, 'tensor')} of another shape: expected {key} {list(required[key])}; "
            f"got {cut(list(header.tensors[key].shape))}. {NEEDED}"
        )
    if unreadable := [key for key in required if header.tensors[key].dtype not in readable]:
        dtypes = ", ".join(sorted({header.tensors[key].dtype for key in unreadable}))
        raise CheckpointError(
            f"{name} holds {_some(unreadable, 'tensor')} of type {dtypes}; expected {', '.join(readable)}. "
            f"Use the official file or an fp16/bf16 conversion of it."
        )
    # Biases and the last layers of blocks, which start at zero, may have stayed there.
    weights = [key for key in required if key.endswith(".weight") and not _MAY_BE_ZERO.search(key)]
    weights = sorted((key for key in weights if key in header.starts), key=header.starts.__getitem__)
    blank = [*header.blank(weights), True]  # beyond the end
    if zeros := [key for i, key in enumerate(weights) if blank[i] and (blank[i + 1] or i and blank[i - 1])]:
        raise CheckpointError(
            f"{name} is damaged: {len(zeros)} of {len(weights)} weights hold only zeros ({zeros[0]} to "
            f"{zeros[-1]}), as an interrupted download or copy leaves them. Download or copy it again."
        )


@contextmanager
def open_tensors(header: Header) -> Iterator[Any]:
    """Open the tensors of a file for reading one by one, with the library's errors made readable."""
    try:
        file = safe_open(header.path, framework="pt", device="cpu")
    except SafetensorError as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{header.path.name} is damaged ({cut(error)}). Download it again.") from error
    with file:
        yield _Plain(file, header.stored)


class _Plain(NamedTuple):
    """An open file whose tensors have our names."""

    file: Any
    stored: Mapping[str, str]

    def get_tensor(self, key: str) -> Tensor:
        return self.file.get_tensor(self.stored.get(key, key))


def _encoders_are_equal(header: Header, file: Any, encoder: nn.Module) -> bool:
    """Return whether one VAE encoder serves frames and views: it is stored twice bit for bit."""
    frames, views = PREFIXES["frame_encoder"], PREFIXES["view_encoder"]
    keys = encoder.state_dict().keys()
    # Both sides are views into the mapped file, so the comparison takes no memory of its own.
    return all(header.tensors[frames + key] == header.tensors[views + key] for key in keys) and all(
        torch.equal(file.get_tensor(frames + key), file.get_tensor(views + key)) for key in keys
    )


def _fill(
    network: nn.Module,
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    device: torch.device | str,
    prefix: str = "",
) -> None:
    """Give a network without memory what ``read`` returns for its keys under ``prefix``; freeze it."""
    # copy=True: a tensor that needs no conversion must not keep the mapped file alive.
    state = {key: read(prefix + key).to(device, dtype, copy=True) for key in network.state_dict()}
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(False).eval()


def _unexpected_keys(header: Header, required: Collection[str]) -> list[str]:
    return [key for key in header.tensors if key not in required and not EXPECTED_UNUSED.match(key)]


def _some(keys: Sequence[str], noun: str) -> str:
    """Return for example ``5 keys (a, b, c and 2 more)``."""
    return f"{len(keys)} {noun}{'' if len(keys) == 1 else 's'} ({listed(keys)})"


_CLIP_HELP = (
    "Give an SV4D 2.0 checkpoint (its image tower is used), an OpenCLIP file, or a CLIP vision file such as "
    "those in ComfyUI's models/clip_vision, as safetensors."
)

# Widths of heads that are not 64: ViT-H and ViT-bigG.
_HEAD_WIDTHS = {1280: 80, 1664: 104}
# Up to this width the towers in CLIP vision files are OpenAI's, whose activation is a quick GELU.
_WIDEST_OPENAI = 1024
_IN_PROJECTION = "transformer.resblocks.0.attn.in_proj_weight"
# Names in CLIP vision files and ours, which are OpenCLIP's.
_VISION, _PROJECTION = "vision_model.", "visual_projection.weight"
_RENAMED = {
    _PROJECTION: "proj",
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.patch_embedding": "conv1",
    "vision_model.pre_layrnorm": "ln_pre",
    "vision_model.post_layernorm": "ln_post",
    "vision_model.encoder.layers": "transformer.resblocks",
    "layer_norm": "ln_",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def load_clip_vision(
    path: str | os.PathLike[str], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> CLIPVision:
    """Return the image tower of a file, frozen and in evaluation mode.

    Raises FileNotFoundError, or CheckpointError where the file holds no complete CLIP image tower.
    """
    header = read_header(path)
    state = _clip_tensors(header)
    infos = {k: TensorInfo(DTYPE_NAMES.get(x.dtype, str(x.dtype)), tuple(x.shape)) for k, x in state.items()}
    named = replace(header, tensors=infos)
    try:
        width = len(state["conv1.weight"]) if "conv1.weight" in state else 0
        usual = CLIPVisionConfig(head_width=_HEAD_WIDTHS.get(width, 64))
        metadata = {key.removeprefix("sv4d2."): value for key, value in header.metadata.items()}
        quick_gelu = _is_clip_vision(header) and width <= _WIDEST_OPENAI
        config = replace(read_clip(named, "", metadata, usual), quick_gelu=quick_gelu)
        with torch.device("meta"):
            tower = CLIPVision(config)
        check_tensors(named, {key: tuple(tensor.shape) for key, tensor in tower.state_dict().items()})
    except ValueError as error:
        raise CheckpointError(
            f"{header.path.name} is no complete CLIP image tower: {error} {_CLIP_HELP}"
        ) from error
    _fill(tower, state.__getitem__, dtype, device)
    return tower


def _is_clip_vision(header: Header) -> bool:
    return any(key.startswith(_VISION) for key in header.tensors)


def _clip_tensors(header: Header) -> dict[str, Tensor]:
    """Return the tensors of an image tower by our names."""
    with open_tensors(header) as file:
        if not _is_clip_vision(header):
            prefixes = (k.removesuffix(_IN_PROJECTION) for k in header.tensors if k.endswith(_IN_PROJECTION))
            # A text tower has layers of the same names, but no convolution.
            prefix = next((p for p in prefixes if p + "conv1.weight" in header.tensors), None)
            if prefix is None:
                raise CheckpointError(f"{header.path.name} holds no CLIP image tower. {_CLIP_HELP}")
            keys = (key for key in header.tensors if key.startswith(prefix))
            return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}
        state = {}
        for key in header.tensors:
            if key.startswith((_VISION, _PROJECTION)):
                name = key
                for theirs, ours in _RENAMED.items():
                    name = name.replace(theirs, ours)
                state[name] = file.get_tensor(key)
    for key in [key for key in state if ".q_proj." in key]:
        names = [key.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        if all(name in state for name in names):
            state[key.replace("q_proj.", "in_proj_")] = torch.cat([state.pop(name) for name in names])
    if "proj" in state:
        state["proj"] = state["proj"].T
    return state


_UNUSED = "not used"


@dataclass
class CheckpointInfo:
    """What a safetensors file is; as a string, for people."""

    name: str
    n_bytes: int
    parts: dict[str, list[TensorInfo]]  # by title, those that are not empty; also what is not used
    variant: str | None = None  # that ``auto`` would take, or None when it cannot be told
    config: ModelConfig | None = None  # None when the file cannot be used
    missing: tuple[str, ...] = ()  # keys that the model needs and the file lacks
    unexpected: tuple[str, ...] = ()  # keys that are neither needed nor known parts of the official file
    problem: str = ""  # why the file cannot be loaded

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.n_bytes / 1e9:.2f} GB"]
        if self.config is not None:
            only = f" on {cut(self.config.knows)} only" if self.config.knows else ""
            trained = f"trained{only}" if self.config.trained else "UNTRAINED random weights"
            lines[0] += f", SV4D 2.0, variant {self.variant or 'cannot be told'}, {trained}"
        for title, tensors in self.parts.items():
            millions = sum(tensor.numel for tensor in tensors) / 1e6
            gigabytes = sum(tensor.n_bytes for tensor in tensors) / 1e9
            dtypes = " ".join(sorted({tensor.dtype for tensor in tensors}))
            lines.append(f"  {title:<26}{millions:10.2f} M  {gigabytes:6.3f} GB  {dtypes}")
        for title, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                lines.append(f"  {title}: {_some(keys, 'key')}")
        lines.append(self.problem or "Ready to load.")
        wide = any(tensor.dtype == "F32" for tensor in self.parts.get(PARTS[0].title, ()))
        if not self.problem and (wide or any(tensor.n_bytes for tensor in self.parts.get(_UNUSED, ()))):
            lines[-1] += " `sv4d2 convert` writes a smaller copy (fp16, only what is needed)."
        return "\n".join(lines)


def describe_checkpoint(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Return what a safetensors file is, its tensors not read; CheckpointError where it is none."""
    header = read_header(path)
    parts: dict[str, list[TensorInfo]] = {title: [] for title in (*(part.title for part in PARTS), _UNUSED)}
    for key, tensor in header.tensors.items():
        parts[next((part.title for part in PARTS if part.owns(key)), _UNUSED)].append(tensor)
    filled = {title: tensors for title, tensors in parts.items() if tensors}
    info = CheckpointInfo(header.path.name, header.file_size, filled)
    try:
        # Only one problem is reported, so the sizes are read even where the variant cannot be told.
        info.config = read_config(header, "auto" if "sv4d2.variant" in header.metadata else "sv4d2")
        required = shapes_of(build_networks(info.config, parts_of(header)))
        info.missing = tuple(key for key in required if key not in header.tensors)
        info.unexpected = tuple(_unexpected_keys(header, required))
        check_tensors(header, required)
        info.variant = variant_of(header)
        info.config = read_config(header)
    except CheckpointError as error:
        info.problem = str(error)
    return info


_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def convert_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dtype: torch.dtype = torch.float16,
    variant: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Write a copy that holds only what inference needs, in ``dtype``, and return its path.

    The layout and the keys stay official. Left out are the parts that nothing reads, and the views' VAE
    encoder where it equals the frames'. The VAE decoder keeps its dtype, so that loading the copy gives
    the same weights as loading the source in ``dtype``. One tensor at a time is in memory.

    Raises:
        CheckpointError: as `load_checkpoint`, and values beyond the range of ``dtype``.
        FileExistsError, OSError: as `write_safetensors`.
        ValueError: a dtype that is not float32, float16 or bfloat16, or a target that is the source.
    """
    source, target = Path(source), Path(target)
    if dtype not in DTYPE_NAMES:
        raise ValueError(
            f"Expected dtype float16, bfloat16 or float32; got {dtype}. Choose one of the three."
        )
    with open_checkpoint(source, variant) as (header, config, networks, file):
        if target.exists() and target.samefile(source):
            raise ValueError(f"The target {target} is the source itself. Give the copy another name.")
        tensors = {}
        for key, shape in shapes_of(networks).items():
            kept = key.startswith(PREFIXES["decoder"])
            tensors[key] = (_DTYPES[header.tensors[key].dtype] if kept else dtype, shape)
        shared = "view_encoder" not in networks

        def read(key: str) -> Tensor:
            tensor = file.get_tensor(key)
            narrowed = tensor.to(tensors[key][0])
            if not narrowed.isfinite().all() and tensor.isfinite().all():
                raise CheckpointError(
                    f"{source.name} holds values up to {tensor.abs().max():.3g} in {key}, beyond the range "
                    f"of {dtype}. Convert to bfloat16 instead."
                )
            return narrowed

        return write_checkpoint_file(target, tensors, read, config, shared, header.metadata, overwrite)


def write_checkpoint_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    read: Callable[[str], Tensor],
    config: ModelConfig,
    shared_encoder: bool,  # one VAE encoder serves frames and views
    notes: Mapping[str, str],  # further metadata
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint (`write_safetensors`) with its metadata, as strings and once more as a tensor."""
    sizes = metadata_of(config) | ({SHARED_ENCODER: "true"} if shared_encoder else {})
    others = {key: value for key, value in notes.items() if key != SHARED_ENCODER}
    stored = metadata_tensor(sizes)
    tensors = {**tensors, STORED_METADATA: (stored.dtype, tuple(stored.shape))}
    return write_safetensors(
        path,
        tensors,
        lambda key: stored if key == STORED_METADATA else read(key),
        {**others, **sizes, "format": "pt"},
        overwrite,
    )
