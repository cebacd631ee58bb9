"""The picture of compared views and their errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from numpy.typing import NDArray
from skimage.measure import label, regionprops

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.plots import score_picture
from sv4d2_core.metrics.report.plots import ramp, scene_pictures
from sv4d2_core.metrics.report.tables import SceneComparison
from sv4d2_core.views import ViewGrid

torch.set_num_threads(1)

TRUE, PREDICTED = (204, 51, 102), (204, 51, 51)
ERROR = (102 - 51) / 3 / 255


def plain(colour: tuple[int, int, int], n_views: int = 3, size: int = 64) -> ViewGrid:
    images = torch.tensor(colour).div(255).expand(2, n_views + 1, size, size, 3).clone()
    return ViewGrid(images, Cameras.ring(n_views))


def compared(predicted: ViewGrid, reference: ViewGrid | None, untrained: bool = False) -> SceneComparison:
    """Return what `compare` would, without the scores."""
    pictures = scene_pictures({"ours": predicted}, reference, [])
    return SceneComparison("", (), pictures, (), untrained=frozenset(["ours"] if untrained else []))


def boxes(page: NDArray, colour: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the middle (x, y) of every picture of a colour, give or take its edge, row by row."""
    hits = (np.abs(page.astype(int) - np.array(colour)) <= 2).all(axis=-1)
    regions = [region for region in regionprops(label(hits)) if region.area > 100 * 100]
    assert all(abs(region.area - 160 * 160) < 4 * 160 * 2 for region in regions)
    middles = sorted(tuple(np.round(np.array(region.centroid)).astype(int)) for region in regions)
    return [(int(x), int(y)) for y, x in middles]


def test_truth_prediction_and_error_stand_in_columns(drawn_text):
    page = np.asarray(score_picture(compared(plain(PREDICTED), plain(TRUE))))
    # An error of 0.067 is three quarters of the scale, which ends at the next multiple of 0.05 above it.
    true, predicted, error = (boxes(page, colour) for colour in (TRUE, PREDICTED, tuple(ramp(ERROR / 0.1))))
    assert [x for x, _ in true] == [x for x, _ in predicted] and len(true) == len(error) == 3
    assert max(y for _, y in true) < min(y for _, y in predicted)
    assert [y for _, y in predicted] == [y for _, y in error]
    assert max(x for x, _ in predicted) < min(x for x, _ in error)
    labels = {"view 1 · 90°", "view 2 · 180°", "view 3 · 270°"}
    assert {"Frame 0, the middle one", "reference", "ours", "error of ours", "0.10", *labels} <= set(
        drawn_text
    )


def test_equal_views_have_the_colour_of_no_error():
    page = np.asarray(score_picture(compared(plain(TRUE), plain(TRUE))))
    assert len(boxes(page, TRUE)) == 6
    assert len(boxes(page, tuple(ramp(0.0)))) == 3


def test_without_truth_there_are_no_errors(drawn_text):
    page = score_picture(compared(plain(PREDICTED), None))
    assert len(boxes(np.asarray(page), PREDICTED)) == 3 and page.height < 2 * 160
    assert not any("error" in words for words in drawn_text)


def test_a_missing_view_is_named(drawn_text):
    fewer = plain(PREDICTED)
    fewer = ViewGrid(fewer.images[:, [0, 1, 3]], fewer.cameras.select([0, 2]))
    page = np.asarray(score_picture(compared(fewer, plain(TRUE))))
    assert drawn_text.count("missing") == 2 and len(boxes(page, PREDICTED)) == 2


def test_untrained_weights_are_announced_in_red(drawn_text):
    calm = np.asarray(score_picture(compared(plain(TRUE), None)))
    warned = np.asarray(score_picture(compared(plain(TRUE), None, untrained=True)))
    assert "ours: UNTRAINED WEIGHTS: noise is expected" in drawn_text
    red = (warned == (255, 0, 0)).all(axis=-1)
    assert red.any() and warned.shape[0] > calm.shape[0]


@pytest.mark.parametrize("size", [8, 64, 300])
def test_views_of_any_size_are_drawn_equally_large(size):
    page = np.asarray(score_picture(compared(plain(PREDICTED, 1, size), plain(TRUE, 1, size))))
    assert len(boxes(page, TRUE)) == 1
    assert page.shape[1] > 2 * 160, "the words have room"


def test_captions_fit_their_columns(monkeypatch):
    widths = []
    draw = Text.draw

    def measuring(self, renderer):
        if self.get_text().startswith("view "):
            widths.append(self.get_window_extent(renderer).width)
        return draw(self, renderer)

    monkeypatch.setattr(Text, "draw", measuring)
    views = plain(TRUE, 2)
    exact = Cameras((0, -12.25, 12.25), (0, 123.45, 234.56))
    score_picture(compared(ViewGrid(views.images, exact), None))
    assert len(widths) == 2 and max(widths) <= 160
