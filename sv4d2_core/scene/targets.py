"""The targets of a fit: checked views, and in the second stage views made anew from the scene.

Stage 2 follows SV4D 2.0 (2503.16396) as far as abstract and slides tell; strength, cameras, weights are ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cameras import Cameras
from ..messages import listed
from ..stored import Tensors
from ..video.foreground import near_white_masks, soft_masks
from ..views import ViewGrid
from .config import RefineConfig
from .geometry.trust import pixel_trust, visibility_weights
from .scene import Scene4D

log = logging.getLogger(__name__)

Resynthesize = Callable[[ViewGrid, float], ViewGrid]  # (rendered views, strength) -> new views

_LEAST_SHARE = 0.001  # of all pixels: smaller silhouettes hold no shape
_SLACK = 0.5  # a colour nearer to length 1 is a normal; those of black, grey and white are not
_RING_ELEVATION_DEG = 30.0  # of a ring of novel cameras, relative to the input view
_FROM_POLE = 5.0  # degrees that the ring stays away
_LEVEL_DEG = 1.0  # by which cameras at one height may differ: those of data sets are rounded
_STRENGTH_FALLING = 0.6  # factor on the strength from round to round
_NAMES = ("images", "masks", "weights")


def checked_views(views: ViewGrid) -> ViewGrid:
    """Return float32 views on the CPU with masks (near-white if missing); ValueError for unusable views."""
    n_frames, n_views, height, width = views.images.shape[:4]
    if n_frames < 1:
        raise ValueError("Expected at least one frame; got none. Give views [T, V + 1, H, W, 3] with T >= 1.")
    if height != width or height < 16:
        raise ValueError(
            f"Expected square pictures of at least 16 pixels; got {width} x {height}. Crop or pad the views "
            f"to a square on white."
        )
    times = views.frame_times()
    pairs = zip(times, times[1:], strict=False)
    if not all(0 <= time <= 1 for time in times) or any(a >= b for a, b in pairs):
        raise ValueError(f"Expected rising times in 0..1, one per frame; got {times}. Sort the frames.")
    images = views.images.detach().cpu().float()
    _check_range("images", images)
    if views.masks is None:
        log.warning("The views have no masks: every pixel that is not near-white counts as the object.")
        masks = near_white_masks(images)
    else:
        masks = views.masks.detach().cpu().float()
        _check_range("masks", masks)
    masks = soft_masks(images, masks)
    _check_silhouettes(masks)
    if float((images - images[:1, :1, :1, :1]).abs().max()) < 1 / 255:
        raise ValueError(
            f"Expected pictures of an object; got {n_frames * n_views} pictures of one colour, "
            f"{images[0, 0, 0, 0].tolist()}. Check where the views come from."
        )
    return replace(views, images=images.clamp(0, 1), masks=masks.clamp(0, 1), latents=None)


def _check_range(name: str, values: Tensor) -> None:
    bad = int((~values.isfinite()).sum())
    if bad:
        raise ValueError(
            f"Expected finite {name}; got {bad} of {values.numel()} values that are NaN or infinite. The "
            f"views were sampled or decoded wrongly: try float32."
        )
    low, high = float(values.min()), float(values.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"Expected {name} in 0..1; got {low:g} to {high:g}. Divide 8-bit values by 255.")


def _check_silhouettes(masks: Tensor) -> None:
    inside = masks >= 0.5
    share, count = float(inside.float().mean()), masks.shape[0] * masks.shape[1]
    if not _LEAST_SHARE <= share < 1:
        what = "no background" if share == 1 else f"an object on {100 * share:.2g} % of the pixels"
        raise ValueError(
            f"Expected an object on a white background; got {what} in {count} pictures. Give masks (white = "
            f"object)."
        )
    empty = (~inside.flatten(2).any(-1)).nonzero().tolist()
    if empty:
        shown = listed([f"frame {t} view {v}" for t, v in empty])
        raise ValueError(
            f"Expected the object in every picture; {len(empty)} of {count} are empty ({shown}). Leave these "
            f"frames out, or give better masks."
        )


def checked_normals(normals: Tensor, views: ViewGrid) -> Tensor:
    """Return unit normals, 0 where not known, in the views' size; ValueError for unfit or infinite ones."""
    sized = resized_normals(normals.detach().cpu().float(), views.images.shape[2])
    if sized.shape != views.images.shape or not sized.isfinite().all():
        raise ValueError(
            f"Expected finite normals {list(views.images.shape)} like the views; got {list(normals.shape)}. "
            f"Estimate them from the views, the input included, at the same size."
        )
    length = sized.norm(dim=-1, keepdim=True)
    return torch.where(length > 0.1, sized / length.clamp(min=1e-6), 0.0)


