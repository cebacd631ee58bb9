"""How the conditioning of one window travels through ComfyUI's CONDITIONING."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..sv4d2_core.diffusion.conditioning import Conditioning, guided_inputs

_VECTORS, _REFERENCES, _VIEW_MIXING = "sv4d2_vectors", "sv4d2_references", "sv4d2_view_mixing"


@dataclass(frozen=True)
class WindowConds:
    """One half of guidance for one window of T frames and V views.

    Args:
        context: [1, T, D] image embedding of each frame.
        concat: [T * V, 4, h, w] latents of the frames, repeated for the views.
        vectors: [V, A] camera vectors.
        references: [V, 4, h, w] latents of the reference views.
        view_mixing: how the view blocks group tokens.
    """

    context: Tensor
    concat: Tensor
    vectors: Tensor
    references: Tensor
    view_mixing: str

    def to_host(self) -> list[list[Any]]:
        """Return the CONDITIONING socket's value."""
        return [
            [
                self.context,
                {
                    "concat_latent_image": self.concat,
                    _VECTORS: self.vectors,
                    _REFERENCES: self.references,
                    _VIEW_MIXING: self.view_mixing,
                },
            ]
        ]

    @classmethod
    def of_host(cls, cond: dict[str, Any]) -> WindowConds:
        """Return the window of one condition as the host hands it to a model.

        Raises:
            ValueError: the condition was made for another model.
        """
        needed = ("cross_attn", "concat_latent_image", _VECTORS, _REFERENCES, _VIEW_MIXING)
        if any(cond.get(key) is None for key in needed):
            raise ValueError(
                "Expected conditioning from SV4D2 Conditioning in positive and negative; got conditioning of "
                "another kind (text prompts have no effect on SV4D 2.0). Connect SV4D2 Conditioning."
            )
        return cls(*(cond[key] for key in needed))

    @property
    def n_frames(self) -> int:
        """T."""
        return self.context.shape[1]

    @property
    def n_views(self) -> int:
        """V."""
        return self.vectors.shape[0]

    def check_noise(self, noise: Tensor) -> None:
        """Raise ValueError unless latents of this shape are one window."""
        if noise.shape != self.concat.shape:
            raise ValueError(
                f"Expected latents {list(self.concat.shape)} ({self.n_frames} frames x {self.n_views} "
                f"views); got {list(noise.shape)}. Connect the latent of SV4D2 Conditioning, unchanged."
            )


def both_halves(conditioning: Conditioning, view_mixing: str) -> tuple[WindowConds, WindowConds]:
    """Return the conditional and the unconditional half of a window."""
    inputs = guided_inputs(conditioning, conditioning.tokens.device, conditioning.tokens.dtype)
    halves = zip(
        inputs.context.chunk(2),
        inputs.concat.chunk(2),
        inputs.vectors.chunk(2),
        inputs.references.chunk(2),
        strict=True,
    )
    uncond, cond = (WindowConds(*half, view_mixing=view_mixing) for half in halves)
    return cond, uncond
