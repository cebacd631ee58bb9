"""Nodes that load Stable Video 4D 2.0 checkpoints."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..sv4d2_core.diffusion.config import OFFICIAL_VARIANTS
from .loading import WEIGHT_DTYPES, load_checkpoint, load_unet
from .sockets import aliases


def _variant_input() -> io.Combo.Input:
    return io.Combo.Input(
        "variant",
        options=["auto", *OFFICIAL_VARIANTS],
        default="auto",
        tooltip="sv4d2 makes 12 frames x 4 views at a time, sv4d2_8views 5 x 8. The weights of both look "
        "alike: auto reads the file's metadata, then its name.",
    )


def _weight_dtype_input() -> io.Combo.Input:
    return io.Combo.Input(
        "weight_dtype",
        options=list(WEIGHT_DTYPES),
        default="default",
        tooltip="How the diffusion model is kept in memory. default lets ComfyUI choose for your card; the "
        "fp8 kinds halve fp16's memory at some loss of quality.",
    )


class SV4D2CheckpointLoader(io.ComfyNode):
    """A whole checkpoint as MODEL, CLIP_VISION and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2CheckpointLoader",
            display_name="SV4D2 Load Checkpoint",
            category="SV4D2/load",
            description=(
                "Loads sv4d2.safetensors or sv4d2_8views.safetensors from ComfyUI's checkpoints folder "
                "(huggingface.co/stabilityai/sv4d2.0), or a smaller fp16 copy made with `sv4d2 convert`."
            ),
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=folder_paths.get_filename_list("checkpoints"),
                    tooltip="A Stable Video 4D 2.0 checkpoint in models/checkpoints.",
                ),
                _variant_input(),
                _weight_dtype_input(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The diffusion model."),
                io.ClipVision.Output(
                    display_name="clip_vision", tooltip="The image tower that describes each frame."
                ),
                io.Vae.Output(
                    display_name="vae", tooltip="The autoencoder; encodes frames and reference views."
                ),
            ],
            **aliases("stable video 4d", "sv4d", "novel view", "4d", "checkpoint"),
        )

    @classmethod
    def execute(cls, ckpt_name, variant, weight_dtype) -> io.NodeOutput:
        """Return model, CLIP vision and VAE."""
        path = folder_paths.get_full_path_or_raise("checkpoints", ckpt_name)
        return io.NodeOutput(*load_checkpoint(path, variant, weight_dtype))


class SV4D2UNETLoader(io.ComfyNode):
    """The diffusion model alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's sockets and widgets."""
        return io.Schema(
            node_id="SV4D2UNETLoader",
            display_name="SV4D2 Load Diffusion Model",
            category="SV4D2/load",
            description=(
                "Loads only the diffusion model of Stable Video 4D 2.0 from ComfyUI's diffusion_models "
                "folder. CLIP vision and VAE then come from their own loaders or another checkpoint."
            ),
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A Stable Video 4D 2.0 diffusion model in models/diffusion_models.",
                ),
                _variant_input(),
                _weight_dtype_input(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The diffusion model.")],
            **aliases("stable video 4d", "sv4d", "unet", "diffusion model", "fp8"),
        )

    @classmethod
    def execute(cls, unet_name, variant, weight_dtype) -> io.NodeOutput:
        """Return the model."""
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        return io.NodeOutput(load_unet(path, variant, weight_dtype))
