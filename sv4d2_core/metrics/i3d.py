"""I3D, the network of FVD: read as data, and made from its TorchScript file, which is a program, once.

Source: Carreira and Zisserman 2017, "Quo Vadis, Action Recognition?": Inception-v1 inflated, Kinetics-400.
"""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..files import is_out_of_memory, refuse_existing
from ..messages import cut
from ..stored import read_tensors, write_tensors

log = logging.getLogger(__name__)

I3D_HELP = (
    "Convert the TorchScript file that StyleGAN-V and others use for FVD once, if you trust where it is "
    "from: sv4d2 convert-i3d --trust-code i3d_torchscript.pt --out i3d.safetensors."
)
RISK = "TorchScript is a program: loading it runs whatever is in it, which can read and change all files."
SHORTEST_CLIP = 10  # the network halves time three times and then averages over two steps
_SIDE, _CLASSES, _KIND = 224, 400, "sv4d2.i3d"

# Channels: of the stem, and of each block's branches: 1x1; 1x1 and 3x3, wide and narrow; pooled and 1x1.
_STEM = (64, 64, 192)
_BLOCKS = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
_POOLED_BEFORE = {"4b": 3, "5b": 2}  # side of the windows that halve time and space


class I3D:
    """Clips to feature vectors, the logits; FileNotFoundError, or ValueError for a file of another kind."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"Expected the I3D network; there is no file {path}. {I3D_HELP}")
        if zipfile.is_zipfile(path):
            raise ValueError(f"Expected I3D as safetensors; {path} is TorchScript. {RISK} {I3D_HELP}")
        tensors, header = read_tensors(path, _KIND)
        if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != _expected_tensors():
            raise ValueError(f"Expected the weights of I3D; {path} holds others. {I3D_HELP}")
        self._device = torch.device(device)
        self._weights = {key: tensor.to(self._device, torch.float32) for key, tensor in tensors.items()}
        self._fixed = header.flag("fixed_padding")

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """Return one feature vector per clip, [N, 400] float32 on the CPU, of [N, T, H, W, 3] in 0..1.

        Raises ValueError for clips that are too short.
        """
        if clips.shape[1] < SHORTEST_CLIP:
            raise ValueError(
                f"Expected clips of at least {SHORTEST_CLIP} images for I3D; got {clips.shape[1]}. Use more "
                f"frames or views."
            )
        return torch.cat([self._one(clip) for clip in clips])

    def _one(self, clip: Tensor) -> Tensor:
        images = clip.to(self._device, torch.float32).permute(0, 3, 1, 2)
        images = F.interpolate(images, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
        video = (images * 2 - 1).permute(1, 0, 2, 3)[None]
        return _logits(video, self._weights, self._fixed).cpu()


def _logits(videos: Tensor, weights: Mapping[str, Tensor], fixed: bool) -> Tensor:
    """Return the logits [N, 400], averaged over time, of videos [N, 3, T, 224, 224] in -1..1."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        x = _padded(x, (weight.shape[-1],) * 3, (stride,) * 3, fixed)
        return F.conv3d(x, weight, weights[f"{name}.bias"], stride).relu()

    def pool(x: Tensor, sides: tuple[int, int, int], strides: tuple[int, int, int]) -> Tensor:
        return F.max_pool3d(_padded(x, sides, strides, fixed), sides, strides, ceil_mode=True)

    x = pool(conv(videos, "1a", 2), (1, 3, 3), (1, 2, 2))
    x = pool(conv(conv(x, "2b"), "2c"), (1, 3, 3), (1, 2, 2))
    for block in _BLOCKS:
        if side := _POOLED_BEFORE.get(block):
            x = pool(x, (side, side, side), (2, 2, 2))
        wide, narrow = (conv(conv(x, f"{block}.{n}a"), f"{block}.{n}b") for n in (1, 2))
        pooled = conv(pool(x, (3, 3, 3), (1, 1, 1)), f"{block}.3")
        x = torch.cat([conv(x, f"{block}.0"), wide, narrow, pooled], dim=1)
    x = F.avg_pool3d(x, (2, 7, 7), stride=1)
    return F.conv3d(x, weights["logits.weight"], weights["logits.bias"]).mean(dim=(2, 3, 4))