def resized_normals(normals: Tensor, size: int) -> Tensor:
    """Return normals [T, V + 1, H, W, 3] of another picture size; what is not known stays 0."""
    planes = F.interpolate(normals.flatten(0, 1).movedim(-1, 1), (size, size), mode="area")
    return F.normalize(planes, dim=1).movedim(1, -1).unflatten(0, tuple(normals.shape[:2]))


def unpacked_normals(pictures: Tensor) -> Tensor:
    """Return unit normals [..., 3] from colours (normal + 1) / 2; 0 where a colour is no unit vector."""
    normals = pictures * 2 - 1
    length = normals.norm(dim=-1, keepdim=True)
    return torch.where((length - 1).abs() < _SLACK, normals / length.clamp(min=1e-6), 0.0)


def packed_normals(normals: Tensor, cameras: Cameras) -> Tensor:
    """Return colours (normal + 1) / 2 in each camera's OpenGL axes of world normals [T, V + 1, H, W, 3]."""
    axes = cameras.c2w_opengl()[:, :3, :3].to(normals)
    return torch.einsum("tvhwi,vij->tvhwj", normals, axes) / 2 + 0.5


@dataclass(frozen=True)
class RoundTargets:
    """Views of other cameras, or the views themselves under other weights, as small as a state needs them."""

    cameras: Cameras  # V' + 1, the input first
    images: Tensor  # [T, V' + 1, H, W, 3] uint8
    masks: Tensor  # [T, V' + 1, H, W] uint8
    weights: Tensor  # [T, V' + 1, H, W] uint8, how much a pixel's colour counts, of 255

    @classmethod
    def of(cls, views: ViewGrid, weights: Tensor) -> RoundTargets:
        """Return views with masks, and weights in 0..1, rounded."""
        assert views.masks is not None
        rounded = ((x * 255).round().to(torch.uint8) for x in (views.images, views.masks, weights))
        return cls(views.cameras, *rounded)

    def unpacked(self, views: ViewGrid) -> tuple[ViewGrid, Tensor]:
        """Return the targets of these ``views`` as floats, the input view exactly as there, and weights."""
        images, masks, weights = (x.float() / 255 for x in (self.images, self.masks, self.weights))
        return _with_input(views, self.cameras, images, masks), weights

    def tensors(self) -> dict[str, Tensor]:
        return {f"targets.{name}": getattr(self, name) for name in _NAMES}

    @classmethod
    def from_tensors(cls, tensors: Tensors, cameras: Cameras, views: ViewGrid) -> RoundTargets:
        """Return what `tensors` returned; ValueError for other sizes than those of cameras and views."""
        shape = views.n_frames, cameras.n_views + 1, *views.images.shape[2:4]
        channels = {"images": (*shape, 3)}
        sized = [(f"targets.{name}", channels.get(name, shape)) for name in _NAMES]
        return cls(cameras, *(tensors.shaped(key, *sizes) for key, sizes in sized))


def first_weights(views: ViewGrid, config: RefineConfig) -> Tensor:
    """Return how much every pixel of checked views counts in the first stage, [T, V + 1, H, W]."""
    return pixel_trust(views) if config.weight_by_trust else torch.ones(views.images.shape[:4])


