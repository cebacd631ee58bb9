"""How the conditioning of one window travels through ComfyUI's CONDITIONING."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..sv4d2_core.diffusion.sampling import Conditioning

_FRAMES, _VECTORS, _REFERENCES = "sv4d2_frames", "sv4d2_vectors", "sv4d2_references"
_VIEW_MIXING = "sv4d2_view_mixing"


@dataclass(frozen=True)
class WindowConds:
    """One half of guidance for one window of T frames and V views.

    Args:
        context: [1, T, D] image embedding of each frame.
        frames: [T, 4, h, w] latents of the frames.
        vectors: [V, A] camera vectors.
        references: [V, 4, h, w] latents of the reference views.
        view_mixing: how the view blocks group tokens.
    """

    context: Tensor
    frames: Tensor
    vectors: Tensor
    references: Tensor
    view_mixing: str

    @classmethod
    def of(cls, conditioning: Conditioning, view_mixing: str) -> WindowConds:
        """Return what a window's conditioning, of either half, is to the host."""
        return cls(
            context=conditioning.tokens[None],
            frames=conditioning.frame_latents,
            vectors=conditioning.vectors,
            references=conditioning.reference_latents,
            view_mixing=view_mixing,
        )

    def to_host(self) -> list[list[Any]]:
        """Return the CONDITIONING socket's value."""
        return [
            [
                self.context,
                {
                    _FRAMES: self.frames,
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
        needed = ("cross_attn", _FRAMES, _VECTORS, _REFERENCES, _VIEW_MIXING)
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

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latents to sample, [T * V, 4, h, w]."""
        return self.n_frames * self.n_views, *self.frames.shape[1:]

    def check_noise(self, noise: Tensor) -> None:
        """Raise ValueError unless latents of this shape are one window."""
        expected = list(self.latent_shape)
        if list(noise.shape) != expected:
            raise ValueError(
                f"Expected latents {expected} ({self.n_frames} frames x {self.n_views} views); got "
                f"{list(noise.shape)}. Connect the latent of SV4D2 Conditioning, unchanged."
            )
