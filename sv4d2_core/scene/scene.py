"""What every 4D scene can do, whatever it is made of, and the file it is kept in."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..messages import listed
from ..stored import Tensors, write_tensors
from .geometry.placement import ObjectPath

if TYPE_CHECKING:
    from .tracking.motion import Motion

_log = logging.getLogger(__name__)

SCENE_FORMAT = "sv4d2.scene"
SCENE_VERSION = 1
SAME_TIME = 1e-6
_MOST_PIXELS = 1_500_000_000  # of one rendering; each takes 32 bytes, at the end twice


@dataclass(frozen=True)
class SceneRendering:
    """Pictures of T times from C cameras, float32 on the CPU."""

    rgb: Tensor  # [T, C, H, W, 3] in 0..1, on white
    alpha: Tensor  # [T, C, H, W] opacity in 0..1
    depth: Tensor  # [T, C, H, W] distance from the camera centre along the pixel's ray; 0 where alpha is 0
    normal: Tensor  # [T, C, H, W, 3] outward unit normals in the world; 0 where alpha is 0 or none are wanted


class Scene4D(ABC):
    """A moving object, seen from any camera at any time in 0..1, with the cameras and times of its views."""

    backend: ClassVar[str]  # what it is made of; `load_scene` reads it from the file

    def __init__(self, cameras: Cameras, fps: float, times: Sequence[float]) -> None:
        self.cameras, self.fps, self.times = cameras, fps, tuple(times)
        self.n_frames = len(self.times)
        self.path: ObjectPath | None = None  # if the crop followed the object; None: at the origin
        self.fit: dict | None = None  # the settings it was fitted with; None: not told
        self.motion: Motion | None = None  # between frames; None: not known, see `learn_motion`
        self._sought_motion = False
        self.knows_world = True  # False: a file of 0.1.0, whose cameras tell no world of a data set

    @torch.no_grad()
    def render(
        self,
        cameras: Cameras,
        times: Sequence[float],  # in 0..1
        size: int,  # H and W, pixels
        *,
        views: Sequence[int] | None = None,  # which of the cameras, 0 the input view; None: all V + 1
        normals: bool = True,  # without them it takes half to three quarters of the time
        callback: Callable[[int, int, None], None] | None = None,  # (done, all, None); may raise to cancel
    ) -> SceneRendering:
        """Return square pictures of cameras, see `placed`, at times.

        Raises ValueError for times, a size or views out of range.
        """
        if size < 1 or not times or not all(0 <= time <= 1 for time in times):
            raise ValueError(
                f"Expected size >= 1 and times in 0..1; got size {size} and times {listed(times)}."
            )
        cameras = placed(cameras, self)
        chosen = range(cameras.n_views + 1) if views is None else views
        for view in chosen:
            cameras.check_view(view)
        _check_pixels(len(times), len(chosen), size)
        self.learn_motion(times, callback and (lambda *_: callback(0, len(times) * len(chosen), None)))
        maps = torch.empty(len(times), len(chosen), size, size, 8 if normals else 5)
        for t, time in enumerate(times):
            draw = self._drawer(time, normals)
            for v, view in enumerate(chosen):
                maps[t, v] = draw(cameras, view, size).cpu()
                if callback is not None:
                    callback(t * len(chosen) + v + 1, len(times) * len(chosen), None)
        if bad := int((~maps.isfinite()).sum()):
            raise ValueError(
                f"Expected finite pictures; {bad} of {maps.numel()} values are NaN or infinite: numbers of "
                f"the scene are too large. Fit it again."
            )
        rgb, alpha, depth, normal = (part.contiguous() for part in maps.tensor_split([3, 4, 5], dim=-1))
        normal = normal if normals else torch.zeros(()).expand_as(rgb)
        return SceneRendering(rgb, alpha[..., 0], depth[..., 0], normal)

    @abstractmethod
    def bounds(self, time: float) -> Tensor:
        """Return the object's box [2, 3], world units, on the CPU; ValueError where there is no object."""

    @abstractmethod
    def densities(self, points: Tensor, time: float) -> Tensor:
        """Return densities [N] at world points [N, 3], on their device, in a unit of the backend's own."""

    @abstractmethod
    def colours(self, points: Tensor, time: float) -> Tensor:
        """Return the colours at points [N, 3] in the world, [N, 3] in 0..1, on the device of the points."""

    @abstractmethod
    def carried(self, points: Tensor, start: float, end: float) -> Tensor:
        """Return where points [N, 3] of one time are at another, as far as the scene knows its motion."""

    def learn_motion(
        self, times: Sequence[float], callback: Callable[[int, int, None], None] | None = None
    ) -> None:
        """Find how matter moves, once, if a time is between frames: there it is then moved, not faded.

        Rendering and exporting do it. It takes half a second to a second per frame; ``callback``
        hears (steps done, all steps, None) and may raise to cancel.
        """
        from .tracking.motion import motion_of

        if self.motion is None and not self._sought_motion and any(self._between(time) for time in times):
            self.motion = motion_of(self, callback)
            self._sought_motion = True

    def changed(self) -> None:
        """Forget what was found out about the matter before it changed."""
        self.motion, self._sought_motion = None, False

    def save(self, path: str | Path) -> None:
        """Write the scene to a file that `load_scene` reads; it appears complete or not at all."""
        tensors, header = self._saved()
        if self.motion is not None:
            moving, header["motion"] = self.motion.saved()
            tensors |= {f"motion.{key}": tensor for key, tensor in moving.items()}
        header = {
            **header,
            "backend": self.backend,
            "version": SCENE_VERSION,
            "cameras": self.cameras.to_json(),
            "fps": self.fps,
            "times": list(self.times),
            "path": self.path and self.path.to_json(),
            "fit": self.fit,
            "knows_world": self.knows_world,
        }
        write_tensors(path, SCENE_FORMAT, tensors, header)

    def _between(self, time: float) -> tuple[int, float] | None:
        """Return the frame before a time and the share of the way to the next; None at frames and outside."""
        after = int(np.searchsorted(self.times, time - SAME_TIME))
        if not 0 < after < self.n_frames or self.times[after] - time < SAME_TIME:
            return None
        before = self.times[after - 1]
        return after - 1, (time - before) / (self.times[after] - before)

    def _shift(self, time: float) -> Tensor:
        """Return where the middle of the object is, [3] on the CPU."""
        return torch.zeros(3) if self.path is None else self.path.at(time).float()

    @abstractmethod
    def _drawer(self, time: float, normals: bool) -> Callable[[Cameras, int, int], Tensor]:
        """Return what draws (cameras, view, size): colour, opacity, distance, any normal, [size, size, 8]."""

    @abstractmethod
    def _saved(self) -> tuple[dict[str, Tensor], dict]:
        """Return the tensors and the header's own entries of the file."""


