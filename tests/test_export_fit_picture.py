"""The picture of a fit: losses, residuals, and pairs of pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.plots import fit_picture, loss_plot
from sv4d2_core.metrics.report.plots import ramp

torch.set_num_threads(1)

LOSSES = [(step, 0.5 * 0.99**step) for step in range(1, 101)]
NO_VALUE = (221, 221, 221)


def places(page: Image.Image, colour: tuple[int, ...]) -> np.ndarray:
    """Return row and column [N, 2] of every pixel of a colour, give or take rounding."""
    return np.argwhere((np.abs(np.asarray(page).astype(int) - np.array(colour)) <= 3).all(axis=-1))


def of_residuals(values: list[list[float]]) -> Image.Image:
    residuals = torch.tensor(values)
    return fit_picture(LOSSES, residuals, Cameras.ring(residuals.shape[1] - 1))


def median_heights(page: Image.Image) -> list[float]:
    """Return the mean row of the median line, which is strongly blue, in every column that shows it."""
    red, _, blue = np.asarray(page).transpose(2, 0, 1)
    rows, columns = ((red < 90) & (blue > 150)).nonzero()
    return [float(rows[columns == column].mean()) for column in np.unique(columns)]


@pytest.mark.parametrize(("n_frames", "n_views"), [(21, 8), (12, 4), (1, 1), (300, 2), (3, 40)])
def test_a_page_of_fixed_width_holds_a_row_per_view(n_frames, n_views):
    page = fit_picture(LOSSES, torch.rand(n_frames, n_views + 1), Cameras.ring(n_views))
    assert page.mode == "RGB" and page.width == 1200
    assert page.height >= max(320, 24 * n_views)


def test_the_worst_cell_has_the_darkest_colour_and_others_their_share():
    page = of_residuals([[0.0, 0.1], [0.05, 0.2]])
    by_amount = [places(page, tuple(ramp(share))) for share in (0.0, 0.25, 0.5, 1.0)]
    middles = [np.median(found, axis=0) for found in by_amount]
    brightness = [ramp(share).sum() for share in (0.0, 0.25, 0.5, 1.0)]
    assert brightness == sorted(brightness, reverse=True)
    assert all(len(found) > 500 for found in by_amount)
    frame0_input, frame1_input, frame0_view, frame1_view = middles
    row, column = (frame0_view - frame0_input)[0], (frame1_input - frame0_input)[1]
    assert row > 24 and column > 24, "a row per view, a column per frame"
    assert np.abs(frame1_view - frame0_input - (row, column)).max() < 10
    assert abs(frame0_view - frame0_input)[1] < 10 and abs(frame1_input - frame0_input)[0] < 10


def test_cells_without_a_value_are_grey_and_out_of_the_mean(drawn_text):
    full = places(of_residuals([[0.1, 0.3], [0.1, 0.5]]), NO_VALUE)
    gaps = places(of_residuals([[math.nan, 0.3], [math.inf, math.nan]]), NO_VALUE)
    assert len(full) < 400 < 1000 < len(gaps)
    second = drawn_text[len(drawn_text) // 2 :]
    assert {"–", "0.3000"} <= set(second) and "grey: no value\nworst: view 1, frame 0" in second


def test_views_are_named_and_the_worst_cell_is_found(drawn_text):
    residuals = torch.full((5, 4), 0.1)
    residuals[3, 2] = 0.4
    fit_picture(LOSSES, residuals, Cameras.ring(3), title="a title")
    assert {"a title", "input", "view 1 · 90°", "view 2 · 180°", "view 3 · 270°"} <= set(drawn_text)
    assert "worst: view 2, frame 3" in drawn_text and "0.1600" in drawn_text and "0.4" in drawn_text


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_without_any_residual_nothing_is_worst(drawn_text, value):
    of_residuals([[value, value]])
    assert not any("worst" in words for words in drawn_text)


def test_equal_factors_are_equal_distances():
    step = [loss for level in (0.4, 0.04, 0.004) for loss in 40 * [level]]
    heights = median_heights(loss_plot(list(enumerate(step)), 560, 320))
    levels = heights[0], heights[len(heights) // 2], heights[-1]
    assert (
        levels[1] - levels[0] == pytest.approx(levels[2] - levels[1], abs=1.1) and levels[1] > levels[0] + 50
    )


def test_the_median_ignores_a_spike_that_the_thin_line_shows():
    losses = [(step, 0.1) for step in range(5000)]
    losses[2500] = (2500, 10.0)
    page = loss_plot(losses, 560, 320)
    heights = median_heights(page)
    assert max(heights) - min(heights) < 1
    above = np.asarray(page)[40 : int(min(heights)) - 20, 64:532].astype(int)
    bluish = (above[..., 2] - above[..., 0] > 20).any(axis=1)
    assert bluish.mean() > 0.8, "the spike reaches up to the top"


@pytest.mark.parametrize(
    ("losses", "note"),
    [
        ([(1, 0.0), (2, 0.0)], "2 of 2 losses"),
        ([(1, 0.3), (2, math.nan), (3, 0.2), (4, math.inf)], "2 of 4 losses"),
        ([(7, 0.2)], None),
        ([(1, 0.2), (2, 0.2), (3, 0.2)], None),
        ([(1, 1e-30), (2, 1e30)], None),
    ],
)
def test_odd_losses_are_drawn_or_counted(drawn_text, losses, note):
    page = loss_plot(losses, 560, 320)
    assert bool(median_heights(page)) == any(0 < loss < math.inf for _, loss in losses)
    notes = [words for words in drawn_text if "losses are" in words]
    assert notes == [] if note is None else notes[0].startswith(note)


def pictures(value: float, count: int = 3, size: tuple[int, int] = (40, 40)) -> Tensor:
    return torch.full((count, *size, 3), value)


@pytest.mark.parametrize("size", [(40, 40), (20, 60), (600, 300)])
def test_the_scene_stands_below_its_views(size):
    seen, scene = pictures(0.4, size=size), pictures(0.8, size=size)
    page = fit_picture(LOSSES, torch.rand(2, 3), Cameras.ring(2), rendered=scene, views=seen)
    # The words, which have these colours, too, stand above and at the left.
    pairs = page.crop((65, 320, *page.size))
    above, below = places(pairs, (102, 102, 102)), places(pairs, (204, 204, 204))
    assert above[:, 0].max() < below[:, 0].min()
    assert len(above) == pytest.approx(len(below), rel=0.05) and len(above) > 10000
    assert np.median(above[:, 1]) == pytest.approx(np.median(below[:, 1]), abs=3)


def test_of_many_pairs_some_are_shown():
    args = LOSSES, torch.rand(2, 3), Cameras.ring(2)
    few = fit_picture(*args, rendered=pictures(0.6, 8), views=pictures(0.2, 8))
    many = fit_picture(*args, rendered=pictures(0.6, 100), views=pictures(0.2, 100))
    assert few.size == many.size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": []}, "at least one loss"),
        ({"losses": [(2, 0.1), (2, 0.1)]}, "step 2 after step 2"),
        ({"residuals": torch.zeros(5, 3)}, r"residuals \[T, 4\].*got \[5, 3\]"),
        ({"residuals": torch.zeros(0, 4)}, r"got \[0, 4\]"),
        ({"residuals": torch.zeros(4)}, r"got \[4\]"),
        ({"views": None}, "views is missing"),
        ({"rendered": None}, "rendered is missing"),
        ({"rendered": pictures(0.5, 2)}, r"\[2, 40, 40, 3\] and \[3, 40, 40, 3\]"),
        ({"rendered": pictures(0.5, 0), "views": pictures(0.5, 0)}, r"\[0, 40, 40, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    good = {
        "losses": LOSSES,
        "residuals": torch.zeros(5, 4),
        "rendered": pictures(0.5),
        "views": pictures(0.5),
    }
    given = good | change
    with pytest.raises(ValueError, match=message):
        fit_picture(given.pop("losses"), given.pop("residuals"), Cameras.ring(3), **given)
