"""The closed-form renderer against independent formulas, and what the project relies on in its animals."""

import math

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.world import Parts, make_creature, parts_at, render_creature, render_parts, render_views
from sv4d2_core.world.coat import Coat

ORBIT = Cameras.official("sv4d2")


def balls(centres, radii, colours=None, rotations=None) -> Parts:
    """Ellipsoids that do not move."""
    centres = torch.tensor(centres, dtype=torch.float64)
    n = len(centres)
    colours = torch.tensor([[0.5, 0.5, 0.5]] * n if colours is None else colours, dtype=torch.float64)
    rotations = torch.eye(3, dtype=torch.float64).expand(n, 3, 3) if rotations is None else rotations
    radii = torch.tensor(radii, dtype=torch.float64)
    plain = torch.zeros(n, dtype=torch.long)
    coat = Coat(colours[:, None].expand(n, 3, 3), plain, centres, rotations, 1.0, centres.new_zeros(3))
    return Parts(centres[None], rotations[None], radii, coat)


def test_every_hit_lies_on_the_ellipsoid_and_normals_are_its_gradient():
    """Points rebuilt from depth satisfy the implicit equation; autograd gives the normals."""
    a = 0.7
    cos, sin = math.cos(a), math.sin(a)
    rotation = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    centre, radii = torch.tensor([0.1, -0.05, 0.08]).double(), torch.tensor([0.1, 0.35, 0.2]).double()
    parts = balls([centre.tolist()], [radii.tolist()], rotations=rotation[None])
    cameras = Cameras((0, 35, -20), (0, 80, 200))
    image = render_parts(parts, cameras, 48, samples=1)
    eyes, directions = cameras.rays(48)
    hit = image.mask[0] > 0
    points = (eyes[:, None, None] + image.depth[0, ..., None].double() * directions)[hit].requires_grad_()
    local = (points - centre) @ rotation / radii
    implicit = local.square().sum(-1)
    assert hit.any(dim=-1).any(dim=-1).all()
    assert torch.allclose(implicit, torch.ones_like(implicit), atol=2e-5)
    (gradient,) = torch.autograd.grad(implicit.sum(), points)
    gradient = torch.nn.functional.normalize(gradient, dim=-1)
    assert torch.allclose(image.normal[0][hit].double(), gradient, atol=1e-4)
    # Rays that miss do so by the textbook discriminant as well.
    o = (eyes - centre) @ rotation / radii
    d = directions @ rotation / radii
    b, aa, c = torch.einsum("vhwi,vi->vhw", d, o), d.square().sum(-1), o.square().sum(-1) - 1
    assert torch.equal(b.square() - aa * c[:, None, None] > 0, hit)


def test_positive_azimuth_is_the_side_of_plus_x_and_elevation_looks_from_above():
    cameras = Cameras((0, 0, 0, 60), (0, 90, 270, 0))
    image = render_parts(balls([[0.4, 0, 0]], [[0.1] * 3]), cameras, 65)
    columns = torch.arange(65).float() + 0.5
    mean_x = (image.mask[0].sum(1) * columns).sum(-1) / image.mask[0].sum((1, 2)) - 32.5
    assert mean_x[0] > 10  # right of the middle for the input camera
    assert abs(float(mean_x[1])) < 0.5 and abs(float(mean_x[2])) < 0.5
    assert float(image.depth[0, 1, 32, 32]) == pytest.approx(1.5, abs=1e-3)  # in front
    assert float(image.depth[0, 2, 32, 32]) == pytest.approx(2.3, abs=1e-3)  # behind the middle
    top = render_parts(balls([[0, 0.4, 0]], [[0.1] * 3]), cameras, 65)
    assert float(top.depth[0, 3][top.mask[0, 3] > 0].min()) < 1.7


@pytest.mark.parametrize("seed", range(20))
def test_the_walk_stays_in_the_frame_with_a_margin(seed):
    cameras = Cameras((0, -30, 30, 60), (0, 225, 90, 130))
    mask = render_creature(make_creature(seed), cameras, torch.linspace(0, 0.8, 5), 48, samples=1).mask > 0
    assert not bool(mask[..., :1, :].any() | mask[..., -1:, :].any())
    assert not bool(mask[..., :1].any() | mask[..., -1:].any())
    assert float(mask.float().mean((-1, -2)).min()) > 0.05
    extent = parts_at(make_creature(seed), torch.linspace(0, 1, 9))
    assert float(extent.centres.norm(dim=-1).max()) < 0.55


