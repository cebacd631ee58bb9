"""The sections of `gpu.py`: what each measures, in full and in small."""

import faulthandler
import gc
import logging
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from itertools import pairwise, product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from forward import OFFICIAL, PRODUCT, Variant, Work, benchmark
from gpu import ANEW, Figures, Options
from measure import clock, flops, matrix_product_rate, peak_bytes, seconds
from random_checkpoint import write_random_checkpoint

from sv4d2_core.cameras import Cameras
from sv4d2_core.commands.common import choose_device
from sv4d2_core.diffusion.blocks import log
from sv4d2_core.diffusion.checkpoint import (
    build_networks,
    load_checkpoint,
    stored_dtype,
)
from sv4d2_core.diffusion.config import ModelConfig
from sv4d2_core.diffusion.memory import (
    PLACEMENTS,
    MemoryPlan,
    Placement,
    apply_plan,
    place,
    plan_for_free_memory,
    plan_memory,
)
from sv4d2_core.diffusion.model import Model
from sv4d2_core.diffusion.novel_views import sample_views
from sv4d2_core.diffusion.speed import compile_blocks, keep_in_eight_bits
from sv4d2_core.scene.config import RefineConfig
from sv4d2_core.scene.dynerf.planes import products, read_by_triton
from sv4d2_core.scene.fit import Fit
from sv4d2_core.scene.gaussians.splat_torch import GaussiansAt, composite_torch, project, tile_lists
from sv4d2_core.scene.gaussians.splatting import drawn_by_triton
from sv4d2_core.scene.schedule import schedule
from sv4d2_core.scene.targets import checked_views
from sv4d2_core.shipped import TINY_MODEL
from sv4d2_core.training.recipe import TINY
from sv4d2_core.world import make_creature, render_views

ROOT = Path(__file__).parents[2]
# Of one guided pass of the official network at 576 px, 12 x 4 views, with its one-token cross-attention; in
# `forward.py` its operations count 0.004 % less.
OFFICIAL_FLOPS = 205_834_225_745_920
# Types of weights, and how far their views may be from float32 on a CPU, as root mean square.
TYPES = {
    "fp32": (torch.float32, False, 0.003),
    "fp16": (torch.float16, False, 0.003),
    "bf16": (torch.bfloat16, False, 0.01),
    "fp8": (torch.bfloat16, True, 0.02),
}


@dataclass(frozen=True)
class Sizes:
    """How much is done; the defaults are what is wanted of a GPU."""

    config: ModelConfig = ModelConfig()
    matrix: int = 8192
    chunks: tuple[int, ...] = tuple(n * 2**20 for n in (16, 128, 512, 2048))
    rounds: int = 3
    budgets: tuple[float, ...] = (8, 6, 24, 12, 16)  # GiB
    frames: int = 21  # of a clip
    steps: tuple[int, ...] = (20, 50)
    pictures: int = 512  # pixels of a fit
    fit_steps: int = 120
    fit_s: float = 35
    gaussians: int = 40_000
    points: int = 2**16  # of a frame, in planes
    backend: str = "inductor"  # of the compiler


_UNET = replace(TINY.unet, multipliers=(1, 1), head_channels=16)
_VAE = replace(TINY.vae, base=32, multipliers=(1, 1))
MICRO = replace(TINY, n_frames=2, size=8, trained=False, unet=_UNET, vae=_VAE)
SMALL = Sizes(MICRO, 128, (2**12, 2**20), 1, (1, 0.5), 3, (1, 2), 32, 6, 10, 500, 500, "eager")


