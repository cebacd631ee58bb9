"""Every number that the refiner uses, as plain fields."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from .config_limits import check_limits
from .gaussians_config import GaussiansConfig

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

    def round_at(self, step: int) -> int:
        """Return which round of the second stage a step belongs to, from 1; 0: it belongs to the first."""
        after = step - self.stage_one_steps
        return 0 if after < 0 else min(after // self.steps_refine + 1, self.rounds)

    def learning_rate_at(self, step: int) -> float:
        """Return the factor on the learning rates at a step: it falls evenly (in its logarithm) per stage."""
        after = step - self.stage_one_steps
        if after < 0:
            return self.learning_rate_end ** (step / self.stage_one_steps)
        share = after / (self.rounds * self.steps_refine)
        return self.refine_rate * (self.learning_rate_end / self.refine_rate) ** share

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

    def image_size_at(self, step: int) -> int | None:
        """Return the picture size of a step; None: as given."""
        done = step / max(self.stage_one_steps, 1)
        pairs = zip(self.image_sizes, self.image_size_starts, strict=True)
        return max((size for size, start in pairs if start <= done), default=None)

    def fitted_size_at(self, step: int, size: int) -> int:
        """Return the size in which a step uses pictures of ``size`` pixels; they are never enlarged."""
        return min(self.image_size_at(step) or size, size)

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
