"""The light of the world."""

from __future__ import annotations

from dataclasses import dataclass

_Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    """Light that is fixed in the world, so that a surface point looks the same to every camera.

    By default the key stands to the upper right of the input camera, the rim behind the object so that its
    outline is readable against the dark side.

    Args:
        key_direction: towards the soft main light, of any length.
        key: RGB of the main light.
        rim_direction: towards the light that draws the outline, of any length.
        rim: RGB of that light.
        sky: RGB of the light that comes from everywhere, on a surface that looks up.
        ground: the same on a surface that looks down.
    """

    key_direction: _Triple = (0.45, 0.80, 0.55)
    key: _Triple = (0.56, 0.54, 0.50)
    rim_direction: _Triple = (-0.55, 0.35, -0.75)
    rim: _Triple = (0.22, 0.25, 0.30)
    sky: _Triple = (0.62, 0.63, 0.66)
    ground: _Triple = (0.40, 0.38, 0.37)
