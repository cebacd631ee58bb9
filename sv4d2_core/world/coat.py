"""What a creature's surface looks like: procedural markings in body coordinates, and how light falls on it.

Nothing here depends on the viewer. Two cameras that see the same surface point see the same colour, so a
rendering is exact ground truth for multi-view consistency.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .light import Light

PATTERNS = ("plain", "stripes", "spots", "patches", "eye")

_KEY_WRAP = 0.3
# Where on an eyeball, in its own frame, the pupil looks and the highlight sits; both are cosines of an angle.
_GAZE = (0.0, 0.0, 1.0)
_GLINT = (0.35, 0.60, 0.72)


@dataclass(frozen=True)
class Coat:
    """Colours and markings of P ellipsoids.

    The markings are functions of the rest pose, so that they run on from one part to the next and move with
    the parts.

    Args:
        colours: [P, 3, 3] RGB in 0..1 of the base, of the markings, and of the underside (of an eye: white,
            pupil, glint).
        patterns: [P] index into ``PATTERNS``.
        rest_centres: [P, 3] centres in the rest pose.
        rest_rotations: [P, 3, 3] local-to-creature rotations in the rest pose.
        frequency: markings per unit of length.
        phases: [3] radians, shift the markings.
    """

    colours: Tensor
    patterns: Tensor
    rest_centres: Tensor
    rest_rotations: Tensor
    frequency: float
    phases: Tensor

    @classmethod
    def plain(cls, colours: Tensor) -> Coat:
        """Return a coat of one colour per part, colours [P, 3]."""
        n = len(colours)
        return cls(
            colours=colours[:, None].expand(n, 3, 3),
            patterns=torch.zeros(n, dtype=torch.long),
            rest_centres=colours.new_zeros(n, 3),
            rest_rotations=torch.eye(3, dtype=colours.dtype).expand(n, 3, 3),
            frequency=1.0,
            phases=colours.new_zeros(3),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Coat:
        """Return the coat on a device, its real numbers in a dtype."""
        return Coat(
            self.colours.to(device, dtype),
            self.patterns.to(device),
            self.rest_centres.to(device, dtype),
            self.rest_rotations.to(device, dtype),
            self.frequency,
            self.phases.to(device, dtype),
        )

    def albedo(self, part: Tensor, on_sphere: Tensor, radii: Tensor) -> Tensor:
        """Return the unlit colour of surface points, [N, 3].

        Args:
            part: [N] which ellipsoid.
            on_sphere: [N, 3] the point in the ellipsoid's frame, divided by the radii: on the unit sphere.
            radii: [P, 3] of all ellipsoids.
        """
        local = on_sphere * radii[part]
        at_rest = torch.einsum("nij,nj->ni", self.rest_rotations[part], local) + self.rest_centres[part]
        base, marking, underside = self.colours[part].unbind(1)
        pattern = self.patterns[part]
        amount = self._markings(pattern, at_rest, on_sphere)
        under = torch.where(
            pattern == PATTERNS.index("eye"),
            _ramp(_cosine(on_sphere, _GLINT), 0.93, 0.95),
            _ramp(-on_sphere[:, 1], 0.25, 0.75),
        )
        return torch.lerp(torch.lerp(base, marking, amount[:, None]), underside, under[:, None])

    def _markings(self, pattern: Tensor, at_rest: Tensor, on_sphere: Tensor) -> Tensor:
        """Return how much of the marking colour shows, [N] in 0..1."""
        x, y, z = (2 * torch.pi * self.frequency * at_rest).unbind(-1)
        p, q, r = self.phases.unbind()
        wobble = 0.7 * torch.sin(0.45 * y + 0.3 * z + q) + 0.5 * torch.sin(0.6 * x + r)
        stripes = torch.sin(0.9 * z + 0.45 * y + p + wobble)
        # Three waves along tilted axes: their common crests are blobs on no visible lattice.
        blobs = (
            torch.sin(0.93 * z + 0.35 * y + p)
            + torch.sin(0.85 * y - 0.42 * x + q)
            + torch.sin(0.80 * x + 0.55 * z - 0.3 * y + r)
        )
        slow = torch.sin(0.42 * z + p) + torch.sin(0.38 * y + 0.3 * x + q) + 0.4 * torch.sin(0.8 * x + r)
        amounts = torch.stack(
            [
                torch.zeros_like(x),
                _ramp(stripes, 0.25, 0.5),
                _ramp(blobs, 0.75, 1.0),
                _ramp(slow, 0.3, 0.45),
                _ramp(_cosine(on_sphere, _GAZE), 0.62, 0.68),
            ],
            dim=-1,
        )
        return amounts.gather(-1, pattern[:, None])[:, 0]


def shade(albedo: Tensor, normals: Tensor, light: Light) -> Tensor:
    """Return lit colours [N, 3] in 0..1: hemispheric ambient light, a soft key light and a rim light."""
    like = {"device": albedo.device, "dtype": albedo.dtype}
    sky, ground = torch.tensor(light.sky, **like), torch.tensor(light.ground, **like)
    key = ((_cosine(normals, light.key_direction) + _KEY_WRAP) / (1 + _KEY_WRAP)).clamp(min=0)[:, None]
    rim = _cosine(normals, light.rim_direction).clamp(min=0).square()[:, None]
    lit = torch.lerp(ground, sky, 0.5 + 0.5 * normals[:, 1:2])
    lit = lit + key * torch.tensor(light.key, **like) + rim * torch.tensor(light.rim, **like)
    return (albedo * lit).clamp(0, 1)


def _cosine(vectors: Tensor, direction: tuple[float, float, float]) -> Tensor:
    """Return the cosine between unit vectors [N, 3] and one direction, [N]."""
    d = torch.tensor(direction, device=vectors.device, dtype=vectors.dtype)
    return vectors @ (d / d.norm())


def _ramp(x: Tensor, low: float, high: float) -> Tensor:
    """Return the smooth step from 0 at ``low`` to 1 at ``high``."""
    s = ((x - low) / (high - low)).clamp(0, 1)
    return s * s * (3 - 2 * s)
