"""What a scene's surface is kept as: a mesh, or a mesh that moves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Mesh:
    """Triangles at one time; tensors on the CPU.

    Args:
        vertices: [N, 3] float32, world units, +y up.
        faces: [F, 3] int64, counter-clockwise seen from outside.
        colours: [N, 3] float32 in 0..1, display values (sRGB) as in the pictures.
    """

    vertices: Tensor
    faces: Tensor
    colours: Tensor


@dataclass(frozen=True)
class MeshAnimation:
    """One mesh whose vertices move; tensors on the CPU.

    Args:
        positions: [T, N, 3] float32, world units, +y up.
        faces: [F, 3] int64, counter-clockwise seen from outside.
        colours: [N, 3] float32 in 0..1, display values (sRGB) as in the pictures.
        times: [T] in 0..1, rising; the first frame of the clip is 0, the last is 1.
        duration: seconds from time 0 to time 1.
    """

    positions: Tensor
    faces: Tensor
    colours: Tensor
    times: tuple[float, ...]
    duration: float

    def at(self, frame: int) -> Mesh:
        """Return the mesh of a frame."""
        return Mesh(self.positions[frame], self.faces, self.colours)

    def seconds(self) -> tuple[float, ...]:
        """Return when every frame is shown."""
        return tuple(time * self.duration for time in self.times)
