"""Motion between frames: the surface of each, bent onto the next, carries matter from any time to both.

Between frames the mesh's edges turn and stretch evenly, and its vertices fit them best. Source: Alexa,
Cohen-Or and Levin 2000, "As-Rigid-As-Possible Shape Interpolation". Matter follows its nearest vertices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from ...stored import Fields, Tensors
from ..scene import Scene4D, centred
from .surface import surface_at, surface_level, vertex_normals
from .track import Search, Tracker, diagonal, spread_points

_log = logging.getLogger(__name__)

_RESOLUTION, _FACES = 40, 2000  # of the surfaces that are tracked: motion needs no fine ones
_REACH = 0.05  # share of the object's size up to which matter outside the mesh goes with it
_LEAST_REACH = 1e-6  # in files, world units
_NEIGHBOURS = 4  # vertices that a point follows
_NEAR = Search(steps=6, fitting=2, pulling=1200, dense=8000)
_FAR, _LIMBS = _NEAR._replace(farthest=0.5), _NEAR._replace(limbs=True)
# One after the other, as long as more of a surface is lost than the share, forth or back: what is folded
# away at one of the frames is told apart only at the other.
_SEARCHES = (
    *((0.005, _NEAR, True), (0.005, _FAR, True), (0.005, _NEAR, False), (0.005, _FAR, False)),
    *((0.02, _LIMBS, True), (0.02, _LIMBS, False)),
)
_HOLD = 1e-3  # how much vertices are drawn to the straight way, against the edges' say
_POINTS, _WORTH_SAYING = 4000, 0.02  # of a frame's surface that are looked at; share of them that is told of


@dataclass(frozen=True)
class Posed:
    """The mesh at one time; float64."""

    points: np.ndarray  # [N, 3] world units, the object's path left out
    rotations: np.ndarray  # [N, 3, 3] of the vertices, from their rest
    normals: np.ndarray  # [N, 3] unit, outward

    def heights(self, points: np.ndarray) -> np.ndarray:
        """Return how far points [P, 3] are from the nearest vertex, [P] world units; below 0 inside."""
        distance, index = self._tree.query(points)
        inside = np.einsum("pi,pi->p", points - self.points[index], self.normals[index]) < 0
        return np.where(inside, -distance, distance)

    def carries(self, points: np.ndarray, ends: Sequence[Posed]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return where points [P, 3] are in other poses, [P, 3], and how they have turned, [P, 3, 3]."""
        count = min(_NEIGHBOURS, len(self.points))
        distance, index = (part.reshape(len(points), count) for part in self._tree.query(points, count))
        weights = 1 / (distance**2 + 1e-3 * (distance**2).mean(1, keepdims=True) + 1e-12)
        weights /= weights.sum(1, keepdims=True)
        offsets, found = points[:, None] - self.points[index], []
        for end in ends:
            turns = end.rotations @ self.rotations.transpose(0, 2, 1)
            moved = end.points[index] + np.einsum("pkij,pkj->pki", turns[index], offsets)
            found.append(((weights[..., None] * moved).sum(1), turns[index[:, 0]]))
        return found

    @cached_property
    def _tree(self):
        from scipy.spatial import KDTree

        return KDTree(self.points)


