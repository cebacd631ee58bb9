"""What is wrong with one scene of users' renders, in sentences for the list of all that must be repaired."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from ..cameras import DEFAULT_FOV_DEG, Cameras
from ..video.foreground import SPECK_SHARE, masks_of, near_white_masks
from ..video.pictures import IMAGE_SUFFIXES, read_pictures
from ..views import ViewGrid

# The least that shows motion.
FEWEST_FRAMES = 2
# The network is not told the field of view. A wide lens bends the object otherwise than the model's does;
# a narrow one, as the curation's enlargement leaves it, only flattens it a little.
_FOVS_DEG = (10.0, 51.0)
# The network is told the same of two views that are closer than this.
_SMALLEST_ANGLE_DEG = 0.1
# A mask that covers more of a picture leaves no background, or is inverted.
_LARGEST_SHARE = 0.95
# How far the matrices of a cameras.json may be from its angles.
_MATRIX_TOLERANCE = 1e-3


def wrong_pictures(files: list[Path], known: str) -> Iterator[str]:
    """Yield what is wrong with the pictures of a scene that cannot be read, beyond the ``known`` reason."""
    missing = [file for file in files if not file.is_file()]
    if len(missing) > 1:
        yield f"{len(missing)} of {len(files)} pictures are missing, the first is {missing[0]}."
    sizes: Counter[tuple[int, int]] = Counter()
    for file in files:
        if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES:
            try:
                height, width = read_pictures(file, slice(0, 1, 1))[0][0].shape[:2]
                sizes[width, height] += 1
            except (ValueError, OSError) as error:
                if str(file) not in known:
                    yield " ".join(str(error).split())
    if len(sizes) > 1:
        counts = ", ".join(f"{n} of {width} x {height}" for (width, height), n in sizes.most_common())
        yield f"Expected pictures of one size; got {counts}. Render or crop them alike."


def wrong_matrices(file: Path, cameras: Cameras) -> Iterator[str]:
    """Yield where the matrices of a ``cameras.json``, if it has any, say something else than its angles."""
    expected = cameras.c2w_opengl()
    try:
        views = json.loads(file.read_text(encoding="utf-8")).get("views", [])
        stated = torch.tensor([view["c2w_opengl"] for view in views], dtype=torch.float64)
    except (ValueError, TypeError, KeyError) as error:
        yield f"Expected 4 x 4 numbers as c2w_opengl of every view in {file}; {error!r}. Write it again."
        return
    if not views:
        return
    if stated.shape != expected.shape:
        yield f"Expected matrices {list(expected.shape)} in {file}; got {list(stated.shape)}. Write it again."
        return
    error = (stated - expected).abs().amax(dim=(1, 2))
    if not error.max() <= _MATRIX_TOLERANCE:  # NaN is not
        yield (
            f"Expected matrices that agree with the angles in {file} (to {_MATRIX_TOLERANCE:g}); c2w_opengl "
            f"of view {int(error.argmax())} is off by {error.max():.3g}. Write the cameras again."
        )


def wrong_cameras(cameras: Cameras, n_views: int) -> Iterator[str]:
    """Yield why a model of ``n_views`` novel views cannot learn from these cameras."""
    if cameras.n_views < n_views:
        yield (
            f"Expected at least {n_views + 1} cameras (the input view and the model's {n_views} novel "
            f"views); got {cameras.n_views + 1}. Render more views."
        )
    lowest, highest = _FOVS_DEG
    if not lowest <= cameras.fov_deg <= highest:
        yield (
            f"Expected a field of view of about {DEFAULT_FOV_DEG:g} degrees ({lowest:g} to {highest:g}), as "
            f"the model is not told it; got {cameras.fov_deg:.4g}. Render with another lens, at the distance "
            f"that shows the object as large."
        )
    towards = cameras.eyes() / cameras.radius
    chord = (towards[:, None] - towards).norm(dim=-1)
    angles = torch.rad2deg(2 * torch.asin((chord / 2).clamp(max=1))).triu(1)
    angles += 360 * torch.ones_like(angles).tril()
    if angles.min() < _SMALLEST_ANGLE_DEG:
        first, second = divmod(int(angles.argmin()), len(angles))
        yield (
            f"Expected views from different angles; views {first} and {second} are {angles.min():.3g} "
            f"degrees apart (elevation {cameras.elevations_deg[first]:g}, azimuth "
            f"{cameras.azimuths_deg[first]:g}). Leave one of them out."
        )


def wrong_views(grid: ViewGrid, size: int) -> Iterator[str]:
    """Yield why views, with masks, cannot be trained on as pictures of ``size`` pixels."""
    pixels = grid.images.shape[2]
    if not grid.trained:
        yield "Expected pictures of an object; these views are noise that an untrained model made."
    if grid.n_frames < FEWEST_FRAMES:
        yield f"Expected at least {FEWEST_FRAMES} frames; got {grid.n_frames}. Render a clip that moves."
    if pixels < size:
        yield (
            f"Expected pictures of at least {size} x {size}; got {pixels} x {pixels}. Render larger ones, or "
            f"train at a smaller size."
        )
    covered = masks_of(grid).mean(dim=(2, 3))
    seen = torch.minimum(covered, near_white_masks(grid.images).mean(dim=(2, 3)))
    for bad, what in (
        (seen < SPECK_SHARE, f"show none (less than {100 * SPECK_SHARE:g} % that is not white)"),
        (covered > _LARGEST_SHARE, f"are covered by it (more than {100 * _LARGEST_SHARE:g} %)"),
    ):
        if bad.any():
            frame, view = bad.nonzero()[0].tolist()
            yield (
                f"Expected an object on white in every picture; {int(bad.sum())} of {bad.numel()} {what}, "
                f"the first is frame {frame} of view {view}. Render them again, check the masks, or leave "
                f"out these frames."
            )
