"""The unit of the world does not matter: pictures are the same from cameras at 2 metres and at 200 cm."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.datasets import write_renders
from sv4d2_core.scene.config import GaussiansConfig, RefineConfig
from sv4d2_core.scene.geometry.trust import seen_by_input
from sv4d2_core.scene.refine import refine_scene
from sv4d2_core.scene.scene import SceneRendering
from sv4d2_core.views import ViewGrid
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_views

SIZE, NEAR, FAR = 24, 2.0, 256.0  # a power of two apart: even rounding is the same
FIT = RefineConfig(
    rounds=0, steps_static=10, steps=30, rays_per_step=256, samples=16, features=8, hidden=16, hull_size=15,
    gaussians=GaussiansConfig(count=200, features=4, plane_sizes=(8,), hidden=16),
)  # fmt: skip
CAMERAS = Cameras((0, 0, 0, 0, 0), (0, 60, 120, 180, 240))


def depths_of_a_ball(radius: float) -> tuple[Cameras, Tensor]:
    """Return cameras at a distance and their depths [1, V + 1, H, W] of a ball a quarter as large."""
    cameras = replace(CAMERAS, radius=radius)
    eyes, directions = cameras.rays(SIZE)
    along = torch.einsum("vc,vhwc->vhw", eyes, directions)
    inside = along**2 - radius**2 + (radius / 4) ** 2
    return cameras, torch.where(inside > 0, -along - inside.clamp(min=0).sqrt(), 0).float()[None]


@pytest.mark.parametrize("backend", ["dynerf", "gaussians"])
def test_a_fit_is_the_same_in_any_unit(backend):
    views = render_views(make_creature(10), CAMERAS, 3, SIZE)
    pictures = []
    for radius in (NEAR, FAR):
        there = replace(views, cameras=replace(CAMERAS, radius=radius))
        scene = refine_scene(there, replace(FIT, backend=backend), input_elevation_deg=0.0)
        pictures.append(scene.render(there.cameras, scene.times, SIZE).rgb)
    assert float((pictures[0] - pictures[1]).abs().mean()) < 1e-5


def test_what_the_input_sees_is_the_same_in_any_unit():
    (near, depths), (far, more) = map(depths_of_a_ball, (NEAR, FAR))
    seen = seen_by_input(depths, near)
    assert 0.05 < float(seen[:, 1:].sum() / (depths[:, 1:] > 0).sum()) < 0.95
    assert float((seen_by_input(more, far) != seen).float().mean()) < 0.002


def test_depth_pictures_hold_any_unit(tmp_path):
    for radius, name in ((NEAR, "near"), (FAR, "far")):
        cameras, depth = depths_of_a_ball(radius)
        alpha, rgb = (depth > 0).float(), torch.ones(*depth.shape, 3)
        maps = SceneRendering(rgb, alpha, depth, torch.zeros_like(rgb))
        write_renders(tmp_path / name, ViewGrid(rgb, cameras, alpha, 8.0), maps=maps)
        levels = np.asarray(Image.open(tmp_path / name / "depth/view_02/00000.png"))
        scale = json.loads((tmp_path / name / "render.json").read_text())["depth_scale"]
        assert np.allclose(levels / scale, depth[0, 2].numpy(), atol=1e-4 * radius)
    assert scale == 20_000 / FAR
