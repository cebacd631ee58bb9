"""Pictures of Gaussians against a naive reference: every Gaussian in every pixel, in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene import kernels
from sv4d2_core.scene.gaussians import splat_torch
from sv4d2_core.scene.gaussians.splat_torch import TILE, project
from sv4d2_core.scene.gaussians.splat_torch import GaussiansAt as Gaussians
from sv4d2_core.scene.gaussians.splatting import Splatted, splat

CAMERAS = Cameras((0, 20, -35), (0, 70, 200), input_elevation_deg=10)


def make(n: int, spread=0.4, scale=(0.02, 0.1), opacity=(0.05, 0.95), seed=0) -> Gaussians:
    g = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=g, dtype=torch.float64)

    low, high = map(math.log, scale)
    return Gaussians(
        spread * torch.randn(n, 3, generator=g, dtype=torch.float64),
        torch.randn(n, 4, generator=g, dtype=torch.float64),
        uniform(low, high, n, 3).exp(),
        uniform(*opacity, n),
        uniform(0, 1, n, 3),
    )


def moved(gaussians: Gaussians, x=0.0, y=0.0, z=0.0) -> Gaussians:
    return gaussians._replace(means=gaussians.means + torch.tensor([x, y, z], dtype=torch.float64))


# Name -> Gaussians, view, size.
SCENES = {
    "one": (make(1, spread=0.05), 0, 16),
    "none": (make(0), 1, 16),
    "few, an odd size": (make(5), 1, 29),
    "overlapping, opaque": (make(60, spread=0.1, scale=(0.1, 0.3), opacity=(0.6, 1.0)), 0, 24),
    "opacity 1": (make(6, scale=(0.2, 0.6), opacity=(1.0, 1.0)), 1, 24),
    "a film of light": (make(150, spread=0.1, scale=(0.2, 0.3), opacity=(0.003, 0.05)), 2, 16),
    "partly off screen": (moved(make(40, spread=0.6, scale=(0.05, 0.3)), x=0.6, y=-0.4), 0, 32),
    "behind the camera and around it": (moved(make(50, spread=0.8), z=1.0), 0, 24),
    "specks": (make(60, scale=(1e-5, 1e-3), opacity=(0.5, 1.0)), 1, 32),
    "giants": (make(12, scale=(0.5, 3.0), opacity=(0.1, 0.6)), 2, 24),
    "needles": (make(40, scale=(0.002, 1.0)), 1, 32),
    "one empty side": (moved(make(10, spread=0.05), x=-0.4), 0, 32),
    "many, as in a fit": (make(300, spread=0.2, scale=(0.01, 0.04), opacity=(0.1, 1.0)), 1, 32),
}


def reference(gaussians: Gaussians, view: int, size: int) -> tuple[Splatted, Tensor]:
    """Return the picture by the formulas of the papers, and where no rounding decides about a threshold."""
    means, quats, scales, opacities, colours = gaussians
    w2c, intrinsics = CAMERAS.w2c_opencv()[view], CAMERAS.intrinsics(size)
    focal = intrinsics[0, 0]
    position = means @ w2c[:3, :3].T + w2c[:3, 3]
    front = position[:, 2] > 0.01
    position = position[front]
    opacities, colours = opacities[front], colours[front]
    x, y, z = position.unbind(-1)
    w, *xyz = torch.nn.functional.normalize(quats[front], dim=-1).unbind(-1)
    axis = torch.stack(xyz, dim=-1)
    cross = torch.linalg.cross(axis[:, None].expand(-1, 3, 3), torch.eye(3).to(axis).expand(len(axis), 3, 3))
    skew = cross.transpose(1, 2)
    rotation = torch.eye(3).to(axis) + 2 * w[:, None, None] * skew + 2 * skew @ skew
    sigma = rotation @ torch.diag_embed(scales[front] ** 2) @ rotation.transpose(1, 2)
    limit = 1.3 * math.tan(math.radians(CAMERAS.fov_deg) / 2)
    zero = torch.zeros_like(z)
    u, v = ((place / z).clamp(-limit, limit) for place in (x, y))
    rows = [focal / z, zero, -focal * u / z], [zero, focal / z, -focal * v / z]
    jacobian = torch.stack([torch.stack(row, -1) for row in rows], -2)
    to_picture = jacobian @ w2c[:3, :3]
    covariance = to_picture @ sigma @ to_picture.transpose(1, 2) + 0.3 * torch.eye(2).to(sigma)
    homogeneous = position @ intrinsics.T
    centre = homogeneous[:, :2] / homogeneous[:, 2:]
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    grid = torch.stack(torch.meshgrid(pixels, pixels, indexing="xy"), dim=-1)
    offset = grid[:, :, None] - centre
    power = 0.5 * torch.einsum("hwni,nij,hwnj->hwn", offset, torch.linalg.inv(covariance), offset)
    alpha = (opacities * torch.exp(-power)).clamp(max=0.99)
    order = torch.argsort(z)
    alpha, colours, z = alpha[..., order], colours[order], z[order]
    faint = alpha < 1 / 255
    sure = ((alpha * 255 - 1).abs() > 1e-3).all(-1)
    alpha = alpha.masked_fill(faint, 0)
    left = torch.cumprod(1 - alpha, dim=-1)
    # A threshold that is met from far above is safe; only the step across it matters.
    sure &= ((left / 1e-4 - 1).abs() > 1e-3).all(-1)
    before = torch.cat([torch.ones_like(left[..., :1]), left[..., :-1]], dim=-1)[..., : left.shape[-1]]
    weight = torch.where(left >= 1e-4, before * alpha, 0)
    total = weight.sum(-1)
    slope = (grid - size / 2) / focal
    along_ray = (1 + (slope**2).sum(-1)).sqrt()
    depth = (weight @ z) * along_ray / torch.where(total > 0, total, 1)
    return Splatted(weight @ colours + (1 - total)[..., None], total, depth), sure


def results(
    render, gaussians: Gaussians, sure: Tensor, dtype=torch.float64, device="cpu"
) -> tuple[Splatted, list[Tensor]]:
    """Return a picture and the gradient of a fixed random loss on its sure pixels by all five inputs."""
    leaves = Gaussians(*(x.to(device, dtype, copy=True).requires_grad_() for x in gaussians))
    picture = Splatted(*(part.cpu() for part in render(leaves)))
    g = torch.Generator().manual_seed(3)
    loss = torch.zeros((), dtype=dtype)
    for part in picture:
        towards = torch.randn(part.shape, generator=g, dtype=torch.float64).to(dtype)
        loss = loss + (towards * part)[sure].sum()
    loss.backward()
    return Splatted(*(part.detach() for part in picture)), [leaf.grad.cpu() for leaf in leaves]


def assert_agrees(
    by_triton: bool, name: str, dtype: torch.dtype, value=1e-4, gradient=1e-3, device="cpu"
) -> None:
    """Compare a rasteriser with the reference: values absolutely, gradients to the largest of each input."""
    gaussians, view, size = SCENES[name]
    sure = reference(gaussians, view, size)[1]
    assert sure.float().mean() > 0.9
    expected, slopes = results(lambda g: reference(g, view, size)[0], gaussians, sure)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "by_triton", lambda *_: by_triton)
        got, got_slopes = results(lambda g: splat(g, CAMERAS, view, size), gaussians, sure, dtype, device)
    for part, a, b in zip(Splatted._fields, got, expected, strict=True):
        assert a.dtype == dtype
        error = (a - b)[sure].abs().max()
        assert error <= value, f"{name}: {part} differs by {error:.2g}"
    for column, a, b in zip(Gaussians._fields, got_slopes, slopes, strict=True):
        error = (a - b).abs().max() / b.abs().max().clamp(min=1e-3) if len(b) else torch.tensor(0.0)
        assert error <= gradient, f"{name}: gradient by {column} differs by {error:.2g} of its largest"


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("limits", [(torch.float32, 1e-4, 1e-3), (torch.float64, 1e-9, 1e-8)])
def test_pytorch_tiles_agree_with_the_reference(name, limits):
    assert_agrees(False, name, *limits)


def test_two_runs_give_the_same_bits():
    gaussians, view, size = SCENES["many, as in a fit"]
    sure = torch.ones(size, size, dtype=torch.bool)
    runs = [results(lambda g: splat(g, CAMERAS, view, size), gaussians, sure, torch.float32) for _ in "ab"]
    for a, b in zip(*([*picture, *slopes] for picture, slopes in runs), strict=True):
        assert torch.equal(a, b)


def test_the_background_shows_where_there_is_nothing():
    rgb, alpha, depth = splat(make(0), CAMERAS, 0, 8, background=0.25)
    assert torch.equal(rgb, torch.full_like(rgb, 0.25))
    assert not alpha.any() and not depth.any()


@pytest.mark.parametrize("view", [0, 1, 2])
def test_a_speck_on_a_pixels_ray_shows_there_at_its_distance(view):
    size, row, column, distance = 64, 10, 41, 1.9
    origins, directions = CAMERAS.rays(size)
    point = origins[view] + distance * directions[view, row, column]
    speck = make(1, scale=(0.001, 0.002), opacity=(0.9, 0.9))._replace(means=point[None])
    rgb, alpha, depth = splat(speck, CAMERAS, view, size, background=0.0)
    assert divmod(int(alpha.argmax()), size) == (row, column)
    assert alpha[row, column].item() == pytest.approx(0.9)
    assert depth[row, column].item() == pytest.approx(distance)
    torch.testing.assert_close(rgb[row, column], 0.9 * speck.colours[0])


def test_a_gaussian_in_the_camera_itself_is_skipped_and_leaves_gradients_finite():
    both = make(2)._replace(means=torch.tensor([[0.0, 0, 0], [0, 0, 2]]))
    leaves = Gaussians(*(x.float().requires_grad_() for x in both))
    splats = project(leaves, torch.eye(4), 20.0, 8).splats
    assert len(splats) == 1
    splats.sum().backward()
    for leaf in leaves:
        assert not leaf.grad[0].any() and leaf.grad[1].any() and leaf.grad.isfinite().all()


class _Largest(TorchDispatchMode):
    """Notes the most elements any result has."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)]
        self.count = max([self.count, *(x.numel() for x in tensors)])
        return result


def test_temporary_memory_does_not_grow_with_the_lists():
    counts = []
    for n in (300, 1200):
        crowd = Gaussians(*(x.requires_grad_() for x in make(n, 0.05, (0.5, 0.6), (0.005, 0.006))))
        with _Largest() as largest:
            splat(crowd, CAMERAS, 0, 64).rgb.sum().backward()
        counts.append(largest.count)
    assert counts[0] == counts[1] == splat_torch.TILES_AT_ONCE * splat_torch.PLACES_AT_ONCE * TILE**2
