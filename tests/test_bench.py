"""The benchmark compares equal work: without any saving, alone or together, the numbers are the same."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.config import CLIPVisionConfig, UNetConfig, VAEConfig
from sv4d2_core.diffusion.speed import compile_blocks
from sv4d2_core.shipped import TINY_MODEL

sys.path.insert(0, str(Path(__file__).parent / "bench"))
drift, forward, measure, network_parts, savings, variants, whole_clip = (
    importlib.import_module(name)
    for name in ("drift", "forward", "measure", "network_parts", "savings", "variants", "whole_clip")
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
    lines = forward.table(rows, 1e9).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 4
    assert f"{rows['product']['median_speed']:.2f}x the official speed" in forward.summary(rows, 1e9)


def test_unequal_work_is_refused(monkeypatch):
    wrong = (torch.nn.functional, "silu", lambda x, inplace=False: torch.relu(x))
    monkeypatch.setitem(savings.SAVINGS, "wrong", [wrong])
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


def test_parts_of_the_network_add_up_to_all_of_it():
    net, inputs = small("released_3d")
    for without in (savings.PRODUCT, savings.OFFICIAL):
        variant = variants.Variant(net, inputs, without)
        parts = variant.parts(1)
        assert sum(part["flops"] for part in parts.values()) == variant.flops()
        assert all(part["seconds"] > 0 for part in parts.values())
        assert [name for name, part in parts.items() if part["flops"] == 0] == [network_parts.NORMS]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_operations_of_the_parts_at_full_size_are_the_specifications():
    work = variants.Work(UNetConfig(), 72, "meta", torch.bfloat16)
    net, inputs = work.network(), work.inputs()
    with torch.no_grad(), savings.switched_off(net, inputs, savings.PRODUCT) as call:
        flops = network_parts.flops_by_part(net, call)
    # Three frames instead of twelve, whose attention to each other is all that is not proportional to them.
    assert 4 * flops[network_parts.SPATIAL] == 25_053_639_966_720
    assert 4 * flops[network_parts.VIEW] == 6_239_671_418_880
    assert 4 * flops[network_parts.FEED_FORWARD] == 5 * 18_651_650_457_600


def small_model():
    return replace(
        forward.BENCH,
        unet=UNetConfig("released_3d", 32, (1,), 1, 1, 16, 48, 128),
        vector_dims=(32, 48, 48),
        n_frames=3,
        size=16,
        vae=VAEConfig(32, (1, 1), 1),
        clip=CLIPVisionConfig(64, 1, 32, 64, embed_dim=48),
    )


def test_a_pair_is_measured_without_the_other_variants(monkeypatch, tmp_path):
    monkeypatch.setattr(forward, "BENCH", small_model())
    monkeypatch.setattr(forward, "_rate", lambda *_: 1e11)
    path = tmp_path / "figures.json"
    forward.main(["--pair", "--one-process", "--threads=1", "--rounds=3", f"--json={path}"])
    measured = json.loads(path.read_text())["variants"]
    assert [(name, len(row["seconds"])) for name, row in measured.items()] == [
        ("official", 3),
        ("product", 3),
    ]


def test_the_whole_report_of_the_full_size(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(forward, "FULL", small_model())
    # A C++ compiler is not to be expected.
    monkeypatch.setattr(variants, "compile_blocks", partial(compile_blocks, backend="eager"))
    for module in (forward, whole_clip):
        monkeypatch.setattr(module, "STEPS", (2, 1))
    monkeypatch.setattr(whole_clip, "CLIP_FRAMES", 4)
    files = {name: str(tmp_path / name) for name in ("json", "markdown")}
    options = ["--full", "--one-process", "--threads=1", "--rounds=1", "--parts", "--sampling=2"]
    options += ["--clip", "--compile"]
    forward.main([*options, *(f"--{name}={path}" for name, path in files.items())])
    report = (tmp_path / "markdown").read_text()
    assert report == capsys.readouterr().out
    for expected in ("product in one part", "TFLOP/s", "| view attention |", "| sampling |", "2 windows"):
        assert expected in report
    figures = json.loads((tmp_path / "json").read_text())
    whole, parts = (figures["variants"][name] for name in (forward.ONE_PART, forward.SMALL_PARTS))
    assert len(whole["seconds"]) == 1 and whole["min"] == whole["max"] and parts["error"] < 1e-5
    assert figures["variants"]["product compiled"]["error"] < 1e-5
    clip = figures["clip"]
    steps = figures["variants"]["product"]["step_seconds"]
    costs = clip["costs"]
    assert clip["seconds_by_arithmetic"]["2"] == pytest.approx(
        costs["frames"] + costs["references"] + 2 * (2 * steps[1] + costs["decode"])
    )
    assert set(clip["seconds_sampled"]) == {"1", "2"}


def test_full_size_constructs():
    work = variants.Work(UNetConfig(), 72, "meta", torch.float16)
    assert sum(p.numel() for p in work.network().parameters()) == 2_010_961_338
    assert work.inputs().x.shape == (24, 8, 72, 72)


def test_drift_of_half_precision_is_that_of_its_mantissa(monkeypatch):
    monkeypatch.setattr(drift, "SIGMAS", (5.0,))
    reference = load_checkpoint(TINY_MODEL)
    clip = drift.clip_of(reference, 0)
    (expected,) = drift.predictions(reference, reference, clip)
    half = load_checkpoint(TINY_MODEL, dtype=torch.bfloat16)
    largest, rms = drift.differences(*drift.predictions(half, reference, clip), expected)
    assert 2**-10 < rms < 4 * 2**-8 and largest < 8 * 2**-8
