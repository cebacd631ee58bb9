"""SV4D 2.0 as a model that ComfyUI detects, loads, patches and samples like its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.supported_models
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ..sv4d2_core.diffusion.blocks import retry_on_oom
from ..sv4d2_core.diffusion.config import OFFICIAL_VARIANTS, ModelConfig, UNetConfig, VAEConfig
from ..sv4d2_core.diffusion.layout import SHARED_ENCODER, metadata_of, read_unet_only, read_vae, unet_prefix
from ..sv4d2_core.diffusion.memory import activation_bytes, chunk_for_card
from ..sv4d2_core.diffusion.safetensors_stream import (
    METADATA_KEY,
    Header,
    TensorInfo,
    metadata_of_bytes,
    metadata_tensor,
)
from ..sv4d2_core.diffusion.sampling import Conditioning
from ..sv4d2_core.diffusion.unet import UNet
from .host import check_cancelled, is_oom, say_once

log = logging.getLogger(__name__)

# The host's stock loaders know neither the file's name nor its metadata, ours sets both aside here.
_declared: ContextVar[ModelConfig | None] = ContextVar("sv4d2_config", default=None)

_PARTS = ("frames", "vectors", "references", "view_mixing")  # of a CONDITIONING, as "sv4d2_" + name


@dataclass(frozen=True)
class WindowConds:
    """One half of guidance for one window of T frames and V views, as it travels through CONDITIONING."""

    context: Tensor  # [1, T, D] image embedding of each frame
    frames: Tensor  # [T, 4, h, w] latents of the frames
    vectors: Tensor  # [V, A] camera vectors
    references: Tensor  # [V, 4, h, w] latents of the reference views
    view_mixing: str

    @classmethod
    def of(cls, half: Conditioning, view_mixing: str) -> WindowConds:
        return cls(half.tokens[None], half.frame_latents, half.vectors, half.reference_latents, view_mixing)

    def to_host(self) -> list[list[Any]]:
        """Return the CONDITIONING socket's value."""
        return [[self.context, {f"sv4d2_{name}": getattr(self, name) for name in _PARTS}]]

    @classmethod
    def of_host(cls, cond: dict[str, Any]) -> WindowConds:
        """Return the window of a condition of the host. Raises ValueError for one of another model."""
        needed: list[Any] = [cond.get(key) for key in ("cross_attn", *(f"sv4d2_{name}" for name in _PARTS))]
        if any(value is None for value in needed):
            raise ValueError(
                "Expected conditioning from SV4D2 Conditioning in positive and negative; got conditioning of "
                "another kind (text prompts have no effect on SV4D 2.0). Connect SV4D2 Conditioning."
            )
        return cls(*needed)

    @property
    def n_views(self) -> int:
        return self.vectors.shape[0]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latents to sample, [T * V, 4, h, w]."""
        return self.context.shape[1] * self.n_views, *self.frames.shape[1:]

    def check_noise(self, noise: Tensor) -> None:
        """Raise ValueError unless latents of this shape are one window."""
        expected = list(self.latent_shape)
        if list(noise.shape) != expected:
            raise ValueError(
                f"Expected latents {expected} ({self.context.shape[1]} frames x {self.n_views} views); got "
                f"{list(noise.shape)}. Connect the latent of SV4D2 Conditioning, unchanged."
            )


@contextmanager
def declared(config: ModelConfig) -> Iterator[None]:
    """Let models that the host builds meanwhile have these sizes."""
    token = _declared.set(config)
    try:
        yield
    finally:
        _declared.reset(token)


class _HostAttention:
    """The host's attention with the pass's options; a reference to the network would keep it alive."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return optimized_attention(q, k, v, heads=heads, transformer_options=self.options)


