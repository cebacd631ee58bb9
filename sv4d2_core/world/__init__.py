"""A procedural world of walking creatures: exact ground truth for tests, demos, metrics and training."""

from .anatomy import make_creature
from .creature import Bone, Creature, Parts, parts_at
from .render import Rendering, render_creature, render_parts, render_views

__all__ = [
    "Bone",
    "Creature",
    "Parts",
    "Rendering",
    "make_creature",
    "parts_at",
    "render_creature",
    "render_parts",
    "render_views",
]
