"""torch.compile of the repeated work: equal numbers, compiled in the first step, errors before work."""

import copy
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from sv4d2_core.__main__ import main
from sv4d2_core.diffusion.config import UNetConfig
from sv4d2_core.diffusion.speed import check_compiler, compile_blocks, keep_in_eight_bits
from sv4d2_core.diffusion.unet import UNet

# One level, three frames and three views of 8 x 8 latents with guidance: 18 images.
SIZES = UNetConfig("view", 32, (1,), 1, 1, 16, 48, 128)
B, T, V = 2, 3, 3
# Bytes of a part that make the last one smaller: four images in a residual block of the first level.
UNEVEN = 4 * 4 * 32 * 64 * 4


@pytest.fixture(params=["aot_eager"])
def pair(request):
    """Return a network with random blend factors and the same one compiled without a C++ compiler."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = UNet(SIZES).eval().requires_grad_(False)
    for name, parameter in net.named_parameters():
        if name.endswith("mix_factor"):
            parameter.normal_()
    net.chunk_bytes = UNEVEN
    compiled = copy.deepcopy(net)
    compile_blocks(compiled, backend=request.param)
    yield net, compiled
    torch._dynamo.reset()


def drawn(seed):
    """Return a window's context and references and one step's x, timesteps and vectors."""
    torch.manual_seed(seed)
    window = torch.randn(B, T, 48), torch.randn(B * V, 4, 8, 8)
    return window, (
        torch.randn(B * T * V, 8, 8, 8),
        torch.full((B * V,), 0.1 * seed),
        torch.randn(B * V, 128),
    )


def test_weights_in_eight_bits_are_widened_in_compiled_work_too(close):
    torch._dynamo.reset()
    net = UNet(SIZES).eval().requires_grad_(False)
    keep_in_eight_bits(net)
    compiled, (window, inputs) = copy.deepcopy(net), drawn(1)
    compile_blocks(compiled, backend="eager")
    with torch.no_grad():
        close(compiled(*inputs, compiled.prepare(*window)), net(*inputs, net.prepare(*window)), 1e-5)


def test_steps_and_windows_after_the_first_step_compile_nothing(pair, close):
    net, compiled = pair
    counters.clear()
    seen = []
    with torch.no_grad():
        for seed in (1, 2):
            window, _ = drawn(seed)
            expected, prepared = net.prepare(*window), compiled.prepare(*window)
            for step in (1, 2):
                _, inputs = drawn(10 * seed + step)
                kept = [x.clone() for x in inputs]
                close(compiled(*inputs, prepared), net(*inputs, expected), 1e-5)
                assert all(torch.equal(x, y) for x, y in zip(inputs, kept, strict=True))
                seen.append(counters["stats"]["unique_graphs"])
    assert seen[0] > 0 and set(seen) == {seen[0]}
    assert not counters["graph_break"] and not counters["unimplemented"]


@pytest.mark.parametrize("pair", ["eager"], indirect=True)
def test_a_smaller_last_part_is_the_only_further_size(pair):
    _, compiled = pair
    window, inputs = drawn(1)
    with torch.no_grad():
        prepared = compiled.prepare(*window)
        found = []
        for chunk_bytes in (2**40, UNEVEN):
            torch._dynamo.reset()
            counters.clear()
            compiled.chunk_bytes = chunk_bytes
            compiled(*inputs, prepared)
            found.append(counters["stats"]["unique_graphs"])
    assert found[0] < found[1] <= 2 * found[0]


def test_gradients_pass_through_compiled_blocks(pair, close):
    gradients = []
    window, inputs = drawn(3)
    for net in pair:
        net.requires_grad_(True)
        net(*inputs, net.prepare(*window)).square().mean().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    plain, compiled = gradients
    assert list(pair[0].state_dict()) == list(pair[1].state_dict())
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        close(compiled[name], gradient, 1e-5)


def test_a_missing_compiler_is_told_before_the_weights_are_read(monkeypatch, disc_clip, tmp_path, capsys):
    torch._dynamo.reset()

    def without_compiler(*_):
        raise RuntimeError("No working C++ compiler found in the list:\n('g++',)")

    check_compiler(torch.device("cpu"), backend="eager")
    checks = partial(check_compiler, backend=without_compiler)
    monkeypatch.setattr("sv4d2_core.commands.views.check_compiler", checks)
    monkeypatch.delattr("sv4d2_core.commands.views.load_planned")
    clip, out = disc_clip(tmp_path / "clip", 2), tmp_path / "out"
    command = ["views", str(clip), "--checkpoint", "tiny", "--device", "cpu", "--out", str(out)]
    assert main([*command, "--compile"]) == 2
    assert "Expected --compile to find a C++ compiler" in capsys.readouterr().err
    assert not out.exists()
