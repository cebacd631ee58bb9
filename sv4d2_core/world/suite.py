"""The benchmark: ten fixed scenes whose every view at every time is known exactly.

A method is shown the frame times from a training rig (`Cameras.official`). It is judged on the views of
`HELD_OUT`, at the frame times and half-way between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cameras import Cameras
from ..views import ViewGrid
from .animals import biped, butterfly, flamingo, flier, insect, owl, quadruped, runner, swimmer
from .body import Creature, fitted, make_creature
from .cloth import cape, carpet, flag, jellyfish, kite
from .coat import Dice, Light, Palette, Vector, draw_palette
from .machines import arm, bicycle, big_wheel, car, crane, digger, helicopter, mobile, robot_arm, train
from .render import render_creature
from .toys import aeroplane, carousel, lamp, mug, rocket, rocking_horse, scatter, totem, windmill

# Views that are on neither training rig, most of them lifted or lowered.
HELD_OUT = Cameras((0, 0, 20, 0, -10, 30), (0, 45, 150, 195, 285, 20))


@dataclass(frozen=True)
class BenchmarkScene:
    """One moving object of the benchmark."""

    name: str  # unique, fit for a file name
    what: str  # one sentence, what is hard about it
    creature: Creature
    n_frames: int = 12  # T: a method is shown the times t / (T - 1)

    def views(self, cameras: Cameras, size: int) -> ViewGrid:
        """Return the true views at the T frame times, with masks."""
        return self._at(torch.linspace(0, 1, self.n_frames, dtype=torch.float64), cameras, size)

    def between(self, cameras: Cameras, size: int) -> ViewGrid:
        """Return the true views at the T - 1 times half-way between two frames, with masks."""
        frames = torch.linspace(0, 1, self.n_frames, dtype=torch.float64)
        return self._at((frames[:-1] + frames[1:]) / 2, cameras, size)

    def _at(self, times: Tensor, cameras: Cameras, size: int) -> ViewGrid:
        rendering = render_creature(self.creature, cameras, times, size)
        settings, shown = {"scene": self.name}, tuple(times.tolist())
        return ViewGrid(rendering.rgb, cameras, rendering.mask, settings=settings, times=shown)


def _fox() -> Creature:
    """Return a fox that runs from the left of the input view to its right."""
    path = (0.0, 0.0, 1.55)
    return fitted(replace(make_creature(0), heading_deg=80.0, cycles=2, path=path, marking_frequency=11.0))


_SCENES: dict[str, tuple[Callable[[], Creature], str]] = {
    "walker": (
        partial(make_creature, 10),
        "Legs that look alike pass in front of each other, under a coat of dark patches.",
    ),
    "runner": (
        _fox,
        "A fox crosses the picture, small in it, and its legs move on by a fifth of a stride per frame.",
    ),
    "rocking_horse": (
        rocking_horse,
        "One rigid body with thin runners rocks gently: every error of shape shows as false motion.",
    ),
    "windmill": (
        windmill,
        "Thin sails turn by a seventh of a turn per frame in front of a tower that stands still.",
    ),
    "carousel": (
        carousel,
        "Ponies on thin poles vanish behind a striped drum; one of them is hidden in frame 0.",
    ),
    "robot_arm": (robot_arm, "Four joints in a row add up their small turns at a gripper far from the base."),
    "aeroplane": (
        aeroplane,
        "A rigid biplane crosses the picture and rolls over: no view sees one side of it for long.",
    ),
    "flamingo": (flamingo, "Legs two pixels wide at 64 pixels, with little colour to tell the parts apart."),
    "owl": (owl, "The face is on the far side of the head in frame 0 and turns to the input view."),
    "butterfly": (butterfly, "Flat wings, edge-on in some views, move on by a fifth of a beat per frame."),
}
SCENE_NAMES = tuple(_SCENES)


def benchmark_scenes() -> tuple[BenchmarkScene, ...]:
    """Return the ten scenes, the same on every machine."""
    return tuple(BenchmarkScene(name, what, make()) for name, (make, what) in _SCENES.items())


_Builder = Callable[[Dice, Palette], Creature]

TRAINING_SEEDS = range(2**31)
# Objects that no training sees, so that scores stay comparable for ever.
HELD_OUT_OBJECTS = tuple(range(2**31, 2**31 + 64))

_KINDS: dict[str, tuple[float, tuple[_Builder, ...]]] = {  # probability, builders
    "animal": (0.45, (quadruped, quadruped, quadruped, biped, runner, flier, insect, swimmer)),
    "vehicle": (0.15, (car, car, train, bicycle, helicopter)),
    "machine": (0.14, (arm, arm, crane, digger, mobile, big_wheel)),
    "cloth": (0.13, (flag, cape, jellyfish, carpet, kite)),
    "statue": (0.13, (totem, mug, lamp, rocket, scatter)),
}
OBJECT_KINDS = tuple(_KINDS)
FAMILIES = ("things", "animals")  # all kinds, or four-legged animals alone
_N_TIMES = 129  # the fastest part swings less than six times between time 0 and 1
_MARGIN = 0.99  # what a swing can reach between two of these times


def draw_object(seed: int, family: str = "things") -> Creature:
    """Return a family's object of a seed, alike on every machine, in the unit box and the ball of the view.

    It looks to any side; about every fifteenth is nearly still. Raises ValueError for a seed above 32 bits.
    """
    kind, dice = _kind(seed)
    palette = draw_palette(dice)
    build = quadruped if family == "animals" else dice.choose(_KINDS[kind][1])
    creature = build(dice, palette)
    creature = replace(
        _paced(creature, dice),
        heading_deg=dice.between(0, 360),
        path=_path(dice),
        marking_phases=(dice.between(0, 6.28), dice.between(0, 6.28), dice.between(0, 6.28)),
        light=_light(dice),
    )
    creature = fitted(creature, _N_TIMES)
    x, y, z = creature.origin
    return replace(creature, scale=_MARGIN * creature.scale, origin=(_MARGIN * x, _MARGIN * y, _MARGIN * z))


def object_kind(seed: int) -> str:
    """Return which of ``OBJECT_KINDS`` the object of a seed is."""
    return _kind(seed)[0]


def _kind(seed: int) -> tuple[str, Dice]:
    """Return the kind of a seed's object, and the dice that draw all else."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"Expected a seed in 0..2**32 - 1; got {seed}. Larger seeds repeat smaller ones.")
    dice = Dice(seed)
    left = dice.between(0, 1)
    for kind, (probability, _) in _KINDS.items():
        left -= probability
        if left < 0:
            return kind, dice
    return OBJECT_KINDS[-1], dice


