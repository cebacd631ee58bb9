"""What is in an SV4D 2.0 file: its parts, and the sizes that its tensors and metadata determine."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..messages import cut, listed
from .config import OFFICIAL_VARIANTS, CLIPVisionConfig, ModelConfig, UNetConfig, VAEConfig
from .safetensors_stream import METADATA_KEY, NEEDED, CheckpointError, Header

UNET_PREFIX = "model.diffusion_model."
# Metadata that declares that one VAE encoder serves frames and views.
SHARED_ENCODER = "sv4d2.shared_encoder"
# The tensor that repeats our metadata lies in the UNet, whose tensors every loader hands on.
STORED_METADATA = UNET_PREFIX + METADATA_KEY
# Metadata that belongs to a variant, so that choosing another variant by hand sets it aside.
_OF_THE_VARIANT = ("variant", "view_mixing", "n_frames", "n_views", "guidance", "cfg_min", "cfg_max")
# Fields of `ModelConfig` that metadata may hold under the same name.
_MODEL_FIELDS = tuple(
    field.name for field in fields(ModelConfig) if field.name not in ("variant", "unet", "vae", "clip")
)

# Parts of the official file that inference never reads: the motion encoder, the decoders of the two other
# conditioning autoencoders, and what is left of CLIP's text tower. And our metadata, read with the header.
EXPECTED_UNUSED = re.compile(
    r"conditioner\.embedders\.5\."
    r"|conditioner\.embedders\.[14]\.encoder\.(decoder|post_quant_conv)\."
    r"|conditioner\.embedders\.0\.open_clip\.(?!model\.visual\.)"
    rf"|{re.escape(STORED_METADATA)}"
)

_FIRST_KEY = "input_blocks.0.0.weight"
_LORA_MARKS = ("lora_up.", "lora_down.", "lora_A.", "lora_B.", "lora.up.", "lora.down.", "hada_w1", "lokr_w1")
_LORA_DOWNS = ("lora_down.", "lora_A.", "lora.down.", "hada_w1_a", "lokr_w1")  # never zero
# What all keys of a file start with that is one of these.
_WHOLE_FILES = {
    "a CLIP model alone": ("visual.", "open_clip.", "vision_model.", "text_model.", "transformer.resblocks."),
    "a VAE alone": ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "first_stage_model.", "vae."),
}
_OUR_FILES = {  # by the metadata that only they have
    "sv4d2.scene": "a 4D scene, which `sv4d2 render` and `sv4d2 export` take",
    "sv4d2.fit": "the state of a fit, with which `sv4d2 refine` goes on",
}
_SVD_FAMILY = {768: "SVD (Stable Video Diffusion)", 256: "SV3D_u", 1280: "SV3D_p"}

# Of any size or setting that metadata may state.
_LARGEST = 1 << 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A network inside the file."""

    name: str  # field of `Model` that holds it
    title: str  # what a message calls it
    prefix: str  # what its keys start with
    subsets: tuple[str, ...] = ("",)  # what they go on with; others under the prefix belong to no part

    def owns(self, key: str) -> bool:
        return key.startswith(self.prefix) and key.removeprefix(self.prefix).startswith(self.subsets)


_ENCODER = ("encoder.", "quant_conv.")
PARTS = (
    Part("unet", "UNet", UNET_PREFIX),
    Part("clip", "CLIP image tower", "conditioner.embedders.0.open_clip.model.visual."),
    Part("frame_encoder", "VAE encoder of the frames", "conditioner.embedders.1.encoder.", _ENCODER),
    Part("view_encoder", "VAE encoder of the views", "conditioner.embedders.4.encoder.", _ENCODER),
    Part("decoder", "VAE decoder", "first_stage_model.decoder."),
)
PREFIXES = {part.name: part.prefix for part in PARTS}


def parts_of(header: Header) -> tuple[Part, ...]:
    """Return the parts that a file must hold: all, or all but a view encoder declared shared."""
    shared = header.metadata.get(SHARED_ENCODER) == "true"
    return tuple(p for p in PARTS if p.name != "view_encoder" or not shared or _has(header, p))


def _has(header: Header, part: Part) -> bool:
    return any(map(part.owns, header.tensors))


