"""LPIPS, the learned perceptual distance, from a local file of its weights.

The file is the state dict of the ``lpips`` package's network (AlexNet or VGG-16 backbone and linear heads) as
safetensors; nothing is downloaded.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric".
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from ..files import is_out_of_memory

LPIPS_HELP = (
    "Save the network once where the lpips package is installed: "
    "safetensors.torch.save_model(lpips.LPIPS(net='alex'), 'lpips_alex.safetensors')."
)

# The images' normalisation, for values in -1..1.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Per backbone, named by the side of its first kernel: size of the max pooling windows (stride 2), stride and
# padding of the first layer, and before which layers the pooling stands.
_BACKBONES = {
    11: ("AlexNet", 3, 4, 2, (3, 6)),
    3: ("VGG-16", 2, 1, 1, (5, 10, 17, 24)),
}
_STAGES = range(5)


class LPIPS:
    """The distance of images to their references, 0 for equal ones.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not LPIPS's state dict.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._stages, self._heads = _read(Path(path), self._device)
        first_kernel = self._stages[0][0][1].shape[-1]
        self.name, self._window, self._stride, self._padding, self._pooled = _BACKBONES[first_kernel]

    def __call__(self, images: Tensor, reference: Tensor) -> Tensor:
        """Return the distances [N] float64 of images [N, H, W, 3] in 0..1, differentiable.

        Raises:
            ValueError: images below 32 x 32 pixels.
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
    if not path.is_file():
        raise FileNotFoundError(f"Expected LPIPS weights; there is no file {path}. {LPIPS_HELP}")
    try:
        tensors = load_file(path, device=str(device))
    except SafetensorError as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"Expected a safetensors file; {path} is not ({error}). {LPIPS_HELP}") from error
    stages: list[list[tuple[int, Tensor, Tensor]]] = [[] for _ in _STAGES]
    for key, weight in tensors.items():
        if match := re.fullmatch(r"net\.slice([1-5])\.(\d+)\.weight", key):
            bias = tensors.get(f"net.slice{match[1]}.{match[2]}.bias")
            if bias is not None and weight.ndim == 4:
                stages[int(match[1]) - 1].append((int(match[2]), weight.float(), bias.float()))
    for layers in stages:
        layers.sort(key=lambda layer: layer[0])
    # The package registers each head under two names; a file may hold either.
    names = [(f"lin{i}.model.1.weight", f"lins.{i}.model.1.weight") for i in _STAGES]
    found = [next((tensors[name] for name in pair if name in tensors), None) for pair in names]
    heads = [head.float() for head in found if head is not None]
    fits = len(heads) == len(_STAGES) and all(
        layers and layers[-1][1].shape[0] == head.shape[1] for layers, head in zip(stages, heads, strict=True)
    )
    if not fits or stages[0][0][1].shape[-1] not in _BACKBONES:
        raise ValueError(
            f"Expected the state dict of LPIPS with an AlexNet or VGG-16 backbone (net.slice1.0.weight, ..., "
            f"lin4.model.1.weight); {path.name} holds {len(tensors)} other tensors, such as "
            f"{', '.join(sorted(tensors)[:2]) or 'none'}. {LPIPS_HELP}"
        )
    return stages, heads
