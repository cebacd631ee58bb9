"""What the diffusion model is trained on in one step: windows of views, their conditioning, their noise.

Everything follows from the seed and the number of the step, so a resumed training sees the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..cameras import Cameras
from ..diffusion.config import ModelConfig
from ..diffusion.model import Model
from ..diffusion.sampling import camera_vectors
from ..files import read_tensors, seed_of, write_tensors

_FORMAT = "sv4d2.encoded_scene"


@dataclass(frozen=True)
class EncodedScene:
    """F moments of an object from C cameras.

    Args:
        latents: [F, C, 4, h, w] float16, unscaled.
        tokens: [F, C, D] float16 image embeddings.
        references: [F, C, 4, h, w] float16, the same for use as reference views, where these have an encoder
            of their own; else None.
        elevations_deg: [C] relative to the first camera.
        azimuths_deg: [C] relative to the first camera.
    """

    latents: Tensor
    tokens: Tensor
    references: Tensor | None
    elevations_deg: tuple[float, ...]
    azimuths_deg: tuple[float, ...]

    @property
    def n_frames(self) -> int:
        """F."""
        return self.latents.shape[0]

    @property
    def n_cameras(self) -> int:
        """C."""
        return self.latents.shape[1]


def encode_scene(model: Model, images: Tensor, cameras: Cameras) -> EncodedScene:
    """Return a scene of pictures [F, C, H, W, 3] uint8, encoded in the model's precision."""
    flat = images.flatten(0, 1).float() / 255
    shape = tuple(images.shape[:2])
    references = None
    if model.view_encoder is not model.frame_encoder:
        references = model.encode(flat, role="views").half().unflatten(0, shape)
    return EncodedScene(
        model.encode(flat, role="frames").half().unflatten(0, shape),
        model.embed(flat).half().unflatten(0, shape),
        references,
        cameras.elevations_deg,
        cameras.azimuths_deg,
    )


class EncodedScenes:
    """Encoded scenes by their number, kept in memory and in a folder.

    Args:
        model: encodes.
        read: returns pictures [F, C, H, W, 3] uint8 and cameras of a scene.
        folder: holds what has been encoded with this model; None keeps it in memory only.
    """

    def __init__(
        self, model: Model, read: Callable[[int], tuple[Tensor, Cameras]], folder: Path | None
    ) -> None:
        self._model = model
        self._read = read
        self._folder = folder
        self._scenes: dict[int, EncodedScene] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, index: int) -> EncodedScene:
        """Return a scene, encoded now if it was not before."""
        if index not in self._scenes:
            self._scenes[index] = self._kept(index)
        return self._scenes[index]

    def _kept(self, index: int) -> EncodedScene:
        if self._folder is None:
            return encode_scene(self._model, *self._read(index))
        file = self._folder / f"{index:08d}.safetensors"
        if not file.exists():
            scene = encode_scene(self._model, *self._read(index))
            angles = {"elevations_deg": scene.elevations_deg, "azimuths_deg": scene.azimuths_deg}
            encoded = {"latents": scene.latents, "tokens": scene.tokens, "references": scene.references}
            write_tensors(file, _FORMAT, {k: x for k, x in encoded.items() if x is not None}, angles)
        tensors, header = read_tensors(file, _FORMAT)
        return EncodedScene(
            tensors["latents"],
            tensors["tokens"],
            tensors.get("references"),
            tuple(header["elevations_deg"]),
            tuple(header["azimuths_deg"]),
        )


# A camera counts as one of the official orbit when it is this close to it.
_SAME_ANGLE_DEG = 1.0


@dataclass(frozen=True)
class DrawConfig:
    """How samples are drawn.

    Args:
        n_frames: T of a sample; 1 for static 3D.
        batch: samples per step, over all processes.
        orbit_share: share of the samples with the official orbit around their input, where the cameras are
            there; the others have any cameras.
        mask_all: share of the samples without reference views, as the first window of a clip is.
        mask_view: share of the single reference views that are missing in the other samples.
        drop_conditioning: share of the samples without any conditioning but the cameras, for guidance.
        p_mean, p_std: the logarithm of the noise level is normal with this mean and deviation.
    """

    n_frames: int
    batch: int
    orbit_share: float = 0.95
    mask_all: float = 0.5
    mask_view: float = 0.15
    drop_conditioning: float = 0.1
    p_mean: float = 2.0
    p_std: float = 1.8

    def __post_init__(self) -> None:
        shares = (self.orbit_share, self.mask_all, self.mask_view, self.drop_conditioning)
        if not all(0 <= share <= 1 for share in shares) or not 0 < self.p_std < math.inf:
            raise ValueError(f"Expected shares in 0..1 and p_std above 0; got {self}.")
        if self.n_frames < 1 or self.batch < 1:
            raise ValueError(f"Expected n_frames and batch of at least 1; got {self}.")


