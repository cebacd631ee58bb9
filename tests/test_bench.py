"""The benchmark compares equal work: without any saving, alone or together, the numbers are the same."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sv4d2_core.diffusion import unet
from sv4d2_core.diffusion.config import UNetConfig

sys.path.insert(0, str(Path(__file__).parent / "bench"))
forward, measure, savings, variants = (
    importlib.import_module(name) for name in ("forward", "measure", "savings", "variants")
)

WITHOUT_ONE = [{name} for name in savings.SAVINGS]
WITH_ONE = [savings.OFFICIAL - {name} for name in savings.SAVINGS]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _few_frames(monkeypatch):
    monkeypatch.setattr(variants, "FRAMES", 3)


class Operations(TorchDispatchMode):
    """Records the operations that run and the layouts of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen.append((func, (out.shape, out.stride()) if isinstance(out, Tensor) else None))
        return out


def small_work(view_mixing):
    return variants.Work(UNetConfig(view_mixing, 32, (1,), 1, 1, 16, 48, 128), 4, threads=1)


def small(view_mixing, chunk_bytes=2**16):
    """Return a network of one level with random blend factors and its inputs."""
    work = small_work(view_mixing)
    net = work.network()
    for name, parameter in net.named_parameters():
        if name.endswith("mix_factor"):
            parameter.normal_()
    net.chunk_bytes = chunk_bytes
    return net, work.inputs()


def compute(net, inputs, without):
    with torch.no_grad(), savings.switched_off(net, inputs, without) as call:
        return call()


def golden_inputs(goldens, name):
    spec = goldens.index[name]
    b, t, v, h, w = (spec[key] for key in ("b", "T", "V", "h", "w"))
    shapes = {
        "x": (b * t * v, 8, h, w),
        "y": (b, v, 128),
        "context": (b, t, 48),
        "cond_view": (b * v, 4, h, w),
    }
    drawn = {key: goldens.randn(f"in:{name}:{key}", shape) for key, shape in shapes.items()}
    drawn["y"] = drawn["y"].flatten(0, 1)
    timesteps = torch.full((b * v,), 0.25 * math.log(spec["sigma"]))
    return savings.WindowInputs(timesteps=timesteps, **drawn)


@pytest.mark.parametrize(
    ("variant", "name", "savings_off"),
    [
        ("sv4d2", "unet_3d_T3V4_8x8", [savings.PRODUCT, savings.OFFICIAL, *WITHOUT_ONE]),
        ("sv4d2_8views", "unet_view_T5V8_8x8", [savings.PRODUCT, savings.OFFICIAL]),
    ],
)
def test_every_variant_computes_the_official_numbers(goldens, tiny_model, close, variant, name, savings_off):
    expected = goldens.arrays(name)["out"]
    for without in savings_off:
        close(compute(tiny_model(variant).unet, golden_inputs(goldens, name), without), expected, 1e-4)


@pytest.mark.parametrize("view_mixing", ["released_3d", "view"])
@pytest.mark.parametrize("chunk_bytes", [2**16, None])
def test_every_variant_computes_the_same_with_and_without_parts(close, view_mixing, chunk_bytes):
    net, inputs = small(view_mixing, chunk_bytes)
    kept = [x.clone() for x in inputs]
    expected = compute(net, inputs, savings.PRODUCT)
    for without in (savings.OFFICIAL, *WITHOUT_ONE, *WITH_ONE):
        close(compute(net, inputs, without), expected, 1e-5)
    assert all(torch.equal(x, y) for x, y in zip(inputs, kept, strict=True))


def test_every_switch_changes_what_runs_until_it_is_back():
    net, inputs = small("released_3d")
    replaced = [(owner, key) for entries in savings.SAVINGS.values() for owner, key, _ in entries]
    before = [getattr(*entry) for entry in replaced]
    recorded = {}
    for without in (savings.PRODUCT, *WITHOUT_ONE):
        with torch.no_grad(), savings.switched_off(net, inputs, without) as call, Operations() as operations:
            call()
        recorded[", ".join(without)] = operations.seen
    product = recorded.pop("")
    assert [name for name, seen in recorded.items() if seen == product] == []
    assert [getattr(*entry) for entry in replaced] == before


def test_the_report_shows_what_is_saved():
    pair = {"official": savings.OFFICIAL, "product": savings.PRODUCT}
    net, inputs = small("released_3d")
    rows = forward.benchmark(
        {name: variants.Variant(net, inputs, off) for name, off in pair.items()}, 2, 1e-4
    )
    assert rows["product"]["flops"] < 0.97 * rows["official"]["flops"]
    assert rows["product"]["peak_bytes"] < 0.6 * rows["official"]["peak_bytes"]
    assert rows["official"]["speed"] == rows["official"]["memory"] == 1
    lines = forward.table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 4
    assert f"(here {rows['product']['speed']:.2f}x)" in forward.summary(rows, 1e9)


def test_unequal_work_is_refused(monkeypatch):
    monkeypatch.setitem(savings.SAVINGS, "wrong", [(unet, "silu", torch.relu)])
    net, inputs = small("released_3d")
    pair = {
        name: variants.Variant(net, inputs, off) for name, off in {"product": (), "wrong": ("wrong",)}.items()
    }
    with pytest.raises(RuntimeError, match="wrong differs"):
        forward.benchmark(pair, 1, 1e-4)


def test_a_variant_in_its_own_process(close, monkeypatch):
    monkeypatch.undo()
    work = small_work("view")
    elsewhere = variants.InOwnProcess(work, savings.OFFICIAL)
    here = variants.Variant(work.network(), work.inputs(), savings.PRODUCT)
    close(elsewhere.output(), here.output(), 1e-5)
    assert elsewhere.flops() > here.flops() and elsewhere.seconds() > 0
    elsewhere.close()


def test_peak_and_operations_are_exact():
    x, w = torch.ones(256, 1024), torch.ones(1024, 512)

    def call():
        first = x + x  # 1 MiB
        second = first + x  # 2 MiB alive
        del first
        return second @ w  # 1.5 MiB alive

    assert measure.peak_bytes(call, CPU) == 2 * 2**20
    assert measure.flops(call) == 2 * 256 * 1024 * 512
    heads = torch.ones(3, 2, 5, 16)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert measure.flops(lambda: attention(heads, heads, heads)) == 2 * 2 * 3 * 2 * 5 * 5 * 16


def test_full_size_constructs():
    work = variants.Work(UNetConfig(), 72, "meta", torch.float16)
    assert sum(p.numel() for p in work.network().parameters()) == 2_010_961_338
    assert work.inputs().x.shape == (24, 8, 72, 72)
