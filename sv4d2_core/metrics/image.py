"""Image metrics against ground truth, over the whole image or over the reference's foreground.

All functions take images [N, H, W, 3] in 0..1 and optional weights [..., N, H, W] in 0..1 (the reference's
mask), and return one value per image, [..., N] float64. A value that has no meaning, such as that of an empty
foreground, is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Wang et al. 2004: a Gaussian window of standard deviation 1.5, cut off at 3.5 of these.
SSIM_WINDOW = 11


def psnr(images: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, infinite for equal images.

    Raises:
        ValueError: other shapes, values that are not finite or not in 0..1.
    """
    _check(images, reference, weights)
    # One image at a time, here and below: the float64 maps of a whole grid would fill the memory.
    errors = [
        _weighted_mean((image - truth).square().mean(dim=-1), weight)
        for image, truth, weight in _one_by_one(images, reference, weights)
    ]
    return -10 * torch.log10(torch.stack(errors, dim=-1))


def ssim(images: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the structural similarity, 1 for equal images.

    Gaussian window of sigma 1.5, variances of the population, mean over the channels and over all windows
    that lie inside the image (weighted by the mask at their centres).

    Raises:
        ValueError: as `psnr`, or images smaller than the window of 11 pixels.
    """
    from kornia.metrics import ssim as similarity_map

    _check(images, reference, weights)
    height, width = images.shape[1:3]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"Expected images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels for structural similarity; "
            f"got {width} x {height}. Use PSNR, or larger images."
        )
    border = SSIM_WINDOW // 2
    values = []
    for image, truth, weight in _one_by_one(images, reference, weights):
        x, y = (picture.permute(2, 0, 1)[None] for picture in (image, truth))
        similarity = similarity_map(x, y, SSIM_WINDOW, eps=0.0, padding="valid")[0].mean(dim=0)
        values.append(_weighted_mean(similarity, weight[..., border:-border, border:-border]))
    return torch.stack(values, dim=-1)


def mask_iou(masks: Tensor, reference: Tensor) -> Tensor:
    """Return the intersection over union of masks [N, H, W], 1 where both are empty.

    A pixel belongs to a mask from an opacity of 0.5 on.

    Raises:
        ValueError: other shapes.
    """
    if masks.ndim != 3 or masks.shape != reference.shape:
        raise ValueError(
            f"Expected masks [N, H, W] of one shape; got {list(masks.shape)} and {list(reference.shape)}. "
            f"Resize the one to the other."
        )
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


def _check(images: Tensor, reference: Tensor, weights: Tensor | None) -> None:
    """Raise ValueError unless images [N, H, W, 3] in 0..1, reference and weights fit together."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape != reference.shape or 0 in images.shape:
        raise ValueError(
            f"Expected images [N, H, W, 3] of one shape; got {list(images.shape)} and "
            f"{list(reference.shape)}. Compare the same frames and views at one size."
        )
    if weights is not None and weights.shape[-3:] != images.shape[:3]:
        raise ValueError(f"Expected masks {list(images.shape[:3])}; got {list(weights.shape)}.")
    for name, values in (("images", images), ("reference", reference)):
        low, high = float(values.min()), float(values.max())
        if not (-1e-3 <= low and high <= 1 + 1e-3):
            raise ValueError(
                f"Expected finite values in 0..1 in the {name}; got {low:g} to {high:g}. Divide 8-bit values "
                f"by 255, and look for NaN."
            )
