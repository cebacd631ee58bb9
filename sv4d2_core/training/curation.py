"""The checks of curation: limits and measures of a clip, and its rectification."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cameras import Cameras
from ..scene.config import Settings, setting
from ..scene.geometry.hull import visual_hull
from ..video.foreground import foreground_masks, masks_of
from ..video.pictures import pick_frames, to_bytes
from ..video.read import Clip
from ..views import ViewGrid


@dataclass(frozen=True)
class CurationLimits(Settings):
    """Limits of the measures; a clip beyond one of them is rejected."""

    # As many as the model samples at once.
    least_frames: int = setting(12, "fewest frames", least=0, most=1_000_000)
    least_cover: float = setting(
        0.005, "least share of every picture that the object covers", least=0, most=1
    )
    largest_cut: float = setting(
        0.03,
        "greatest length along which the border cuts the object, in sides of the picture",
        least=0,
        most=4,
    )
    largest_dark: float = setting(0.5, "largest share of the object that is nearly black", least=0, most=1)
    largest_blown: float = setting(0.3, "largest share of the object that is nearly white", least=0, most=1)
    least_motion: float = setting(
        0.04,
        "least change of the object's pixels between two key frames; 0 keeps still clips",
        least=0,
        most=1,
    )
    largest_rescaling: float = setting(
        0.06,
        "largest change of size that all views share, as a logarithm: 0.1 is about 10 %",
        least=0,
        most=10,
    )
    largest_zoom: float = setting(
        3.0, "largest enlargement to make the object fill the picture", least=0, most=100
    )


# Grey levels, 0 to 1, below and above which a pixel of the object shows next to nothing of it.
_DARK, _BLOWN = 0.08, 0.92
_KEY_FRAMES = 6
# Frames among which the size is compared, pair by pair.
_SIZED_FRAMES = 48
# Share of the views' sizes that need not agree with a common change of size.
_DISSENT = 0.1


class Found(NamedTuple):
    """A measured value in the unit of its limit, and the picture that shows it best where one does."""

    value: float
    frame: int | None = None
    view: int | None = None


def _cut(grid: ViewGrid) -> Found:
    """Return the greatest length along which the object touches the border, in sides of the picture."""
    solid = (masks_of(grid) >= 0.5).float()
    sides = torch.stack([solid[..., 0, :], solid[..., -1, :], solid[..., 0], solid[..., -1]])
    return _highest(sides.mean(-1).sum(0))


def _motion(grid: ViewGrid) -> Found:
    """Return the largest mean change of the object's pixels, colour or opacity, between two key frames."""
    keys = pick_frames(grid.n_frames, _KEY_FRAMES)
    images, masks = grid.images[keys], masks_of(grid)[keys]
    changes = [0.0]
    for a in range(len(keys)):
        for b in range(a):
            change = torch.maximum((images[a] - images[b]).abs().mean(-1), (masks[a] - masks[b]).abs())
            covered = torch.maximum(masks[a], masks[b]).sum((-2, -1)).clamp(min=1)
            changes.append(float((change.sum((-2, -1)) / covered).mean()))
    return Found(max(changes))


def _rescaling(grid: ViewGrid) -> Found:
    """Return the largest change of size between two frames that all views share, as a logarithm.

    An object that moves grows in some of height, width and area of its silhouettes, a rescaled one in all:
    the least tenth of the changes is left out, the next counts. A balloon, which truly grows, looks the same.
    """
    frames = pick_frames(grid.n_frames, _SIZED_FRAMES)
    masks = masks_of(grid)[frames]
    solid = (masks >= 0.5).float()
    height, width = solid.amax(-1).sum(-1), solid.amax(-2).sum(-1)
    sizes = torch.stack([height, width, masks.sum((-2, -1)).sqrt()], dim=-1)
    sizes = sizes.clamp(min=1).log().flatten(1)  # [T, (V + 1) * 3]
    shared = (sizes[:, None] - sizes).quantile(_DISSENT, dim=-1)  # [T, T], later frame minus earlier
    larger, smaller = divmod(int(shared.argmax()), len(frames))
    return Found(max(float(shared[larger, smaller]), 0.0), frames[larger])


def _share_of_object(grid: ViewGrid, pixels: Tensor) -> Found:
    """Return the largest share over the frames that ``pixels`` have of the object in all views."""
    solid = masks_of(grid) >= 0.5
    share = (pixels & solid).sum((1, 2, 3)) / solid.sum((1, 2, 3)).clamp(min=1)
    worst = int(share.argmax())
    return Found(float(share[worst]), worst)


