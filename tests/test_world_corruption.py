"""The corruption model: seeded, growing with strength and angle, as large as SV4D 2.0's measured errors."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.image import psnr
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import benchmark_scenes, corrupt_views

AZIMUTHS = (0.0, 1.0, 15.0, 45.0, 90.0, 142.0)
RING = Cameras((0.0,) * len(AZIMUTHS), AZIMUTHS)
SEEDS = range(3)


@functools.cache
def truth(name: str, cameras: Cameras = RING, size: int = 64, n_frames: int = 3) -> ViewGrid:
    scene = next(scene for scene in benchmark_scenes() if scene.name == name)
    return replace(scene, n_frames=n_frames).views(cameras, size)


def quality(grids: list[ViewGrid], strength: float = 1.0) -> Tensor:
    """Return the PSNR of every view, [V + 1], mean over grids, frames and seeds."""
    values = []
    for seed in SEEDS:
        for i, grid in enumerate(grids):
            spoilt = corrupt_views(grid, 100 * i + seed, strength)
            views = range(1, grid.n_views + 1)
            values.append(torch.stack([psnr(spoilt.images[:, v], grid.images[:, v]).mean() for v in views]))
    return torch.stack(values).mean(0)


def test_a_seed_gives_the_same_errors_and_another_seed_others():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, again, other = (corrupt_views(truth("owl"), seed) for seed in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.images, again.images) and torch.equal(first.masks, again.masks)
    assert float((first.images - other.images)[:, 1:].abs().mean()) > 0.005


def test_novel_views_alone_change_and_the_result_says_how():
    grid = replace(truth("walker"), fps=12.0, latents=torch.zeros(3, 5, 4, 8, 8))
    before = grid.images.clone()
    spoilt = corrupt_views(grid, 2, 3.0)
    assert torch.equal(grid.images, before)
    assert torch.equal(spoilt.images[:, 0], before[:, 0])
    assert torch.equal(spoilt.masks[:, 0], grid.masks[:, 0])
    assert bool((spoilt.images[:, 1:] != before[:, 1:]).flatten(2).any(-1).all())
    made = {"seed": 2, "strength": 3.0, "per_frame": False}
    assert spoilt.settings == {"scene": "walker", "corruption": made}
    assert (spoilt.fps, spoilt.cameras, spoilt.latents) == (12.0, RING, None)
    same = corrupt_views(replace(grid, settings=None), 1, 0.0, per_frame=True)
    assert torch.equal(same.images, grid.images) and torch.equal(same.masks, grid.masks)
    assert same.settings == {"corruption": {"seed": 1, "strength": 0.0, "per_frame": True}}


def test_quality_falls_with_strength_and_with_the_angle_as_measured():
    """37.5 dB near the input view, 19.4 dB obliquely behind; few scenes, hence the margins."""
    means = torch.stack([quality([truth("owl"), truth("windmill")], s) for s in (0.25, 0.5, 1.0, 2.0)])
    assert bool((means[1:] < means[:-1] - 0.5).all())
    names = ("walker", "runner", "windmill", "flamingo", "owl", "aeroplane")
    values = quality([truth(name, n_frames=2) for name in names])
    assert bool((values[1:] < values[:-1]).all())
    assert float(values[0]) == pytest.approx(37.5, abs=1.5)
    assert float(values[-1]) == pytest.approx(19.4, abs=1.5)


@pytest.mark.parametrize(
    ("per_frame", "wrong", "flicker"),
    [
        (False, (0.31668, 1.36628, 1.44531, 2.21345, 3.86531), (0.05618, 0.2422, 0.18732, 0.35329, 0.57635)),
        (True, (0.41756, 1.81605, 1.31031, 2.3825, 3.70551), (0.58317, 2.67449, 1.74292, 3.23887, 4.59368)),
    ],
)
def test_errors_are_those_that_were_recorded(per_frame, wrong, flicker):
    """Per cent of full scale in five views of a still clip, one of them lifted and one lowered.

    Steady errors flicker little; those drawn per frame are as large and flicker. They must never drift:
    scores of corrupted views are compared.
    """
    cameras = Cameras((0, 0, 0, 25, -25, 0), (0, 15, 90, 90, 90, 180), input_elevation_deg=20.0)
    grid = truth("owl", cameras, 32).at_frames([0] * 3)
    errors = 100 * (corrupt_views(grid, 3, per_frame=per_frame).images - grid.images)[:, 1:]
    for found, recorded in ((errors, wrong), (errors.diff(dim=0), flicker)):
        assert found.abs().mean((0, 2, 3, 4)).tolist() == pytest.approx(recorded, abs=1e-4)


def test_masks_follow_the_images():
    """An object of one colour is still of one colour when the white behind it is taken away by the mask."""
    grid = truth("aeroplane")
    red = torch.tensor([0.6, 0.4, 0.3])
    opacity = grid.masks[..., None]
    spoilt = corrupt_views(replace(grid, images=opacity * red + 1 - opacity), 3, 2.0)
    masks, images = spoilt.masks[:, 1:], spoilt.images[:, 1:]
    assert float((masks - grid.masks[:, 1:]).abs().amax()) > 0.3
    assert bool((images[masks == 0] == 1).all())
    for t in range(grid.n_frames):
        for v in range(grid.n_views):
            inside = masks[t, v] > 0.2
            colours = (images[t, v][inside] - 1) / masks[t, v][inside][:, None] + 1
            assert float(colours.std(dim=0).max()) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 7), (20, 33)])
def test_the_result_is_a_picture_of_any_size(height, width):
    grid = ViewGrid(torch.rand(2, 6, height, width, 3), RING, torch.ones(2, 6, height, width))
    assert corrupt_views(grid, 0).images.shape == grid.images.shape
    assert bool(corrupt_views(grid, 0).images.isfinite().all())
    spoilt = corrupt_views(truth("windmill"), 0, 6.0)
    for values in (spoilt.images, spoilt.masks):
        assert values.dtype == torch.float32
        assert float(values.min()) >= 0 and float(values.max()) <= 1
    # Never darker than black on white.
    assert bool((spoilt.images + 1e-6 >= 1 - spoilt.masks[..., None]).all())


def test_the_errors_of_a_seed_are_the_same_at_every_size():
    def halved(grid: ViewGrid) -> ViewGrid:
        images, masks = (
            pixels.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
            for pixels in (grid.images, grid.masks)
        )
        return replace(grid, images=images, masks=masks)

    large = truth("owl", size=128, n_frames=1)
    small = halved(large)
    spoilt = corrupt_views(small, 9).images[:, 1:]
    like = psnr(spoilt.flatten(0, 1), halved(corrupt_views(large, 9)).images[:, 1:].flatten(0, 1))
    error = psnr(spoilt.flatten(0, 1), small.images[:, 1:].flatten(0, 1))
    assert bool((like[1:] > error[1:] + 6).all())


def test_strengths_that_mean_nothing_and_views_without_masks_are_refused():
    for strength in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"at least 0; got {strength:g}"):
            corrupt_views(truth("owl"), 0, strength)
    with pytest.raises(ValueError, match="Expected views with masks"):
        corrupt_views(replace(truth("owl"), masks=None), 0)
