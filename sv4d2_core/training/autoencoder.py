"""Training of an autoencoder and an image tower from scratch; the latents get mean 0 and variance 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cameras import Cameras
from ..diffusion.clip import CLIPVision
from ..diffusion.config import ModelConfig
from ..diffusion.model import Model
from ..diffusion.sampling import to_network_images
from ..diffusion.unet import UNet
from ..diffusion.vae import VAEDecoder, VAEEncoder
from ..files import seed_of
from .device_scenes import DeviceScenes
from .loop import rank_and_size, train
from .recipe import Recipe, initialise

_KL_WEIGHT = 1e-5
# The latents' noise at first: more would drown what the encoder has to say before it has learnt to speak up.
_FIRST_LOG_VARIANCE = -6.0
# Brightness explains most of a picture's variance on white: a short training would spend all channels on it.
_COLOUR_GAIN = 3.0
# Squares are compared over patches of this size.
_SQUARES_WEIGHT, _COLOUR_PATCH = 3.0, 2
# A linear map of the latents must show small pictures: through the decoder, colours are learnt late.
_PREVIEW_WEIGHT = 2.0
# What the image tower's one token must tell: the picture at this size.
_THUMBNAIL = 8
_TOWER_STD = 0.02


class AutoencoderLoss(nn.Module):
    """Reconstruction of pictures through noisy latents, and of thumbnails through the image tower's token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = VAEEncoder(config.vae)
        self.decoder = VAEDecoder(config.vae)
        self.tower = CLIPVision(config.clip)
        for parameter in (self.tower.class_embedding, self.tower.positional_embedding, self.tower.proj):
            nn.init.normal_(parameter, std=_TOWER_STD)
        for layer in self.tower.transformer.resblocks:  # pyright: ignore
            nn.init.normal_(layer.attn.in_proj_weight, std=_TOWER_STD)  # pyright: ignore
            nn.init.zeros_(layer.attn.in_proj_bias)  # pyright: ignore
        nn.init.normal_(self.tower.proj, std=config.clip.width**-0.5)
        _, bias = self.encoder.quant_conv.parameters()
        nn.init.constant_(bias[config.vae.latent_channels :], _FIRST_LOG_VARIANCE)
        self.to_preview = nn.Conv2d(config.vae.latent_channels, 3, 1)
        self.to_thumbnail = nn.Linear(config.clip.embed_dim, 3 * _THUMBNAIL**2)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of pictures [N, 3, H, W] in -1..1, noise [N, 4, h, w] on the latents."""
        images, noise = batch
        moments = self.encoder.quant_conv(self.encoder.encoder(images))
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-20, 5)
        latents = mean + noise * (0.5 * log_variance).exp()
        error = self.decoder(latents) - images
        squares = _colour_weighted(F.avg_pool2d(error, _COLOUR_PATCH)).square().mean()
        small = F.adaptive_avg_pool2d(images, latents.shape[-2:])
        preview = _colour_weighted(self.to_preview(latents) - small).square().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        thumbnail = F.adaptive_avg_pool2d(images, _THUMBNAIL).flatten(1)
        return (
            (error.abs().mean() + _SQUARES_WEIGHT * squares)
            + _KL_WEIGHT * divergence
            + _PREVIEW_WEIGHT * preview
            + F.mse_loss(self.to_thumbnail(self.tower(images)), thumbnail)
        )


class DecoderLoss(nn.Module):
    """Reconstruction of pictures from exact latents: sharpens a decoder without moving the latents."""

    def __init__(self, encoder: VAEEncoder, decoder: VAEDecoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.decoder = decoder.requires_grad_(True)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean distance of pictures [N, 3, H, W] in -1..1 and, several times, its mean square."""
        images, _ = batch
        with torch.no_grad():
            latents = self.encoder(images)
        error = self.decoder(latents) - images
        return error.abs().mean() + _SQUARES_WEIGHT * error.square().mean()


def _colour_weighted(x: Tensor) -> Tensor:
    """Return RGB [N, 3, H, W] as brightness and two colour differences, these amplified."""
    red, green, blue = x.unbind(1)
    colours = torch.stack([red - green, (red + green) / 2 - blue], dim=1)
    return torch.cat([x.mean(1, keepdim=True), _COLOUR_GAIN * colours], dim=1)