def even_times(count: int) -> tuple[float, ...]:
    """Return ``count`` times at equal distances, from that of the first frame, 0, to that of the last, 1."""
    return tuple(torch.linspace(0, 1, count, dtype=torch.float64).tolist())


def check_times(times: Sequence[float]) -> None:
    """Raise ValueError unless there are times, which rise within 0..1."""
    if not (times and 0 <= times[0] and times[-1] <= 1 and all(a < b for a, b in pairwise(times))):
        raise ValueError(f"Expected times that rise within 0..1; got {listed(times)}. Sort them, each once.")


def pace(scene: Scene4D, times: Sequence[float]) -> float:
    """Return the frames per second at which rising times, one or more, play as fast as the scene's own."""
    if len(times) < 2:
        return scene.fps
    own = scene.times[-1] - scene.times[0] or 1.0
    return scene.fps * (len(times) - 1) / max(scene.n_frames - 1, 1) * (own / (times[-1] - times[0]))


def slowed(times: Sequence[float], slow: int) -> tuple[float, ...]:
    """Return times with ``slow`` - 1 more between any two: at the same pace they last so much longer."""
    count = (len(times) - 1) * slow + 1
    return tuple(np.interp(np.arange(count) / slow, np.arange(len(times)), times).tolist())


def to_and_fro(times: Sequence[float], count: int, slow: int = 1) -> tuple[float, ...]:
    """Return ``count`` times of a motion that ends where it began, so that its pictures loop.

    It runs to and fro a whole number of times: from one time to the next about ``slow`` of them.
    """
    last = len(times) - 1
    cycles = max(round(count / max(2 * last * slow, 1)), 1)
    done = np.arange(count) * cycles % count / count  # of a cycle
    return tuple(np.interp(last * (1 - np.abs(1 - 2 * done)), np.arange(len(times)), times).tolist())


