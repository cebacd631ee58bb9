"""Export of a scene: the formats, what each needs, and who writes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..cameras import Cameras
from ..data.clips import VIDEO_SUFFIXES
from ..data.datasets import (
    COLMAP_FILE,
    COLMAP_NAMES,
    DATASET_FILE,
    DATASET_NAMES,
    ColouredPoints,
    write_colmap,
    write_dataset,
)
from ..data.views_folder import check_square
from ..files import claimed, exclusive, refuse_existing, replaceable
from ..scene.gaussians.gaussians import Gaussians
from ..scene.geometry.hull import project, surface_points, visual_hull
from ..scene.scene import Scene4D, check_times, own_cameras, pace, placed, turntable
from ..scene.tracking.mesh import Mesh, atlas_package, bake_texture
from ..scene.tracking.surface import check_resolution, surface_at, surface_level
from ..scene.tracking.track import Tracked, coherence, diagonal, track
from ..video.foreground import masks_of
from ..video.write import check_video
from ..views import ViewGrid, check_fps
from .glb import write_animated_glb
from .sequences import (
    ANIMATION_SUFFIXES,
    MESH_NAMES,
    PICTURE_NAMES,
    SEQUENCE_FILE,
    usd_package,
    write_animation,
    write_mesh_sequence,
    write_pngs,
    write_usd,
)
from .splats import (
    SH_DEGREE,
    SPLAT_NAMES,
    gaussians_at,
    write_splat_sequence,
    write_splats,
    write_trajectories,
)

ExportCallback = Callable[[int, int, None], None]  # of steps done and all steps; may raise to cancel


@dataclass(frozen=True)
class ExportSettings:
    """How a scene is exported; each format takes what concerns it."""

    times: tuple[float, ...] | None = None  # in 0..1, rising; None: those of the scene's frames
    frames: int = 96  # pictures of a turntable
    faces: int = 20_000  # triangles of a mesh at most
    resolution: int = 128  # steps of the grid that a mesh is found on, along the object's longest side
    smoothing: int = 10  # iterations of a filter that does not shrink, over each mesh; 0: none
    texture: int = 0  # width of a baked texture in pixels; 0: colours at the vertices
    size: int = 576  # of pictures, pixels
    cameras: Cameras | None = None  # of pictures; None: those that the scene was fitted to
    fps: float | None = None  # at which the exported frames are played; None: they last as long as the scene
    overwrite: bool = False  # replace an earlier export
    sh_degree: int = SH_DEGREE  # of the harmonics in a splat PLY, all but the first 0; 0 for small files

    def __post_init__(self) -> None:
        if self.times is not None:
            check_times(self.times)
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"Expected frames per second above 0; got {self.fps:g}.")
        if not 0 <= self.sh_degree <= SH_DEGREE:
            raise ValueError(f"Expected a degree of harmonics of 0 to {SH_DEGREE}; got {self.sh_degree}.")
        check_resolution(self.resolution)
        if self.faces < 4:
            raise ValueError(f"Expected at least 4 faces, a tetrahedron; got {self.faces}.")

    def times_of(self, scene: Scene4D) -> tuple[float, ...]:
        return tuple(scene.times) if self.times is None else self.times

    def cameras_of(self, scene: Scene4D) -> Cameras:
        return own_cameras(scene) if self.cameras is None else placed(self.cameras, scene)

    def duration(self, scene: Scene4D) -> float:
        """Return the seconds from time 0 to time 1."""
        times = self.times_of(scene)
        if len(times) < 2:
            return max(scene.n_frames - 1, 1) / scene.fps
        return (len(times) - 1) / self.rate(scene) / (times[-1] - times[0])

    def rate(self, scene: Scene4D) -> float:
        return self.fps or pace(scene, self.times_of(scene))


@dataclass(frozen=True)
class Exported:
    """What an export made."""

    paths: Sequence[Path]  # the files, or the entries of the folder
    notes: Sequence[str] = ()  # what the user should know, one sentence each

    def n_bytes(self) -> int:
        files = (file for path in self.paths for file in (path, *path.rglob("*")) if file.is_file())
        return sum(file.stat().st_size for file in files)


class _Job(NamedTuple):
    scene: Scene4D
    path: Path
    settings: ExportSettings
    callback: ExportCallback | None

    @property
    def times(self) -> tuple[float, ...]:
        return self.settings.times_of(self.scene)

    @property
    def rate(self) -> float:
        return self.settings.rate(self.scene)

    def views(self) -> ViewGrid:
        cameras = self.settings.cameras_of(self.scene)
        check_fps(self.rate, self.path.name)
        size, callback = self.settings.size, self.callback
        seen = self.scene.render(cameras, self.times, size, normals=False, callback=callback)
        return ViewGrid(seen.rgb, cameras, seen.alpha, self.rate, times=self.times)


def _moving_mesh(job: _Job) -> Exported:
    """Write a GLB of one mesh that moves, or a sequence in a new folder where one mesh cannot follow."""
    scene, settings, times = job.scene, job.settings, job.times
    if settings.texture:
        atlas_package(settings.texture)  # what is missing is told of before the work
    tracked = track(
        scene, times, settings.resolution, settings.faces, smoothing=settings.smoothing, callback=job.callback
    )
    if not tracked.follows:
        with claimed(job.path.parent, job.path.stem, numbered=False) as folder:
            made = write_mesh_sequence(folder, tracked.frames, times, job.rate)
        advice = f"One mesh cannot follow a surface that changes so: {folder} holds one per frame instead"
        advice += ", with colours at the vertices." if settings.texture else "."
        return Exported(made, (_deviation(tracked), advice))
    animation, texture = replace(tracked.animation, duration=settings.duration(scene)), None
    if settings.texture:
        animation, texture = bake_texture(animation, settings.texture, frame=tracked.anchor)
    write_animated_glb(job.path, animation, texture=texture, overwrite=settings.overwrite)
    vertices, faces, seconds = len(animation.colours), len(animation.faces), animation.seconds()[-1]
    shape = f"{vertices} vertices and {faces} faces in {len(times)} frames, {seconds:.2f} s."
    return Exported((job.path,), (shape, _deviation(tracked), *_coherence(tracked)))


def _mesh_sequence(job: _Job, kind: str) -> Exported:
    meshes = surfaces(job.scene, job.settings, job.callback)
    overwrite = job.settings.overwrite
    made = write_mesh_sequence(job.path, meshes, job.times, job.rate, kind=kind, overwrite=overwrite)
    return Exported(made)


def _usd(job: _Job) -> Exported:
    usd_package()
    meshes = [*surfaces(job.scene, job.settings, job.callback)]
    seconds = [(time - job.times[0]) * job.settings.duration(job.scene) for time in job.times]
    write_usd(job.path, meshes, seconds, fps=job.rate, overwrite=job.settings.overwrite)
    return Exported((job.path,))


def surfaces(scene: Scene4D, settings: ExportSettings, callback: ExportCallback | None) -> Iterator[Mesh]:
    """Yield the mesh of every time; they need not have anything in common."""
    times, level = settings.times_of(scene), surface_level(scene)
    scene.learn_motion(times, callback)
    for t, time in enumerate(times):
        yield surface_at(scene, time, settings.resolution, settings.faces, settings.smoothing, level)
        if callback is not None:
            callback(t + 1, len(times), None)


def _deviation(tracked: Tracked) -> str:
    mean, worst = sum(tracked.deviation) / len(tracked.deviation), max(tracked.deviation)
    return (
        f"The mesh of frame {tracked.anchor} follows the frames' own meshes to {100 * mean:.2f} % of the "
        f"object's size, {100 * worst:.2f} % at worst (frame {tracked.deviation.index(worst)})."
    )


def _coherence(tracked: Tracked) -> tuple[str, ...]:
    """Return one sentence on how evenly the mesh moves, or none below 3 frames."""
    figures = coherence(tracked.animation, tracked.frames)
    if figures is None:
        return ()
    size = max(diagonal(frame) for frame in tracked.frames)
    mean, nearest, largest = (f"{100 * figure / size:.2f} %" for figure in figures)
    return (
        f"Acceleration: from frame to frame the step of a vertex changes by {mean} of the object's size on "
        f"average, {largest} at most; that of the nearest points of the frames' own meshes by {nearest}.",
    )


def _splats(job: _Job, kind: str) -> Exported:
    """Write one time into a file of the kind ply, splat or glb, or all times into a folder."""
    gaussians, times, settings = as_gaussians(job.scene), job.times, job.settings
    how: dict[str, Any] = {"kind": kind, "sh_degree": settings.sh_degree, "overwrite": settings.overwrite}
    is_file = job.path.suffix.lower() == f".{kind}"
    if is_file and len(times) != 1:
        raise ValueError(
            f"Expected one time for a single file; {job.path.name} would hold {len(times)}. Give one time "
            f"(--times 0.5), or the name of a folder for a sequence."
        )
    gaussians.learn_motion(times, job.callback)
    if not is_file:
        frames = (gaussians_at(gaussians, time) for time in times)
        return Exported(write_splat_sequence(job.path, frames, times, job.rate, **how))
    shown = gaussians_at(gaussians, times[0])
    write_splats(job.path, shown, **how)
    return Exported((job.path,), (f"{len(shown.means)} Gaussians at time {times[0]:g}.",))


def _trajectories(job: _Job) -> Exported:
    gaussians = as_gaussians(job.scene)
    write_trajectories(job.path, gaussians, job.times, overwrite=job.settings.overwrite)
    return Exported((job.path,), (f"{len(gaussians.canonical.means)} Gaussians.",))


def as_gaussians(scene: Scene4D) -> Gaussians:
    """Return the scene. Raises ValueError unless it is made of Gaussians."""
    if not isinstance(scene, Gaussians):
        raise ValueError(
            f"Expected a scene made of Gaussians; this one is {scene.backend}. Fit one with the backend "
            f"gaussians, or export meshes."
        )
    return scene


def _dataset(job: _Job) -> Exported:
    check_square(job.settings.size, job.settings.size, even=True)
    return Exported(write_dataset(job.path, job.views(), overwrite=job.settings.overwrite))


_POINTS_RESOLUTION, _POINTS_FACES = 48, 4000  # COLMAP's readers start from them: no fine surface needed


def _colmap(job: _Job) -> Exported:
    grid, level = job.views(), surface_level(job.scene)
    meshes = (
        surface_at(job.scene, time, _POINTS_RESOLUTION, _POINTS_FACES, level=level) for time in job.times
    )
    points = [ColouredPoints(mesh.vertices, mesh.colours) for mesh in meshes]
    return Exported(write_colmap(job.path, grid, points, overwrite=job.settings.overwrite))


def _hull_points(grid: ViewGrid) -> tuple[list[ColouredPoints] | None, tuple[str, ...]]:
    """Return points on the hull of the masks, a cloud per frame, in the colours of the nearest camera.

    None where the masks contradict each other, and a sentence on it.
    """
    cameras, size, masks = grid.cameras, grid.images.shape[2], masks_of(grid)
    try:
        hull = visual_hull(masks, cameras, _POINTS_RESOLUTION)
    except ValueError as error:
        return None, (f"No points to start from: {error}",)
    clouds = []
    for t in range(grid.n_frames):
        points = surface_points(hull, t)
        colours, least = torch.ones_like(points), torch.full((len(points),), torch.inf)
        for v, eye in enumerate(cameras.c2w_opengl()[:, :3, 3].to(points)):
            column, row, _ = project(points, cameras, v, size)
            distance = (points - eye).norm(dim=-1).where(masks[t, v, row, column] >= 0.5, torch.inf)
            colours[distance < least] = grid.images[t, v, row, column][distance < least]
            least = least.minimum(distance)
        clouds.append(ColouredPoints(points, colours))
    return clouds, (f"{sum(len(cloud.positions) for cloud in clouds)} points on the hull of the masks.",)


def _turntable(job: _Job) -> Exported:
    """Write a video around the scene while it moves, or its pictures where the name is a folder's."""
    scene, settings, callback = job.scene, job.settings, job.callback
    rate = settings.fps or scene.fps
    check_video(job.path.suffix.lower(), (settings.frames, settings.size, settings.size), rate)
    progress = None if callback is None else lambda done, total: callback(done, total, None)
    cameras = settings.cameras_of(scene)
    seen, _ = turntable(scene, cameras, settings.frames, settings.size, normals=False, callback=progress)
    shown = seen.rgb[0], seen.alpha[0], rate
    if job.path.suffix.lower() not in ANIMATION_SUFFIXES:
        return Exported(write_pngs(job.path, *shown, overwrite=settings.overwrite))
    write_animation(job.path, *shown, overwrite=settings.overwrite)
    return Exported((job.path,))


