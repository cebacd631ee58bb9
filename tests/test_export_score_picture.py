"""The picture of compared views and their errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ImageDraw

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.plots import score_picture
from sv4d2_core.metrics.report.plots import scene_pictures
from sv4d2_core.metrics.report.svg import ramp
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


def boxes(page: NDArray, colour: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Return left, top, width and height of every box that is filled with a colour, row by row."""
    hits = (page == np.array(colour)).all(axis=-1)
    starts = hits & ~np.roll(hits, 1, axis=0) & ~np.roll(hits, 1, axis=1)
    found = []
    for top, left in zip(*starts.nonzero(), strict=True):
        width, height = np.argmin(hits[top, left:]), np.argmin(hits[top:, left])
        if width > 100:
            assert hits[top : top + height, left : left + width].all()
            found.append((int(left), int(top), int(width), int(height)))
    return found


def test_truth_prediction_and_error_stand_below_each_other(drawn_text):
    page = np.asarray(score_picture(compared(plain(PREDICTED), plain(TRUE))))
    # An error of 0.067 is three quarters of the scale, which ends at the next multiple of 0.05 above it.
    rows = [boxes(page, colour) for colour in (TRUE, PREDICTED, tuple(ramp(ERROR / 0.1)))]
    columns = [[left for left, *_ in row] for row in rows]
    assert columns[0] == columns[1] == columns[2] and len(set(columns[0])) == 3
    tops = [{top for _, top, *_ in row} for row in rows]
    assert [len(top) for top in tops] == [1, 1, 1] and min(tops[0]) < min(tops[1]) < min(tops[2])
    assert {(width, height) for row in rows for *_, width, height in row} == {(160, 160)}
    labels = ["view 1 · 90°", "view 2 · 180°", "view 3 · 270°"]
    assert drawn_text[:4] == ["Frame 0, the middle one", *labels]
    assert drawn_text[4:7] == ["reference", "ours", "error of ours"] and drawn_text[-2:] == ["0", "0.10"]


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
    assert [box[2:] for box in boxes(page, TRUE)] == [(160, 160)]
    assert page.shape[1] > 2 * 160, "the words have room"


def test_texts_fit_their_columns(monkeypatch):
    widths = []
    text = ImageDraw.ImageDraw.text

    def measuring(self, position, string, fill, font, **kwargs):
        widths.append((string, font.getlength(string)))
        return text(self, position, string, fill, font, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", measuring)
    views = plain(TRUE, 2)
    exact = Cameras((0, -12.25, 12.25), (0, 123.45, 234.56))
    score_picture(compared(ViewGrid(views.images, exact), None))
    assert max(width for words, width in widths if words.startswith("view ")) <= 160
