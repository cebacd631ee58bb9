"""A scene as meshes: one that moves, or one per frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..fourd.scene import Scene4D
from .export_settings import ExportCallback, Exported, ExportSettings
from .formats.glb import write_animated_glb
from .formats.mesh_sequence import write_mesh_sequence
from .formats.texture import bake_texture
from .formats.usd import write_usd
from .mesh.coherence import coherence
from .mesh.level import surface_level
from .mesh.mesh import Mesh
from .mesh.surface import surface_at
from .mesh.tracking import Tracked, diagonal, track


def export_moving_mesh(
    scene: Scene4D, path: Path, settings: ExportSettings, callback: ExportCallback | None
) -> Exported:
    """Write a GLB of one mesh that moves, or a sequence beside it where one mesh cannot follow."""
    times = settings.times_of(scene)
    tracked = track(
        scene, times, settings.resolution, settings.faces, smoothing=settings.smoothing, callback=callback
    )
    if not tracked.follows:
        folder = path.with_suffix("")
        made = write_mesh_sequence(
            folder, tracked.frames, times, settings.rate(scene), overwrite=settings.overwrite
        )
        advice = f"One mesh cannot follow a surface that changes so: {folder} holds one per frame instead."
        return Exported(tuple(made), (_deviation(tracked), advice))
    animation, texture = replace(tracked.animation, duration=settings.duration(scene)), None
    if settings.texture:
        animation, texture = bake_texture(animation, settings.texture, frame=tracked.anchor)
    write_animated_glb(path, animation, texture=texture, overwrite=settings.overwrite)
    vertices, faces, seconds = len(animation.colours), len(animation.faces), animation.seconds()[-1]
    shape = f"{vertices} vertices and {faces} faces in {len(times)} frames, {seconds:.2f} s."
    return Exported((path,), (shape, _deviation(tracked), *_coherence(tracked)))


def export_mesh_sequence(
    scene: Scene4D, path: Path, settings: ExportSettings, callback: ExportCallback | None, kind: str
) -> Exported:
    """Write one file of the frame's own mesh per frame: glb, obj or ply."""
    meshes = surfaces(scene, settings, callback)
    times, rate = settings.times_of(scene), settings.rate(scene)
    made = write_mesh_sequence(path, meshes, times, rate, kind=kind, overwrite=settings.overwrite)
    return Exported(tuple(made))


def export_usd(
    scene: Scene4D, path: Path, settings: ExportSettings, callback: ExportCallback | None
) -> Exported:
    """Write one USD file of the frames' own meshes."""
    meshes = [*surfaces(scene, settings, callback)]
    seconds = [time * settings.duration(scene) for time in settings.times_of(scene)]
    write_usd(path, meshes, seconds, fps=settings.rate(scene), overwrite=settings.overwrite)
    return Exported((path,))


def surfaces(scene: Scene4D, settings: ExportSettings, callback: ExportCallback | None) -> Iterator[Mesh]:
    """Yield the mesh of every time; they need not have anything in common."""
    times, level = settings.times_of(scene), surface_level(scene)
    for t, time in enumerate(times):
        yield surface_at(scene, time, settings.resolution, settings.faces, settings.smoothing, level)
        if callback is not None:
            callback(t + 1, len(times), None)


def _deviation(tracked: Tracked) -> str:
    """Return how far the moving mesh is from the frames' own surfaces."""
    mean, worst = sum(tracked.deviation) / len(tracked.deviation), max(tracked.deviation)
    return (
        f"The mesh of frame {tracked.anchor} follows the surface to {100 * mean:.2f} % of the object's size, "
        f"{100 * worst:.2f} % at worst (frame {tracked.deviation.index(worst)})."
    )


def _coherence(tracked: Tracked) -> tuple[str, ...]:
    """Return one sentence on how evenly the mesh moves, or none below 3 frames.

    The step of a vertex is its way to the next frame; the change from step to step is the acceleration of
    `Coherence` as a share of the diagonal of the largest frame's box, per frame squared.
    """
    figures = coherence(tracked.animation, tracked.frames)
    if figures is None:
        return ()
    size = max(diagonal(frame) for frame in tracked.frames)
    mean, nearest, largest = (f"{100 * figure / size:.2f} %" for figure in figures)
    return (
        f"Acceleration: from frame to frame the step of a vertex changes by {mean} of the object's size on "
        f"average, {largest} at most; that of the nearest points of the frames' own meshes by {nearest}.",
    )
