"""The default scene: a field over space and time, rendered by following rays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...cameras import Cameras
from ...stored import Fields, Tensors
from ...views import FPS_RANGE
from ..config import FieldConfig, settings_from_json, settings_to_json
from ..geometry.hull import Occupancy
from ..scene import SAME_TIME, Scene4D, box_of, no_object
from .following import Following
from .moved import MovedField
from .planes import Canonical, MovingPlanes
from .rays import Rays, box_span, composite_on_white, ray_weights, sample_distances

_CHUNK, _CHUNK_GB = 16384, 8  # rays that are rendered together, and what they may take
_POINTS = 1 << 17  # points that the field is asked for together


class DyNeRF(Scene4D):
    """A scene made of a field inside occupied cells, untrained at first, on the device of the cells."""

    backend = "dynerf"

    def __init__(
        self,
        occupancy: Occupancy,  # where the field holds something, one frame per time; outside is empty
        cameras: Cameras,
        fps: float,
        times: Sequence[float],
        config: FieldConfig,
        generator: torch.Generator | None = None,  # draws the initial values
    ) -> None:
        super().__init__(cameras, fps, times)
        self.field = _field(config, self.n_frames, generator).to(occupancy.box.device)
        self.occupancy, self.config = occupancy, config
        self._moved: MovedField | None = None  # the latest, between two frames

    @classmethod
    def from_tensors(cls, tensors: Tensors, header: Fields, device: torch.device | str) -> DyNeRF:
        times, stated = header.times("times"), header.numbers("grid", 4)
        grid = (len(times), *[int(max(stated[1], 1))] * 3)
        if list(stated) != list(grid):
            raise header.wrong("grid", f"{len(times)} frames x three equal numbers of cells")
        packed = tensors.shaped("cells", -(-math.prod(grid) // 8)).byte().numpy()
        cells = torch.from_numpy(np.unpackbits(packed, count=math.prod(grid)).reshape(grid))
        box = box_of(tensors, "box")
        cameras = Cameras.from_json(header.object("cameras"))
        config = settings_from_json(FieldConfig, header.object("config"))
        field = tensors.under("field.")
        field.check_state_of(lambda: _field(config, len(times)))
        occupancy = Occupancy(cells.bool().to(device), box.to(device))
        scene = cls(occupancy, cameras, header.number("fps", *FPS_RANGE), times, config)
        scene.field.load_state_dict(field)
        return scene

    def follow(self, rays: Rays, jitter: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return colours on white [R, 3], opacities [R] and distances [R] that rays see, with gradients.

        ``jitter`` [R, samples] in 0..1 is the place of every sample in its stretch; None: the middle.
        """
        samples = self._samples(self.occupancy, rays, jitter)
        density, colour = self.field(samples.points, samples.times)
        weights = samples.weights(density)
        rgb, alpha = composite_on_white(weights, samples.spread(colour))
        return rgb, alpha, _mean_distance(weights, samples.distances, alpha)

    @torch.no_grad()
    def bounds(self, time: float) -> Tensor:
        _, occupancy = self._at(time)
        used = occupancy.cells[0].nonzero().flip(-1)  # x, y, z
        if not len(used):
            raise no_object(time)
        corners = torch.stack([used.amin(0), used.amax(0) + 1]) / occupancy.cells.shape[-1]
        return (occupancy.box[0] + corners * (occupancy.box[1] - occupancy.box[0])).cpu() + self._shift(time)

    @torch.no_grad()
    def densities(self, points: Tensor, time: float) -> Tensor:
        """Return the field's density at world points, [N] per world unit, 0 outside the occupied cells."""
        unit, (field, occupancy) = self._unit(points, time), self._at(time)
        inside = occupancy.contains(unit, 0)
        found = torch.zeros_like(unit[:, 0])
        for part in inside.nonzero()[:, 0].split(_POINTS):
            found[part] = field.densities(unit[part], torch.full_like(unit[part, 0], time))
        return found.to(points.device)

    @torch.no_grad()
    def colours(self, points: Tensor, time: float) -> Tensor:
        parts = self._unit(points, time).split(_POINTS)
        field, _ = self._at(time)
        found = [field.colours(part, torch.full_like(part[:, 0], time)) for part in parts]
        return torch.cat(found).to(points.device)

    def changed(self) -> None:
        super().changed()
        self._moved = None

    def carried(self, points: Tensor, start: float, end: float) -> Tensor:
        """Return where world points go with the field's own motion; planes know only the object's path."""
        low, high = self.occupancy.box
        moved = self.field.from_to(self._unit(points, start), start, end)
        world = low + (moved + 1) / 2 * (high - low)
        return (world.cpu() + self._shift(end)).to(points)

    def _saved(self) -> tuple[dict[str, Tensor], dict]:
        cells = np.packbits(self.occupancy.cells.cpu().numpy())
        tensors = {f"field.{key}": tensor for key, tensor in self.field.state_dict().items()}
        tensors |= {"cells": torch.from_numpy(cells), "box": self.occupancy.box}
        config = settings_to_json(FieldConfig, self.config)
        return tensors, {"config": config, "grid": list(self.occupancy.cells.shape)}

    def _unit(self, points: Tensor, time: float) -> Tensor:
        """Return world points [N, 3] in -1..1 of the box."""
        return self.occupancy.to_unit((points - self._shift(time).to(points)).to(self.occupancy.box))

    def _at(self, time: float) -> tuple[Following | MovedField, Occupancy]:
        """Return what the scene is made of at a time, and the cells that hold it, as one frame."""
        around = self._between(time)
        if around is None or self.motion is None:
            return self.field, self._occupancy_at(time, around)
        if self._moved is None or self._moved.time != time:
            times = self.times[around[0] : around[0] + 2]
            self._moved = MovedField(self.field, self.occupancy, self.motion, around, times, time)
        return self._moved, self._moved.filled

    def _occupancy_at(self, time: float, around: tuple[int, float] | None) -> Occupancy:
        """Return the cells of the frame at a time, or of those around it, as one frame."""
        cells = self.occupancy.cells
        if around is None:
            frame = int(np.searchsorted(self.times, time - SAME_TIME).clip(0, self.n_frames - 1))
            filled = cells[frame]
        elif self.field.moves:
            before, after = around[0], around[0] + 1
            moments = (self.times[before], self.times[after], time)
            filled = self.field.carried(self.occupancy, (before, after), moments)
        else:
            filled = cells[around[0]] | cells[around[0] + 1]
        return Occupancy(filled[None], self.occupancy.box)

    def _drawer(self, time: float, normals: bool) -> Callable[[Cameras, int, int], Tensor]:
        (field, occupancy), device = self._at(time), self.occupancy.box.device
        shift = self.path.at(time) if self.path else 0.0
        chunk = min(_CHUNK, self.config.rays_within(min(self.config.memory_gb or _CHUNK_GB, _CHUNK_GB)))

        def draw(cameras: Cameras, view: int, size: int) -> Tensor:
            (eye,), (directions,) = cameras.rays(size, [view])
            eye = (eye - shift).to(device, torch.float32)
            pixels = directions.flatten(0, 1).to(device, torch.float32)
            parts = pixels.split(chunk)
            seen = [self._see(field, occupancy, eye, part, time, normals) for part in parts]
            return torch.cat(seen).unflatten(0, (size, size))

        return draw

    def _see(
        self,
        field: Following | MovedField,
        occupancy: Occupancy,
        eye: Tensor,
        directions: Tensor,
        time: float,
        normals: bool,
    ) -> Tensor:
        """Return colour, opacity, distance and, if wanted, normal that rays of one camera see, [R, 8]."""
        count = len(directions)
        frames = torch.zeros(count, dtype=torch.long, device=directions.device)
        times = torch.full((count,), time, device=directions.device)
        rays = Rays(eye.expand(count, 3), directions, frames, times)
        samples = self._samples(occupancy, rays)
        with torch.set_grad_enabled(normals):
            points = samples.points.requires_grad_(normals)
            density, colour = field(points, samples.times)
            gradient = torch.autograd.grad(density.sum(), points)[0] if normals else None
        weights = samples.weights(density.detach())
        rgb, alpha = composite_on_white(weights, samples.spread(colour.detach()))
        maps = [rgb.clamp(0, 1), alpha[:, None], _mean_distance(weights, samples.distances, alpha)[:, None]]
        if gradient is not None:
            low, high = occupancy.box
            outward = F.normalize(-gradient / (high - low), dim=-1)
            maps.append(F.normalize((weights[..., None] * samples.spread(outward)).sum(1), dim=-1))
        return torch.cat(maps, dim=-1)

    def _samples(self, occupancy: Occupancy, rays: Rays, jitter: Tensor | None = None) -> _Samples:
        count = self.config.samples
        entry, leave = box_span(rays.origins, rays.directions, occupancy.box)
        leave = torch.maximum(leave, entry)
        distances = sample_distances(entry, leave, count, jitter)
        points = rays.origins[:, None] + distances[..., None] * rays.directions[:, None]
        unit = occupancy.to_unit(points).flatten(0, 1)
        occupied = occupancy.contains(unit, rays.frames.repeat_interleave(count))
        index = (occupied & (leave > entry).repeat_interleave(count)).nonzero()[:, 0]
        times = None if rays.times is None else rays.times[index // count]
        return _Samples(unit[index], times, index, distances, ((leave - entry) / count)[:, None])


def _field(config: FieldConfig, n_frames: int, generator: torch.Generator | None = None) -> Following:
    kind = Canonical if config.field == "canonical" else MovingPlanes
    return Following(kind(config, n_frames, generator), n_frames)


def _mean_distance(weights: Tensor, distances: Tensor, alpha: Tensor) -> Tensor:
    """Return the expected distance along rays, [R]; 0 where nothing is seen."""
    return (weights * distances).sum(1) / alpha.clamp(min=1e-6)


class _Samples(NamedTuple):
    """The N of R x S samples along rays that lie in occupied cells."""

    points: Tensor  # [N, 3] in -1..1 of the box
    times: Tensor | None  # [N]
    places: Tensor  # [N] among all
    distances: Tensor  # [R, S] of all
    lengths: Tensor  # [R, 1] the stretch that each stands for

    def weights(self, density: Tensor) -> Tensor:
        """Return how much every sample of every ray contributes, [R, S]; ``density`` is [N]."""
        return ray_weights(self.spread(density), self.lengths)

    def spread(self, values: Tensor) -> Tensor:
        """Return values [N, ...] at their places [R, S, ...], 0 elsewhere."""
        spread = values.new_zeros(self.distances.numel(), *values.shape[1:])
        return spread.index_copy(0, self.places, values).unflatten(0, self.distances.shape)
