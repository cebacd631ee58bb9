"""Generated scenes that a device draws, keeps and encodes, and samples of them without a word to the CPU."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..cameras import DEFAULT_FOV_DEG, Cameras
from ..diffusion.blocks import sinusoidal_embedding
from ..diffusion.config import ModelConfig
from ..diffusion.model import Model
from ..diffusion.sampling import NOISE_CONSTANT, to_network_images
from ..files import seed_of
from ..world.render import SAMPLES, draw, seen_by
from .batches import SAME_ANGLE_DEG, DrawConfig, ViewsBatch
from .scenes import ProceduralScenes, start_worker

_log = logging.getLogger(__name__)
_SCENES_AT_A_TIME = 32  # drawn
_SENT_AT_A_TIME = 4
_MOST_WORKERS = 61  # processes of one pool that Windows can wait for
_PICTURES_AT_A_TIME = 4096  # encoded


@dataclass(frozen=True)
class DeviceScenes:
    """S scenes of F moments and C cameras on one device."""

    images: Tensor  # [S, F, C, H, W, 3] uint8
    angles_deg: Tensor  # [2, S, C] float32 elevations and azimuths
    mirrored: bool = False  # their mirror images are scenes, too

    @classmethod
    def made(
        cls,
        source: ProceduralScenes,
        n_scenes: int,
        device: torch.device,
        *,
        mirrored: bool = False,
        n_workers: int = 0,  # processes that place the ellipsoids
        seconds: float = math.inf,
    ) -> DeviceScenes:
        """Return the first scenes of a source, those that are ready when the time is up, at least some."""
        began, n, size = time.monotonic(), 0, source.size
        shape = (n_scenes, source.n_frames, source.n_cameras)
        images = torch.empty(*shape, size, size, 3, dtype=torch.uint8, device=device)
        angles = torch.empty(2, n_scenes, source.n_cameras)
        with _mapped(partial(_seen, source), n_scenes, n_workers) as made:
            while n < n_scenes and (n == 0 or time.monotonic() - began < seconds):
                scenes = [load(next(made)) for _ in range(min(_SCENES_AT_A_TIME, n_scenes - n))]
                now = slice(n, n + len(scenes))
                angles[:, now] = torch.stack([scene.pop("angles_deg") for scene in scenes], dim=1)
                pictures = draw(scenes, size, SAMPLES, DEFAULT_FOV_DEG, device)[..., :3]
                images[now] = (pictures * 255).round().to(torch.uint8).view_as(images[now])
                n += len(scenes)
        _log.info("%d of %d scenes drawn in %.0f s.", n, n_scenes, time.monotonic() - began)
        return cls(images[:n], angles[:, :n].to(device), mirrored)

    def pictures(self, n: int, dice: torch.Generator) -> Tensor:
        """Return any pictures [n, 3, H, W] in -1..1."""
        flat, device = self.images.flatten(0, 2), self.images.device
        images = flat[torch.randint(len(flat), (n,), generator=dice, device=device)]
        if self.mirrored:
            turned = torch.rand(n, 1, 1, 1, generator=dice, device=device) < 0.5
            images = torch.where(turned, images.flip(2), images)
        return to_network_images(images.float() / 255)

    @torch.no_grad()
    def encoded(self, model: Model) -> DeviceLatents:
        """Return the scenes, and their mirror images behind them, as the model sees them."""
        latents, tokens = [], []
        device = self.images.device
        encoder, tower = model.frame_encoder.to(device), model.clip.to(device)
        for turned in (False, True)[: 1 + self.mirrored]:
            for pictures in self.images.flatten(0, 2).split(_PICTURES_AT_A_TIME):
                images = to_network_images((pictures.flip(2) if turned else pictures).float() / 255)
                latents.append(encoder(images.to(encoder.quant_conv.weight.dtype)).half())
                tokens.append(tower(images).half())
        elevations, azimuths = self.angles_deg
        if self.mirrored:
            elevations, azimuths = elevations.repeat(2, 1), torch.cat([azimuths, -azimuths % 360])
        shape = (len(azimuths), *self.images.shape[1:3])
        encoded, embedded = (torch.cat(x).unflatten(0, shape) for x in (latents, tokens))
        orbits, on_orbit = _orbits(elevations, azimuths, model.config.n_views)
        return DeviceLatents(encoded, embedded, elevations, azimuths, orbits, on_orbit)


@dataclass(frozen=True)
class DeviceLatents:
    """S encoded scenes of F moments and C cameras on one device."""

    latents: Tensor  # [S, F, C, 4, h, w] float16, unscaled
    tokens: Tensor  # [S, F, C, D] float16 image embeddings
    elevations_deg: Tensor  # [S, C]
    azimuths_deg: Tensor  # [S, C]
    orbits: Tensor  # [S, C, V] the cameras of the official orbit around each
    on_orbit: Tensor  # [S, C] whether all of them are there

    def draw(self, model: ModelConfig, config: DrawConfig, seed: object, step: int) -> ViewsBatch:
        """Return the batch of a step as `draw_batch` does, with other dice."""
        device, n, v = self.latents.device, config.batch, model.n_views
        dice = torch.Generator(device).manual_seed(seed_of(seed, step))
        uniform = partial(torch.rand, generator=dice, device=device)
        scene = torch.randint(len(self.latents), (n, 1), generator=dice, device=device)
        any_views = uniform(n, self.latents.shape[2]).argsort(1)[:, : v + 1]
        first = any_views[:, :1]
        orbit = torch.cat([first, self.orbits[scene, first][:, 0]], dim=1)
        takes_orbit = (uniform(n, 1) < config.orbit_share) & self.on_orbit[scene, first]
        views = torch.where(takes_orbit, orbit, any_views)
        frames = self._frames(config.n_frames, uniform(2, n, 1))

        latents = self.latents[scene[..., None], frames[..., None], views[:, None]].float()
        clean = latents[:, :, 1:] * model.scale_factor
        sigmas = (config.p_mean + config.p_std * torch.randn(n, generator=dice, device=device)).exp()
        kept = (uniform(n, v) >= config.mask_view) & (uniform(n, 1) >= config.mask_all)
        knows = uniform(n, 1) >= config.drop_conditioning
        elevations, azimuths = (
            torch.deg2rad(x[scene, views[:, 1:]] - x[scene, first])
            for x in (self.elevations_deg, self.azimuths_deg)
        )
        polar = (math.pi / 2 - elevations) % (2 * math.pi)
        values = (torch.full_like(polar, NOISE_CONSTANT), polar, azimuths % (2 * math.pi))
        noise_part, *angle_parts = (
            sinusoidal_embedding(x.flatten(), dim).unflatten(0, (n, v))
            for x, dim in zip(values, model.vector_dims, strict=True)
        )
        return ViewsBatch(
            clean=clean,
            noise=torch.randn(clean.shape, generator=dice, device=device),
            sigmas=sigmas,
            tokens=self.tokens[scene, frames, first].float() * knows[..., None],
            frames=latents[:, :, 0] * knows[..., None, None, None],
            references=latents[:, 0, 1:] * (kept & knows)[..., None, None, None],
            vectors=torch.cat([noise_part * knows[..., None], *angle_parts], dim=-1),
        )

    def _frames(self, n_frames: int, dice: Tensor) -> Tensor:
        """Return evenly spaced frames [N, T] of samples by dice [2, N, 1]; short scenes go back and forth."""
        n = self.latents.shape[1]
        longest = max(1, (n - 1) // max(1, n_frames - 1))
        step = 1 + (dice[0] * longest).long()
        start = (dice[1] * (n - step * (n_frames - 1)).clamp(min=1)).long()
        frame = (start + step * torch.arange(n_frames, device=dice.device)) % max(1, 2 * n - 2)
        return torch.where(frame < n, frame, 2 * n - 2 - frame)


def _orbits(elevations: Tensor, azimuths: Tensor, n_views: int) -> tuple[Tensor, Tensor]:
    """Return the official orbit's cameras [S, C, V] around each of C cameras, and whether all are there."""
    wanted = torch.tensor(Cameras.default(n_views).azimuths_deg[1:], device=azimuths.device)
    turn = azimuths[:, None, :, None] - azimuths[:, :, None, None] - wanted  # [S, C, C, V]
    turn = ((turn + 180) % 360 - 180).abs()
    rise = (elevations[:, None] - elevations[:, :, None]).abs()
    distance, nearest = torch.maximum(turn, rise[..., None]).min(dim=2)
    return nearest, distance.amax(-1) <= SAME_ANGLE_DEG


def _seen(source: ProceduralScenes, index: int) -> bytes:
    parts, cameras, _ = source.framed(index)
    angles = torch.tensor([cameras.elevations_deg, cameras.azimuths_deg])
    return save({**seen_by(parts, cameras, source.size * SAMPLES), "angles_deg": angles})


@contextmanager
def _mapped(function: partial[bytes], n: int, n_workers: int) -> Iterator[Iterator[bytes]]:
    """Yield the results for 0..n - 1 in order, made by other processes if there are to be any."""
    if n_workers == 0:
        yield map(function, range(n))
        return
    context = multiprocessing.get_context("spawn")
    # Unlike the pools of multiprocessing, it does not wait forever for a worker that is dead.
    with ProcessPoolExecutor(min(n_workers, _MOST_WORKERS), context, _start_worker) as pool:
        try:
            yield pool.map(function, range(n), chunksize=_SENT_AT_A_TIME)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"Expected scenes from {n_workers} processes; one of them has died, maybe as memory ran out. "
                f"The same command goes on; give it fewer --workers."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    start_worker()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent takes no care of its children.
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
