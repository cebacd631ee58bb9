"""What is in an official SV4D 2.0 file: its parts, and the sizes that its tensors and metadata determine."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from .config import OFFICIAL_VARIANTS, CLIPVisionConfig, ModelConfig, UNetConfig, VAEConfig
from .safetensors_stream import METADATA_KEY, NEEDED, CheckpointError, Header

UNET_PREFIX = "model.diffusion_model."

_LORA_MARKS = ("lora_up.", "lora_down.", "lora_A.", "lora_B.", "lora.up.", "lora.down.", "hada_w1", "lokr_w1")
_CLIP_STARTS = ("visual.", "open_clip.", "vision_model.", "text_model.", "transformer.resblocks.")
_VAE_STARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "first_stage_model.", "vae.")


def unet_prefix(keys: Collection[str]) -> str | None:
    """Return what the keys of an SV4D 2.0 UNet start with, or None where there is no such UNet.

    Only SV4D 2.0 blends its motion blocks by a factor of their own; SV4D 1 and SV3D have no such key.
    """
    first = "input_blocks.0.0.weight"
    prefixes = (key.removesuffix(first) for key in keys if key.endswith(first))
    return next(
        (p for p in prefixes if any(k.startswith(p) and ".time_mixer_motion." in k for k in keys)), None
    )


def is_sv4d2(header: Header) -> bool:
    """Return whether the UNet of an official-layout file is SV4D 2.0's (other parts may still be missing)."""
    return unet_prefix(header.tensors) == UNET_PREFIX


def identify(header: Header) -> str:
    """Return a phrase that names the kind of file, e.g. ``a LoRA``."""
    keys = header.tensors.keys()
    if not keys:
        return "a safetensors file without tensors"
    if any(mark in key for key in keys for mark in _LORA_MARKS):
        return "a LoRA (changes to a model, not a model)"
    for prefix in (UNET_PREFIX, ""):
        if prefix + "input_blocks.0.0.weight" in keys:
            kind = _unet_kind(header, prefix)
            return (
                kind
                if prefix
                else f"a UNet without the other parts and without the prefix {UNET_PREFIX!r}: {kind}"
            )
    if any(key.startswith(("down_blocks.", "unet.down_blocks.")) for key in keys):
        return "a UNet in diffusers format (official layout is needed)"
    if any(key.startswith(("double_blocks.", "transformer_blocks.", "blocks.")) for key in keys):
        return "a diffusion transformer of another model family"
    if _all_start(keys, _CLIP_STARTS):
        return "a CLIP model alone"
    if _all_start(keys, _VAE_STARTS):
        return "a VAE alone"
    first = ", ".join(list(keys)[:3])
    return f"an unknown kind of model ({len(keys)} tensors: {first}, ...)"


def _unet_kind(header: Header, prefix: str) -> str:
    unet = [key for key in header.tensors if key.startswith(prefix)]
    label = header.tensors.get(prefix + "label_emb.0.0.weight")
    vector_dim = label.shape[1] if label and len(label.shape) == 2 else 0
    if any(".time_mixer_motion." in key for key in unet):
        return "an SV4D 2.0 model"
    # SV4D 1 blends its view and motion blocks by one factor, SV4D 2.0 has a second: time_mixer_motion.
    if any(".motion_blocks." in key for key in unet):
        return "SV4D 1 (Stable Video 4D, the first version; 2.0 has other blocks)"
    if any(".time_stack." in key for key in unet):
        names = {768: "SVD (Stable Video Diffusion)", 256: "SV3D_u", 1280: "SV3D_p"}
        return names.get(vector_dim, f"a model of the SVD family (vector width {vector_dim})")
    if any(".time_mix_blocks." in key for key in unet):
        return "a video model of SV4D's family without motion blocks"
    return "an image diffusion model (Stable Diffusion or a relative)"


def _all_start(keys: Iterable[str], starts: tuple[str, ...]) -> bool:
    return all(key.startswith(starts) for key in keys)


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


SHARED_ENCODER = "sv4d2.shared_encoder"

