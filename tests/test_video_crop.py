"""The crop: the recorded numbers of the reference, every canvas, every centring, and its undoing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch

from sv4d2_core.video.crop import CENTERINGS, CropPath
from sv4d2_core.video.prepare import prepare_clip
from sv4d2_core.video.read import Clip

GOLDEN = Path(__file__).parent / "data" / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())
SAME_PILLOW = PIL.__version__.split(".")[0] == INDEX["preprocess"]["pillow"].split(".")[0]
TOLERANCE = 0 if SAME_PILLOW else 2
RECORDED = [("preprocess", f"in_{case}", f"fixed_{case}") for case in sorted(INDEX["preprocess"]["cases"])]
RECORDED += [(f"e2e_{case}_input", "clip", "processed") for case in ("sv4d2_12", "sv4d2_21", "8views_9")]
# The modes that cut the object out.
CROPPING = [centering for centering in CENTERINGS if centering != "none"]


def grey_levels(images: torch.Tensor) -> np.ndarray:
    return (images * 255).round().numpy().astype(int)


def textured_object(height: int = 60, width: int = 90) -> np.ndarray:
    """RGBA ellipse with a pattern that shows every shift, in a box of the given size."""
    y, x = np.mgrid[:height, :width]
    inside = np.hypot((2 * y + 1) / height - 1, (2 * x + 1) / width - 1) <= 1
    rgba = np.stack([x * 2 % 200, y * 3 % 220, (x // 8 + y // 8) % 2 * 180, inside * 255], axis=-1)
    return (rgba * inside[..., None]).astype(np.uint8)


def draw(canvas: tuple[int, int], corners: list[tuple[int, int]], kind: str = "rgba", **shape) -> Clip:
    """A clip with the object's left top corner at (x, y) in each frame; empty where it is None."""
    thing = textured_object(**shape)
    frames = np.zeros((len(corners), *canvas, 4), np.uint8)
    for frame, corner in zip(frames, corners, strict=True):
        if corner is not None:
            x, y = corner
            frame[y : y + thing.shape[0], x : x + thing.shape[1]] = thing
    if kind == "rgba":
        return Clip(frames)
    alpha = frames[..., 3].copy()
    rgb = np.where(alpha[..., None] > 0, frames[..., :3], {"mask": 77, "rgb": 255}[kind]).astype(np.uint8)
    return Clip(rgb, masks=alpha if kind == "mask" else None)


def box_of(mask: torch.Tensor) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask.numpy() > 0.5)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize(("file", "source", "result"), RECORDED)
def test_recorded_clips_are_reproduced(file, source, result):
    with np.load(GOLDEN / f"{file}.npz") as golden:
        frames, expected = golden[source], golden[result]
    clips = [Clip(frames)]
    if frames.shape[-1] == 4:
        clips.append(Clip(frames[..., :3].copy(), masks=frames[..., 3].copy()))
    for clip in clips:
        prepared = prepare_clip(clip, size=64, ignore_specks=False)
        assert prepared.images.dtype == prepared.masks.dtype == torch.float32
        assert np.abs(grey_levels(prepared.images) - expected).max() <= TOLERANCE


