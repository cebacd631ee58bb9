"""The second kind of scene: 3D Gaussians that a field of offsets moves over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...cameras import Cameras
from ...stored import LARGEST_COUNT, Fields, Tensors
from ...views import FPS_RANGE
from ..config import GaussiansConfig, settings_from_json, settings_to_json
from ..dynerf.planes import PLANE_AXES, sample_planes
from ..scene import Scene4D, box_of, no_object
from .densities import gaussian_box, gaussian_colours, gaussian_densities, gaussian_motion
from .splat_torch import GaussiansAt, rotations
from .splatting import splat

_INITIAL = (0.6, 1.4)  # products are about 1: with the usual small values the decoder learns slowly


class Deformation(nn.Module):
    """Offsets of points in a box at a time; they are 0 before the first step."""

    def __init__(
        self,
        box: Tensor,  # [2, 3] corners, world units; points outside get what the border has
        config: GaussiansConfig,
        n_frames: int,  # evenly spaced over 0..1
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("box", box.detach().float().cpu().clone())
        self.box: Tensor
        sizes, features, hidden = config.plane_sizes, config.features, config.hidden
        time_size = max(config.time_size or n_frames, 2)
        self.space = nn.ParameterList(  # [3, C, S, S] per scale
            torch.empty(3, features, size, size).uniform_(*_INITIAL, generator=generator) for size in sizes
        )
        self.time = nn.ParameterList(torch.ones(3, features, time_size, size) for size in sizes)
        first, second = nn.Linear(features * len(sizes), hidden), nn.Linear(hidden, hidden)
        self.trunk = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.head = nn.Linear(hidden, 10)
        for layer in (first, second):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, points: Tensor, time: float) -> tuple[Tensor, ...]:
        """Return what a time in 0..1 adds to means, log scales [N, 3 each] and logits of opacities [N, 1].

        Second, after the means, comes the imaginary part [N, 3] of a quaternion of real part 1 to turn by.
        """
        return self.head(self.trunk(self.features(points, time))).split([3, 3, 3, 1], dim=-1)

    @torch.no_grad()
    def hold(self, first: float, last: float) -> None:
        """Give times before ``first`` and after ``last`` (0..1) the planes of those, to learn from."""
        for planes in self.time:
            end = planes.shape[2] - 1
            low, high = math.ceil(first * end - 1e-6), math.floor(last * end + 1e-6)
            if low <= high:
                planes[:, :, :low] = planes[:, :, low : low + 1]
                planes[:, :, high + 1 :] = planes[:, :, high : high + 1]

    def features(self, points: Tensor, time: float) -> Tensor:
        """Return the product over the planes, all scales one after the other, [N, scales * C]."""
        low, high = self.box
        unit = (points - low) / (high - low) * 2 - 1
        in_space = torch.stack([unit[:, pair] for pair in PLANE_AXES])[:, None]  # [3, 1, N, 2]
        scales = []
        for space, in_time in zip(self.space, self.time, strict=True):
            place = time * (in_time.shape[2] - 1)
            before = min(int(place), in_time.shape[2] - 2)
            between = torch.lerp(in_time[:, :, before], in_time[:, :, before + 1], place - before)
            rows = between[:, :, None]  # [3, C, 1, S]
            along = torch.stack([unit.T, torch.zeros_like(unit.T)], dim=-1)[:, None]
            factors = sample_planes(space, in_space).unbind() + sample_planes(rows, along).unbind()
            scales.append(reduce(torch.mul, factors))
        return torch.cat(scales).T


class CanonicalGaussians(nn.Module):
    """The Gaussians before they are moved, as an optimiser sees them."""

    def __init__(
        self,
        means: Tensor,  # [N, 3] world units
        scale: float,  # of all of them along all axes, world units
        opacity: float,  # of all of them
        colours: Tensor,  # [N, 3] in 0..1
    ) -> None:
        super().__init__()
        n = len(means)
        self.means = nn.Parameter(means.detach().clone())
        self.quats = nn.Parameter(means.new_tensor([1.0, 0, 0, 0]).repeat(n, 1))
        self.log_scales = nn.Parameter(means.new_full((n, 3), math.log(scale)))
        self.opacities = nn.Parameter(means.new_full((n,), opacity).logit())
        self.colours = nn.Parameter(colours.detach().clamp(0.02, 0.98).logit())


class Gaussians(Scene4D):
    """A scene made of deformable 3D Gaussians, which do not move at first."""

    backend = "gaussians"

    def __init__(
        self,
        canonical: CanonicalGaussians,
        box: Tensor,  # [2, 3] that their motion is known in, world units
        scale_limits: tuple[float, float],  # the least and the largest along an axis, world units
        cameras: Cameras,
        fps: float,
        times: Sequence[float],
        config: GaussiansConfig,
        generator: torch.Generator | None = None,  # draws the initial values of the motion
    ) -> None:
        super().__init__(cameras, fps, times)
        self.canonical, self.scale_limits, self.config = canonical, scale_limits, config
        self.deformation = Deformation(box, config, self.n_frames, generator)
        self.parts = nn.ModuleDict({"canonical": canonical, "deformation": self.deformation})

    @classmethod
    def from_tensors(cls, tensors: Tensors, header: Fields, device: torch.device | str) -> Gaussians:
        low, high = header.numbers("scale_limits", 2).tolist()
        if not 0 < low <= high:
            raise header.wrong("scale_limits", "two rising numbers above 0")
        means, times = tensors.shaped("canonical.means", None, 3).float(), header.times("times")
        if len(means) > LARGEST_COUNT:
            raise ValueError(
                f"Expected at most {LARGEST_COUNT} Gaussians in {tensors.place}; got {len(means)}. Take "
                f"fewer."
            )
        canonical = CanonicalGaussians(means, low, 0.5, torch.zeros_like(means))
        box, config = (
            box_of(tensors, "deformation.box"),
            settings_from_json(GaussiansConfig, header.object("config")),
        )
        tensors.under("canonical.").check_like(canonical.state_dict())
        tensors.under("deformation.").check_state_of(lambda: Deformation(box, config, len(times)))
        cameras, fps = Cameras.from_json(header.object("cameras")), header.number("fps", *FPS_RANGE)
        scene = cls(canonical, box, (low, high), cameras, fps, times, config)
        scene.parts.load_state_dict(tensors)
        scene.parts.to(device)
        return scene

    def at_time(self, time: float | None) -> GaussiansAt:
        """Return the Gaussians at a time, about the origin, with gradients; None: before they move."""
        own = self.canonical
        means, quats = own.means, F.normalize(own.quats, dim=-1)
        log_scales, opacities = own.log_scales, own.opacities
        if time is not None:
            move, turn, growth, fading = self.deformation(means, time)
            means, quats = means + self.config.move_scale * move, _turned(quats, turn)
            log_scales = log_scales + growth
            opacities = opacities + self.config.fade * fading[:, 0]
        low, high = (math.log(limit) for limit in self.scale_limits)
        scales = log_scales.clamp(low, high).exp()
        return GaussiansAt(means, quats, scales, opacities.sigmoid(), own.colours.sigmoid())

    def in_world(self, time: float, moved: bool = False, summed: bool = False) -> GaussiansAt:
        """Return the Gaussians at a time in 0..1 where the object's path puts them, with gradients.

        ``moved`` gives, between two frames of a scene whose motion is known, those of both frames,
        carried there and together as opaque as either, one seen through the other or, where they are
        ``summed``, one added to the other; without gradients.
        """
        gaussians = self._moved(time, summed) if moved else self.at_time(time)
        return gaussians._replace(means=gaussians.means + self._shift(time).to(gaussians.means))

    @torch.no_grad()
    def _moved(self, time: float, summed: bool = False) -> GaussiansAt:
        """Return what is seen at a time, in the object's middle; what belongs to no motion only fades."""
        from scipy.spatial.transform import Rotation

        around = self._between(time)
        if around is None or self.motion is None:
            return self.at_time(time)
        frame, share = around
        interval, found = self.motion.intervals[frame], []
        now = interval.posed(share)
        for end, weight in ((0, 1 - share), (1, share)):
            own, posed = self.at_time(self.times[frame + end]), interval.posed(end)
            means = own.means.cpu().double().numpy()
            ((places, turns),) = posed.carries(means, [now])
            turned = Rotation.from_matrix(turns) * Rotation.from_quat(
                own.quats.cpu().double().numpy()[:, [1, 2, 3, 0]]
            )
            quats = torch.from_numpy(turned.as_quat()[:, [3, 0, 1, 2]]).to(own.quats)
            near = torch.from_numpy(posed.heights(means) < self.motion.reach)
            goes = near[:, None].to(own.means.device)
            found.append(
                own._replace(
                    means=torch.where(goes, torch.from_numpy(places).to(own.means), own.means),
                    quats=torch.where(goes, quats, own.quats),
                    opacities=weight * own.opacities if summed else 1 - (1 - own.opacities) ** weight,
                )
            )
        return GaussiansAt(*(torch.cat(pair) for pair in zip(*found, strict=True)))

    @torch.no_grad()
    def bounds(self, time: float) -> Tensor:
        """Return the corners [2, 3] of the box of the Gaussians within the box of the hull; see `Scene4D`."""
        low, high = gaussian_box(self._moved(time))
        hull = self.deformation.box
        low, high = torch.maximum(low, hull[0]), torch.minimum(high, hull[1])
        if (low >= high).any():
            raise no_object(time)
        return torch.stack([low, high]).cpu() + self._shift(time)

    @torch.no_grad()
    def densities(self, points: Tensor, time: float) -> Tensor:
        """Return the sum of the Gaussians at world points, [N]; each is as high as its opacity."""
        gaussians = self.in_world(time, moved=True, summed=True)
        return gaussian_densities(gaussians, points.to(gaussians.means)).to(points.device)

    @torch.no_grad()
    def colours(self, points: Tensor, time: float) -> Tensor:
        gaussians = self.in_world(time, moved=True, summed=True)
        return gaussian_colours(gaussians, points.to(gaussians.means)).to(points.device)

    @torch.no_grad()
    def carried(self, points: Tensor, start: float, end: float) -> Tensor:
        before, after = self.in_world(start), self.in_world(end)
        return gaussian_motion(before, after, points.to(before.means)).to(points)

    def _saved(self) -> tuple[dict[str, Tensor], dict]:
        config = settings_to_json(GaussiansConfig, self.config)
        return self.parts.state_dict(), {"config": config, "scale_limits": list(self.scale_limits)}

    def _drawer(self, time: float, normals: bool) -> Callable[[Cameras, int, int], Tensor]:
        gaussians = self.in_world(time, moved=True)

        def draw(cameras: Cameras, view: int, size: int) -> Tensor:
            picture = splat(gaussians, cameras, view, size)
            alpha = picture.alpha[..., None]
            maps = [picture.rgb.clamp(0, 1), alpha, picture.depth[..., None]]
            if normals:
                outward = _outward(gaussians, cameras, view)
                blended = splat(gaussians._replace(colours=outward), cameras, view, size, background=0.0).rgb
                # Where normals cancel out, the surface is taken to face the camera.
                towards = -cameras.rays(size, [view])[1][0].to(blended)
                maps.append(F.normalize(blended + 1e-4 * alpha * towards, dim=-1, eps=1e-20))
            return torch.cat(maps, dim=-1)

        return draw


def _turned(quats: Tensor, rotation: Tensor) -> Tensor:
    """Return unit quaternions [N, 4] turned, after their own rotation, by (1, rotation [N, 3])."""
    w, v = quats[:, :1], quats[:, 1:]
    real = w - (rotation * v).sum(-1, keepdim=True)
    imaginary = v + w * rotation + torch.linalg.cross(rotation, v)
    return F.normalize(torch.cat([real, imaginary], dim=-1), dim=-1)


def _outward(gaussians: GaussiansAt, cameras: Cameras, view: int) -> Tensor:
    """Return the shortest axis of every Gaussian, turned towards a camera, [N, 3]."""
    axes = rotations(gaussians.quats)  # one per column
    shortest = gaussians.scales.argmin(-1)[:, None, None].expand(-1, 3, 1)
    normals = axes.gather(2, shortest)[..., 0]
    to_eye = cameras.eyes()[view].to(normals) - gaussians.means
    return torch.where(((normals * to_eye).sum(-1) < 0)[:, None], -normals, normals)