def unet_prefix(keys: Collection[str]) -> str | None:
    """Return what the keys of an SV4D 2.0 UNet start with, or None where there is no such UNet."""
    starts = tuple(key.removesuffix(_FIRST_KEY) for key in keys if key.endswith(_FIRST_KEY))
    mixers = [key for key in keys if ".time_mixer_motion." in key]
    return next((start for start in starts if any(key.startswith(start) for key in mixers)), None)


def read_config(header: Header, variant: str = "auto") -> ModelConfig:
    """Return the sizes of a checkpoint: from its tensors, then its metadata, else the official values.

    Raises CheckpointError for another file, missing parts, contradictions, or a variant that cannot be told.
    """
    if unet_prefix(header.tensors) != UNET_PREFIX:
        raise CheckpointError(f"{header.path.name} is {_kind_of_file(header)}. {NEEDED}")
    if absent := [part for part in parts_of(header) if not _has(header, part)]:
        names = ", ".join(f"{part.title} ({part.prefix}*)" for part in absent)
        raise CheckpointError(
            f"{header.path.name} is an SV4D 2.0 model without {len(absent)} of its parts: {names}. {NEEDED}"
        )
    return read_unet_only(header, variant)[0]


def read_unet_only(header: Header, variant: str = "auto") -> tuple[ModelConfig, str]:
    """Return the sizes of a file with at least a UNet, and its keys' prefix; raises as `read_config`."""
    prefix = unet_prefix(header.tensors)
    if prefix is None:
        raise CheckpointError(f"{header.path.name} is {_kind_of_file(header)}. {NEEDED}")
    chosen = variant_of(header, variant)
    official, metadata = OFFICIAL_VARIANTS[chosen], _metadata_for(header, chosen)
    try:
        values = {field: _read_field(metadata, field, getattr(official, field)) for field in _MODEL_FIELDS}
        unet = _read_unet(header, prefix, metadata, official.unet)
        config = ModelConfig(variant=chosen, unet=unet, **values)
        if prefix == UNET_PREFIX and all(_has(header, part) for part in parts_of(header)):
            vae = read_vae(header, PREFIXES["frame_encoder"])
            clip = read_clip(header, PREFIXES["clip"], metadata, official.clip)
            config = replace(config, vae=vae, clip=clip)
        return config, prefix
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(
            f"The sizes of {header.path.name} do not fit together: {error} A file of another size than the "
            f"official one must name in its metadata what tensors cannot tell: sv4d2.num_head_channels, "
            f"sv4d2.vector_dims, sv4d2.clip_head_width."
        ) from error


def _kind_of_file(header: Header) -> str:
    """Return a phrase that names the kind of file, e.g. ``a LoRA``."""
    for mark, kind in _OUR_FILES.items():
        if mark in header.metadata:
            return kind
    keys = header.tensors.keys()
    if not keys:
        return "a safetensors file without tensors"
    if any(mark in key for key in keys for mark in _LORA_MARKS):
        downs = [key for key in keys if any(mark in key for mark in _LORA_DOWNS) and key in header.starts]
        zeros = sum(header.blank(downs)) if downs else 0
        damage = f", damaged: {zeros} of {len(downs)} of its first factors hold only zeros" if zeros else ""
        return f"a LoRA (changes to a model, not a model){damage}"
    if UNET_PREFIX + _FIRST_KEY in keys:
        return _kind_of_unet(header, UNET_PREFIX)
    if _FIRST_KEY in keys:
        kind = _kind_of_unet(header, "")
        return f"a UNet without the other parts and without the prefix {UNET_PREFIX!r}: {kind}"
    if any(key.startswith(("down_blocks.", "unet.down_blocks.")) for key in keys):
        return "a UNet in diffusers format (official layout is needed)"
    if any(key.startswith(("double_blocks.", "transformer_blocks.", "blocks.")) for key in keys):
        return "a diffusion transformer of another model family"
    for kind, starts in _WHOLE_FILES.items():
        if all(key.startswith(starts) for key in keys):
            return kind
    return f"an unknown kind of model ({len(keys)} tensors: {listed(keys)})"


