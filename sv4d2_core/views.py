"""The grid of views over time: T frames seen from V + 1 cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from .cameras import Cameras

FPS_RANGE = (0.1, 1000.0)


@dataclass(frozen=True)
class ViewGrid:
    """T frames of an object from V + 1 cameras, view 0 the processed input; ValueError for wrong shapes."""

    images: Tensor  # [T, V + 1, H, W, 3] float32 in 0..1, on white
    cameras: Cameras
    masks: Tensor | None = None  # [T, V + 1, H, W] float32 foreground opacity in 0..1
    fps: float = 8.0
    latents: Tensor | None = None  # [T, V, 4, h, w] float32, sampled, of the novel views
    variant: str = ""  # of the checkpoint; "": no model made the views
    trained: bool = True  # False: the weights were never trained
    seed: int | None = None  # of the initial noise
    steps: int | None = None  # of denoising
    settings: dict | None = None  # what else determined the views, JSON values
    times: tuple[float, ...] | None = None  # [T] in 0..1; None: frame t shows t / (T - 1)

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if len(shape) != 5 or shape[-1] != 3 or shape[1] != self.cameras.n_views + 1:
            raise ValueError(
                f"Expected images [T, {self.cameras.n_views + 1}, H, W, 3] for {self.cameras.n_views} novel "
                f"views and the input view; got {list(shape)}."
            )
        if self.masks is not None and tuple(self.masks.shape) != shape[:4]:
            raise ValueError(f"Expected masks {list(shape[:4])}; got {list(self.masks.shape)}.")
        if self.times is not None and len(self.times) != shape[0]:
            raise ValueError(f"Expected {shape[0]} times, one per frame; got {len(self.times)}.")
        check_fps(self.fps, "the views")

    @property
    def n_frames(self) -> int:
        return self.images.shape[0]

    @property
    def n_views(self) -> int:
        """V, the number of novel views (the input view is not counted)."""
        return self.cameras.n_views

    def frame_times(self) -> tuple[float, ...]:
        """Return the time in 0..1 that each frame shows."""
        if self.times is not None:
            return self.times
        last = max(self.n_frames - 1, 1)
        return tuple(t / last for t in range(self.n_frames))

    def one_view(self, view: int) -> tuple[Tensor, Tensor | None]:
        """Return all frames of a view (0 is the input), [T, H, W, 3], and their masks [T, H, W]."""
        self.cameras.check_view(view)
        return self._at((slice(None), view))

    def one_frame(self, frame: int, include_input: bool = True) -> tuple[Tensor, Tensor | None]:
        """Return all views of a frame, [V + 1 or V, H, W, 3], and their masks [V + 1 or V, H, W]."""
        if not 0 <= frame < self.n_frames:
            raise ValueError(f"Expected a frame from 0 to {self.n_frames - 1}; got {frame}.")
        return self._at((frame, slice(0 if include_input else 1, None)))

    def all_views(self, include_input: bool = True) -> tuple[Tensor, Tensor | None]:
        """Return all frames of one view after the other, [(V + 1 or V) * T, H, W, 3], and their masks."""
        images, masks = self._at((slice(None), slice(0 if include_input else 1, None)))
        pattern = "t v ... -> (v t) ..."
        return rearrange(images, pattern), None if masks is None else rearrange(masks, pattern)

    def _at(self, index: tuple) -> tuple[Tensor, Tensor | None]:
        return self.images[index], None if self.masks is None else self.masks[index]

    def at_frames(self, frames: Sequence[int]) -> ViewGrid:
        """Return the grid of some frames, which keep their times."""
        frames, times = list(frames), self.frame_times()
        kept = (None if x is None else x[frames] for x in (self.images, self.masks, self.latents))
        images, masks, latents = kept
        times = tuple(times[t] for t in frames)
        return replace(self, images=images, masks=masks, latents=latents, times=times)

    def resized(self, size: int) -> ViewGrid:
        """Return the grid with square images of another size and no latents."""
        shape = tuple(self.images.shape[:4])
        if shape[2:] == (size, size):
            return self
        images = resize_images(self.images.flatten(0, 1), size, size).unflatten(0, shape[:2])
        masks = self.masks
        if masks is not None:
            masks = resize_images(masks.flatten(0, 1)[..., None], size, size)[..., 0].unflatten(0, shape[:2])
        return replace(self, images=images, masks=masks, latents=None)


def resize_images(images: Tensor, height: int, width: int) -> Tensor:
    """Return images [N, H, W, C] in 0..1 at another size (bicubic, antialiased), clamped to 0..1."""
    if tuple(images.shape[1:3]) == (height, width):
        return images
    planes = F.interpolate(images.movedim(-1, 1), (height, width), mode="bicubic", antialias=True)
    return planes.clamp(0, 1).movedim(1, -1).contiguous()


def playable(fps: float) -> float:
    """Return the nearest frame rate that views and clips can have."""
    slowest, fastest = FPS_RANGE
    return min(max(fps, slowest), fastest)


def check_fps(fps: float, name: str) -> None:
    """Raise ValueError for a frame rate out of its range."""
    slowest, fastest = FPS_RANGE
    if not slowest <= fps <= fastest:
        raise ValueError(
            f"Expected a frame rate from {slowest:g} to {fastest:g}; got fps = {fps:g} for {name}. Give the "
            f"rate that it should play at."
        )