def _highest(values: Tensor) -> Found:
    """Return the highest of values [T, V + 1] and where it is."""
    frame, view = divmod(int(values.argmax()), values.shape[1])
    return Found(float(values[frame, view]), frame, view)


# Larger pictures cost time and tell no more.
_SIZE = 128


def small_grid(grid: ViewGrid) -> ViewGrid:
    """Return the grid at most 128 pixels a side, with masks."""
    return replace(grid, masks=masks_of(grid)).resized(min(_SIZE, grid.images.shape[2]))


def measured_grid(grid: ViewGrid) -> ViewGrid:
    """Return the grid at most 128 pixels a side, with masks free of specks, or black."""
    small, masks = small_grid(grid), []
    for images, opacity in zip(small.images.unbind(1), masks_of(small).unbind(1), strict=True):
        try:
            kept = foreground_masks(Clip(to_bytes(images), masks=to_bytes(opacity)))
            masks.append(opacity * torch.from_numpy(kept > 0))
        except ValueError:
            # No foreground in any frame: an error for a clip that is to be prepared, a measure here.
            masks.append(torch.zeros_like(opacity))
    return replace(small, masks=torch.stack(masks, dim=1))


_CELLS = 40
# Standard deviation of a colour over time at which a pixel counts 1/e as still as one that never changes.
_COLOUR_CHANGE = 0.3
# Cells as static as this, times the square of the most static one's value, are the static part.
_STATIC = 0.7
# A single view in which a cell changes or is empty cannot make it impossible.
_LEAST_STILLNESS = 1e-3


def centres_of(grid: ViewGrid) -> tuple[Tensor, Tensor]:
    """Return the centre of a `measured_grid`'s most static part and of its object's box, [3] float64 each.

    A pixel is still where the object always covers it in one colour. A cell of the hull is as static as the
    geometric mean of its pixels' stillness over the views. The less static the most static one is, the more
    of the others count, so that an object that moves as a whole gives about the middle of its way. The box
    holds the object at all times. World units; ValueError where silhouettes and cameras contradict each
    other, so that there is no hull.
    """
    masks = masks_of(grid)
    spread = grid.images.std(0, correction=0).mean(-1)
    still = masks.mean(0) * torch.exp(-spread / _COLOUR_CHANGE)  # [V + 1, H, W]
    hull = visual_hull(masks.amax(0, keepdim=True), grid.cameras, _CELLS)
    low, high = hull.box
    cells = (low + (hull.centres() + 1) / 2 * (high - low))[hull.cells[0]].double()
    places = pictured(cells, grid.cameras)
    inside = (places.abs() <= 1).all(-1)
    seen = F.grid_sample(still[:, None], places[:, None].to(still), align_corners=False)[:, 0, 0]
    logs = torch.where(inside, seen.clamp(min=_LEAST_STILLNESS).log(), 0.0)
    weights = (logs.sum(0) / inside.sum(0).clamp(min=1)).exp().double()
    weights = weights * (weights >= _STATIC * weights.max() ** 2)
    return (weights[:, None] * cells).sum(0) / weights.sum(), (cells.amin(0) + cells.amax(0)) / 2


def pictured(points: Tensor, cameras: Cameras) -> Tensor:
    """Return where points [N, 3] are seen, [V + 1, N, 2] right and down, -1..1 from edge to edge."""
    matrix = cameras.intrinsics(2) @ cameras.w2c_opencv()[:, :3]
    x, y, depth = (points.double() @ matrix[:, :, :3].mT + matrix[:, None, :, 3]).unbind(-1)
    return torch.stack([x / depth, y / depth], dim=-1) - 1


# Opacity from which a pixel belongs to what must not be cut off.
_LEAST_OPACITY = 0.1
# Share of the picture's side that the object takes where it reaches farthest in any view and frame.
_OBJECT_RATIO = 0.9
# Of its size in the source, that an object keeps; steps between its static part and its box on the way there.
_LEAST_ZOOM, _CENTRES = 0.9, 17


@dataclass(frozen=True)
class Rectification:
    """How the pictures of a clip are to be turned and zoomed, alike in all frames."""

    cameras: Cameras  # on an orbit around what was the static centre
    to_source: Tensor  # [V + 1, 3, 3] float64 homographies from new to old (right, down, 1) in -1..1
    centre: tuple[float, float, float]  # the new origin in the old world
    offset: float  # of the centre from the middle of the pictures, in sides, mean over the views
    zoom: float  # how many times larger the object becomes, mean over the views