class Bench:
    """Where figures are taken and how large; one section at a time."""

    def __init__(self, options: Options) -> None:
        self.device, self.sizes = choose_device(options.device), SMALL if options.small else Sizes()
        self.figures, self.section, self.small = Figures(options), "", options.small
        self.cuda, self.ends = self.device.type == "cuda", math.inf

    def take(self, figure: str, measure: Callable[..., dict[str, Any]], *given: Any) -> None:
        """Measure one figure from what is ``given``, unless it is known; write it down, or what went wrong.

        Raises _Spoilt where the device does nothing any more.
        """
        if (self.section, figure) in self.figures.answered:
            return
        self.fresh()
        try:
            self.figures.write(self.section, figure, **measure(*given))
        # Whatever it is must not cost the other figures.
        except Exception as error:
            where = [
                f"{Path(at.filename).name}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)
            ]
            text = f"{type(error).__name__}: {error}"[:600]
            self.figures.write(self.section, figure, error=text, where=where[-6:])
            logging.getLogger(__name__).exception("%s, %s", self.section, figure)
        try:
            torch.ones(1, device=self.device).item()
        except RuntimeError as error:
            raise _Spoilt from error

    def fresh(self) -> None:
        """Have the whole card free, but for what is in use, and its peak counted anew."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
            torch.cuda.reset_peak_memory_stats(self.device)

    def clock(self) -> float:
        return clock(self.device)

    def peak(self) -> dict[str, float]:
        """Return the peaks since `fresh` in GB; nothing on a CPU."""
        if not self.cuda:
            return {}
        allocated, reserved = torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved
        return {"allocated_gb": allocated(self.device) / 1e9, "reserved_gb": reserved(self.device) / 1e9}

    @cached_property
    def model(self) -> Model:
        """Return the network in bf16, resident, with small random weights that are drawn on the device."""
        networks = build_networks(self.sizes.config)
        torch.manual_seed(0)
        for name, network in networks.items():
            network.to(stored_dtype(name, torch.bfloat16)).to_empty(device=self.device)
            for parameter in network.requires_grad_(False).eval().parameters():
                # Gains near 1 keep activations finite.
                parameter.data.normal_(std=0.02).add_(1.0 if parameter.dim() == 1 else 0.0)
        return Model(self.sizes.config, **networks)

    def plan(self) -> MemoryPlan:
        """Return the plan for all memory of the card; the model is in main memory then."""
        config = self.sizes.config
        place(self.model, torch.device("cpu"), "resident")
        self.fresh()
        plan = plan_for_free_memory(config, torch.bfloat16, config.size, self.device)
        return plan or MemoryPlan(2**20, 8, 4, "resident", 0)

    def steps(self, model: Model, frames: int, steps: int) -> dict[str, Any]:
        """Return the seconds of sampling a clip of random pictures: in all, and of a step."""
        config, stamps, began = model.config, list[float](), self.clock()
        clip, cameras = torch.rand(frames, config.size, config.size, 3), Cameras.default(config.n_views)
        sample_views(model, clip, cameras, steps=steps, callback=lambda *_: stamps.append(self.clock()))
        # The last step of a window is followed by its decoding.
        took = [b - a for i, (a, b) in enumerate(pairwise(stamps), 1) if i % steps] or [stamps[0] - began]
        return {"seconds": self.clock() - began, "s_per_step": statistics.median(took)}


class _Spoilt(Exception):
    """The device does nothing any more in this process."""


def machine(bench: Bench) -> None:
    """What runs; ValueError, as a figure, where the file has figures of something else."""

    def about() -> dict[str, Any]:
        name = torch.cuda.get_device_name(bench.device) if bench.cuda else bench.device.type
        known = {
            line["name"] for line in bench.figures.lines if line["figure"] == "device" and "name" in line
        }
        name += " in small" if bench.small else ""
        if known - {name}:
            raise ValueError(f"Expected figures of {name} in the file; got {known}. Give another --out.")
        run = partial(subprocess.run, capture_output=True, text=True, cwd=ROOT, check=False)
        commit = run(["git", "describe", "--always", "--dirty"]).stdout.strip()
        total = torch.cuda.get_device_properties(bench.device).total_memory / 1e9 if bench.cuda else 0
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "commit": commit}
        return {"name": name, "memory_gb": total, **versions}

    bench.figures.answered.discard(("machine", "device"))
    bench.take("device", about)


def faults(bench: Bench) -> None:
    """The small model in every type and placement against float32 on the CPU."""
    config, file = TINY, TINY_MODEL
    if bench.small:
        folder = tempfile.TemporaryDirectory()
        config, file = MICRO, write_random_checkpoint(Path(folder.name) / "micro.safetensors", MICRO)
    clip = torch.rand(
        config.n_frames, config.size, config.size, 3, generator=torch.Generator().manual_seed(0)
    )

    def views(model: Model) -> torch.Tensor:
        return sample_views(model, clip, Cameras.official("sv4d2"), steps=1 if bench.small else 2).images

    expected = views(load_checkpoint(file, dtype=torch.float32))

    def compare(name: str, placement: Placement) -> dict[str, Any]:
        dtype, eight_bits, allowed = TYPES[name]
        # Random weights make more of a rounding.
        allowed *= 10 if bench.small else 1
        model = load_checkpoint(file, dtype=dtype)
        if eight_bits:
            keep_in_eight_bits(model.unet)
        apply_plan(model, MemoryPlan(2**22, 4, 2, placement, 0), bench.device)
        error = views(model) - expected
        rms, largest = error.square().mean().sqrt().item(), error.abs().max().item()
        if not rms <= allowed:
            raise ValueError(f"Expected views within {allowed:g} of the CPU's; got {rms:g} ({largest:g}).")
        return {"rms": rms, "largest": largest}

    for name, placement in product(TYPES, PLACEMENTS):
        bench.take(f"{name}, {placement}", compare, name, placement)


def rates(bench: Bench) -> None:
    """The rate of a matrix product in each type."""
    for name in ("float32", "float16", "bfloat16"):
        bench.take(name, lambda name: {"tflops": _rate(bench, name) / 1e12}, name)


def _rate(bench: Bench, dtype: str) -> float:
    return matrix_product_rate(bench.device, getattr(torch, dtype), bench.sizes.matrix)


def forward(bench: Bench) -> None:
    """One guided pass of the network in bf16: alone, in parts of several sizes, and beside the official."""
    net, config = bench.model.unet, bench.sizes.config
    apply_plan(bench.model, replace(bench.plan(), placement="resident"), bench.device)
    size = config.size // config.latent_factor
    work = Work(config.unet, size, str(bench.device), torch.bfloat16, config.n_frames)
    inputs = work.inputs()
    ours, official = Variant(net, inputs, PRODUCT), Variant(net, inputs, OFFICIAL)
    operations = official.measure(flops) if bench.small else OFFICIAL_FLOPS

    def alone(variant: Variant) -> dict[str, Any]:
        # The first pass warms up.
        took = [variant.measure(partial(seconds, device=bench.device)) for _ in range(bench.sizes.rounds + 1)]
        return _speed(bench, took[1:], operations) | {
            "peak_gb": variant.measure(partial(peak_bytes, device=bench.device), prepare=True) / 1e9,
            "chunk_mib": (variant.chunk_bytes or net.chunk_bytes or 0) / 2**20,
        }

    def beside() -> dict[str, Any]:
        pair = {"official": official, "product": ours}
        rows = benchmark(pair, bench.sizes.rounds, math.inf)
        times = {name: _speed(bench, row["seconds"], operations) for name, row in rows.items()}
        return times | {key: rows["product"][key] for key in ("speed", "memory", "difference")}

    bench.take("product", alone, ours)
    bench.take("product and official", beside)
    for chunk in bench.sizes.chunks:
        bench.take(f"parts of {chunk / 2**20:g} MiB", alone, ours._replace(chunk_bytes=chunk))


def _speed(bench: Bench, took: list[float], operations: int) -> dict[str, float]:
    """Return the median of times, and what it says where the official operations are counted."""
    middle = statistics.median(took)
    speed = operations / middle
    share = speed / _rate(bench, "bfloat16")
    return {"seconds": middle, "fastest_s": min(took), "tflops": speed / 1e12, "of_the_matrix_rate": share}


def budgets(bench: Bench) -> None:
    """The planner's promise: a window within less memory, which is enforced on a GPU."""
    model, config = bench.model, bench.sizes.config

    def within(budget: float) -> dict[str, Any]:
        plan = plan_memory(config, torch.bfloat16, config.size, budget, bench.device)
        place(model, torch.device("cpu"), "resident")
        bench.fresh()
        if bench.cuda:
            total = torch.cuda.get_device_properties(bench.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, budget * 2**30 / total), bench.device)
        began = bench.clock()
        apply_plan(model, plan, bench.device)
        placing = bench.clock() - began
        # The only warnings are those of another try out of memory.
        with patch.object(log, "warning") as retries:
            took = bench.steps(model, config.n_frames, 3)
        peak, planned = bench.peak(), plan.estimated_bytes / 1e9
        if peak.get("reserved_gb", 0) * 1e9 > budget * 2**30:
            raise ValueError(f"Expected at most {budget:g} GiB; got {peak}, planned {planned:g} GB.")
        sizes = {"chunk_mib": plan.chunk_bytes / 2**20, "placement": plan.placement, "planned_gb": planned}
        return sizes | took | {"placing_s": placing, "retries": retries.call_count} | peak

    for budget in bench.sizes.budgets:
        bench.take(f"{budget:g} GiB", within, budget)


