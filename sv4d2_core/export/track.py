"""Bends a mesh by its deformation graph until it lies on another surface.

Nearest points with alike normals and colours pull in both directions, across the surface more than along it,
while neighbouring nodes stay as rigid to each other as they can, ever less strictly.
Source: Li, Sumner and Pauly 2008; Amberg, Romdhani and Vetter 2007 (non-rigid registration whose stiffness
falls); Sorkine and Alexa 2007 (as rigid as possible).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..scene.scene import Scene4D
from .graph import DeformationGraph, Pose, Pulls, Springs, deformation_graph, improved
from .mesh import Mesh, MeshAnimation
from .surface import surface_at, surface_colours, surface_level, vertex_normals

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


_ROUNDS = 3
# How often what vertices ask for is averaged with their neighbours', per round.
_SMOOTHING = 5
# A surface further away than this share of the object is another one.
_FARTHEST_OF_SETTLING = 0.03


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
        asks = (alike & (np.linalg.norm(away, axis=1) < _FARTHEST_OF_SETTLING * size)).astype(float)
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


# A mesh that is further from the surface than this share of the object has lost it.
DEVIATION_LIMIT = 0.02
# Nodes of the graph: so many, but not more than one for several vertices.
_NODES = 600
_VERTICES_PER_NODE = 8
# Points of a frame's surface that pull, and points that deviations are measured with.
_PULLING = 4000
_MEASURING = 40_000
# Sweeps over all frames that make the motion even, and how strongly.
_SWEEPS = 2
_STEADINESS = 0.05
_Callback = Callable[[int, int, None], None]


@dataclass(frozen=True)
class Tracked:
    """A mesh that moves, and how far it is from the surfaces that it should lie on.

    Args:
        animation: the mesh, one set of positions per frame.
        deviation: [T] mean distance between the mesh and the frame's own surface, both ways, in shares of
            the diagonal of the largest frame's box.
        frames: T meshes, the frames' own surfaces.
        anchor: the frame that the mesh was taken from.
    """

    animation: MeshAnimation
    deviation: tuple[float, ...]
    frames: tuple[Mesh, ...]
    anchor: int

    @property
    def lost(self) -> tuple[int, ...]:
        """The frames whose surface the mesh cannot follow, for example since parts touch or come apart."""
        return tuple(t for t, share in enumerate(self.deviation) if share > DEVIATION_LIMIT)

    @property
    def follows(self) -> bool:
        """Whether the mesh follows all frames; else a mesh per frame shows the scene better."""
        return not self.lost


def track(
    scene: Scene4D,
    times: Sequence[float],
    resolution: int = 128,
    faces: int = 20_000,
    anchor: int | None = None,
    *,
    smoothing: int = 10,
    level: float | None = None,
    callback: _Callback | None = None,
) -> Tracked:
    """Return one mesh that moves as the scene does.

    Args:
        scene: to be followed.
        times: [T] in 0..1, rising.
        resolution: see `surface_at`.
        faces: see `surface_at`.
        anchor: the frame whose surface is taken; None: the middle one.
        smoothing: see `surface_at`.
        level: see `surface_at`.
        callback: called with (steps done, all steps, None); may raise to cancel.

    Raises:
        ValueError: no times or times that do not rise, no such frame, whatever `surface_at` refuses.
    """
    times = tuple(times)
    anchor = len(times) // 2 if anchor is None else anchor
    if not times or any(a >= b for a, b in zip(times, times[1:], strict=False)):
        raise ValueError(f"Expected times that rise, one at least; got {list(times)}.")
    if not 0 <= anchor < len(times):
        raise ValueError(f"Expected an anchor frame from 0 to {len(times) - 1}; got {anchor}.")
    progress = _Progress(callback, len(times) * (2 + _SWEEPS))
    level = surface_level(scene) if level is None else level
    frames = []
    for time in times:
        frames.append(surface_at(scene, time, resolution, faces, smoothing, level))
        progress.advance()
    positions = _Following(scene, times, frames, anchor, progress).positions()
    template = frames[anchor]
    depth = float((template.vertices.amax(0) - template.vertices.amin(0)).max()) / resolution
    colours = _mean_colours(scene, times, positions, template.faces, depth)
    duration = max(scene.n_frames - 1, 1) / scene.fps
    animation = MeshAnimation(positions, template.faces, colours, times, duration)
    return Tracked(animation, _deviations(animation, frames), tuple(frames), anchor)


class _Progress:
    """Counts steps and tells a callback."""

    def __init__(self, callback: _Callback | None, total: int) -> None:
        self.callback, self.total, self.done = callback, total, 0

    def advance(self) -> None:
        self.done += 1
        if self.callback is not None:
            self.callback(self.done, self.total, None)


class _Following:
    """The search for the poses of a mesh, frame by frame outward from the anchor."""

    def __init__(
        self, scene: Scene4D, times: tuple[float, ...], frames: list[Mesh], anchor: int, progress: _Progress
    ) -> None:
        self.scene, self.times, self.frames, self.anchor = scene, times, frames, anchor
        self.progress = progress
        self.template = template = frames[anchor]
        vertices = template.vertices.numpy()
        nodes = max(1, min(_NODES, len(vertices) // _VERTICES_PER_NODE))
        self.graph: DeformationGraph = deformation_graph(vertices, template.faces.numpy(), nodes)
        self.surfaces: list[Surface] = [spread_points(frame, _PULLING) for frame in frames]
        self.size = max(diagonal(frame) for frame in frames)
        self.poses: list[Pose] = [self.graph.rest] * len(times)

    def positions(self) -> torch.Tensor:
        """Return the vertices of all frames, [T, N, 3] float32."""
        last = len(self.times) - 1
        self.progress.advance()
        for step, frames in ((1, range(self.anchor + 1, last + 1)), (-1, range(self.anchor - 1, -1, -1))):
            for frame in frames:
                self._follow(frame, step)
                self.progress.advance()
        for _ in range(_SWEEPS):
            for frame in range(last + 1):
                self._steady(frame)
                self.progress.advance()
        placed = [self.graph.posed(pose) for pose in self.poses]
        for frame in range(last + 1):
            if frame != self.anchor:
                dense = spread_points(self.frames[frame], _MEASURING)
                placed[frame] = settled(placed[frame], self.template.faces.numpy(), dense, self.size)
        return torch.from_numpy(np.stack(placed)).float()

    def _follow(self, frame: int, step: int) -> None:
        """Find a frame's pose from that of the frame before it on the way from the anchor."""
        before = frame - step
        guesses = [self.poses[before], self._shifted(before, frame), self._carried(before, frame)]
        if before != self.anchor:
            guesses.append(self._drifted(before, step))
        start = min(guesses, key=lambda pose: self._distance(pose, frame))
        self.poses[frame] = register(self.graph, self.template, start, self.surfaces[frame], self.size)

    def _steady(self, frame: int) -> None:
        """Draw a frame to where its neighbours want it, as far as its surface lets it."""
        if frame == self.anchor or not 0 < frame < len(self.times) - 1:
            return
        self.poses[frame] = register(
            self.graph,
            self.template,
            self.poses[frame],
            self.surfaces[frame],
            self.size,
            steps=3,
            stiffness=(0.03, 0.03),
            steady=self._between(frame),
            steadiness=_STEADINESS,
        )

    def _between(self, frame: int) -> np.ndarray:
        """Return where the nodes of a frame are on a smooth curve through its neighbours, [M, 3].

        The curve is a cubic through two frames on either side, which lets motion turn; at the ends a line.
        """
        one = self.poses[frame - 1].nodes + self.poses[frame + 1].nodes
        if not 1 < frame < len(self.times) - 2:
            return one / 2
        return (4 * one - self.poses[frame - 2].nodes - self.poses[frame + 2].nodes) / 6

    def _shifted(self, before: int, frame: int) -> Pose:
        """Return the pose that goes as a whole with the middle of the surface."""
        way = self.surfaces[frame].points.mean(0) - self.surfaces[before].points.mean(0)
        return Pose(self.poses[before].rotations, self.poses[before].nodes + way)

    def _carried(self, before: int, frame: int) -> Pose:
        """Return the pose to which the scene's own motion takes the mesh."""
        vertices = torch.from_numpy(self.graph.posed(self.poses[before])).float()
        moved = self.scene.carried(vertices, self.times[before], self.times[frame])
        return fit_points(self.graph, self.poses[before], moved.double().numpy())

    def _drifted(self, before: int, step: int) -> Pose:
        """Return the pose to which the motion of the frames before leads."""
        earlier, now = self.poses[before - step], self.poses[before]
        turn = now.rotations @ earlier.rotations.transpose(0, 2, 1)
        return Pose(turn @ now.rotations, 2 * now.nodes - earlier.nodes)

    def _distance(self, pose: Pose, frame: int) -> float:
        """Return the mean distance between the mesh in a pose and a frame's surface, both ways."""
        own = posed_surface(self.graph, self.template, pose)
        return _both_ways(own.features(self.size), self.surfaces[frame].features(self.size))


