"""Real animated assets: the pictures that come with the tests, and their place in the benchmark."""

import numpy as np
import pytest
import torch
from assets import ASSET_NAMES, ASSETS, AssetScene, read_set

from sv4d2_core.cameras import Cameras
from sv4d2_core.video.foreground import near_white_masks

HELD_OUT = Cameras((0, 0, 0, 20, 30, -10), (0, 30, 300, 150, 20, 90))
FRAMES = np.linspace(0, 1, 12)
SETS = {
    "train": (Cameras.official("sv4d2"), FRAMES),
    "held_out": (HELD_OUT, FRAMES),
    "held_out_between": (HELD_OUT, (FRAMES[:-1] + FRAMES[1:]) / 2),
}


@pytest.mark.parametrize("name", ASSET_NAMES)
def test_cameras_times_and_masks_of_a_real_asset(name):
    grids = {kind: read_set(name, kind) for kind in SETS}
    for kind, (cameras, times) in SETS.items():
        grid, shape = grids[kind], (len(times), cameras.n_views + 1, 64, 64)
        assert grid.cameras == cameras and grid.frame_times() == pytest.approx(times)
        assert tuple(grid.masks.shape) == shape and (grid.images[grid.masks == 0] == 1).all()
        # The whole object is in every picture, and all that is not white is in its mask.
        assert 0.1 < grid.masks.mean(dim=(2, 3)).min() and grid.masks.mean(dim=(2, 3)).max() < 0.3
        assert not any(grid.masks.movedim(axis, 0)[[0, -1]].any() for axis in (2, 3))
        assert not (near_white_masks(grid.images) * (grid.masks == 0)).any()
    # All sets are one animation in one world: their input views agree, and between frames is between them.
    assert torch.equal(grids["train"].images[:, 0], grids["held_out"].images[:, 0])
    before, after = (grids["held_out"].masks[t, 1:] for t in (slice(-1), slice(1, None)))
    middle, far = grids["held_out_between"].masks[:, 1:], (before - after).abs().mean()
    assert (before - middle).abs().mean() < far and (after - middle).abs().mean() < far


def test_assets_are_small_free_and_scenes_of_the_benchmark():
    assert sum(file.stat().st_size for file in ASSETS.rglob("*")) < 500_000
    for name in ASSET_NAMES:
        assert "CC0" in (ASSETS / name / "LICENCE.md").read_text()
        scene = AssetScene(name)
        assert scene.views(Cameras.official("sv4d2"), 32).images.shape == (12, 5, 32, 32, 3)
        assert scene.between(scene.held_out, 64).images.shape == (11, 6, 64, 64, 3)
        with pytest.raises(ValueError, match=r"at most 64 pixels; got azimuths \(0\.0, 30\.0"):
            scene.views(Cameras.official("sv4d2_8views"), 64)
