"""Normals that an estimator has left as pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.reader import read_normals
from sv4d2_core.views import ViewGrid

VIEWS = ViewGrid(torch.ones(2, 2, 16, 16, 3), Cameras((0, 0), (0, 90)))


def write(folder, size=16, views=2):
    picture = np.full((size, size, 3), 255, np.uint8)
    picture[4:8] = (128, 128, 255)
    picture[8:12] = (128, 255, 128)
    for view in range(views):
        (folder / f"view_{view:02d}").mkdir(parents=True)
        for frame in range(2):
            Image.fromarray(picture).save(folder / f"view_{view:02d}/{frame:05d}.png")


def test_colours_are_unit_vectors_and_backgrounds_are_none(tmp_path):
    write(tmp_path)
    normals = read_normals(tmp_path, VIEWS)
    assert normals.shape == VIEWS.images.shape
    assert torch.allclose(normals[0, 1, 5, 3], torch.tensor([0.0, 0, 1]), atol=0.01)
    assert torch.allclose(normals[1, 0, 9, 3], torch.tensor([0.0, 1, 0]), atol=0.01)
    assert float(normals[:, :, :4].abs().max()) == 0


def test_missing_views_and_other_sizes_are_told(tmp_path):
    write(tmp_path / "one", views=1)
    with pytest.raises(FileNotFoundError, match="normals of 2 views .* no view_01"):
        read_normals(tmp_path / "one", VIEWS)
    write(tmp_path / "small", size=12)
    with pytest.raises(ValueError, match=r"got \(2, 12, 12, 3\)"):
        read_normals(tmp_path / "small", VIEWS)
