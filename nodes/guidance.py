"""Per-frame, per-view guidance as a patch of a MODEL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..sv4d2_core.diffusion.config import ModelConfig
from ..sv4d2_core.diffusion.sampling import guidance_table, guide
from .window_conds import WindowConds

OFFICIAL = "official"


@dataclass(frozen=True)
class Guidance:
    """A shape and a range from which the table of any model and number of views follows.

    Args:
        shape: a guidance shape, or ``official`` for the variant's own shape and range.
        cfg_min, cfg_max: range of the scale, unused for ``official``.
    """

    shape: str = OFFICIAL
    cfg_min: float = 1.0
    cfg_max: float = 2.0

    def table(self, config: ModelConfig) -> Tensor:
        """Return the scales [T, V] of one window."""
        if self.shape == OFFICIAL:
            shape, low, high = config.guidance, config.cfg_min, config.cfg_max
        else:
            shape, low, high = self.shape, self.cfg_min, self.cfg_max
        return guidance_table(shape, config.n_frames, config.n_views, low, high)


class GuidanceFunction:
    """The function that the host calls in place of its own guidance.

    Args:
        guidance: a table [T, V] of scales, or what one follows from.
    """

    def __init__(self, guidance: Guidance | Tensor) -> None:
        self.guidance = guidance

    def __call__(self, args: dict[str, Any]) -> Tensor:
        """Return the noisy input minus the guided prediction, as the host wants it."""
        if args["input_uncond"] is None:
            raise ValueError(
                "Expected positive and negative conditioning for SV4D2 Guidance; got positive alone. Use "
                "KSampler or CFGGuider with the negative of SV4D2 Conditioning."
            )
        cond, uncond = args["cond_denoised"], args["uncond_denoised"]
        table = self.guidance
        if isinstance(table, Guidance):
            window = WindowConds.of_host(args["input_cond"][0])
            table = table.table(args["model"].config_for(window.n_views))
        if table.numel() != len(cond):
            raise ValueError(
                f"Expected latents of {table.shape[0]} frames x {table.shape[1]} views for this guidance; "
                f"got {len(cond)}. Connect the latent of SV4D2 Conditioning made with the same model."
            )
        return args["input"] - guide(uncond, cond, table)


def with_guidance(patcher: Any, guidance: Guidance | Tensor) -> Any:
    """Return a copy of a MODEL that is guided by a table; a sampler's cfg has no effect then."""
    patched = patcher.clone()
    patched.set_model_sampler_cfg_function(
        GuidanceFunction(guidance),
        # Without it the host leaves the unconditional half out at a cfg of 1.
        disable_cfg1_optimization=True,
    )
    return patched


def guidance_of(patcher: Any) -> Guidance:
    """Return the guidance that SV4D2 Guidance put on a MODEL, else the official one."""
    function = patcher.model_options.get("sampler_cfg_function")
    guidance = function.guidance if isinstance(function, GuidanceFunction) else None
    return guidance if isinstance(guidance, Guidance) else Guidance()
