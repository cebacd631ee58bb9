"""Scores of a grid of views: pairing with the reference, gaps, bad input, summaries."""

import math
from dataclasses import replace

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.consistency import match_errors, tangency_errors
from sv4d2_core.metrics.evaluate import (
    FHD_NAMES,
    FVD_NAMES,
    METRICS,
    Networks,
    evaluate,
    summarise,
)
from sv4d2_core.metrics.image import paired_views
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import make_creature, render_views

CAMERAS = Cameras((0, 0, 10, -5), (0, 60, 120, 300))


@pytest.fixture(scope="module")
def truth() -> ViewGrid:
    return render_views(make_creature(5), CAMERAS, 3, 32)


@pytest.fixture(scope="module")
def noisy(truth) -> ViewGrid:
    noise = torch.randn(truth.images.shape, generator=torch.Generator().manual_seed(0))
    return replace(truth, images=(truth.images + 0.05 * noise).clamp(0, 1))


def spoilt(grid: ViewGrid, frame: int, view: int, value: float) -> ViewGrid:
    images = grid.images.clone()
    images[frame, view, 10, 10] = value
    return replace(grid, images=images)


def test_equal_views_score_perfectly_and_noise_costs_in_every_metric(truth, noisy):
    scores = evaluate(truth, truth)
    summary = summarise([scores])
    assert summary.value("PSNR") == summary.value("PSNR fg") == summary.value("PSNR union") == math.inf
    for name in ("SSIM", "SSIM fg", "mask IoU"):
        assert summary.value(name) == pytest.approx(1, abs=1e-9)
    for name in FHD_NAMES.values():
        assert summary.value(name) == pytest.approx(0, abs=1e-9)
    assert scores.notes == () and scores.missing == ()
    worse = summarise([evaluate(noisy, truth)])
    unmoved = {"mask IoU", "tangency", "epipolar"}
    for name in {*worse.means, *worse.distances} - unmoved:
        a, b = summary.value(name), worse.value(name)
        assert a > b if METRICS[name].higher_is_better else a < b, name


def test_the_reference_row_has_only_what_needs_no_reference(truth):
    scores = evaluate(truth, method="reference")
    assert set(scores.values) == {"flicker", "acceleration", "warping", "tangency", "epipolar"}
    assert scores.features == {}
    assert torch.equal(scores.values["tangency"][0], tangency_errors(truth.masks[0], CAMERAS)[1:])
    matched = match_errors(truth.images[0], CAMERAS)[1:]
    assert torch.equal(scores.values["epipolar"][0].nan_to_num(), matched.nan_to_num())


def test_static_pixels_are_those_of_the_reference(truth):
    """A blink of the whole object shows on the reference's pixels, however quiet others are."""
    blinking = truth.images.clone()
    blinking[1, 1] = 1 - 0.5 * (1 - blinking[1, 1])
    scores = evaluate(replace(truth, images=blinking), truth)
    quiet = evaluate(truth, truth)
    assert scores.values["flicker"][0] > 3 * quiet.values["flicker"][0]
    assert scores.values["flicker"][1] == quiet.values["flicker"][1]


@pytest.mark.parametrize("has_masks", [True, False])
def test_bloat_costs_on_the_union_of_masks_only(truth, has_masks):
    """On the true mask a picture with a grey rim outside of it scores as one without."""
    spread = torch.nn.functional.max_pool2d(truth.masks, 5, 1, 2)
    images = torch.where((truth.masks == 0)[..., None], 1 - spread[..., None] / 2, truth.images)
    fat = evaluate(replace(truth, images=images, masks=spread if has_masks else None), truth).values
    assert fat["PSNR fg"].isposinf().all() and fat["PSNR union"].max() < 12
    # What is missing lies in the true mask, so both see it.
    white = evaluate(replace(truth, images=torch.ones_like(images), masks=None), truth).values
    assert torch.allclose(white["PSNR union"], white["PSNR fg"])


