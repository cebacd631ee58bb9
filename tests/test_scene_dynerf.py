"""Rays add up matter as they should, a scene renders what its field holds, and its file gives it back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene.config import FieldConfig
from sv4d2_core.scene.dynerf.dynerf import DyNeRF
from sv4d2_core.scene.dynerf.dynerf_fit import dense_cells
from sv4d2_core.scene.dynerf.rays import box_span, composite_on_white, ray_weights, sample_distances
from sv4d2_core.scene.geometry.hull import Occupancy
from sv4d2_core.scene.store import load_scene

CAMERAS = Cameras((0, 0, 35), (0, 90, 200))
CONFIG = FieldConfig(features=2, plane_sizes=(4, 8), hidden=8, samples=128)
BOX = torch.tensor([[-0.4, -0.3, -0.2], [0.4, 0.3, 0.2]])


def make_scene(cells=None, n_frames=3):
    cells = torch.ones(n_frames, 16, 16, 16, dtype=torch.bool) if cells is None else cells
    times = torch.linspace(0, 1, n_frames).tolist()
    generator = torch.Generator().manual_seed(0)
    return DyNeRF(Occupancy(cells, BOX), CAMERAS, 8.0, times, CONFIG, generator)


def fill(scene, density, rgb):
    """Make the field constant."""
    scale = scene.field.field.decoder.density_scale
    with torch.no_grad():
        for parameter in scene.field.parameters():
            parameter.zero_()
        scene.field.field.decoder.density.bias.fill_(1 + torch.tensor(density / scale).expm1().log())
        scene.field.field.decoder.colour[2].bias.copy_(torch.tensor(rgb).logit())
    return scene


def test_a_solid_block_has_its_colour_depth_and_normals():
    scene = fill(make_scene(), 400.0, [0.2, 0.4, 0.6])
    picture = scene.render(CAMERAS, [0.5], 33)
    assert picture.rgb.shape == (1, 3, 33, 33, 3) and picture.alpha.shape == (1, 3, 33, 33)
    assert picture.rgb.dtype == picture.normal.dtype == torch.float32
    middle = (0, slice(None), 16, 16)
    torch.testing.assert_close(picture.alpha[middle], torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        picture.rgb[middle], torch.tensor([0.2, 0.4, 0.6]).expand(3, 3), atol=2e-3, rtol=0
    )
    # The block's faces are 0.2 (front) and 0.4 (side) from the centre, the cameras 2.
    torch.testing.assert_close(picture.depth[0, :2, 16, 16], torch.tensor([1.8, 1.6]), atol=0.01, rtol=0)
    corner = (0, slice(None), 0, 0)
    assert torch.equal(picture.rgb[corner], torch.ones(3, 3))
    assert not picture.alpha[corner].any() and not picture.depth[corner].any()
    # Thin matter lets the white through.
    alpha = fill(scene, 2.0, [0.2, 0.4, 0.6]).render(CAMERAS, [0.0], 33).alpha[0, :2, 16, 16]
    torch.testing.assert_close(alpha, 1 - torch.exp(-2.0 * torch.tensor([0.4, 0.8])), atol=1e-4, rtol=0)


def test_normals_point_out_of_the_matter():
    scene = make_scene()
    with torch.no_grad():
        for parameter in scene.field.parameters():
            parameter.zero_()
        # Density falls with x: one feature of the plane xy, which both other planes leave alone.
        scene.field.field.planes.space[1].fill_(1)
        scene.field.field.planes.space[1][0, 0] = torch.linspace(2, 0, 8).expand(8, 8)
        scene.field.field.decoder.trunk.weight[0, 2] = 1
        scene.field.field.decoder.density.weight[0, 0] = 1
    normal = scene.render(CAMERAS, [0.0], 33).normal[0, 0, 16, 16]
    torch.testing.assert_close(normal, torch.tensor([1.0, 0.0, 0.0]), atol=1e-4, rtol=0)


def test_frames_and_cells_are_kept_apart():
    cells = torch.zeros(3, 16, 16, 16, dtype=torch.bool)
    cells[0, :, :, :8] = True  # x < 0
    cells[2, :, :, 8:] = True
    scene = fill(make_scene(cells), 400.0, [0.5, 0.5, 0.5])
    alpha = scene.render(CAMERAS, [0.0, 0.25, 0.5, 0.75, 1.0], 32).alpha[:, 0]
    left, right = alpha[..., :16].amax((1, 2)), alpha[..., 16:].amax((1, 2))
    assert (left > 0.5).tolist() == [True, True, False, False, False]
    assert (right > 0.5).tolist() == [False, False, False, True, True]


def test_dense_cells_are_those_that_hold_something():
    scene = fill(make_scene(), 400.0, [0.5, 0.5, 0.5])
    hull = Occupancy(torch.rand(3, 16, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.5, BOX)
    assert torch.equal(dense_cells(scene, hull, range(3)).cells, hull.cells)
    assert not dense_cells(fill(scene, 1e-3, [0.5, 0.5, 0.5]), hull, range(3)).cells.any()


def test_a_saved_scene_tells_how_it_was_fitted(tmp_path):
    scene = make_scene()
    scene.fit = {"seed": 7, "steps": 20}
    scene.save(tmp_path / "scene.safetensors")
    assert load_scene(tmp_path / "scene.safetensors").fit == {"seed": 7, "steps": 20}


def test_a_saved_scene_renders_the_same(tmp_path):
    cells = torch.rand(3, 15, 15, 15, generator=torch.Generator().manual_seed(0)) < 0.3
    scene = make_scene(cells)
    scene.save(tmp_path / "scene.safetensors")
    loaded = load_scene(tmp_path / "scene.safetensors")
    assert (loaded.backend, loaded.cameras, loaded.fps, loaded.n_frames) == ("dynerf", CAMERAS, 8.0, 3)
    first, second = (s.render(CAMERAS, [0.3], 16) for s in (scene, loaded))
    assert all(torch.equal(vars(first)[key], vars(second)[key]) for key in vars(first))
    assert [path.name for path in tmp_path.iterdir()] == ["scene.safetensors"]


@pytest.mark.parametrize(
    ("backend", "means"),
    [("dynerf", (0.81508, 0.37379, 0.92639, -0.0778)), ("gaussians", (0.86102, 0.36696, 1.27452, 0.12656))],
)
def test_scenes_of_version_0_1_0_render_as_they_did(backend, means):
    """Their headers hold every number of the fit, here none of them the default."""
    scene = load_scene(Path(__file__).parent / "data/version_0_1/all_settings" / f"{backend}.safetensors")
    assert (scene.backend, scene.n_frames, scene.times) == (backend, 3, (0.0, 0.5, 1.0))
    assert scene.path is not None and scene.path.shifts[2] == (0.1, 0, 0)
    rendering = scene.render(Cameras((0, 10), (0, 45)), [0.0, 0.3], 24)
    assert [float(x.mean()) for x in vars(rendering).values()] == pytest.approx(means, abs=2e-4)


def test_files_that_are_no_scene_are_refused(tmp_path):
    path = tmp_path / "scene.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_scene(path)
    make_scene().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load_scene(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="of another kind"):
        load_scene(path)
    path.write_bytes(whole)
    tensors = load_file(path)
    header = {"backend": "voxels", "version": 1}
    save_file(tensors, path, {"sv4d2.scene": json.dumps(header)})
    with pytest.raises(ValueError, match="holds backend 'voxels'"):
        load_scene(path)
    save_file(tensors, path, {"sv4d2.scene": json.dumps({**header, "backend": "dynerf"})})
    with pytest.raises(ValueError, match="numbers as times in the sv4d2.scene of"):
        load_scene(path)


def test_rendering_reports_can_be_cancelled_and_refuses_times_and_sizes_out_of_range():
    for times, size in (([], 8), ([1.5], 8), ([0.5], 0)):
        with pytest.raises(ValueError, match="times? in 0..1"):
            make_scene().render(CAMERAS, times, size)
    heard = []

    def stop_at_two(done, total, info):
        heard.append((done, total))
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        make_scene().render(CAMERAS, [0.0, 1.0], 8, callback=stop_at_two)
    assert heard == [(1, 6), (2, 6)]


def test_constant_density_gives_the_exponential_law():
    density = torch.full((1, 40), 3.0, dtype=torch.float64)
    weights = ray_weights(density, torch.full((1, 1), 0.05, dtype=torch.float64))
    colour = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    rgb, opacity = composite_on_white(weights, colour.expand(1, 40, 3))
    expected = 1 - math.exp(-3.0 * 0.05 * 40)
    torch.testing.assert_close(opacity, torch.tensor([expected], dtype=torch.float64))
    torch.testing.assert_close(rgb[0], expected * colour + (1 - expected))


def test_layers_hide_each_other_and_dense_matter_stays_finite():
    # Opacities .75 in front and .5 behind: .75 + .25 * .5.
    density = torch.tensor([[math.log(4), 0.0, math.log(2)]])
    torch.testing.assert_close(ray_weights(density, torch.ones(1, 1)), torch.tensor([[0.75, 0.0, 0.125]]))
    density = torch.full((1, 64), 1e5, requires_grad=True)
    weights = ray_weights(density, torch.full((1, 1), 0.1))
    assert float(weights.detach().sum()) == 1
    weights.sum().backward()
    assert density.grad is not None and bool(density.grad.isfinite().all())


def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    density = 5 * torch.rand(3, 7, generator=generator, dtype=torch.float64)
    colours = torch.rand(3, 7, 3, generator=generator, dtype=torch.float64)
    lengths = 0.1 + torch.rand(3, 1, generator=generator, dtype=torch.float64)
    inputs = (density.requires_grad_(), colours.requires_grad_())
    assert torch.autograd.gradcheck(lambda d, c: composite_on_white(ray_weights(d, lengths), c), inputs)


def test_where_rays_cross_a_box_and_every_stretch_has_one_sample():
    origins = torch.tensor([[0.0, 0, 2], [0.0, 0.6, 2], [0.0, 0, 0], [3.0, 0, 0]])
    directions = torch.tensor([[0.0, 0, -1], [0.0, 0, -1], [1.0, 0, 0], [1.0, 0, 0]])
    entry, leave = box_span(origins, directions, torch.tensor([[-1.0, -0.5, -0.25], [1.0, 0.5, 0.25]]))
    torch.testing.assert_close(entry[[0, 2]], torch.tensor([1.75, 0.0]))
    torch.testing.assert_close(leave[[0, 2]], torch.tensor([2.25, 1.0]))
    assert bool((leave[[1, 3]] <= entry[[1, 3]]).all())
    entry, leave = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.5])
    jitter = torch.rand(2, 10, generator=torch.Generator().manual_seed(0))
    distances = sample_distances(entry, leave, 10, jitter)
    stretch = ((distances - entry[:, None]) / (leave - entry)[:, None] * 10).floor()
    assert torch.equal(stretch, torch.arange(10.0).expand(2, 10))
    torch.testing.assert_close(sample_distances(entry, leave, 2)[0], torch.tensor([1.5, 2.5]))
