"""One step towards the pose in which the points of a mesh lie where they should, by Gauss and Newton.

The unknowns are a small turn and a small move of every node: six numbers, the turn first.
Source: Sumner, Schmid and Pauly 2007, "Embedded Deformation for Shape Manipulation", with turns that stay
rotations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .graph import DeformationGraph, Pose

# What keeps a node that nothing holds where it is.
_DAMPING = 1e-7
# How exactly a step is solved for: the next one starts where it ends.
_TOLERANCE = 1e-3
_MOST_ITERATIONS = 200


class Pulls(NamedTuple):
    """C points that pull vertices of a mesh.

    Args:
        vertices: [C] whom they pull.
        points: [C, 3] where to.
        normals: [C, 3] of the surface there.
        across: [C] how strongly towards the tangent plane.
        along: [C] how strongly towards the point itself.
    """

    vertices: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    across: np.ndarray
    along: np.ndarray


class Springs(NamedTuple):
    """What keeps the nodes of a graph together.

    Args:
        edges: [E, 3] the graph's edges at rest, before the turn of their first node.
        stiffness: of all edges together.
        places: [M, 3] where nodes are drawn to.
        steadiness: how strongly, all together.
    """

    edges: np.ndarray
    stiffness: float
    places: np.ndarray
    steadiness: float


class _Equations(NamedTuple):
    """Linear equations of the step: row r asks that sum(values[r] * unknowns[columns[r]]) is missing[r]."""

    values: np.ndarray  # [R, L]
    columns: np.ndarray  # [R, L]
    missing: np.ndarray  # [R]
    weights: np.ndarray  # [R]


def improved(graph: DeformationGraph, pose: Pose, pulls: Pulls, springs: Springs) -> Pose:
    """Return a pose that is nearer to what pulls and springs ask for."""
    from scipy.spatial.transform import Rotation

    blocks = [*_pull_equations(graph, pose, pulls), *_spring_equations(graph, pose, springs)]
    turns, moves = np.split(_solution(blocks, 6 * len(graph.nodes)).reshape(-1, 6), 2, axis=1)
    return Pose(Rotation.from_rotvec(turns).as_matrix() @ pose.rotations, pose.nodes + moves)


def _pull_equations(graph: DeformationGraph, pose: Pose, pulls: Pulls) -> list[_Equations]:
    """Return the equations that bring vertices to tangent planes and to points."""
    used, weights = graph.followed[pulls.vertices], graph.weights[pulls.vertices]
    offsets = graph.vertices[pulls.vertices][:, None] - graph.nodes[used]
    arms = np.einsum("ckij,ckj->cki", pose.rotations[used], offsets)  # [C, K, 3]
    missing = pulls.points - np.einsum("ck,cki->ci", weights, pose.nodes[used] + arms)
    normals = np.broadcast_to(pulls.normals[:, None], arms.shape)
    across = weights[..., None] * np.concatenate([np.cross(arms, normals), normals], axis=-1)
    columns = 6 * used[..., None] + np.arange(6)
    planes = _Equations(across, columns, (pulls.normals * missing).sum(1), pulls.across)
    return [planes, *_moved(arms, weights, 6 * used, missing, pulls.along)]


def _spring_equations(graph: DeformationGraph, pose: Pose, springs: Springs) -> list[_Equations]:
    """Return the equations that keep edges as they are at rest, and nodes at their places."""
    here, there = graph.edges.T
    wanted = np.einsum("eij,ej->ei", pose.rotations[here], springs.edges)
    missing = pose.nodes[there] - pose.nodes[here] - wanted
    share = np.full(len(here), springs.stiffness / len(graph.nodes))
    ones = np.ones((len(here), 1))
    edges = _moved(wanted[:, None], ones, 6 * here[:, None], missing, share)
    nodes = 6 * np.arange(len(graph.nodes))[:, None]
    firm = np.full(len(nodes), springs.steadiness / len(nodes))
    places = [
        _Equations(np.ones((len(nodes), 1)), nodes + 3 + axis, (springs.places - pose.nodes)[:, axis], firm)
        for axis in range(3)
    ]
    # The far end of an edge moves away from where its first node would have it.
    tied = [
        edge._replace(
            values=np.concatenate([_rows(edge.values), -ones], axis=1),
            columns=np.concatenate([_rows(edge.columns), 6 * there[:, None] + 3 + axis], axis=1),
        )
        for axis, edge in enumerate(edges)
    ]
    return [*tied, *places]


def _moved(
    arms: np.ndarray,  # [R, K, 3] from nodes to where they take a point
    shares: np.ndarray,  # [R, K] of the nodes in the point
    first: np.ndarray,  # [R, K] column of the nodes' first unknown
    missing: np.ndarray,  # [R, 3]
    weights: np.ndarray,  # [R]
) -> list[_Equations]:
    """Return the equations that move points by what is missing, one block per axis."""
    blocks = []
    for axis in range(3):
        # The cross product of turn and arm.
        one, two = (axis + 1) % 3, (axis + 2) % 3
        values = shares[..., None] * np.stack(
            [arms[..., two], -arms[..., one], np.ones_like(shares)], axis=-1
        )
        columns = first[..., None] + np.array([one, two, 3 + axis])
        blocks.append(_Equations(values, columns, missing[:, axis], weights))
    return blocks


def _solution(blocks: list[_Equations], unknowns: int) -> np.ndarray:
    """Return the unknowns that fulfil weighted equations best, nearly."""
    from scipy.sparse import csr_matrix, diags_array, vstack
    from scipy.sparse.linalg import cg

    matrices, sides = [], []
    for block in blocks:
        scale = np.sqrt(block.weights)
        values = _rows(block.values) * scale[:, None]
        starts = np.arange(0, values.size + 1, max(values.shape[1], 1))
        matrices.append(
            csr_matrix((values.ravel(), block.columns.ravel(), starts), shape=(len(scale), unknowns))
        )
        sides.append(scale * block.missing)
    rows, missing = vstack(matrices).tocsr(), np.concatenate(sides)
    normal = rows.T @ rows + diags_array(np.full(unknowns, _DAMPING / unknowns))
    inverse = diags_array(1 / normal.diagonal())
    return cg(normal, rows.T @ missing, rtol=_TOLERANCE, maxiter=_MOST_ITERATIONS, M=inverse)[0]


def _rows(values: np.ndarray) -> np.ndarray:
    """Return values [R, ...] as [R, L], also for no rows: a mesh so small that it has one node."""
    return values.reshape(len(values), math.prod(values.shape[1:]))
