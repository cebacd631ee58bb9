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
    """What the pipeline needs: our own networks, or a host's. Images are [N, H, W, 3] in 0..1.

    `encode` returns unscaled latents [N, 4, h, w], `decode` takes scaled (sampled) ones, `embed` returns one
    context token per image, [N, D], and `denoise` the latents of a window, [T * V, 4, h, w] float32.
    """

    @property
    def config(self) -> ModelConfig: ...

    def encode(self, images: Tensor, role: EncoderRole) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def embed(self, images: Tensor) -> Tensor: ...

    def denoise(self, job: SamplingJob) -> Tensor: ...


@dataclass
class Model:
    """The networks of one checkpoint; results of all four abilities are float32 on the CPU.

    ``encode_batch`` and ``decode_batch`` bound how many images the autoencoder and the image tower see at
    once. A network works within ``loaded(network)``, which may bring its weights to the device
    (`memory.place`). Where memory runs out, a part is tried once more in smaller pieces, at which the model
    then stays.
    """

    config: ModelConfig
    unet: UNet
    frame_encoder: VAEEncoder
    view_encoder: VAEEncoder
    decoder: VAEDecoder
    clip: CLIPVision
    encode_batch: int = 8
    decode_batch: int = 4
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
