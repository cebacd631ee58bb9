"""The picture of the cameras: each where it stands, the input in another colour, all angles written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.export import plots as module
from sv4d2_core.export.plots import rig_picture

torch.set_num_threads(1)

CAMERAS = Cameras((0, 0, 40, -30), (0, 90, 180, 270))


@pytest.fixture
def written(monkeypatch) -> dict[str, tuple[float, float]]:
    """What was written, and where (badges in the enlarged picture)."""
    places = {}
    text = module.ImageDraw.ImageDraw.text

    def recording(self, position, string, *args, **kwargs):
        places.setdefault(string, position)
        return text(self, position, string, *args, **kwargs)

    monkeypatch.setattr(module.ImageDraw.ImageDraw, "text", recording)
    return places


def pixels_near(picture, colour, tolerance=12) -> np.ndarray:
    return (np.abs(np.asarray(picture).astype(int) - colour).max(-1) <= tolerance).nonzero()


def test_cameras_stand_around_the_object(written):
    rig_picture(CAMERAS)
    front, right, back, left = (np.array(written[name]) for name in ("in", "1", "2", "3"))
    # x grows to the right and y down: what is nearer is drawn lower, positive azimuth is on the right.
    assert right[0] > front[0] > left[0] and right[0] > back[0] > left[0]
    assert back[1] < min(front[1], right[1])
    level = Cameras((0, 0, 0, 0), CAMERAS.azimuths_deg)
    before = dict(written)
    written.clear()
    rig_picture(level)
    raised, sunk = (
        written[name][1] - written["1"][1] - (before[name][1] - before["1"][1]) for name in ("2", "3")
    )
    assert raised > 100 and sunk < -100, "a positive elevation is up, a negative one down"


def test_the_input_is_orange_and_the_others_blue(written):
    picture = rig_picture(CAMERAS)
    x, y = (c / module._OVERSAMPLING for c in written["in"])
    rows, columns = pixels_near(picture, module._INPUT)
    near = (np.abs(rows - y) < 20) & (np.abs(columns - x) < 20)
    assert near.sum() > 300, "its badge"
    for name in ("1", "2", "3"):
        x, y = (c / module._OVERSAMPLING for c in written[name])
        left_of_digit = np.asarray(picture)[round(y), round(x) - 13].astype(int)
        assert left_of_digit[2] > left_of_digit[0] + 60, f"badge {name} is blue"


def test_all_angles_are_written(written):
    rig_picture(replace(CAMERAS, input_elevation_deg=12.5, radius=3))
    assert {"input", "1", "2", "3"} <= written.keys()
    assert {"az 0°   el 0°", "az 90°   el 0°", "az 180°   el 40°", "az 270°   el -30°"} <= written.keys()
    assert "radius 3   field of view 33.8°   input camera at elevation 12.5°" in written


def test_many_cameras_fit_and_what_is_left_out_is_counted(written):
    picture = rig_picture(Cameras.rings(32, (-30, 0)))
    assert "and 42 more" in written and "az 78.8°   el -30°" in written
    assert {str(v) for v in range(1, 65)} <= written.keys(), "every camera has its number in the scene"
    written.clear()
    few = rig_picture(Cameras.sweep(23, 360, 15))
    assert not any("more" in text for text in written)
    assert picture.height < few.height + 100


@pytest.mark.parametrize(
    "cameras",
    [
        Cameras.official("sv4d2"),
        Cameras.official("sv4d2_8views"),
        Cameras((0, 89), (0, 0)),
        Cameras((0, -89), (0, 10)),
        replace(Cameras.ring(4), input_elevation_deg=89, fov_deg=170, radius=100),
        replace(Cameras.ring(4), input_elevation_deg=-60, fov_deg=1, radius=0.01),
        Cameras.sweep(64, -360, 60),
        Cameras((0, 0), (0, 0.001)),
    ],
)
def test_nothing_is_cut_off(cameras):
    picture = rig_picture(cameras)
    assert picture.mode == "RGB" and picture.width == 720 and 300 < picture.height < 900
    pixels = np.asarray(picture)
    for border in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (border == 255).all()
    assert (pixels < 200).any(-1).sum() > 1000