@dataclass(frozen=True)
class Interval:
    """The surface of one frame, and where it is at the next; tensors on the CPU."""

    positions: Tensor  # [2, N, 3] float32, world units, the object's path left out
    turns: Tensor  # [N, 4] float32, unit quaternions wxyz of the vertices from frame to frame
    faces: Tensor  # [F, 3] int64

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from (("positions", self.positions), ("turns", self.turns), ("faces", self.faces))

    def posed(self, share: float) -> Posed:
        """Return the mesh at a share 0..1 of the way from the first frame to the next."""
        from scipy.spatial.transform import Rotation

        start, end = self.positions.double().numpy()
        now = Rotation.from_rotvec(share * self._turns).as_matrix()
        points = end if share == 1 else start
        if 0 < share < 1:
            here, there = self._edges.T
            # Edges of the next frame as they are before their first vertex turns.
            turns = Rotation.from_rotvec(self._turns).as_matrix()
            after = np.einsum("eji,ej->ei", turns[here], end[there] - end[here])
            rest = (1 - share) * (start[there] - start[here]) + share * after
            differences, solver = self._system
            wanted = np.einsum("eij,ej->ei", now[here], rest)
            points = solver.solve(differences.T @ wanted + _HOLD * ((1 - share) * start + share * end))
        return Posed(points, now, vertex_normals(points, self.faces.numpy()))

    @cached_property
    def _turns(self) -> np.ndarray:
        """The turns as rotation vectors [N, 3]; neighbours turn the same way round, past half a turn, too."""
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import breadth_first_order, connected_components

        quats = self.turns.double().numpy().copy()
        linked = csr_array((np.ones(len(self._edges)), tuple(self._edges.T)), (len(quats), len(quats)))
        _, parts = connected_components(linked, directed=False)
        for part in range(parts.max() + 1):
            first = np.where(parts == part, np.abs(quats[:, 0]), -1).argmax()
            quats[first] *= 1 if quats[first, 0] >= 0 else -1
            order, before = breadth_first_order(linked, first, directed=False)
            for vertex in order[1:]:
                quats[vertex] *= 1 if quats[vertex] @ quats[before[vertex]] >= 0 else -1
        lengths = np.linalg.norm(quats[:, 1:], axis=1, keepdims=True)
        return 2 * np.arctan2(lengths, quats[:, :1]) * quats[:, 1:] / np.maximum(lengths, 1e-12)

    @cached_property
    def _edges(self) -> np.ndarray:
        """The pairs of vertices that share an edge, in both orders, [E, 2]."""
        faces = self.faces.numpy()
        pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        return np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)

    @cached_property
    def _system(self):
        """What takes vertices to edges [E, N], and the solver of its normal equations."""
        from scipy.sparse import csr_array, eye_array
        from scipy.sparse.linalg import splu

        here, there = self._edges.T
        rows, ones = np.arange(len(here)), np.ones(len(here))
        shape = len(rows), self.positions.shape[1]
        differences = csr_array((ones, (rows, there)), shape) - csr_array((ones, (rows, here)), shape)
        return differences, splu((differences.T @ differences + _HOLD * eye_array(shape[1])).tocsc())


@dataclass(frozen=True)
class Motion:
    """How the matter of a scene goes from every frame to the next."""

    intervals: tuple[Interval, ...]  # [T - 1]
    reach: float  # world units outside the surfaces up to which matter goes with them
    lost: tuple[float, ...]  # [T - 1] share of the surface that comes or goes on the way: it fades

    @classmethod
    def from_tensors(cls, tensors: Tensors, header: Fields, n_frames: int) -> Motion:
        """Return what `saved` gave; ValueError for anything else."""
        intervals = []
        for t in range(n_frames - 1):
            own = tensors.under(f"{t}.")
            positions, faces = (
                own.shaped("positions", 2, None, 3).float(),
                own.shaped("faces", None, 3).long(),
            )
            count = positions.shape[1]
            if int(faces.min()) < 0 or int(faces.max()) >= count:
                raise ValueError(
                    f"Expected faces of {count} vertices in {tensors.place}; got vertices {int(faces.min())} "
                    f"to {int(faces.max())}. Make the file anew."
                )
            turns = own.shaped("turns", count, 4).float()
            if (lengths := turns.norm(dim=1)).min() < 0.5 or lengths.max() > 2:
                raise ValueError(
                    f"Expected unit quaternions as turns in {tensors.place}; got lengths of "
                    f"{float(lengths.min()):g} to {float(lengths.max()):g}. Make the file anew."
                )
            intervals.append(Interval(positions, turns, faces))
        lost = tuple(header.numbers("lost", n_frames - 1).tolist())
        return cls(tuple(intervals), header.number("reach", _LEAST_REACH), lost)

    def saved(self) -> tuple[dict[str, Tensor], dict]:
        """Return the tensors and the header that `from_tensors` reads."""
        tensors = {f"{t}.{key}": one for t, own in enumerate(self.intervals) for key, one in own.tensors()}
        return tensors, {"reach": self.reach, "lost": list(self.lost)}


