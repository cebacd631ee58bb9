"""Every number that the refiner's first stage uses, as plain fields."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace

# Nodes of the finest planes along an axis, whatever the picture size.
_FINEST_PLANES = 256


@dataclass(frozen=True)
class RefineConfig:
    """Settings of `fit_scene`; the defaults are the recipe for five views of 64 to 512 pixels.

    Args:
        seed: of the initial field and of every draw.
        steps_static: steps on the anchor frame alone, which train the planes of space.
        steps: steps on all frames that follow.
        rays_per_step: rays of one step, spread evenly over its pictures.
        frames_per_step: frames of one dynamic step.
        views_per_step: views of one frame; the input view is always one of them.
        samples: samples along the stretch of a ray that crosses the scene's box.
        progressive: frames are admitted outward from the anchor; None: only when the motion is large.
        image_sizes: picture sizes from coarse to fine, pixels; () uses the pictures as they are.
        image_size_starts: the share of all steps at which each of ``image_sizes`` begins, the first 0.

        features: channels of a plane, per scale.
        plane_sizes: nodes along an axis of space, per scale; (): a quarter, a half and all of the picture
            size, at most 256. Finer planes fit the given views better and the others worse.
        time_size: nodes along time; 0: one per frame.
        hidden: width of the two decoders.
        density_scale: density per unit of the decoder's output, 1 / world unit.

        hull_size: cells along an axis of the occupancy grid.
        hull_dilation: how far masks are widened before the hull is carved, pixels at 64 pixels a side.
        hull_misses: views that may miss a cell of the hull; None: the fewest that still cover the masks.
        occupancy_every: steps between two refreshes of the occupancy from the density; 0: never.
        occupancy_opacity: opacity of one cell below which it counts as empty.

        learning_rate: of the planes.
        learning_rate_decoder: of the decoders.
        learning_rate_end: the factor that both have fallen to at the last step.

        weight_mask: squared error of the opacity.
        weight_planes: total variation of the planes of space.
        weight_time_smoothness: squared second difference along time.
        weight_time_offset: distance of the planes of time from 1.
        weight_entropy: entropy of the opacity, against fog.
        weight_by_trust: views far from the input and rims of silhouettes count less.

    Raises:
        ValueError: a field out of its range.
    """

    seed: int = 0
    steps_static: int = 200
    steps: int = 2300
    rays_per_step: int = 1024
    frames_per_step: int = 4
    views_per_step: int = 4
    samples: int = 64
    progressive: bool | None = None
    image_sizes: tuple[int, ...] = ()
    image_size_starts: tuple[float, ...] = ()

    features: int = 16
    plane_sizes: tuple[int, ...] = ()
    time_size: int = 0
    hidden: int = 64
    density_scale: float = 25.0

    hull_size: int = 64
    hull_dilation: float = 1.0
    hull_misses: int | None = None
    occupancy_every: int = 256
    occupancy_opacity: float = 0.01

    learning_rate: float = 3e-2
    learning_rate_decoder: float = 3e-3
    learning_rate_end: float = 0.1

    weight_mask: float = 0.1
    weight_planes: float = 0.01
    weight_time_smoothness: float = 0.05
    weight_time_offset: float = 1e-3
    weight_entropy: float = 1e-3
    weight_by_trust: bool = True

    def __post_init__(self) -> None:
        for name in ("image_sizes", "image_size_starts", "plane_sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"Expected {name} >= {least:g}; got {value}. Change this field.")
        for name in ("learning_rate", "learning_rate_decoder", "learning_rate_end", "density_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"Expected {name} > 0; got {value}. Change this field.")
        if self.plane_sizes and min(self.plane_sizes) < 2:
            raise ValueError(f"Expected plane sizes of at least 2 nodes; got {self.plane_sizes}.")
        if self.time_size == 1:
            raise ValueError("Expected time_size 0 (one node per frame) or at least 2; got 1.")
        self._check_image_sizes()

    def _check_image_sizes(self) -> None:
        sizes, starts = self.image_sizes, self.image_size_starts
        rising = all(a < b for a, b in zip(starts, starts[1:], strict=False))
        if len(sizes) != len(starts) or not rising or (starts and (starts[0] != 0 or starts[-1] >= 1)):
            raise ValueError(
                f"Expected one start per picture size, rising from 0 and below 1; got sizes {sizes} and "
                f"starts {starts}. Write for example image_sizes=(128, 256), image_size_starts=(0, 0.4)."
            )
        if sizes and min(sizes) < 16:
            raise ValueError(f"Expected picture sizes of at least 16 pixels; got {sizes}.")

    @property
    def total_steps(self) -> int:
        """Steps of both phases."""
        return self.steps_static + self.steps

    def image_size_at(self, step: int) -> int | None:
        """Return the picture size of a step; None: as given."""
        done = step / max(self.total_steps, 1)
        pairs = zip(self.image_sizes, self.image_size_starts, strict=True)
        return max((size for size, start in pairs if start <= done), default=None)

    def for_pictures(self, size: int) -> RefineConfig:
        """Return the same settings with the plane sizes that pictures of ``size`` pixels ask for."""
        finest = min(size, _FINEST_PLANES)
        return replace(self, plane_sizes=self.plane_sizes or (finest // 4, finest // 2, finest))

    def to_json(self) -> dict:
        """Return the fields as plain JSON values; `from_json` reads them back."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict) -> RefineConfig:
        """Return settings from `to_json`'s values; a field that is missing has its default.

        Raises:
            ValueError: an unknown field, or a value out of range.
        """
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"Expected fields of RefineConfig; got the unknown {', '.join(unknown)}.")
        return cls(**data)


_LEAST = {
    "steps_static": 0,
    "steps": 1,
    "rays_per_step": 16,
    "frames_per_step": 1,
    "views_per_step": 1,
    "samples": 8,
    "time_size": 0,
    "features": 1,
    "hidden": 1,
    "hull_size": 8,
    "hull_dilation": 0,
    "occupancy_every": 0,
    "occupancy_opacity": 0,
    "weight_mask": 0,
    "weight_planes": 0,
    "weight_time_smoothness": 0,
    "weight_time_offset": 0,
    "weight_entropy": 0,
}
