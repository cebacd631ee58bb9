"""The settings of a fit; the defaults are the recipe for five views of 64 to 512 pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from ..messages import cut
from ..stored import LARGEST_COUNT, Fields

_PER_PIXEL = 0.75  # Gaussians per pixel of a picture, when their number is not given
_MOST = 40_000  # Gaussians then, at most
_MOST_SCALES, _MOST_NODES = 8, 4096
PATCH = 16  # side, in pixels, of the patches that normals are compared on

_Kind = TypeVar("_Kind", bound="Settings")


def setting(default: Any, help: str, *, choices: tuple[str, ...] = (), **limits: float) -> Any:
    """Return a dataclass field with its help text and its limits (``least``, ``above``, ``most``).

    No number is larger than a million: settings come out of files of anybody, too.
    """
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        limits = {"most": LARGEST_COUNT, **limits}
    return field(default=default, metadata={"help": help, "choices": choices, "limits": limits})


@dataclass(frozen=True)
class Settings:
    """Settings that check themselves."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value, choices = getattr(self, one.name), one.metadata.get("choices", ())
            if choices and value not in choices:
                raise ValueError(f"Expected {one.name} {' or '.join(choices)}; got {cut(repr(value))}.")
            for kind, limit in one.metadata.get("limits", {}).items():
                sign = {"least": ">=", "above": ">", "most": "<=", "unlike": "!="}[kind]
                holds = {
                    ">=": value >= limit,
                    ">": value > limit,
                    "<=": value <= limit,
                    "!=": value != limit,
                }[sign]
                if not holds or not math.isfinite(value):
                    raise ValueError(
                        f"Expected {one.name} {sign} {limit:g}; got {value}. Change this setting."
                    )
            if isinstance(value, list | tuple):
                object.__setattr__(self, one.name, tuple(value))
                fits = len(value) <= _MOST_SCALES and all(2 <= size <= _MOST_NODES for size in value)
                if not fits or (one.default and not value):
                    raise ValueError(
                        f"Expected {one.name} of at least 2 nodes and at most {_MOST_NODES}, one per scale, "
                        f"of at most {_MOST_SCALES}; got {cut(value)}."
                    )


def settings_to_json(kind: type[Settings], settings: Settings) -> dict:
    """Return those settings that a kind has, as plain JSON values; `settings_from_json` reads them back."""
    plain = {one.name: getattr(settings, one.name) for one in fields(kind)}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in plain.items()}


def settings_from_json(kind: type[_Kind], data: dict) -> _Kind:
    """Return settings from JSON values; missing ones have their defaults. ValueError for one out of range.

    Others are ignored: files of version 0.1.0 hold every number of the fit that made them.
    """
    stored = Fields.of(data, "the settings")
    return kind(
        **{one.name: stored.like(one.name, one.default) for one in fields(kind) if one.name in stored}
    )


@dataclass(frozen=True, kw_only=True)
class FieldConfig(Settings):
    """What a `DyNeRF` is made of; its file keeps it."""

    field: str = setting(
        "planes",
        "``planes`` over space and time, or ``canonical``, one still field that a deformation moves",
        choices=("planes", "canonical"),
    )
    plane_sizes: tuple[int, ...] = setting(
        (),
        "nodes along an axis of space, per scale; (): an eighth, a quarter and a half of the picture size, "
        "at most 256. Finer planes fit the given views better and the others worse",
    )
    features: int = setting(32, "channels of a plane, per scale", least=1, most=256)
    hidden: int = setting(64, "width of the two decoders", least=1, most=1024)
    samples: int = setting(
        64, "samples along the stretch of a ray that crosses the scene's box", least=8, most=1024
    )
    time_size: int = setting(0, "nodes along time; 0: one per frame", least=0, unlike=1)
    change_size: int = setting(64, "nodes along an axis, at most, of what changes with time", least=2)
    deformation_sizes: tuple[int, ...] = setting(
        (4, 12), "nodes along an axis of the canonical field's grids of offsets, from coarse to fine"
    )
    density_scale: float = setting(
        25.0,
        "density per unit of the decoder's output, 1 / world unit; a fit expects cameras 2 away",
        above=0,
    )
    memory_gb: float = setting(
        0.0,
        "what following the rays of one step or picture may take, GiB; 0: no limit. The result stays the "
        "same but for rounding: they are followed in parts. Gaussians always do one frame at a time",
        least=0,
    )

    @property
    def rays_in_memory(self) -> int:
        """How many rays are followed at once within ``memory_gb``; 0: no limit."""
        return self.rays_within(self.memory_gb) if self.memory_gb else 0

    def rays_within(self, memory_gb: float) -> int:
        """Return how many rays are followed at once within so many GiB, at least a patch for normals."""
        return max(int(memory_gb / self.memory_for(1)), PATCH**2)

    def memory_for(self, rays: int) -> float:
        """Return the GiB that following so many rays at once takes."""
        # Samples, features with the products before them, and hidden layers, all kept for the gradient.
        per_sample = 4 * (12 * self.features * max(len(self.plane_sizes), 3) + 6 * self.hidden + 32)
        return rays * per_sample * self.samples / 2**30


