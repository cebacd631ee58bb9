"""Reads normals from an estimator, kept as pictures beside the views."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..fourd.normals import unpacked_normals
from ..views import ViewGrid
from .pictures import read_frames


def read_normals(folder: Path, views: ViewGrid) -> Tensor:
    """Return the normals of all views, [T, V + 1, H, W, 3] unit, 0 where the picture shows none.

    Args:
        folder: ``view_XX/TTTTT.png`` like the frames of a folder of views, colour = (normal + 1) / 2 with x
            to the right, y up and z towards the camera; black, grey or white where there is no object.
        views: whose normals these are.

    Raises:
        FileNotFoundError: pictures are missing.
        ValueError: pictures of another size or without three channels.
    """
    pictures = []
    for view in range(views.n_views + 1):
        place = folder / f"view_{view:02d}"
        if not place.is_dir():
            raise FileNotFoundError(
                f"Expected normals of {views.n_views + 1} views (view_00 is the input); {folder} has no "
                f"{place.name}. Estimate them from frames/{place.name}."
            )
        pictures.append(torch.from_numpy(read_frames(place, views.n_frames)))
    expected = (views.n_frames, *views.images.shape[2:4], 3)
    wrong = next((tuple(p.shape) for p in pictures if tuple(p.shape) != expected), None)
    if wrong is not None:
        raise ValueError(
            f"Expected pictures of normals {expected}; got {wrong}. Save them as RGB like the views."
        )
    return unpacked_normals(torch.stack(pictures, dim=1).float() / 255)
