"""The settings of a fit: every one is described once, with its default, its range and what it is.

The defaults of `RefineConfig` are the recipe for five views of 64 to 512 pixels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

# Gaussians per pixel of a picture, and at most, when `GaussiansConfig.count` is 0.
_PER_PIXEL = 0.75
_MOST = 40_000
# Nodes of the finest planes along an axis, whatever the picture size.
_FINEST_PLANES = 256
# Pictures from this size on are fitted from coarse to fine.
_COARSE_TO_FINE_FROM, _COARSE_TO_FINE_STARTS = 256, (0.0, 0.4, 0.7)


def setting(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Return a dataclass field that carries its help text and its limits; `check` reads them."""
    limits = {">=": least, ">": above, "<=": most, "<": below}
    found = {sign: limit for sign, limit in limits.items() if limit is not None}
    return field(default=default, metadata={"help": help, "limits": found, "choices": choices})


def check(settings: Any, prefix: str = "") -> None:
    """Raise ValueError for a setting out of its range; the text names it, its range and what it is."""
    for one in fields(settings):
        value, limits = getattr(settings, one.name), one.metadata.get("limits", {})
        choices = one.metadata.get("choices", ())
        if choices and value not in choices:
            raise ValueError(f"Expected {prefix}{one.name} {' or '.join(choices)}; got {value!r}.")
        if limits and not (math.isfinite(value) and all(_holds(value, *limit) for limit in limits.items())):
            wanted = " and ".join(f"{sign} {limit:g}" for sign, limit in limits.items())
            raise ValueError(f"Expected {prefix}{one.name} {wanted}; got {value}. Change this field.")


def _holds(value: float, sign: str, limit: float) -> bool:
    if sign == ">=":
        return value >= limit
    if sign == ">":
        return value > limit
    return value <= limit if sign == "<=" else value < limit


@dataclass(frozen=True)
class GaussiansConfig:
    """Settings of `GaussiansFit`; the steps, the hull and the views come from `RefineConfig`.

    Raises:
        ValueError: a field out of its range.
    """

    count: int = setting(
        0,
        "number of Gaussians, which never changes; 0: three per four pixels of a view, at most 40,000",
        least=0,
    )
    pictures_per_step: int = setting(
        2,
        "pictures that one step renders, out of the frames and views of its draw",
        least=1,
    )
    opacity: float = setting(0.5, "of a Gaussian at the start", least=0.02, most=0.98)
    scale: float = setting(
        0.7,
        "of a Gaussian at the start, in distances between neighbours",
        least=0.05,
        most=10,
    )
    smallest_scale: float = setting(
        0.2,
        "the least scale along an axis, in scales at the start",
        least=0.001,
        most=1,
    )
    largest_scale: float = setting(
        4.0,
        "the largest scale along an axis, in scales at the start. Large flat ones look right from the "
        "given views and wrong from others",
        least=1,
        most=1000,
    )

    features: int = setting(16, "channels of a plane of the deformation, per scale", least=1)
    plane_sizes: tuple[int, ...] = setting((16, 32), "nodes along an axis of space, per scale")
    time_size: int = setting(
        0,
        "nodes along time; 0: one per frame. Fewer follow slow motion only, and flicker less",
        least=0,
    )
    hidden: int = setting(64, "width of the decoder", least=1)
    fade: float = setting(
        5.0,
        "how easily opacities change over time; 0: never. What turns out of sight or moves too fast to be "
        "followed is shown by other Gaussians at other times",
        least=0,
    )
    motion_alone: float = setting(
        0.15,
        "the share of the dynamic steps, from the first, in which only the motion is learnt; it keeps "
        "what is known of the anchor frame from being averaged over all frames",
        least=0,
        most=1,
    )

    relocate_every: int = setting(
        200,
        "steps between two moves of dead Gaussians onto live ones; 0: never",
        least=0,
    )
    relocate_until: float = setting(
        0.6,
        "the share of all steps after which none moves any more",
        least=0,
        most=1,
    )
    dead_opacity: float = setting(
        0.01,
        "the opacity below which a Gaussian counts as dead",
        least=0,
        most=0.5,
    )
    neighbours: int = setting(
        8,
        "nearest neighbours whose distances the deformation should keep",
        least=1,
        most=64,
    )

    learning_rate_means: float = setting(2e-3, "world units per step", above=0)
    learning_rate_quats: float = setting(1e-2, "of the rotations", above=0)
    learning_rate_scales: float = setting(2e-2, "of the logarithms of the scales", above=0)
    learning_rate_opacities: float = setting(5e-2, "of the logits of the opacities", above=0)
    learning_rate_colours: float = setting(5e-2, "of the logits of the colours", above=0)
    learning_rate_planes: float = setting(2e-2, "of the planes of the deformation", above=0)
    learning_rate_decoder: float = setting(2e-3, "of its decoder", above=0)

    weight_colour: float = setting(0.8, "absolute difference of the colours", least=0)
    weight_dissimilarity: float = setting(0.2, "1 - SSIM", least=0)
    weight_mask: float = setting(0.5, "squared error of the opacity of pictures", least=0)
    weight_hull: float = setting(
        0.1,
        "distance of Gaussians from the visual hull of the frame, in cells",
        least=0,
    )
    weight_planes: float = setting(1e-3, "total variation of the planes of space", least=0)
    weight_time_smoothness: float = setting(0.05, "squared second difference along time", least=0)
    weight_isometry: float = setting(
        0.02,
        "squared relative change of the distances to the neighbours",
        least=0,
    )
    weight_offset: float = setting(0.0, "squared motion, world units", least=0)
    weight_entropy: float = setting(
        0.0,
        "entropy of the Gaussians' opacities, against fog; with a short fit it costs quality",
        least=0,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "plane_sizes", tuple(self.plane_sizes))
        check(self, "gaussians.")
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


