"""Weights kept in 8 bits: how exact they are, how much memory they save, and that nothing else changes."""

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion import speed as eight_bits
from sv4d2_core.diffusion.config import OFFICIAL_VARIANTS
from sv4d2_core.diffusion.memory import load_within, place, plan_memory
from sv4d2_core.diffusion.novel_views import sample_views
from sv4d2_core.diffusion.speed import EightBits

CPU = torch.device("cpu")


def sample(model):
    clip = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    return sample_views(model, clip, Cameras.from_lists(model.config.n_views), steps=2).images


def size(network):
    return sum(p.numel() * p.element_size() for p in network.parameters())


@pytest.fixture
def narrow(micro_checkpoint):
    return load_within(micro_checkpoint, "auto", torch.float32, CPU, None, eight_bits=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_any_size_keep_four_significant_bits(dtype):
    sizes = torch.tensor([1e-3, 1.0, 100.0])
    weight = (torch.randn(3, 64, 3, 3) * sizes.view(3, 1, 1, 1)).to(dtype)
    weight[0, 0] = 0
    form = EightBits(dtype)
    assert (form(*form.right_inverse(torch.zeros(2, 4, dtype=dtype))) == 0).all()
    stored, scale = form.right_inverse(weight)
    assert stored.dtype == torch.float8_e4m3fn and stored.shape == weight.shape and scale.numel() == 3
    back = form(stored, scale)
    assert back.dtype == dtype and (back[0, 0] == 0).all()
    error = (back.float() - weight.float()).abs()
    # Half a step of three bits after the leading one, or of the smallest numbers; then the dtype's rounding.
    bound = weight.float().abs() * (2**-4 + torch.finfo(dtype).eps) + scale * 2**-10
    assert (error <= bound * 1.01).all() and error.max() > 0


def test_every_matrix_of_the_blocks_takes_one_byte_a_number(micro_model, narrow):
    original = dict(micro_model.unet.named_parameters())
    matrices = 0
    for name, parameter in narrow.unet.named_parameters():
        if name.endswith("parametrizations.weight.original0"):
            assert parameter.dtype == torch.float8_e4m3fn and not parameter.requires_grad
            matrices += parameter.numel()
        elif not name.endswith("parametrizations.weight.original1"):
            assert parameter.equal(original[name])
    assert matrices > 0.9 * sum(parameter.numel() for parameter in original.values())
    scales = sum(p.numel() for n, p in narrow.unet.named_parameters() if n.endswith("original1"))
    assert size(narrow.unet) == size(micro_model.unet) - 3 * matrices + 4 * scales
    assert size(narrow.clip) == size(micro_model.clip) and size(narrow.decoder) == size(micro_model.decoder)


def test_pictures_are_close_but_not_the_same_whatever_the_placement(micro_model, narrow):
    exact, rounded = sample(micro_model), sample(narrow)
    error = (rounded - exact).abs().mean().item()
    assert 0 < error < 0.1 * exact.std().item()
    for placement in ("turns", "streamed"):
        place(narrow, CPU, placement)
        assert sample(narrow).equal(rounded)


def test_the_plan_counts_them():
    official = OFFICIAL_VARIANTS["sv4d2"]
    half, eight = (plan_memory(official, torch.float16, 576, 24, eight_bits=on) for on in (False, True))
    assert half.chunk_bytes == eight.chunk_bytes
    # Of the 2,010,961,338 weights of the UNet 97 in a hundred are in matrices of its blocks.
    assert 1.94e9 < half.estimated_bytes - eight.estimated_bytes < 1.96e9


def test_a_device_without_them_is_refused_before_any_work(monkeypatch):
    eight_bits.check_eight_bits(CPU)
    monkeypatch.setattr(eight_bits, "_TYPE", "no such type")
    with pytest.raises(ValueError, match="numbers of 8 bits for --fp8-weights; cpu has none.*fp16"):
        eight_bits.check_eight_bits(CPU)