def diagonal(mesh: Mesh) -> float:
    """Return the diagonal of a mesh's box, world units."""
    return float((mesh.vertices.amax(0) - mesh.vertices.amin(0)).norm())


def _both_ways(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean distance to the nearest point, from either set of points to the other."""
    from scipy.spatial import KDTree

    return float(KDTree(one).query(other)[0].mean() + KDTree(other).query(one)[0].mean()) / 2


def _deviations(animation: MeshAnimation, frames: Sequence[Mesh]) -> tuple[float, ...]:
    """Return the mean distances between the mesh and the frames' own, in shares of the largest box."""
    size = max(diagonal(frame) for frame in frames)
    pairs = [
        (spread_points(animation.at(t), _MEASURING).points, spread_points(frame, _MEASURING).points)
        for t, frame in enumerate(frames)
    ]
    return tuple(_both_ways(*pair) / size for pair in pairs)


def _mean_colours(
    scene: Scene4D, times: Sequence[float], positions: torch.Tensor, faces: torch.Tensor, depth: float
) -> torch.Tensor:
    """Return the colours [N, 3] that the vertices have in the mean of all frames.

    What is in the dark, or hidden, at one frame is seen at others.
    """
    frames = zip(times, positions, strict=True)
    return torch.stack([surface_colours(scene, time, at, faces, depth) for time, at in frames]).mean(0)


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
