"""Views against true ones: which belongs to which, and how alike their images are.

The image metrics take images [N, H, W, 3] in 0..1 and optional weights [..., N, H, W] in 0..1 (the mask of
the reference), and return float64 [..., N]: NaN without a meaning, as of an empty foreground.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cameras import Cameras
from ..messages import listed
from ..stored import load_tensors
from ..views import ViewGrid

SSIM_WINDOW = 11  # Wang et al. 2004: a Gaussian of deviation 1.5, cut off at 3.5 of these
_SAME_VIEW_DEG = 0.5  # views whose angles differ by less are the same view


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
    images are NaN; views that the reference does not have are left out. Raises ValueError, about views of
    ``name``, for other numbers of frames, other sizes, or no common novel view.
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

    def apart(place: int) -> float:
        turn = (cameras.azimuths_deg[place] - wanted.azimuths_deg[view] + 180) % 360 - 180
        return max(abs(turn), abs(cameras.elevations_deg[place] - wanted.elevations_deg[view]))

    # The nearest; of several at one place the one of the same number.
    nearest = min(range(1, cameras.n_views + 1), key=lambda place: (apart(place), place != view))
    return nearest if apart(nearest) <= _SAME_VIEW_DEG else None


def _angles(cameras: Cameras) -> str:
    pairs = zip(cameras.azimuths_deg[1:5], cameras.elevations_deg[1:5], strict=True)
    text = ", ".join(f"azimuth {a:g} elevation {e:g}" for a, e in pairs)
    return text + (" ..." if cameras.n_views > 4 else "")


LPIPS_HELP = (
    "Save the network once where the lpips package is installed: "
    "safetensors.torch.save_model(lpips.LPIPS(net='alex'), 'lpips_alex.safetensors')."
)

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # for values in -1..1
# Per backbone, named by the side of its first kernel: size of the max pooling windows (stride 2), stride and
# padding of the first layer, and before which layers the pooling stands.
_BACKBONES = {
    11: ("AlexNet", 3, 4, 2, (3, 6)),
    3: ("VGG-16", 2, 1, 1, (5, 10, 17, 24)),
}
_STAGES = range(5)


class LPIPS:
    """The distance of images to their references, 0 for equal ones.

    Raises FileNotFoundError, or ValueError for a file that is not LPIPS's state dict.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._stages, self._heads = _read(Path(path), self._device)
        first_kernel = self._stages[0][0][1].shape[-1]
        self.name, self._window, self._stride, self._padding, self._pooled = _BACKBONES[first_kernel]

    def __call__(self, images: Tensor, reference: Tensor) -> Tensor:
        """Return the distances [N] float64 of images [N, H, W, 3] in 0..1, differentiable.

        Raises ValueError for images below 32 x 32 pixels.
        """
        if min(images.shape[1:3]) < 32:
            raise ValueError(
                f"Expected images of at least 32 x 32 pixels for LPIPS; got {images.shape[2]} x "
                f"{images.shape[1]}. Use larger images."
            )
        return torch.cat([self._one(x[None], y[None]) for x, y in zip(images, reference, strict=True)])

    def _one(self, image: Tensor, reference: Tensor) -> Tensor:
        shift, scale = (torch.tensor(v, device=self._device)[:, None, None] for v in (_SHIFT, _SCALE))
        pair = torch.cat([image, reference]).to(self._device, torch.float32)
        x = (pair.permute(0, 3, 1, 2) * 2 - 1 - shift) / scale
        # Not on the device: Apple's GPUs have no float64.
        distance = torch.zeros(1, dtype=torch.float64)
        for layers, head in zip(self._stages, self._heads, strict=True):
            for index, weight, bias in layers:
                if index in self._pooled:
                    x = F.max_pool2d(x, self._window, stride=2)
                stride, padding = (self._stride, self._padding) if index == 0 else (1, weight.shape[-1] // 2)
                x = F.conv2d(x, weight, bias, stride, padding).relu()
            unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
            difference = (unit[:1] - unit[1:]).square()
            distance += F.conv2d(difference, head).mean(dim=(1, 2, 3)).cpu().double()
        return distance


def _read(path: Path, device: torch.device) -> tuple[list[list[tuple[int, Tensor, Tensor]]], list[Tensor]]:
    """Return per stage its layers (index, weight, bias), and the linear heads."""
    tensors = load_tensors(path, "LPIPS weights as safetensors", LPIPS_HELP)
    found = sorted(
        (int(match[1]), int(match[2]), match[0])
        for key in tensors
        if (match := re.fullmatch(r"net\.slice([1-5])\.(\d{1,3})\.weight", key))
    )
    stages: list[list[tuple[int, Tensor, Tensor]]] = [[] for _ in _STAGES]
    channels, heads, kernel = 3, list[Tensor](), 0
    for stage, index, key in found:
        weight = tensors.shaped(key, None, channels, None, None)
        channels, kernel = len(weight), kernel or weight.shape[-1]
        bias = tensors.shaped(key.replace(".weight", ".bias"), channels)
        stages[stage - 1].append((index, weight.float().to(device), bias.float().to(device)))
    for i, layers in enumerate(stages):
        # The package registers each head under two names; a file may hold either.
        names = (f"lin{i}.model.1.weight", f"lins.{i}.model.1.weight")
        if layers and (name := next((name for name in names if name in tensors), None)):
            heads.append(tensors.shaped(name, 1, len(layers[-1][1]), 1, 1).float().to(device))
    if len(heads) < len(_STAGES) or kernel not in _BACKBONES:
        raise ValueError(
            f"Expected the state dict of LPIPS with an AlexNet or VGG-16 backbone (net.slice1.0.weight, ..., "
            f"lin4.model.1.weight); {path.name} holds {len(tensors)} other tensors, such as "
            f"{listed(sorted(tensors))}. {LPIPS_HELP}"
        )
    return stages, heads
