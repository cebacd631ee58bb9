"""The conditioning of one window: what the network is told about frames, cameras and earlier views.

Source: specification section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..cameras import Cameras
from .layers import sinusoidal_embedding

# The reference embeds this constant where other models of the family embed the conditioning noise level.
_NOISE_CONSTANT = 1e-5


@dataclass(frozen=True)
class Conditioning:
    """Conditioning of one window of T frames and V novel views.

    Args:
        tokens: [T, D] image embedding of each input frame.
        frame_latents: [T, 4, h, w] unscaled latents of the input frames.
        reference_latents: [V, 4, h, w] unscaled latents of the reference views, zeros when there are none.
        vectors: [V, A] camera vectors.
        uncond_vectors: [V, A] camera vectors without conditioning on the frames.
    """

    tokens: Tensor
    frame_latents: Tensor
    reference_latents: Tensor
    vectors: Tensor
    uncond_vectors: Tensor

    def unconditional(self) -> Conditioning:
        """Return the other half of guidance: zeros for all but the cameras."""
        return Conditioning(
            torch.zeros_like(self.tokens),
            torch.zeros_like(self.frame_latents),
            torch.zeros_like(self.reference_latents),
            self.uncond_vectors,
            self.uncond_vectors,
        )


def camera_vectors(cameras: Cameras, dims: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return the camera vectors of the novel views, conditional and unconditional, each [V, sum(dims)].

    Args:
        cameras: the cameras.
        dims: widths of the noise constant's, the polar angle's and the azimuth's embedding. The
            unconditional vectors have zeros for the first and keep the cameras.
    """
    polar, azimuth = cameras.network_angles_rad()
    constant = torch.full((cameras.n_views,), _NOISE_CONSTANT)
    parts = [sinusoidal_embedding(x, dim) for x, dim in zip((constant, polar, azimuth), dims, strict=True)]
    return torch.cat(parts, dim=-1), torch.cat([torch.zeros_like(parts[0]), *parts[1:]], dim=-1)


@dataclass(frozen=True)
class GuidedInputs:
    """The conditioning as the network takes it for guidance: unconditional first, B = 2.

    Args:
        context: [2, T, D].
        concat: [2 T V, 4, h, w].
        vectors: [2 V, A], the same for all frames.
        references: [2 V, 4, h, w].
    """

    context: Tensor
    concat: Tensor
    vectors: Tensor
    references: Tensor

    def conditional(self) -> GuidedInputs:
        """Return the conditional half alone, B = 1."""
        halves = (self.context, self.concat, self.vectors, self.references)
        return GuidedInputs(*(both.chunk(2)[1] for both in halves))


def guided_inputs(conditioning: Conditioning, device: torch.device, dtype: torch.dtype) -> GuidedInputs:
    """Return the network inputs of the unconditional and the conditional half."""
    halves = (conditioning.unconditional(), conditioning)
    n_views = len(conditioning.vectors)
    frames = torch.cat([half.frame_latents for half in halves]).to(device, dtype)
    return GuidedInputs(
        context=torch.stack([half.tokens for half in halves]).to(device, dtype),
        concat=repeat(frames, "bt c h w -> (bt v) c h w", v=n_views),
        vectors=torch.cat([half.vectors for half in halves]).to(device, dtype),
        references=torch.cat([half.reference_latents for half in halves]).to(device, dtype),
    )


def to_network_images(images: Tensor) -> Tensor:
    """Return images [N, H, W, 3] in 0..1 as [N, 3, H, W] in -1..1."""
    return rearrange(images, "n h w c -> n c h w") * 2 - 1


def from_network_images(images: Tensor) -> Tensor:
    """Return images [N, 3, H, W], about -1..1, as [N, H, W, 3] clamped to 0..1."""
    return rearrange(((images + 1) / 2).clamp(0, 1), "n c h w -> n h w c")