def _padded(x: Tensor, sides: tuple[int, ...], strides: tuple[int, ...], fixed: bool) -> Tensor:
    """Pad with zeros as TensorFlow's SAME does, or as if all lengths were multiples of the stride."""
    padding: list[int] = []
    for length, side, stride in zip(x.shape[2:], sides, strides, strict=True):
        last = length if fixed else (length - 1) % stride + 1
        total = max(side - stride if fixed else side - last, 0)
        padding = [total // 2, total - total // 2, *padding]
    return F.pad(x, padding)


def _shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every convolution's weight, in the order in which they are computed."""
    first, second, width = _STEM
    sizes = {"1a": (first, 3, 7), "2b": (second, first, 1), "2c": (width, second, 3)}
    for block, (one, wide_in, wide, narrow_in, narrow, pooled) in _BLOCKS.items():
        sizes |= {
            f"{block}.0": (one, width, 1),
            f"{block}.1a": (wide_in, width, 1),
            f"{block}.1b": (wide, wide_in, 3),
            f"{block}.2a": (narrow_in, width, 1),
            f"{block}.2b": (narrow, narrow_in, 3),
            f"{block}.3": (pooled, width, 1),
        }
        width = one + wide + narrow + pooled
    sizes["logits"] = (_CLASSES, width, 1)
    return {name: (made, given, side, side, side) for name, (made, given, side) in sizes.items()}


def _expected_tensors() -> dict[str, tuple[int, ...]]:
    shapes = _shapes()
    biases = {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()} | biases


_AGREES = 1e-3  # largest error of a feature, as a share of the largest change of one between two clips
_TEST_FRAMES = 13  # odd at two of the three halvings, where ways of padding differ
_EPSILONS = (1e-3, 1e-5)  # of the normalisation: TensorFlow's and PyTorch's, which no tensor tells


def convert_i3d(program: Path, target: Path, overwrite: bool = False) -> Path:
    """Write the weights of I3D's TorchScript file, WHOSE CODE IS RUN, as safetensors; return ``target``.

    The file's convolutions are taken in its order, whatever their names; the result must give the features
    that the program gives. Raises FileNotFoundError, FileExistsError, or ValueError: no such network.
    """
    if not program.is_file():
        raise FileNotFoundError(f"Expected the TorchScript file of I3D; there is no file {program}.")
    if not zipfile.is_zipfile(program):
        raise ValueError(f"Expected the TorchScript network I3D; {program} is not TorchScript.")
    refuse_existing(target, overwrite)
    videos = torch.rand(2, 3, _TEST_FRAMES, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    videos[1, :, :, : _SIDE // 2] = 1.0
    log.warning("Running the code in %s. %s", program, RISK)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The file exists in this format only, however old the format may be.
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(program), map_location="cpu").eval()
            wanted = network(videos, rescale=False, resize=False, return_features=True)
            state = network.state_dict()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = cut(str(error).strip().splitlines()[-1])
        raise ValueError(f"Expected the TorchScript network I3D; {program} is not: {reason}.") from error
    if not isinstance(wanted, Tensor):
        raise ValueError(f"Expected features from {program}; got a {type(wanted).__name__}.")
    ways = product(_EPSILONS, (True, False))
    made = [_compared(state, epsilon, fixed, videos, wanted, program) for epsilon, fixed in ways]
    error, weights, fixed = min(made, key=lambda found: found[0])
    if not error <= _AGREES:
        raise ValueError(
            f"Expected a network that computes what I3D's description says (to {_AGREES:g}); the features of "
            f"{program} differ by {error:.3g}. Nothing was written."
        )
    write_tensors(target, _KIND, weights, {"fixed_padding": fixed})
    log.info("The features agree to %.1e.", error)
    return target


def _compared(
    state: Mapping[str, Tensor], epsilon: float, fixed: bool, videos: Tensor, wanted: Tensor, program: Path
) -> tuple[float, dict[str, Tensor], bool]:
    """Return how far our features are off, with the weights and the way of padding that make them."""
    layers, shapes = _layers(state, epsilon), _shapes()
    found = [tuple(weight.shape) for weight, _ in layers]
    if found != list(shapes.values()) or wanted.shape != (2, _CLASSES):
        pairs = zip(found, shapes.values(), strict=False)
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(found), len(shapes)))
        raise ValueError(
            f"Expected the {len(shapes)} convolutions of I3D and features [2, {_CLASSES}]; {program} has "
            f"{len(found)}, of which the first {same} fit, and features {list(wanted.shape)}."
        )
    weights = {}
    for name, (weight, bias) in zip(shapes, layers, strict=True):
        weights |= {f"{name}.weight": weight, f"{name}.bias": bias}
    with torch.no_grad():
        error = (_logits(videos, weights, fixed) - wanted).abs().max() / (wanted[0] - wanted[1]).abs().max()
    return float(error), weights, fixed


def _layers(state: Mapping[str, Tensor], epsilon: float) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias of all convolutions, each with the normalisation that follows it."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        module, _, name = key.rpartition(".")
        modules.setdefault(module, {})[name] = tensor.detach().float()
    layers: list[tuple[Tensor, Tensor]] = []
    for parts in modules.values():
        own = parts.get("weight")
        if own is not None and own.ndim == 5:
            layers.append((own, parts.get("bias", own.new_zeros(len(own)))))
        elif "running_mean" in parts and layers:
            weight, bias = layers[-1]
            scale = (parts["running_var"] + epsilon).rsqrt() * (1.0 if own is None else own)
            shift = parts.get("bias", 0.0) - parts["running_mean"] * scale
            layers[-1] = weight * scale.view(-1, 1, 1, 1, 1), bias * scale + shift
    return layers
