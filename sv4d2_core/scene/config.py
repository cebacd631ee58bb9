"""Every number that the refiner uses, as plain fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

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


_CHOICES = {
    "backend": ("dynerf", "gaussians"),
    "field": ("planes", "canonical"),
    "photometric": ("mse", "charbonnier"),
}
_ABOVE_ZERO = (
    "learning_rate",
    "learning_rate_decoder",
    "learning_rate_deformation",
    "learning_rate_end",
    "density_scale",
    "strength",
    "strength_falling",
    "refine_rate",
)
_LEAST = {
    "memory_gb": 0,
    "rounds": 0,
    "steps_refine": 1,
    "patches_per_step": 0,
    "patch_size": 8,
    "weight_deformation": 0,
    "weight_deformation_slope": 0,
    "weight_ssim": 0,
    "weight_perceptual": 0,
    "weight_depth": 0,
    "weight_normal_smoothness": 0,
    "weight_normal": 0,
    "steps_static": 0,
    "steps": 1,
    "rays_per_step": 16,
    "frames_per_step": 1,
    "views_per_step": 1,
    "samples": 8,
    "time_size": 0,
    "change_size": 2,
    "smooth_every": 1,
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


def check_limits(fields: Mapping[str, Any]) -> None:
    """Raise ValueError for a field of `RefineConfig` out of its range; the text names it, with what it is."""
    for name, least in _LEAST.items():
        value = fields[name]
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"Expected {name} >= {least:g}; got {value}. Change this field.")
    for name in _ABOVE_ZERO:
        value = fields[name]
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"Expected {name} > 0; got {value}. Change this field.")
    for name, choices in _CHOICES.items():
        if fields[name] not in choices:
            raise ValueError(f"Expected {name} {' or '.join(choices)}; got {fields[name]!r}.")
    if not 0 <= fields["patch_start"] < 1 or fields["strength"] > 1:
        raise ValueError(
            f"Expected patch_start in 0..1 and a strength of at most 1; got {fields['patch_start']:g} and "
            f"{fields['strength']:g}."
        )
    _check_sizes(fields)


def _check_sizes(fields: Mapping[str, Any]) -> None:
    if fields["plane_sizes"] and min(fields["plane_sizes"]) < 2:
        raise ValueError(f"Expected plane sizes of at least 2 nodes; got {fields['plane_sizes']}.")
    if not fields["deformation_sizes"] or min(fields["deformation_sizes"]) < 2:
        raise ValueError(
            f"Expected deformation sizes of at least 2 nodes; got {fields['deformation_sizes']}."
        )
    if fields["time_size"] == 1:
        raise ValueError("Expected time_size 0 (one node per frame) or at least 2; got 1.")
    sizes, starts = fields["image_sizes"], fields["image_size_starts"]
    rising = all(a < b for a, b in zip(starts, starts[1:], strict=False))
    if len(sizes) != len(starts) or not rising or (starts and (starts[0] != 0 or starts[-1] >= 1)):
        raise ValueError(
            f"Expected one start per picture size, rising from 0 and below 1; got sizes {sizes} and "
            f"starts {starts}. Write for example image_sizes=(128, 256), image_size_starts=(0, 0.4)."
        )
    if sizes and min(sizes) < 16:
        raise ValueError(f"Expected picture sizes of at least 16 pixels; got {sizes}.")


_LISTS = ("image_sizes", "image_size_starts", "plane_sizes", "ring_elevations_deg", "deformation_sizes")
# Nodes of the finest planes along an axis, whatever the picture size.
_FINEST_PLANES = 256
# Pictures from this size on are fitted from coarse to fine.
_COARSE_TO_FINE_FROM, _COARSE_TO_FINE_STARTS = 256, (0.0, 0.4, 0.7)


@dataclass(frozen=True)
class RefineConfig:
    """Settings of `refine_scene`; the defaults are the recipe for five views of 64 to 512 pixels.

    Args:
        backend: ``dynerf``, a field that is rendered by following rays, or ``gaussians``.
        seed: of the initial scene and of every draw.
        memory_gb: what following the rays of one step or picture may take, GiB; 0: no limit. The result stays
            the same but for rounding: they are followed in parts. Gaussians always do one frame at a time.
        steps_static: steps on the anchor frame alone, which train the planes of space.
        steps: steps on all frames that follow.
        rays_per_step: rays of one step, spread evenly over its pictures.
        frames_per_step: frames of one dynamic step.
        views_per_step: views of one frame; the input view is always one of them.
        samples: samples along the stretch of a ray that crosses the scene's box.
        progressive: frames are admitted outward from the anchor; None: only when the motion is large.
        image_sizes: picture sizes from coarse to fine, pixels; (): a quarter, a half and all of pictures of
            256 pixels and more, at 0, 40 and 70 % of stage 1; smaller ones are used as they are.
        image_size_starts: the share of all steps at which each of ``image_sizes`` begins, the first 0.

        rounds: rounds of the second stage; 0: the first stage alone.
        steps_refine: steps of one round.
        strength: share of the denoising schedule that the first round runs (0.2 to 0.6 keep the layout).
        strength_falling: the factor on the strength from round to round.
        ring_elevations_deg: rings of cameras between the given ones, relative to the input view; what they
            show is made up with the rest in the second stage.
        refine_rate: the factor on the learning rates at the start of the second stage.
        weight_by_visibility: in the second stage, surface seen at a grazing angle and targets that the scene
            contradicts count less.

        field: ``planes`` over space and time, or ``canonical``, one still field that a deformation moves.
        features: channels of a plane, per scale.
        plane_sizes: nodes along an axis of space, per scale; (): an eighth, a quarter and a half of the
            picture size, at most 256. Finer planes fit the given views better and the others worse.
        time_size: nodes along time; 0: one per frame.
        change_size: nodes along an axis of space, at most, of what changes with time.
        follow: a field goes with the object; None: only where it moves far.
        deformation_sizes: nodes along an axis of the canonical field's grids of offsets, from coarse to fine.
        hidden: width of the two decoders.
        density_scale: density per unit of the decoder's output, 1 / world unit.

        hull_size: cells along an axis of the occupancy grid.
        hull_dilation: how far masks are widened before the hull is carved, pixels at 64 pixels a side.
        hull_misses: views that may miss a cell of the hull; None: the fewest that still cover the masks.
        occupancy_every: steps between two refreshes of the occupancy from the density; 0: never.
        occupancy_opacity: opacity of one cell below which it counts as empty.

        learning_rate: of the planes.
        learning_rate_decoder: of the decoders.
        learning_rate_deformation: of what moves the field's points.
        learning_rate_end: the factor that all have fallen to at the end of each stage.

        photometric: ``mse`` or ``charbonnier``, which heeds outliers less.
        weight_mask: squared error of the opacity.
        weight_planes: total variation of the planes.
        weight_time_smoothness: squared difference of the planes from one node of time to the next.
        weight_time_offset: size of what the planes of space change by over time.
        weight_deformation: squared offset of the deformation.
        weight_deformation_slope: squared change of the deformation in space.
        smooth_every: steps between two uses of the terms on planes and deformation; they count more then.
        weight_entropy: entropy of the opacity, against fog.
        weight_by_trust: views far from the input and rims of silhouettes count less.

        patches_per_step: square patches of adjacent pixels in a step, for the terms below; 0: none.
        patch_size: side of a patch, pixels.
        patch_start: the share of the steps of stage 1 before which no patches are drawn.
        weight_ssim: 1 - SSIM of the patches, where no perceptual distance is given.
        weight_perceptual: the perceptual distance of the patches, where one is given.
        weight_depth: squared depth difference of neighbouring pixels.
        weight_normal_smoothness: roughness of the normals, where the picture has no edge.
        weight_normal: 1 - cosine to the normals, where normals are given.

        gaussians: what the backend ``gaussians`` uses beside the above.

    Raises:
        ValueError: a field out of its range.
    """

    backend: str = "dynerf"
    seed: int = 0
    memory_gb: float = 0.0
    steps_static: int = 200
    steps: int = 2300
    rays_per_step: int = 1024
    frames_per_step: int = 4
    views_per_step: int = 4
    samples: int = 64
    progressive: bool | None = None
    image_sizes: tuple[int, ...] = ()
    image_size_starts: tuple[float, ...] = ()

    rounds: int = 2
    steps_refine: int = 400
    strength: float = 0.35
    strength_falling: float = 0.6
    ring_elevations_deg: tuple[float, ...] = (15.0, -15.0)
    refine_rate: float = 0.3
    weight_by_visibility: bool = True

    field: str = "planes"
    features: int = 32
    plane_sizes: tuple[int, ...] = ()
    time_size: int = 0
    change_size: int = 64
    follow: bool | None = None
    deformation_sizes: tuple[int, ...] = (4, 12)
    hidden: int = 64
    density_scale: float = 25.0

    hull_size: int = 64
    hull_dilation: float = 1.0
    hull_misses: int | None = None
    occupancy_every: int = 256
    occupancy_opacity: float = 0.01

    learning_rate: float = 3e-2
    learning_rate_decoder: float = 3e-3
    learning_rate_deformation: float = 3e-3
    learning_rate_end: float = 0.1

    photometric: str = "mse"
    weight_mask: float = 0.1
    weight_planes: float = 0.01
    weight_time_smoothness: float = 0.05
    weight_time_offset: float = 1e-3
    weight_deformation: float = 1e-3
    weight_deformation_slope: float = 0.1
    smooth_every: int = 4
    weight_entropy: float = 1e-3
    weight_by_trust: bool = True

    patches_per_step: int = 0
    patch_size: int = 16
    patch_start: float = 0.2
    weight_ssim: float = 0.1
    weight_perceptual: float = 0.1
    weight_depth: float = 0.01
    weight_normal_smoothness: float = 0.02
    weight_normal: float = 0.05

    gaussians: GaussiansConfig = GaussiansConfig()

    def __post_init__(self) -> None:
        for name in _LISTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_limits(vars(self))

    @property
    def stage_one_steps(self) -> int:
        """Steps of the static and the dynamic phase."""
        return self.steps_static + self.steps

    @property
    def total_steps(self) -> int:
        """Steps of both stages."""
        return self.stage_one_steps + self.rounds * self.steps_refine

    def with_steps(self, steps: int, stages: int) -> RefineConfig:
        """Return the same settings with ``steps`` steps in all, divided as the default recipe divides them.

        Args:
            steps: at least 4.
            stages: 1, or 2 with the rounds of these settings (2 where they have none).
        """
        recipe = RefineConfig()
        rounds = 0 if stages == 1 else self.rounds or recipe.rounds
        share = recipe.steps_refine / (recipe.stage_one_steps + rounds * recipe.steps_refine)
        refine = max(int(steps * share), 1)
        first = max(steps - rounds * refine, 1)
        static = first * recipe.steps_static // recipe.stage_one_steps
        return replace(self, steps_static=static, steps=first - static, rounds=rounds, steps_refine=refine)

    @property
    def rays_in_memory(self) -> int:
        """How many rays of a `DyNeRF` are followed at once within ``memory_gb``; 0: no limit."""
        if self.memory_gb == 0:
            return 0
        # Samples, features with the products before them, and hidden layers, all kept for the gradient.
        per_sample = 4 * (12 * self.features * max(len(self.plane_sizes), 3) + 6 * self.hidden + 32)
        return max(int(self.memory_gb * 2**30 / (per_sample * self.samples)), 64)

    def for_pictures(self, size: int) -> RefineConfig:
        """Return the same settings with the sizes that pictures of ``size`` pixels ask for."""
        finest = min(max(size // 2, 8), _FINEST_PLANES)
        config = replace(self, plane_sizes=self.plane_sizes or (finest // 4, finest // 2, finest))
        if self.image_sizes or size < _COARSE_TO_FINE_FROM:
            return config
        sizes = (size // 4, size // 2, size)
        return replace(config, image_sizes=sizes, image_size_starts=_COARSE_TO_FINE_STARTS)

    def to_json(self) -> dict:
        """Return the fields as plain JSON values; `from_json` reads them back."""
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        return {**plain, "gaussians": self.gaussians.to_json()}

    @classmethod
    def from_json(cls, data: dict) -> RefineConfig:
        """Return settings from `to_json`'s values; a field that is missing has its default.

        Raises:
            ValueError: an unknown field, or a value out of range.
        """
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"Expected fields of RefineConfig; got the unknown {', '.join(unknown)}.")
        nested = {"gaussians": GaussiansConfig.from_json(data["gaussians"])} if "gaussians" in data else {}
        return cls(**{**data, **nested})
