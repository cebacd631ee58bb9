"""Training batches, windows of views under noise, and their loss; seed and step decide all, for resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..cameras import Cameras
from ..diffusion.config import ModelConfig
from ..diffusion.model import Model
from ..diffusion.sampling import camera_vectors, precondition
from ..diffusion.unet import UNet
from ..files import seed_of
from ..scene.config import Settings, setting
from ..stored import read_tensors, write_tensors

_FORMAT = "sv4d2.encoded_scene"


@dataclass(frozen=True)
class EncodedScene:
    """F moments of an object from C cameras."""

    latents: Tensor  # [F, C, 4, h, w] float16, unscaled
    tokens: Tensor  # [F, C, D] float16 image embeddings
    references: Tensor | None  # [F, C, 4, h, w] of the reference views' own encoder, if any
    elevations_deg: tuple[float, ...]  # [C]
    azimuths_deg: tuple[float, ...]  # [C]


@dataclass(frozen=True)
class EncodedScenes:
    """Encoded scenes by their number, kept in a folder of this model's."""

    model: Model
    read: Callable[[int], tuple[Tensor, Cameras]]  # pictures [F, C, H, W, 3] uint8 of a scene
    folder: Path

    def __call__(self, index: int) -> EncodedScene:
        """Return a scene, encoded now if it was not before."""
        file = self.folder / f"{index:08d}.safetensors"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._encode(index, file)
        tensors, angles = read_tensors(file, _FORMAT)
        elevations = tuple(angles.numbers("elevations_deg", None).tolist())
        azimuths = tuple(angles.numbers("azimuths_deg", None).tolist())
        return EncodedScene(
            tensors["latents"], tensors["tokens"], tensors.get("references"), elevations, azimuths
        )

    def _encode(self, index: int, file: Path) -> None:
        images, cameras = self.read(index)
        flat, model = images.flatten(0, 1).float() / 255, self.model
        encoded = {"latents": model.encode(flat, role="frames"), "tokens": model.embed(flat)}
        if model.view_encoder is not model.frame_encoder:
            encoded["references"] = model.encode(flat, role="views")
        tensors = {key: x.half().unflatten(0, images.shape[:2]) for key, x in encoded.items()}
        angles = {"elevations_deg": cameras.elevations_deg, "azimuths_deg": cameras.azimuths_deg}
        write_tensors(file, _FORMAT, tensors, angles)


# A camera counts as one of the official orbit when it is this close to it.
SAME_ANGLE_DEG = 1.0


@dataclass(frozen=True)
class DrawConfig(Settings):
    """How samples are drawn. Raises ValueError for a field out of its range."""

    n_frames: int = setting(1, "T of a sample; 1 for static 3D", least=1)
    batch: int = setting(1, "samples per step, over all processes", least=1)
    orbit_share: float = setting(
        0.95, "share of samples on the official orbit around their input, else any cameras", least=0, most=1
    )
    # As the first window of a clip is.
    mask_all: float = setting(0.5, "share of samples without reference views", least=0, most=1)
    mask_view: float = setting(0.15, "share of missing reference views elsewhere", least=0, most=1)
    drop_conditioning: float = setting(
        0.1, "share of samples without any conditioning but the cameras, for guidance", least=0, most=1
    )
    p_mean: float = setting(2.0, "mean of the logarithm of the noise level", least=-20, most=20)
    p_std: float = setting(1.8, "its deviation", above=0, most=20)


@dataclass(frozen=True)
class ViewsBatch:
    """B samples of T frames and V novel views, float32."""

    clean: Tensor  # [B, T, V, 4, h, w] scaled latents of the views
    noise: Tensor  # [B, T, V, 4, h, w] unit variance
    sigmas: Tensor  # [B] noise levels
    tokens: Tensor  # [B, T, D] image embeddings of the input frames
    frames: Tensor  # [B, T, 4, h, w] unscaled latents of the input frames
    references: Tensor  # [B, V, 4, h, w] unscaled latents of the first frame's views, zeros where missing
    vectors: Tensor  # [B, V, A] camera vectors

    def to(self, device: torch.device) -> ViewsBatch:
        return ViewsBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


def draw_batch(
    scenes: Callable[[int], EncodedScene],
    n_scenes: int,
    model: ModelConfig,
    config: DrawConfig,
    seed: object,  # of the training and its phase, a JSON value
    step: int,
    rank: int = 0,
    n_processes: int = 1,
) -> ViewsBatch:
    """Return the batch of a step; of several processes each, by its rank, gets its share of the samples."""
    samples = []
    for number in range(rank, config.batch, n_processes):
        dice = torch.Generator("cpu").manual_seed(seed_of(seed, step, number))
        index = int(torch.randint(n_scenes, (), generator=dice))
        samples.append(_draw_sample(scenes(index), model, config, dice))
    return ViewsBatch(*(torch.stack(column) for column in zip(*samples, strict=True)))


