"""Views against true ones: which belongs to which, and how alike their images are.

The image metrics take images [N, H, W, 3] in 0..1 and optional weights [..., N, H, W] in 0..1 (the mask of
the reference), and return one value per image, [..., N] float64. A value that has no meaning, such as that of
an empty foreground, is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..cameras import Cameras
from ..views import ViewGrid

# Wang et al. 2004: a Gaussian window of standard deviation 1.5, cut off at 3.5 of these.
SSIM_WINDOW = 11
# Views whose angles differ by less are the same view.
_SAME_VIEW_DEG = 0.5


def psnr(images: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, infinite for equal images."""
    # One image at a time, here and below: the float64 maps of a whole grid would fill the memory.
    errors = [
        _weighted_mean((image - truth).square().mean(dim=-1), weight)
        for image, truth, weight in _one_by_one(images, reference, weights)
    ]
    return -10 * torch.log10(torch.stack(errors, dim=-1))


def ssim(images: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the structural similarity of images of at least 11 x 11 pixels, 1 for equal ones.

    Gaussian window of sigma 1.5, variances of the population, mean over the channels and over all windows
    that lie inside the image (weighted by the mask at their centres).
    """
    from kornia.metrics import ssim as similarity_map

    border = SSIM_WINDOW // 2
    values = []
    for image, truth, weight in _one_by_one(images, reference, weights):
        x, y = (picture.permute(2, 0, 1)[None] for picture in (image, truth))
        similarity = similarity_map(x, y, SSIM_WINDOW, eps=0.0, padding="valid")[0].mean(dim=0)
        values.append(_weighted_mean(similarity, weight[..., border:-border, border:-border]))
    return torch.stack(values, dim=-1)


def mask_iou(masks: Tensor, reference: Tensor) -> Tensor:
    """Return the intersection over union of masks [N, H, W] at an opacity of 0.5, 1 where both are empty."""
    a, b = masks.cpu() >= 0.5, reference.cpu() >= 0.5
    union = (a | b).sum(dim=(1, 2)).double()
    return torch.where(union > 0, (a & b).sum(dim=(1, 2)) / union, 1.0)


def _one_by_one(images: Tensor, reference: Tensor, weights: Tensor | None) -> Iterator[Iterator[Tensor]]:
    """Yield each image [H, W, 3], its reference and its weights [..., H, W], float64 on the CPU."""
    if weights is None:
        weights = torch.ones(()).expand(images.shape[:3])
    for group in zip(images, reference, weights.unbind(-3), strict=True):
        yield (tensor.detach().cpu().double() for tensor in group)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of [..., h, w], NaN where there is no weight."""
    return (values * weights).sum(dim=(-2, -1)) / weights.sum(dim=(-2, -1))


def paired_views(predicted: ViewGrid, reference: ViewGrid, name: str = "") -> tuple[ViewGrid, list[int]]:
    """Return the predicted views in the reference's order, and which novel views (1 to V) are missing.

    Views are the same where their angles relative to the input view agree to 0.5 degrees. A missing view's
    images are NaN. Views that the reference does not have are left out. Messages speak of views of ``name``.

    Raises:
        ValueError: other numbers of frames, other sizes, or no common novel view.
    """
    who = f" of {name}" if name else ""
    if predicted.n_frames != reference.n_frames:
        fewer = min(predicted.n_frames, reference.n_frames)
        raise ValueError(
            f"Expected {reference.n_frames} frames{who}, as the reference has; got {predicted.n_frames}. "
            f"Compare the same moments, for example the first {fewer} frames of both (--frames {fewer})."
        )
    (height, width), (true_height, true_width) = predicted.images.shape[2:4], reference.images.shape[2:4]
    if (height, width) != (true_height, true_width):
        raise ValueError(
            f"Expected images of {true_width} x {true_height} pixels{who}, as the reference has; got "
            f"{width} x {height}. Resize both to one size (--size {min(width, true_width)})."
        )
    places = [_find(predicted.cameras, reference.cameras, v) for v in range(1, reference.n_views + 1)]
    missing = [v for v, place in enumerate(places, start=1) if place is None]
    if len(missing) == reference.n_views:
        raise ValueError(
            f"Expected views{who} from the reference's cameras ({_angles(reference.cameras)}); got "
            f"{_angles(predicted.cameras)}. Give the cameras of the predicted views, relative to the input."
        )
    if places == list(range(1, predicted.n_views + 1)):
        return replace(predicted, cameras=reference.cameras), missing
    order = torch.tensor([0, *(place or 0 for place in places)])
    images = predicted.images[:, order]
    images[:, missing] = math.nan
    masks = None if predicted.masks is None else predicted.masks[:, order]
    if masks is not None:
        masks[:, missing] = math.nan
    return replace(predicted, images=images, masks=masks, cameras=reference.cameras, latents=None), missing


def _find(cameras: Cameras, wanted: Cameras, view: int) -> int | None:
    """Return which of ``cameras`` stands where view ``view`` of ``wanted`` stands."""
    for place in range(1, cameras.n_views + 1):
        turn = (cameras.azimuths_deg[place] - wanted.azimuths_deg[view] + 180) % 360 - 180
        lift = cameras.elevations_deg[place] - wanted.elevations_deg[view]
        if abs(turn) <= _SAME_VIEW_DEG and abs(lift) <= _SAME_VIEW_DEG:
            return place
    return None


def _angles(cameras: Cameras) -> str:
    pairs = zip(cameras.azimuths_deg[1:5], cameras.elevations_deg[1:5], strict=True)
    text = ", ".join(f"azimuth {a:g} elevation {e:g}" for a, e in pairs)
    return text + (" ..." if cameras.n_views > 4 else "")