def framed(grid: ViewGrid) -> Rectification:
    """Return the rectification of a `measured_grid` about its most static part, or nearer to its middle.

    What stands still may lie at an end, as the head of a man who walks on the spot: with it in the middle the
    object would have to be small. So the centre goes towards the box's middle until the object keeps nine
    tenths of its size, or, where even that does not do, all the way. Raises as `plan_rectification`.
    """
    static, middle = centres_of(grid)
    for share in torch.linspace(0, 1, _CENTRES, dtype=torch.float64):
        plan = plan_rectification(grid, static.lerp(middle, share))
        if plan.zoom >= _LEAST_ZOOM:
            break
    return plan


def plan_rectification(grid: ViewGrid, centre: Tensor) -> Rectification:
    """Return the rectification that puts ``centre`` [3], world units, into the middle of all views.

    Turning a camera about its own centre is exactly a homography. Zooming makes its distance to ``centre``
    that of the others, exact for the plane through it. Raises ValueError: no object, or a camera at a pole.
    """
    old = grid.cameras
    to_eye = old.eyes() - centre
    distances = to_eye.norm(dim=-1)
    elevations = torch.rad2deg(torch.asin(to_eye[:, 1] / distances))
    azimuths = torch.rad2deg(torch.atan2(to_eye[:, 0], to_eye[:, 2]))
    new = Cameras(
        tuple((elevations - elevations[0]).tolist()),
        tuple(((azimuths - azimuths[0]) % 360).tolist()),
        radius=float(distances.mean()),
        fov_deg=old.fov_deg,
        input_elevation_deg=float(elevations[0]),
    )
    # The new world is turned so that the input camera stands at azimuth 0.
    turn = torch.deg2rad(azimuths[0])
    back = torch.tensor([[turn.cos(), 0, turn.sin()], [0, 1, 0], [-turn.sin(), 0, turn.cos()]]).double()
    rotation = old.c2w_opencv()[:, :3, :3].mT @ back @ new.c2w_opencv()[:, :3, :3]
    focal = 1 / math.tan(math.radians(old.fov_deg) / 2)  # in half sides of the picture
    ones = torch.ones_like(distances)
    lens = torch.stack([new.radius / distances, new.radius / distances, ones], dim=-1)
    # From positions of a new camera whose picture reaches to 45 degrees.
    unzoomed = torch.tensor([focal, focal, 1.0]).double()[:, None] * rotation * lens[:, None]
    reach = _reach(grid, torch.linalg.inv(unzoomed))
    half = reach / _OBJECT_RATIO
    cameras = replace(new, fov_deg=2 * math.degrees(math.atan(half)))
    to_source = unzoomed * torch.tensor([half, half, 1.0]).double()
    offset = pictured(centre[None], old).norm(dim=-1).mean() / 2
    x, y, z = centre.tolist()
    return Rectification(cameras, to_source, (x, y, z), float(offset), 1 / (half * focal))


def rectify(grid: ViewGrid, plan: Rectification, size: int) -> ViewGrid:
    """Return the grid with its pictures turned and zoomed to ``size`` pixels, white beyond the old ones."""
    masks = masks_of(grid)
    # Where pictures shrink, several samples a pixel keep fine lines from breaking up.
    samples = max(1, math.ceil(grid.images.shape[2] / (size * plan.zoom)))
    middle = (torch.arange(size * samples).double() + 0.5) / (size * samples) * 2 - 1
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    positions = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    images = torch.empty(grid.n_frames, grid.n_views + 1, size, size, 3)
    opacity = torch.empty(images.shape[:4])
    for v, matrix in enumerate(plan.to_source):
        old = positions @ matrix.T
        lattice = (old[..., :2] / old[..., 2:]).float()[None]  # -1..1
        for t in range(grid.n_frames):
            # Ink instead of colour: beyond the old picture there is none.
            planes = torch.cat([1 - grid.images[t, v], masks[t, v, ..., None]], dim=-1).movedim(-1, 0)
            new = F.grid_sample(planes[None], lattice, mode="bicubic", align_corners=False)
            new = F.avg_pool2d(new, samples)[0].clamp(0, 1).movedim(0, -1)
            images[t, v], opacity[t, v] = 1 - new[..., :3], new[..., 3]
    return replace(grid, images=images, masks=opacity, cameras=plan.cameras, latents=None)


