"""A scene of Gaussians as files of splats."""

from __future__ import annotations

from pathlib import Path

from ..fourd.gaussians import Gaussians
from ..fourd.scene import Scene4D
from .export_settings import ExportCallback, Exported, ExportSettings
from .splats.frames import gaussians_at
from .splats.glb import write_splat_glb
from .splats.ply import write_splat_ply
from .splats.sequence import write_splat_sequence
from .splats.splat import write_splat
from .splats.trajectories import write_trajectories


def export_splats(
    scene: Scene4D, path: Path, settings: ExportSettings, callback: ExportCallback | None, kind: str
) -> Exported:
    """Write one time into a file of the kind ply, splat or glb, or all times into a folder."""
    gaussians, times = as_gaussians(scene), settings.times_of(scene)
    if path.suffix.lower() != f".{kind}":
        frames = (gaussians_at(gaussians, time) for time in times)
        made = write_splat_sequence(
            path, frames, times, settings.rate(scene), kind=kind, overwrite=settings.overwrite
        )
        return Exported(tuple(made))
    if len(times) != 1:
        raise ValueError(
            f"Expected one time for a single file; {path.name} would hold {len(times)}. Give one time "
            f"(--times 0.5), or the name of a folder for a sequence."
        )
    write = {"ply": write_splat_ply, "splat": write_splat, "glb": write_splat_glb}[kind]
    write(path, gaussians_at(gaussians, times[0]), overwrite=settings.overwrite)
    return Exported((path,), (f"{len(gaussians.canonical.means)} Gaussians at time {times[0]:g}.",))


def export_trajectories(
    scene: Scene4D, path: Path, settings: ExportSettings, callback: ExportCallback | None
) -> Exported:
    """Write how every Gaussian moves."""
    gaussians = as_gaussians(scene)
    write_trajectories(path, gaussians, settings.times_of(scene), overwrite=settings.overwrite)
    return Exported((path,), (f"{len(gaussians.canonical.means)} Gaussians.",))


def as_gaussians(scene: Scene4D) -> Gaussians:
    """Return the scene. Raises ValueError unless it is made of Gaussians."""
    if not isinstance(scene, Gaussians):
        raise ValueError(
            f"Expected a scene made of Gaussians; this one is {scene.backend}. Fit one with --backend "
            f"gaussians, or export meshes."
        )
    return scene
