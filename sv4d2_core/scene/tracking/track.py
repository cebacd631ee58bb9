"""Registration of one mesh: its deformation graph bends it onto the surface of every frame.

Nearest points with alike normals and colours pull in both directions, across the surface more than along it,
while neighbouring nodes stay as rigid to each other as they can, ever less strictly. Source: Li, Sumner and
Pauly 2008; Amberg, Romdhani and Vetter 2007 (non-rigid registration whose stiffness falls); Sorkine and Alexa
2007 (as rigid as possible).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..scene import Scene4D
from .graph import Correspondences, DeformationGraph, Pose, Regulariser, deformation_graph, gauss_newton_step
from .limbs import turned_limbs
from .mesh import Mesh, MeshAnimation
from .surface import surface_at, surface_colours, surface_level, vertex_normals

# Stiffness of the first and the last step of a registration against points that pull with 1 in all.
_STIFFNESS = (3.0, 0.03)
_ALONG = 0.3  # share of the pull towards the point itself rather than its tangent plane
_FARTHEST, _FARTHEST_LAST = 0.15, 0.04  # of the object: within them points pull in the first and last step
# In the search for the nearest point opposite normals, and black and white, count as this far apart, in
# shares of the object. Without colours a head that turns would seem to stand still.
_NORMALS, _COLOURS = 0.1, 0.5
_LEAST_COSINE = 0.3
_MEMORY = 0.3  # of the anchor's shape in the rest shape; 1 would pull a turned head back like a spring


class Surface(NamedTuple):
    """Points spread over a mesh."""

    points: np.ndarray  # [P, 3] world units
    normals: np.ndarray  # [P, 3] unit, outward
    colours: np.ndarray  # [P, 3] in 0..1

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


def fit_points(graph: DeformationGraph, start: Pose, targets: np.ndarray, steps: int = 4) -> Pose:
    """Return the pose in which the vertices come nearest to targets [N, 3], one per vertex."""
    n = len(targets)
    data = Correspondences(np.arange(n), targets, np.zeros_like(targets), np.zeros(n), np.full(n, 1 / n))
    regulariser = Regulariser(graph.edges_at_rest(start, 1.0), 0.1, start.nodes, 0.0)
    pose = start
    for _ in range(steps):
        pose = gauss_newton_step(graph, pose, data, regulariser)
    return pose


def _correspondences(own: Surface, target: Surface, size: float, farthest: float) -> Correspondences:
    """Return what pulls vertices: their nearest target points, and those whose nearest they are."""
    from scipy.spatial import KDTree

    here, there = own.features(size), target.features(size)
    _, to_target = KDTree(there).query(here)
    _, to_vertex = KDTree(here).query(there)
    rows = np.concatenate([np.arange(len(here)), to_vertex])
    index = np.concatenate([to_target, np.arange(len(there))])
    weights = 0.5 / np.repeat([len(here), len(there)], [len(here), len(there)])
    alike = (own.normals[rows] * target.normals[index]).sum(1) > _LEAST_COSINE
    near = np.linalg.norm(own.points[rows] - target.points[index], axis=1) < farthest
    rows, index, weights = rows[alike & near], index[alike & near], weights[alike & near]
    return Correspondences(rows, target.points[index], target.normals[index], weights, _ALONG * weights)


def _between(ends: tuple[float, float], share: float) -> float:
    """Return a value between two, by a constant factor per step."""
    return ends[0] * (ends[1] / ends[0]) ** share


_ROUNDS = 3
_SMOOTHING = 5  # averages of what vertices ask for with their neighbours', per round
_FARTHEST_OF_PROJECTION = 0.03  # share of the object beyond which a surface is another one


def projected(vertices: np.ndarray, faces: np.ndarray, target: Surface, size: float) -> np.ndarray:
    """Return vertices [N, 3] of faces [F, 3] moved along their normals onto a dense surface near them."""
    from scipy.spatial import KDTree

    tree, mean = KDTree(target.points), _mean_of_neighbours(faces, len(vertices))
    for _ in range(_ROUNDS):
        normals = vertex_normals(vertices, faces)
        _, index = tree.query(vertices)
        away = target.points[index] - vertices
        alike = (normals * target.normals[index]).sum(1) > _LEAST_COSINE
        asks = (alike & (np.linalg.norm(away, axis=1) < _FARTHEST_OF_PROJECTION * size)).astype(float)
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


DEVIATION_LIMIT = 0.02  # share of the object; a mesh further from the surface has lost it
_NODES, _VERTICES_PER_NODE = 600, 8  # of the graph at most, and vertices per node at least
_MEASURING = 40_000  # points of a frame's surface that measure deviations
# Sweeps over all frames that make the motion even: their steps, their stiffness, and how strongly.
_SWEEPS, _SWEEP_STEPS, _SWEEP_STIFFNESS = 2, 3, (0.03, 0.03)
_STEADINESS = 0.05
_STILL = 1e-5  # share of the object below which a move is rounding


class Search(NamedTuple):
    """How far the search for a pose looks, and what it may cost."""

    steps: int = 12  # of a registration
    fitting: int = 4  # steps that make a pose of a guess
    pulling: int = 4000  # points of a frame's surface that pull
    dense: int = _MEASURING  # points that vertices are moved onto at the end
    farthest: float = _FARTHEST  # share of the object within which points pull, in the first step
    limbs: bool = False  # whether limbs may have turned too far for the nearest points to tell


_FULL = Search()


@dataclass(frozen=True)
class Tracked:
    """A mesh that moves, and how far it is from the surfaces that it should lie on."""

    animation: MeshAnimation
    # [T] mean distances to the frames' own surfaces, both ways, in shares of the largest frame's diagonal.
    deviation: tuple[float, ...]
    frames: tuple[Mesh, ...]  # the frames' own surfaces
    anchor: int  # the frame that the mesh was taken from

    @property
    def follows(self) -> bool:
        """Whether the mesh follows all frames; where parts touch or come apart, it cannot."""
        return max(self.deviation) <= DEVIATION_LIMIT


def track(
    scene: Scene4D,
    times: Sequence[float],  # [T] in 0..1, rising, one at least
    resolution: int = 128,  # these four as of `surface_at`
    faces: int = 20_000,
    *,
    smoothing: int = 10,
    level: float | None = None,
    callback: Callable[[int, int, None], None] | None = None,  # of steps done, all steps; may raise to cancel
) -> Tracked:
    """Return one mesh, the surface of the middle frame, that moves as the scene does.

    Its colours are the mean over all frames: what one hides, others show. Raises ValueError as `surface_at`.
    """
    times = tuple(times)
    steps = itertools.count(1)

    def advance() -> None:
        if callback is not None:
            callback(next(steps), len(times) * (2 + _SWEEPS), None)

    scene.learn_motion(times, callback)
    level = surface_level(scene) if level is None else level
    frames = []
    for time in times:
        frames.append(surface_at(scene, time, resolution, faces, smoothing, level))
        advance()
    anchor = len(times) // 2
    template = frames[anchor]
    tracker = Tracker(scene, times, frames, anchor)
    positions = tracker.positions(advance)
    depth = float((template.vertices.amax(0) - template.vertices.amin(0)).max()) / resolution
    colours = [
        surface_colours(scene, time, at, template.faces, depth)
        for time, at in zip(times, positions, strict=True)
    ]
    duration = max(scene.n_frames - 1, 1) / scene.fps
    animation = MeshAnimation(positions, template.faces, torch.stack(colours).mean(0), times, duration)
    deviation = []
    for t, frame in enumerate(frames):
        own, other = (spread_points(mesh, _MEASURING).points for mesh in (animation.at(t), frame))
        deviation.append(_both_ways(own, other) / tracker.size)
    return Tracked(animation, tuple(deviation), tuple(frames), anchor)


class Tracker:
    """The search for the poses of a mesh, frame by frame outward from the anchor."""

    def __init__(
        self,
        scene: Scene4D,
        times: tuple[float, ...],
        frames: Sequence[Mesh],
        anchor: int,
        expected: np.ndarray | None = None,  # [N, 3] where vertices may be at the frame after the anchor
        search: Search = _FULL,
    ) -> None:
        self.scene, self.times, self.frames, self.anchor = scene, times, frames, anchor
        self.expected, self.search = expected, search
        template = frames[anchor]
        self.faces, self.colours = template.faces.numpy(), template.colours.double().numpy()
        vertices = template.vertices.numpy()
        nodes = max(1, min(_NODES, len(vertices) // _VERTICES_PER_NODE))
        self.graph: DeformationGraph = deformation_graph(vertices, self.faces, nodes)
        self.surfaces: list[Surface] = [spread_points(frame, search.pulling) for frame in frames]
        self.size = max(diagonal(frame) for frame in frames)
        self.poses: list[Pose] = [self.graph.rest] * len(times)

    def positions(self, advance: Callable[[], None]) -> torch.Tensor:
        """Return the vertices of all frames, [T, N, 3] float32; ``advance`` is called after every step."""
        count = len(self.times)
        advance()
        for step, frames in ((1, range(self.anchor + 1, count)), (-1, range(self.anchor - 1, -1, -1))):
            for frame in frames:
                self._follow(frame, step)
                advance()
        for _ in range(_SWEEPS):
            for frame in range(count):
                self._steady(frame)
                advance()
        placed = [self.graph.posed(pose) for pose in self.poses]
        for frame in range(count):
            if frame != self.anchor:
                dense = spread_points(self.frames[frame], self.search.dense)
                placed[frame] = projected(placed[frame], self.faces, dense, self.size)
        return torch.from_numpy(np.stack(placed)).float()

    def turns(self, frame: int) -> torch.Tensor:
        """Return how the vertices have turned since the anchor, unit quaternions wxyz [N, 4] float32."""
        from scipy.spatial.transform import Rotation

        rotations = self.poses[frame].rotations[self.graph.followed]
        blended = np.einsum("nk,nkij->nij", self.graph.weights, rotations)
        quats = Rotation.from_matrix(nearest_rotations(blended)).as_quat()
        return torch.from_numpy(np.roll(quats, 1, axis=1)).float()

    def _follow(self, frame: int, step: int) -> None:
        """Find a frame's pose from that of the frame before it on the way from the anchor."""
        before = frame - step
        pose = self.poses[before]
        shift = self.surfaces[frame].points.mean(0) - self.surfaces[before].points.mean(0)
        vertices = torch.from_numpy(self.graph.posed(pose)).float()
        carried = self.scene.carried(vertices, self.times[before], self.times[frame])
        guesses = [
            pose,
            # As a whole with the middle of the surface.
            Pose(pose.rotations, pose.nodes + shift),
        ]
        if float((carried - vertices).abs().max()) > _STILL * self.size:
            # As the scene's own motion takes the mesh.
            guesses.append(fit_points(self.graph, pose, carried.double().numpy(), self.search.fitting))
        if before == self.anchor and step > 0 and self.expected is not None:
            guesses.append(fit_points(self.graph, pose, self.expected, self.search.fitting))
        if before != self.anchor:
            # As the motion of the frames before leads.
            earlier = self.poses[before - step]
            turn = pose.rotations @ earlier.rotations.transpose(0, 2, 1)
            guesses.append(Pose(turn @ pose.rotations, 2 * pose.nodes - earlier.nodes))
        target = self.surfaces[frame].features(self.size)
        start = min(guesses, key=lambda guess: _both_ways(self._posed(guess).features(self.size), target))
        if self.search.limbs:
            start = turned_limbs(self.graph, start, self._posed, self.surfaces[frame], self.size)
        self.poses[frame] = self._registered(start, frame, self.search.steps, _STIFFNESS, start.nodes, 0.0)

    def _steady(self, frame: int) -> None:
        """Draw a frame to where its neighbours want it, as far as its surface lets it."""
        if frame == self.anchor or not 0 < frame < len(self.times) - 1:
            return
        # A cubic through two frames on either side, which lets motion turn; at the ends a line.
        reach = 2 if 1 < frame < len(self.times) - 2 else 1
        around = [other for other in range(frame - reach, frame + reach + 1) if other != frame]
        places = np.zeros_like(self.poses[frame].nodes)
        for one in around:
            others = [self.times[other] for other in around if other != one]
            share = math.prod((self.times[frame] - t) / (self.times[one] - t) for t in others)  # Lagrange's
            places += share * self.poses[one].nodes
        self.poses[frame] = self._registered(
            self.poses[frame], frame, _SWEEP_STEPS, _SWEEP_STIFFNESS, places, _STEADINESS
        )

    def _registered(
        self,
        start: Pose,
        frame: int,
        steps: int,
        stiffness: tuple[float, float],  # of the first and the last step
        places: np.ndarray,  # [M, 3] where the nodes are drawn to
        steadiness: float,  # how strongly
    ) -> Pose:
        pose, edges = start, self.graph.edges_at_rest(start, _MEMORY)
        for step in range(steps):
            share = step / (steps - 1)
            farthest = self.size * _between((self.search.farthest, _FARTHEST_LAST), share)
            data = _correspondences(self._posed(pose), self.surfaces[frame], self.size, farthest)
            regulariser = Regulariser(edges, _between(stiffness, share), places, steadiness)
            pose = gauss_newton_step(self.graph, pose, data, regulariser)
        return pose

    def _posed(self, pose: Pose) -> Surface:
        vertices = self.graph.posed(pose)
        return Surface(vertices, vertex_normals(vertices, self.faces), self.colours)


