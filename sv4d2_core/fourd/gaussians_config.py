"""What the backend of deformable Gaussians uses, as plain fields."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

# Gaussians per pixel of a picture, and at most, when `GaussiansConfig.count` is 0.
_PER_PIXEL = 0.75
_MOST = 40_000


@dataclass(frozen=True)
class GaussiansConfig:
    """Settings of `GaussiansFit`; the steps, the hull and the views come from `RefineConfig`.

    Args:
        count: number of Gaussians, which never changes; 0: three per four pixels of a view, at most 40,000.
        pictures_per_step: pictures that one step renders, out of the frames and views of its draw.
        opacity: of a Gaussian at the start.
        scale: of a Gaussian at the start, in distances between neighbours.
        smallest_scale: the least scale along an axis, in scales at the start.
        largest_scale: the largest scale along an axis, in scales at the start. Large flat ones look right
            from the given views and wrong from others.

        features: channels of a plane of the deformation, per scale.
        plane_sizes: nodes along an axis of space, per scale.
        time_size: nodes along time; 0: one per frame. Fewer follow slow motion only, and flicker less.
        hidden: width of the decoder.
        fade: how easily opacities change over time; 0: never. What turns out of sight or moves too fast to
            be followed is shown by other Gaussians at other times.
        motion_alone: the share of the dynamic steps, from the first, in which only the motion is learnt; it
            keeps what is known of the anchor frame from being averaged over all frames.

        relocate_every: steps between two moves of dead Gaussians onto live ones; 0: never.
        relocate_until: the share of all steps after which none moves any more.
        dead_opacity: the opacity below which a Gaussian counts as dead.
        neighbours: nearest neighbours whose distances the deformation should keep.

        learning_rate_means: world units per step.
        learning_rate_quats: of the rotations.
        learning_rate_scales: of the logarithms of the scales.
        learning_rate_opacities: of the logits of the opacities.
        learning_rate_colours: of the logits of the colours.
        learning_rate_planes: of the planes of the deformation.
        learning_rate_decoder: of its decoder.

        weight_colour: absolute difference of the colours.
        weight_dissimilarity: 1 - SSIM.
        weight_mask: squared error of the opacity of pictures.
        weight_hull: distance of Gaussians from the visual hull of the frame, in cells.
        weight_planes: total variation of the planes of space.
        weight_time_smoothness: squared second difference along time.
        weight_isometry: squared relative change of the distances to the neighbours.
        weight_offset: squared motion, world units.
        weight_entropy: entropy of the Gaussians' opacities, against fog; with a short fit it costs quality.

    Raises:
        ValueError: a field out of its range.
    """

    count: int = 0
    pictures_per_step: int = 2
    opacity: float = 0.5
    scale: float = 0.7
    smallest_scale: float = 0.2
    largest_scale: float = 4.0

    features: int = 16
    plane_sizes: tuple[int, ...] = (16, 32)
    time_size: int = 0
    hidden: int = 64
    fade: float = 5.0
    motion_alone: float = 0.15

    relocate_every: int = 200
    relocate_until: float = 0.6
    dead_opacity: float = 0.01
    neighbours: int = 8

    learning_rate_means: float = 2e-3
    learning_rate_quats: float = 1e-2
    learning_rate_scales: float = 2e-2
    learning_rate_opacities: float = 5e-2
    learning_rate_colours: float = 5e-2
    learning_rate_planes: float = 2e-2
    learning_rate_decoder: float = 2e-3

    weight_colour: float = 0.8
    weight_dissimilarity: float = 0.2
    weight_mask: float = 0.5
    weight_hull: float = 0.1
    weight_planes: float = 1e-3
    weight_time_smoothness: float = 0.05
    weight_isometry: float = 0.02
    weight_offset: float = 0.0
    weight_entropy: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "plane_sizes", tuple(self.plane_sizes))
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and least <= value <= most):
                limits = f">= {least:g}" if math.isinf(most) else f"in {least:g}..{most:g}"
                raise ValueError(f"Expected gaussians.{name} {limits}; got {value}. Change this field.")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("learning_rate") and not (math.isfinite(value) and value > 0):
                raise ValueError(f"Expected gaussians.{field.name} > 0; got {value}. Change this field.")
            if field.name.startswith("weight") and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Expected gaussians.{field.name} >= 0; got {value}. Change this field.")
        if not self.plane_sizes or min(self.plane_sizes) < 2:
            raise ValueError(
                f"Expected gaussians.plane_sizes of at least 2 nodes, one size per scale; got "
                f"{self.plane_sizes}. Write for example (16, 32)."
            )
        if self.time_size == 1:
            raise ValueError("Expected gaussians.time_size 0 (chosen by the frames) or at least 2; got 1.")

    def count_for(self, size: int) -> int:
        """Return the number of Gaussians for views of ``size`` pixels a side."""
        return self.count or min(round(_PER_PIXEL * size * size), _MOST)

    def time_size_for(self, n_frames: int) -> int:
        """Return the number of nodes along time for a number of frames."""
        return self.time_size or max(n_frames, 2)

    def to_json(self) -> dict:
        """Return the fields as plain JSON values; `from_json` reads them back."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict) -> GaussiansConfig:
        """Return settings from `to_json`'s values; a field that is missing has its default.

        Raises:
            ValueError: an unknown field, or a value out of range.
        """
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"Expected fields of GaussiansConfig; got the unknown {', '.join(unknown)}.")
        return cls(**data)


_RANGES = {
    "count": (0, math.inf),
    "pictures_per_step": (1, math.inf),
    "opacity": (0.02, 0.98),
    "scale": (0.05, 10),
    "smallest_scale": (1e-3, 1),
    "largest_scale": (1, 1e3),
    "features": (1, math.inf),
    "time_size": (0, math.inf),
    "hidden": (1, math.inf),
    "fade": (0, math.inf),
    "motion_alone": (0, 1),
    "relocate_every": (0, math.inf),
    "relocate_until": (0, 1),
    "dead_opacity": (0, 0.5),
    "neighbours": (1, 64),
}
