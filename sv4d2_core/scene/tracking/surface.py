"""The surface of a scene at one time, as a mesh, by scikit-image, trimesh and fast-simplification.

Source: Lorensen and Cline 1987 (marching cubes), Taubin 1995 (smoothing that does not shrink), Garland and
Heckbert 1997 (decimation by quadrics).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...video.pictures import pick_frames
from ..scene import Scene4D, own_cameras
from .mesh import Mesh, check_finite

if TYPE_CHECKING:
    from trimesh import Trimesh

RESOLUTIONS = (16, 512)
_POINTS = 1 << 20  # of a grid that densities are asked for together


@dataclass(frozen=True)
class DensityGrid:
    """Densities on a grid of cubes; beyond its border there is nothing."""

    values: Tensor  # [X, Y, Z] float32 on the CPU, 0 on the border
    low: Tensor  # [3] the world place of entry 0, 0, 0
    step: float  # world units between neighbours

    def at(self, points: Tensor) -> Tensor:
        """Return the densities at world points [..., 3], linear between the grid's, [...]."""
        sides = torch.tensor(self.values.shape) - 1
        unit = (points.float() - self.low) / (self.step * sides) * 2 - 1
        # The first axis of a sampled volume is the last of its coordinates.
        sampled = F.grid_sample(
            self.values[None, None], unit.flip(-1).reshape(1, 1, 1, -1, 3), align_corners=True
        )
        return sampled.view(points.shape[:-1])


def check_resolution(resolution: int) -> None:
    """Raise ValueError for a number of steps along the longest side out of its range."""
    if not RESOLUTIONS[0] <= resolution <= RESOLUTIONS[1]:
        raise ValueError(
            f"Expected a resolution of {RESOLUTIONS[0]} to {RESOLUTIONS[1]} steps; got {resolution}. 128 "
            f"suits views of 576 pixels."
        )


