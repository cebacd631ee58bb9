"""One mesh that moves with a scene: the surface of one frame, laid on those of all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...fourd.scene import Scene4D
from .graph import DeformationGraph, Pose, deformation_graph
from .level import surface_level
from .mesh import Mesh, MeshAnimation
from .registration import Surface, fit_points, posed_surface, register, spread_points
from .settling import settled
from .surface import surface_at, surface_colours

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
