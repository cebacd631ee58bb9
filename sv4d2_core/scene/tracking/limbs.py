"""Guesses for a registration: limbs turned about their joints, farther than nearest points can follow.

A limb is what lies near one of the mesh's tips along its surface, cut off where few edges of the graph cross.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from .graph import DeformationGraph, Pose

if TYPE_CHECKING:
    from .track import Surface

_TIPS, _CUTS = 7, 3  # tips of a mesh, and limbs that end in each
_LEAST_NODES, _LEAST_SHARE = 3, 0.025  # of a limb
_MOST_TURNS = 4  # of limbs, one after the other
_LEAST_GAIN = 0.02  # of the distance, below which a turn is none
_POINTS = (250, 400)  # of the mesh and of the surface that are compared, about
_AXES = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1))
_ANGLES_DEG = (-120, -80, -40, 40, 80, 120, 170)
_LEAST = 1e-9  # share of the longest distance: a graph takes a length of 0 for no edge


def turned_limbs(
    graph: DeformationGraph,
    start: Pose,
    surface_in: Callable[[Pose], Surface],  # the mesh's points in a pose, one per vertex
    target: Surface,
    size: float,  # of the object, world units
) -> Pose:
    """Return the pose with those limbs turned, if any, that then come nearer to the target."""
    from scipy.spatial.transform import Rotation

    turns = Rotation.from_rotvec(
        [np.radians(angle) * np.divide(axis, np.linalg.norm(axis)) for axis in _AXES for angle in _ANGLES_DEG]
    ).as_matrix()
    goal = torch.from_numpy(target.features(size)[:: max(1, len(target.points) // _POINTS[1])])
    chosen = slice(None, None, max(1, len(graph.vertices) // _POINTS[0]))
    followed, pose = graph.followed[chosen, 0], start
    for _ in range(_MOST_TURNS):
        own = target._make(values[chosen] for values in surface_in(pose))
        apart = torch.cdist(torch.from_numpy(own.features(size)), goal)
        now = float(apart.amin(1).mean() + apart.amin(0).mean())
        tried = []
        for limb, joint in limbs(graph, pose.nodes):
            inside = limb[followed]
            part, rest = own._make(values[inside] for values in own), apart[~inside]
            if 0 < len(part.points) < len(own.points):
                distances = _distances(part, turns, joint, goal, size)  # [R, P, G]
                to_goal = (distances.amin(2).sum(1) + rest.amin(1).sum()) / len(own.points)
                to_mesh = torch.minimum(distances.amin(1), rest.amin(0)).mean(1)
                best = int((to_goal + to_mesh).argmin())
                tried.append((float(to_goal[best] + to_mesh[best]), limb, joint, turns[best]))
        if not tried:
            break
        least, limb, joint, turn = min(tried, key=lambda one: one[0])
        if not least <= (1 - _LEAST_GAIN) * now:
            break
        nodes = np.where(limb[:, None], (pose.nodes - joint) @ turn.T + joint, pose.nodes)
        pose = Pose(np.where(limb[:, None, None], turn @ pose.rotations, pose.rotations), nodes)
    return pose


def _distances(
    part: Surface, turns: np.ndarray, joint: np.ndarray, goal: torch.Tensor, size: float
) -> torch.Tensor:
    """Return how far the part's points are from the goal's after every turn, [R, P, G]."""
    points = (part.points - joint) @ turns.transpose(0, 2, 1) + joint
    normals = part.normals @ turns.transpose(0, 2, 1)
    colours = np.broadcast_to(part.colours, points.shape)
    moved = part._make(values.reshape(-1, 3) for values in (points, normals, colours))
    return torch.cdist(torch.from_numpy(moved.features(size)), goal).unflatten(0, points.shape[:2])


def limbs(graph: DeformationGraph, nodes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield parts of a graph whose nodes are at [M, 3]: which nodes they have, [M], and their joints [3]."""
    from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree

    count, (here, there) = len(nodes), graph.edges.T
    straight = np.linalg.norm(nodes[:, None] - nodes, axis=-1)
    farthest = straight.max()
    if count < 2 * _LEAST_NODES or farthest == 0:
        return
    # Loose parts hang on what is nearest: a tree takes the graph's own edges first. A whole part comes before
    # what it hangs on.
    tree = straight + _LEAST * farthest
    tree[here, there] = _LEAST * farthest / 2
    bridges = np.array((minimum_spanning_tree(tree) >= _LEAST * farthest).nonzero())
    lengths = np.zeros((count, count))
    lengths[here, there] = np.maximum(straight[here, there], _LEAST * farthest)
    lengths[tuple(np.concatenate([bridges, bridges[::-1]], axis=1))] = farthest
    here, there = lengths.nonzero()
    ways = dijkstra(lengths, directed=False)
    tips = [int(ways.mean(1).argmax())]
    while len(tips) < min(_TIPS, count):
        tips.append(int(ways[tips].min(0).argmax()))
    sizes = np.arange(max(_LEAST_NODES, round(_LEAST_SHARE * count)), count // 2 + 1)
    for tip in tips:
        rank = ways[tip].argsort(kind="stable").argsort()
        # An edge is cut by limbs of more nodes than its nearer end's rank, but not than its farther end's.
        first, last = np.minimum(rank[here], rank[there]), np.maximum(rank[here], rank[there])
        cut = np.cumsum(
            np.bincount(first + 1, minlength=count + 1) - np.bincount(last + 1, minlength=count + 1)
        )
        for some in np.array_split(sizes, min(_CUTS, len(sizes))):
            limb = rank < some[(cut[some] / some**0.5).argmin()]
            across = limb[here] & ~limb[there]
            yield limb, (nodes[here[across]].mean(0) + nodes[there[across]].mean(0)) / 2
