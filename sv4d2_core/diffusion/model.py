"""A loaded SV4D 2.0 model: its networks, and the four abilities that the pipeline asks of a backend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .blocks import retry_on_oom
from .clip import CLIPVision
from .config import ModelConfig
from .sampling import SamplingJob, from_network_images, sample_window, to_network_images
from .unet import UNet
from .vae import VAEDecoder, VAEEncoder

EncoderRole = Literal["frames", "views"]


class Backend(Protocol):
    """What the pipeline needs: our own networks, or a host's. Images are [N, H, W, 3] in 0..1."""

    @property
    def config(self) -> ModelConfig: ...

    def encode(self, images: Tensor, role: EncoderRole) -> Tensor: ...  # unscaled latents [N, 4, h, w]

    def decode(self, latents: Tensor) -> Tensor: ...  # images of scaled (sampled) latents

    def embed(self, images: Tensor) -> Tensor: ...  # a context token per image, [N, D]

    def denoise(self, job: SamplingJob) -> Tensor: ...  # latents [T * V, 4, h, w] float32


@dataclass
class Model:
    """The networks of a checkpoint; results are float32 on the CPU. Out of memory, batches become 1."""

    config: ModelConfig
    unet: UNet
    frame_encoder: VAEEncoder
    view_encoder: VAEEncoder
    decoder: VAEDecoder
    clip: CLIPVision
    encode_batch: int = 8  # images at once, also of the image tower
    decode_batch: int = 4
    # A network works within it; it may bring the weights to the device (`memory.place`).
    loaded: Callable[[nn.Module], AbstractContextManager] = lambda _network: nullcontext()

    def encode(self, images: Tensor, role: EncoderRole) -> Tensor:
        encoder = self.frame_encoder if role == "frames" else self.view_encoder
        dtype = encoder.quant_conv.weight.dtype
        return self._batched(encoder, to_network_images(images.float()).to(dtype))

    def decode(self, latents: Tensor) -> Tensor:
        unscaled = (latents / self.config.scale_factor).to(self.decoder.conv_in.weight.dtype)
        return from_network_images(self._batched(self.decoder, unscaled))

    def embed(self, images: Tensor) -> Tensor:
        return self._batched(self.clip, to_network_images(images.float()))

    @torch.no_grad()
    def _batched(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Return a network's results for ``inputs`` [N, ...], some at a time, as float32 on the CPU."""

        def work() -> Tensor:
            device = next(network.parameters()).device
            batches = inputs.split(self.decode_batch if network is self.decoder else self.encode_batch)
            return torch.cat([network(x.to(device)).float().cpu() for x in batches])

        with self.loaded(network):
            return retry_on_oom(work, self._shrink_batches)

    @torch.no_grad()
    def denoise(self, job: SamplingJob) -> Tensor:
        with self.loaded(self.unet):
            return sample_window(self.unet, job, self.config.sigma_min, self.config.sigma_max)

    def _shrink_batches(self) -> str:
        self.encode_batch = self.decode_batch = 1
        return "image by image"
