"""Triton kernels: when they are chosen, that they compile, and what they do under the interpreter."""

import importlib.util
import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from test_scene_splatting import SCENES, assert_agrees
from torch import Tensor

from sv4d2_core.scene import kernels
from sv4d2_core.scene.dynerf import planes
from sv4d2_core.scene.gaussians import splatting
from sv4d2_core.scene.gaussians.splat_torch import TILE, TileLists
from sv4d2_core.scene.kernels import Try, by_triton, fault_of, scene_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WALKS = {name: f"sv4d2_core.scene.{name}_triton" for name in ("gaussians.splat", "dynerf.planes")}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)


def where_kernels_run(test):
    """Mark a test that runs the kernels: on a GPU, or under the interpreter."""
    somewhere = INTERPRETED or torch.cuda.is_available()
    return needs_triton(pytest.mark.gpu(pytest.mark.skipif(not somewhere, reason="no CUDA device")(test)))


@pytest.fixture(autouse=True)
def forgetful():
    by_triton.cache_clear()
    yield
    by_triton.cache_clear()


def failing(error):
    def work(*_):
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "fault"),
    [
        (torch.square, None),
        (
            failing(RuntimeError("Failed to find C compiler.\nPlease specify via CC.")),
            "RuntimeError: Failed to find C compiler.",
        ),
        (lambda x: x.square() + 0.1, "its result or gradient is wrong"),
        (lambda x: x * x.detach(), "its result or gradient is wrong"),
        (lambda x: x.detach().square(), "RuntimeError: element 0"),
    ],
)
def test_a_first_tiny_try_says_whether_triton_works(work, fault):
    # Scenes are rendered where nothing has gradients; the kernels of the gradient are tried all the same.
    with torch.inference_mode():
        found = fault_of(CPU, lambda: Try(work, torch.square, (torch.arange(3.0),)))
    assert found is None if fault is None else found.startswith(fault)


def test_running_out_of_memory_is_no_fault_of_triton():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        fault_of(CPU, failing(torch.cuda.OutOfMemoryError("CUDA out of memory")))


@pytest.mark.parametrize(
    ("device", "installed", "fault", "expected", "said"),
    [
        (CPU, True, None, False, "Work is done by torch: the device is cpu"),
        (CUDA, True, None, True, "Work is done by triton"),
        (CUDA, True, "RuntimeError: no gcc", False, "(RuntimeError: no gcc). It needs a C compiler"),
        (CUDA, False, None, False, "installing the package triton"),
    ],
)
def test_who_works_is_chosen_and_named_once(monkeypatch, caplog, device, installed, fault, expected, said):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(kernels, "fault_of", lambda *_: fault)
    with caplog.at_level(logging.INFO, logger=kernels.__name__):
        assert by_triton("Work is done", device, id) is by_triton("Work is done", device, id) is expected
    assert len(caplog.records) == 1 and said in caplog.text


@pytest.mark.parametrize(("name", "kept"), [("cpu", True), ("cuda", True), ("mps", False), ("xpu", True)])
def test_scenes_stay_where_pytorch_reads_them_rightly(monkeypatch, caplog, name, kept):
    scene_device.cache_clear()
    faults = {"mps": "no gradient", "cuda": "never tried"}
    monkeypatch.setattr(kernels, "fault_of", lambda device, tiny: faults.get(device.type))
    with caplog.at_level(logging.INFO, logger=kernels.__name__):
        found = [scene_device(torch.device(name), planes.tiny_scene).type for _ in range(2)]
    assert found == [name if kept else "cpu"] * 2
    assert len(caplog.records) == (not kept) and ("stay on the CPU" in caplog.text) == (not kept)
    scene_device.cache_clear()


def test_the_tiny_scene_comes_out_right_here():
    assert fault_of(CPU, planes.tiny_scene) is None


