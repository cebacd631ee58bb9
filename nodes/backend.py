"""ComfyUI's networks and samplers as a backend of the core's pipeline, guided per frame and view."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..sv4d2_core.diffusion.clip import preprocess_for_clip
from ..sv4d2_core.diffusion.config import ModelConfig
from ..sv4d2_core.diffusion.model import EncoderRole, SamplingJob
from ..sv4d2_core.diffusion.sampling import first_step, guidance_table, guide, to_network_images
from .host import batches, say_once
from .host_model import WindowConds
from .resume import identity, model_identity

OFFICIAL = "official"


@dataclass(frozen=True)
class Guidance:
    """A shape and a range from which the table of any model and number of views follows."""

    shape: str = OFFICIAL  # official: the variant's own shape and range
    cfg_min: float = 1.0
    cfg_max: float = 2.0

    def chosen(self, config: ModelConfig) -> tuple[str, float, float]:
        """Return the shape and the range for a model."""
        if self.shape == OFFICIAL:
            return config.guidance, config.cfg_min, config.cfg_max
        return self.shape, self.cfg_min, self.cfg_max

    def table(self, config: ModelConfig) -> Tensor:
        """Return the scales [T, V] of one window."""
        shape, low, high = self.chosen(config)
        return guidance_table(shape, config.n_frames, config.n_views, low, high)


class GuidanceFunction:
    """What the host calls in place of its own guidance, by a table [T, V] or what one follows from."""

    def __init__(self, guidance: Guidance | Tensor) -> None:
        self.guidance = guidance

    def __call__(self, args: dict[str, Any]) -> Tensor:
        """Return the noisy input minus the guided prediction, as the host wants it."""
        if args["input_uncond"] is None:
            raise ValueError(
                "Expected positive and negative conditioning for SV4D2 Guidance; got positive alone. Use "
                "KSampler or CFGGuider with the negative of SV4D2 Conditioning."
            )
        cond, uncond = args["cond_denoised"], args["uncond_denoised"]
        table = self.guidance
        if isinstance(table, Guidance):
            window = WindowConds.of_host(args["input_cond"][0])
            table = table.table(args["model"].config_for(window.n_views))
        if table.numel() != len(cond):
            raise ValueError(
                f"Expected latents of {table.shape[0]} frames x {table.shape[1]} views for this guidance; "
                f"got {len(cond)}. Connect the latent of SV4D2 Conditioning made with the same model."
            )
        return args["input"] - guide(uncond, cond, table)


def with_guidance(patcher: Any, guidance: Guidance | Tensor) -> Any:
    """Return a copy of a MODEL that is guided by a table; a sampler's cfg has no effect then.

    Raises ValueError where another node guides it.
    """
    guidance_of(patcher)
    patched = patcher.clone()
    # Without the second argument the host leaves the unconditional half out at a cfg of 1.
    patched.set_model_sampler_cfg_function(GuidanceFunction(guidance), disable_cfg1_optimization=True)
    return patched


def guidance_of(patcher: Any) -> Guidance:
    """Return the guidance that SV4D2 Guidance put on a MODEL, or the official one; ValueError: another's."""
    function = patcher.model_options.get("sampler_cfg_function")
    if function is None:
        return Guidance()
    guidance = getattr(function, "guidance", None)
    if not isinstance(guidance, Guidance):
        raise ValueError(
            "Expected the guidance of SV4D2 Guidance, or none, on the model; got that of another node, such "
            "as RescaleCFG, which would do nothing here. Remove that node, or sample with KSampler."
        )
    return guidance


