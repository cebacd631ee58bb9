"""The folder of views: what is in it, that it reads back, and that it is replaced only as a whole."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sv4d2_core.cameras import Cameras
from sv4d2_core.data import views_folder as folder_module
from sv4d2_core.data.views_folder import read_views, write_views
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import make_creature, render_views

torch.set_num_threads(1)

CAMERAS = Cameras((0, 0, 12.5), (0, 60, 210), radius=2.2, fov_deg=35.0, input_elevation_deg=8.0)


@pytest.fixture(scope="module")
def grid() -> ViewGrid:
    rendered = render_views(make_creature(2), CAMERAS, 4, 48, fps=7.5)
    return replace(rendered, latents=torch.randn(4, 2, 4, 6, 6), variant="sv4d2", seed=23, steps=50)


def files(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_holds_what_was_decided(tmp_path, grid):
    written = write_views(tmp_path, grid, crop={"mode": "global"}, run={"host": "test"}, save_latents=True)
    expected = {"run.json", "cameras.json", "transforms.json", "transforms_train.json", "contact_sheet.png"}
    expected |= {f"view_{v:02d}.mp4" for v in range(3)} | {"latents/latents.safetensors"}
    expected |= {
        f"{kind}/view_{v:02d}/{t:05d}.png" for kind in ("frames", "masks") for v in range(3) for t in range(4)
    }
    found = files(tmp_path)
    assert found.keys() == expected
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    assert written[-1].name == "run.json"
    assert found["transforms.json"] == found["transforms_train.json"]
    with Image.open(tmp_path / "frames/view_01/00002.png") as frame:
        assert (frame.mode, frame.size) == ("RGB", (48, 48))
        assert frame.getpixel((0, 0)) == (255, 255, 255)
    with Image.open(tmp_path / "masks/view_01/00002.png") as mask:
        assert (mask.mode, mask.size) == ("L", (48, 48))
        assert np.asarray(mask).max() == 255
    run = json.loads(found["run.json"])
    assert (run["host"], run["seed"], run["steps"], run["variant"], run["trained"]) == (
        "test", 23, 50, "sv4d2", True,
    )  # fmt: skip
    assert "warning" not in run


def test_round_trip(tmp_path, grid):
    write_views(tmp_path, grid, save_latents=True)
    back = read_views(tmp_path)
    for name, tolerance in (("images", 0.5 / 255 + 1e-6), ("masks", 0.5 / 255 + 1e-6), ("latents", 2e-3)):
        read, written = getattr(back, name), getattr(grid, name)
        assert read.dtype == torch.float32 and torch.allclose(read, written, atol=tolerance, rtol=1e-3)
    for field in ("cameras", "fps", "variant", "trained", "seed", "steps"):
        assert getattr(back, field) == getattr(grid, field)


def test_times_of_their_own_round_trip_and_stand_in_the_camera_files(tmp_path, grid):
    times = tuple(0.25 + 0.5 * t / grid.n_frames for t in range(grid.n_frames))
    write_views(tmp_path / "views", replace(grid, times=times), run={})
    assert read_views(tmp_path / "views").times == times
    frames = json.loads((tmp_path / "views/transforms.json").read_text())["frames"]
    assert tuple(dict.fromkeys(frame["time"] for frame in frames)) == times
    assert json.loads((tmp_path / "views/cameras.json").read_text())["times"] == list(times)
    assert read_views(tmp_path / "views").at_frames(range(2)).frame_times() == times[:2]


def test_a_single_frame_without_masks_and_provenance_round_trips(tmp_path, grid):
    bare = ViewGrid(grid.images[:1], CAMERAS)
    write_views(tmp_path, bare, crop=None, run={})
    back = read_views(tmp_path)
    assert back.masks is None and back.latents is None
    assert (back.seed, back.steps, back.variant, back.n_frames) == (None, None, "", 1)
    frames = json.loads((tmp_path / "transforms.json").read_text())["frames"]
    assert [frame["time"] for frame in frames] == [0, 0, 0]
    assert all("mask_path" not in frame for frame in frames)


def test_untrained_output_says_so(tmp_path, grid):
    write_views(tmp_path, replace(grid, trained=False), crop=None, run={"trained": True})
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["trained"] is False
    assert "UNTRAINED" in run["warning"]
    assert read_views(tmp_path).trained is False


def test_existing_views_are_an_error_that_names_one(tmp_path, grid):
    write_views(tmp_path, grid, crop=None, run={})
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match=r"cameras\.json exists already"):
        write_views(tmp_path, replace(grid, images=grid.images * 0), crop=None, run={})
    assert files(tmp_path) == before


def test_overwriting_replaces_the_whole_grid_and_nothing_else(tmp_path, grid):
    write_views(tmp_path, grid, crop=None, run={}, save_latents=True)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".windows").mkdir()
    smaller = ViewGrid(grid.images[:2, :2], CAMERAS.select([0]))
    write_views(tmp_path, smaller, crop=None, run={}, overwrite=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"notes.txt", ".windows", "view_01.mp4"} <= names
    assert not names & {"view_02.mp4", "masks", "latents", ".partial"}
    assert torch.allclose(read_views(tmp_path).images, smaller.images, atol=0.002)


@pytest.mark.parametrize("step", ["write_video", "write_frames", "contact_sheet", "save"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_failure_at_any_step_keeps_the_earlier_folder(tmp_path, grid, monkeypatch, step, error):
    write_views(tmp_path, grid, crop=None, run={})
    before = files(tmp_path)

    def failing(*_):
        raise error(28, "No space left on device")

    monkeypatch.setattr(folder_module, step, failing)
    with pytest.raises(error):
        write_views(tmp_path, grid, crop=None, run={}, overwrite=True, save_latents=True)
    assert files(tmp_path) == before
    assert not (tmp_path / ".partial").exists()


def test_wrong_input_is_refused_before_anything_is_written(tmp_path, grid):
    target = tmp_path / "out"
    with pytest.raises(ValueError, match="square images of even size.*48 x 40"):
        write_views(target, ViewGrid(grid.images[..., :40, :], CAMERAS), crop=None, run={})
    with pytest.raises(ValueError, match="Leave save_latents off"):
        write_views(target, replace(grid, latents=None), crop=None, run={}, save_latents=True)
    with pytest.raises(ValueError, match="plain JSON values"):
        write_views(target, grid, crop={"box": torch.zeros(4)}, run={})
    with pytest.raises(ValueError):
        write_views(target, grid, crop=None, run={"seconds": float("nan")})
    assert not target.exists()


def test_an_incomplete_folder_is_not_read(tmp_path, grid):
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        read_views(tmp_path)
    write_views(tmp_path, grid, crop=None, run={})
    (tmp_path / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match="complete folder of views"):
        read_views(tmp_path)


def test_settings_travel_with_the_views(tmp_path, grid):
    made = replace(grid, settings={"sampler": ["euler", "karras"], "host": "first"})
    write_views(tmp_path / "one", made, run={"settings": {"host": "second"}})
    again = read_views(tmp_path / "one")
    assert again.settings == {"sampler": ["euler", "karras"], "host": "second"}
    write_views(tmp_path / "two", again)
    assert json.loads((tmp_path / "two/run.json").read_text())["settings"] == again.settings
    write_views(tmp_path / "three", grid)
    assert read_views(tmp_path / "three").settings is None
