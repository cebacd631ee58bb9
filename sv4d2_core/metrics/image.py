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
    _check(images, reference, weights)
    values = []
    for i, pair in enumerate(zip(images.split(1), reference.split(1), strict=True)):
        image, truth = _as_float64(*pair)
        values.append(_weighted_mean(((image - truth) ** 2).mean(dim=-1), _weights_of(image, weights, i)))
    return -10 * torch.log10(torch.cat(values))


def ssim(images: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the structural similarity, 1 for equal images.

    Gaussian window of sigma 1.5, variances of the population, mean over the channels and over all windows
    that lie inside the image (weighted by the mask at their centres).

    Raises:
        ValueError: as `psnr`, or images smaller than the window of 11 pixels.
    """
    return structural_similarities(images, reference, weights)[0][0]


def ms_ssim(images: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the multi-scale structural similarity of up to five scales (`ms_ssim_scales`).

    Images are halved by the mean of 2 x 2 pixels, masks likewise. With fewer than five scales the weights of
    those that are used are raised so that they still sum to 1: compare only values of one image size. A
    foreground so near the border that no window of some scale has its centre there gives NaN.

    Raises:
        ValueError: as `ssim`.

    Source: Wang, Simoncelli, Bovik 2003, equation 7.
    """
    return structural_similarities(images, reference, weights)[0][1]


def structural_similarities(
    images: Tensor, reference: Tensor, *weightings: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    """Return `ssim` and `ms_ssim` for each of several weightings, which share the work.

    Raises:
        ValueError: as `ssim`.
    """
    for weights in weightings:
        _check(images, reference, weights)
    _check_window(images)
    # One image at a time: the maps of a whole grid at full size would fill the memory.
    values = []
    for i, pair in enumerate(zip(images.split(1), reference.split(1), strict=True)):
        image, truth = _as_float64(*pair)
        values.append(_image_similarities(image, truth, [_weights_of(image, w, i) for w in weightings]))
    return [(one, multi) for one, multi in torch.cat(values, dim=-1)]


def _weights_of(image: Tensor, weights: Tensor | None, index: int) -> Tensor:
    """Return the weights [1, H, W] of one image as float64, 1 where there are none."""
    if weights is None:
        return torch.ones(image.shape[:3], dtype=torch.float64)
    return _as_float64(weights[index : index + 1])[0]


def _image_similarities(image: Tensor, reference: Tensor, weightings: list[Tensor]) -> Tensor:
    """Return SSIM and MS-SSIM of one image [1, H, W, 3] for K weightings [1, H, W], [K, 2, 1]."""
    scales = ms_ssim_scales(*image.shape[1:3])
    exponents = torch.tensor(_SCALE_WEIGHTS[:scales], dtype=torch.float64)
    exponents = exponents / exponents.sum()
    result = torch.ones(len(weightings), 2, 1, dtype=torch.float64)
    for scale, exponent in enumerate(exponents):
        similarity, contrast = (part.mean(dim=1) for part in _similarity_maps(image, reference))
        part = similarity if scale == scales - 1 else contrast
        for k, weights in enumerate(weightings):
            if scale == 0:
                result[k, 0] = _weighted_mean(similarity, _inner(weights))
            # A negative correlation has no real power; 0 is the worst that a scale can say.
            result[k, 1] *= _weighted_mean(part, _inner(weights)).clamp(min=0) ** exponent
        image, reference = _halved(image), _halved(reference)
        weightings = [_halved(weights[..., None])[..., 0] for weights in weightings]
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
    """Return the Gaussian mean of every window inside ``x`` [N, C, H, W].

    Eleven weighted sums of shifted pictures per axis: in float64 seven times faster than a convolution.
    """
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=x.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel = (kernel / kernel.sum()).tolist()
    for axis in (2, 3):
        length = x.shape[axis] - 2 * _RADIUS
        mean = x.narrow(axis, 0, length) * kernel[0]
        for offset, weight in enumerate(kernel[1:], start=1):
            mean.add_(x.narrow(axis, offset, length), alpha=weight)
        x = mean
    return x


def _halved(images: Tensor) -> Tensor:
    """Return images [N, H, W, C] at half the size; an odd last row or column is left out."""
    return F.avg_pool2d(images.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def _inner(weights: Tensor) -> Tensor:
    """Return the weights [N, H, W] at the centres of the windows that lie inside."""
    return weights[:, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS]


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of [N, h, w], NaN where there is no weight."""
    return (values * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))


def _check_window(images: Tensor) -> None:
    if not ms_ssim_scales(*images.shape[1:3]):
        height, width = images.shape[1:3]
        raise ValueError(
            f"Expected images of at least {_WINDOW} x {_WINDOW} pixels for structural similarity; got "
            f"{width} x {height}. Use PSNR, or larger images."
        )


def _as_float64(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().cpu().double() for tensor in tensors]


def _check(images: Tensor, reference: Tensor, weights: Tensor | None) -> None:
    """Raise ValueError unless images [N, H, W, 3] in 0..1, reference and weights fit together."""
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