def _kind_of_unet(header: Header, prefix: str) -> str:
    def has(mark: str) -> bool:
        return any(key.startswith(prefix) and mark in key for key in header.tensors)

    # SV4D 1 blends its view and motion blocks by one factor, SV4D 2.0 has a second: time_mixer_motion.
    if has(".time_mixer_motion."):
        return "an SV4D 2.0 model"
    if has(".motion_blocks."):
        return "SV4D 1 (Stable Video 4D, the first version; 2.0 has other blocks)"
    if has(".time_stack."):
        label = header.tensors.get(prefix + "label_emb.0.0.weight")
        width = label.shape[1] if label and len(label.shape) == 2 else 0
        return _SVD_FAMILY.get(width, f"a model of the SVD family (vector width {width})")
    if has(".time_mix_blocks."):
        return "a video model of SV4D's family without motion blocks"
    return "an image diffusion model (Stable Diffusion or a relative)"


def variant_of(header: Header, variant: str = "auto") -> str:
    """Return the variant: as asked, else by metadata or file name (shapes cannot tell); CheckpointError."""
    names = " or ".join(OFFICIAL_VARIANTS)
    if variant in OFFICIAL_VARIANTS:
        return variant
    if variant != "auto":
        raise CheckpointError(f"Expected variant auto, {names}; got {variant!r}. Choose one of these.")
    file, stored = header.path.name, header.metadata.get("sv4d2.variant")
    if stored in OFFICIAL_VARIANTS:
        return stored
    if stored is not None:
        raise CheckpointError(
            f"{file} names its variant {cut(repr(stored))} (metadata sv4d2.variant); expected {names}. "
            f"Choose one by hand."
        )
    if re.search(r"8[-_ ]?views?", file.lower()):
        return "sv4d2_8views"
    if "sv4d2" in file.lower():
        return "sv4d2"
    raise CheckpointError(
        f"The variant of {file!r} cannot be told: the weights of both have the same shapes, the file has no "
        f"metadata sv4d2.variant, and its name holds neither 'sv4d2' nor '8views'. Choose variant {names} by "
        f"hand, or rename the file to sv4d2.safetensors or sv4d2_8views.safetensors."
    )


def _metadata_for(header: Header, variant: str) -> dict[str, str]:
    """Return our metadata by its short names, without what belongs to a variant that was not chosen."""
    metadata = {k.removeprefix("sv4d2."): v for k, v in header.metadata.items() if k.startswith("sv4d2.")}
    stored = metadata.get("variant", variant)
    if stored == variant:
        return metadata
    log.warning("%s says that it is %s; used as %s, as chosen.", header.path.name, stored, variant)
    return {k: v for k, v in metadata.items() if k not in _OF_THE_VARIANT}


def metadata_of(config: ModelConfig, variant_known: bool = True) -> dict[str, str]:
    """Return the metadata from which, with the tensors, `read_config` builds the same config again."""
    values = {
        "variant": config.variant,
        "view_mixing": config.unet.view_mixing,
        "num_head_channels": config.unet.head_channels,
        "clip_head_width": config.clip.head_width,
        **{field: getattr(config, field) for field in _MODEL_FIELDS},
    }
    return {
        f"sv4d2.{key}": _as_text(value)
        for key, value in values.items()
        if variant_known or key not in _OF_THE_VARIANT
    }


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _from_text(text: str, default: Any) -> Any:
    """Return what `_as_text` was given, a value of the type of ``default``."""
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ValueError("expected true or false")
        return text == "true"
    if isinstance(default, tuple):
        values = tuple(_from_text(part, 1) for part in text.split(","))
        if len(values) != len(default):
            raise ValueError(f"expected three integers such as 256,512,512, got {len(values)}")
        return values
    value = type(default)(text)
    if isinstance(default, int) and not 1 <= value <= _LARGEST:
        raise ValueError(f"expected a whole number from 1 to {_LARGEST}")
    if isinstance(default, float) and not 0 <= value <= _LARGEST:
        raise ValueError(f"expected a number from 0 to {_LARGEST}")
    return value


def _read_field(metadata: Mapping[str, str], key: str, default: Any) -> Any:
    """Return the metadata sv4d2.<key>, or ``default`` where there is none."""
    if key not in metadata:
        return default
    try:
        return _from_text(metadata[key], default)
    except ValueError as error:
        raise CheckpointError(
            f"The metadata sv4d2.{key} = {cut(repr(metadata[key]))} cannot be read: {cut(error)}. Correct it."
        ) from error


