"""What is in an official SV4D 2.0 file: its parts, and the sizes that its tensors and metadata determine."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from .config import OFFICIAL_VARIANTS, ModelConfig, UNetConfig
from .identify import UNET_PREFIX, identify, is_sv4d2, unet_prefix
from .safetensors_stream import METADATA_KEY, NEEDED, CheckpointError, Header, TensorInfo, read_header
from .sizes import MetadataReader, positive_int, read_clip, read_unet, read_vae, three_ints, true_or_false

__all__ = [
    "EXPECTED_UNUSED",
    "NEEDED",
    "PARTS",
    "SHARED_ENCODER",
    "STORED_METADATA",
    "CheckpointError",
    "Header",
    "TensorInfo",
    "metadata_of",
    "parts_of",
    "read_config",
    "read_header",
    "read_unet_only",
    "require_parts",
    "variant_of",
]

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