class Format(NamedTuple):
    """One way to export."""

    purpose: str  # for the help
    write: Callable[[_Job], Exported]
    takes: frozenset[str]  # the `ExportSettings` that it looks at, beside overwrite
    suffixes: tuple[str, ...] = ()  # of its file's name
    entries: re.Pattern[str] | None = None  # of the folder that other names mean; None: these are refused
    marker: str = SEQUENCE_FILE  # the entry that says that an export is there
    one_time: bool = False  # whether its file, unlike its folder, holds one time, which has no rate

    def settings_for(self, path: Path) -> frozenset[str]:
        """Return the settings that count for a file or folder."""
        return self.takes - {"fps"} if self.one_time and path.suffix.lower() in self.suffixes else self.takes


_TIMES = frozenset({"times", "fps"})
_OF_MESHES = _TIMES | {"faces", "resolution", "smoothing"}
_OF_PICTURES = _TIMES | {"size", "cameras"}


def _meshes(purpose: str, kind: str) -> Format:
    return Format(purpose, partial(_mesh_sequence, kind=kind), _OF_MESHES, (), MESH_NAMES)


def _gaussians(purpose: str, kind: str, more: tuple[str, ...] = ()) -> Format:
    purpose = f"Gaussians {purpose}: a .{kind} of one time, or a folder"
    takes = _TIMES.union(more)
    return Format(purpose, partial(_splats, kind=kind), takes, (f".{kind}",), SPLAT_NAMES, one_time=True)