# Metadata that belongs to a variant, so that choosing another variant by hand sets it aside.
_OF_THE_VARIANT = ("variant", "view_mixing", "n_frames", "n_views", "guidance", "cfg_min", "cfg_max")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A network inside the file.

    Args:
        name: field of `Model` that holds it.
        title: what a message calls it.
        prefix: what its keys start with.
        subsets: what its keys go on with; keys elsewhere under the prefix belong to no part.
    """

    name: str
    title: str
    prefix: str
    subsets: tuple[str, ...] = ("",)

    def owns(self, key: str) -> bool:
        """Return whether a key belongs to this part."""
        return key.startswith(self.prefix) and key.removeprefix(self.prefix).startswith(self.subsets)


PARTS = (
    Part("unet", "UNet", UNET_PREFIX),
    Part("clip", "CLIP image tower", "conditioner.embedders.0.open_clip.model.visual."),
    Part(
        "frame_encoder",
        "VAE encoder of the frames",
        "conditioner.embedders.1.encoder.",
        ("encoder.", "quant_conv."),
    ),
    Part(
        "view_encoder",
        "VAE encoder of the views",
        "conditioner.embedders.4.encoder.",
        ("encoder.", "quant_conv."),
    ),
    Part("decoder", "VAE decoder", "first_stage_model.decoder."),
)
_PREFIX = {part.name: part.prefix for part in PARTS}

# It lies in the UNet, whose tensors every loader hands on.
STORED_METADATA = UNET_PREFIX + METADATA_KEY

# Parts of the official file that inference never reads: the motion encoder, the decoders of the two other
# conditioning autoencoders, and what is left of CLIP's text tower. And our metadata, read with the header.
EXPECTED_UNUSED = re.compile(
    r"conditioner\.embedders\.5\."
    r"|conditioner\.embedders\.[14]\.encoder\.(decoder|post_quant_conv)\."
    r"|conditioner\.embedders\.0\.open_clip\.(?!model\.visual\.)"
    rf"|{re.escape(STORED_METADATA)}"
)


def parts_of(header: Header) -> tuple[Part, ...]:
    """Return the parts that a file must hold: all, or all but a view encoder declared shared."""
    shared = header.metadata.get(SHARED_ENCODER) == "true"
    return tuple(
        part
        for part in PARTS
        if not (shared and part.name == "view_encoder" and not any(map(part.owns, header.tensors)))
    )


def _absent_parts(header: Header) -> list[Part]:
    return [part for part in parts_of(header) if not any(map(part.owns, header.tensors))]


def require_parts(header: Header) -> None:
    """Raise CheckpointError, with the file's kind, unless it is an SV4D 2.0 file with every part present."""
    if not is_sv4d2(header):
        raise CheckpointError(f"{header.path.name} is {identify(header)}. {NEEDED}")
    absent = _absent_parts(header)
    if absent:
        names = ", ".join(f"{p.title} ({p.prefix}*)" for p in absent)
        raise CheckpointError(
            f"{header.path.name} is an SV4D 2.0 model without {len(absent)} of its parts: {names}. {NEEDED}"
        )


def variant_of(header: Header, variant: str = "auto", name: str = "") -> str:
    """Return ``sv4d2`` or ``sv4d2_8views``: as asked, else from the metadata, else from the file name.

    The weights of the two variants have the same shapes, so they cannot tell.

    Raises:
        CheckpointError: an unknown variant, or nothing that tells which one it is.
    """
    names = " or ".join(OFFICIAL_VARIANTS)
    if variant != "auto":
        if variant not in OFFICIAL_VARIANTS:
            raise CheckpointError(f"Expected variant auto, {names}; got {variant!r}. Choose one of these.")
        return variant
    stored = header.metadata.get("sv4d2.variant")
    if stored is not None:
        if stored not in OFFICIAL_VARIANTS:
            raise CheckpointError(
                f"{header.path.name} names its variant {stored!r} (metadata sv4d2.variant); expected "
                f"{names}. Choose one by hand."
            )
        return stored
    name = (name or header.path.name).lower()
    if re.search(r"8[-_ ]?views?", name):
        return "sv4d2_8views"
    if "sv4d2" in name:
        return "sv4d2"
    raise CheckpointError(
        f"The variant of {name!r} cannot be told: the weights of both have the same shapes, the file has no "
        f"metadata sv4d2.variant, and its name holds neither 'sv4d2' nor '8views'. Choose variant {names} by "
        f"hand, or rename the file to sv4d2.safetensors or sv4d2_8views.safetensors."
    )


def read_config(header: Header, variant: str = "auto", name: str = "") -> ModelConfig:
    """Return the sizes of a checkpoint: from its tensors, then its metadata, else the official values.

    Args:
        header: what `read_header` returned.
        variant: ``sv4d2``, ``sv4d2_8views`` or ``auto``.
        name: file name that ``auto`` may read the variant from; default the header's.

    Raises:
        CheckpointError: not an SV4D 2.0 file, parts or keys missing, sizes that contradict each other,
            metadata that cannot be read, or a variant that cannot be told.
    """
    require_parts(header)
    chosen, metadata = _variant_and_metadata(header, variant, name)
    official = OFFICIAL_VARIANTS[chosen]
    with _sizes_that_fit(header):
        unet = read_unet(header, _PREFIX["unet"], metadata, official.unet)
        return replace(
            _with_unet(chosen, metadata, unet),
            vae=read_vae(header, _PREFIX["frame_encoder"]),
            clip=read_clip(header, _PREFIX["clip"], metadata, official.clip),
        )


