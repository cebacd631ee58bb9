"""How every Gaussian of a scene moves, in one numpy file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...fourd.gaussians import Gaussians
from ...fourd.splatting import GaussiansAt
from ..formats.single_file import write_file
from .frames import gaussians_at


def write_trajectories(
    path: str | Path, scene: Gaussians, times: Sequence[float] | None = None, *, overwrite: bool = False
) -> int:
    """Write a scene's Gaussians before and while they move, and return the size in bytes.

    The file is a compressed ``.npz`` without pickled objects. Gaussian i is the same in all arrays. All
    lengths are world units, the world is ours (+y up), quaternions are wxyz and of unit length:

    - ``means`` [T, N, 3], ``quats`` [T, N, 4], ``scales`` [T, N, 3] (standard deviations along the own axes)
      and ``opacities`` [T, N] in 0..1, float32: what is seen at each time.
    - ``colours`` [N, 3] float32 in 0..1 (sRGB), at all times.
    - ``canonical_means``, ``canonical_quats``, ``canonical_scales``, ``canonical_opacities``, float32, the
      same without T: the Gaussians before they are moved, about the origin.
    - ``shifts`` [T, 3] float64: the object's own path, already in ``means``; 0 where it has none.
    - ``times`` [T] float64 in 0..1, rising, and ``fps``, float64: frames per second of the scene's clip.

    Args:
        path: of the file.
        scene: the Gaussians.
        times: in 0..1; None: those of the frames that the scene was fitted to.
        overwrite: replace a file that is there.

    Raises:
        FileExistsError, OSError: what `write_file` says.
        ValueError: no times, or what `gaussians_at` says.
    """
    times = tuple(scene.times if times is None else times)
    if not times:
        raise ValueError("Expected at least one time; got none.")
    canonical = gaussians_at(scene, None)
    frames = [gaussians_at(scene, time) for time in times]
    moving = GaussiansAt(*(torch.stack(tensors) for tensors in zip(*frames, strict=True)))
    shifts = [(0.0, 0.0, 0.0) if scene.path is None else scene.path.at(time).tolist() for time in times]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        means=moving.means.numpy(),
        quats=moving.quats.numpy(),
        scales=moving.scales.numpy(),
        opacities=moving.opacities.numpy(),
        colours=canonical.colours.numpy(),
        canonical_means=canonical.means.numpy(),
        canonical_quats=canonical.quats.numpy(),
        canonical_scales=canonical.scales.numpy(),
        canonical_opacities=canonical.opacities.numpy(),
        shifts=np.array(shifts),
        times=np.array(times),
        fps=np.array(float(scene.fps)),
    )
    return write_file(Path(path), content.getvalue(), overwrite)