def _paced(creature: Creature, dice: Dice) -> Creature:
    """Return the creature slowed down or sped up, its swings made smaller or larger, at any start."""
    cycles = math.exp(dice.between(math.log(0.4), math.log(2.2)))
    gain, spin, start = dice.between(0.55, 1.15), 1.0, dice.between(0, 1)
    if dice.chance(0.07):
        gain, spin = dice.between(0.05, 0.2), 0.1
    bones = []
    for bone in creature.bones:
        phase = bone.phase + bone.beats * start
        bones.append(replace(bone, swing_deg=gain * bone.swing_deg, turns=spin * bone.turns, phase=phase))
    return replace(creature, bones=tuple(bones), cycles=cycles, bob=gain * creature.bob)


def _path(dice: Dice) -> Vector:
    """Return a way to go: four times out of five none."""
    if dice.chance(0.8):
        return 0.0, 0.0, 0.0
    return dice.between(-0.15, 0.15), dice.between(-0.1, 0.2), dice.between(0.2, 0.9)


def _light(dice: Dice) -> Light:
    """Return a light from any side above; key and ambient share a sum: hard light has dark shadows."""
    side, height = math.radians(dice.between(0, 360)), math.radians(dice.between(25, 75))
    key_direction = _direction(side, height)
    rim_direction = _direction(side + math.radians(dice.between(130, 230)), math.radians(dice.between(5, 40)))
    total, share, warmth = dice.between(1.02, 1.2), dice.between(0.3, 0.58), dice.between(-0.1, 0.1)
    key, sky = total * share, total * (1 - share)
    ground, rim = sky * dice.between(0.58, 0.85), dice.between(0.08, 0.32)
    greys = ((key, warmth), (rim, -warmth), (sky, -0.5 * warmth), (ground, 0.5 * warmth))
    key, rim, sky, ground = ((grey * (1 + tint), grey, grey * (1 - tint)) for grey, tint in greys)
    return Light(key_direction, key, rim_direction, rim, sky, ground)


def _direction(azimuth: float, elevation: float) -> Vector:
    """Return a unit vector; angles in radians, azimuth 0 to the input camera."""
    flat = math.cos(elevation)
    return flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)


# Standard deviations at severity 1: shifts as shares of the picture's side, colours as shares of full scale.
_STEADY_SHIFT, _FRAME_SHIFT = 0.019, 0.0019
_STEADY_COLOUR, _FRAME_COLOUR = 0.049, 0.004
_NODES = 5  # a side of the lattice on which shifts are drawn, to be interpolated
_LEAST_INK = 1e-4  # opacity below which ink is a leftover of bicubic reading
# Severity at the input view itself, and its growth per degree of elevation away from the input's.
_NEAREST = 0.09
_PER_DEGREE = 0.009


