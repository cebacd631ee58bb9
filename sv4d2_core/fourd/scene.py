"""What every 4D scene can do, whatever it is made of, and the file it is kept in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..cameras import Cameras
from ..whole_file import write_whole
from .object_path import ObjectPath

SCENE_FORMAT = "sv4d2.scene"
SCENE_VERSION = 1


@dataclass(frozen=True)
class SceneRendering:
    """Pictures of T times from C cameras, float32 on the CPU.

    Args:
        rgb: [T, C, H, W, 3] in 0..1, on white.
        alpha: [T, C, H, W] opacity in 0..1.
        depth: [T, C, H, W] distance from the camera centre along the pixel's ray; 0 where alpha is 0.
        normal: [T, C, H, W, 3] outward unit normals in the world; 0 where alpha is 0.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor

    @classmethod
    def of(cls, maps: Tensor) -> SceneRendering:
        """Return the pictures in maps [T, C, H, W, 8] of colour, opacity, distance and normal."""
        rgb, alpha, depth, normal = maps.split([3, 1, 1, 3], dim=-1)
        parts = (rgb, alpha[..., 0], depth[..., 0], normal)
        return cls(*(part.contiguous() for part in parts))


class Scene4D(Protocol):
    """An object that moves, seen from any camera at any time.

    Args:
        backend: what it is made of; `load_scene` reads it from the file.
        cameras: of the views that it was fitted to.
        fps: frames per second of these views.
        n_frames: T of these views.
        times: [T] in 0..1, rising, the times of these views.
        path: where the object is, if the crop of the views followed it; None: at the origin.
    """

    backend: str
    cameras: Cameras
    fps: float
    n_frames: int
    times: tuple[float, ...]
    path: ObjectPath | None

    def render(
        self,
        cameras: Cameras,
        times: Sequence[float],
        size: int,
        *,
        views: Sequence[int] | None = None,
        callback: Callable[[int, int, None], None] | None = None,
    ) -> SceneRendering:
        """Return square pictures of cameras at times in 0..1.

        Args:
            cameras: V + 1 cameras.
            times: in 0..1.
            size: H and W, pixels.
            views: which of the cameras, 0 the input view; None: all V + 1.
            callback: called with (pictures done, all pictures, None); may raise to cancel.
        """
        ...

    def save(self, path: str | Path) -> None:
        """Write the scene to a file that `load_scene` reads; it appears complete or not at all."""
        ...


def views_to_render(
    cameras: Cameras, times: Sequence[float], size: int, views: Sequence[int] | None
) -> Sequence[int]:
    """Return the entries of ``cameras`` that `Scene4D.render` is asked for.

    Raises:
        ValueError: no time, a time outside 0..1, a size below 1, no such view.
    """
    if size < 1 or not times or not all(0 <= time <= 1 for time in times):
        raise ValueError(f"Expected size >= 1 and times in 0..1; got size {size} and times {list(times)}.")
    chosen = range(cameras.n_views + 1) if views is None else views
    for view in chosen:
        cameras.check_view(view)
    return chosen


def own_cameras(scene: Scene4D) -> Cameras:
    """Return the cameras that a scene was fitted to, with a wider view where the object leaves theirs."""
    return scene.cameras if scene.path is None else scene.path.seen_by(scene.cameras)


def save_scene(path: str | Path, backend: str, tensors: dict[str, Tensor], header: dict) -> None:
    """Write a scene file: tensors, and a header of JSON values to which the backend is added."""
    write_tensors(path, SCENE_FORMAT, tensors, {"backend": backend, "version": SCENE_VERSION, **header})


def write_tensors(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict) -> None:
    """Write tensors and JSON values as one safetensors file, which appears complete or not at all.

    Args:
        path: the file.
        kind: the key of the metadata that holds the header; it tells what the file is.
        tensors: copied to the CPU.
        header: JSON values.
    """
    content = save(
        {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
        metadata={kind: json.dumps(header)},
    )
    write_whole(Path(path), content)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors and the header that `write_tensors` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or of another kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a {kind} file; there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(kind, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()} if header else {}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"Expected a {kind} file; {path} cannot be read ({error}).") from error
    if not isinstance(header, dict):
        raise ValueError(f"Expected a {kind} file; {path} is a safetensors file of another kind.")
    return tensors, header


def tensors_under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose key begins with a prefix, under the rest of their key."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
