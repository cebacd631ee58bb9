"""Cameras around an object, and the sign and axis conventions of the whole project.

World: right-handed, +y up, the object at the origin, the input camera on the +z side, or where a data set's
own world has it (`Cameras.input_azimuth_deg`). A positive elevation
lifts the camera; a positive azimuth moves it to the viewer's right, counter-clockwise seen from above:
``eye = radius * (cos e sin a, sin e, cos e cos a)``. Both are relative to the input view, as the network sees
only differences; the input's absolute elevation is a separate number that only geometry uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from .messages import cut
from .stored import Fields

OFFICIAL_AZIMUTHS_DEG = {
    "sv4d2": (0.0, 60.0, 120.0, 180.0, 240.0),
    "sv4d2_8views": (0.0, 30.0, 75.0, 120.0, 165.0, 210.0, 255.0, 300.0, 330.0),
}
# Eight views for a 4D scene, two passes of a model of four: an even ring as the input looks, one from above.
# Compared with other rigs in tests/bench/README.md.
_SCENE_AZIMUTHS_DEG = (45.0, 135.0, 225.0, 315.0, 0.0, 90.0, 180.0, 270.0)
_SCENE_ELEVATIONS_DEG = (0.0,) * 4 + (30.0,) * 4
DEFAULT_RADIUS = 2.0  # stated by SV3D's authors (Voleti et al. 2024), as the field of view
DEFAULT_FOV_DEG = 33.8

# Camera axes: OpenGL is x right, y up, z backward; OpenCV is x right, y down, z forward.
_OPENGL_TO_OPENCV = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


@dataclass(frozen=True)
class Cameras:
    """The input view and V novel views on a sphere around the object, all looking at its centre.

    Raises:
        ValueError: lists of different lengths, non-finite angles, an input view that is not (0, 0), a novel
            view beyond a pole, a radius or field of view out of range.
    """

    elevations_deg: tuple[float, ...]  # [V + 1] relative to the input view, which is entry 0: 0
    azimuths_deg: tuple[float, ...]  # [V + 1] likewise
    radius: float = DEFAULT_RADIUS  # of every camera from the origin; the object is about 1 large
    fov_deg: float = DEFAULT_FOV_DEG  # of the square image
    input_elevation_deg: float = 0.0  # absolute elevation of the input camera; geometry only
    # Its azimuth in the world of a data set; None: a relative list, whose input camera makes the front, 0.
    input_azimuth_deg: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        # Adding 0 makes a negative zero positive.
        object.__setattr__(self, "elevations_deg", tuple(float(e) + 0.0 for e in self.elevations_deg))
        object.__setattr__(self, "azimuths_deg", tuple(float(a) + 0.0 for a in self.azimuths_deg))
        e, a = self.elevations_deg, self.azimuths_deg
        if len(e) != len(a) or len(e) < 2:
            raise ValueError(
                f"Expected as many elevations as azimuths, of the input and at least one novel view; got "
                f"{len(e)} elevations and {len(a)} azimuths. Give one entry per view, the input view first."
            )
        turn = self.input_azimuth_deg or 0.0
        if not all(map(math.isfinite, (*e, *a, self.radius, self.fov_deg, self.input_elevation_deg, turn))):
            raise ValueError(
                f"Expected cameras of finite numbers; got elevations {cut(e)} (of the input "
                f"{self.input_elevation_deg:g}), azimuths {cut(a)}, radius {self.radius:g} and field of view "
                f"{self.fov_deg:g}."
            )
        if e[0] != 0 or a[0] % 360 != 0:
            raise ValueError(
                f"The first view is the input view and must be elevation 0, azimuth 0 (angles are relative "
                f"to it); got ({e[0]:g}, {a[0]:g}). Subtract these values from all entries."
            )
        absolute = [x + self.input_elevation_deg for x in e]
        if max(map(abs, absolute)) >= 90:
            raise ValueError(
                f"Elevations must stay between -90 and 90 degrees; got {min(absolute):g} to "
                f"{max(absolute):g} (relative elevation + input elevation {self.input_elevation_deg:g})."
            )
        if self.radius <= 0 or not 0 < self.fov_deg < 180:
            raise ValueError(
                f"Expected radius > 0 and 0 < fov_deg < 180; got {self.radius:g} and {self.fov_deg:g}."
            )

    @property
    def n_views(self) -> int:
        """V, the number of novel views (the input view is not counted)."""
        return len(self.azimuths_deg) - 1

    def check_view(self, view: int) -> None:
        """Raise ValueError unless ``view`` is 0, the input view, or one of the V novel views."""
        if not 0 <= view <= self.n_views:
            raise ValueError(f"Expected a view from 0 (the input) to {self.n_views}; got {view}.")

    def beside(self, others: Cameras) -> Cameras:
        """Return these cameras in the world of others: a relative list begins at the others' input view.

        An elevation of 0 of its own is one that nobody knew; another one stays.
        """
        if self.input_azimuth_deg is not None:
            return self
        elevation = self.input_elevation_deg or others.input_elevation_deg
        return replace(self, input_azimuth_deg=others.input_azimuth_deg, input_elevation_deg=elevation)

    def select(self, novel_views: Sequence[int]) -> Cameras:
        """Return the input view followed by the given novel views (indices 0..V-1)."""
        keep = [0, *(i + 1 for i in novel_views)]
        return replace(
            self,
            elevations_deg=tuple(self.elevations_deg[i] for i in keep),
            azimuths_deg=tuple(self.azimuths_deg[i] for i in keep),
        )

    def network_angles_rad(self) -> tuple[Tensor, Tensor]:
        """Return the polar and azimuth angles that condition the network, each [V] float64 in [0, 2 pi).

        Equal elevations give pi / 2. Source: docs/method.md, Cameras; rounding in the released code's order.
        """
        e = torch.tensor(self.elevations_deg, dtype=torch.float64)
        a = torch.tensor(self.azimuths_deg, dtype=torch.float64)
        polar = torch.deg2rad(90 - e)
        polar = (polar[1:] - polar[0] + math.pi / 2) % (2 * math.pi)
        from_last = torch.deg2rad((a - a[-1]) % 360)
        azimuth = (from_last[1:] - from_last[0]) % (2 * math.pi)
        return polar, azimuth

    def _absolute_angles_rad(self) -> tuple[Tensor, Tensor]:
        e = torch.deg2rad(torch.tensor(self.elevations_deg, dtype=torch.float64) + self.input_elevation_deg)
        a = torch.tensor(self.azimuths_deg, dtype=torch.float64) + (self.input_azimuth_deg or 0.0)
        return e, torch.deg2rad(a)

    def eyes(self) -> Tensor:
        """Return the camera centres, [V + 1, 3] float64, world units."""
        e, a = self._absolute_angles_rad()
        return self.radius * torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], dim=-1)

    def c2w_opengl(self) -> Tensor:
        """Return camera-to-world matrices with OpenGL camera axes, [V + 1, 4, 4] float64."""
        eye = self.eyes()
        back = torch.nn.functional.normalize(eye, dim=-1)
        up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand_as(back)
        right = torch.nn.functional.normalize(torch.linalg.cross(up, back), dim=-1)
        c2w = torch.eye(4, dtype=torch.float64).repeat(len(eye), 1, 1)
        c2w[:, :3, :4] = torch.stack([right, torch.linalg.cross(back, right), back, eye], dim=-1)
        return c2w

    def quaternions_xyzw(self) -> Tensor:
        """Return the rotations of `c2w_opengl` as unit quaternions (x, y, z, w), [V + 1, 4] float64."""
        e, a = self._absolute_angles_rad()
        # Turned up about the camera's own x axis, then about the world's y axis.
        (ce, se), (ca, sa) = ((angle.cos(), angle.sin()) for angle in (e / 2, a / 2))
        return torch.stack([-ca * se, sa * ce, sa * se, ca * ce], dim=-1)

    def c2w_opencv(self) -> Tensor:
        """Return camera-to-world matrices with OpenCV camera axes, [V + 1, 4, 4] float64."""
        return self.c2w_opengl() @ _OPENGL_TO_OPENCV

    def w2c_opencv(self) -> Tensor:
        """Return world-to-camera matrices with OpenCV camera axes, [V + 1, 4, 4] float64."""
        return torch.linalg.inv(self.c2w_opencv())

    def intrinsics(self, size: int) -> Tensor:
        """Return the pinhole matrix K of a square image, [3, 3] float64, where pixel j covers [j, j + 1)."""
        focal = 0.5 * size / math.tan(math.radians(self.fov_deg) / 2)
        return torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)

    def rays(self, size: int, views: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return origins [N, 3] and unit directions [N, size, size, 3] of all cameras, or of ``views``."""
        focal = float(self.intrinsics(size)[0, 0])
        offset = (torch.arange(size, dtype=torch.float64) + 0.5 - size / 2) / focal
        y, x = torch.meshgrid(offset, offset, indexing="ij")
        in_camera = torch.nn.functional.normalize(torch.stack([x, -y, -torch.ones_like(x)], dim=-1), dim=-1)
        c2w = self.c2w_opengl() if views is None else self.c2w_opengl()[list(views)]
        return c2w[:, :3, 3], torch.einsum("vij,hwj->vhwi", c2w[:, :3, :3], in_camera)

    def to_json(self) -> dict:
        """Return the fields as plain JSON values; `from_json` reads them back."""
        angles = {"elevations_deg": list(self.elevations_deg), "azimuths_deg": list(self.azimuths_deg)}
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        return fields | angles

    @classmethod
    def from_json(cls, data: dict) -> Cameras:
        """Build cameras from what `to_json` returned. Raises ValueError for missing or wrong fields."""
        stored = Fields.of(data, "the cameras")
        elevations, azimuths = (stored.numbers(f"{kind}_deg", None) for kind in ("elevations", "azimuths"))
        others = ("radius", "fov_deg", "input_elevation_deg", "input_azimuth_deg")
        known = {key: stored.number(key) for key in others if stored.has(key)}
        return cls(tuple(elevations.tolist()), tuple(azimuths.tolist()), **known)

    @classmethod
    def official(cls, variant: str) -> Cameras:
        """Return the orbit that a released checkpoint was made for: ``sv4d2`` or ``sv4d2_8views``."""
        if variant not in OFFICIAL_AZIMUTHS_DEG:
            raise ValueError(f"Expected variant {' or '.join(OFFICIAL_AZIMUTHS_DEG)}; got {variant!r}.")
        azimuths = OFFICIAL_AZIMUTHS_DEG[variant]
        return cls((0.0,) * len(azimuths), azimuths)

    @classmethod
    def for_scenes(cls) -> Cameras:
        """Return the eight novel views that make a better 4D scene than an orbit at one height does."""
        return cls((0.0, *_SCENE_ELEVATIONS_DEG), (0.0, *_SCENE_AZIMUTHS_DEG))

    @classmethod
    def from_lists(
        cls,
        n_views_per_pass: int,
        azimuths_deg: Sequence[float] | None = None,
        elevations_deg: Sequence[float] | None = None,
        input_elevation_deg: float = 0.0,
    ) -> Cameras:
        """Return cameras from a user's lists: a multiple of the model's V, or one more with the input first.

        No azimuths: those of `default`; no elevations: the input's. Raises ValueError for a single elevation
        for several views, or a count that fits no number of passes.
        """
        if elevations_deg is not None and len(elevations_deg) == 1 < n_views_per_pass:
            raise ValueError(
                f"Expected one elevation per view; got the single value {elevations_deg[0]:g}: one value for "
                f"all views, the input included, would change nothing. List them, or place all novel views "
                f"on a ring: in ComfyUI with the preset ring, on the command line with --ring-elevation."
            )
        if azimuths_deg is None:
            azimuths_deg = cls.default(n_views_per_pass).azimuths_deg
        azimuths = _with_input_view("azimuths", azimuths_deg, n_views_per_pass)
        elevations = [0.0] * len(azimuths)
        if elevations_deg is not None:
            elevations = _with_input_view("elevations", elevations_deg, n_views_per_pass)
        return cls(tuple(elevations), tuple(azimuths), input_elevation_deg=input_elevation_deg)

    @classmethod
    def default(cls, n_views: int) -> Cameras:
        """Return the official orbit that has ``n_views`` novel views, else an even ring."""
        official = (v for v, azimuths in OFFICIAL_AZIMUTHS_DEG.items() if len(azimuths) == n_views + 1)
        variant = next(official, None)
        return cls.ring(n_views) if variant is None else cls.official(variant)

    @classmethod
    def ring(cls, n_views: int, elevation_deg: float = 0.0) -> Cameras:
        """Return V views evenly spaced in azimuth, all at one elevation relative to the input view."""
        return cls.rings(n_views, (elevation_deg,))

    @classmethod
    def rings(cls, n_views_per_ring: int, elevations_deg: Sequence[float]) -> Cameras:
        """Return several rings of evenly spaced views, one after the other.

        On the input's own elevation the input takes one of V + 1 places; elsewhere the views take all V.
        """
        elevations, azimuths = [0.0], [0.0]
        for elevation in elevations_deg:
            shared = 1 if elevation == 0 else 0
            for i in range(n_views_per_ring):
                elevations.append(elevation)
                azimuths.append(360 * (i + shared) / (n_views_per_ring + shared))
        return cls(tuple(elevations), tuple(azimuths))

    @classmethod
    def sweep(cls, n_views: int, azimuth_deg: float = 360.0, elevation_amplitude_deg: float = 0.0) -> Cameras:
        """Return V views along an arc from the input view, the elevation following one period of a sine.

        ``azimuth_deg`` is that of the point after the last view: 360 is a full turn without a repeat.
        """
        steps = [i / (n_views + 1) for i in range(n_views + 1)]
        return cls(
            (0.0, *(elevation_amplitude_deg * math.sin(2 * math.pi * s) for s in steps[1:])),
            tuple(azimuth_deg * s for s in steps),
        )


def _with_input_view(name: str, angles_deg: Sequence[float], n_views_per_pass: int) -> list[float]:
    count, v = len(angles_deg), n_views_per_pass
    if count > 1 and (count - 1) % v == 0 and (count % v or angles_deg[0] == 0):
        return [float(x) for x in angles_deg]
    if count and count % v == 0:
        return [0.0, *map(float, angles_deg)]
    following = (count // v + 1) * v
    raise ValueError(
        f"Expected {v} {name} (one per novel view), {v + 1} with the input view first, or a multiple of {v} "
        f"novel views; got {count}. The next count that fits is {following}."
    )