def test_colour_mask_depth_and_normals_agree():
    image = render_creature(make_creature(1), ORBIT, torch.tensor([0.2]), 48, samples=3)
    outside, inside = image.mask == 0, image.mask == 1
    assert bool((image.rgb[outside] == 1).all())
    assert bool((image.depth[outside] == 0).all()) and bool((image.normal[outside] == 0).all())
    assert bool(((image.depth[~outside] > 1.4) & (image.depth[~outside] < 2.6)).all())
    assert torch.allclose(image.normal[~outside].norm(dim=-1), torch.ones(1), atol=1e-4)
    assert float(image.rgb.min()) >= 0 and float(image.rgb.max()) <= 1
    # A partly covered pixel is the object's colour on white: no darker than full cover would be.
    partly = ~outside & ~inside
    object_colour = (image.rgb[partly] - (1 - image.mask[partly])[:, None]) / image.mask[partly][:, None]
    assert float(object_colour.min()) > -1e-4 and float(object_colour.max()) < 1 + 1e-4
    # Visible surfaces face the camera.
    _, directions = ORBIT.rays(48)
    facing = -(image.normal[0].double() * directions).sum(-1)
    assert float(facing[inside[0]].min()) > -0.2 and float(facing[inside[0]].mean()) > 0.5


def test_colours_do_not_depend_on_the_viewer():
    """The same surface points from two cameras 10 degrees apart have the same colour."""
    cameras, size = Cameras((0, 0), (0, 10)), 192
    image = render_creature(make_creature(2), cameras, torch.tensor([0.0]), size, samples=1)
    eyes, directions = cameras.rays(size)
    inside = image.mask[0, 0] > 0
    points = (eyes[0] + image.depth[0, 0, ..., None].double() * directions[0])[inside]
    to_camera = cameras.w2c_opencv()[1]
    pixels = (points @ to_camera[:3, :3].T + to_camera[:3, 3]) @ cameras.intrinsics(size).T
    column, row = (pixels[:, :2] / pixels[:, 2:]).floor().long().unbind(-1)
    seen = (image.depth[0, 1, row, column].double() - (points - eyes[1]).norm(dim=-1)).abs() < 0.004
    difference = (image.rgb[0, 1, row, column] - image.rgb[0, 0][inside])[seen].abs().mean(-1)
    assert float(seen.float().mean()) > 0.6
    assert float(difference.median()) < 0.01


def test_view_grid_is_the_ground_truth_of_the_cameras_asked_for():
    grid = render_views(make_creature(0), ORBIT, 3, 32, fps=12.0)
    direct = render_creature(make_creature(0), ORBIT, torch.tensor([0.0, 0.5, 1.0]), 32)
    assert torch.equal(grid.images, direct.rgb)
    assert torch.equal(grid.masks, direct.mask)
    assert (grid.fps, grid.variant, grid.trained, grid.cameras) == (12.0, "", True, ORBIT)
    assert grid.images.dtype == torch.float32


def test_wrong_arguments_are_refused_with_numbers():
    with pytest.raises(ValueError, match="at least one frame; got 0"):
        render_views(make_creature(0), ORBIT, 0, 32)
    with pytest.raises(ValueError, match="samples >= 1; got 32 and 0"):
        render_views(make_creature(0), ORBIT, 1, 32, samples=0)
    with pytest.raises(ValueError, match="in front of the cameras"):
        render_parts(balls([[0, 0, 1.95]], [[0.1] * 3]), ORBIT, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_pictures():
    creature, times = make_creature(1), torch.tensor([0.3])
    here = render_creature(creature, ORBIT, times, 64)
    there = render_creature(creature, ORBIT, times, 64, device="cuda")
    assert there.rgb.is_cuda
    assert float((there.rgb.cpu() - here.rgb).abs().mean()) < 1e-4