def _reach(grid: ViewGrid, from_source: Tensor) -> float:
    """Return the largest distance, right or down, of the object from the middle of any new picture."""
    height, reach = grid.images.shape[2], 0.0
    for covered, matrix in zip(masks_of(grid).amax(0) >= _LEAST_OPACITY, from_source, strict=True):
        rows, columns = covered.nonzero().unbind(-1)
        middle = torch.stack([columns, rows], dim=-1).double() + 0.5
        corners = torch.tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]).double()
        places = (middle[:, None] + corners).flatten(0, 1) / height * 2 - 1
        x, y, z = (F.pad(places, (0, 1), value=1.0) @ matrix.T).unbind(-1)
        if len(x):
            reach = max(reach, float((torch.stack([x, y]) / z).abs().max()))
    if reach == 0:
        raise ValueError("Expected an object; the masks are empty in all views.")
    return reach


def _measures(grid: ViewGrid) -> dict[str, tuple[str, Found, str]]:
    """Return by limit the name of its measure, what was found, and what it means to be beyond the limit."""
    covered, grey = masks_of(grid).mean((-2, -1)), grid.images.mean(-1)
    cover = _highest(-covered)._replace(value=float(covered.min()))
    dark, blown = (_share_of_object(grid, pixels) for pixels in (grey < _DARK, grey > _BLOWN))
    return {
        "least_frames": ("frames", Found(grid.n_frames), "too few frames"),
        "least_cover": ("cover", cover, "the object is (nearly) missing from a picture"),
        "largest_cut": ("cut off", _cut(grid), "the picture's border cuts the object off"),
        "largest_dark": ("dark", dark, "the object is too dark to show its colours"),
        "largest_blown": ("blown out", blown, "the object is blown out to white"),
        "least_motion": ("motion", _motion(grid), "the object hardly moves"),
        "largest_rescaling": (
            "rescaling",
            _rescaling(grid),
            "the object changes its size in all views at once",
        ),
    }


@dataclass(frozen=True)
class Check:
    """One measure of a clip against its limit, which is a field of `CurationLimits`."""

    name: str
    found: Found
    limit: float
    limit_name: str
    meaning: str

    @property
    def is_least(self) -> bool:
        return self.limit_name.startswith("least")

    @property
    def passed(self) -> bool:
        return self.found.value >= self.limit if self.is_least else self.found.value <= self.limit

    @property
    def sentence(self) -> str:
        """What was measured and what was expected, for people."""
        _, frame, view = self.found
        where = "" if frame is None else f" in frame {frame}" + ("" if view is None else f" of view {view}")
        side = "at least" if self.is_least else "at most"
        return f"{self.name} {self.found.value:.3g}{where}, expected {side} {self.limit:.3g}"


@dataclass(frozen=True)
class Verdict:
    """What came of a clip."""

    checks: tuple[Check, ...] = ()  # all that could be measured
    faults: tuple[str, ...] = ()  # besides: unreadable files, NaN, silhouettes that do not fit the cameras
    plan: Rectification | None = None

    @property
    def reasons(self) -> list[str]:
        """Why the clip is rejected; none if it is kept."""
        return [*self.faults, *(f"{c.meaning}: {c.sentence}" for c in self.checks if not c.passed)]

    @property
    def kept(self) -> bool:
        return not self.reasons


def judge(grid: ViewGrid, limits: CurationLimits) -> Verdict:
    """Return all measures of a clip and how to rectify it; the pictures themselves stay as they are."""
    bad = ~(grid.images.isfinite().all(-1) & masks_of(grid).isfinite()).flatten(2).all(-1)
    if bad.any():
        return Verdict(faults=(f"NaN or infinite values in {int(bad.sum())} of {bad.numel()} pictures",))
    small = measured_grid(grid)
    checks = tuple(
        Check(name, found, getattr(limits, limit), limit, meaning)
        for limit, (name, found, meaning) in _measures(small).items()
    )
    try:
        plan = framed(small)
    except ValueError as error:
        return Verdict(checks, (f"cannot be rectified: {error}",))
    too_small = "the object is too small to be sharp"
    zoom = Check("zoom", Found(plan.zoom), limits.largest_zoom, "largest_zoom", too_small)
    return Verdict((*checks, zoom), (), plan)