@dataclass(frozen=True)
class HostBackend:
    """The four abilities that the pipeline asks for, out of what the sockets bring."""

    patcher: Any  # MODEL
    clip_vision: Any
    vae: Any  # a second one in it, see `load_model.load_checkpoint`, encodes reference views
    config: ModelConfig
    sampler: str = "euler"
    scheduler: str = "karras"

    def encode(self, images: Tensor, role: EncoderRole) -> Tensor:
        """Return unscaled latents [N, 4, h, w] of images [N, H, W, 3] in 0..1."""
        vae = self.vae
        if role == "views":
            if not hasattr(vae, "sv4d2_views"):
                text = "this VAE encodes frames and views alike; SV4D2 Load Checkpoint can differ."
                say_once(logging.INFO, text)
            vae = getattr(vae, "sv4d2_views", None) or vae
        return torch.cat([vae.encode(batch).float().cpu() for batch in batches(images)])

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [N, H, W, 3] in 0..1 of scaled latents [N, 4, h, w]."""
        unscaled = latents / self.config.scale_factor
        return torch.cat([self.vae.decode(batch).float().cpu() for batch in batches(unscaled)])

    def embed(self, images: Tensor) -> Tensor:
        """Return one context token per image [N, H, W, 3], [N, D].

        Images are resized as in the reference; the host's preparation crops and rounds to 8 bits.
        """
        comfy.model_management.load_model_gpu(self.clip_vision.patcher)
        tokens = []
        for batch in batches(images):
            pixels = preprocess_for_clip(to_network_images(batch.float()), self.clip_vision.image_size)
            pixels = pixels.to(self.clip_vision.load_device)
            outputs = self.clip_vision.model(pixel_values=pixels, intermediate_output=-2)
            tokens.append(outputs[2].float().cpu())
        return torch.cat(tokens)

    def denoise(self, job: SamplingJob) -> Tensor:
        """Return the sampled, scaled latents of a window, [T * V, 4, h, w] float32."""
        patcher = with_guidance(self.patcher, job.guidance)
        sampler = comfy.samplers.KSampler(
            patcher,
            steps=job.steps,
            device=patcher.load_device,
            sampler=self.sampler,
            scheduler=self.scheduler,
            model_options=patcher.model_options,
        )
        steps = len(sampler.sigmas) - 1
        start = first_step(steps, job.strength)

        def progress(step: int, denoised: Tensor, _x: Tensor, _total: int) -> None:
            if job.callback is not None:
                job.callback(start + step + 1, steps, denoised)

        halves = (job.conditioning, job.conditioning.unconditional())
        cond, uncond = (WindowConds.of(half, self.config.unet.view_mixing).to_host() for half in halves)
        scale = self.config.scale_factor
        latents, mask = torch.zeros_like(job.noise) if job.init is None else job.init / scale, None
        if job.known is not None:
            held = len(job.known)
            latents = torch.cat([job.known / scale, latents[held:]])
            mask = (torch.arange(len(latents)) >= held).float().reshape(-1, 1, 1, 1)
        sampled = sampler.sample(
            job.noise,
            cond,
            uncond,
            cfg=1.0,
            latent_image=latents,
            denoise_mask=mask,
            start_step=start,
            callback=progress,
            disable_pbar=True,
            seed=job.seed,
        )
        return sampled.float().cpu() * scale

    def identity(self) -> list[Any]:
        """Return JSON values that stay the same while the networks and the sampler do."""
        encoders = [self.vae, getattr(self.vae, "sv4d2_views", None)]
        parts = [None if x is None else identity(x.first_stage_model) for x in encoders]
        tower = identity(self.clip_vision.model)
        return [model_identity(self.patcher), parts, tower, self.config.variant, self.sampler, self.scheduler]


def backend_of(patcher: Any, clip_vision: Any, vae: Any, config: ModelConfig, **sampling: str) -> HostBackend:
    """Return the backend of a node's sockets. Raises ValueError for models that do not fit SV4D 2.0."""
    for socket, value in (("clip_vision", clip_vision), ("vae", vae)):
        if value is None or getattr(value, "first_stage_model", value) is None:
            raise ValueError(
                f"Expected a model in the socket {socket!r}; got none, as the loader found none in its file. "
                f"Connect {socket} of SV4D2 Load Checkpoint."
            )
    projection = getattr(clip_vision.model, "visual_projection", None)
    width = getattr(projection, "out_features", None)
    if width != config.unet.context_dim:
        raise ValueError(
            f"Expected a CLIP vision model with embeddings of width {config.unet.context_dim} (OpenCLIP "
            f"ViT-H, part of the SV4D 2.0 checkpoint); got {width}. Connect clip_vision of SV4D2 Load "
            f"Checkpoint."
        )
    if vae.latent_channels != config.unet.latent_channels:
        raise ValueError(
            f"Expected a VAE with {config.unet.latent_channels} latent channels; got {vae.latent_channels}. "
            f"Connect vae of SV4D2 Load Checkpoint."
        )
    return HostBackend(patcher, clip_vision, vae, config, **sampling)
