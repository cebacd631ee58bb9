"""A procedural world of moving creatures: exact ground truth for tests, demos, metrics and training."""

from .anatomy import make_creature
from .corruption import corrupt_views
from .creature import Bone, Creature, Parts, parts_at
from .distribution import HELD_OUT_OBJECTS, OBJECT_KINDS, TRAINING_SEEDS, draw_object, object_kind
from .light import Light
from .render import Rendering, render_creature, render_parts, render_views
from .suite import HELD_OUT, TRAITS, BenchmarkScene, benchmark_scenes

__all__ = [
    "HELD_OUT",
    "HELD_OUT_OBJECTS",
    "OBJECT_KINDS",
    "TRAINING_SEEDS",
    "TRAITS",
    "BenchmarkScene",
    "Bone",
    "Creature",
    "Light",
    "Parts",
    "Rendering",
    "benchmark_scenes",
    "corrupt_views",
    "draw_object",
    "make_creature",
    "object_kind",
    "parts_at",
    "render_creature",
    "render_parts",
    "render_views",
]
