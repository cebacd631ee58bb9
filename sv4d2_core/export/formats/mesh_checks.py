"""Refuses meshes that no file can hold rightly, before anything is written."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..mesh.mesh import Mesh, MeshAnimation


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
