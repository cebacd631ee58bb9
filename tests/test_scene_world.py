"""A scene stands in the world of the data set that it was fitted to."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sv4d2_core.__main__ import main
from sv4d2_core.cameras import Cameras
from sv4d2_core.data.datasets import write_dataset
from sv4d2_core.data.reader import read_any_views, read_dataset
from sv4d2_core.data.transforms import read_cameras
from sv4d2_core.data.views_folder import transforms_json, write_views
from sv4d2_core.export.scene_export import ExportSettings, export_scene
from sv4d2_core.metrics.image import psnr
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.refine import refine_scene
from sv4d2_core.scene.scene import placed
from sv4d2_core.scene.store import load_scene
from sv4d2_core.world import make_creature, render_views

torch.set_num_threads(1)

OLD = Path(__file__).parent / "data/version_0_1"
SIZE, TIMES = 32, (0.0, 0.5, 1.0)
# In a world that is turned by 77 degrees from ours; the test file begins 130 degrees further and higher.
TRAIN = Cameras((0,) * 5, (0, 60, 120, 180, 240), input_azimuth_deg=77.0)
TEST = Cameras((0, -10, -25), (0, 75, 190), input_elevation_deg=15.0, input_azimuth_deg=207.0)


def truth(cameras: Cameras):
    """Return pictures of the object, which is turned with the world."""
    turned = tuple(azimuth + cameras.input_azimuth_deg - 77.0 for azimuth in cameras.azimuths_deg)
    absolute = tuple(elevation + cameras.input_elevation_deg for elevation in cameras.elevations_deg)
    unturned = Cameras((0.0, *absolute), (0.0, *turned))
    views = render_views(make_creature(10), unturned, 3, SIZE)
    return replace(views, images=views.images[:, 1:], masks=views.masks[:, 1:], cameras=cameras)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a data set of training views, with a transforms_test.json of cameras that begin elsewhere."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, truth(TRAIN))
    for name in ("dataset.json", "cameras.json"):
        (folder / name).unlink()
    (folder / "transforms_test.json").write_text(json.dumps(transforms_json(TEST, SIZE, 8, TIMES, False)))
    return folder


@pytest.fixture(scope="module")
def scene(data, tmp_path_factory):
    """Return the file of a scene that was fitted to the training views."""
    config = RefineConfig(backend="gaussians", weight_by_trust=False).with_steps(60, 1)
    file = tmp_path_factory.mktemp("scene") / "scene.safetensors"
    refine_scene(read_dataset(data), config).save(file)
    return file


def distance(file, cameras) -> float:
    made = load_scene(file).render(cameras, TIMES, SIZE)
    return psnr(made.rgb.flatten(0, 1), truth(TEST).images.flatten(0, 1)).mean().item()


def test_test_cameras_that_begin_elsewhere_are_seen_where_they_stand(scene, data):
    cameras = read_cameras(data / "transforms_test.json")
    assert cameras.input_azimuth_deg == pytest.approx(207) and cameras.input_elevation_deg == pytest.approx(
        15
    )
    there = distance(scene, cameras)
    before = distance(scene, replace(cameras, input_azimuth_deg=None))  # as a relative list
    assert there > 17 and there > before + 3


def test_a_scene_knows_its_world_after_it_was_saved(scene, data):
    assert load_scene(scene).cameras.input_azimuth_deg == pytest.approx(77)
    # A data set states the elevation of its cameras, also where it is 0.
    assert load_scene(scene).cameras.input_elevation_deg == 0
    assert torch.allclose(load_scene(scene).cameras.c2w_opengl(), TRAIN.c2w_opengl())


def test_relative_lists_begin_at_the_scenes_input_view(scene, tmp_path):
    ring = Cameras.ring(2)
    write_views(
        tmp_path, replace(truth(TRAIN).at_frames([0]), cameras=TRAIN, images=torch.ones(1, 5, 32, 32, 3))
    )
    assert read_cameras(tmp_path / "cameras.json").input_azimuth_deg == 77
    made = placed(ring, load_scene(scene))
    assert made.input_azimuth_deg == pytest.approx(77)
    assert torch.allclose(made.c2w_opengl()[0], TRAIN.c2w_opengl()[0])
    pictures = [load_scene(scene).render(cameras, (0.5,), 16).rgb for cameras in (ring, made)]
    assert torch.equal(*pictures)
    tilted = load_scene(scene)
    tilted.cameras = replace(tilted.cameras, input_elevation_deg=20.0)
    assert placed(ring, tilted).input_elevation_deg == 20
    assert placed(replace(ring, input_elevation_deg=5.0), tilted).input_elevation_deg == 5


def test_the_command_renders_and_scores_test_views(scene, data, tmp_path, capsys):
    test, out = data / "transforms_test.json", tmp_path / "out"
    command = ["render", str(scene), "--cameras", str(test), "--size", str(SIZE), "--out", str(out)]
    assert main(command) == 0
    made, expected = read_any_views(out), truth(TEST)
    assert psnr(made.images.flatten(0, 1), expected.images.flatten(0, 1)).mean() > 17
    write_dataset(tmp_path / "test", expected)
    assert main(["metrics", str(out), str(tmp_path / "test"), "--out", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert "PSNR" in json.dumps(report)
    relative = ["--azimuths", "60", "120", "180", "240"]
    assert main(["render", str(scene), *relative, "--size", "16", "--out", str(tmp_path / "ring")]) == 0
    assert read_any_views(tmp_path / "ring").cameras.input_azimuth_deg == pytest.approx(77)


def test_exports_stay_in_the_world_of_the_data_set(scene, data, tmp_path):
    settings = ExportSettings(size=SIZE)
    export_scene(load_scene(scene), tmp_path / "again", "dataset", settings)
    written, first = (
        json.loads((folder / "transforms_train.json").read_text())["frames"]
        for folder in (tmp_path / "again", data)
    )
    for mine, theirs in zip(written, first, strict=True):
        assert torch.allclose(*(torch.tensor(f["transform_matrix"]) for f in (mine, theirs)), atol=1e-6)
    settings = ExportSettings(size=SIZE, cameras=Cameras.ring(2))
    export_scene(load_scene(scene), tmp_path / "ring", "dataset", settings)
    assert read_dataset(tmp_path / "ring").cameras.input_azimuth_deg == pytest.approx(77)
    write_views(tmp_path / "views", read_dataset(data))
    again = read_any_views(tmp_path / "views")
    assert again.cameras.input_azimuth_deg == pytest.approx(77)
    assert again.settings is not None and "the first by time and name" in again.settings["input_view"]


def test_old_scenes_say_that_they_know_no_world(data, tmp_path, caplog):
    scene = load_scene(OLD / "gaussians.safetensors")
    cameras = read_cameras(data / "transforms_test.json")
    again = tmp_path / "again.safetensors"
    scene.save(again)
    for old in (scene, load_scene(again)):
        caplog.clear()
        made = placed(cameras, old)
        assert caplog.text.count("does not tell the world") == 1 and made.input_azimuth_deg is None
        old.render(made, (0.0,), 16)
        assert caplog.text.count("does not tell the world") == 1
        caplog.clear()
        placed(Cameras.ring(2), old)
        assert not caplog.text


def test_scenes_of_our_own_views_take_absolute_cameras_with_the_input_at_the_front(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    views = render_views(make_creature(10), Cameras.official("sv4d2"), 3, SIZE)
    config = RefineConfig(backend="gaussians").with_steps(4, 1)
    scene = refine_scene(views, config, input_elevation_deg=0.0)
    (tmp_path / "transforms.json").write_text(json.dumps(transforms_json(TEST, SIZE, 8, TIMES, False)))
    made = placed(read_cameras(tmp_path), scene)
    assert torch.allclose(made.c2w_opengl(), TEST.c2w_opengl()) and not caplog.text
