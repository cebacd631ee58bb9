"""The mosaic of all views and the strip of a clip's frames."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.video import pictures as mosaic
from sv4d2_core.video.pictures import UNTRAINED_LABEL, frame_strip, view_mosaic
from sv4d2_core.views import ViewGrid


def coloured(n_frames: int = 3, n_views: int = 4, size: int = 64) -> ViewGrid:
    """Every frame of every view is of one colour of its own: (view / 10, frame / 10, 0.5)."""
    images = torch.full((n_frames, n_views + 1, size, size, 3), 0.5)
    images[..., 0] = torch.arange(n_views + 1).view(1, -1, 1, 1) / 10
    images[..., 1] = torch.arange(n_frames).view(-1, 1, 1, 1) / 10
    return ViewGrid(images, Cameras.ring(n_views))


@pytest.fixture
def written(monkeypatch) -> list[str]:
    words = []
    text = mosaic.ImageDraw.ImageDraw.text

    def recording(self, position, string, *args, **kwargs):
        words.append(string)
        return text(self, position, string, *args, **kwargs)

    monkeypatch.setattr(mosaic.ImageDraw.ImageDraw, "text", recording)
    return words


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


def test_labels_say_number_azimuth_and_elevation_as_far_as_there_is_room(written):
    view_mosaic(replace(coloured(1, 2, 200), cameras=Cameras((0, 10, -12.5), (0, 75, 300))))
    assert written == ["input   az 0°  el 0°", "view 1   az 75°  el 10°", "view 2   az 300°  el -12.5°"]
    written.clear()
    for cell_size in (400, 90, 40, 12):
        view_mosaic(coloured(1, 1), cell_size=cell_size)
    assert written[1::2] == ["view 1   az 180°  el 0°", "view 1 180°/0°", "view 1", "1"]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize(("cell_size", "words"), [(24, "UNTRAINED"), (288, UNTRAINED_LABEL)])
def test_untrained_weights_are_always_announced_in_red(written, labels, cell_size, words):
    grid = coloured(2)
    plain = view_mosaic(grid, labels=labels, cell_size=cell_size)
    assert not any("UNTRAINED" in word for word in written)
    warned = view_mosaic(replace(grid, trained=False), labels=labels, cell_size=cell_size)
    assert written.count(words) == 1
    height = warned.shape[1] - plain.shape[1]
    assert height >= 8 and torch.equal(warned[:, height:], plain)
    banner = warned[0, :height]
    assert (banner[..., 0] > banner[..., 1] + 0.1).sum() > 40
    assert (banner[:, [0, -1]] == 1).all(), "the words fit"


@pytest.mark.parametrize("sizes", [{"columns": -1}, {"cell_size": -8}])
def test_negative_numbers_are_refused(sizes):
    with pytest.raises(ValueError, match=r"at least 0 \(0 = automatic\); got .*-\d"):
        view_mosaic(coloured(), **sizes)


def test_a_strip_shows_frames_in_rows_of_four(written):
    images = coloured(21).images[:, 0]
    strip = np.array(frame_strip(images, [3 + 2 * t for t in range(21)]))
    assert written == [f"frame {3 + 2 * t}" for t in (0, 3, 6, 9, 11, 14, 17, 20)]
    assert strip.shape[1] == 4 * 192 + 1
    first_row = torch.from_numpy(strip[strip.shape[0] // 4]).float() / 255
    assert first_row[96::192, 1].tolist() == pytest.approx([0, 0.3, 0.6, 0.9], abs=0.005)


@pytest.mark.parametrize(("n_frames", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (5, 4, 2), (8, 4, 2)])
def test_short_strips(written, n_frames, columns, rows):
    strip = frame_strip(coloured(n_frames).images[:, 0], range(n_frames))
    assert written == [f"frame {t}" for t in range(n_frames)]
    assert strip.width == columns * 192 + 1
    assert rows * 192 < strip.height < rows * 230
