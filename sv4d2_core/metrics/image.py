"""Image metrics against ground truth, over the whole image or over the reference's foreground.

All functions take images [N, H, W, 3] in 0..1 and optional weights [N, H, W] in 0..1 (the reference's mask),
and return one value per image, [N] float64. A value that has no meaning, such as that of an empty foreground,
is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Wang et al. 2004: Gaussian window of standard deviation 1.5, cut off at 3.5 of these, and two constants.
_SIGMA, _RADIUS = 1.5, 5
_C1, _C2 = 0.01**2, 0.03**2
_WINDOW = 2 * _RADIUS + 1
# Wang et al. 2003: weights of the five scales of MS-SSIM.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr(images: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, infinite for equal images.

    Raises:
        ValueError: other shapes, values that are not finite or not in 0..1.
    """
    images, reference, weights = _checked(images, reference, weights)
    error = _weighted_mean(((images - reference) ** 2).mean(dim=-1), weights)
    return -10 * torch.log10(error)


def ssim(images: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the structural similarity, 1 for equal images.

    Gaussian window of sigma 1.5, variances of the population, mean over the channels and over all windows
    that lie inside the image (weighted by the mask at their centres).

    Raises:
        ValueError: as `psnr`, or images smaller than the window of 11 pixels.
    """
    images, reference, weights = _checked(images, reference, weights)
    _check_window(images, 1)
    similarity, _ = _similarity_maps(images, reference)
    return _weighted_mean(similarity.mean(dim=1), _inner(weights))


def ms_ssim(images: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the multi-scale structural similarity of up to five scales (`ms_ssim_scales`).

    Images are halved by the mean of 2 x 2 pixels, masks likewise. With fewer than five scales the weights of
    those that are used are raised so that they still sum to 1: compare only values of one image size. A
    foreground so near the border that no window of some scale has its centre there gives NaN.

    Raises:
        ValueError: as `ssim`.

    Source: Wang, Simoncelli, Bovik 2003, equation 7.
    """
    images, reference, weights = _checked(images, reference, weights)
    _check_window(images, 1)
    scales = ms_ssim_scales(*images.shape[1:3])
    exponents = torch.tensor(_SCALE_WEIGHTS[:scales], dtype=torch.float64)
    exponents = exponents / exponents.sum()
    result = torch.ones(len(images), dtype=torch.float64)
    for scale, exponent in enumerate(exponents):
        similarity, contrast = _similarity_maps(images, reference)
        part = similarity if scale == scales - 1 else contrast
        # A negative correlation has no real power; 0 is the worst that a scale can say.
        mean = _weighted_mean(part.mean(dim=1), _inner(weights)).clamp(min=0)
        result = result * mean**exponent
        images, reference = _halved(images), _halved(reference)
        weights = _halved(weights[..., None])[..., 0]
    return result


def ms_ssim_scales(height: int, width: int) -> int:
    """Return how many of the five scales an image has room for; 0 below 11 pixels, 5 from 176 on."""
    side, scales = min(height, width), 0
    while scales < len(_SCALE_WEIGHTS) and side >= _WINDOW:
        side, scales = side // 2, scales + 1
    return scales


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


def _similarity_maps(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return the similarity and its contrast-structure part of every window, each [N, 3, h, w]."""
    x, y = (v.permute(0, 3, 1, 2) for v in (images, reference))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    contrast = (2 * covariance + _C2) / (var_x + var_y + _C2)
    return contrast * (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1), contrast


def _blurred(x: Tensor) -> Tensor:
    """Return the Gaussian mean of every window inside ``x`` [N, C, H, W]."""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=x.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(x, kernel, groups=x.shape[1])
    return F.conv2d(x, kernel.transpose(2, 3), groups=x.shape[1])


def _halved(images: Tensor) -> Tensor:
    """Return images [N, H, W, C] at half the size; an odd last row or column is left out."""
    return F.avg_pool2d(images.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def _inner(weights: Tensor) -> Tensor:
    """Return the weights [N, H, W] at the centres of the windows that lie inside."""
    return weights[:, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS]


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of [N, h, w], NaN where there is no weight."""
    return (values * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))


def _check_window(images: Tensor, scales: int) -> None:
    if ms_ssim_scales(*images.shape[1:3]) < scales:
        height, width = images.shape[1:3]
        raise ValueError(
            f"Expected images of at least {_WINDOW} x {_WINDOW} pixels for structural similarity; got "
            f"{width} x {height}. Use PSNR, or larger images."
        )


def _checked(images: Tensor, reference: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, reference and weights as float64 on the CPU; weights of 1 where there are none."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape != reference.shape or 0 in images.shape:
        raise ValueError(
            f"Expected images [N, H, W, 3] of one shape; got {list(images.shape)} and "
            f"{list(reference.shape)}. Compare the same frames and views at one size."
        )
    if weights is not None and weights.shape != images.shape[:3]:
        raise ValueError(f"Expected masks {list(images.shape[:3])}; got {list(weights.shape)}.")
    for name, values in (("images", images), ("reference", reference)):
        low, high = float(values.min()), float(values.max())
        if not (-1e-3 <= low and high <= 1 + 1e-3):
            raise ValueError(
                f"Expected finite values in 0..1 in the {name}; got {low:g} to {high:g}. Divide 8-bit values "
                f"by 255, and look for NaN."
            )
    if weights is None:
        weights = torch.ones(images.shape[:3])
    return tuple(x.detach().cpu().double() for x in (images, reference, weights))  # pyright: ignore[reportReturnType]
