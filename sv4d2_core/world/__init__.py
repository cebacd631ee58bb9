"""A procedural world of moving creatures: exact ground truth for tests, demos, metrics and training."""

from .body import Bone, Creature, Parts, make_creature, parts_at
from .coat import Light
from .render import Rendering, render_creature, render_parts, render_views
from .suite import (
    HELD_OUT,
    HELD_OUT_OBJECTS,
    OBJECT_KINDS,
    TRAINING_SEEDS,
    TRAITS,
    BenchmarkScene,
    benchmark_scenes,
    corrupt_views,
    draw_object,
    object_kind,
)

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
