"""The benchmark compares equal work: without any saving, alone or together, the numbers are the same."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import product

import forward
import gpu
import gpu_sections
import measure
import pytest
import torch
from pretend.cuda import PretendCuda

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
    monkeypatch.setattr(forward, "BENCH", SIZES)
    monkeypatch.setattr(forward, "BENCH_SIZE", 4)
    monkeypatch.setattr(forward, "matrix_product_rate", lambda *_: 1e11)
    # A C++ compiler is not to be expected.
    monkeypatch.setattr(forward, "compile_blocks", partial(compile_blocks, backend="eager"))
    forward.main(["--compile", "--threads=1", "--rounds=1"])
    table = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in line.split("|")] for line in table]
    rows = {row[1]: row for row in rows}
    assert len({len(row) for row in rows.values()}) == 1
    assert "product compiled" in rows
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


# More by hand.
KILLS = int(os.environ.get("SV4D2_KILLS", "2"))


def test_every_figure_of_a_gpu_is_taken_once_however_often_the_script_is_killed(tmp_path):
    file, draw, codes = tmp_path / "gpu.jsonl", random.Random(0), []
    command = [sys.executable, gpu.__file__, "--small", "--device", "cpu", "--out", str(file)]
    while not codes or codes[-1] < 0:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            if len(codes) < KILLS:
                try:
                    process.wait(draw.uniform(2, 15))
                except subprocess.TimeoutExpired:
                    process.kill()
            # Ends when all processes that could write have ended.
            process.communicate()
        codes.append(process.returncode)
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    assert codes[-1] == 0 and -signal.SIGKILL in codes, codes
    assert not [line for line in lines if "error" in line]
    taken = Counter((line["section"], line["figure"]) for line in lines if "left_out" not in line)
    assert {section for section, figure in taken if figure == gpu.WHOLE} == gpu.SECTIONS.keys()
    assert {figure for (section, figure), n in taken.items() if n > 1} <= {"device", gpu.WHOLE}
    sizes = {"faults": 12, "rates": 3, "forward": 4, "budgets": 2, "clip": 2, "refiner": 2}
    counted = Counter(section for section, _ in taken)
    assert {section: counted[section] - 1 for section in sizes} == sizes


def test_a_section_that_hangs_is_killed_and_costs_no_other(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(gpu.SECTIONS, "faults", 1)  # of 4 on the fastest machine seen
    command = ["--small", "--device", "cpu", "--out", str(tmp_path / "gpu.jsonl")]
    assert gpu.main([*command, "--only", "rates", "faults"]) == 1
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    wholes = {line["section"]: line.get("error", "") for line in lines if line["figure"] == gpu.WHOLE}
    assert wholes == {"machine": "", "faults": "killed after 1 s; see the log for where it was", "rates": ""}
    assert "in faults" in (tmp_path / "gpu.jsonl.log").read_text()
    assert gpu.main([*command, "--only", "kernels", "--seconds", "9"]) == 1
    assert "no_time" in capfd.readouterr().out
    assert gpu.main([*command, "--only", "rates", "--device", "cuda"]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CUDA device is a real one")
def test_the_figures_of_a_gpu_are_taken_on_a_pretend_one(tmp_path, monkeypatch):
    # What is compiled does not know the pretend device.
    monkeypatch.setattr(gpu_sections, "compile_blocks", lambda *_: None)
    with PretendCuda(gib=2):
        bench = gpu_sections.Bench(gpu.Options(tmp_path / "gpu.jsonl", "cuda", True, 0))
        # In tests/pretend are the faults.
        wanted = [section for section in gpu.SECTIONS if section not in ("faults", "tests")]
        assert [gpu_sections.answer(bench, section) for section in wanted] == [0] * len(wanted)
    lines = [json.loads(line) for line in bench.figures.options.file.read_text().splitlines()]
    assert lines[0]["name"] == "Pretend in small" and {line["section"] for line in lines} == set(wanted)
    limits = {f"{gib:g} GiB": 1.1 * gib for gib in gpu_sections.SMALL.budgets}
    peaks = {line["figure"]: line["reserved_gb"] for line in lines if line["section"] == "budgets"}
    assert peaks.keys() == limits.keys() and all(0 < peaks[name] < limits[name] for name in limits)
