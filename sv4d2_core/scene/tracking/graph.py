"""Embedded deformation graph: a few hundred nodes on a mesh that bend it, and how they are moved.

Source: Sumner, Schmid and Pauly 2007, "Embedded Deformation for Shape Manipulation"; the regulariser is as
rigid as possible (Sorkine and Alexa 2007). Distances are along the surface: legs that touch stay apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_FOLLOWED = 4  # nodes that a vertex follows
_FARTHEST = 4.0  # largest distance of a followed node, in distances between nodes


class Pose(NamedTuple):
    """Where the nodes of a graph are, and how they are turned; float64."""

    rotations: np.ndarray  # [M, 3, 3] from the rest pose
    nodes: np.ndarray  # [M, 3] world units


class DeformationGraph(NamedTuple):
    """Nodes on a mesh at rest, and which of them its vertices follow; float64."""

    vertices: np.ndarray  # [N, 3] of the mesh at rest
    nodes: np.ndarray  # [M, 3]
    followed: np.ndarray  # [N, K] nodes of every vertex, the nearest first
    weights: np.ndarray  # [N, K] how much it follows each; they add up to 1
    edges: np.ndarray  # [E, 2] pairs of nodes that share a vertex, each in both orders

    @property
    def rest(self) -> Pose:
        return Pose(np.tile(np.eye(3), (len(self.nodes), 1, 1)), self.nodes)

    def posed(self, pose: Pose) -> np.ndarray:
        """Return the vertices in a pose, [N, 3] (Sumner et al. 2007, equation 2)."""
        offsets = self.vertices[:, None] - self.nodes[self.followed]
        turned = np.einsum("nk,nkij,nkj->ni", self.weights, pose.rotations[self.followed], offsets)
        return turned + np.einsum("nk,nki->ni", self.weights, pose.nodes[self.followed])

    def edges_at_rest(self, pose: Pose, memory: float) -> np.ndarray:
        """Return edges [E, 3], before the turn of their first node, that are at ease in a pose.

        ``memory``, 0..1, is the share of the rest pose in them.
        """
        here, there = self.edges.T
        now = np.einsum("eji,ej->ei", pose.rotations[here], pose.nodes[there] - pose.nodes[here])
        return memory * (self.nodes[there] - self.nodes[here]) + (1 - memory) * now


def deformation_graph(vertices: np.ndarray, faces: np.ndarray, count: int) -> DeformationGraph:
    """Return a graph of about ``count`` nodes, one in every connected part of a mesh at least."""
    from scipy.sparse.csgraph import connected_components, dijkstra

    vertices = vertices.astype(np.float64)
    lengths = _edge_lengths(vertices, faces)
    _, parts = connected_components(lengths, directed=False)
    chosen, spacing = _farthest_points(vertices, min(count, len(vertices)))
    missing = np.setdiff1d(parts, parts[chosen])
    chosen = np.concatenate([chosen, [np.argmax(parts == part) for part in missing]]).astype(np.int64)
    # A thin part may be longer along its surface than through the air.
    distances = dijkstra(lengths, directed=False, indices=chosen, limit=_FARTHEST * spacing).T  # [N, M]
    lost = ~np.isfinite(distances).any(1)
    straight = np.linalg.norm(vertices[lost, None] - vertices[chosen], axis=-1)
    distances[lost] = np.where(parts[lost, None] == parts[chosen], straight, np.inf)
    followed, weights = _nearest_nodes(distances)
    return DeformationGraph(vertices, vertices[chosen], followed, weights, _node_pairs(followed, weights))


def _edge_lengths(vertices: np.ndarray, faces: np.ndarray):
    from scipy.sparse import csr_matrix

    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    pairs = np.unique(np.sort(pairs, 1), axis=0)
    lengths = np.linalg.norm(vertices[pairs[:, 0]] - vertices[pairs[:, 1]], axis=-1)
    # A sparse graph takes a length of 0 for no edge.
    return csr_matrix((np.maximum(lengths, 1e-9), pairs.T), shape=(len(vertices),) * 2)


def _farthest_points(points: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Return indices of points far from each other, and how far the last one is (Gonzalez 1985)."""
    chosen = [int(np.linalg.norm(points - points.mean(0), axis=-1).argmax())]
    distance = np.linalg.norm(points - points[chosen[0]], axis=-1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=-1))
    return np.array(chosen), max(float(distance.max()), 1e-9)


