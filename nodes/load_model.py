"""Nodes that load checkpoints, as what travels through MODEL, CLIP_VISION and VAE sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import comfy.clip_vision
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..sv4d2_core.diffusion.checkpoint import check_tensors, open_checkpoint
from ..sv4d2_core.diffusion.config import OFFICIAL_VARIANTS, CLIPVisionConfig, ModelConfig, VAEConfig
from ..sv4d2_core.diffusion.layout import PREFIXES, read_config, read_unet_only
from ..sv4d2_core.diffusion.safetensors_stream import plain_key, read_header
from ..sv4d2_core.diffusion.unet import UNet
from ..sv4d2_core.files import scratch_folder
from ..sv4d2_core.shipped import TINY_MODEL
from .host import aliases, choice, described, outputs
from .host_model import declared, with_identity_post_quant
from .output_folder import listed_model

WEIGHT_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}

_READABLE = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # types that the host reads, its fp8 files included


def _loader_inputs(name: str, kind: str) -> list[io.Input]:
    return [
        io.Combo.Input(name, options=folder_paths.get_filename_list(kind)),
        choice("variant", ["auto", *OFFICIAL_VARIANTS]),
        choice("weight_dtype", WEIGHT_DTYPES),
    ]


def register_tiny_model() -> None:
    """Let the host's checkpoint lists name `sv4d2_tiny`; doing so again changes nothing."""
    folder_paths.add_model_folder_path("checkpoints", str(TINY_MODEL.parent))


class SV4D2CheckpointLoader(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2CheckpointLoader",
            category="SV4D2/load",
            inputs=_loader_inputs("ckpt_name", "checkpoints"),
            outputs=outputs(model=io.Model, clip_vision=io.ClipVision, vae=io.Vae),
            **aliases("stable video 4d", "sv4d", "novel view", "4d", "checkpoint"),
        )

    @classmethod
    def execute(cls, ckpt_name: str, variant: str, weight_dtype: str) -> io.NodeOutput:
        path = listed_model("checkpoints", ckpt_name)
        return io.NodeOutput(*load_checkpoint(str(path), variant, weight_dtype))


class SV4D2UNETLoader(io.ComfyNode):
    @described
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SV4D2UNETLoader",
            category="SV4D2/load",
            inputs=_loader_inputs("unet_name", "diffusion_models"),
            outputs=outputs(model=io.Model),
            **aliases("stable video 4d", "sv4d", "unet", "diffusion model", "fp8"),
        )

    @classmethod
    def execute(cls, unet_name: str, variant: str, weight_dtype: str) -> io.NodeOutput:
        path = listed_model("diffusion_models", unet_name)
        return io.NodeOutput(load_unet(str(path), variant, weight_dtype))


def load_checkpoint(path: str, variant: str, weight_dtype: str) -> tuple[Any, Any, Any]:
    """Return MODEL, CLIP_VISION and VAE of a whole checkpoint. Raises CheckpointError for another file.

    The VAE's ``sv4d2_views`` is a VAE that encodes reference views, None where one encoder serves both.
    """
    with open_checkpoint(path, variant) as (_, config, networks, _):
        one_encoder = "view_encoder" not in networks
    state_dict = _state_dict(path)
    model = _build_model(state_dict, config, weight_dtype)  # takes the UNet's weights out of the dict
    _remember(model, load_unet, path, variant, weight_dtype)
    vae = _build_vae(state_dict, "frame_encoder", config.vae)
    _remember(vae.patcher, _load_patcher, path, variant, "vae")
    vae.sv4d2_views = None
    if not one_encoder:
        vae.sv4d2_views = _build_vae(state_dict, "view_encoder", config.vae)
        vae.sv4d2_views.first_stage_model.decoder = torch.nn.Identity()  # it only encodes
    clip_vision = _build_clip_vision(state_dict, config.clip)
    _remember(clip_vision.patcher, _load_patcher, path, variant, "clip_vision")
    return model, clip_vision, vae