def clip(bench: Bench) -> None:
    """A whole clip in few and in many steps."""
    per_step = list[float]()
    apply_plan(bench.model, bench.plan(), bench.device)

    def sample(steps: int) -> dict[str, Any]:
        projected, left = steps * max(per_step, default=0.0), bench.ends - time.monotonic()
        if projected > left:
            return {"no_time": f"{left:.0f} s left", "projected_s": projected}
        taken = bench.steps(bench.model, bench.sizes.frames, steps) | bench.peak()
        per_step.append(taken["seconds"] / steps)
        return taken

    for steps in bench.sizes.steps:
        name = f"{bench.sizes.frames} frames, {steps} steps"
        bench.take(name, sample, steps)


def refiner(bench: Bench) -> None:
    """Both kinds of scene, in a short fit that has every phase of a long one."""
    # Its memory is not wanted any more.
    bench.__dict__.pop("model", None)
    sizes, rig = bench.sizes, Cameras.official("sv4d2")
    views = render_views(make_creature(10), rig, sizes.frames, sizes.pictures, device=bench.device)
    views = checked_views(views)

    def fit(backend: str) -> dict[str, Any]:
        config = RefineConfig(backend=backend, weight_by_trust=False).with_steps(sizes.fit_steps, 1)
        began = bench.clock()
        fit = Fit(views, config, bench.device)
        ready = bench.clock()
        for step in schedule(config, views):
            if bench.clock() - ready > sizes.fit_s:
                break
            fit.take(step)
        ms = 1000 * (bench.clock() - ready) / fit.step
        peak, drawing = bench.peak(), bench.clock()
        fit.scene.render(rig, [0.5], sizes.pictures, views=[0])
        return {
            "preparation_s": ready - began,
            "steps": f"{fit.step} of {sizes.fit_steps}",
            "ms_per_step": ms,
            "projected_minutes": (ready - began) / 60 + ms * RefineConfig().stage_one_steps / 60_000,
            "loss": fit.losses[-1],
            "s_per_picture": bench.clock() - drawing,
            **peak,
        }

    for backend in ("gaussians", "dynerf"):
        bench.take(backend, fit, backend)


