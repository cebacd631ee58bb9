"""COLMAP data sets of a folder of views, opened by a reader that wants points."""

import math

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.scene_export import export_views
from sv4d2_core.views import ViewGrid

SIZE, RADIUS = 64, 0.5
CAMERAS = Cameras((0, 0, 0, 30, -30), (0, 72, 144, 216, 288))


def ball(n_frames=2):
    """Return views of a ball about the origin, each in its own colour."""
    focal = float(CAMERAS.intrinsics(SIZE)[0, 0])
    disc = focal * math.tan(math.asin(RADIUS / CAMERAS.radius))
    middle = torch.arange(SIZE) + 0.5 - SIZE / 2
    mask = (middle[:, None] ** 2 + middle**2 < disc**2).float().expand(n_frames, 5, SIZE, SIZE)
    colours = torch.linspace(0.1, 0.9, 5)[:, None, None, None].expand(5, SIZE, SIZE, 3)
    return ViewGrid(torch.where(mask[..., None] > 0, colours, torch.tensor(1.0)), CAMERAS, mask)


def read_points(model):
    """Read the points as 3DGS's reader does: it needs some, eight fields each."""
    rows = [
        line.split() for line in (model / "points3D.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert rows and all(len(row) >= 8 for row in rows)
    return torch.tensor([[*map(float, row[1:4])] for row in rows]), torch.tensor(
        [[*map(int, row[4:7])] for row in rows]
    )


@pytest.mark.parametrize("masked", [True, False])
def test_points_come_from_the_hull_of_the_masks(tmp_path, masked):
    grid = ball()
    grid = grid if masked else ViewGrid(grid.images, grid.cameras)
    made = export_views(grid, tmp_path / "out", "colmap")
    assert "points on the hull of the masks" in made.notes[0]
    for frame in ("frame_00000", "frame_00001"):
        positions, colours = read_points(tmp_path / "out" / frame / "sparse/0")
        assert len(positions) > 500
        distance = positions.norm(dim=-1)
        # Five silhouettes leave some corners on a ball.
        assert (
            float(distance.median()) == pytest.approx(RADIUS, rel=0.15) and float(distance.max()) < 2 * RADIUS
        )
        front = positions[:, 2] > 0.9 * RADIUS
        assert ((colours[front] - round(0.1 * 255)).abs().amax(-1) <= 1).float().mean() > 0.9
        assert (colours.amin(-1) < 240).float().mean() > 0.98  # not the background's white


def test_masks_that_contradict_each_other_are_said(tmp_path):
    grid = ball(1)
    masks = torch.zeros(1, 5, SIZE, SIZE)
    for view in range(5):
        masks[0, view, 8 * view : 8 * view + 6, 4:10] = 1
    made = export_views(ViewGrid(grid.images, CAMERAS, masks), tmp_path / "out", "colmap")
    assert "No points to start from" in made.notes[0] and (tmp_path / "out/colmap.json").is_file()
