"""Pictures of Gaussians against a naive reference: every Gaussian in every pixel, in float64.

The Triton kernels are tried under Triton's interpreter and through its compiler.
"""

import importlib.util
import logging
import math
import os
import subprocess
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sv4d2_core.cameras import Cameras
from sv4d2_core.scene.gaussians import splat_torch, splatting
from sv4d2_core.scene.gaussians.splat_torch import TILE, TileLists, composite_torch, project
from sv4d2_core.scene.gaussians.splat_torch import GaussiansAt as Gaussians
from sv4d2_core.scene.gaussians.splatting import Splatted, rasteriser, splat, triton_fault

CAMERAS = Cameras((0, 20, -35), (0, 70, 200), input_elevation_deg=10)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
KERNELS = "sv4d2_core.scene.gaussians.splat_triton"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)


def where_kernels_run(test):
    """Mark a test that runs the kernels: on a GPU, or under the interpreter."""
    somewhere = INTERPRETED or torch.cuda.is_available()
    return needs_triton(pytest.mark.gpu(pytest.mark.skipif(not somewhere, reason="no CUDA device")(test)))


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
    backend: str, name: str, dtype: torch.dtype, value=1e-4, gradient=1e-3, device="cpu"
) -> None:
    """Compare a rasteriser with the reference: values absolutely, gradients to the largest of each input."""
    gaussians, view, size = SCENES[name]
    sure = reference(gaussians, view, size)[1]
    assert sure.float().mean() > 0.9
    expected, slopes = results(lambda g: reference(g, view, size)[0], gaussians, sure)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splatting, "rasteriser", lambda _: backend)
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
    assert_agrees("torch", name, *limits)


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


@pytest.fixture(autouse=True)
def forgetful():
    rasteriser.cache_clear()
    yield
    rasteriser.cache_clear()


def pretend(monkeypatch, composite):
    """Let the package triton be there, and its kernels do this."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "triton" else None)
    module = types.SimpleNamespace(composite_triton=composite)
    monkeypatch.setitem(sys.modules, KERNELS, module)


def failing(error):
    def composite(*_):
        raise error

    return composite


@pytest.mark.parametrize(
    ("composite", "fault"),
    [
        (composite_torch, None),
        (
            failing(RuntimeError("Failed to find C compiler.\nPlease specify via CC.")),
            "RuntimeError: Failed to find C compiler.",
        ),
        (lambda *args: composite_torch(*args) + 0.1, "its picture or gradient is wrong"),
        (
            lambda splats, lists: composite_torch(splats * (torch.arange(len(splats)) < 16)[:, None], lists),
            "its picture or gradient is wrong",
        ),
        (lambda splats, lists: composite_torch(splats.detach(), lists), "RuntimeError: element 0"),
    ],
)
def test_a_first_tiny_picture_says_whether_triton_works(monkeypatch, composite, fault):
    pretend(monkeypatch, composite)
    # Scenes are rendered where nothing has gradients; the kernels of the gradient are tried all the same.
    with torch.inference_mode():
        found = triton_fault(CPU)
    assert found is None if fault is None else found.startswith(fault)


def test_running_out_of_memory_is_no_fault_of_triton(monkeypatch):
    pretend(monkeypatch, failing(torch.cuda.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        triton_fault(CPU)


@pytest.mark.parametrize(
    ("device", "installed", "fault", "expected", "said"),
    [
        (CPU, True, None, "torch", "the device is cpu"),
        (CUDA, True, None, "triton", "drawn by triton"),
        (CUDA, True, "RuntimeError: no gcc", "torch", "(RuntimeError: no gcc). It needs a C compiler"),
        (CUDA, False, None, "torch", "installing the package triton"),
    ],
)
def test_the_rasteriser_is_chosen_and_named_once(
    monkeypatch, caplog, device, installed, fault, expected, said
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(splatting, "triton_fault", lambda _: fault)
    with caplog.at_level(logging.INFO, logger=splatting.__name__):
        assert rasteriser(device) == rasteriser(device) == expected
    assert len(caplog.records) == 1 and said in caplog.text


@pytest.fixture
def launched(monkeypatch):
    """Return the kernel, and instead of its launches their arguments by name, and the current device's."""
    kernels, current, launches = importlib.import_module(KERNELS), [], []
    kernel = kernels._walk

    @contextmanager
    def device_of(tensor):
        current.append(tensor.data_ptr())
        yield
        current.pop()

    class Recorder:
        def __getitem__(self, grid):
            return lambda *args, **_: launches.append(
                (dict(zip(kernel.arg_names, args, strict=False)), current[-1])
            )

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(kernels, "_walk", Recorder())
    # As in a fit, of half precision; a single tile, gaps between the columns.
    for splats, size in ((torch.ones(3, 10).half(), 512), (torch.ones(1, 20)[:, ::2], 8)):
        starts = torch.zeros((size // TILE) ** 2 + 1, dtype=torch.long)
        lists = TileLists(size, starts[:0], starts)
        kernels.composite_triton(splats.requires_grad_(), lists).sum().backward()
    return kernel, launches


@needs_triton
def test_kernels_are_launched_on_the_device_of_their_tensors(launched):
    launches = launched[1]
    assert [arguments["gradient"] is None for arguments, _ in launches] == [True, False] * 2
    for arguments, current in launches:
        assert current == arguments["splats"].data_ptr()
        assert all(x.is_contiguous() for x in arguments.values() if isinstance(x, Tensor))


@needs_triton
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_what_is_launched_compiles_for_a_gpu(tmp_path, monkeypatch, launched, capability):
    """To machine code, each pass once for all sizes; needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, launches = launched
    kinds = {torch.float32: "*fp32", torch.int64: "*i64"}
    general = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    signatures = set()
    for arguments, _ in launches:
        tensors = {name: kinds[x.dtype] for name, x in arguments.items() if isinstance(x, Tensor)}
        numbers = {name: "i32" if name in general else x for name, x in arguments.items() if type(x) is int}
        signatures.add(tuple((tensors | numbers).items()))
    assert len(signatures) == 2
    constants = dict(importlib.import_module(KERNELS).CONSTANTS)
    options = {"num_warps": constants.pop("num_warps")}
    for signature in map(dict, signatures):
        fixed = {name: constants.get(name) for name in kernel.arg_names if name not in signature}
        source = ASTSource(kernel, dict.fromkeys(fixed, "constexpr") | signature, fixed)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.asm["cubin"] and f"sm_{capability}" in compiled.asm["ptx"]


@where_kernels_run
@pytest.mark.parametrize("name", SCENES)
def test_kernels_agree_with_the_reference(name):
    assert_agrees("triton", name, torch.float32, device="cpu" if INTERPRETED else "cuda")


@where_kernels_run
def test_kernels_agree_in_their_first_try_with_mixed_precision():
    device = CPU if INTERPRETED else CUDA
    with torch.autocast(device.type, torch.bfloat16):
        assert triton_fault(device) is None


@needs_triton
def test_interpreted_kernels_agree_with_the_reference(tmp_path):
    """The interpreter, chosen when a kernel is defined, has a process of its own.

    What is particular to projection alone, which the kernels do not do, is left to a GPU.
    """
    chosen = "kernels_agree and not (overlapping or partly or behind or specks or giants or needles)"
    command = [sys.executable, "-m", "pytest", "-q", "-k", f"test_{chosen}", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parent.parent
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"{len(SCENES) - 5} passed" in done.stdout, done.stdout
