"""Features of the I3D action network, which Frechet video distances (FVD) are made of, from a local file.

The file is the TorchScript network that the field measures FVD with, usually named ``i3d_torchscript.pt``;
nothing is downloaded.

Source: Unterthiner et al. 2018, "Towards Accurate Generative Models of Video"; Carreira and Zisserman 2017.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

I3D_HELP = "Give the TorchScript file of I3D that StyleGAN-V and others use for FVD, i3d_torchscript.pt."
# The network halves time three times and then averages over two steps.
SHORTEST_CLIP = 9
_SIDE = 224


class I3D:
    """Clips to feature vectors.

    Args:
        path: TorchScript file whose network takes clips [N, 3, T, 224, 224] in -1..1 and the switches
            ``rescale``, ``resize`` and ``return_features``.
        device: where the network runs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a TorchScript network.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"Expected the I3D network; there is no file {path}. {I3D_HELP}")
        try:
            with warnings.catch_warnings():
                # The file exists in this format only, however old the format may be.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._network = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(
                f"Expected a TorchScript network; {path} is not ({str(error).splitlines()[0]}). {I3D_HELP}"
            ) from error
        self._device = torch.device(device)

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """Return one feature vector per clip, [N, D] float32 on the CPU.

        Args:
            clips: [N, T, H, W, 3] in 0..1, resized to 224 x 224 (bilinear), T at least 9.

        Raises:
            ValueError: clips that are too short, or a network that answers in another way.
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
        try:
            features = self._network(video, rescale=False, resize=False, return_features=True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"The I3D file cannot be used: {reason}. {I3D_HELP}") from error
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 1:
            raise ValueError(
                f"Expected one feature vector per clip from the I3D file; got "
                f"{list(features.shape) if isinstance(features, Tensor) else type(features).__name__}. "
                f"{I3D_HELP}"
            )
        return features.float().cpu()
