"""Lays a mesh that a graph has bent right onto a surface, along its own normals.

A few hundred nodes cannot follow every bulge of a surface. What is left is small and smooth: every vertex
asks how far the surface is along its normal, and moves by the mean of what its neighbourhood asks for. Moves
along the surface stay those of the graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .registration import LEAST_COSINE, Surface
from .surface import vertex_normals

_ROUNDS = 3
# How often what vertices ask for is averaged with their neighbours', per round.
_SMOOTHING = 5
# A surface further away than this share of the object is another one.
_FARTHEST = 0.03


def settled(vertices: np.ndarray, faces: np.ndarray, target: Surface, size: float) -> np.ndarray:
    """Return the vertices of a mesh moved onto a surface, [N, 3].

    Args:
        vertices: [N, 3] world units, near the surface.
        faces: [F, 3].
        target: the surface, densely.
        size: of the object, world units.
    """
    from scipy.spatial import KDTree

    tree, mean = KDTree(target.points), _mean_of_neighbours(faces, len(vertices))
    for _ in range(_ROUNDS):
        normals = vertex_normals(vertices, faces)
        _, index = tree.query(vertices)
        away = target.points[index] - vertices
        alike = (normals * target.normals[index]).sum(1) > LEAST_COSINE
        asks = (alike & (np.linalg.norm(away, axis=1) < _FARTHEST * size)).astype(float)
        wanted = asks * (away * normals).sum(1)
        for _ in range(_SMOOTHING):
            asks, wanted = mean @ asks, mean @ wanted
        vertices = vertices + (wanted / np.maximum(asks, 1e-3))[:, None] * normals
    return vertices


def _mean_of_neighbours(faces: np.ndarray, count: int) -> Any:
    """Return the matrix [N, N] that averages values over every vertex and its neighbours."""
    from scipy.sparse import csr_array, diags_array, eye_array

    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    near = csr_array((np.ones(len(ends)), tuple(ends.T)), shape=(count, count))
    near = ((near + near.T) > 0).astype(float) + eye_array(count)
    return diags_array(1 / near.sum(1)) @ near
