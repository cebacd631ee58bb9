"""A procedural world of moving creatures: exact ground truth for tests, demos, metrics and training."""

from .anatomy import make_creature
from .corruption import corrupt_views
from .creature import Bone, Creature, Parts, parts_at
from .render import Rendering, render_creature, render_parts, render_views
from .suite import HELD_OUT, TRAITS, BenchmarkScene, benchmark_scenes

__all__ = [
    "HELD_OUT",
    "TRAITS",
    "BenchmarkScene",
    "Bone",
    "Creature",
    "Parts",
    "Rendering",
    "benchmark_scenes",
    "corrupt_views",
    "make_creature",
    "parts_at",
    "render_creature",
    "render_parts",
    "render_views",
]
