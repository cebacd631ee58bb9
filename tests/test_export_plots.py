"""The pictures of a fit, of compared views, of cameras and of all views, and the plot of losses."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import label, regionprops
from torch import Tensor

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.plots import fit_picture, loss_plot, rig_picture, score_picture
from sv4d2_core.metrics.report.plots import ramp, scene_pictures
from sv4d2_core.metrics.report.tables import SceneComparison
from sv4d2_core.video.pictures import UNTRAINED_LABEL, frame_strip, view_mosaic
from sv4d2_core.views import ViewGrid

LOSSES = [(step, 0.5 * 0.99**step) for step in range(1, 101)]
NO_VALUE = (221, 221, 221)


@pytest.fixture
def extents(monkeypatch) -> dict[str, tuple[float, float, float]]:
    """Every text that is drawn: its middle, x to the right and y up, and its width, in pixels."""
    found = {}
    draw = Text.draw

    def measuring(self, renderer):
        box = self.get_window_extent(renderer)
        found.setdefault(self.get_text(), ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2, box.width))
        return draw(self, renderer)

    monkeypatch.setattr(Text, "draw", measuring)
    return found


def places(page: Image.Image, colour: tuple[int, ...]) -> NDArray:
    """Return row and column [N, 2] of every pixel of a colour, give or take rounding."""
    return np.argwhere((np.abs(np.asarray(page).astype(int) - np.array(colour)) <= 3).all(axis=-1))


def pictures(value: float, count: int = 3, size: tuple[int, int] = (40, 40)) -> Tensor:
    return torch.full((count, *size, 3), value)


def of_residuals(residuals: Tensor) -> Image.Image:
    cameras = Cameras.ring(residuals.shape[1] - 1)
    return fit_picture(LOSSES, residuals, cameras, pictures(1.0, 1, (8, 8)), pictures(1.0, 1, (8, 8)))


def median_heights(page: Image.Image) -> list[float]:
    """Return the mean row of the median line, which is strongly blue, in every column that shows it."""
    red, _, blue = np.asarray(page).transpose(2, 0, 1)
    rows, columns = ((red < 90) & (blue > 150)).nonzero()
    return [float(rows[columns == column].mean()) for column in np.unique(columns)]


@pytest.mark.parametrize(("n_frames", "n_views"), [(21, 8), (1, 1), (300, 2), (3, 40)])
def test_a_page_of_fixed_width_holds_a_row_per_view(n_frames, n_views):
    page = of_residuals(torch.rand(n_frames, n_views + 1))
    assert page.mode == "RGB" and page.width == 1200
    assert page.height >= max(320, 24 * n_views)


def test_the_worst_cell_has_the_darkest_colour_and_others_their_share():
    page = of_residuals(torch.tensor([[0.0, 0.1], [0.05, 0.2]]))
    by_amount = [places(page, tuple(ramp(share))) for share in (0.0, 0.25, 0.5, 1.0)]
    brightness = [ramp(share).sum() for share in (0.0, 0.25, 0.5, 1.0)]
    assert brightness == sorted(brightness, reverse=True)
    assert all(len(found) > 500 for found in by_amount)
    frame0_input, frame1_input, frame0_view, frame1_view = (np.median(found, axis=0) for found in by_amount)
    row, column = (frame0_view - frame0_input)[0], (frame1_input - frame0_input)[1]
    assert row > 24 and column > 24, "a row per view, a column per frame"
    assert np.abs(frame1_view - frame0_input - (row, column)).max() < 10
    assert abs(frame0_view - frame0_input)[1] < 10 and abs(frame1_input - frame0_input)[0] < 10


def test_cells_without_a_value_are_grey_and_out_of_the_mean(drawn_text):
    full = places(of_residuals(torch.tensor([[0.1, 0.3], [0.1, 0.5]])), NO_VALUE)
    drawn_text.clear()
    gaps = places(of_residuals(torch.tensor([[math.nan, 0.3], [math.inf, math.nan]])), NO_VALUE)
    assert len(full) < 400 < 1000 < len(gaps)
    assert {"–", "0.3000", "grey: no value\nworst: view 1, frame 0"} <= set(drawn_text)


def test_views_are_named_and_the_worst_cell_is_found(drawn_text):
    residuals = torch.full((5, 4), 0.1)
    residuals[3, 2] = 0.4
    of_residuals(residuals)
    assert {"input", "view 1 · 90°", "view 2 · 180°", "view 3 · 270°"} <= set(drawn_text)
    assert {"worst: view 2, frame 3", "0.1600", "0.4"} <= set(drawn_text)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_without_any_residual_nothing_is_worst(drawn_text, value):
    of_residuals(torch.full((1, 2), value))
    assert not any("worst" in words for words in drawn_text)


@pytest.mark.parametrize("size", [(40, 40), (20, 60), (600, 300)])
def test_the_scene_stands_below_its_views(size):
    seen, scene = pictures(0.4, size=size), pictures(0.8, size=size)
    page = fit_picture(LOSSES, torch.rand(2, 3), Cameras.ring(2), scene, seen)
    # The words, which have these colours, too, stand above and at the left.
    pairs = page.crop((65, 320, *page.size))
    above, below = places(pairs, (102, 102, 102)), places(pairs, (204, 204, 204))
    assert above[:, 0].max() < below[:, 0].min()
    assert len(above) == pytest.approx(len(below), rel=0.05) and len(above) > 10000
    assert np.median(above[:, 1]) == pytest.approx(np.median(below[:, 1]), abs=3)


def test_equal_factors_are_equal_distances():
    step = [loss for level in (0.4, 0.04, 0.004) for loss in 40 * [level]]
    heights = median_heights(loss_plot(list(enumerate(step)), 560, 320))
    first, second, last = heights[0], heights[len(heights) // 2], heights[-1]
    assert second - first == pytest.approx(last - second, abs=1.1) and second > first + 50


def test_the_median_ignores_a_spike_that_the_thin_line_shows():
    losses = [(step, 10.0 if step == 2500 else 0.1) for step in range(5000)]
    page = loss_plot(losses, 560, 320)
    heights = median_heights(page)
    assert max(heights) - min(heights) < 1
    above = np.asarray(page)[40 : int(min(heights)) - 20, 64:532].astype(int)
    bluish = (above[..., 2] - above[..., 0] > 20).any(axis=1)
    assert bluish.mean() > 0.8, "the spike reaches up to the top"


@pytest.mark.parametrize(
    ("losses", "note"),
    [
        ([], None),
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


TRUE, PREDICTED = (204, 51, 102), (204, 51, 51)
ERROR = (102 - 51) / 3 / 255


def plain(colour: tuple[int, int, int], n_views: int = 3, size: int = 64) -> ViewGrid:
    images = torch.tensor(colour).div(255).expand(2, n_views + 1, size, size, 3).clone()
    return ViewGrid(images, Cameras.ring(n_views))


def compared(predicted: ViewGrid, reference: ViewGrid | None, untrained: bool = False) -> SceneComparison:
    """Return what `compare` would, without the scores."""
    shown = scene_pictures({"ours": predicted}, reference, [])
    return SceneComparison("", (), shown, (), untrained=frozenset(["ours"] if untrained else []))


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
    labels = {"view 1 · 90°", "view 2 · 180°", "view 3 · 270°", "reference", "ours", "error of ours", "0.10"}
    assert labels | {"Frame 0, the middle one"} <= set(drawn_text)


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
    assert (warned == (255, 0, 0)).all(axis=-1).any() and warned.shape[0] > calm.shape[0]


def test_captions_fit_their_columns(extents):
    exact = Cameras((0, -12.25, 12.25), (0, 123.45, 234.56))
    score_picture(compared(ViewGrid(plain(TRUE, 2).images, exact), None))
    widths = [width for words, (*_, width) in extents.items() if words.startswith("view ")]
    assert len(widths) == 2 and max(widths) <= 160


RIG = Cameras((0, 0, 40, -30), (0, 90, 180, 270))


def test_cameras_stand_around_the_object(extents):
    rig_picture(RIG)
    front, right, back, left = (extents[name] for name in ("in", "1", "2", "3"))
    # What is nearer is drawn lower, positive azimuth is on the right.
    assert right[0] > front[0] > left[0] and right[0] > back[0] > left[0]
    assert back[1] > max(front[1], right[1])
    before = dict(extents)
    extents.clear()
    rig_picture(replace(RIG, elevations_deg=(0, 0, 0, 0)))
    raised, sunk = (
        (before[name][1] - before["1"][1]) - (extents[name][1] - extents["1"][1]) for name in ("2", "3")
    )
    assert raised > 100 and sunk < -100, "a positive elevation is up, a negative one down"


def test_the_input_is_orange_and_the_others_blue(extents):
    pixels = np.asarray(rig_picture(RIG)).astype(int)
    for name in ("in", "1", "2", "3"):
        x, y, _ = extents[name]
        left_of_text = pixels[round(pixels.shape[0] - y), round(x) - 14]
        red_over_blue = left_of_text[0] - left_of_text[2]
        assert red_over_blue > 100 if name == "in" else red_over_blue < -60


def test_all_angles_are_written(drawn_text):
    rig_picture(replace(RIG, input_elevation_deg=12.5, radius=3))
    angles = {"az 0°   el 0°", "az 90°   el 0°", "az 180°   el 40°", "az 270°   el -30°"}
    assert {"input", "1", "2", "3", *angles} <= set(drawn_text)
    assert "radius 3   field of view 33.8°   input camera at elevation 12.5°" in drawn_text


def test_many_cameras_fit_and_what_is_left_out_is_counted(drawn_text):
    picture = rig_picture(Cameras.rings(32, (-30, 0)))
    assert "and 42 more" in drawn_text and "az 78.8°   el -30°" in drawn_text
    assert {str(v) for v in range(1, 65)} <= set(drawn_text), "every camera has its number in the scene"
    drawn_text.clear()
    few = rig_picture(Cameras.sweep(23, 360, 15))
    assert not any("more" in text for text in drawn_text)
    assert picture.height < few.height + 100


@pytest.mark.parametrize(
    "cameras",
    [
        Cameras.official("sv4d2_8views"),
        Cameras((0, 89), (0, 0)),
        Cameras((0, -89), (0, 10)),
        RIG,
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


def coloured(n_frames: int = 3, n_views: int = 4, size: int = 64) -> ViewGrid:
    """Every frame of every view is of one colour of its own: (view / 10, frame / 10, 0.5)."""
    images = torch.full((n_frames, n_views + 1, size, size, 3), 0.5)
    images[..., 0] = torch.arange(n_views + 1).view(1, -1, 1, 1) / 10
    images[..., 1] = torch.arange(n_frames).view(-1, 1, 1, 1) / 10
    return ViewGrid(images, Cameras.ring(n_views))


def cell_of(frame: torch.Tensor, colour: tuple[float, float, float]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the pixels of a colour, which must fill that box."""
    hits = (frame - torch.tensor(colour)).abs().amax(-1) < 1e-3
    rows, columns = hits.any(1).nonzero(), hits.any(0).nonzero()
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    assert hits[box[1] : box[3], box[0] : box[2]].all()
    return box


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize(("columns", "expected"), [(0, 3), (2, 2), (5, 5), (40, 5)])
def test_every_view_of_every_frame_has_its_place(labels, columns, expected):
    frames = view_mosaic(coloured(), columns=columns, labels=labels)
    assert frames.dtype == torch.float32 and frames.shape[2] == 64 * expected
    rows = -(-5 // expected)
    above = (frames.shape[1] - 64 * rows) // rows
    assert (above > 8) == labels
    for t in range(3):
        for v in range(5):
            left, top, right, bottom = cell_of(frames[t], (v / 10, t / 10, 0.5))
            assert (left, right) == (64 * (v % expected), 64 * (v % expected + 1))
            assert bottom - top == 64 and top == (v // expected) * (64 + above) + above


@pytest.mark.parametrize(("n_views", "columns"), [(1, 2), (2, 2), (4, 3), (8, 3), (9, 4), (16, 5)])
def test_the_automatic_arrangement_is_nearly_square(n_views, columns):
    frames = view_mosaic(coloured(1, n_views), labels=False)
    assert frames.shape[1:3] == (64 * -(-(n_views + 1) // columns), 64 * columns)


@pytest.mark.parametrize("cell_size", [8, 40, 63, 200])
def test_cells_are_resized_and_sides_are_even_for_videos(cell_size):
    frames = view_mosaic(coloured(2), columns=5, labels=False, cell_size=cell_size)
    assert frames.shape[1:3] == (cell_size + cell_size % 2, 5 * cell_size + cell_size % 2)
    assert cell_of(frames[1], (0.2, 0.1, 0.5)) == (2 * cell_size, 0, 3 * cell_size, cell_size)


def test_shrinking_averages_and_enlarging_stays_in_range():
    images = torch.zeros(1, 2, 64, 64, 3)
    images[:, :, ::2] = 1
    small = view_mosaic(ViewGrid(images, Cameras.ring(1)), labels=False, cell_size=16)
    assert (small[0, 2:14] - 0.5).abs().max() < 0.1
    large = view_mosaic(ViewGrid(images, Cameras.ring(1)), labels=False, cell_size=100)
    assert large.min() >= 0 and large.max() <= 1


def test_labels_say_number_azimuth_and_elevation_as_far_as_there_is_room(written_text):
    view_mosaic(replace(coloured(1, 2, 200), cameras=Cameras((0, 10, -12.5), (0, 75, 300))))
    assert written_text == ["input   az 0°  el 0°", "view 1   az 75°  el 10°", "view 2   az 300°  el -12.5°"]
    written_text.clear()
    for cell_size in (400, 90, 40, 12):
        view_mosaic(coloured(1, 1), cell_size=cell_size)
    assert written_text[1::2] == ["view 1   az 180°  el 0°", "view 1 180°/0°", "view 1", "1"]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize(("cell_size", "words"), [(24, "UNTRAINED"), (288, UNTRAINED_LABEL)])
def test_untrained_weights_are_always_announced_in_red(written_text, labels, cell_size, words):
    grid = coloured(2)
    plain = view_mosaic(grid, labels=labels, cell_size=cell_size)
    assert not any("UNTRAINED" in word for word in written_text)
    warned = view_mosaic(replace(grid, trained=False), labels=labels, cell_size=cell_size)
    assert written_text.count(words) == 1
    height = warned.shape[1] - plain.shape[1]
    assert height >= 8 and torch.equal(warned[:, height:], plain)
    banner = warned[0, :height]
    assert (banner[..., 0] > banner[..., 1] + 0.1).sum() > 40
    assert (banner[:, [0, -1]] == 1).all(), "the words fit"


@pytest.mark.parametrize("sizes", [{"columns": -1}, {"cell_size": -8}])
def test_negative_numbers_are_refused(sizes):
    with pytest.raises(ValueError, match=r"at least 0 \(0 = automatic\); got .*-\d"):
        view_mosaic(coloured(), **sizes)


@pytest.mark.parametrize(
    ("n_frames", "shown", "columns"),
    [(1, [0], 1), (3, [0, 1, 2], 3), (5, [*range(5)], 4), (21, [0, 3, 6, 9, 11, 14, 17, 20], 4)],
)
def test_a_strip_shows_frames_in_rows_of_four(written_text, n_frames, shown, columns):
    strip = frame_strip(coloured(n_frames).images[:, 0], [3 + 2 * t for t in range(n_frames)])
    assert written_text == [f"frame {3 + 2 * t}" for t in shown]
    rows = -(-len(shown) // 4)
    assert strip.width == columns * 192 + 1 and rows * 192 < strip.height < rows * 230
    greens = np.array(strip)[strip.height // (2 * rows), 96::192, 1] / 255
    assert greens == pytest.approx([t / 10 for t in shown[:columns]], abs=0.005)
