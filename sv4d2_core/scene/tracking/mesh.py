"""Meshes, still and moving, and the texture that is baked for one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mesh:
    """Triangles at one time; tensors on the CPU."""

    vertices: Tensor  # [N, 3] float32, world units, +y up
    faces: Tensor  # [F, 3] int64, counter-clockwise seen from outside
    colours: Tensor  # [N, 3] float32 in 0..1, display values (sRGB) as in the pictures


@dataclass(frozen=True)
class MeshAnimation:
    """One mesh whose vertices move; tensors on the CPU."""

    positions: Tensor  # [T, N, 3] float32, world units, +y up
    faces: Tensor  # as of `Mesh`
    colours: Tensor  # as of `Mesh`, at all times
    times: tuple[float, ...]  # [T] in 0..1, rising; the first frame of the clip is 0, the last is 1
    duration: float  # seconds from time 0 to time 1

    def at(self, frame: int) -> Mesh:
        return Mesh(self.positions[frame], self.faces, self.colours)

    def seconds(self) -> tuple[float, ...]:
        """Return when every frame is shown, from the first, for which players would otherwise wait."""
        return tuple((time - self.times[0]) * self.duration for time in self.times)


@dataclass(frozen=True)
class Texture:
    """A picture and where each vertex lies in it; tensors on the CPU."""

    uvs: Tensor  # [N, 2] float32 in 0..1, the origin at the picture's upper left as in glTF
    pixels: Tensor  # [S, S, 3] uint8, display values (sRGB)


def check_finite(what: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all numbers of the tensors, which errors call ``what``, are finite."""
    for name, values in tensors.items():
        if values is not None and (wrong := int((~values.isfinite()).sum())):
            raise ValueError(
                f"Expected finite {name}; {wrong} of {values.numel()} numbers in the {what} are NaN or "
                f"infinite. The fit has failed: fit the scene again, with a lower learning rate."
            )


def check_surface(mesh: Mesh | MeshAnimation, what: str) -> None:
    """Raise ValueError unless ``mesh``, which errors call ``what``, has faces and finite numbers."""
    positions = mesh.vertices[None] if isinstance(mesh, Mesh) else mesh.positions
    n_vertices = positions.shape[1]
    if 0 in (n_vertices, len(mesh.faces)):
        raise ValueError(
            f"Expected a surface; the {what} has {n_vertices} vertices and {len(mesh.faces)} faces. The "
            f"scene may be empty there: render it to see."
        )
    check_finite(what, positions=positions, colours=mesh.colours)


def srgb_to_linear(colours: np.ndarray) -> np.ndarray:
    """Return linear values, float64, of display values in 0..1, clipped. Source: IEC 61966-2-1."""
    values = np.clip(colours.astype(np.float64), 0.0, 1.0)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


TEXTURE_SIZES = (64, 8192)
_PADDING_TEXELS = 4
_FACES_AT_ONCE = 4096


def atlas_package(size: int) -> Any:
    """Return what lays surfaces flat for textures of a size; errors, before any work, as `bake_texture`."""
    if not TEXTURE_SIZES[0] <= size <= TEXTURE_SIZES[1]:
        raise ValueError(
            f"Expected a texture size of {TEXTURE_SIZES[0]} to {TEXTURE_SIZES[1]} pixels; got {size}. 1024 "
            f"suits 20,000 triangles."
        )
    try:
        return import_module("xatlas")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Expected the package xatlas, which lays the surface flat; it is not installed. Run "pip install '
            'xatlas", or export vertex colours.',
            name="xatlas",
        ) from error


def bake_texture(
    animation: MeshAnimation, size: int = 1024, *, frame: int = 0
) -> tuple[MeshAnimation, Texture]:
    """Return the animation with vertices doubled along seams, and its texture, painted in its colours.

    ``frame`` is laid flat; ``size`` is the picture's width, 64 to 8192 pixels. Raises ModuleNotFoundError
    without the optional package xatlas, ValueError for a size out of range, and as `check_surface`.
    """
    check_surface(animation, "animation")
    xatlas = atlas_package(size)
    atlas = xatlas.Atlas()
    vertices, faces = animation.positions[frame].numpy(), animation.faces.numpy()
    atlas.add_mesh(vertices.astype(np.float32), faces.astype(np.uint32))
    options = xatlas.PackOptions()
    options.resolution, options.padding = size, _PADDING_TEXELS
    atlas.generate(pack_options=options)
    # The old vertex of each new one [M], the faces between new ones [F, 3], and their uvs [M, 2].
    sources, new_faces, uvs = atlas[0]
    sources, new_faces, uvs = sources.astype(np.int64), new_faces.astype(np.int64), uvs.astype(np.float32)
    opened = replace(
        animation,
        positions=animation.positions[:, sources],
        faces=torch.from_numpy(new_faces),
        colours=animation.colours[sources],
    )
    pixels = _painted(uvs, new_faces, opened.colours.numpy(), size)
    return opened, Texture(torch.from_numpy(uvs), torch.from_numpy(pixels))


def _painted(uvs: np.ndarray, faces: np.ndarray, colours: np.ndarray, size: int) -> np.ndarray:
    """Return the picture [S, S, 3] uint8 of faces [F, 3] with uvs [N, 2] and colours [N, 3]."""
    from scipy.ndimage import distance_transform_edt

    picture = np.zeros((size, size, 3), np.float32)
    empty = np.ones((size, size), bool)
    for some_faces in np.array_split(faces, len(faces) // _FACES_AT_ONCE + 1):
        rows, columns, face, weights = _texels(uvs[some_faces] * size, size)
        picture[rows, columns] = np.einsum("pk,pkc->pc", weights, colours[some_faces[face]])
        empty[rows, columns] = False
    if empty.all():
        raise ValueError(
            f"Expected a surface that covers some of {size} x {size} texels; it covers none. Take a larger "
            f"texture or vertex colours."
        )
    # Between the charts stands the nearest painted texel, so that no filter and no mipmap draws a seam.
    nearest = np.zeros((2, size, size), np.int32)
    distance_transform_edt(empty, return_distances=False, return_indices=True, indices=nearest)
    return np.rint(np.clip(picture[tuple(nearest)], 0, 1) * 255).astype(np.uint8)


def _texels(corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, columns, faces [P] and barycentric weights [P, 3] of the texels in corners [F, 3, 2]."""
    low = np.clip(np.ceil(corners.min(1) - 0.5), 0, size).astype(np.int64)
    high = np.clip(np.floor(corners.max(1) - 0.5), -1, size - 1).astype(np.int64)
    width, height = np.maximum(high - low + 1, 0).T
    counts = width * height
    face = np.repeat(np.arange(len(corners)), counts)
    within = np.arange(len(face)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns, rows = low[face, 0] + within % width[face], low[face, 1] + within // width[face]
    a, b, c = corners.astype(np.float64)[face].transpose(1, 0, 2)
    points = np.stack([columns, rows], 1) + 0.5  # centres of texels
    doubled_area = _cross(b - a, c - a)
    # A triangle without an area has no weights: NaN, which is not inside.
    with np.errstate(divide="ignore", invalid="ignore"):
        second, third = _cross(points - a, c - a) / doubled_area, _cross(b - a, points - a) / doubled_area
    weights = np.stack([1 - second - third, second, third], 1)
    inside = (weights >= 0).all(1)
    return rows[inside], columns[inside], face[inside], weights[inside]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