_FOR_NERFS = "pictures, masks, times, cameras for D-NeRF, nerfstudio and their like"
_FOR_COLMAP = "the same for readers of COLMAP, a model per frame"
_FOR_EYES = "around the object: .mp4, .webm, .gif, or a folder of PNG"
FORMATS = {
    "glb": Format(
        "one mesh that moves, for Blender, Unity, three.js, browsers",
        _moving_mesh,
        _OF_MESHES | {"texture"},
        (".glb",),
    ),
    "glb-sequence": _meshes("a GLB per frame", "glb"),
    "obj": _meshes("an OBJ per frame", "obj"),
    "ply": _meshes("a PLY mesh per frame", "ply"),
    "usd": Format("meshes over time for Houdini, Omniverse, Blender", _usd, _OF_MESHES, (".usdc", ".usda")),
    "splat-ply": _gaussians("as 3DGS PLY", "ply", ("sh_degree",)),
    "splat": _gaussians("for browsers", "splat"),
    "splat-glb": _gaussians("by glTF's KHR_gaussian_splatting", "glb"),
    "npz": Format("how every Gaussian moves, for numpy", _trajectories, frozenset({"times"}), (".npz",)),
    "dataset": Format(_FOR_NERFS, _dataset, _OF_PICTURES, (), DATASET_NAMES, DATASET_FILE),
    "colmap": Format(_FOR_COLMAP, _colmap, _OF_PICTURES, (), COLMAP_NAMES, COLMAP_FILE),
    "turntable": Format(
        _FOR_EYES,
        _turntable,
        frozenset({"frames", "fps", "size", "cameras"}),
        ANIMATION_SUFFIXES,
        PICTURE_NAMES,
    ),
}
_FILES = {*VIDEO_SUFFIXES, ".obj", *(suffix for one in FORMATS.values() for suffix in one.suffixes)}
VIEWS_FORMATS = ("dataset", "colmap")


