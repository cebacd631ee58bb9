"""A scene as pictures: data sets for reconstruction programs, and turntables."""

from __future__ import annotations

from pathlib import Path

from ..fourd.scene import Scene4D
from ..fourd.turntable import turntable
from ..views import ViewGrid
from .animations import write_animation, write_pngs
from .colmap import ColouredPoints, write_colmap
from .export_settings import ExportCallback, Exported, ExportSettings
from .mesh.level import surface_level
from .mesh.surface import surface_at
from .split_dataset import write_dataset

# The points that readers of COLMAP start from need no fine surface.
_POINTS_RESOLUTION, _POINTS_FACES = 48, 4000


def export_dataset(
    scene: Scene4D, path: Path, settings: ExportSettings, callback: ExportCallback | None
) -> Exported:
    """Write a data set of the scene seen from its own or other cameras."""
    return Exported(
        tuple(write_dataset(path, _seen(scene, settings, callback), overwrite=settings.overwrite))
    )


def export_colmap(
    scene: Scene4D, path: Path, settings: ExportSettings, callback: ExportCallback | None
) -> Exported:
    """Write COLMAP models whose points are the scene's surface."""
    grid, level = _seen(scene, settings, callback), surface_level(scene)
    meshes = (
        surface_at(scene, time, _POINTS_RESOLUTION, _POINTS_FACES, level=level)
        for time in settings.times_of(scene)
    )
    points = [ColouredPoints(mesh.vertices, mesh.colours) for mesh in meshes]
    return Exported(tuple(write_colmap(path, grid, points, overwrite=settings.overwrite)))


def export_turntable(
    scene: Scene4D, path: Path, settings: ExportSettings, callback: ExportCallback | None
) -> Exported:
    """Write a video around the scene while it moves, or its pictures where the name has no suffix."""
    progress = None if callback is None else lambda done, total: callback(done, total, None)
    seen, _ = turntable(scene, settings.cameras_of(scene), settings.frames, settings.size, callback=progress)
    shown = seen.rgb[0], seen.alpha[0], settings.fps or scene.fps
    if not path.suffix:
        return Exported(tuple(write_pngs(path, *shown, overwrite=settings.overwrite)))
    write_animation(path, *shown, overwrite=settings.overwrite)
    return Exported((path,))


def _seen(scene: Scene4D, settings: ExportSettings, callback: ExportCallback | None) -> ViewGrid:
    """Return the scene's views at the exported times."""
    times, cameras = settings.times_of(scene), settings.cameras_of(scene)
    seen = scene.render(cameras, times, settings.size, callback=callback)
    return ViewGrid(seen.rgb, cameras, seen.alpha, settings.rate(scene), times=times)
