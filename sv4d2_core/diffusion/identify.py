"""What a safetensors file is when it is not a complete SV4D 2.0 checkpoint, told from its keys."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from .safetensors_stream import Header

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
