"""The core's UNet as ComfyUI calls a diffusion model: its layers, its attention, its cancelling."""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ..sv4d2_core.diffusion.blocks import retry_on_oom
from ..sv4d2_core.diffusion.config import UNetConfig
from ..sv4d2_core.diffusion.safetensors_stream import METADATA_KEY
from ..sv4d2_core.diffusion.unet import UNet
from .host import check_cancelled, is_oom


class _HostAttention:
    """The host's attention, with the options of the pass that runs.

    An object of its own: layers that pointed back to the network would keep its weights in memory after
    the host has dropped it.
    """

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return optimized_attention(q, k, v, heads=heads, transformer_options=self.options)


class HostUNet(UNet):
    """The UNet with ComfyUI's ``operations`` and attention, taking all conditioning at every call."""

    def __init__(
        self,
        config: UNetConfig,
        metadata: Tensor,
        *,
        operations: Any,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        **_detected: Any,
    ) -> None:
        """Build the network of ``config``; what the host detected by itself is not needed.

        ``metadata`` travels with the weights, so that files which the host saves keep it.
        """
        attention = _HostAttention()
        super().__init__(config, operations=operations, attention=attention, dtype=dtype, device=device)
        self.register_buffer(METADATA_KEY, metadata)
        self._attention = attention
        # The host reads the weights' type from here.
        self.dtype = dtype
        self.before_layer = _raise_if_cancelled

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        *_args: Any,
        **conds: Any,
    ) -> Tensor:
        """Return the network's prediction, [N, 4, h, w], for any number B of batch elements.

        Args:
            x: [N, 4, h, w] scaled noisy latents, N = B * T * V ordered (b t v).
            timesteps: [N], the same for all frames.
            context: [B, T, D] image embedding of each input frame.
            control: not supported, ignored.
            transformer_options: the host's patches and wrappers.
            conds: ``frames`` [B * T, 4, h, w] latents, ``y`` [B * V, A] camera vectors, ``references``
                [B * V, 4, h, w] latents, ``view_mixing``.
        """
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._predict, self, wrappers)
        return executor.execute(x, timesteps, context, control, options, **conds)

    def _predict(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: Any,
        transformer_options: dict[str, Any],
        *,
        frames: Tensor,
        y: Tensor,
        references: Tensor,
        view_mixing: str,
        **_: Any,
    ) -> Tensor:
        self.set_view_mixing(view_mixing)
        if transformer_options.get("patches_replace"):
            kinds = ", ".join(transformer_options["patches_replace"])
            raise ValueError(
                f"Expected the network's own attention; got a model whose {kinds} another node replaces, "
                f"which SV4D 2.0 does not know. Remove that node, for example Self-Attention or "
                f"Perturbed-Attention Guidance."
            )
        batch, n_frames = context.shape[:2]
        of_first_frame = timesteps.unflatten(0, (batch, n_frames, -1))[:, 0].flatten()
        inputs = torch.cat([x, frames.repeat_interleave(len(x) // len(frames), dim=0)], dim=1)
        forward = super().forward

        def predict() -> Tensor:
            return forward(inputs, of_first_frame, y, self.prepare(context, references))

        self._attention.options = transformer_options
        try:
            if torch.compiler.is_compiling():
                return predict()
            return retry_on_oom(predict, self.shrink_parts, is_oom)
        finally:
            self._attention.options = {}


def _raise_if_cancelled() -> None:
    if not torch.compiler.is_compiling():
        check_cancelled()