def splats_drawn(module):
    """Yield pictures: as in a fit, of half precision; a single tile, gaps between the columns."""
    for splats, size in ((torch.ones(3, 10).half(), 512), (torch.ones(1, 20)[:, ::2], 8)):
        starts = torch.zeros((size // TILE) ** 2 + 1, dtype=torch.long)
        yield module.composite_triton(splats.requires_grad_(), TileLists(size, starts[:0], starts))


def planes_read(module):
    """Yield values: two scales of many points with gaps; a single point, of half precision."""
    for points, sizes in ((torch.ones(3, 70).T, (2, 5)), (torch.ones(1, 3).half(), (4,))):
        scales = [torch.ones(1, 3, 32, size, size) for size in sizes]
        yield module.products_triton(scales, points.requires_grad_(), [len(points)])


@pytest.fixture(params=zip(WALKS.values(), (splats_drawn, planes_read), strict=True), ids=WALKS)
def launched(request, monkeypatch):
    """Return a kernel, and instead of its launches their arguments by name, and the current device's."""
    name, work = request.param
    module, current, launches = importlib.import_module(name), [], []
    kernel = module._walk

    @contextmanager
    def device_of(tensor):
        current.append(tensor.data_ptr())
        yield
        current.pop()

    class Recorder:
        def __getitem__(self, grid):
            return lambda *args, **named: launches.append(
                (dict(zip(kernel.arg_names, args, strict=False)) | named, current[-1])
            )

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(module, "_walk", Recorder())
    for result in work(module):
        result.sum().backward()
    return kernel, launches


@needs_triton
def test_kernels_are_launched_on_the_device_of_their_tensors(launched):
    for arguments, current in launched[1]:
        tensors = [x for x in arguments.values() if isinstance(x, Tensor)]
        assert current == tensors[0].data_ptr() and all(x.is_contiguous() for x in tensors)


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
    sources = set()
    for arguments, _ in launches:
        options = {"num_warps": arguments.pop("num_warps", 4)}
        signature, fixed = dict.fromkeys(kernel.arg_names, "constexpr"), {}
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                signature[name] = kinds[value.dtype]
            elif name in general:
                signature[name] = "i32"
            else:
                fixed[name] = value
        sources.add((tuple(signature.items()), tuple(fixed.items())))
    assert len(sources) == 2
    for signature, fixed in sources:
        source = ASTSource(kernel, dict(signature), dict(fixed))
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.asm["cubin"] and f"sm_{capability}" in compiled.asm["ptx"]


@where_kernels_run
@pytest.mark.parametrize("name", SCENES)
def test_kernels_agree_with_the_reference(name):
    assert_agrees(True, name, torch.float32, device="cpu" if INTERPRETED else "cuda")


@where_kernels_run
@pytest.mark.parametrize(
    ("size", "channels"), [(1, 1), (2, 1), (2, 32), (3, 3), (3, 20), (17, 1), (17, 3), (17, 200)]
)
def test_kernels_agree_with_torch_on_planes(size, channels):
    """On nodes, borders and outside, too, with moments of many points, one and none."""
    from sv4d2_core.scene.dynerf.planes_triton import products_triton

    device = CPU if INTERPRETED else CUDA
    generator = torch.Generator().manual_seed(size)
    uniform = partial(torch.rand, generator=generator, dtype=torch.float64)
    nodes = torch.tensor([-1.0, 1.0, 0.0, 1.5])
    points = torch.cat([torch.cartesian_prod(nodes, nodes, nodes), 2.4 * uniform(36, 3) - 1.2]).float()
    counts, found = (60, 1, 0, 39), []
    leaves = points, *(uniform(4, 3, channels, s, s).float() for s in (size, 5))
    towards = uniform(100, 2 * channels) - 0.5
    for function, kind in ((products_triton, (device, torch.float32)), (planes.products, (torch.float64,))):
        inputs = [x.to(*kind, copy=True).requires_grad_() for x in leaves]
        result = function(inputs[1:], inputs[0], counts)
        gradients = torch.autograd.grad(result, inputs, towards.to(result))
        found.append([x.detach().cpu().double() for x in (result, *gradients)])
    for kernel, oracle in zip(*found, strict=True):
        assert (kernel - oracle).abs().max() <= 1e-5 * oracle.abs().max().clamp(min=1e-3)


@where_kernels_run
def test_kernels_agree_with_torch_in_a_field(monkeypatch):
    device, generator = CPU if INTERPRETED else CUDA, torch.Generator().manual_seed(0)
    field = planes.Planes((4, 7), 3, 5, 6, generator)
    torch.nn.init.normal_(field.change[1], generator=generator)
    points, times = torch.linspace(-1, 1, 60).view(3, 20).T, torch.tensor([0.0, 1.0, 0.3, 0.0]).repeat(5)
    expected = [field.features(points, given) for given in (times, None)]
    monkeypatch.setattr(planes, "read_by_triton", lambda *_: True)
    field.to(device)
    found = [field.features(points.to(device), given) for given in (times.to(device), None)]
    torch.testing.assert_close([x.cpu() for x in found], expected)


@where_kernels_run
@pytest.mark.parametrize("tiny", [(splatting.tiny,), (planes.tiny, 1), (planes.tiny, 32)])
def test_kernels_agree_in_their_first_try_with_mixed_precision(tiny):
    device = CPU if INTERPRETED else CUDA
    with torch.autocast(device.type, torch.bfloat16):
        assert fault_of(device, *tiny) is None


@where_kernels_run
def test_kernels_agree_in_their_first_try_on_more_than_they_take_at_a_time():
    from sv4d2_core.scene.dynerf.planes_triton import AT_ONCE
    from sv4d2_core.scene.gaussians.splat_triton import CONSTANTS

    assert len(splatting.tiny().inputs[0]) > 2 * CONSTANTS["BATCH"]
    assert len(planes.tiny(32).inputs[0]) > 2 * AT_ONCE / 32


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
    assert done.returncode == 0 and f"{len(SCENES) - 6 + 8 + 1 + 4} passed" in done.stdout, done.stdout
