"""The visual hull holds the true object, and little else."""

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene.geometry import hull as hull_module
from sv4d2_core.scene.geometry.hull import Occupancy, hull_pixels, visual_hull
from sv4d2_core.world.body import make_creature, parts_at
from sv4d2_core.world.render import render_views

CAMERAS = Cameras.official("sv4d2")


@pytest.fixture(scope="module")
def walker():
    creature = make_creature(10)
    views = render_views(creature, CAMERAS, 3, 64)
    return parts_at(creature, torch.linspace(0, 1, 3, dtype=torch.float64)), views


def surface_points(parts, frame, generator, n=200):
    directions = torch.randn(len(parts.radii), n, 3, generator=generator, dtype=torch.float64)
    local = torch.nn.functional.normalize(directions, dim=-1) * parts.radii[:, None].double()
    rotated = torch.einsum("pij,pnj->pni", parts.rotations[frame].double(), local)
    return (rotated + parts.centres[frame][:, None].double()).flatten(0, 1).float()


def test_the_hull_holds_the_object(walker):
    parts, views = walker
    hull = visual_hull(views.masks, CAMERAS, 48)
    generator = torch.Generator().manual_seed(0)
    for t in range(3):
        inside = hull.contains(hull.to_unit(surface_points(parts, t, generator)), t)
        assert float(inside.float().mean()) > 0.995
    # The box is cut to it.
    used = hull.cells.any(0).nonzero()
    assert bool((used.amin(0) <= 3).all()) and bool((used.amax(0) >= 44).all())


def test_the_hull_is_empty_outside_the_silhouettes(walker, monkeypatch):
    _, views = walker
    monkeypatch.setattr(hull_module, "_DILATION", 0)
    hull = visual_hull(views.masks, CAMERAS, 48)
    assert 0.01 < float(hull.cells.float().mean()) < 0.5
    seen = hull_pixels(hull, CAMERAS, 64)
    wide = torch.nn.functional.max_pool2d(views.masks.flatten(0, 1)[:, None], 7, 1, 3)[:, 0] >= 0.5
    assert not bool((seen.flatten(0, 1) & ~wide).any())
    covered = (seen & (views.masks >= 0.5)).sum() / (views.masks >= 0.5).sum()
    assert float(covered) > 0.99


def test_a_contradicting_view_is_overruled(walker):
    _, views = walker
    masks = views.masks.clone()
    masks[:, 2] = masks[:, 2].roll(24, dims=-1)
    seen = hull_pixels(visual_hull(masks, CAMERAS, 48), CAMERAS, 64)[:, 0]
    truth = views.masks[:, 0] >= 0.5
    assert float((seen & truth).sum() / truth.sum()) > 0.97


def test_silhouettes_without_a_common_part_are_refused():
    masks = torch.zeros(1, 5, 32, 32)
    masks[:, ::2, 8:12, 14:18] = 1
    masks[:, 1::2, 20:24, 14:18] = 1
    with pytest.raises(ValueError, match="no part of space is seen by the 5 views"):
        visual_hull(masks, CAMERAS, 16)


def test_cells_are_found_by_their_frame_and_axes():
    cells = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    cells[1, 3, 2, 0] = True  # z, y, x
    occupancy = Occupancy(cells, torch.tensor([[0.0, 0, 0], [4.0, 4, 4]]))
    unit = occupancy.to_unit(torch.tensor([[0.5, 2.5, 3.5], [3.5, 2.5, 0.5], [0.5, 2.5, 4.5]]))
    assert occupancy.contains(unit, torch.tensor([1, 1, 1])).tolist() == [True, False, False]
    assert occupancy.contains(unit, torch.tensor([0, 0, 0])).tolist() == [False, False, False]
    centre = occupancy.centres()[3, 2, 0]
    torch.testing.assert_close(centre, unit[0])
