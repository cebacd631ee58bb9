"""Dead Gaussians are moved onto live ones, so that their number stays the same.

Source: Kheradmand et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo" (2404.09591), section 3.3
and equation 9: copies share the opacity of the original so that the picture hardly changes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .gaussians import CanonicalGaussians
from .splat_projection import rotations

# Gaussians that may come to share one place in one move.
_MOST_COPIES = 8
_MAX_OPACITY = 0.99
# How far copies stand apart, in scales of the original.
_SPREAD = 0.5


@torch.no_grad()
def relocate(canonical: CanonicalGaussians, dead: Tensor, generator: torch.Generator) -> int:
    """Move dead Gaussians onto live ones, drawn by their opacity, and return how many moved.

    Copies are spread over the original's extent: at one and the same place they would stay alike for good.

    Args:
        canonical: changed in place.
        dead: [N] bool.
        generator: on the CPU.
    """
    # Not on the device: Apple's GPUs have no float64.
    opacities = canonical.opacities.sigmoid().cpu().double()
    moved = dead.nonzero()[:, 0]
    chances = opacities.masked_fill(dead.cpu(), 0)
    if not len(moved) or float(chances.sum()) <= 0:
        return 0
    onto = torch.multinomial(chances, len(moved), replacement=True, generator=generator)
    sharing = (1 + torch.bincount(onto, minlength=len(dead))).clamp(max=_MOST_COPIES)
    touched = (sharing > 1).nonzero()[:, 0]
    opacity, factor = shared(opacities[touched].clamp(max=_MAX_OPACITY), sharing[touched])
    canonical.opacities[touched] = opacity.logit().to(canonical.opacities)
    canonical.log_scales[touched] += factor.log()[:, None].to(canonical.log_scales)
    for parameter in canonical.parameters():
        parameter[moved] = parameter[onto]
    spread = _SPREAD * torch.randn(len(moved), 3, generator=generator).to(canonical.means)
    axes = rotations(canonical.quats[moved]) * canonical.log_scales[moved].exp()[:, None]
    canonical.means[moved] += (axes @ spread[..., None])[..., 0]
    return len(moved)


def shared(opacities: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return the opacities of that many equal copies that look like one, and the factors of their scales.

    Args:
        opacities: [N] float64, of the one.
        copies: [N] int64, 1..8.
    """
    each = 1 - (1 - opacities) ** (1 / copies)
    total = torch.zeros_like(opacities)
    for m in range(1, _MOST_COPIES + 1):
        # The double sum of equation 9, its inner index summed by the hockey-stick identity.
        ways = copies.new_tensor([math.comb(c, m) for c in range(_MOST_COPIES + 1)])[copies]
        total += (-1) ** (m + 1) * ways * each**m / math.sqrt(m)
    return each, opacities / total
