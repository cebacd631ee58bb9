"""How a model is trained, as plain numbers; the default is the recipe of `sv4d2-tiny`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch

from ..diffusion.config import CLIPVisionConfig, ModelConfig, UNetConfig, VAEConfig
from .batches import DrawConfig
from .loop import LoopConfig

TINY = ModelConfig(
    variant="sv4d2",
    n_frames=4,
    n_views=4,
    vector_dims=(64, 96, 96),
    size=32,
    sigma_min=0.01,
    sigma_max=80.0,
    scale_factor=1.0,
    guidance="constant",
    cfg_min=1.0,
    cfg_max=1.0,
    unet=UNetConfig(
        view_mixing="joint_3d",
        base=32,
        multipliers=(2, 3),
        res_blocks=1,
        attention_levels=2,
        head_channels=32,
        context_dim=64,
        vector_dim=256,
    ),
    vae=VAEConfig(base=64, multipliers=(1, 1, 2), res_blocks=1),
    clip=CLIPVisionConfig(
        width=64, layers=2, head_width=32, mlp_width=256, patch=8, image_size=32, embed_dim=64
    ),
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Phase:
    """One training of the diffusion model.

    Args:
        name: of its files.
        loop: steps and learning rate.
        draw: what its samples are.
    """

    name: str
    loop: LoopConfig
    draw: DrawConfig

    @property
    def mixes_frames(self) -> bool:
        """False for static objects, on which the frames' blend stays at zero."""
        return self.draw.n_frames > 1


@dataclass(frozen=True)
class Recipe:
    """A whole training: an autoencoder where there is none, then the phases one after the other.

    Args:
        model: sizes of all networks.
        seed: of weights, data order and noise.
        n_scenes: how many scenes the samples are drawn from.
        autoencoder: steps and learning rate of autoencoder and image tower.
        autoencoder_batch: pictures per step.
        decoder: the decoder alone, last, on a smaller loss: the latents stay what the UNet knows.
        phases: static 3D first, then 4D, as SV4D 2.0 was trained.
        dtype: ``bf16`` or ``fp32``, of the diffusion model; its float32 weights are kept beside bf16 ones.
        recomputes: gradient checkpointing.
        lora_rank: train low-rank parts of the attention layers alone; 0 trains all weights.
    """

    model: ModelConfig = TINY
    seed: int = 0
    n_scenes: int = 3000
    autoencoder: LoopConfig = LoopConfig(steps=1000, learning_rate=1.5e-3, warm_up=20, average=0.99)
    autoencoder_batch: int = 16
    decoder: LoopConfig = LoopConfig(steps=1000, learning_rate=1e-3, warm_up=20, average=0.99)
    phases: tuple[Phase, ...] = field(
        default=(
            # Of a single frame the reference views are the answer, so few samples have them.
            Phase(
                "static",
                LoopConfig(steps=5000, learning_rate=1.5e-3),
                DrawConfig(n_frames=1, batch=16, mask_all=0.95),
            ),
            Phase("motion", LoopConfig(steps=800, learning_rate=5e-4), DrawConfig(n_frames=4, batch=4)),
        )
    )
    dtype: str = "bf16"
    recomputes: bool = False
    lora_rank: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"Expected dtype {' or '.join(DTYPES)}; got {self.dtype!r}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(
                f"Expected a seed in 0..2**32 - 1; got {self.seed}. Larger seeds repeat smaller ones."
            )
        if self.n_scenes < 1 or not self.phases:
            raise ValueError(f"Expected at least one scene and one phase; got {self.n_scenes}.")

    def to_json(self) -> dict:
        """Return JSON values that tell this recipe from others."""
        return asdict(self)