def _read_unet(header: Header, prefix: str, metadata: Mapping[str, str], official: UNetConfig) -> UNetConfig:
    base = _shape(header, prefix + _FIRST_KEY, 4)[0]
    # Each level is a list of (channel multiplier, has attention), one entry per residual block.
    levels: list[list[tuple[int, bool]]] = [[]]
    for i in range(1, _count(header, prefix + "input_blocks.")):
        block = f"{prefix}input_blocks.{i}."
        if any(key.startswith(block + "0.op.") for key in header.tensors):
            levels.append([])
            continue
        has_attention = any(key.startswith(block + "1.") for key in header.tensors)
        levels[-1].append((_multiplier(header, block + "0.in_layers.2.weight", base), has_attention))
    if not levels[0] or any(len(level) != len(levels[0]) or len(set(level)) != 1 for level in levels):
        counts = [len(level) for level in levels]
        raise ValueError(
            f"The UNet's levels must have equally many, equal blocks; got {counts} blocks per level."
        )
    attention = [level[0][1] for level in levels]
    if attention != sorted(attention, reverse=True):
        raise ValueError(f"Attention must fill the UNet's levels from the top; got {attention}.")
    return UNetConfig(
        view_mixing=_read_field(metadata, "view_mixing", official.view_mixing),
        base=base,
        multipliers=tuple(level[0][0] for level in levels),
        res_blocks=len(levels[0]),
        attention_levels=sum(attention),
        head_channels=_read_field(metadata, "num_head_channels", official.head_channels),
        context_dim=_shape(header, prefix + "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        vector_dim=_shape(header, prefix + "label_emb.0.0.weight", 2)[1],
        latent_channels=_shape(header, prefix + "out.2.weight", 4)[0],
    )


def read_vae(header: Header, prefix: str) -> VAEConfig:
    base = _shape(header, prefix + "encoder.conv_in.weight", 4)[0]
    down = prefix + "encoder.down."
    levels = range(_count(header, down))
    return VAEConfig(
        base=base,
        multipliers=tuple(_multiplier(header, f"{down}{i}.block.0.conv1.weight", base) for i in levels),
        res_blocks=_count(header, down + "0.block."),
        latent_channels=_shape(header, prefix + "quant_conv.weight", 4)[0] // 2,
    )


def read_clip(
    header: Header, prefix: str, metadata: Mapping[str, str], official: CLIPVisionConfig
) -> CLIPVisionConfig:
    width, _, patch, _ = _shape(header, prefix + "conv1.weight", 4)
    tokens = _shape(header, prefix + "positional_embedding", 2)[0]
    head_width = _read_field(metadata, "clip_head_width", official.head_width)
    if width % head_width:
        raise ValueError(f"The CLIP width {width} is no multiple of its head width {head_width}.")
    return CLIPVisionConfig(
        width=width,
        layers=_count(header, prefix + "transformer.resblocks."),
        head_width=head_width,
        mlp_width=_shape(header, prefix + "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        patch=patch,
        # One token is the class token, the others are a square of patches.
        image_size=round((tokens - 1) ** 0.5) * patch,
        embed_dim=_shape(header, prefix + "proj", 2)[1],
    )


def _shape(header: Header, key: str, ndim: int) -> tuple[int, ...]:
    if key not in header.tensors:
        raise CheckpointError(
            f"{header.path.name} lacks {key}, from which the model's size is read: the file is incomplete. "
            f"{NEEDED}"
        )
    shape = header.tensors[key].shape
    if len(shape) != ndim or 0 in shape:
        raise CheckpointError(
            f"Expected {cut(key)} with {ndim} dimensions above 0; got {cut(list(shape))}. {NEEDED}"
        )
    return shape


def _count(header: Header, prefix: str) -> int:
    """Return how many n there are with a key ``prefix + n + '.'``, counted from 0 without a gap."""
    found = (re.match(r"([0-9]+)\.", k.removeprefix(prefix)) for k in header.tensors if k.startswith(prefix))
    numbers = {m[1] for m in found if m}
    if absent := [n for n in map(str, range(len(numbers))) if n not in numbers]:
        raise CheckpointError(
            f"{header.path.name} has {len(numbers)} layers {cut(prefix)}*, but none of number {absent[0]}: "
            f"it is damaged or another model's. {NEEDED}"
        )
    return len(numbers)


def _multiplier(header: Header, key: str, base: int) -> int:
    """Return how many times the base width a convolution's output is wide."""
    channels = _shape(header, key, 4)[0]
    if base <= 0 or channels <= 0 or channels % base:
        raise ValueError(f"{key} has {channels} channels, which is no multiple of the base width {base}.")
    return channels // base