def _nearest_nodes(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return followed nodes and weights, [N, K] each, by distances [N, M] (Sumner et al. 2007, eq. 4)."""
    kept = min(_FOLLOWED, distances.shape[1])
    order = np.argsort(distances, axis=1, kind="stable")[:, : kept + 1]
    near = np.take_along_axis(distances, order, axis=1)
    # The weight falls to 0 at the first node that is not followed.
    border = np.where(np.isfinite(near), near, 0).max(1, keepdims=True) * (1 + 1e-3) + 1e-12
    weights = np.where(np.isfinite(near), 1 - near / border, 0).clip(min=0)[:, :kept] ** 2
    followed = np.where(weights > 0, order[:, :kept], order[:, :1])
    return followed, weights / weights.sum(1, keepdims=True)


def _node_pairs(followed: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the pairs of nodes that a vertex follows together, in both orders, [E, 2]."""
    columns = range(followed.shape[1])
    pairs = [followed[weights[:, b] > 0][:, [a, b]] for a in columns for b in columns if a != b]
    found = np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.int64)
    found = np.unique(np.concatenate([found, found[:, ::-1]]), axis=0)
    return found[found[:, 0] != found[:, 1]]


_DAMPING = 1e-7  # keeps a node that nothing holds where it is
_TOLERANCE = 1e-3  # of a step's solution: the next one starts where it ends
_MOST_ITERATIONS = 200


class Correspondences(NamedTuple):
    """C points that vertices of a mesh should come to."""

    vertices: np.ndarray  # [C] which vertices
    points: np.ndarray  # [C, 3] where to
    normals: np.ndarray  # [C, 3] of the surface there
    to_plane: np.ndarray  # [C] weights of the distance to the tangent plane
    to_point: np.ndarray  # [C] weights of the distance to the point itself


class Regulariser(NamedTuple):
    """What keeps the nodes of a graph together."""

    edges: np.ndarray  # [E, 3] the graph's edges at rest, before the turn of their first node
    stiffness: float  # weight of all edges together
    places: np.ndarray  # [M, 3] where nodes are drawn to
    steadiness: float  # weight of these places, all together


class _Equations(NamedTuple):
    """Row r asks that sum(values[r] * unknowns[columns[r]]) is missing[r]."""

    values: np.ndarray  # [R, L]
    columns: np.ndarray  # [R, L]
    missing: np.ndarray  # [R]
    weights: np.ndarray  # [R]


def gauss_newton_step(
    graph: DeformationGraph, pose: Pose, data: Correspondences, regulariser: Regulariser
) -> Pose:
    """Return a pose that is nearer to what correspondences and regulariser ask for."""
    from scipy.spatial.transform import Rotation

    # A node has six unknowns, its turn as rotation vector and its move.
    blocks = [*_data_equations(graph, pose, data), *_regulariser_equations(graph, pose, regulariser)]
    turns, moves = np.split(_solution(blocks, 6 * len(graph.nodes)).reshape(-1, 6), 2, axis=1)
    return Pose(Rotation.from_rotvec(turns).as_matrix() @ pose.rotations, pose.nodes + moves)