def placed(cameras: Cameras, scene: Scene4D) -> Cameras:
    """Return cameras in a scene's world: a data set's where they stand, a relative list from its input view.

    A scene that does not know its world takes the first camera as its input view, and the log says so.
    """
    if cameras.input_azimuth_deg is not None and not scene.knows_world:
        _log.warning(
            "This scene's file does not tell the world of the views it was fitted to: the first camera is "
            "taken as their input view. Fit the scene again if its pictures are turned."
        )
        cameras = replace(cameras, input_azimuth_deg=None)
    return cameras.beside(scene.cameras)


def own_cameras(scene: Scene4D) -> Cameras:
    """Return the cameras that a scene was fitted to, with a wider view where the object leaves theirs."""
    return scene.cameras if scene.path is None else scene.path.seen_by(scene.cameras)


def centred(scene: Scene4D) -> Scene4D:
    """Return the scene with its object in the middle, where the views of a crop that followed it show it."""
    still = copy.copy(scene)
    still.path = None
    return still


def box_of(tensors: Tensors, key: str) -> Tensor:
    """Return the stored corners of a box, [2, 3]; ValueError where it is empty."""
    box = tensors.shaped(key, 2, 3).float()
    if not (box[0] < box[1]).all():
        raise ValueError(f"Expected a box with room in {tensors.place}; got {box.tolist()}. Fit it again.")
    return box


def no_object(time: float) -> ValueError:
    return ValueError(
        f"Expected an object at time {time:g}; the scene is empty there. Fit it again, or leave this time "
        f"out."
    )


def _check_pixels(n_times: int, n_cameras: int, size: int) -> None:
    if (pixels := n_times * n_cameras * size * size) > _MOST_PIXELS:
        raise ValueError(
            f"Expected at most {_MOST_PIXELS / 1e6:.0f} million pixels; {n_times} times of {n_cameras} "
            f"cameras at {size} px make {pixels / 1e6:.0f} million. Take fewer, or a smaller size."
        )


def check_turntable(n_pictures: int, size: int) -> None:
    """Raise ValueError for fewer than 2 pictures of a turntable, or too many pixels."""
    if n_pictures < 2:
        raise ValueError(f"Expected at least 2 pictures of a turntable; got {n_pictures}. Raise frames.")
    _check_pixels(1, n_pictures, size)


def turntable(
    scene: Scene4D,
    cameras: Cameras,  # give radius, field of view and the input's elevation
    n_pictures: int,  # N
    size: int,  # of the pictures, pixels
    *,
    turns: float = 1.0,  # around the scene; negative: the other way
    slow: int = 1,  # about as many pictures from one frame to the next, see `to_and_fro`
    normals: bool = True,
    callback: Callable[[int, int], None] | None = None,  # (pictures done, all); may raise to cancel
) -> tuple[SceneRendering, Cameras]:
    """Return pictures [1, N, ...] around the scene, which moves to and fro, and their cameras.

    Raises ValueError as `check_turntable`.
    """
    check_turntable(n_pictures, size)
    azimuths = tuple(360 * turns * i / n_pictures for i in range(n_pictures))
    around = replace(cameras, elevations_deg=(0.0,) * n_pictures, azimuths_deg=azimuths)
    times = to_and_fro(scene.times, n_pictures, slow)
    scene.learn_motion(times, callback and (lambda *_: callback(0, n_pictures)))
    seen = []
    for i, time in enumerate(times):
        seen.append(scene.render(around, [time], size, views=[i], normals=normals))
        if callback is not None:
            callback(i + 1, n_pictures)
    parts = zip(*(vars(one).values() for one in seen), strict=True)
    return SceneRendering(*(torch.cat(part, dim=1) for part in parts)), around
