"""Videos and the contact sheet."""

import logging
from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.video.pictures import contact_sheet, pick_frames, to_bytes
from sv4d2_core.video.write import write_video
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import make_creature, render_views


@pytest.fixture(scope="module")
def grid() -> ViewGrid:
    return render_views(make_creature(3), Cameras((0, 10), (0, 75)), 5, 64)


@pytest.mark.parametrize(
    ("encoder", "fps"), [("libx264", 7.5), ("libx264", 23.976), ("libx264", 0.5), ("mpeg4", 8)]
)
def test_video_keeps_frames_colours_and_rate(tmp_path, grid, monkeypatch, encoder, fps, caplog):
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {encoder}")
    monkeypatch.setattr(av, "codecs_available", {encoder})
    with caplog.at_level(logging.WARNING):
        write_video(tmp_path / "a.mp4", grid.images[:, 0], fps)
    assert ("lacks libx264" in caplog.text) == (encoder == "mpeg4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    original = to_bytes(grid.images[:, 0]).astype(float)
    assert frames.shape == (5, 64, 64, 3)
    assert float(stream.average_rate) == pytest.approx(fps, rel=1e-3)
    assert stream.codec_context.pix_fmt == "yuv420p"
    # White stays white and the mean colour stays: range and matrix were tagged as they were used.
    assert abs(frames[:, :4, :4].astype(float) - 255).max() <= 2
    assert abs(frames.mean((0, 1, 2)) - original.mean((0, 1, 2))).max() < 1.5
    assert 10 * np.log10(255**2 / ((frames - original) ** 2).mean()) > 28
    content = (tmp_path / "a.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat"), "browsers start at once"


def test_what_a_video_cannot_hold_is_refused(tmp_path, grid):
    with pytest.raises(ValueError, match="even height and width; got 5 of 64 x 63"):
        write_video(tmp_path / "a.mp4", grid.images[:, 0, :, :63], 8)
    with pytest.raises(ValueError, match="positive frame rate; got 0"):
        write_video(tmp_path / "a.mp4", grid.images[:, 0], 0)


def test_bytes_round_to_the_nearest_level():
    levels = torch.arange(256) / 255
    assert to_bytes(levels).tolist() == list(range(256))
    assert to_bytes(torch.tensor([-0.2, 0.4 / 255, 0.6 / 255, 1.7])).tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize(
    "n_frames, expected", [(1, [0]), (3, [0, 1, 2]), (12, list(range(12))), (23, list(range(0, 23, 2)))]
)
def test_columns_are_evenly_picked(n_frames, expected):
    assert pick_frames(n_frames, 12) == expected
    assert len(set(pick_frames(57, 12))) == 12 and pick_frames(57, 12)[-1] == 56


def test_contact_sheet_has_a_row_per_view_and_a_column_per_frame(grid):
    colours = torch.tensor([[[t / 5 + 0.1, v / 2 + 0.2, 0.0] for v in range(2)] for t in range(5)])
    marked = colours[:, :, None, None].expand_as(grid.images)
    sheet = np.asarray(contact_sheet(replace(grid, images=marked, masks=None)))
    found = [[np.argwhere((sheet == colour).all(-1)) for colour in row] for row in to_bytes(colours)]
    assert np.shape(found) == (5, 2, 64 * 64, 2)
    rows, columns = np.moveaxis(np.mean(found, axis=2), -1, 0)
    assert (rows[:, 0] == rows[0, 0]).all() and (rows[:, 1] > rows[0, 0]).all()
    assert (columns[:-1, 1] < columns[1:, 0]).all()


def test_contact_sheet_is_small_for_large_grids():
    grid = ViewGrid(torch.ones(40, 3, 576, 576, 3), Cameras.ring(2))
    sheet = contact_sheet(grid)
    assert 12 * 160 < sheet.width < 12 * 160 + 200
    assert 3 * 160 < sheet.height < 3 * 160 + 100


def test_untrained_weights_are_announced_in_large_red_letters(grid, written_text):
    plain = contact_sheet(replace(grid, variant="sv4d2", steps=20, seed=3))
    assert written_text[0] == "SV4D 2.0 sv4d2  |  20 steps  |  seed 3  |  5 frames at 8 fps"
    assert "view 1\nazim 75°\nelev 10°" in written_text and "4" in written_text
    assert not any("UNTRAINED" in word for word in written_text)
    labelled = contact_sheet(replace(grid, trained=False))
    assert "UNTRAINED WEIGHTS: noise is expected" in written_text
    red, before = ((np.asarray(sheet) == (255, 0, 0)).all(-1).sum() for sheet in (labelled, plain))
    assert red > 200 + before