def nearest_rotations(matrices: np.ndarray) -> np.ndarray:
    """Return the rotations [N, 3, 3] nearest to matrices; means of far turns may mirror (Kabsch 1976)."""
    u, _, vt = np.linalg.svd(matrices)
    u[..., -1] *= np.linalg.det(u @ vt)[:, None]
    return u @ vt


def diagonal(mesh: Mesh) -> float:
    """Return the diagonal of a mesh's box, world units."""
    return float((mesh.vertices.amax(0) - mesh.vertices.amin(0)).norm())


def _both_ways(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean distance to the nearest point, from either set of points to the other."""
    from scipy.spatial import KDTree

    return float(KDTree(one).query(other)[0].mean() + KDTree(other).query(one)[0].mean()) / 2


_POINTS = 20_000
_UNEVEN = 0.5  # of the mean step between frames by which steps may differ


class Coherence(NamedTuple):
    """Accelerations, world units per frame squared."""

    tracked: float  # mean of the vertices of a mesh that moves
    nearest: float  # mean of the points of every frame's own mesh that are nearest to those vertices
    largest: float  # of any vertex at any frame; a jump stands out


def coherence(animation: MeshAnimation, frames: Sequence[Mesh]) -> Coherence | None:
    """Return how far vertices leave a straight and even way, tracked and frame by frame.

    None below 3 frames, and where these are far from evenly spaced.

    The acceleration at frame t is |x(t + 1) - 2 x(t) + x(t - 1)|, averaged over vertices and frames. Meshes
    made anew per frame tremble; theirs is that of the points nearest to the tracked vertices.
    """
    steps = np.diff(animation.times)
    if len(frames) < 3 or np.ptp(steps) > _UNEVEN * steps.mean():
        return None
    positions = animation.positions.double().numpy()
    nearest = np.stack([_nearest(own, frame) for own, frame in zip(positions, frames, strict=True)])
    tracked, renewed = (np.linalg.norm(np.diff(way, 2, axis=0), axis=-1) for way in (positions, nearest))
    return Coherence(float(tracked.mean()), float(renewed.mean()), float(tracked.max()))


def _nearest(positions: np.ndarray, mesh: Mesh) -> np.ndarray:
    from scipy.spatial import KDTree

    spread = spread_points(mesh, _POINTS)
    index = KDTree(spread.points).query(positions)[1]
    normals = spread.normals[index]
    # On the plane through the spread point: the points themselves tremble by the gaps between them.
    heights = ((positions - spread.points[index]) * normals).sum(1, keepdims=True)
    return positions - heights * normals
