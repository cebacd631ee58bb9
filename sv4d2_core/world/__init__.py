"""A procedural world of moving creatures: exact ground truth for tests, demos, metrics and training."""

from .body import Parts, make_creature, parts_at
from .render import Rendering, render_creature, render_parts, render_views
from .suite import benchmark_scenes, corrupt_views, draw_object

__all__ = [
    "Parts",
    "Rendering",
    "benchmark_scenes",
    "corrupt_views",
    "draw_object",
    "make_creature",
    "parts_at",
    "render_creature",
    "render_parts",
    "render_views",
]
