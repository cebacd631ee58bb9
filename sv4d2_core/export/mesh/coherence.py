"""How evenly a mesh moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .mesh import Mesh, MeshAnimation
from .registration import spread_points

_POINTS = 20_000


class Coherence(NamedTuple):
    """Mean accelerations, world units per frame squared, and the largest of a vertex.

    Args:
        tracked: of the vertices of a mesh that moves.
        nearest: of the points of every frame's own mesh that are nearest to those vertices.
        largest: of any vertex at any frame; a jump stands out.
    """

    tracked: float
    nearest: float
    largest: float


def coherence(animation: MeshAnimation, frames: Sequence[Mesh]) -> Coherence | None:
    """Return how far vertices leave a straight and even way, tracked and frame by frame; None below 3 frames.

    The acceleration at frame t is |x(t + 1) - 2 x(t) + x(t - 1)|, averaged over vertices and frames. A mesh
    made anew for every frame trembles, since its surface lies a little differently each time; its figure
    is taken at the points nearest to the tracked vertices, which leaves out where its own vertices are.
    Frames are taken as evenly spaced.

    Args:
        animation: T frames.
        frames: T meshes, of any topology.
    """
    if len(frames) < 3:
        return None
    positions = animation.positions.double().numpy()
    nearest = np.stack([_nearest(own, frame) for own, frame in zip(positions, frames, strict=True)])
    tracked, renewed = (np.linalg.norm(np.diff(way, 2, axis=0), axis=-1) for way in (positions, nearest))
    return Coherence(float(tracked.mean()), float(renewed.mean()), float(tracked.max()))


def _nearest(positions: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Return the points [N, 3] of a mesh that are nearest to others.

    They lie on the plane through the nearest of points spread over the mesh. Those points themselves would
    tremble by the gaps between them, more than any surface does.
    """
    from scipy.spatial import KDTree

    spread = spread_points(mesh, _POINTS)
    index = KDTree(spread.points).query(positions)[1]
    normals = spread.normals[index]
    heights = ((positions - spread.points[index]) * normals).sum(1, keepdims=True)
    return positions - heights * normals