def density_grid(scene: Scene4D, time: float, resolution: int) -> DensityGrid:
    """Return the scene's densities on a grid over its bounds, ``resolution`` steps along the longest side.

    Raises ValueError: a resolution out of range, nothing at this time, densities that are not finite.
    """
    check_resolution(resolution)
    moment = f"scene at time {time:g}"
    bounds = scene.bounds(time).float()
    check_finite(moment, bounds=bounds)
    low, sides = bounds[0], bounds[1] - bounds[0]
    step = float(sides.max()) / resolution
    # One more on either side, so that every surface is closed.
    counts = [int(count) for count in (sides / step - 1e-4).ceil() + 3]
    low = low - step
    axes = [start + step * torch.arange(count) for start, count in zip(low, counts, strict=True)]
    x, y, z = (axis[1:-1] for axis in axes)
    found = []  # layer after layer: all points at once would be many times the grid
    for layers in x.split(max(_POINTS // (len(y) * len(z)), 1)):
        points = torch.stack(torch.meshgrid(layers, y, z, indexing="ij"), dim=-1)
        found.append(scene.densities(points.flatten(0, 2), time).cpu().float().view(points.shape[:3]))
    values = F.pad(torch.cat(found), (1,) * 6)
    check_finite(moment, densities=values)
    return DensityGrid(values, low, step)


_SIZE, _TIMES = 64, 3  # of the pictures that are compared
_LEVELS, _LOWEST = 48, 1e-3  # tried, from the highest density down to this share of it
_ALIKE = 0.995  # share of the best agreement that is as good; the middle of such levels is taken


def surface_level(scene: Scene4D, resolution: int = 96) -> float:
    """Return the density whose surface has the silhouettes nearest to those of the scene's pictures.

    A pixel is inside where the highest density along its ray reaches the level, or its opacity 0.5. One level
    serves the whole scene, so that the surface does not breathe. Raises ValueError for nothing to see.
    """
    cameras = own_cameras(scene)
    origins, directions = cameras.rays(_SIZE)
    peaks, seen = [], []
    for time in (scene.times[i] for i in pick_frames(len(scene.times), _TIMES)):
        grid = density_grid(scene, time, resolution)
        seen.append(scene.render(cameras, [time], _SIZE, normals=False).alpha[0] >= 0.5)
        peaks += [_peak(grid, eye, rays) for eye, rays in zip(origins, directions, strict=True)]
    peak, visible = torch.stack(peaks), torch.cat(seen)
    if not visible.any() or not float(peak.max()) > 0:
        raise ValueError(
            f"Expected a scene whose pictures show something; {int(visible.sum())} of {visible.numel()} "
            f"pixels of its {scene.cameras.n_views + 1} views are opaque. Fit the scene with more steps."
        )
    levels = float(peak.max()) * torch.logspace(0, math.log10(_LOWEST), _LEVELS)
    inside = [peak >= level for level in levels]
    # Intersection over union.
    overlaps = torch.stack([(x & visible).sum() / (x | visible).sum().clamp(min=1) for x in inside])
    good = (overlaps >= _ALIKE * overlaps.max()).nonzero()[:, 0]
    return float(levels[good[len(good) // 2]])


def _peak(grid: DensityGrid, eye: Tensor, directions: Tensor) -> Tensor:
    """Return the highest density along rays [H, W, 3] from an eye [3], [H, W]."""
    middle = grid.low + grid.step * (torch.tensor(grid.values.shape) - 1) / 2
    reach = grid.step * math.dist(grid.values.shape, (0, 0, 0)) / 2
    count = math.ceil(2 * reach / grid.step)
    distances = float((eye - middle).norm()) + torch.linspace(-reach, reach, count)
    peak = torch.zeros(directions.shape[:2])
    for distance in distances.clamp(min=0):
        peak = torch.maximum(peak, grid.at(eye + distance * directions))
    return peak


_LEAST_SHARE = 0.02  # of the largest connected part's area; smaller parts are specks
_LEAST_FACES = 4


def surface_at(
    scene: Scene4D,
    time: float,  # in 0..1
    resolution: int = 128,  # steps of the grid along the longest side of the object, 16 to 512
    faces: int = 20_000,  # triangles at most
    smoothing: int = 10,  # iterations of Taubin's filter
    level: float | None = None,  # density of the surface; None: `surface_level`
) -> Mesh:
    """Return the surface of a scene at a time, closed and turned outwards, with the scene's colours.

    Raises ValueError: an argument out of range, nothing in the scene, densities that are not finite.
    """
    if not 0 <= time <= 1 or faces < _LEAST_FACES or smoothing < 0:
        raise ValueError(
            f"Expected a time in 0..1, at least {_LEAST_FACES} faces and smoothing >= 0; got {time:g}, "
            f"{faces} and {smoothing}."
        )
    from fast_simplification import simplify
    from trimesh import Trimesh
    from trimesh.smoothing import filter_taubin

    grid = density_grid(scene, time, resolution)
    level = surface_level(scene) if level is None else level
    mesh = _without_specks(_isosurface(grid, level, time))
    if smoothing:
        filter_taubin(mesh, iterations=smoothing)
    if len(mesh.faces) > faces:
        points, fewer, *_ = simplify(mesh.vertices, mesh.faces, target_count=faces)
        mesh = Trimesh(points, fewer, process=True)
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32)
    triangles = torch.tensor(mesh.faces, dtype=torch.int64)
    return Mesh(vertices, triangles, surface_colours(scene, time, vertices, triangles, grid.step))


def surface_colours(scene: Scene4D, time: float, vertices: Tensor, faces: Tensor, depth: float) -> Tensor:
    """Return a scene's colours, [N, 3] in 0..1, ``depth`` below a surface, where it is sure of them."""
    inward = torch.from_numpy(vertex_normals(vertices.double().numpy(), faces.numpy())).float()
    return scene.colours(vertices - depth * inward, time).cpu().float().clamp(0, 1)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return unit outward normals [N, 3] of a mesh, the faces' weighted by their areas."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    across, count = np.cross(b - a, c - a), len(vertices)
    sums = [np.bincount(faces.ravel(), np.repeat(across[:, axis], 3), minlength=count) for axis in range(3)]
    normals = np.stack(sums, axis=1)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def welded_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return unit normals [N, 3] float32, the same for vertices at one place: no seam of a texture shows."""
    places, index = np.unique(vertices.double().numpy(), axis=0, return_inverse=True)
    index = index.reshape(-1)
    return torch.from_numpy(vertex_normals(places, index[faces.numpy()])[index]).float()


def _isosurface(grid: DensityGrid, level: float, time: float) -> Trimesh:
    """Return the surface at which the density is the level, without hollows, in the world."""
    from scipy.ndimage import binary_fill_holes
    from skimage.measure import marching_cubes
    from trimesh import Trimesh

    # The opacity of a short way has no peaks, so that the surface lies well between the grid's points.
    opacity = -torch.expm1(grid.values * (np.log(0.5) / level)).numpy()
    solid = opacity >= 0.5
    if not solid.any():
        raise ValueError(
            f"Expected an object at time {time:g}; the highest density, {float(grid.values.max()):.3g}, is "
            f"below the surface's level {level:.3g}. Fit the scene with more steps, or leave this time out."
        )
    hollow = np.asarray(binary_fill_holes(solid)) & ~solid
    opacity = np.where(hollow, 1, opacity).astype(np.float32)
    vertices, faces, *_ = marching_cubes(opacity, 0.5, spacing=(grid.step,) * 3, gradient_direction="ascent")
    mesh = Trimesh(vertices + grid.low.numpy(), faces, process=True)
    if mesh.volume < 0:
        mesh.invert()
    return mesh


def _without_specks(mesh: Trimesh) -> Trimesh:
    from trimesh.graph import connected_component_labels

    labels = connected_component_labels(mesh.face_adjacency, node_count=len(mesh.faces))
    areas = np.bincount(labels, weights=mesh.area_faces)
    mesh.update_faces((areas >= _LEAST_SHARE * areas.max())[labels])
    mesh.remove_unreferenced_vertices()
    return mesh
