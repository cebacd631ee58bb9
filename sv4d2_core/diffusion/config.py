"""Sizes of the networks, as plain numbers that a checkpoint's tensors and metadata determine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..messages import cut

GUIDANCE_SHAPES = ("linear", "spatiotemporal", "triangle", "constant")
# What a view block mixes: V neighbouring pixels in raster order (official 4-view model), the V views of a
# pixel (official 8-view model), or all pixels of a frame.
VIEW_MIXINGS = ("released_3d", "view", "joint_3d")
_MOST_PICTURES, _LARGEST_SIZE = 1024, 8192  # of a window (official ones have 48 and 40), and pixels


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the SV4D 2.0 UNet; the defaults are the official model."""

    view_mixing: str = "released_3d"  # one of `VIEW_MIXINGS`
    base: int = 320  # channels of the first level
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # channels of each level in units of ``base``
    res_blocks: int = 2  # per level on the way down; one more on the way up
    attention_levels: int = 3  # from the top, with attention blocks; the middle always has one
    head_channels: int = 64
    context_dim: int = 1024  # width of the image embedding
    vector_dim: int = 1280  # width of the camera vector
    latent_channels: int = 4  # the UNet takes twice as many and gives as many

    def __post_init__(self) -> None:
        if self.view_mixing not in VIEW_MIXINGS:
            got = cut(repr(self.view_mixing))
            raise ValueError(f"Expected view_mixing {' or '.join(VIEW_MIXINGS)}; got {got}.")
        if self.base % 32 or self.base % self.head_channels:
            raise ValueError(
                f"The base width must be a multiple of 32 (group norm) and of the head width "
                f"{self.head_channels}; got {self.base}."
            )

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the image autoencoder; the defaults are the official model."""

    base: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    latent_channels: int = 4

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of a CLIP image tower; the defaults are OpenCLIP's ViT-H/14."""

    width: int = 1280
    layers: int = 32
    head_width: int = 80
    mlp_width: int = 5120
    patch: int = 14
    image_size: int = 224
    embed_dim: int = 1024
    quick_gelu: bool = False  # x * sigmoid(1.702 x), the activation of OpenAI's towers


@dataclass(frozen=True)
class ModelConfig:
    """What tells one SV4D 2.0 checkpoint from another; the defaults are the official ``sv4d2``."""

    variant: str = "sv4d2"  # or sv4d2_8views
    vector_dims: tuple[int, int, int] = (256, 512, 512)  # of noise constant, polar angle, azimuth
    n_frames: int = 12  # T, per window
    n_views: int = 4  # V, novel views per window
    size: int = 576  # pixels that the model was trained at
    sigma_min: float = 0.002
    sigma_max: float = 700.0
    scale_factor: float = 0.18215  # sampled latents are VAE latents times this
    guidance: str = "linear"  # one of `GUIDANCE_SHAPES`
    cfg_min: float = 1.0
    cfg_max: float = 2.0
    trained: bool = True  # False for generated weights that were never trained
    knows: str = ""  # all that a small model was trained on, in the words of its maker; "": it knows anything
    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    clip: CLIPVisionConfig = CLIPVisionConfig()

    def __post_init__(self) -> None:
        large = self.n_frames * self.n_views > _MOST_PICTURES or self.size > _LARGEST_SIZE
        if self.n_frames < 2 or self.n_views < 1 or self.size < 1 or large:
            raise ValueError(
                f"Expected at least 2 frames and 1 view, at most {_MOST_PICTURES} pictures in a window and a "
                f"size from 1 to {_LARGEST_SIZE}; got {self.n_frames}, {self.n_views} and {self.size}. "
                f"Correct sv4d2.n_frames, sv4d2.n_views or sv4d2.size in the metadata."
            )
        if not 0 < self.sigma_min < self.sigma_max < math.inf or not 0 < self.scale_factor < math.inf:
            raise ValueError(
                f"Expected 0 < sigma_min < sigma_max and scale_factor > 0; got {self.sigma_min:g}, "
                f"{self.sigma_max:g} and {self.scale_factor:g}. Correct them in the metadata."
            )
        if self.guidance not in GUIDANCE_SHAPES:
            got = cut(repr(self.guidance))
            raise ValueError(f"Expected guidance {', '.join(GUIDANCE_SHAPES)}; got {got}.")
        if sum(self.vector_dims) != self.unet.vector_dim:
            raise ValueError(
                f"The camera vector of this UNet is {self.unet.vector_dim} wide, but vector_dims "
                f"{self.vector_dims} sum to {sum(self.vector_dims)}. Set sv4d2.vector_dims in the metadata."
            )

    @property
    def label(self) -> str:
        """What its views are labelled with: the variant, and of a smaller model what it knows."""
        if not self.trained or self.unet.base >= UNetConfig().base:
            return self.variant
        return f"{self.variant} (small model{f', knows {cut(self.knows)} only' if self.knows else ''})"

    @property
    def caution(self) -> str:
        """What must be said before views are made with it, one sentence; "": nothing."""
        if not self.trained:
            return "UNTRAINED WEIGHTS: the views will be noise. Give a trained checkpoint."
        return f"This model knows {cut(self.knows)} only; all else becomes a blur." if self.knows else ""

    @property
    def latent_factor(self) -> int:
        return self.vae.downsampling

    @property
    def size_multiple(self) -> int:
        """Image sizes must be divisible by this (64 for official files)."""
        return self.vae.downsampling * self.unet.downsampling


OFFICIAL_VARIANTS = {
    "sv4d2": ModelConfig(),
    "sv4d2_8views": ModelConfig(
        variant="sv4d2_8views",
        n_frames=5,
        n_views=8,
        guidance="spatiotemporal",
        cfg_min=1.5,
        cfg_max=2.5,
        unet=UNetConfig(view_mixing="view"),
    ),
}
