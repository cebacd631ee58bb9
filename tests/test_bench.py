"""The benchmark compares equal work: without any saving, alone or together, the numbers are the same."""

from functools import partial
from itertools import product

import forward
import measure
import pytest
import torch

from sv4d2_core.diffusion.config import UNetConfig
from sv4d2_core.diffusion.speed import compile_blocks

WITHOUT_ONE = [{name} for name in forward.SAVINGS]
SIZES = UNetConfig("released_3d", 32, (1,), 1, 1, 16, 48, 128)


@pytest.mark.parametrize(
    ("variant", "name"), [("sv4d2", "unet_3d_T3V4_8x8"), ("sv4d2_8views", "unet_view_T5V8_8x8")]
)
def test_every_variant_computes_the_official_numbers(goldens, tiny_model, close, variant, name):
    expected, inputs = goldens.arrays(name)["out"], goldens.unet_inputs(name)
    kept = [x.clone() for x in inputs.values()]
    for without, chunk_bytes in product((forward.PRODUCT, forward.OFFICIAL, *WITHOUT_ONE), (2**16, None)):
        pass_ = forward.Variant(tiny_model(variant).unet, inputs, without, chunk_bytes)
        close(pass_.measure(lambda call: call()), expected, 1e-4)
    assert all(torch.equal(x, y) for x, y in zip(inputs.values(), kept, strict=True))


def test_every_saving_saves_memory_or_operations_and_unequal_work_is_refused(monkeypatch):
    work = forward.Work(SIZES, 4, frames=3)
    net, inputs = work.network(), work.inputs()
    variants = {name: forward.Variant(net, inputs, {name}, 2**16) for name in forward.SAVINGS}
    variants = {"product": forward.Variant(net, inputs, (), 2**16), **variants}
    product, *others = forward.benchmark(variants, 1, 1e-4).values()
    for row in others:
        assert row["flops"] > product["flops"] or row["peak_bytes"] > product["peak_bytes"]
    wrong = (torch.nn.functional, "silu", lambda x, inplace=False: torch.relu(x))
    monkeypatch.setitem(forward.SAVINGS, "wrong", [wrong])
    variants["wrong"] = forward.Variant(net, inputs, {"wrong"})
    with pytest.raises(RuntimeError, match="wrong differs"):
        forward.benchmark(variants, 1, 1e-4)


def test_peak_and_operations_are_exact():
    x, w = torch.ones(256, 1024), torch.ones(1024, 512)

    def call():
        first = x + x  # 1 MiB
        second = first + x  # 2 MiB alive
        del first
        return second @ w  # 1.5 MiB alive

    assert measure.peak_bytes(call, torch.device("cpu")) == 2 * 2**20
    assert measure.flops(call) == 2 * 256 * 1024 * 512
    heads = torch.ones(3, 2, 5, 16)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert measure.flops(lambda: attention(heads, heads, heads)) == 2 * 2 * 3 * 2 * 5 * 5 * 16


def test_the_report_shows_what_is_saved(monkeypatch, capsys):
    monkeypatch.setattr(forward, "FULL", SIZES)
    monkeypatch.setattr(forward, "FULL_SIZE", 4)
    monkeypatch.setattr(forward, "matrix_product_rate", lambda *_: 1e11)
    # A C++ compiler is not to be expected.
    monkeypatch.setattr(forward, "compile_blocks", partial(compile_blocks, backend="eager"))
    forward.main(["--full", "--compile", "--threads=1", "--rounds=1"])
    table = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in line.split("|")] for line in table]
    rows = {row[1]: row for row in rows}
    assert len({len(row) for row in rows.values()}) == 1
    assert {"product in small parts", "product compiled"} < rows.keys()
    assert {f"product without {name}" for name in forward.SAVINGS} < rows.keys()
    assert rows["official"][7] == "1.00x" and rows["official"][9] == "100%"
    assert int(rows["product"][9].rstrip("%")) < 90


def test_full_size_constructs_with_the_official_operations():
    work = forward.Work(UNetConfig(), 72, "meta", torch.float16, frames=3)
    net, inputs = work.network(), work.inputs()
    assert sum(p.numel() for p in net.parameters()) == 2_010_961_338
    product, official = (
        forward.Variant(net, inputs, off).measure(measure.flops)
        for off in (forward.PRODUCT, forward.OFFICIAL)
    )
    # One-token cross-attention is 5.2 % of the operations (docs/method.md).
    assert product / official == pytest.approx(1 - 0.052, abs=0.002)