def export_scene(
    scene: Scene4D,
    path: str | Path,
    kind: str,
    settings: ExportSettings | None = None,
    callback: ExportCallback | None = None,
) -> Exported:
    """Write a scene in one of `FORMATS` to a file or folder; complete or not at all.

    Raises:
        FileExistsError: something is there already and may not be replaced.
        ModuleNotFoundError: an optional package is missing; the text names it.
        ValueError: an unknown format, a name or a scene that does not fit it, settings out of range.
        OSError: the disk is full or read-only; the text says which folder and what to do.
    """
    path, settings = Path(path), settings or ExportSettings()
    check_place(path, kind, settings.overwrite)
    return FORMATS[kind].write(_Job(scene, path, settings, callback))


def export_views(
    grid: ViewGrid, folder: str | Path, kind: str, *, crop: dict | None = None, overwrite: bool = False
) -> Exported:
    """Write views in one of `VIEWS_FORMATS`; ``crop`` as of `write_dataset`, errors as `export_scene`."""
    if kind not in VIEWS_FORMATS:
        raise ValueError(
            f"Expected {' or '.join(VIEWS_FORMATS)} for a folder of views; {kind} needs a scene. Make one "
            f"with sv4d2 refine."
        )
    if kind == "colmap":
        points, notes = _hull_points(grid)
        return Exported(write_colmap(folder, grid, points, overwrite=overwrite), notes)
    return Exported(write_dataset(folder, grid, crop=crop, overwrite=overwrite))


def check_place(path: Path, kind: str, overwrite: bool) -> None:
    """Raise, before long work rather than after it, where an export cannot be written to a place."""
    if kind not in FORMATS:
        raise ValueError(f"Expected a format among {', '.join(FORMATS)}; got {kind!r}.")
    chosen = FORMATS[kind]
    is_file = path.suffix.lower() in chosen.suffixes
    other_file = path.suffix.lower() in _FILES
    if not is_file and (chosen.entries is None or (chosen.suffixes and other_file)):
        raise ValueError(
            f"Expected a name that ends in {' or '.join(chosen.suffixes)} for {kind}; got {path.name!r}."
        )
    if is_file:
        refuse_existing(path, overwrite)
    elif chosen.entries is not None and path.is_dir():
        with exclusive(path):  # which undoes what a killed export has left half replaced
            replaceable(path, chosen.marker, chosen.entries, overwrite)
