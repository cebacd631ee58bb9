"""The surface of a scene at one time, as a mesh.

Source: Lorensen and Cline 1987 (marching cubes), Taubin 1995 (smoothing that does not shrink), Garland and
Heckbert 1997 (decimation by quadrics); by scikit-image, trimesh and fast-simplification.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...fourd.scene import Scene4D
from .density_grid import DensityGrid, density_grid
from .level import surface_level
from .mesh import Mesh

if TYPE_CHECKING:
    from trimesh import Trimesh

# Connected parts with less than this share of the largest one's area are specks.
_LEAST_SHARE = 0.02
_LEAST_FACES = 4


def surface_at(
    scene: Scene4D,
    time: float,
    resolution: int = 128,
    faces: int = 20_000,
    smoothing: int = 10,
    level: float | None = None,
) -> Mesh:
    """Return the surface of a scene at a time, closed and turned outwards, with the scene's colours.

    Args:
        scene: to be looked at.
        time: in 0..1.
        resolution: steps of the grid along the longest side of the object, 16 to 512.
        faces: triangles at most.
        smoothing: iterations of Taubin's filter; 0: none.
        level: density of the surface, as `surface_level` finds it; None: let it.

    Raises:
        ValueError: an argument out of range, nothing in the scene, densities that are not finite.
    """
    if not 0 <= time <= 1 or faces < _LEAST_FACES or smoothing < 0:
        raise ValueError(
            f"Expected a time in 0..1, at least {_LEAST_FACES} faces and smoothing >= 0; got {time:g}, "
            f"{faces} and {smoothing}."
        )
    grid = density_grid(scene, time, resolution)
    level = surface_level(scene) if level is None else level
    mesh = _without_specks(_isosurface(grid, level, time))
    if smoothing:
        from trimesh.smoothing import filter_taubin

        filter_taubin(mesh, iterations=smoothing)
    mesh = _decimated(mesh, faces)
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32)
    triangles = torch.tensor(mesh.faces, dtype=torch.int64)
    return Mesh(vertices, triangles, surface_colours(scene, time, vertices, triangles, grid.step))


def surface_colours(scene: Scene4D, time: float, vertices: Tensor, faces: Tensor, depth: float) -> Tensor:
    """Return a scene's colours at a time, [N, 3] in 0..1, a little below a surface, where it is sure of them.

    Args:
        scene: to be looked at.
        time: in 0..1.
        vertices: [N, 3] world units.
        faces: [F, 3].
        depth: world units.
    """
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
    """Return unit normals [N, 3] float32, the same for vertices at one place: a texture's seams do not show.

    Args:
        vertices: [N, 3].
        faces: [F, 3].
    """
    places, index = np.unique(vertices.double().numpy(), axis=0, return_inverse=True)
    index = index.reshape(-1)
    return torch.from_numpy(vertex_normals(places, index[faces.numpy()])[index]).float()


def _isosurface(grid: DensityGrid, level: float, time: float) -> Trimesh:
    """Return the surface at which the density is the level, without hollows, in the world."""
    from skimage.measure import marching_cubes
    from trimesh import Trimesh

    opacity = _solid(grid.values, level)
    if not (opacity >= 0.5).any():
        raise ValueError(
            f"Expected an object at time {time:g}; the highest density, {float(grid.values.max()):.3g}, is "
            f"below the surface's level {level:.3g}. Fit the scene with more steps, or leave this time out."
        )
    vertices, faces, *_ = marching_cubes(opacity, 0.5, spacing=(grid.step,) * 3, gradient_direction="ascent")
    mesh = Trimesh(vertices + grid.low.numpy(), faces, process=True)
    if mesh.volume < 0:
        mesh.invert()
    return mesh


def _solid(density: Tensor, level: float) -> np.ndarray:
    """Return the opacity of a short way through densities, 0.5 at the level; closed hollows are filled.

    Unlike the density it has no peaks, so that the surface lies well between its neighbours.
    """
    from scipy.ndimage import binary_fill_holes

    opacity = -torch.expm1(density * (np.log(0.5) / level)).numpy()
    hollow = np.asarray(binary_fill_holes(opacity >= 0.5)) & (opacity < 0.5)
    return np.where(hollow, 1, opacity).astype(np.float32)


def _without_specks(mesh: Trimesh) -> Trimesh:
    """Return the parts of a mesh with a fair share of the largest one's area."""
    from trimesh.graph import connected_component_labels

    labels = connected_component_labels(mesh.face_adjacency, node_count=len(mesh.faces))
    areas = np.bincount(labels, weights=mesh.area_faces)
    mesh.update_faces((areas >= _LEAST_SHARE * areas.max())[labels])
    mesh.remove_unreferenced_vertices()
    return mesh


def _decimated(mesh: Trimesh, faces: int) -> Trimesh:
    """Return the mesh with a number of faces at most."""
    if len(mesh.faces) <= faces:
        return mesh
    from fast_simplification import simplify
    from trimesh import Trimesh

    points, triangles, *_ = simplify(mesh.vertices, mesh.faces, target_count=faces)
    return Trimesh(points, triangles, process=True)
