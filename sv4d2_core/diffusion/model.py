"""A loaded SV4D 2.0 model: its networks, and the four abilities that the pipeline asks of a backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from .clip_vision import CLIPVision
from .conditioning import Conditioning, from_network_images, guided_inputs, to_network_images
from .config import ModelConfig
from .denoiser import guided_denoiser
from .sampler import Callback, sample_euler, start_latents
from .schedule import karras_sigmas
from .unet import UNet
from .vae import VAEDecoder, VAEEncoder

EncoderRole = Literal["frames", "views"]


@dataclass(frozen=True)
class SamplingJob:
    """One window to denoise.

    Args:
        conditioning: of the window.
        noise: [T * V, 4, h, w] float32 unit variance, order (t v).
        steps: number of steps of the full schedule.
        guidance: [T, V] guidance scales.
        init: [T * V, 4, h, w] scaled latents to start near, or None.
        strength: share of the schedule to run.
        seed: of the noise that a stochastic sampler adds on its way.
        callback: progress of this window.
    """

    conditioning: Conditioning
    noise: Tensor
    steps: int
    guidance: Tensor
    init: Tensor | None = None
    strength: float = 1.0
    seed: int = 0
    callback: Callback | None = None


class Backend(Protocol):
    """What the pipeline needs: our own networks, or a host's."""

    @property
    def config(self) -> ModelConfig:
        """Sizes and sampling defaults."""
        ...

    def encode(self, images: Tensor, role: EncoderRole) -> Tensor:
        """Return unscaled latents [N, 4, h, w] of images [N, H, W, 3] in 0..1."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [N, H, W, 3] in 0..1 of scaled (sampled) latents [N, 4, h, w]."""
        ...

    def embed(self, images: Tensor) -> Tensor:
        """Return one context token per image [N, H, W, 3], [N, D]."""
        ...

    def denoise(self, job: SamplingJob) -> Tensor:
        """Return the sampled latents of a window, [T * V, 4, h, w] float32."""
        ...


@dataclass
class Model:
    """The networks of one checkpoint.

    Results of all four abilities are float32 on the CPU. ``encode_batch`` and ``decode_batch`` bound how
    many images the autoencoder and the image tower see at once; they change memory only.
    """

    config: ModelConfig
    unet: UNet
    frame_encoder: VAEEncoder
    view_encoder: VAEEncoder
    decoder: VAEDecoder
    clip: CLIPVision
    encode_batch: int = 8
    decode_batch: int = 4

    @torch.no_grad()
    def encode(self, images: Tensor, role: EncoderRole) -> Tensor:
        """Return unscaled latents [N, 4, h, w] of images [N, H, W, 3] in 0..1."""
        encoder = self.frame_encoder if role == "frames" else self.view_encoder
        like = next(encoder.parameters())
        pixels = to_network_images(images.float())
        return torch.cat([encoder(x.to(like)).float().cpu() for x in pixels.split(self.encode_batch)])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [N, H, W, 3] in 0..1 of scaled (sampled) latents [N, 4, h, w]."""
        like = next(self.decoder.parameters())
        batches = (latents / self.config.scale_factor).split(self.decode_batch)
        return torch.cat([from_network_images(self.decoder(x.to(like)).float()).cpu() for x in batches])

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Return one context token per image [N, H, W, 3], [N, D]."""
        device = self.clip.proj.device
        pixels = to_network_images(images.float())
        return torch.cat([self.clip(x.to(device)).float().cpu() for x in pixels.split(self.encode_batch)])

    @torch.no_grad()
    def denoise(self, job: SamplingJob) -> Tensor:
        """Return the sampled latents of a window, [T * V, 4, h, w] float32."""
        like = next(self.unet.parameters())
        inputs = guided_inputs(job.conditioning, like.device, like.dtype)
        denoise = guided_denoiser(self.unet, inputs, job.guidance)
        sigmas = karras_sigmas(job.steps, self.config.sigma_min, self.config.sigma_max)
        init = None if job.init is None else job.init.to(like.device, torch.float32)
        x, start = start_latents(job.noise.to(like.device, torch.float32), sigmas, init, job.strength)
        return sample_euler(denoise, x, sigmas, start, job.callback).cpu()
