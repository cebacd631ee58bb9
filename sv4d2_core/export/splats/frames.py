"""The Gaussians of a scene at one time, as files need them: whole, finite, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...fourd.gaussians import Gaussians
from ...fourd.splatting import GaussiansAt

# Half a turn about x takes our world (+y up, the input camera on +z) to the frame that 3DGS files are in
# (x right, y down, z forward as the input camera sees it), and back.
_HALF_TURN = (1.0, -1.0, -1.0)
SPLAT_FRAME = "x right, y down, z forward as the input camera sees it; world = (x, -y, -z), +y up"


@torch.no_grad()
def gaussians_at(scene: Gaussians, time: float | None) -> GaussiansAt:
    """Return a scene's Gaussians in the world, where its path puts them, float32 on the CPU.

    Args:
        scene: the Gaussians.
        time: in 0..1; None: where they are before they move, about the origin.

    Raises:
        ValueError: a time outside 0..1, no Gaussians, numbers that are not finite.
    """
    if time is not None and not 0 <= time <= 1:
        raise ValueError(f"Expected a time in 0..1; got {time:g}.")
    return checked(scene.at_time(None) if time is None else scene.in_world(time))


def checked(gaussians: GaussiansAt) -> GaussiansAt:
    """Return Gaussians as float32 on the CPU, their quaternions of unit length.

    Raises:
        ValueError: none at all, shapes that do not fit together, numbers that are not finite, scales or
            opacities out of range.
    """
    n = len(gaussians.means)
    if n == 0:
        raise ValueError("Expected at least one Gaussian to write; the scene is empty.")
    shapes = ((n, 3), (n, 4), (n, 3), (n,), (n, 3))
    for name, tensor, shape in zip(GaussiansAt._fields, gaussians, shapes, strict=True):
        if tensor.shape != shape:
            raise ValueError(f"Expected {name} {list(shape)}; got {list(tensor.shape)}.")
        if bad := int((~tensor.isfinite()).sum()):
            raise ValueError(
                f"Expected finite numbers; {bad} of the {tensor.numel()} {name} are NaN or infinite. The fit "
                f"has failed; fit the scene again."
            )
    own = GaussiansAt(*(tensor.detach().float().cpu() for tensor in gaussians))
    if (own.scales < 0).any() or (own.opacities < 0).any() or (own.opacities > 1).any():
        raise ValueError(
            f"Expected scales of at least 0 and opacities in 0..1; got scales from {own.scales.min():g} and "
            f"opacities from {own.opacities.min():g} to {own.opacities.max():g}."
        )
    return own._replace(quats=F.normalize(own.quats, dim=-1))


def in_splat_frame(gaussians: GaussiansAt) -> GaussiansAt:
    """Return Gaussians of our world in the frame of 3DGS files (`SPLAT_FRAME`), or the other way round."""
    means = gaussians.means * torch.tensor(_HALF_TURN)
    return gaussians._replace(means=means, quats=_half_turned(gaussians.quats))


def _half_turned(quats: Tensor) -> Tensor:
    """Return quaternions [N, 4] wxyz that turn by half a turn about x, (0, 1, 0, 0), after their own turn."""
    w, x, y, z = quats.unbind(-1)
    return torch.stack([-x, w, -z, y], dim=-1)
