"""A small ball that bends and stretches, for tests of files."""

import numpy as np
import torch
import trimesh

from sv4d2_core.scene.tracking.mesh import MeshAnimation


def bending_ball(n_frames: int = 5, subdivisions: int = 2, duration: float = 2.0) -> MeshAnimation:
    """Return a coloured ball about 0.6 large that leans to +x and grows upwards, evenly timed."""
    ball = trimesh.creation.icosphere(subdivisions, 0.3)
    rest = torch.tensor(np.asarray(ball.vertices), dtype=torch.float32)
    times = torch.linspace(0, 1, n_frames) if n_frames > 1 else torch.zeros(1)
    height = rest[:, 1] + 0.3
    positions = rest.repeat(n_frames, 1, 1)
    positions[..., 0] += times[:, None] * height**2
    positions[..., 1] += times[:, None] * 0.6 * height
    faces = torch.tensor(np.asarray(ball.faces), dtype=torch.int64)
    return MeshAnimation(positions, faces, (rest + 0.3) / 0.6, tuple(times.tolist()), duration)