class HostUNet(UNet):
    """The UNet with ComfyUI's ``operations`` and attention, taking all conditioning at every call."""

    def __init__(
        self,
        config: UNetConfig,
        metadata: Tensor,
        *,
        operations: Any,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        **_detected: Any,
    ) -> None:
        """Build the network; ``metadata`` travels with the weights, so that files of the host keep it."""
        attention = _HostAttention()
        super().__init__(config, operations=operations, attention=attention, dtype=dtype, device=device)
        self.register_buffer(METADATA_KEY, metadata)
        self._attention = attention
        self.dtype = dtype  # read by the host
        self.before_layer = _raise_if_cancelled

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,  # [N, 4, h, w] scaled noisy latents, N = B * T * V ordered (b t v)
        timesteps: Tensor,  # [N], the same for all frames
        context: Tensor,  # [B, T, D] image embedding of each input frame
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        *_args: Any,
        **conds: Any,  # frames [B * T, 4, h, w], y [B * V, A], references [B * V, 4, h, w], view_mixing
    ) -> Tensor:
        """Return the network's prediction, [N, 4, h, w], for any number B of batch elements."""
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._predict, self, wrappers)
        return executor.execute(x, timesteps, context, control, options, **conds)

    def _predict(
        self, x, timesteps, context, _control, options, *, frames, y, references, view_mixing, **_
    ) -> Tensor:
        self.set_view_mixing(view_mixing)
        changes = {**options.get("patches_replace", {}), **options.get("patches", {})}
        if kinds := ", ".join(kind for kind, patches in changes.items() if patches):
            raise ValueError(
                f"Expected the network's own layers; got a model whose {kinds} another node changes, which "
                f"SV4D 2.0 does not know. Remove that node, for example FreeU, HyperTile, Self-Attention or "
                f"Perturbed-Attention Guidance."
            )
        batch, n_frames = context.shape[:2]
        of_first_frame = timesteps.unflatten(0, (batch, n_frames, -1))[:, 0].flatten()
        inputs = torch.cat([x, frames.repeat_interleave(len(x) // len(frames), dim=0)], dim=1)
        forward = super().forward

        def predict() -> Tensor:
            return forward(inputs, of_first_frame, y, self.prepare(context, references))

        self._attention.options = options
        try:
            if torch.compiler.is_compiling():
                return predict()
            return retry_on_oom(predict, self.shrink_parts, is_oom)
        finally:
            self._attention.options = {}


def _raise_if_cancelled() -> None:
    if not torch.compiler.is_compiling():
        check_cancelled()


class FixedCond(comfy.conds.CONDRegular):
    """A condition whose first axis is not the batch of images: never repeated or cut to fit it."""

    def process_cond(self, batch_size: int, *_args: Any, **_kwargs: Any) -> FixedCond:
        return self._copy_with(self.cond)


class SV4D2Model(comfy.model_base.BaseModel):
    """The diffusion model, with the sizes ``sv4d2_config``.

    ``variant_known`` is False when a stock loader built it: the weights of both variants have the same
    shapes, so the number of cameras must tell (`config_for`).
    """

    def __init__(self, model_config: Any, config: ModelConfig, metadata: dict[str, str], device: Any) -> None:
        super().__init__(
            model_config,
            comfy.model_base.ModelType.V_PREDICTION_EDM,
            device=device,
            # The host saves one VAE with a model.
            unet_model=partial(HostUNet, config.unet, metadata_tensor({**metadata, SHARED_ENCODER: "true"})),
        )
        self.sv4d2_config = config
        self.variant_known = "sv4d2.variant" in metadata
        card = comfy.model_management.get_torch_device()
        if card.type != "cpu":
            total = comfy.model_management.get_total_memory(card)
            self.diffusion_model.chunk_bytes = chunk_for_card(total)

    def config_for(self, n_views: int) -> ModelConfig:
        """Return the sizes and defaults to use for a number of novel views."""
        if self.variant_known:
            return self.sv4d2_config
        eight = OFFICIAL_VARIANTS["sv4d2_8views"]
        official = eight if n_views % eight.n_views == 0 else OFFICIAL_VARIANTS["sv4d2"]
        unet = replace(self.sv4d2_config.unet, view_mixing=official.unet.view_mixing)
        say_once(
            logging.INFO,
            f"a stock loader does not know the variant; with {n_views} cameras it is taken as "
            f"{official.variant}. Use SV4D2 Load Checkpoint to choose.",
        )
        return replace(official, unet=unet)

    def extra_conds(self, *_args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return one window's conditions as `HostUNet` takes them. Raises ValueError for what fits none."""
        window = WindowConds.of_host(kwargs)
        window.check_noise(kwargs["noise"])
        if kwargs.get("area") is not None:
            raise ValueError("SV4D 2.0 cannot be limited to an area. Remove the Set Area node.")
        if getattr(self.current_patcher, "model_options", {}).get("context_handler") is not None:
            raise ValueError(
                "SV4D 2.0 needs all frames and views of its window at once. Remove the Context Windows node; "
                "SV4D2 Sampler makes long clips in windows of its own."
            )
        tensors = {
            "c_crossattn": window.context,
            "frames": window.frames,
            "y": window.vectors,
            "references": window.references,
        }
        conds: dict[str, Any] = {name: FixedCond(x.to(kwargs["device"])) for name, x in tensors.items()}
        return {**conds, "view_mixing": comfy.conds.CONDConstant(window.view_mixing)}

    def memory_required(self, input_shape: list[int], *_args: Any, **_kwargs: Any) -> float:
        """Return the bytes of activations for latents of a shape (`memory.activation_bytes`)."""
        dtype = self.manual_cast_dtype or self.get_dtype()
        side = input_shape[-2] * input_shape[-1]
        card = comfy.model_management.get_torch_device()
        chunk = self.diffusion_model.part_bytes(card, dtype.itemsize)
        return float(activation_bytes(self.sv4d2_config, input_shape[0], side, dtype.itemsize, chunk))


class SV4D2(comfy.supported_models.SV3D_p):
    """The entry in the host's list of models, ahead of all others: nothing passed here may make it raise."""

    # The decoder of the first stage replaces the one that is stored beside the encoder.
    vae_key_prefix = ["conditioner.embedders.1.encoder.", "first_stage_model."]

    @classmethod
    def matches(
        cls, unet_config: Any = None, state_dict: dict[str, Any] | None = None, *_args: Any, **_kwargs: Any
    ) -> bool:
        """Return whether a state dict holds an SV4D 2.0 UNet, under any prefix; False whatever goes wrong."""
        try:
            return state_dict is not None and unet_prefix(state_dict.keys()) is not None
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            say_once(
                logging.WARNING,
                f"could not look at a model ({reason}); it is left to ComfyUI's own detection.",
            )
            return False

    def get_model(
        self, state_dict: dict[str, Any], prefix: str = "", device: Any = None, *_args: Any, **_kwargs: Any
    ) -> SV4D2Model:
        """Return the model, without weights."""
        config = _declared.get()
        config, metadata = _config_of_tensors(state_dict) if config is None else (config, metadata_of(config))
        self.sampling_settings = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max}
        self.latent_format.scale_factor = config.scale_factor
        model = SV4D2Model(self, config, metadata, device)
        self._metadata = getattr(model.diffusion_model, METADATA_KEY)
        return model

    def process_unet_state_dict(
        self, state_dict: dict[str, Any], *_args: Any, **_kwargs: Any
    ) -> dict[str, Any]:
        """Return the network's weights with its metadata in them, which official files lack."""
        return {**state_dict, METADATA_KEY: self._metadata}

    def process_vae_state_dict(
        self, state_dict: dict[str, Any], *_args: Any, **_kwargs: Any
    ) -> dict[str, Any]:
        """Return the autoencoder's weights as the host's AutoencoderKL takes them; none of sizes it lacks."""
        if "encoder.conv_in.weight" in state_dict and read_vae(_header_of(state_dict), "") != VAEConfig():
            log.warning(
                "SV4D2: ComfyUI's own loaders cannot build this file's small VAE; the model is loaded. SV4D2 "
                "Load Checkpoint brings the VAE and the image tower, too."
            )
            return {}
        return with_identity_post_quant(state_dict)


def with_identity_post_quant(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with an identity ``post_quant_conv``, which SV4D 2.0 lacks and the host's class has."""
    weight = state_dict.get("decoder.conv_in.weight")
    if weight is None:
        return state_dict  # no autoencoder: the host says so when somebody uses it
    channels = weight.shape[1]
    return {
        **state_dict,
        "post_quant_conv.weight": torch.eye(channels, dtype=weight.dtype)[:, :, None, None],
        "post_quant_conv.bias": torch.zeros(channels, dtype=weight.dtype),
    }


def sv4d2_model(patcher: Any) -> SV4D2Model:
    """Return the model inside a MODEL socket's value. Raises ValueError for one of another kind."""
    model = getattr(patcher, "model", None)
    if not isinstance(model, SV4D2Model):
        raise ValueError(
            f"Expected a Stable Video 4D 2.0 model in the socket 'model'; got {type(model).__name__}. "
            f"Connect SV4D2 Load Checkpoint (files sv4d2.safetensors or sv4d2_8views.safetensors)."
        )
    return model


def register() -> None:
    """Put SV4D 2.0, once, in front of the host's list, where SV3D would take the same keys."""
    if SV4D2 not in comfy.supported_models.models:
        comfy.supported_models.models.insert(0, SV4D2)


def _config_of_tensors(state_dict: dict[str, Tensor]) -> tuple[ModelConfig, dict[str, str]]:
    """Return the sizes that tensors tell, and their metadata; without any it is the 4-view variant."""
    header = _header_of(state_dict)
    known = "sv4d2.variant" in header.metadata
    config = read_unet_only(header, "auto" if known else "sv4d2")[0]
    return config, header.metadata or metadata_of(config, variant_known=False)


def _header_of(state_dict: dict[str, Tensor]) -> Header:
    """Return what a file of these tensors would say of itself."""
    tensors = {key: TensorInfo(str(x.dtype), tuple(x.shape)) for key, x in state_dict.items()}
    kept = next((x for key, x in state_dict.items() if key.endswith(METADATA_KEY)), None)
    metadata = {} if kept is None else metadata_of_bytes(bytes(kept.cpu().tolist()))
    return Header(Path("this file"), tensors, metadata, 0)