def _state_dict(path: str) -> dict[str, Tensor]:
    return {plain_key(key): x for key, x in comfy.utils.load_torch_file(path, safe_load=True).items()}


def _load_patcher(path: str, variant: str, part: str, **_options: Any) -> Any:
    """Return the patcher of a checkpoint's VAE or image tower, loaded anew; a second encoder stays."""
    config = read_config(read_header(path), variant)
    state_dict = _state_dict(path)
    if part == "vae":
        return _build_vae(state_dict, "frame_encoder", config.vae).patcher
    return _build_clip_vision(state_dict, config.clip).patcher


def load_unet(path: str, variant: str, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """Return the MODEL of a file that holds at least the UNet, with or without the official prefix.

    ``disable_dynamic`` makes hosts that load weights on demand load them all. Raises CheckpointError for
    another file.
    """
    header = read_header(path)
    config, prefix = read_unet_only(header, variant)
    shapes = UNet(config.unet, device="meta").state_dict()
    required = {prefix + key: tuple(tensor.shape) for key, tensor in shapes.items()}
    check_tensors(header, required, _READABLE)
    state_dict = _state_dict(path)
    model = _build_model(state_dict, config, weight_dtype, disable_dynamic)
    _remember(model, load_unet, path, variant, weight_dtype)
    return model


def _build_model(
    state_dict: dict[str, Tensor], config: ModelConfig, weight_dtype: str, disable_dynamic: bool = False
) -> Any:
    """Return the host's MODEL of the UNet in a state dict, with or without the official prefix."""
    dtype = WEIGHT_DTYPES[weight_dtype]
    dynamic = {"disable_dynamic": True} if disable_dynamic else {}
    with declared(config):
        return comfy.sd.load_diffusion_model_state_dict(
            state_dict, model_options={} if dtype is None else {"dtype": dtype}, **dynamic
        )


def _remember(patcher: Any, load: Callable[..., Any], *arguments: str) -> None:
    """Tell newer hosts how a patcher is loaded again, for another device or all at once."""
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (load, arguments)


def _build_vae(state_dict: dict[str, Tensor], encoder: str, config: VAEConfig) -> Any:
    """Return the host's VAE of one of the encoders and the decoder."""
    prefix = PREFIXES[encoder]
    parts = {
        key.removeprefix(prefix): tensor
        for key, tensor in state_dict.items()
        if key.startswith((prefix + "encoder.", prefix + "quant_conv."))
    }
    for key, tensor in state_dict.items():
        if key.startswith(PREFIXES["decoder"]):
            parts["decoder." + key.removeprefix(PREFIXES["decoder"])] = tensor
    sizes = {
        "double_z": True,
        "z_channels": config.latent_channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.base,
        "ch_mult": list(config.multipliers),
        "num_res_blocks": config.res_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"ddconfig": sizes, "embed_dim": config.latent_channels}
    given = None if config == VAEConfig() else {"params": params}  # the host knows official sizes
    vae = comfy.sd.VAE(sd=with_identity_post_quant(parts), config=given)
    vae.downscale_ratio = vae.upscale_ratio = config.downsampling
    return vae


def _build_clip_vision(state_dict: dict[str, Tensor], config: CLIPVisionConfig) -> Any:
    sizes = {
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.width // config.head_width,
        "intermediate_size": config.mlp_width,
        "hidden_act": "gelu",
        "num_channels": 3,
        "patch_size": config.patch,
        "image_size": config.image_size,
        "projection_dim": config.embed_dim,
    }
    with scratch_folder() as folder:  # the host reads sizes from a file only
        path = folder / "clip_vision.json"
        path.write_text(json.dumps(sizes))
        clip_vision = comfy.clip_vision.ClipVisionModel(str(path))
    prefix = PREFIXES["clip"]
    tower = {key: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    missing, _ = clip_vision.load_sd(comfy.clip_vision.convert_to_transformers(tower, prefix))
    if missing:
        raise RuntimeError(
            f"This ComfyUI names CLIP vision's weights differently; not found: {missing[:3]}. Please report "
            f"it with the version of ComfyUI."
        )
    return clip_vision