@pytest.mark.parametrize("kind", ["rgba", "rgb", "mask"])
@pytest.mark.parametrize("centering", CROPPING)
def test_equal_offsets_from_the_centre_give_equal_crops_on_every_canvas(centering, kind):
    offsets = [(-80, -60), (-70, -50), (-62, -35), (-40, -30), (-35, -5), (-10, 0)]
    results = []
    for height, width in ((400, 400), (400, 712), (712, 400)):
        corners = [(width // 2 + x, height // 2 + y) for x, y in offsets]
        results.append(prepare_clip(draw((height, width), corners, kind), size=96, centering=centering))
    for other in results[1:]:
        assert other.crop.side == pytest.approx(results[0].crop.side)
        assert np.abs(grey_levels(other.images) - grey_levels(results[0].images)).max() <= 1


@pytest.mark.parametrize("centering", CENTERINGS)
def test_one_frame_is_enough_and_the_clip_is_not_changed(centering):
    clip = replace(draw((200, 300), [(99, 70)]), fps=12.5, name="walk.gif")
    before = clip.frames.copy()
    prepared = prepare_clip(clip, size=64, centering=centering)
    assert prepared.images.shape == (1, 64, 64, 3) and len(prepared.crop.centers) == prepared.n_frames == 1
    np.testing.assert_array_equal(clip.frames, before)
    assert (prepared.fps, prepared.name) == (12.5, "walk.gif")


def test_none_takes_the_whole_frame_on_a_square():
    wide = prepare_clip(draw((40, 60), [(5, 5)], height=20, width=30), size=60, centering="none")
    assert wide.crop.side == 60 and wide.crop.centers == ((30, 20),)
    assert bool((wide.images[:, :10] == 1).all()) and bool((wide.images[:, -10:] == 1).all())
    square = draw((64, 64), [(5, 5)], height=20, width=30)
    same = prepare_clip(square, size=64, centering="none")
    assert np.array_equal(grey_levels(same.masks), square.frames[..., 3])


def test_per_frame_puts_each_box_in_the_middle_at_one_scale():
    corners = [(0, 0), (100, 31), (250, 77), (310, 340)]
    prepared = prepare_clip(draw((400, 400), corners), size=200, centering="per_frame")
    for mask in prepared.masks:
        left, top, right, bottom = box_of(mask)
        assert abs((left + right) / 2 - 100) <= 0.5 and abs((top + bottom) / 2 - 100) <= 0.5
        assert right - left == pytest.approx(180, abs=2)


def test_smooth_follows_steady_motion_exactly_and_calms_a_trembling_one():
    steady = draw((400, 712), [(20 + 25 * t, 100 + 6 * t) for t in range(21)])
    smooth, own = (prepare_clip(steady, size=64, centering=mode).crop for mode in ("smooth", "per_frame"))
    np.testing.assert_allclose(smooth.centers, own.centers, atol=1e-6)
    assert smooth.side == pytest.approx(own.side)
    trembling = draw((400, 712), [(20 + 25 * t, 100 + 12 * (t % 2)) for t in range(21)])
    smooth, own = (prepare_clip(trembling, size=64, centering=mode).crop for mode in ("smooth", "per_frame"))
    calm, restless = (np.abs(np.diff(c.centers, n=2, axis=0)).max() for c in (smooth, own))
    assert restless == pytest.approx(24) and calm < 6


@pytest.mark.parametrize("centering", CROPPING)
@pytest.mark.parametrize(
    ("object_ratio", "canvas"), [(0.5, (401, 713)), (0.9, (711, 399)), (1.0, (400, 712))]
)
def test_the_object_stays_within_its_share_of_the_crop(centering, object_ratio, canvas):
    corners = [(30, 200), (60, 40), (300, 300), (20, 330), (200, 10), (205, 15), (90, 90), (0, 0)]
    prepared = prepare_clip(draw(canvas, corners), size=180, centering=centering, object_ratio=object_ratio)
    boxes = np.array([box_of(mask) for mask in prepared.masks])
    margin = min(boxes.min(), 180 - boxes.max())
    assert margin == pytest.approx((1 - object_ratio) / 2 * 180, abs=1.5), (
        "the farthest reach fills the share"
    )


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("canvas", [(300, 451), (333, 300)])
def test_crop_path_maps_prepared_pixels_back_to_the_source(centering, canvas):
    corners = [(11, 35), (60, 90), (121, 160), (205, 239)]
    clip = draw(canvas, corners, height=60, width=81)
    prepared = prepare_clip(clip, size=128, centering=centering)
    content = json.loads(json.dumps(prepared.crop.to_json()))
    crop = CropPath.from_json(content)
    assert crop == prepared.crop
    del content["side"]
    with pytest.raises(ValueError, match="a number .* as side in the crop; got none"):
        CropPath.from_json(content)
    assert prepared.images.shape == (4, 128, 128, 3) and prepared.masks.shape == (4, 128, 128)
    for t, mask in enumerate(prepared.masks):
        weights = mask.numpy()
        y, x = np.mgrid[:128, :128] + 0.5
        centroid = (np.average(x, weights=weights), np.average(y, weights=weights))
        in_source = crop.source_from_crop(t, centroid)
        np.testing.assert_allclose(in_source, (corners[t][0] + 40.5, corners[t][1] + 30), atol=0.15)


@pytest.mark.parametrize("kind", ["rgba", "rgb", "mask"])
def test_a_speck_does_not_set_the_box(kind):
    clean = draw((400, 400), [(150, 160)] * 3, kind)
    spoiled = draw((400, 400), [(150, 160)] * 3, kind)
    spoiled.frames[1, 3:9, 3:9] = (0, 0, 0, 255)[: spoiled.frames.shape[-1]]
    if spoiled.masks is not None:
        spoiled.masks[1, 3:9, 3:9] = 255
    assert torch.equal(prepare_clip(clean, size=64).images, prepare_clip(spoiled, size=64).images)
    assert prepare_clip(spoiled, size=64, ignore_specks=False).crop.side > 1.5 * prepare_clip(clean).crop.side


@pytest.mark.parametrize("centering", CROPPING)
def test_empty_frames_stay_white_and_do_not_set_the_box(centering):
    corners = [None, (150, 160), None, None, (153, 166), None]
    prepared = prepare_clip(draw((400, 400), corners), size=64, centering=centering)
    full = prepare_clip(draw((400, 400), [(150, 160), (153, 166)]), size=64, centering=centering)
    assert prepared.crop.side == pytest.approx(full.crop.side, rel=0.02)
    for t, corner in enumerate(corners):
        assert (prepared.masks[t].max() > 0.99) == (corner is not None)
        if corner is None:
            assert prepared.images[t].min() == 1
    assert "4 of 6 frames are empty: 0, 2, 3, 5" in " ".join(prepared.report)


def test_images_are_on_white_and_masks_match_them():
    clip = draw((200, 300), [(20, 70), (150, 90)], "mask")
    prepared = prepare_clip(clip, size=96)
    assert 0 <= prepared.images.min() and prepared.images.max() == 1
    assert (prepared.images[prepared.masks == 0] == 1).all(), "the grey surroundings are gone"
    assert (prepared.images[prepared.masks > 0.9] < 1).any(dim=-1).all()
    alone = prepare_clip(draw((200, 300), [(20, 70), (150, 90)], "rgb"), size=96)
    assert (alone.masks - prepared.masks).abs().mean() < 0.01


def test_an_object_that_fills_the_frame_gets_a_margin():
    frames = np.full((2, 90, 160, 3), 80, np.uint8)
    prepared = prepare_clip(Clip(frames, masks=np.full((2, 90, 160), 255, np.uint8)), size=100)
    assert box_of(prepared.masks[0])[0] == pytest.approx(5, abs=1)
    assert prepared.crop.side == int(160 / 0.9)
    assert len([line for line in prepared.report if "touches" in line]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "got 0"),
        ({"size": -64}, "got -64"),
        ({"size": 57.5}, "got 57.5"),
        ({"centering": "middle"}, "global or per_frame or smooth or none; got 'middle'"),
        ({"object_ratio": 0.001}, "0.1 to 1; got 0.001"),
        ({"object_ratio": 1.2}, "got 1.2"),
        ({"object_ratio": float("nan")}, "got nan"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        prepare_clip(draw((100, 100), [(5, 5)]), **options)
