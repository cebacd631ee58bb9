"""How a model is trained, as plain numbers (those of `sv4d2-tiny` by default), and the phases of its UNet."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..diffusion.config import CLIPVisionConfig, ModelConfig, UNetConfig, VAEConfig
from ..diffusion.model import Model
from ..diffusion.unet import UNet
from .batches import DrawConfig, EncodedScene, ViewsBatch, ViewsLoss, draw_batch
from .device_scenes import DeviceLatents
from .loop import LoopConfig, rank_and_size, train

TINY = ModelConfig(
    knows="things of the procedural world",
    n_frames=4,
    n_views=4,
    vector_dims=(64, 96, 96),
    size=32,
    sigma_min=0.01,
    sigma_max=80.0,
    scale_factor=1.0,
    guidance="constant",
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
    """One training of the UNet: the name of its files, its steps and learning rate, what its samples are."""

    name: str
    loop: LoopConfig
    draw: DrawConfig


@dataclass(frozen=True)
class Recipe:
    """A whole training: an autoencoder where there is none, then the phases one after the other."""

    model: ModelConfig = TINY
    seed: int = 0  # of weights, data order and noise
    n_scenes: int = 3000  # that the samples are drawn from, without their mirror images
    family: str = "things"  # of the procedural world, one of its `FAMILIES`
    n_cameras: int = 12  # of a procedural scene; twelve around hold the orbit of 4 views
    mirrored: bool = False  # every scene counts twice, the second time as its mirror image
    # Of autoencoder and image tower; pictures per step.
    autoencoder: LoopConfig = LoopConfig(steps=1000, learning_rate=1.5e-3, warm_up=20, average=0.99)
    autoencoder_batch: int = 16
    # The decoder alone, last, on a smaller loss: the latents stay what the UNet knows.
    decoder: LoopConfig = LoopConfig(steps=1000, learning_rate=1e-3, warm_up=20, average=0.99)
    # Static 3D first, then 4D, as SV4D 2.0 was trained.
    phases: tuple[Phase, ...] = (
        # Of a single frame the reference views are the answer, so few samples have them.
        Phase(
            "static",
            LoopConfig(steps=5000, learning_rate=1.5e-3),
            DrawConfig(n_frames=1, batch=16, mask_all=0.95),
        ),
        Phase("motion", LoopConfig(steps=800, learning_rate=5e-4), DrawConfig(n_frames=4, batch=4)),
    )
    dtype: str = "bf16"  # of the UNet's arithmetic
    recomputes: bool = False  # gradient checkpointing
    lora_rank: int = 0  # of a LoRA on the attention, which alone is trained; 0: all weights

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"Expected dtype {' or '.join(DTYPES)}; got {self.dtype!r}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(
                f"Expected a seed in 0..2**32 - 1; got {self.seed}. Larger seeds repeat smaller ones."
            )
        if self.n_scenes < 1 or not self.phases:
            raise ValueError(f"Expected at least one scene and one phase; got {self.n_scenes}.")

    @property
    def n_drawn(self) -> int:
        """How many scenes samples are drawn from, with mirror images."""
        return (1 + self.mirrored) * self.n_scenes


_STATIC, _MOTION = Recipe().phases
# One family at twice the size and three times the frames; its latents are as large as those of `TINY`.
_ANIMALS = Recipe(
    model=replace(
        TINY,
        knows="four-legged animals of the procedural world",
        n_frames=12,
        size=64,
        unet=replace(TINY.unet, multipliers=(2, 4)),
        vae=VAEConfig(base=32, multipliers=(1, 1, 2, 4), res_blocks=1),
        clip=replace(TINY.clip, patch=16, image_size=64),
    ),
    n_scenes=2000,
    family="animals",
    n_cameras=6,
    mirrored=True,
    autoencoder=replace(Recipe().autoencoder, steps=3000),
    autoencoder_batch=8,
    phases=(
        replace(_STATIC, loop=replace(_STATIC.loop, steps=4000)),
        replace(_MOTION, loop=replace(_MOTION.loop, steps=1200), draw=DrawConfig(n_frames=12, batch=2)),
    ),
    dtype="fp32",
)
_STATIC, _MOTION = _ANIMALS.phases
# Batches that fill a large GPU. Its steps are a guess at what one does in eight minutes.
_ANIMALS_GPU = replace(
    _ANIMALS,
    n_scenes=8000,
    autoencoder=LoopConfig(steps=1200, learning_rate=2e-3, warm_up=50, average=0.99),
    autoencoder_batch=256,
    decoder=LoopConfig(steps=1000, learning_rate=1e-3, warm_up=20, average=0.99),
    phases=(
        replace(
            _STATIC,
            loop=LoopConfig(steps=1000, learning_rate=2e-3, average=0.995),
            draw=replace(_STATIC.draw, batch=1024),
        ),
        replace(
            _MOTION,
            loop=LoopConfig(steps=1500, learning_rate=1e-3, average=0.995),
            draw=replace(_MOTION.draw, batch=64),
        ),
    ),
    dtype="bf16",
)
RECIPES = {"things": Recipe(), "animals": _ANIMALS, "animals-gpu": _ANIMALS_GPU}


# With a single context token these change nothing (docs/method.md, Network); they get no gradient.
_WITHOUT_EFFECT = re.compile(r"\.attn2\.to_[qk]\.|\.norm2\.")
_OF_FRAMES = re.compile(r"\.motion_blocks\.|time_mix_motion|time_mixer_motion")
_ENDS_BRANCH = re.compile(
    r"(out_layers\.3|proj_out|time_mix_motion_embed\.2)$|^out\.2$|\.motion_blocks\..*(to_out\.0|net\.2)$"
)
# Seen with PyTorch 2.13: the weight gradient of a (3, 1, 1) convolution over sequences of this length.
_WRONG_IN_BF16 = 2


def initialise(unet: UNet) -> None:
    """Start an untrained UNet: its residual branches add nothing, so that frames do not mix yet."""
    for name, module in unet.named_modules():
        if _ENDS_BRANCH.search(name):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)


def train_phase(
    phase: Phase,
    recipe: Recipe,
    model: Model,
    scenes: Callable[[int], EncodedScene] | DeviceLatents,
    run: Callable[..., list[float]] = train,
) -> None:
    """Train the weights that require gradients, else the whole UNet; ValueError: a pair in bf16 on a CPU."""
    unet, draw = model.unet, phase.draw
    device = next(unet.parameters()).device
    n_pictures = draw.n_frames * model.config.n_views
    if device.type == "cpu" and recipe.dtype == "bf16" and n_pictures == _WRONG_IN_BF16:
        raise ValueError(
            f"Expected --dtype fp32 for samples of {n_pictures} pictures on a CPU, where PyTorch's "
            f"convolution over two gives wrong gradients in bf16."
        )
    prepare_for_training(unet, draw.n_frames > 1, recipe.recomputes)
    seed, (rank, size) = (phase.name, recipe.seed), rank_and_size()

    def batches(step: int) -> ViewsBatch:
        if isinstance(scenes, DeviceLatents):
            return scenes.draw(model.config, draw, seed, step)
        return draw_batch(scenes, recipe.n_drawn, model.config, draw, seed, step, rank, size).to(device)

    run(ViewsLoss(unet), batches, phase.loop, dtype=DTYPES[recipe.dtype])
    unet.requires_grad_(False).eval()
    unet.set_frame_mixing(True)
    unet.recomputes = False


def prepare_for_training(unet: UNet, mixes_frames: bool, recomputes: bool) -> None:
    """Let a UNet record its weights that have an effect, or of these those that require gradients."""
    everything = not any(parameter.requires_grad for parameter in unet.parameters())
    for name, parameter in unet.named_parameters():
        has_effect = not _WITHOUT_EFFECT.search(name) and (mixes_frames or not _OF_FRAMES.search(name))
        parameter.requires_grad_(has_effect and (everything or parameter.requires_grad))
    unet.train()
    unet.set_frame_mixing(mixes_frames)
    unet.recomputes = recomputes
