"""The benchmark compares equal work: without any saving, alone or together, the numbers are the same."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sv4d2_core.diffusion.config import UNetConfig
from sv4d2_core.diffusion.speed import compile_blocks

sys.path.insert(0, str(Path(__file__).parent / "bench"))
forward, measure, savings = (importlib.import_module(name) for name in ("forward", "measure", "savings"))

WITHOUT_ONE = [{name} for name in savings.SAVINGS]
CPU = torch.device("cpu")
SIZES = UNetConfig("released_3d", 32, (1,), 1, 1, 16, 48, 128)


class Operations(TorchDispatchMode):
    """Records the operations that run and the layouts of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen.append((func, (out.shape, out.stride()) if isinstance(out, Tensor) else None))
        return out


def small():
    """Return a network of one level with random blend factors and its inputs."""
    work = forward.Work(SIZES, 4, frames=3)
    net = work.network()
    for name, parameter in net.named_parameters():
        if name.endswith("mix_factor"):
            parameter.normal_()
    return net, work.inputs()


def compute(net, inputs, without, chunk_bytes=2**16):
    return forward.Variant(net, inputs, without, chunk_bytes).measure(lambda call: call())


@pytest.mark.parametrize(
    ("variant", "name"), [("sv4d2", "unet_3d_T3V4_8x8"), ("sv4d2_8views", "unet_view_T5V8_8x8")]
)
def test_every_variant_computes_the_official_numbers(goldens, tiny_model, close, variant, name):
    expected, inputs = goldens.arrays(name)["out"], savings.WindowInputs(**goldens.unet_inputs(name))
    kept = [x.clone() for x in inputs]
    for without, chunk_bytes in product((savings.PRODUCT, savings.OFFICIAL, *WITHOUT_ONE), (2**16, None)):
        close(compute(tiny_model(variant).unet, inputs, without, chunk_bytes), expected, 1e-4)
    assert all(torch.equal(x, y) for x, y in zip(inputs, kept, strict=True))


def test_every_switch_changes_what_runs_until_it_is_back():
    net, inputs = small()
    replaced = [(owner, key) for entries in savings.SAVINGS.values() for owner, key, _ in entries]
    before = [getattr(*entry) for entry in replaced]
    recorded = {}
    for without in (savings.PRODUCT, *WITHOUT_ONE):
        with Operations() as operations:
            compute(net, inputs, without)
        recorded[", ".join(without)] = operations.seen
    product = recorded.pop("")
    assert [name for name, seen in recorded.items() if seen == product] == []
    assert [getattr(*entry) for entry in replaced] == before


def test_unequal_work_is_refused(monkeypatch):
    wrong = (torch.nn.functional, "silu", lambda x, inplace=False: torch.relu(x))
    monkeypatch.setitem(savings.SAVINGS, "wrong", [wrong])
    net, inputs = small()
    pair = {
        name: forward.Variant(net, inputs, off) for name, off in {"product": (), "wrong": ("wrong",)}.items()
    }
    with pytest.raises(RuntimeError, match="wrong differs"):
        forward.benchmark(pair, 1, 1e-4)


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


def test_the_report_shows_what_is_saved(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(forward, "FULL", SIZES)
    monkeypatch.setattr(forward, "FULL_SIZE", 4)
    monkeypatch.setattr(forward, "matrix_product_rate", lambda *_: 1e11)
    # A C++ compiler is not to be expected.
    monkeypatch.setattr(forward, "compile_blocks", partial(compile_blocks, backend="eager"))
    path = tmp_path / "report.md"
    forward.main(["--full", "--compile", "--threads=1", "--rounds=1", f"--markdown={path}"])
    report = path.read_text()
    assert report == capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")] for line in report.splitlines() if line[:1] == "|"]
    rows = {row[1]: row for row in rows}
    assert len({len(row) for row in rows.values()}) == 1
    assert {"product in small parts", "product in one part", "product compiled"} < rows.keys()
    assert {f"product without {name}" for name in savings.SAVINGS} < rows.keys()
    assert rows["official"][7] == "1.00x" and rows["official"][9] == "100%"
    assert int(rows["product"][9].rstrip("%")) < 90


def test_full_size_constructs_with_the_official_operations():
    work = forward.Work(UNetConfig(), 72, "meta", torch.float16, frames=3)
    net = work.network()
    assert sum(p.numel() for p in net.parameters()) == 2_010_961_338
    product, official = (
        forward.Variant(net, work.inputs(), off).measure(measure.flops)
        for off in (savings.PRODUCT, savings.OFFICIAL)
    )
    # One-token cross-attention is 5.2 % of the operations (docs/method.md).
    assert product / official == pytest.approx(1 - 0.052, abs=0.002)