def _draw_sample(
    scene: EncodedScene, model: ModelConfig, config: DrawConfig, dice: torch.Generator
) -> tuple[Tensor, ...]:
    views = _draw_views(scene, model.n_views, config.orbit_share, dice)
    frames = _draw_frames(len(scene.latents), config.n_frames, dice)
    latents = scene.latents[frames].float()
    given, clean = latents[:, views[0]], latents[:, views[1:]]
    sigma = (config.p_mean + config.p_std * torch.randn((), generator=dice)).exp()
    noise = torch.randn(clean.shape, generator=dice)
    tokens = scene.tokens[frames, views[0]].float()
    chance, chances = torch.rand((), generator=dice), torch.rand(model.n_views, generator=dice)
    kept = (chances >= config.mask_view).float() * float(chance >= config.mask_all)
    given_views = scene.latents if scene.references is None else scene.references
    references = given_views[frames[0], views[1:]].float() * kept[:, None, None, None]
    elevations = [scene.elevations_deg[v] - scene.elevations_deg[views[0]] for v in views]
    azimuths = [(scene.azimuths_deg[v] - scene.azimuths_deg[views[0]]) % 360 for v in views]
    # Only differences count; the middle keeps those of views that are far apart off the poles.
    middle = -(max(elevations) + min(elevations)) / 2
    cameras = Cameras(tuple(elevations), tuple(azimuths), input_elevation_deg=middle)
    vectors, uncond_vectors = camera_vectors(cameras, model.vector_dims)
    if float(torch.rand((), generator=dice)) < config.drop_conditioning:
        given, tokens, references = (torch.zeros_like(x) for x in (given, tokens, references))
        vectors = uncond_vectors
    return clean * model.scale_factor, noise, sigma, tokens, given, references, vectors


def _draw_views(scene: EncodedScene, n_views: int, orbit_share: float, dice: torch.Generator) -> list[int]:
    """Return the cameras of a sample, the input first: on the official orbit around it, or any."""
    order = torch.randperm(scene.latents.shape[1], generator=dice).tolist()
    if float(torch.rand((), generator=dice)) < orbit_share:
        orbit = _orbit_around(scene, order[0], n_views)
        if orbit is not None:
            return [order[0], *orbit]
    return order[: n_views + 1]


def _orbit_around(scene: EncodedScene, first: int, n_views: int) -> list[int] | None:
    """Return the cameras of the default orbit of ``n_views`` around one, or None where any is missing."""
    azimuths = torch.tensor(scene.azimuths_deg) - scene.azimuths_deg[first]
    elevations = torch.tensor(scene.elevations_deg) - scene.elevations_deg[first]
    chosen = []
    for wanted in Cameras.default(n_views).azimuths_deg[1:]:
        turn = (azimuths - wanted + 180) % 360 - 180
        distance = torch.maximum(turn.abs(), elevations.abs())
        nearest = int(distance.argmin())
        if float(distance[nearest]) > SAME_ANGLE_DEG:
            return None
        chosen.append(nearest)
    return chosen


def _draw_frames(n_available: int, n_frames: int, dice: torch.Generator) -> list[int]:
    """Return evenly spaced frames of a sample; a short scene is played back and forth."""
    cycle = [*range(n_available), *range(n_available - 2, 0, -1)]
    longest = max(1, (n_available - 1) // max(1, n_frames - 1))
    step = 1 + int(torch.randint(longest, (), generator=dice))
    room = max(1, n_available - step * (n_frames - 1))
    start = int(torch.randint(room, (), generator=dice))
    return [cycle[(start + step * t) % len(cycle)] for t in range(n_frames)]


class ViewsLoss(nn.Module):
    """EDM's loss (Karras et al. 2022, equation 8) of a UNet on a `ViewsBatch`, in the UNet's dtype."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, batch: ViewsBatch) -> Tensor:
        t, v = batch.clean.shape[1:3]
        dtype = next(self.unet.parameters()).dtype
        noise, clean = (rearrange(x, "b t v c h w -> (b t v) c h w") for x in (batch.noise, batch.clean))
        frames = repeat(batch.frames, "b t c h w -> (b t v) c h w", v=v)
        scale = precondition(batch.sigmas)
        c_skip, c_out, c_in, sigmas = (
            x.repeat_interleave(t * v)[:, None, None, None]
            for x in (scale.c_skip, scale.c_out, scale.c_in, batch.sigmas)
        )
        noisy = clean + noise * sigmas
        window = self.unet.prepare(batch.tokens.to(dtype), batch.references.flatten(0, 1).to(dtype))
        inputs = torch.cat([noisy * c_in, frames], dim=1).to(dtype)
        timesteps = scale.c_noise.repeat_interleave(v)
        out = self.unet(inputs, timesteps, batch.vectors.flatten(0, 1).to(dtype), window).float()
        return (out - (clean - c_skip * noisy) / c_out).square().mean()
