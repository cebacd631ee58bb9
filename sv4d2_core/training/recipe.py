"""How a model is trained, as plain numbers; the default is the recipe of `sv4d2-tiny`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..cameras import Cameras
from ..diffusion.config import CLIPVisionConfig, ModelConfig, UNetConfig, VAEConfig
from ..diffusion.model import Model
from ..diffusion.sampling import to_network_images
from ..diffusion.unet import UNet
from ..files import fingerprint_of, seed_of
from .autoencoder import AutoencoderLoss, DecoderLoss, normalise_latents
from .batches import DrawConfig, EncodedScene, ViewsBatch, draw_batch
from .loop import LoopConfig, Progress, rank_and_size, train
from .scores import ViewsLoss, initialise

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


ReadScene = Callable[[int], tuple[Tensor, Cameras]]
Callback = Callable[[Progress], None]

# With a single context token these never matter (specification 4.4); they get no gradient.
_WITHOUT_EFFECT = re.compile(r"\.attn2\.to_[qk]\.|\.norm2\.")
# Seen with PyTorch 2.13: the weight gradient of a (3, 1, 1) convolution over sequences of this length.
_WRONG_IN_BF16 = 2
_PICTURES_PER_SCENE = 4
_SCENES_AT_START, _SCENES_PER_STEP = 64, 2
_PICTURES_FOR_STATISTICS = 512


def train_autoencoder(
    recipe: Recipe,
    read: ReadScene,
    device: torch.device,
    *,
    state: Path | None = None,
    callback: Callback | None = None,
) -> Model:
    """Return a model with a trained autoencoder and image tower, and a UNet that was never trained.

    Args:
        recipe: sizes, steps, seed.
        read: pictures [F, C, H, W, 3] uint8 and cameras of a scene.
        device: where to train.
        state: see `train`.
        callback: see `train`.
    """
    torch.manual_seed(recipe.seed)
    network = AutoencoderLoss(recipe.model).to(device)
    unet = UNet(recipe.model.unet).to(device)
    initialise(unet)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        # Scenes are still being made when training starts.
        n_scenes = min(recipe.n_scenes, _SCENES_AT_START + _SCENES_PER_STEP * step)
        return _picture_batch(recipe, read, n_scenes, "autoencoder", step, device)

    fingerprint = fingerprint_of("autoencoder", recipe.to_json(), rank_and_size()[1])
    train(network, batches, recipe.autoencoder, fingerprint=fingerprint, state=state, callback=callback)
    network.requires_grad_(False).eval()
    sample = [
        _picture_batch(recipe, read, recipe.n_scenes, "statistics", k, device)[0]
        for k in range(-(-_PICTURES_FOR_STATISTICS // recipe.autoencoder_batch))
    ]
    normalise_latents(network.encoder, network.decoder, torch.cat(sample))
    encoder = network.encoder
    return Model(recipe.model, unet, encoder, encoder, network.decoder, network.tower)


def train_decoder(
    recipe: Recipe,
    model: Model,
    read: ReadScene,
    *,
    fingerprint: str,
    state: Path | None = None,
    callback: Callback | None = None,
) -> None:
    """Train the decoder of a model in place, on the latents of its encoder as they are.

    Args:
        recipe: steps, seed.
        model: whose decoder is trained.
        read: pictures [F, C, H, W, 3] uint8 and cameras of a scene.
        fingerprint: of the data and of the model that training starts from.
        state: see `train`.
        callback: see `train`.
    """
    device = next(model.decoder.parameters()).device

    def batches(step: int) -> tuple[Tensor, Tensor]:
        return _picture_batch(recipe, read, recipe.n_scenes, "decoder", step, device)

    key = fingerprint_of("decoder", recipe.to_json(), fingerprint, rank_and_size()[1])
    network = DecoderLoss(model.frame_encoder, model.decoder)
    train(network, batches, recipe.decoder, fingerprint=key, state=state, callback=callback)
    model.decoder.requires_grad_(False).eval()


def _picture_batch(
    recipe: Recipe, read: ReadScene, n_scenes: int, purpose: str, step: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return pictures [N, 3, H, W] in -1..1 of a few of the scenes, and noise for their latents."""
    rank, size = rank_and_size()
    dice = torch.Generator("cpu").manual_seed(seed_of(purpose, recipe.seed, step, rank, size))
    pictures = []
    for _ in range(-(-recipe.autoencoder_batch // (_PICTURES_PER_SCENE * size))):
        images, _ = read(int(torch.randint(n_scenes, (), generator=dice)))
        images = images.flatten(0, 1)
        pictures.append(images[torch.randperm(len(images), generator=dice)[:_PICTURES_PER_SCENE]])
    images = to_network_images(torch.cat(pictures).float() / 255)
    model = recipe.model
    side = images.shape[-1] // model.latent_factor
    noise = torch.randn(len(images), model.vae.latent_channels, side, side, generator=dice)
    return images.to(device), noise.to(device)


def train_phase(
    phase: Phase,
    recipe: Recipe,
    model: Model,
    scenes: Callable[[int], EncodedScene],
    *,
    fingerprint: str,
    state: Path | None = None,
    callback: Callback | None = None,
) -> list[float]:
    """Train the UNet of a model in place and return the loss of every step.

    Args:
        phase: which training.
        recipe: seed, number of scenes, precision.
        model: its UNet's weights that require gradients are trained, all of them where none does.
        scenes: encoded scenes by number.
        fingerprint: of the data and of the model that training starts from.
        state: see `train`.
        callback: see `train`.

    Raises:
        ValueError: samples of two pictures in bf16 on a CPU.
    """
    unet = model.unet
    device = next(unet.parameters()).device
    n_pictures = phase.draw.n_frames * model.config.n_views
    if device.type == "cpu" and recipe.dtype == "bf16" and n_pictures == _WRONG_IN_BF16:
        raise ValueError(
            f"Expected --dtype fp32 for samples of {n_pictures} pictures on a CPU, where PyTorch's "
            f"convolution over two gives wrong gradients in bf16."
        )
    prepare_for_training(unet, phase, recipe)
    rank, size = rank_and_size()

    def batches(step: int) -> ViewsBatch:
        return draw_batch(
            scenes, recipe.n_scenes, model.config, phase.draw, (phase.name, recipe.seed), step, rank, size
        ).to(device)

    key = fingerprint_of(phase.name, recipe.to_json(), fingerprint, size)
    losses = train(
        ViewsLoss(unet),
        batches,
        phase.loop,
        dtype=DTYPES[recipe.dtype],
        fingerprint=key,
        state=state,
        callback=callback,
    )
    unet.requires_grad_(False).eval()
    unet.set_frame_mixing(True)
    unet.recomputes = False
    return losses


def prepare_for_training(unet: UNet, phase: Phase, recipe: Recipe) -> None:
    """Let a UNet record what the phase trains: all weights with an effect, or those of a LoRA alone."""
    everything = not any(parameter.requires_grad for parameter in unet.parameters())
    for name, parameter in unet.named_parameters():
        motion = ".motion_blocks." in name or "time_mix_motion" in name or "time_mixer_motion" in name
        has_effect = not _WITHOUT_EFFECT.search(name) and (phase.mixes_frames or not motion)
        parameter.requires_grad_(has_effect and (everything or parameter.requires_grad))
    unet.train()
    unet.set_frame_mixing(phase.mixes_frames)
    unet.recomputes = recipe.recomputes
