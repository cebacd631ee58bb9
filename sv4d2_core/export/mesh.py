"""What a scene's surface is kept as: a mesh, or a mesh that moves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mesh:
    """Triangles at one time; tensors on the CPU.

    Args:
        vertices: [N, 3] float32, world units, +y up.
        faces: [F, 3] int64, counter-clockwise seen from outside.
        colours: [N, 3] float32 in 0..1, display values (sRGB) as in the pictures.
    """

    vertices: Tensor
    faces: Tensor
    colours: Tensor


@dataclass(frozen=True)
class MeshAnimation:
    """One mesh whose vertices move; tensors on the CPU.

    Args:
        positions: [T, N, 3] float32, world units, +y up.
        faces: [F, 3] int64, counter-clockwise seen from outside.
        colours: [N, 3] float32 in 0..1, display values (sRGB) as in the pictures.
        times: [T] in 0..1, rising; the first frame of the clip is 0, the last is 1.
        duration: seconds from time 0 to time 1.
    """

    positions: Tensor
    faces: Tensor
    colours: Tensor
    times: tuple[float, ...]
    duration: float

    def at(self, frame: int) -> Mesh:
        """Return the mesh of a frame."""
        return Mesh(self.positions[frame], self.faces, self.colours)

    def seconds(self) -> tuple[float, ...]:
        """Return when every frame is shown."""
        return tuple(time * self.duration for time in self.times)


def check_mesh(mesh: Mesh, what: str = "mesh") -> None:
    """Raise ValueError unless ``mesh``, called ``what`` in the text, has finite vertices and valid faces."""
    _check(mesh.vertices[None], mesh.faces, mesh.colours, what)


def check_animation(animation: MeshAnimation) -> None:
    """Raise ValueError unless every frame is a mesh as `check_mesh` wants it, and the times rise."""
    positions, times = animation.positions, animation.times
    _check(positions, animation.faces, animation.colours, "animation")
    if len(times) != len(positions):
        raise ValueError(
            f"Expected one time for each of the {len(positions)} frames; got {len(times)} times. Give both "
            f"for the same frames."
        )
    if len(times) > 1 and not 0 < animation.duration < float("inf"):
        raise ValueError(f"Expected a duration above 0 seconds; got {animation.duration:g}.")
    check_rising(animation.seconds())


def check_rising(times: Sequence[float]) -> None:
    """Raise ValueError unless there are times of frames, at 0 or later, and they rise."""
    if not times or not 0 <= times[0] < float("inf"):
        raise ValueError(f"Expected times from 0 on; got {times[0] if times else 'none'}.")
    for i, (earlier, later) in enumerate(itertools.pairwise(times), start=1):
        if not earlier < later < float("inf"):
            raise ValueError(
                f"Expected times that rise; frame {i} is at {later:g}, the one before at {earlier:g}. "
                f"Sort the frames, and give each its own time."
            )


def _check(
    positions: Tensor,  # [T, N, 3]
    faces: Tensor,  # [F, 3]
    colours: Tensor,  # [N, 3]
    what: str,
) -> None:
    if positions.ndim != 3 or positions.shape[2] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(
            f"Expected positions [frames, vertices, 3] and faces [faces, 3]; the {what} has "
            f"{list(positions.shape)} and {list(faces.shape)}."
        )
    n_frames, n_vertices, _ = positions.shape
    if 0 in (n_frames, n_vertices, len(faces)):
        raise ValueError(
            f"Expected a surface; the {what} has {n_frames} frames, {n_vertices} vertices and {len(faces)} "
            f"faces. The scene may be empty there: render it to see, or lower the density level."
        )
    if colours.shape != (n_vertices, 3):
        raise ValueError(
            f"Expected a colour for each of the {n_vertices} vertices; the {what} has {list(colours.shape)}."
        )
    for name, values in (("positions", positions), ("colours", colours)):
        wrong = int((~torch.isfinite(values)).any(-1).sum())
        if wrong:
            raise ValueError(
                f"Expected finite {name}; {wrong} of {values.shape[:-1].numel()} in the {what} are NaN or "
                f"infinite. The scene is damaged: fit it again."
            )
    low, high = int(faces.min()), int(faces.max())
    if low < 0 or high >= n_vertices:
        raise ValueError(
            f"Expected faces between vertices 0 and {n_vertices - 1}; those of the {what} use {low} to "
            f"{high}."
        )


def srgb_to_linear(colours: np.ndarray) -> np.ndarray:
    """Return linear values in 0..1, float64, of display values in 0..1; values outside are clipped.

    Source: IEC 61966-2-1.
    """
    values = np.clip(colours.astype(np.float64), 0.0, 1.0)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