_LISTS = ("image_sizes", "image_size_starts", "plane_sizes", "ring_elevations_deg", "deformation_sizes")


@dataclass(frozen=True)
class RefineConfig:
    """Settings of `refine_scene`; `gaussians` is what the backend of this name uses beside the others.

    Raises:
        ValueError: a field out of its range.
    """

    backend: str = setting(
        "dynerf",
        "``dynerf``, a field that is rendered by following rays, or ``gaussians``",
        choices=("dynerf", "gaussians"),
    )
    seed: int = setting(0, "of the initial scene and of every draw")
    memory_gb: float = setting(
        0.0,
        "what following the rays of one step or picture may take, GiB; 0: no limit. The result stays the "
        "same but for rounding: they are followed in parts. Gaussians always do one frame at a time",
        least=0,
    )
    steps_static: int = setting(
        200,
        "steps on the anchor frame alone, which train the planes of space",
        least=0,
    )
    steps: int = setting(2300, "steps on all frames that follow", least=1)
    rays_per_step: int = setting(1024, "rays of one step, spread evenly over its pictures", least=16)
    frames_per_step: int = setting(4, "frames of one dynamic step", least=1)
    views_per_step: int = setting(4, "views of one frame; the input view is always one of them", least=1)
    samples: int = setting(64, "samples along the stretch of a ray that crosses the scene's box", least=8)
    progressive: bool | None = setting(
        None,
        "frames are admitted outward from the anchor; None: only when the motion is large",
    )
    image_sizes: tuple[int, ...] = setting(
        (),
        "picture sizes from coarse to fine, pixels; (): a quarter, a half and all of pictures of 256 "
        "pixels and more, at 0, 40 and 70 % of stage 1; smaller ones are used as they are",
    )
    image_size_starts: tuple[float, ...] = setting(
        (),
        "the share of all steps at which each of ``image_sizes`` begins, the first 0",
    )

    rounds: int = setting(2, "rounds of the second stage; 0: the first stage alone", least=0)
    steps_refine: int = setting(400, "steps of one round", least=1)
    strength: float = setting(
        0.35,
        "share of the denoising schedule that the first round runs (0.2 to 0.6 keep the layout)",
        above=0,
        most=1,
    )
    strength_falling: float = setting(0.6, "the factor on the strength from round to round", above=0)
    ring_elevations_deg: tuple[float, ...] = setting(
        (15.0, -15.0),
        "rings of cameras between the given ones, relative to the input view; what they show is made up "
        "with the rest in the second stage",
    )
    refine_rate: float = setting(
        0.3,
        "the factor on the learning rates at the start of the second stage",
        above=0,
    )
    weight_by_visibility: bool = setting(
        True,
        "in the second stage, surface seen at a grazing angle and targets that the scene contradicts "
        "count less",
    )

    field: str = setting(
        "planes",
        "``planes`` over space and time, or ``canonical``, one still field that a deformation moves",
        choices=("planes", "canonical"),
    )
    features: int = setting(32, "channels of a plane, per scale", least=1)
    plane_sizes: tuple[int, ...] = setting(
        (),
        "nodes along an axis of space, per scale; (): an eighth, a quarter and a half of the picture "
        "size, at most 256. Finer planes fit the given views better and the others worse",
    )
    time_size: int = setting(0, "nodes along time; 0: one per frame", least=0)
    change_size: int = setting(
        64,
        "nodes along an axis of space, at most, of what changes with time",
        least=2,
    )
    follow: bool | None = setting(None, "a field goes with the object; None: only where it moves far")
    deformation_sizes: tuple[int, ...] = setting(
        (4, 12),
        "nodes along an axis of the canonical field's grids of offsets, from coarse to fine",
    )
    hidden: int = setting(64, "width of the two decoders", least=1)
    density_scale: float = setting(25.0, "density per unit of the decoder's output, 1 / world unit", above=0)

    hull_size: int = setting(64, "cells along an axis of the occupancy grid", least=8)
    hull_dilation: float = setting(
        1.0,
        "how far masks are widened before the hull is carved, pixels at 64 pixels a side",
        least=0,
    )
    hull_misses: int | None = setting(
        None,
        "views that may miss a cell of the hull; None: the fewest that still cover the masks",
    )
    occupancy_every: int = setting(
        256,
        "steps between two refreshes of the occupancy from the density; 0: never",
        least=0,
    )
    occupancy_opacity: float = setting(0.01, "opacity of one cell below which it counts as empty", least=0)

    learning_rate: float = setting(3e-2, "of the planes", above=0)
    learning_rate_decoder: float = setting(3e-3, "of the decoders", above=0)
    learning_rate_deformation: float = setting(3e-3, "of what moves the field's points", above=0)
    learning_rate_end: float = setting(
        0.1,
        "the factor that all have fallen to at the end of each stage",
        above=0,
    )

    photometric: str = setting(
        "mse",
        "``mse`` or ``charbonnier``, which heeds outliers less",
        choices=("mse", "charbonnier"),
    )
    weight_mask: float = setting(0.1, "squared error of the opacity", least=0)
    weight_planes: float = setting(0.01, "total variation of the planes", least=0)
    weight_time_smoothness: float = setting(
        0.05,
        "squared difference of the planes from one node of time to the next",
        least=0,
    )
    weight_time_offset: float = setting(1e-3, "size of what the planes of space change by over time", least=0)
    weight_deformation: float = setting(1e-3, "squared offset of the deformation", least=0)
    weight_deformation_slope: float = setting(0.1, "squared change of the deformation in space", least=0)
    smooth_every: int = setting(
        4,
        "steps between two uses of the terms on planes and deformation; they count more then",
        least=1,
    )
    weight_entropy: float = setting(1e-3, "entropy of the opacity, against fog", least=0)
    weight_by_trust: bool = setting(True, "views far from the input and rims of silhouettes count less")

    patches_per_step: int = setting(
        0,
        "square patches of adjacent pixels in a step, for the terms below; 0: none",
        least=0,
    )
    patch_size: int = setting(16, "side of a patch, pixels", least=8)
    patch_start: float = setting(
        0.2,
        "the share of the steps of stage 1 before which no patches are drawn",
        least=0,
        below=1,
    )
    weight_ssim: float = setting(
        0.1,
        "1 - SSIM of the patches, where no perceptual distance is given",
        least=0,
    )
    weight_perceptual: float = setting(
        0.1,
        "the perceptual distance of the patches, where one is given",
        least=0,
    )
    weight_depth: float = setting(0.01, "squared depth difference of neighbouring pixels", least=0)
    weight_normal_smoothness: float = setting(
        0.02,
        "roughness of the normals, where the picture has no edge",
        least=0,
    )
    weight_normal: float = setting(0.05, "1 - cosine to the normals, where normals are given", least=0)

    gaussians: GaussiansConfig = GaussiansConfig()

    def __post_init__(self) -> None:
        for name in _LISTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check(self)
        self._check_sizes()

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

    def _check_sizes(self) -> None:
        if self.plane_sizes and min(self.plane_sizes) < 2:
            raise ValueError(f"Expected plane sizes of at least 2 nodes; got {self.plane_sizes}.")
        if not self.deformation_sizes or min(self.deformation_sizes) < 2:
            raise ValueError(f"Expected deformation sizes of at least 2 nodes; got {self.deformation_sizes}.")
        if self.time_size == 1:
            raise ValueError("Expected time_size 0 (one node per frame) or at least 2; got 1.")
        sizes, starts = self.image_sizes, self.image_size_starts
        rising = all(a < b for a, b in zip(starts, starts[1:], strict=False))
        if len(sizes) != len(starts) or not rising or (starts and (starts[0] != 0 or starts[-1] >= 1)):
            raise ValueError(
                f"Expected one start per picture size, rising from 0 and below 1; got sizes {sizes} and "
                f"starts {starts}. Write for example image_sizes=(128, 256), image_size_starts=(0, 0.4)."
            )
        if sizes and min(sizes) < 16:
            raise ValueError(f"Expected picture sizes of at least 16 pixels; got {sizes}.")
