"""Opacity of objects on white: rims are covered in part, and a fit must not learn their white."""

import pytest
import torch
from torch.nn import functional as F

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene.targets import checked_views
from sv4d2_core.video.foreground import near_white_masks, soft_masks
from sv4d2_core.views import ViewGrid

FINE = 8  # samples along a pixel


def drawn(kind, size):
    """Return a picture [H, W, 3] in 8 bits on white, and how much of each pixel the object covers."""
    y, x = torch.meshgrid(*[(torch.arange(size * FINE) + 0.5) / (size * FINE) * 2 - 1] * 2, indexing="ij")
    radius, angle = (x**2 + y**2).sqrt(), torch.atan2(y, x)
    legs = (y > 0) & (y < 0.8) & ((x.abs() - 0.35).abs() < 0.06)
    inside = {
        "disc": radius < 0.55,
        "star": radius < 0.45 + 0.2 * torch.cos(7 * angle),
        "legs": (x.abs() < 0.5) & (y.abs() < 0.25) | legs,
    }[kind].float()[..., None]
    colour = torch.stack([0.75 + 0 * x, 0.3 + 0.2 * x, 0.3 + 0.2 * y], dim=-1)
    pixels = torch.cat([colour * inside + 1 - inside, inside], dim=-1)
    pixels = F.avg_pool2d(pixels.movedim(-1, 0), FINE).movedim(0, -1)
    return (pixels[..., :3] * 255).round() / 255, pixels[..., 3]


@pytest.mark.parametrize("size", [48, 96])
@pytest.mark.parametrize("kind", ["disc", "star", "legs"])
def test_the_area_is_the_covered_one(kind, size):
    image, covered = drawn(kind, size)
    hard = near_white_masks(image[None])
    soft = soft_masks(image[None], hard)
    assert float(hard.sum() / covered.sum()) > 1.02
    assert float(soft.sum() / covered.sum()) == pytest.approx(1, abs=0.005)
    assert float((soft[0] - covered).abs().sum() / covered.sum()) < 0.01


def test_masks_off_by_the_rounding_of_colours_are_softened_and_others_stay():
    image, _ = drawn("disc", 96)
    hard = near_white_masks(image[None])
    rounded = hard.clone()
    rounded[0, :4, 2] = 1
    shrunk = 1 - F.max_pool2d(1 - hard[None], 3, 1, 1)[0]
    assert bool((soft_masks(image[None], rounded) != rounded).any())
    assert torch.equal(soft_masks(image[None], shrunk), shrunk)


def test_a_white_object_and_a_line_stay_as_they_are():
    image = torch.ones(1, 32, 32, 3)
    image[:, 8:24, 8:24] = 0.97
    image[:, 4:5, 2:30] = 0.5
    hard = near_white_masks(image)
    assert torch.equal(soft_masks(image, hard), hard)


def test_targets_of_a_fit_are_softened_but_for_given_alpha():
    image, covered = drawn("disc", 48)
    images = image.expand(2, 3, 48, 48, 3)
    hard, given = near_white_masks(images), covered.expand(2, 3, 48, 48)
    cameras = Cameras((0, 0, 0), (0, 90, 180))
    expected = soft_masks(images[0], hard[0]).expand_as(hard)
    for masks, wanted in ((None, expected), (hard, expected), (given, given)):
        targets = checked_views(ViewGrid(images, cameras, masks))
        assert targets.masks is not None and torch.equal(targets.masks, wanted)
    mixed = checked_views(ViewGrid(images, cameras, torch.cat([given[:, :1], hard[:, 1:]], dim=1)))
    assert mixed.masks is not None and torch.equal(mixed.masks[:, 0], given[:, 0])
    assert torch.equal(mixed.masks[:, 1:], expected[:, 1:])
