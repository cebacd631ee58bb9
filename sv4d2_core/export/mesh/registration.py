"""Bends a mesh by its deformation graph until it lies on another surface.

Nearest points with alike normals and colours pull in both directions, across the surface more than along it,
while neighbouring nodes stay as rigid to each other as they can, ever less strictly.
Source: Li, Sumner and Pauly 2008; Amberg, Romdhani and Vetter 2007 (non-rigid registration whose stiffness
falls); Sorkine and Alexa 2007 (as rigid as possible).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .graph import DeformationGraph, Pose
from .graph_solver import Pulls, Springs, improved
from .mesh import Mesh
from .surface import vertex_normals

# Stiffness of the first and the last step, against points that pull with 1 in all.
_STIFFNESS = (3.0, 0.03)
# Share of the pull towards the point itself rather than its tangent plane.
_ALONG = 0.3
# Points further apart than these shares of the object do not pull, in the first and the last step.
_FARTHEST = (0.15, 0.04)
# In the search for the nearest point opposite normals, and black and white, count as this far apart, in
# shares of the object. Without colours a head that turns would seem to stand still.
_NORMALS = 0.1
_COLOURS = 0.5
LEAST_COSINE = 0.3
# What is left of the shape at the anchor frame when the shape of the frame before is let go by the rest: a
# head that turns on its neck is no spring.
_MEMORY = 0.3


class Surface(NamedTuple):
    """Points spread over a mesh.

    Args:
        points: [P, 3] world units.
        normals: [P, 3] unit, outward.
        colours: [P, 3] in 0..1.
    """

    points: np.ndarray
    normals: np.ndarray
    colours: np.ndarray

    def features(self, size: float) -> np.ndarray:
        """Return what nearest points are looked for by, [P, 9] world units, for an object of a size."""
        scaled = self.normals * (_NORMALS * size / 2), self.colours * (_COLOURS * size / 3**0.5)
        return np.concatenate([self.points, *scaled], axis=1)


def spread_points(mesh: Mesh, count: int) -> Surface:
    """Return points spread evenly over a mesh, always the same."""
    from trimesh import Trimesh
    from trimesh.sample import sample_surface

    body = Trimesh(mesh.vertices.double().numpy(), mesh.faces.numpy(), process=False)
    points, faces, *_ = sample_surface(body, count, seed=0)
    colours = mesh.colours.double().numpy()[mesh.faces.numpy()].mean(1)
    return Surface(np.asarray(points), np.asarray(body.face_normals)[faces], colours[faces])


def fit_points(graph: DeformationGraph, start: Pose, targets: np.ndarray, stiffness: float = 0.1) -> Pose:
    """Return the pose in which the vertices come nearest to targets [N, 3], one per vertex."""
    count = len(targets)
    pulls = Pulls(
        np.arange(count), targets, np.zeros_like(targets), np.zeros(count), np.full(count, 1 / count)
    )
    springs = Springs(graph.edges_at_rest(start, 1.0), stiffness, start.nodes, 0.0)
    pose = start
    for _ in range(4):
        pose = improved(graph, pose, pulls, springs)
    return pose


def register(
    graph: DeformationGraph,
    template: Mesh,
    start: Pose,
    target: Surface,
    size: float,
    *,
    steps: int = 12,
    stiffness: tuple[float, float] = _STIFFNESS,
    steady: np.ndarray | None = None,
    steadiness: float = 0.0,
) -> Pose:
    """Return the pose in which the mesh lies on a surface.

    Args:
        graph: of the mesh.
        template: the mesh at rest.
        start: where the search begins.
        target: the surface.
        size: of the object, world units.
        steps: of the search.
        stiffness: in the first and the last step.
        steady: [M, 3] where the nodes would be if they moved evenly; None: nobody knows.
        steadiness: how strongly they are drawn there.
    """
    pose = start
    edges = graph.edges_at_rest(start, _MEMORY)
    places = start.nodes if steady is None else steady
    for step in range(steps):
        share = step / max(steps - 1, 1)
        own = posed_surface(graph, template, pose)
        pulls = _pulls(own, target, size, size * _between(_FARTHEST, share))
        pose = improved(graph, pose, pulls, Springs(edges, _between(stiffness, share), places, steadiness))
    return pose


def posed_surface(graph: DeformationGraph, template: Mesh, pose: Pose) -> Surface:
    """Return the vertices of a mesh in a pose."""
    vertices = graph.posed(pose)
    return Surface(
        vertices, vertex_normals(vertices, template.faces.numpy()), template.colours.double().numpy()
    )


def _pulls(own: Surface, target: Surface, size: float, farthest: float) -> Pulls:
    """Return what pulls vertices: their nearest target points, and those whose nearest they are."""
    from scipy.spatial import KDTree

    here, there = own.features(size), target.features(size)
    _, to_target = KDTree(there).query(here)
    _, to_vertex = KDTree(here).query(there)
    rows = np.concatenate([np.arange(len(here)), to_vertex])
    index = np.concatenate([to_target, np.arange(len(there))])
    weights = 0.5 / np.repeat([len(here), len(there)], [len(here), len(there)])
    alike = (own.normals[rows] * target.normals[index]).sum(1) > LEAST_COSINE
    near = np.linalg.norm(own.points[rows] - target.points[index], axis=1) < farthest
    rows, index, weights = rows[alike & near], index[alike & near], weights[alike & near]
    return Pulls(rows, target.points[index], target.normals[index], weights, _ALONG * weights)


def _between(ends: tuple[float, float], share: float) -> float:
    """Return a value between two, by a constant factor per step."""
    return ends[0] * (ends[1] / ends[0]) ** share