def read_unet_only(header: Header, variant: str = "auto") -> tuple[ModelConfig, str]:
    """Return the sizes of a file that holds at least the UNet, and what its UNet's keys start with.

    The autoencoder's and the image tower's sizes are the official ones unless the file holds these parts.

    Raises:
        CheckpointError: no SV4D 2.0 UNet, or as `read_config`.
    """
    prefix = unet_prefix(header.tensors)
    if prefix is None:
        raise CheckpointError(f"{header.path.name} is {identify(header)}. {NEEDED}")
    if prefix == UNET_PREFIX and not _absent_parts(header):
        return read_config(header, variant), prefix
    chosen, metadata = _variant_and_metadata(header, variant)
    with _sizes_that_fit(header):
        unet = read_unet(header, prefix, metadata, OFFICIAL_VARIANTS[chosen].unet)
        return _with_unet(chosen, metadata, unet), prefix


def _variant_and_metadata(header: Header, variant: str, name: str = "") -> tuple[str, dict[str, str]]:
    """Return the variant, and our metadata without what belongs to a variant that was not chosen."""
    chosen = variant_of(header, variant, name)
    metadata = {k.removeprefix("sv4d2."): v for k, v in header.metadata.items() if k.startswith("sv4d2.")}
    if metadata.get("variant", chosen) != chosen:
        _logger.warning(
            "%s says that it is %s; used as %s, as chosen.", header.path.name, metadata["variant"], chosen
        )
        metadata = {k: v for k, v in metadata.items() if k not in _OF_THE_VARIANT}
    return chosen, metadata


def _with_unet(variant: str, metadata: dict[str, str], unet: UNetConfig) -> ModelConfig:
    """Return a model's sizes and sampling defaults; autoencoder and image tower are the official ones."""
    read = MetadataReader(metadata, OFFICIAL_VARIANTS[variant])
    return ModelConfig(
        variant=variant,
        n_frames=read("n_frames", positive_int),
        n_views=read("n_views", positive_int),
        vector_dims=read("vector_dims", three_ints),
        size=read("size", positive_int),
        sigma_min=read("sigma_min", float),
        sigma_max=read("sigma_max", float),
        scale_factor=read("scale_factor", float),
        guidance=read("guidance", str),
        cfg_min=read("cfg_min", float),
        cfg_max=read("cfg_max", float),
        trained=read("trained", true_or_false),
        unet=unet,
    )


@contextmanager
def _sizes_that_fit(header: Header) -> Iterator[None]:
    """Turn a contradiction between sizes into an error that says what a file must name."""
    try:
        yield
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(
            f"The sizes of {header.path.name} do not fit together: {error} A file of another size than the "
            f"official one must name in its metadata what tensors cannot tell: sv4d2.num_head_channels, "
            f"sv4d2.vector_dims, sv4d2.clip_head_width."
        ) from error


def metadata_of(config: ModelConfig, variant_known: bool = True) -> dict[str, str]:
    """Return the metadata from which, with the tensors, `read_config` builds the same config again.

    Without the variant and what belongs to it where that is not known.
    """
    metadata = {
        "sv4d2.variant": config.variant,
        "sv4d2.view_mixing": config.unet.view_mixing,
        "sv4d2.num_head_channels": str(config.unet.head_channels),
        "sv4d2.vector_dims": ",".join(map(str, config.vector_dims)),
        "sv4d2.clip_head_width": str(config.clip.head_width),
        "sv4d2.n_frames": str(config.n_frames),
        "sv4d2.n_views": str(config.n_views),
        "sv4d2.size": str(config.size),
        "sv4d2.sigma_min": repr(config.sigma_min),
        "sv4d2.sigma_max": repr(config.sigma_max),
        "sv4d2.scale_factor": repr(config.scale_factor),
        "sv4d2.guidance": config.guidance,
        "sv4d2.cfg_min": repr(config.cfg_min),
        "sv4d2.cfg_max": repr(config.cfg_max),
        "sv4d2.trained": "true" if config.trained else "false",
    }
    if variant_known:
        return metadata
    return {k: v for k, v in metadata.items() if k.removeprefix("sv4d2.") not in _OF_THE_VARIANT}
