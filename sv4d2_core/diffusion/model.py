"""A loaded SV4D 2.0 model: its networks, and the four abilities that the pipeline asks of a backend."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .blocks import in_place, with_second_try
from .clip import CLIPVision
from .config import ModelConfig
from .sampling import (
    SAMPLERS,
    Callback,
    Conditioning,
    Solver,
    StepCache,
    from_network_images,
    guided_denoiser,
    guided_inputs,
    karras_sigmas,
    start_latents,
    to_network_images,
)
from .unet import UNet
from .vae import VAEDecoder, VAEEncoder

EncoderRole = Literal["frames", "views"]

log = logging.getLogger(__name__)


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
        solver: sampler and shortcuts of our own networks; a host brings its own.
        callback: progress of this window.
    """

    conditioning: Conditioning
    noise: Tensor
    steps: int
    guidance: Tensor
    init: Tensor | None = None
    strength: float = 1.0
    seed: int = 0
    solver: Solver = Solver()
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
    many images the autoencoder and the image tower see at once; they change memory only. A network works
    within ``present(network)``, which may bring its weights to the device (`offload`). Where a GPU's memory
    runs out, a part is tried once more in smaller pieces, at which the model then stays.
    """

    config: ModelConfig
    unet: UNet
    frame_encoder: VAEEncoder
    view_encoder: VAEEncoder
    decoder: VAEDecoder
    clip: CLIPVision
    encode_batch: int = 8
    decode_batch: int = 4
    present: Callable[[nn.Module], AbstractContextManager] = in_place

    @torch.no_grad()
    def encode(self, images: Tensor, role: EncoderRole) -> Tensor:
        """Return unscaled latents [N, 4, h, w] of images [N, H, W, 3] in 0..1."""
        encoder = self.frame_encoder if role == "frames" else self.view_encoder
        pixels = to_network_images(images.float())

        def work() -> Tensor:
            like = next(encoder.parameters())
            return torch.cat([encoder(x.to(like)).float().cpu() for x in pixels.split(self.encode_batch)])

        with self.present(encoder):
            return with_second_try(work, self._shrink_batches)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [N, H, W, 3] in 0..1 of scaled (sampled) latents [N, 4, h, w]."""
        unscaled = latents / self.config.scale_factor

        def work() -> Tensor:
            like = next(self.decoder.parameters())
            batches = unscaled.split(self.decode_batch)
            return torch.cat([from_network_images(self.decoder(x.to(like)).float()).cpu() for x in batches])

        with self.present(self.decoder):
            return with_second_try(work, self._shrink_batches)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Return one context token per image [N, H, W, 3], [N, D]."""
        pixels = to_network_images(images.float())

        def work() -> Tensor:
            device = self.clip.proj.device
            return torch.cat([self.clip(x.to(device)).float().cpu() for x in pixels.split(self.encode_batch)])

        with self.present(self.clip):
            return with_second_try(work, self._shrink_batches)

    @torch.no_grad()
    def denoise(self, job: SamplingJob) -> Tensor:
        """Return the sampled latents of a window, [T * V, 4, h, w] float32."""
        with self.present(self.unet):
            like = next(self.unet.parameters())
            inputs = guided_inputs(job.conditioning, like.device, like.dtype)
            guided = guided_denoiser(self.unet, inputs, job.guidance, job.solver.guidance_interval)

            def denoise(x: Tensor, sigma: Tensor) -> Tensor:
                return with_second_try(lambda: guided(x, sigma), self.unet.shrink_parts)

            sigmas = karras_sigmas(job.steps, self.config.sigma_min, self.config.sigma_max)
            init = None if job.init is None else job.init.to(like.device, torch.float32)
            x, start = start_latents(job.noise.to(like.device, torch.float32), sigmas, init, job.strength)
            sample = SAMPLERS[job.solver.sampler]
            if not job.solver.step_cache:
                return sample(denoise, x, sigmas, start, job.callback).cpu()
            cached = StepCache(denoise, job.solver.step_cache)
            sampled = sample(cached, x, sigmas, start, job.callback).cpu()
            log.info("Step cache: %d of %d steps evaluated.", cached.evaluated, job.steps - start)
            return sampled

    def _shrink_batches(self) -> str:
        self.encode_batch = self.decode_batch = 1
        return "image by image"