@torch.no_grad()
def normalise_latents(encoder: VAEEncoder, decoder: VAEDecoder, images: Tensor) -> None:
    """Give the latents of ``images`` [N, 3, H, W] mean 0 and variance 1 per channel; pictures stay the same.

    So ``scale_factor`` is 1 and the diffusion model's ``sigma_data`` holds. ``conv_in`` pads with zeros,
    which then stand for another value: the pictures' border, white in all training data, moves by a little.
    """
    latents = torch.cat([encoder(x) for x in images.split(32)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    n = len(mean)
    weight, bias = encoder.quant_conv.parameters()
    weight[:n] /= std[:, None, None, None]
    bias[:n] = (bias[:n] - mean) / std
    weight, bias = decoder.conv_in.parameters()
    bias += torch.einsum("oikl,i->o", weight, mean)
    weight *= std[None, :, None, None]


# A scene's pictures [F, C, H, W, 3] uint8, or all of them on a device.
ReadScene = Callable[[int], tuple[Tensor, Cameras]] | DeviceScenes
_PICTURES_PER_SCENE = 4
_SCENES_AT_START, _SCENES_PER_STEP = 64, 2
_PICTURES_FOR_STATISTICS = 512


def train_autoencoder(
    recipe: Recipe, read: ReadScene, device: torch.device, run: Callable[..., list[float]] = train
) -> Model:
    """Return a model with a trained autoencoder and image tower, and an untrained UNet."""
    torch.manual_seed(recipe.seed)
    network = AutoencoderLoss(recipe.model).to(device)
    unet = UNet(recipe.model.unet).to(device)
    initialise(unet)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        # Scenes are still being made when training starts.
        n_scenes = min(recipe.n_drawn, _SCENES_AT_START + _SCENES_PER_STEP * step)
        return _picture_batch(recipe, read, n_scenes, "autoencoder", step, device)

    run(network, batches, recipe.autoencoder)
    network.requires_grad_(False).eval()
    sample = [
        _picture_batch(recipe, read, recipe.n_drawn, "statistics", k, device)[0]
        for k in range(-(-_PICTURES_FOR_STATISTICS // recipe.autoencoder_batch))
    ]
    normalise_latents(network.encoder, network.decoder, torch.cat(sample))
    encoder = network.encoder
    return Model(recipe.model, unet, encoder, encoder, network.decoder, network.tower)


def train_decoder(
    recipe: Recipe, model: Model, read: ReadScene, run: Callable[..., list[float]] = train
) -> None:
    """Train the decoder of a model in place, on the latents of its encoder as they are (`DecoderLoss`)."""
    device = next(model.decoder.parameters()).device

    def batches(step: int) -> tuple[Tensor, Tensor]:
        return _picture_batch(recipe, read, recipe.n_drawn, "decoder", step, device)

    run(DecoderLoss(model.frame_encoder, model.decoder), batches, recipe.decoder)
    model.decoder.requires_grad_(False).eval()


def _picture_batch(
    recipe: Recipe, read: ReadScene, n_scenes: int, purpose: str, step: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return pictures [N, 3, H, W] in -1..1 of a few of the scenes, and noise for their latents."""
    rank, size = rank_and_size()
    seed = seed_of(purpose, recipe.seed, step, rank, size)
    model, where = recipe.model, device if isinstance(read, DeviceScenes) else torch.device("cpu")
    dice = torch.Generator(where).manual_seed(seed)
    if isinstance(read, DeviceScenes):
        images = read.pictures(recipe.autoencoder_batch, dice)
    else:
        images = _pictures_of(recipe, read, n_scenes, dice)
    side = images.shape[-1] // model.latent_factor
    shape = (len(images), model.vae.latent_channels, side, side)
    return images.to(device), torch.randn(shape, generator=dice, device=where).to(device)


def _pictures_of(
    recipe: Recipe, read: Callable[[int], tuple[Tensor, Cameras]], n_scenes: int, dice: torch.Generator
) -> Tensor:
    size = rank_and_size()[1]
    pictures = []
    for _ in range(-(-recipe.autoencoder_batch // (_PICTURES_PER_SCENE * size))):
        images = read(int(torch.randint(n_scenes, (), generator=dice)))[0].flatten(0, 1)
        pictures.append(images[torch.randperm(len(images), generator=dice)[:_PICTURES_PER_SCENE]])
    return to_network_images(torch.cat(pictures).float() / 255)
