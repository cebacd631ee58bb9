"""How evenly a mesh moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .mesh import Mesh, MeshAnimation
from .registration import spread_points

_POINTS = 40_000


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
    is taken at the points nearest to the tracked vertices, which leaves out how its vertices are numbered.

    Args:
        animation: T frames.
        frames: T meshes, of any topology.
    """
    from scipy.spatial import KDTree

    if len(frames) < 3:
        return None
    positions = animation.positions.double().numpy()
    clouds = [spread_points(frame, _POINTS).points for frame in frames]
    nearest = np.stack(
        [cloud[KDTree(cloud).query(own)[1]] for own, cloud in zip(positions, clouds, strict=True)]
    )
    tracked, renewed = (np.linalg.norm(np.diff(way, 2, axis=0), axis=-1) for way in (positions, nearest))
    return Coherence(float(tracked.mean()), float(renewed.mean()), float(tracked.max()))
