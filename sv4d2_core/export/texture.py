"""A baked texture: the surface is cut open, laid flat, and its colours are painted into a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .mesh import MeshAnimation, check_animation

SIZES = (64, 8192)
_PADDING_TEXELS = 4
_FACES_AT_ONCE = 4096


@dataclass(frozen=True)
class Texture:
    """A picture and where each vertex lies in it; tensors on the CPU.

    Args:
        uvs: [N, 2] float32 in 0..1, the origin at the picture's upper left as in glTF.
        pixels: [S, S, 3] uint8, display values (sRGB).
    """

    uvs: Tensor
    pixels: Tensor

    def check(self, n_vertices: int) -> None:
        """Raise ValueError unless it belongs to a mesh of ``n_vertices`` vertices."""
        if self.uvs.shape != (n_vertices, 2):
            raise ValueError(
                f"Expected a texture for {n_vertices} vertices; it is for {len(self.uvs)}. Baking doubles "
                f"vertices along seams: write the animation that bake_texture returned with it."
            )


def bake_texture(
    animation: MeshAnimation,
    size: int = 1024,
    *,
    frame: int = 0,
    colour_at: Callable[[Tensor], Tensor] | None = None,
) -> tuple[MeshAnimation, Texture]:
    """Return the animation with vertices doubled along seams, and its texture.

    Args:
        animation: one topology; all frames share the texture.
        size: width and height of the picture, pixels.
        frame: the one that is cut open and laid flat.
        colour_at: returns display colours [P, 3] in 0..1 at points [P, 3] of that frame's surface; None: the
            vertex colours, interpolated.

    Raises:
        ModuleNotFoundError: the optional package xatlas is missing.
        ValueError: an animation that `check_animation` refuses, a frame it lacks or a size out of range.
    """
    check_animation(animation)
    if not 0 <= frame < len(animation.positions):
        raise ValueError(f"Expected a frame from 0 to {len(animation.positions) - 1}; got {frame}.")
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"Expected a texture size of {SIZES[0]} to {SIZES[1]} pixels; got {size}.")
    sources, faces, uvs = _unwrap(animation.positions[frame], animation.faces, size)
    opened = replace(
        animation,
        positions=animation.positions[:, sources],
        faces=faces,
        colours=animation.colours[sources],
    )
    values = opened.colours if colour_at is None else opened.positions[frame]
    pixels = _paint(uvs.numpy(), faces.numpy(), values.numpy(), size, colour_at)
    return opened, Texture(uvs, torch.from_numpy(pixels))


def _unwrap(vertices: Tensor, faces: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the old vertex of each new one [M], the faces between new ones [F, 3], and uvs [M, 2]."""
    try:
        import xatlas  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Expected the package xatlas, which lays the surface flat; it is not installed. Run "pip install '
            'xatlas", or export vertex colours.',
            name="xatlas",
        ) from error
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices.numpy().astype(np.float32), faces.numpy().astype(np.uint32))
    options = xatlas.PackOptions()
    options.resolution, options.padding = size, _PADDING_TEXELS
    atlas.generate(pack_options=options)
    sources, new_faces, uvs = atlas[0]
    return (
        torch.from_numpy(sources.astype(np.int64)),
        torch.from_numpy(new_faces.astype(np.int64)),
        torch.from_numpy(uvs.astype(np.float32)),
    )


def _paint(
    uvs: np.ndarray,  # [N, 2]
    faces: np.ndarray,  # [F, 3]
    values: np.ndarray,  # [N, 3] colours, or points for `colour_at`
    size: int,
    colour_at: Callable[[Tensor], Tensor] | None,
) -> np.ndarray:
    """Return the picture [S, S, 3] uint8.

    What lies between the charts takes the colour of the nearest painted texel, so that no filter and no
    smaller copy of the picture draws a seam.
    """
    from scipy.ndimage import distance_transform_edt

    picture = np.zeros((size, size, 3), np.float32)
    empty = np.ones((size, size), bool)
    for some_faces in np.array_split(faces, len(faces) // _FACES_AT_ONCE + 1):
        rows, columns, face, weights = _texels(uvs[some_faces] * size, size)
        if not len(rows):
            continue
        painted = np.einsum("pk,pkc->pc", weights, values[some_faces[face]])
        if colour_at is not None:
            painted = colour_at(torch.from_numpy(painted.astype(np.float32))).numpy()
        picture[rows, columns] = painted
        empty[rows, columns] = False
    if empty.all():
        raise ValueError(
            f"Expected a surface that covers some of {size} x {size} texels; it covers none. Take a larger "
            f"texture or vertex colours."
        )
    nearest = np.zeros((2, size, size), np.int32)
    distance_transform_edt(empty, return_distances=False, return_indices=True, indices=nearest)
    return np.rint(np.clip(picture[tuple(nearest)], 0, 1) * 255).astype(np.uint8)


def _texels(corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return rows [P], columns [P], triangles [P] and barycentric weights [P, 3] of the texels inside.

    Args:
        corners: [F, 3, 2] of triangles, in texels; the centre of the first texel is (0.5, 0.5).
        size: of the picture.
    """
    low = np.clip(np.ceil(corners.min(1) - 0.5), 0, size).astype(np.int64)
    high = np.clip(np.floor(corners.max(1) - 0.5), -1, size - 1).astype(np.int64)
    width, height = np.maximum(high - low + 1, 0).T
    counts = width * height
    face = np.repeat(np.arange(len(corners)), counts)
    within = np.arange(len(face)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns, rows = low[face, 0] + within % width[face], low[face, 1] + within // width[face]
    weights = _barycentric(corners.astype(np.float64)[face], np.stack([columns, rows], 1) + 0.5)
    inside = (weights >= 0).all(1)
    return rows[inside], columns[inside], face[inside], weights[inside]


def _barycentric(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the weights [P, 3] of the corners [P, 3, 2] at points [P, 2]; NaN for a triangle of no area."""
    a, b, c = corners.transpose(1, 0, 2)
    doubled_area = _cross(b - a, c - a)
    with np.errstate(divide="ignore", invalid="ignore"):
        second, third = _cross(points - a, c - a) / doubled_area, _cross(b - a, points - a) / doubled_area
    return np.stack([1 - second - third, second, third], 1)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
