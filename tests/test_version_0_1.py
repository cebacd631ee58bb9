"""Files that version 0.1.0 wrote still load, and show what they showed."""

from pathlib import Path

import pytest

from sv4d2_core import load_scene, read_views
from sv4d2_core.cameras import Cameras
from sv4d2_core.data.reader import read_any_views, read_dataset
from sv4d2_core.data.views_folder import missing_files, read_crop

FILES = Path(__file__).parent / "data/version_0_1"
CAMERAS = Cameras.official("sv4d2")


def test_a_folder_of_views(close):
    views = read_views(FILES / "views")
    assert not missing_files(FILES / "views")
    assert views.images.shape == (3, 5, 32, 32, 3) and views.cameras == CAMERAS
    assert (views.variant, views.steps, views.seed, views.trained, views.fps) == (
        "sv4d2 (small model)",
        3,
        23,
        True,
        8.0,
    )
    assert views.masks is not None and views.latents is not None
    assert views.latents.shape == (3, 4, 4, 8, 8)
    close(read_dataset(FILES / "views").images, views.images, 1e-6)
    close(read_any_views(FILES / "views").images, views.images, 0)
    crop = read_crop(FILES / "views")
    assert crop is not None and crop.source_width == crop.source_height == 576


@pytest.mark.parametrize(
    ("backend", "brightness", "opacity"), [("dynerf", 0.911984, 0.175625), ("gaussians", 0.883598, 0.266036)]
)
def test_scenes(backend, brightness, opacity):
    scene = load_scene(FILES / f"{backend}.safetensors")
    assert (scene.backend, scene.n_frames, scene.cameras.input_elevation_deg) == (backend, 3, 10.0)
    seen = scene.render(scene.cameras, scene.times, 16)
    assert seen.rgb.mean().item() == pytest.approx(brightness, abs=1e-4)
    assert seen.alpha.mean().item() == pytest.approx(opacity, abs=1e-4)