@pytest.mark.parametrize("cameras", [Cameras.sweep(4, 2.0), Cameras((0,) * 5, (0, 60, 60, 120, 180))])
def test_close_views_are_paired_with_themselves(cameras):
    images = torch.rand(1, cameras.n_views + 1, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    grid = ViewGrid(images, cameras)
    paired, missing = paired_views(grid, grid)
    assert missing == [] and torch.equal(paired.images, images)


def test_an_object_that_the_border_cuts_is_said(truth):
    masks = torch.zeros_like(truth.images[..., 0])
    masks[:2, 1, :, 20:] = 1
    notes = evaluate(replace(truth, masks=masks)).notes
    assert "The border cuts the object off in 2 images: outlines (tangency) disagree there." in notes


def test_views_are_paired_by_their_angles(truth):
    images, masks = (pixels[:, [0, 3, 1, 2]] for pixels in (truth.images, truth.masks))
    cameras = replace(truth.cameras.select([2, 0, 1]), azimuths_deg=(0, -60, 420, 120))
    shuffled = replace(truth, images=images, masks=masks, cameras=cameras)
    paired, missing = paired_views(shuffled, truth)
    assert missing == [] and torch.equal(paired.images, truth.images)
    assert paired.cameras == truth.cameras


def test_a_missing_view_is_marked_and_the_others_count(truth):
    cameras = truth.cameras.select([0, 2])
    fewer = replace(truth, images=truth.images[:, [0, 1, 3]], masks=None, cameras=cameras)
    scores = evaluate(fewer, truth)
    assert scores.missing == (2,)
    assert "Missing views: 2." in scores.notes
    assert any("Frechet distances leave out" in note for note in scores.notes)
    psnr = scores.values["PSNR"]
    assert psnr[:, 1].isnan().all() and psnr[:, [0, 2]].isposinf().all()
    assert scores.values["flicker"].isnan().tolist() == [False, True, False]
    assert scores.features["FHD-F"][0].shape[0] == 2
    assert summarise([scores]).n_missing == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_image_without_numbers_is_marked_and_named(truth, value):
    scores = evaluate(spoilt(truth, 1, 2, value), truth)
    assert scores.values["PSNR"].isnan().nonzero().tolist() == [[1, 1]]
    assert scores.values["warping"].isnan().tolist() == [[False, True, False]] * 2
    assert scores.values["flicker"].isnan().tolist() == [False, True, False]
    assert "View 2: 1 of 3 images hold NaN or infinite values." in scores.notes


def test_white_images_score_low_or_have_no_value(truth):
    white = replace(truth, images=torch.ones_like(truth.images), masks=None)
    scores = evaluate(white, truth)
    assert scores.values["mask IoU"].max() == 0
    # White is as steady as can be: no praise for that.
    for name in ("flicker", "acceleration", "warping", "tangency", "epipolar"):
        assert scores.values[name].isnan().all(), name
    assert "View 1: 3 of 3 images show no object." in scores.notes
    reversed_roles = evaluate(truth, white)
    assert reversed_roles.values["PSNR fg"].isnan().all()
    assert any("shows no object" in note for note in reversed_roles.notes)


def test_other_frames_sizes_or_cameras_are_refused_with_numbers(truth):

    elsewhere = replace(truth, cameras=Cameras((0, 0, 0, 0), (0, 10, 20, 30)))
    wide = replace(truth, images=truth.images[:, :, :24], masks=None)
    bright, without = spoilt(truth, 0, 1, 255.0), spoilt(truth, 0, 1, math.nan)
    for images, reference, message in (
        (truth.at_frames(range(2)), truth, r"Expected 3 frames of A.*got 2.*--frames 2"),
        (truth.resized(24), truth, r"Expected images of 32 x 32 pixels.*got 24 x 24.*--size 24"),
        (elsewhere, truth, r"azimuth 60 elevation 0.*got azimuth 10 elevation 0"),
        (wide, wide, "square images.*got 32 x 24"),
        (bright, truth, r"0\.\.1 in the images; got .* to 255"),
        (truth, bright, r"0\.\.1 in the reference; got .* to 255"),
        (truth, without, "finite values in the reference"),
        (truth.resized(11), None, "at least 12 x 12 pixels; got 11 x 11"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(images, reference, method="A")


def test_networks_add_the_columns_of_the_paper(truth):
    networks = Networks(
        lpips=lambda images, reference: (images - reference).abs().mean(dim=(1, 2, 3)),
        clip=lambda images: images.mean(dim=(1, 2)),
        i3d=lambda clips: clips.mean(dim=(1, 2, 3)),
    )
    scores = evaluate(truth, truth, networks)
    assert scores.values["LPIPS"].abs().max() == 0
    assert torch.allclose(scores.values["CLIP-S"], torch.ones(3, 3, dtype=torch.float64))
    # Clips of three images are too short for I3D: said, not computed.
    assert not set(FVD_NAMES.values()) & set(scores.features)
    assert "FVD-F needs clips of at least 10 images; these have 3." in scores.notes
    # Twelve frames are long enough along time, three views are not.
    longer = replace(truth, images=truth.images.repeat(4, 1, 1, 1, 1), masks=None)
    long_scores = evaluate(longer, longer, networks)
    assert {"FVD-F", "FVD-Diag", "FV4D"} <= set(long_scores.features)
    assert "FVD-V needs clips of at least 10 images; these have 3." in long_scores.notes
    assert long_scores.clip_lengths["FVD-F"] == 12


def test_a_summary_weighs_scenes_alike_and_clips_together(truth, noisy):
    scores = [evaluate(truth, truth, scene="a"), evaluate(noisy, truth, scene="b")]
    summary = summarise(scores)
    assert summary.n_scenes == 2
    # An equal image counts as 100 dB in a mean with others.
    assert summary.value("PSNR") == pytest.approx((100 + float(scores[1].values["PSNR"].mean())) / 2)
    assert summary.distances["FHD-F"].n_samples == 6 and summary.distances["FHD-V"].n_samples == 6
    assert summary.distances["FHD-F"].rank_deficient
    assert math.isnan(summary.value("LPIPS"))
    with pytest.raises(ValueError, match="those of 2"):
        summarise([scores[0], replace(scores[1], method="other")])
    # One view has no distance over frames.
    one = replace(truth, images=truth.images[:, :2], masks=None, cameras=truth.cameras.select([0]))
    summary = summarise([evaluate(one, one)])
    assert "FHD-F" not in summary.distances
    assert "FHD-F needs at least 2 clips; there is 1." in summary.notes


def test_every_step_is_told(truth):
    seen: list[tuple[int, int]] = []
    evaluate(truth, truth, callback=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 9) for i in range(1, 10)]


def test_an_input_view_of_another_crop_is_told(truth):
    zoomed = truth.resized(40)
    images, masks = zoomed.images[:, :, 4:-4, 4:-4], zoomed.masks[:, :, 4:-4, 4:-4]
    *_, note = evaluate(replace(zoomed, images=images, masks=masks), truth).notes
    assert "input view is not the reference's" in note
