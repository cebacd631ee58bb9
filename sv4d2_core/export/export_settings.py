"""How a scene is exported, and what an export made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..cameras import Cameras
from ..fourd.scene import Scene4D, own_cameras

# callback(steps done, all steps, None): may raise to cancel.
ExportCallback = Callable[[int, int, None], None]


@dataclass(frozen=True)
class ExportSettings:
    """How a scene is exported; each format takes what concerns it.

    Args:
        times: in 0..1, rising; None: those of the scene's frames.
        frames: pictures of a turntable.
        faces: triangles of a mesh at most.
        resolution: steps of the grid that a mesh is found on, along the longest side of the object.
        smoothing: iterations of a filter that does not shrink, over each mesh; 0: none.
        texture: width of a baked texture in pixels; 0: colours at the vertices.
        size: of pictures, pixels.
        cameras: of pictures; None: those that the scene was fitted to.
        fps: rate at which the exported frames are played; None: they last as long as the scene.
        overwrite: replace an earlier export.
    """

    times: tuple[float, ...] | None = None
    frames: int = 96
    faces: int = 20_000
    resolution: int = 128
    smoothing: int = 10
    texture: int = 0
    size: int = 576
    cameras: Cameras | None = None
    fps: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        times = self.times
        if times is not None and not (
            times and all(a < b for a, b in zip((-1e-9, *times), times, strict=False))
        ):
            raise ValueError(f"Expected times that rise from 0 on; got {list(times)}. Sort them.")
        if times is not None and times[-1] > 1:
            raise ValueError(f"Expected times in 0..1; got {times[-1]:g}.")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"Expected frames per second above 0; got {self.fps:g}.")
        if self.faces < 4:
            raise ValueError(f"Expected at least 4 faces, a tetrahedron; got {self.faces}.")

    def times_of(self, scene: Scene4D) -> tuple[float, ...]:
        """Return the times that are exported."""
        return tuple(scene.times) if self.times is None else self.times

    def cameras_of(self, scene: Scene4D) -> Cameras:
        """Return the cameras of the pictures."""
        return own_cameras(scene) if self.cameras is None else self.cameras

    def duration(self, scene: Scene4D) -> float:
        """Return the seconds from time 0 to time 1."""
        times = self.times_of(scene)
        if self.fps is None or len(times) < 2:
            return max(scene.n_frames - 1, 1) / scene.fps
        return (len(times) - 1) / self.fps / (times[-1] - times[0])

    def rate(self, scene: Scene4D) -> float:
        """Return the frames per second of the exported frames."""
        times = self.times_of(scene)
        if self.fps is not None or len(times) < 2:
            return self.fps or scene.fps
        return (len(times) - 1) / (times[-1] - times[0]) / self.duration(scene)


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Args:
        paths: the files, or the entries of the folder.
        notes: what the user should know, one sentence each.
    """

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def n_bytes(self) -> int:
        """Return the size of all that was made."""
        return sum(
            file.stat().st_size for path in self.paths for file in (path, *path.rglob("*")) if file.is_file()
        )