@dataclass(frozen=True, kw_only=True)
class GaussiansConfig(Settings):
    """What a `Gaussians` scene is made of; its file keeps it."""

    count: int = setting(
        0, "number of Gaussians; 0: three per four pixels of a view, at most 40,000", least=0
    )
    plane_sizes: tuple[int, ...] = setting((16, 32), "nodes along an axis of the deformation, per scale")
    features: int = setting(16, "channels of a plane of the deformation, per scale", least=1, most=256)
    hidden: int = setting(64, "width of the deformation's decoder", least=1, most=1024)
    time_size: int = setting(
        0,
        "nodes along time; 0: one per frame. Fewer follow slow motion only, and flicker less",
        least=0,
        unlike=1,
    )
    fade: float = setting(
        5.0,
        "how easily opacities change over time; 0: never. What turns out of sight or moves too fast to be "
        "followed is shown by other Gaussians at other times",
        least=0,
    )
    move_scale: float = setting(
        1.0, "world units per unit of the deformation's offsets; a fit expects cameras 2 away", above=0
    )

    def count_for(self, size: int) -> int:
        """Return the number of Gaussians for views of ``size`` pixels a side."""
        return self.count or min(round(_PER_PIXEL * size * size), _MOST)


@dataclass(frozen=True, kw_only=True)
class RefineConfig(FieldConfig):
    """Settings of `refine_scene`; ValueError for one out of its range."""

    backend: str = setting(
        "dynerf",
        "``dynerf``, a field that is rendered by following rays, or ``gaussians``",
        choices=("dynerf", "gaussians"),
    )
    gaussians: GaussiansConfig = GaussiansConfig()
    seed: int = setting(0, "of the initial scene and of every draw", most=2**64 - 1)
    steps_static: int = setting(200, "steps on the anchor frame alone, without time", least=0)
    steps: int = setting(2300, "steps on all frames that follow", least=1)
    rounds: int = setting(2, "rounds of the second stage; 0: the first stage alone", least=0)
    steps_refine: int = setting(400, "steps of one round", least=1)
    strength: float = setting(
        0.35,
        "share of the denoising schedule that the first round runs (0.2 to 0.6 keep the layout)",
        above=0,
        most=1,
    )
    learning_rate_factor: float = setting(1.0, "the factor on all learning rates", above=0, most=1e30)
    rays_per_step: int = setting(1024, "rays of one step, spread evenly over its pictures", least=16)
    hull_size: int = setting(64, "cells along an axis of the visual hull", least=8)
    weight_by_trust: bool = setting(True, "views far from the input and rims of silhouettes count less")
    weight_by_visibility: bool = setting(
        True,
        "in stage 2, surface seen at a grazing angle counts less, and so does what the scene contradicts in "
        "views that were not made anew from it",
    )
    progressive: bool | None = setting(
        None, "frames are admitted outward from the anchor; None: only when the motion is large"
    )
    follow: bool | None = setting(None, "a field goes with the object; None: only where it moves far")

    @property
    def stage_one_steps(self) -> int:
        return self.steps_static + self.steps

    @property
    def total_steps(self) -> int:
        return self.stage_one_steps + self.rounds * self.steps_refine

    def with_steps(self, steps: int, stages: int) -> RefineConfig:
        """Return the same settings with ``steps`` steps in all, divided as in the default recipe.

        Two stages have the rounds of these settings, or 2 where they have none. ValueError for steps that are
        not more than the rounds.
        """
        recipe = RefineConfig()
        rounds = 0 if stages == 1 else self.rounds or recipe.rounds
        if steps <= rounds:
            raise ValueError(
                f"Expected at least {rounds + 1} steps, one for each of the {rounds} rounds and one before; "
                f"got {steps}. Give more steps (or minutes), or fewer rounds."
            )
        share = recipe.steps_refine / (recipe.stage_one_steps + rounds * recipe.steps_refine)
        refine = max(int(steps * share), 1)
        first = steps - rounds * refine
        static = first * recipe.steps_static // recipe.stage_one_steps
        return replace(self, steps_static=static, steps=first - static, rounds=rounds, steps_refine=refine)