def round_targets(
    scene: Scene4D,  # as the first stage or the round before has left it
    views: ViewGrid,  # checked, that the first stage was fitted to
    config: RefineConfig,
    number: int,  # of the round, from 1
    resynthesize: Resynthesize | None,
    report: Callable[[], None],  # called after every picture that is rendered; may raise to cancel
) -> RoundTargets:
    """Return what a round of the second stage is fitted to."""
    cameras, rendering, targets = views.cameras, None, views
    if resynthesize is not None:
        cameras = with_ring(cameras)
    elif number == 1:
        log.warning("Stage 2 has no model to make views anew with: it only weighs them by visibility.")
    if resynthesize is not None or config.weight_by_visibility:
        times, size = views.frame_times(), views.images.shape[2]
        rendering = scene.render(cameras, times, size, callback=lambda *_: report())
    if resynthesize is not None and rendering is not None:
        shown = _with_input(views, cameras, rendering.rgb.clone(), rendering.alpha.clone())
        made = resynthesize(shown, config.strength * _STRENGTH_FALLING ** (number - 1))
        targets = _checked_anew(made, shown, rendering.alpha)
    if config.weight_by_visibility and rendering is not None:
        weights = visibility_weights(
            rendering, targets, trusted=not config.weight_by_trust, anew=resynthesize is not None
        )
    else:
        weights = first_weights(targets, config)
    return RoundTargets.of(targets, weights)


def _with_input(views: ViewGrid, cameras: Cameras, images: Tensor, masks: Tensor) -> ViewGrid:
    """Return the views of other cameras, whose input view is changed in place to that of ``views``."""
    images[:, 0] = views.images[:, 0]
    if views.masks is not None:
        masks[:, 0] = views.masks[:, 0]
    return replace(views, images=images, masks=masks, cameras=cameras)


def _checked_anew(made: ViewGrid, shown: ViewGrid, alpha: Tensor) -> ViewGrid:
    """Return views made anew from those ``shown``, which take the place of pictures that lost the object."""
    if made.images.shape != shown.images.shape or made.cameras != shown.cameras:
        raise ValueError(
            f"Expected resynthesised views {list(shown.images.shape)} of the same cameras; got "
            f"{list(made.images.shape)} of {made.cameras.n_views} novel views. Keep the order of the views."
        )
    new = made.images.detach().cpu().float().clamp(0, 1)
    masks = near_white_masks(new) if made.masks is None else made.masks.detach().cpu().float().clamp(0, 1)
    lost = ~(masks >= 0.5).flatten(2).any(-1) & new.isfinite().flatten(2).all(-1)
    if lost.any():
        log.warning(
            "%d of %d views made anew show no object: the scene's stay.", int(lost.sum()), lost.numel()
        )
        new[lost], masks[lost] = shown.images[lost], alpha[lost]
    return checked_views(replace(shown, images=new, masks=masks))


def with_ring(cameras: Cameras) -> Cameras:
    """Return cameras at one height with as many novel ones between them from above; others as they are.

    A model samples V views at a time, so the ring is one pass of it. Of the V + 1 gaps between azimuths one
    beside the input view is left out: the input shows most of it already.
    """
    if max(map(abs, cameras.elevations_deg)) > _LEVEL_DEG:
        return cameras
    azimuths = sorted({a % 360 for a in cameras.azimuths_deg})
    gaps = [(b - a, (a + b) / 2) for a, b in zip(azimuths, [*azimuths[1:], 360.0], strict=True)]
    # Views at one azimuth leave fewer gaps than views: the widest are parted again.
    while len(gaps) < cameras.n_views + 1:
        width, middle = max(gaps)
        gaps.remove((width, middle))
        gaps += [(width / 2, middle - width / 4), (width / 2, middle + width / 4)]
    first = min(gaps, key=lambda gap: (min(gap[1], 360 - gap[1]), gap[1]))
    between = sorted(middle for width, middle in gaps if (width, middle) != first)[: cameras.n_views]
    elevation = min(_RING_ELEVATION_DEG, 90 - _FROM_POLE - cameras.input_elevation_deg)
    return replace(
        cameras,
        elevations_deg=(*cameras.elevations_deg, *[elevation] * len(between)),
        azimuths_deg=(*cameras.azimuths_deg, *between),
    )