def corrupt_views(grid: ViewGrid, seed: int, strength: float = 1.0, *, per_frame: bool = False) -> ViewGrid:
    """Return the views with every novel one, and its mask, warped and discoloured; the input stays as it is.

    ``strength`` scales all errors, 1 being as large as SV4D 2.0's; those of a seed are the same at every
    size, those of two seeds independent. With ``per_frame`` they are drawn anew for every frame, equally
    large, as methods make them that know nothing of the frames before. Raises ValueError for a strength that
    is negative or not finite, and for a grid without masks.
    """
    if not math.isfinite(strength) or strength < 0:
        raise ValueError(
            f"Expected a finite strength of at least 0; got {strength:g}. Use 1, as the model's."
        )
    if grid.masks is None:
        raise ValueError("Expected views with masks; got none. Add the masks to the grid.")
    corruption = {"seed": seed, "strength": strength, "per_frame": per_frame}
    settings = {**(grid.settings or {}), "corruption": corruption}
    if strength == 0:
        return replace(grid, settings=settings)
    amounts = (strength * _severity(grid.cameras)).tolist()
    generator = torch.Generator("cpu").manual_seed(seed)
    images, masks = grid.images.clone(), grid.masks.clone()
    for view in range(1, grid.n_views + 1):
        shift, gain, offset = _errors(grid.n_frames, amounts[view], generator, per_frame)
        # The object's colour times its opacity, and its opacity, [T, 4, H, W].
        opacity = masks[:, view, :, :, None]
        ink = torch.cat([images[:, view] - (1 - opacity), opacity], dim=-1).permute(0, 3, 1, 2)
        ink = _drifted(_warped(ink, shift), gain, offset)
        masks[:, view] = ink[:, 3]
        images[:, view] = (ink[:, :3] + 1 - ink[:, 3:]).clamp(0, 1).permute(0, 2, 3, 1)
    # Latents would show the views as they were.
    return replace(grid, images=images, masks=masks, latents=None, settings=settings)


def _severity(cameras: Cameras) -> Tensor:
    """Return how large the errors of every view are, [V + 1] float64, about 1 behind the object.

    They grow with the haversine of the great-circle angle to the input view and with the difference in
    elevation: the haversine alone would make lifted views behind the object better.
    """
    directions = F.normalize(cameras.eyes(), dim=-1)
    haversine = (1 - directions @ directions[0]) / 2
    lift_deg = torch.tensor(cameras.elevations_deg, dtype=torch.float64).abs()
    return (_NEAREST + (1 - _NEAREST) * haversine) * (1 + _PER_DEGREE * lift_deg)


def _errors(
    n_frames: int, amount: float, generator: torch.Generator, per_frame: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one view's shifts at the nodes [T, 2, N, N], gains and offsets of its colours, each [T, 3]."""

    def drawn(*shape: int, steady: float, fresh: float) -> Tensor:
        if per_frame:
            steady, fresh = 0.0, math.hypot(steady, fresh)
        one = torch.randn(shape, generator=generator, dtype=torch.float64)
        every = torch.randn((n_frames, *shape), generator=generator, dtype=torch.float64)
        return amount * (steady * one + fresh * every)

    shift = drawn(2, _NODES, _NODES, steady=_STEADY_SHIFT, fresh=_FRAME_SHIFT)
    gain, offset = drawn(2, 3, steady=_STEADY_COLOUR, fresh=_FRAME_COLOUR).unbind(1)
    return shift, gain, offset


def _warped(ink: Tensor, shift: Tensor) -> Tensor:
    """Return ``ink`` [T, C, H, W] read at places moved by ``shift`` [T, 2, N, N], shares of the side."""
    height, width = ink.shape[2:]
    # grid_sample counts from -1 to 1 across the picture.
    x = (torch.arange(width, dtype=torch.float64) + 0.5) * 2 / width - 1
    y = (torch.arange(height, dtype=torch.float64) + 0.5) * 2 / height - 1
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).expand(len(ink), -1, -1, -1)
    moved = F.grid_sample(shift, places, mode="bicubic", padding_mode="border", align_corners=True)
    places = (places + 2 * moved.permute(0, 2, 3, 1)).to(ink)
    # Bilinear reading would blur the views and so hide flicker. Bicubic reading overshoots: ink of an opacity
    # above 1 is thinned.
    moved_ink = F.grid_sample(ink, places, mode="bicubic", padding_mode="border", align_corners=False)
    opacity = moved_ink[:, 3:]
    return moved_ink * opacity.clamp(0, 1) / opacity.where(opacity > _LEAST_INK, math.inf)


def _drifted(ink: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Return ``ink`` [T, 4, H, W] with the object's colours c as (1 + gain) c + offset, held in 0..1."""
    gain, offset = (values.to(ink)[:, :, None, None] for values in (gain, offset))
    opacity = ink[:, 3:].clamp(0, 1)
    colour = (1 + gain) * ink[:, :3] + offset * opacity
    return torch.cat([torch.minimum(colour.clamp(min=0), opacity), opacity], dim=1)