def motion_of(scene: Scene4D, callback: Callable[[int, int, None], None] | None = None) -> Motion | None:
    """Return the motion of a scene, and log what it does not explain; None, logged too, where none is found.

    ``callback`` hears (steps done, all steps, None) and may raise to cancel.
    """
    try:
        motion = _tracked(centred(scene), callback)
    except ValueError as error:
        _log.warning("Between frames this scene fades, as no motion was found: %s", error)
        return None
    if worst := [f"{t + 1} ({100 * s:.0f} %)" for t, s in enumerate(motion.lost) if s > _WORTH_SAYING]:
        _log.warning(
            "Part of the surface follows no motion and fades on the way to the frames %s.", ", ".join(worst)
        )
    else:
        _log.info("The motion between frames explains the whole surface.")
    return motion


def _tracked(scene: Scene4D, callback: Callable[[int, int, None], None] | None) -> Motion:
    times, level, frames, done = scene.times, surface_level(scene, _RESOLUTION), [], 0

    def advance(steps: int = 1) -> None:
        nonlocal done
        done += steps
        if callback is not None:
            callback(done, 2 * len(times) - 1, None)

    for time in times:
        frames.append(surface_at(scene, time, _RESOLUTION, _FACES, level=level))
        advance()
    reach = _REACH * max(diagonal(frame) for frame in frames)
    found, lost = list[Interval](), []
    for t in range(len(times) - 1):
        expected = None
        if found:
            # As the motion before leads.
            ((expected, _),) = (
                found[-1].posed(1).carries(frames[t].vertices.double().numpy(), [_ahead(found[-1])])
            )
        tried = []
        for enough, search, forth in _SEARCHES:
            if min((missing for missing, _ in tried), default=1) < enough:
                break
            advance(0)  # so that all may be cancelled
            here, there = (t, t + 1) if forth else (t + 1, t)
            both = (times[here], times[there]), (frames[here], frames[there])
            # Where the motion before leads may be far off, as where a limb turns back.
            tracker = Tracker(scene, *both, 0, None if tried else expected, search)
            positions, turns = tracker.positions(lambda: None), tracker.turns(1)
            if not forth:
                positions, turns = positions.flip(0), turns * turns.new_tensor([1, -1, -1, -1])
            interval = Interval(positions, turns, frames[here].faces.clone())
            surface = spread_points(frames[there], _POINTS).points
            tried.append((_lost(interval.posed(there - t), surface, reach), interval))
        missing, best = min(tried, key=lambda one: one[0])
        lost.append(missing)
        found.append(best)
        advance()
    return Motion(tuple(found), reach, tuple(lost))


def _lost(moved: Posed, surface: np.ndarray, reach: float) -> float:
    """Return the share of a surface that a mesh moved onto it leaves bare, or of the mesh that misses it."""
    from scipy.spatial import KDTree

    bare = float((moved.heights(surface) >= reach).mean())
    return max(bare, float((KDTree(surface).query(moved.points)[0] > reach).mean()))


def _ahead(interval: Interval) -> Posed:
    """Return the mesh one frame further, where every vertex moves and turns on as it did."""
    end = interval.posed(1)
    start = interval.positions[0].double().numpy()
    return replace(
        end,
        points=end.points + np.einsum("nij,nj->ni", end.rotations, end.points - start),
        rotations=end.rotations @ end.rotations,
    )