def kernels(bench: Bench) -> None:
    """One picture of many Gaussians, and planes at many points, with gradients, by Triton and by torch."""
    n, size, rig = bench.sizes.gaussians, bench.sizes.pictures, Cameras.official("sv4d2")
    torch.manual_seed(0)
    means, scales = 0.2 * torch.randn(n, 3), 0.5 * n**-0.5 * torch.rand(n, 3).exp()
    scene = GaussiansAt(means, torch.randn(n, 4), scales, torch.rand(n), torch.rand(n, 3))
    scene = GaussiansAt(*(x.to(bench.device) for x in scene))
    found = project(scene, rig.w2c_opencv()[0], float(rig.intrinsics(size)[0, 0]), size)
    lists, splats = tile_lists(found, size), found.splats.detach().requires_grad_()
    # Four frames of a fit's planes, which it reads at about so many points per step.
    grids = [torch.rand(4, 3, 32, s, s, device=bench.device) for s in (size // 8, size // 4, size // 2)]
    points = torch.rand(4 * bench.sizes.points, 3, device=bench.device) * 2 - 1
    leaves = [x.requires_grad_() for x in (points, *grids)]

    def compare(
        name: str,
        count: int,  # pairs or points
        by_torch: Callable[..., torch.Tensor],
        by_triton: tuple[str, str],  # its module and name
        works: bool,
        given: tuple[Any, ...],
        inputs: list[torch.Tensor],  # by which gradients are taken
    ) -> None:
        def work(function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
            result = function(*given)
            return [result.detach(), *torch.autograd.grad(result.square().sum(), inputs)]

        def measure(function: Callable[..., torch.Tensor]) -> dict[str, Any]:
            took = [seconds(lambda: work(function), bench.device) for _ in range(4)]
            return {"first_ms": 1000 * took[0], "ms": 1000 * statistics.median(took[1:])} | bench.peak()

        def with_triton() -> dict[str, Any]:
            if not works:
                return {"left_out": "done by torch here; the log says why"}
            module, function = by_triton
            kernel = getattr(import_module(f"sv4d2_core.scene.{module}"), function)
            pairs = zip(work(kernel), work(by_torch), strict=True)
            value, *slopes = [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]
            return measure(kernel) | {"value_differs": value, "gradient_differs": max(slopes)}

        bench.take(f"{name}, torch", lambda: {"count": count} | measure(by_torch))
        bench.take(f"{name}, triton", with_triton)

    triton = "gaussians.splat_triton", "composite_triton"
    works = drawn_by_triton(bench.device)
    compare("Gaussians", len(lists.splats), composite_torch, triton, works, (splats, lists), [splats])
    triton, works = ("dynerf.planes_triton", "products_triton"), read_by_triton(bench.device, 32)
    given = grids, points, [bench.sizes.points] * 4
    compare("planes", len(points), products, triton, works, given, leaves)


def tests(bench: Bench) -> None:
    """The tests that are marked for a GPU; without one they are skipped."""

    def run() -> dict[str, Any]:
        # Importing all others for their marks takes longer than these tests.
        named = [*(ROOT / "tests").rglob("test_*.py"), ROOT / "tests/pretend/conftest.py"]
        marked = [path for path in sorted(named) if "pytest.mark.gpu" in path.read_text()]
        files = [path.parent if path.name == "conftest.py" else path for path in marked]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|error|skipped)", lines[-1])}
        logging.getLogger(__name__).info(done.stdout)
        if done.returncode:
            failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            raise RuntimeError(f"{counts}: {'; '.join(failed)} {done.stderr[-200:]}")
        return counts

    bench.take("pytest -m gpu", run)


def compiled(bench: Bench) -> None:
    """The network with its blocks compiled."""

    def run() -> dict[str, Any]:
        model, config = bench.model, bench.sizes.config
        apply_plan(model, bench.plan(), bench.device)
        compile_blocks(model.unet, bench.sizes.backend)
        first = bench.steps(model, config.n_frames, 1)["seconds"]
        return {"first_window_s": first} | bench.steps(model, config.n_frames, 4) | bench.peak()

    bench.take("steps", run)


def answer(bench: Bench, section: str) -> int | str:
    """Run a section and return how many of its figures failed, or `ANEW`."""
    bench.section, before = section, bench.figures.failed
    try:
        globals()[section](bench)
    except _Spoilt:
        return ANEW
    # What a section prepares before its first figure.
    except Exception as error:
        logging.getLogger(__name__).exception(section)
        bench.figures.write(section, "preparation", error=f"{type(error).__name__}: {error}"[:600])
    return bench.figures.failed - before


def serve(connection: Connection, options: Options) -> None:
    """Answer every section that is asked for; what aborts or crashes puts where it was into the log."""
    log_file = options.file.with_suffix(f"{options.file.suffix}.log")
    logging.basicConfig(level=logging.INFO, filename=log_file, format="%(asctime)s %(message)s")
    # Not by a timer: its thread reads the stacks of threads that run, which may crash the process.
    faulthandler.enable(log_file.open("a"))
    bench = Bench(options)
    while True:
        section, limit = connection.recv()
        bench.ends = time.monotonic() + limit
        connection.send(answer(bench, section))