@dataclass(frozen=True)
class ViewsBatch:
    """B samples of T frames and V novel views, float32.

    Args:
        clean: [B, T, V, 4, h, w] scaled latents of the views.
        noise: [B, T, V, 4, h, w] unit variance.
        sigmas: [B] noise levels.
        tokens: [B, T, D] image embeddings of the input frames.
        frames: [B, T, 4, h, w] unscaled latents of the input frames.
        references: [B, V, 4, h, w] unscaled latents of the views of the first frame, zeros where missing.
        vectors: [B, V, A] camera vectors.
    """

    clean: Tensor
    noise: Tensor
    sigmas: Tensor
    tokens: Tensor
    frames: Tensor
    references: Tensor
    vectors: Tensor

    def to(self, device: torch.device) -> ViewsBatch:
        """Return the batch on a device."""
        return ViewsBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


def draw_batch(
    scenes: Callable[[int], EncodedScene],
    n_scenes: int,
    model: ModelConfig,
    config: DrawConfig,
    seed: object,
    step: int,
    rank: int = 0,
    n_processes: int = 1,
) -> ViewsBatch:
    """Return the batch of a step; of several processes each gets its share of the samples.

    Args:
        scenes: a scene by its number.
        n_scenes: numbers run from 0 to this.
        model: sizes.
        config: how.
        seed: of the training and its phase, a JSON value.
        step: number of the step.
        rank: which process asks.
        n_processes: how many processes share the batch.
    """
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
    frames = _draw_frames(scene.n_frames, config.n_frames, dice)
    latents = scene.latents[frames].float()
    given, clean = latents[:, views[0]], latents[:, views[1:]]
    sigma = (config.p_mean + config.p_std * torch.randn((), generator=dice)).exp()
    noise = torch.randn(clean.shape, generator=dice)
    tokens = scene.tokens[frames, views[0]].float()
    kept = _draw_references(model.n_views, config, dice)
    given_views = scene.latents if scene.references is None else scene.references
    references = given_views[frames[0], views[1:]].float() * kept[:, None, None, None]
    vectors, uncond_vectors = camera_vectors(_relative(scene, views), model.vector_dims)
    if float(torch.rand((), generator=dice)) < config.drop_conditioning:
        given, tokens, references = (torch.zeros_like(x) for x in (given, tokens, references))
        vectors = uncond_vectors
    return clean * model.scale_factor, noise, sigma, tokens, given, references, vectors


def _draw_references(n_views: int, config: DrawConfig, dice: torch.Generator) -> Tensor:
    """Return 1 for the reference views that are given and 0 for the others, [V]."""
    chance, chances = torch.rand((), generator=dice), torch.rand(n_views, generator=dice)
    return (chances >= config.mask_view).float() * float(chance >= config.mask_all)


def _draw_views(scene: EncodedScene, n_views: int, orbit_share: float, dice: torch.Generator) -> list[int]:
    """Return the cameras of a sample, the input first: on the official orbit around it, or any."""
    order = torch.randperm(scene.n_cameras, generator=dice).tolist()
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
        if float(distance[nearest]) > _SAME_ANGLE_DEG:
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


def _relative(scene: EncodedScene, views: list[int]) -> Cameras:
    first = views[0]
    elevations = [scene.elevations_deg[v] - scene.elevations_deg[first] for v in views]
    azimuths = [(scene.azimuths_deg[v] - scene.azimuths_deg[first]) % 360 for v in views]
    return Cameras(tuple(elevations), tuple(azimuths))


def as_network_inputs(batch: ViewsBatch) -> tuple[Tensor, Tensor]:
    """Return noise and clean latents flattened to [B * T * V, 4, h, w] in the network's order (b t v)."""
    noise, clean = (rearrange(x, "b t v c h w -> (b t v) c h w") for x in (batch.noise, batch.clean))
    return noise, clean


def input_of_each_view(batch: ViewsBatch) -> Tensor:
    """Return the input frames' latents once per view, [B * T * V, 4, h, w]."""
    return repeat(batch.frames, "b t c h w -> (b t v) c h w", v=batch.clean.shape[2])