def _data_equations(graph: DeformationGraph, pose: Pose, data: Correspondences) -> list[_Equations]:
    used, weights = graph.followed[data.vertices], graph.weights[data.vertices]
    offsets = graph.vertices[data.vertices][:, None] - graph.nodes[used]
    arms = np.einsum("ckij,ckj->cki", pose.rotations[used], offsets)  # [C, K, 3]
    missing = data.points - np.einsum("ck,cki->ci", weights, pose.nodes[used] + arms)
    normals = np.broadcast_to(data.normals[:, None], arms.shape)
    values = weights[..., None] * np.concatenate([np.cross(arms, normals), normals], axis=-1)
    columns = 6 * used[..., None] + np.arange(6)
    shape = len(used), 6 * used.shape[1]
    offsets = (data.normals * missing).sum(1)
    planes = _Equations(values.reshape(shape), columns.reshape(shape), offsets, data.to_plane)
    return [planes, *_point_equations(arms, weights, 6 * used, missing, data.to_point)]


def _regulariser_equations(graph: DeformationGraph, pose: Pose, wanted: Regulariser) -> list[_Equations]:
    """Return the equations that keep edges as they are at rest, and nodes at their places."""
    here, there = graph.edges.T
    edges = np.einsum("eij,ej->ei", pose.rotations[here], wanted.edges)
    missing = pose.nodes[there] - pose.nodes[here] - edges
    share = np.full(len(here), wanted.stiffness / len(graph.nodes))
    ones = np.ones((len(here), 1))
    # The far end of an edge moves away from where its first node would have it.
    tied = [
        edge._replace(
            values=np.concatenate([edge.values, -ones], axis=1),
            columns=np.concatenate([edge.columns, 6 * there[:, None] + 3 + axis], axis=1),
        )
        for axis, edge in enumerate(_point_equations(edges[:, None], ones, 6 * here[:, None], missing, share))
    ]
    nodes = 6 * np.arange(len(graph.nodes))[:, None]
    firm = np.full(len(nodes), wanted.steadiness / len(nodes))
    places = [
        _Equations(np.ones((len(nodes), 1)), nodes + 3 + axis, (wanted.places - pose.nodes)[:, axis], firm)
        for axis in range(3)
    ]
    return [*tied, *places]


def _point_equations(
    arms: np.ndarray,  # [R, K, 3] from nodes to where they take a point
    shares: np.ndarray,  # [R, K] of the nodes in the point
    first: np.ndarray,  # [R, K] column of the nodes' first unknown
    missing: np.ndarray,  # [R, 3]
    weights: np.ndarray,  # [R]
) -> list[_Equations]:
    """Return the equations that move points by what is missing, one block per axis."""
    blocks, shape = [], (len(arms), 3 * arms.shape[1])
    for axis in range(3):
        one, two = (axis + 1) % 3, (axis + 2) % 3  # of the cross product of turn and arm
        values = shares[..., None] * np.stack(
            [arms[..., two], -arms[..., one], np.ones_like(shares)], axis=-1
        )
        columns = first[..., None] + np.array([one, two, 3 + axis])
        blocks.append(_Equations(values.reshape(shape), columns.reshape(shape), missing[:, axis], weights))
    return blocks


def _solution(blocks: list[_Equations], unknowns: int) -> np.ndarray:
    from scipy.sparse import csr_matrix, diags_array, vstack
    from scipy.sparse.linalg import cg

    matrices, sides = [], []
    for block in blocks:
        scale = np.sqrt(block.weights)
        values = block.values * scale[:, None]
        starts = np.arange(0, values.size + 1, max(values.shape[1], 1))
        matrices.append(
            csr_matrix((values.ravel(), block.columns.ravel(), starts), shape=(len(scale), unknowns))
        )
        sides.append(scale * block.missing)
    rows, missing = vstack(matrices).tocsr(), np.concatenate(sides)
    normal = rows.T @ rows + diags_array(np.full(unknowns, _DAMPING / unknowns))
    inverse = diags_array(1 / normal.diagonal())
    return cg(normal, rows.T @ missing, rtol=_TOLERANCE, maxiter=_MOST_ITERATIONS, M=inverse)[0]
