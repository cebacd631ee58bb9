"""The memory plan: it holds what it promises, and refuses what cannot be done."""

import dataclasses
import math
import weakref
from functools import partial

import measure
import pytest
import torch

from sv4d2_core.diffusion.blocks import ResBlock, parts
from sv4d2_core.diffusion.checkpoint import build_networks
from sv4d2_core.diffusion.config import OFFICIAL_VARIANTS, UNetConfig, VAEConfig
from sv4d2_core.diffusion.memory import (
    activation_bytes,
    apply_plan,
    autoencoder_bytes,
    chunk_for_card,
    plan_for_free_memory,
    plan_memory,
)
from sv4d2_core.diffusion.unet import UNet
from sv4d2_core.diffusion.vae import VAEDecoder, VAEEncoder

peak_bytes = partial(measure.peak_bytes, device=torch.device("cpu"))

GIB = 2**30
OFFICIAL = OFFICIAL_VARIANTS["sv4d2"]


def peak_of_pass(unet, grid, size):
    """Return the peak of one forward pass over latents of ``size``."""
    batch, frames, views = grid
    rows = batch * views
    x, y = torch.randn(frames * rows, 8, size, size), torch.randn(rows, unet.config.vector_dim)
    with torch.inference_mode():
        window = unet.prepare(torch.randn(batch, frames, 64), torch.randn(rows, 4, size, size))
        return peak_bytes(lambda: unet(x, torch.zeros(rows), y, window))


def test_a_forward_pass_stays_within_the_plan():
    unet = UNet(UNetConfig(base=32, head_channels=16, context_dim=64, vector_dim=1280))
    config = dataclasses.replace(OFFICIAL, n_frames=3, unet=unet.config, vae=VAEConfig(base=32))
    weights = sum(4 * p.numel() for net in build_networks(config).values() for p in net.parameters())
    budget = weights / GIB + 0.06
    plan = plan_memory(config, torch.float32, 128, budget)
    unet.chunk_bytes = plan.chunk_bytes
    assert 0.005 * GIB < peak_of_pass(unet, (2, 3, 4), 16) <= plan.estimated_bytes - weights
    assert plan.estimated_bytes <= budget * GIB


def test_a_skip_is_let_go_once_it_was_read():
    unet = UNet(UNetConfig(base=32, head_channels=16, context_dim=64, vector_dim=1280))
    skips, alive = [], []
    unet.before_layer = lambda: alive.extend(skip for skip in skips if skip() is not None)
    for block in (block for block in unet.modules() if isinstance(block, ResBlock)):
        block.register_forward_pre_hook(
            lambda _, inputs: skips.extend(weakref.ref(skip) for skip in inputs[1:2] if skip is not None)
        )
    with torch.inference_mode():
        window = unet.prepare(torch.randn(1, 2, 64), torch.randn(2, 4, 8, 8))
        unet(torch.randn(4, 8, 8, 8), torch.zeros(2), torch.randn(2, 1280), window)
    assert len(skips) == 12 and not alive


def test_parts_are_few_and_even():
    with torch.no_grad():
        lengths = [i.stop - i.start for i in parts(96, 10, 649)]
        assert lengths == [48, 48]
        assert [i.stop - i.start for i in parts(10, 10, 49)] == [4, 4, 2]
        assert [i.stop - i.start for i in parts(3, 10, 5)] == [1, 1, 1]
    assert list(parts(96, 10, 649)) == [slice(0, 96)]


def test_too_small_a_budget_names_what_is_needed():
    # Both encoders, since the plan does not know yet whether those of a file are equal; a float32 decoder.
    weights = 2 * (2_010_961_338 + 632_076_800 + 2 * 34_163_664) + 4 * 49_490_179
    said = rf"at least \d+\.\d GiB.*weights {weights / GIB:.1f} GiB.*of 4 GiB.*smaller pictures.*--memory-gb"
    with pytest.raises(ValueError, match=said):
        plan_memory(OFFICIAL, torch.float16, 576, 4)


def test_a_plan_is_applied(micro_model):
    model = dataclasses.replace(micro_model)
    plan = plan_memory(model.config, torch.float32, 32, 1)
    apply_plan(model, plan)
    assert (model.encode_batch, model.decode_batch) == (plan.encode_batch, plan.decode_batch)
    assert model.unet.chunk_bytes == plan.chunk_bytes
    model.unet.chunk_bytes = None


# Estimates are never below the peak that the CPU's allocator records, and not far above it.
BAND = (1.0, 1.4)


@pytest.mark.parametrize(
    ("base", "grid", "size", "share"),
    [
        (32, (2, 12, 4), 8, 0.05),
        (32, (2, 3, 4), 16, 0.25),
        (32, (2, 5, 8), 8, 0.1),
        (32, (1, 12, 4), 8, 0.1),
        (64, (2, 3, 4), 8, 0.1),
        (64, (2, 2, 1), 16, 10),
    ],
)
def test_the_estimate_of_the_unet_lies_in_its_band(base, grid, size, share):
    batch, frames, views = grid
    images, mixing = batch * frames * views, "view" if views == 8 else "released_3d"
    unet = UNet(
        UNetConfig(base=base, head_channels=16, context_dim=64, vector_dim=64, view_mixing=mixing)
    ).requires_grad_(False)
    # Parts of this share of the widest intermediate result.
    unet.chunk_bytes = int(share * 8 * base * size * size * images * 4)
    config = dataclasses.replace(
        OFFICIAL, n_frames=frames, n_views=views, unet=unet.config, vector_dims=(16, 24, 24)
    )
    estimated = activation_bytes(config, images, size * size, 4, unet.chunk_bytes)
    assert BAND[0] <= estimated / peak_of_pass(unet, grid, size) <= BAND[1]


@pytest.mark.parametrize(("base", "size", "images"), [(32, 64, 3), (64, 64, 1)])
def test_the_estimate_of_the_autoencoder_lies_in_its_band(base, size, images):
    config = dataclasses.replace(OFFICIAL, vae=VAEConfig(base=base))
    pictures, latents = torch.randn(images, 3, size, size), torch.randn(images, 4, size // 8, size // 8)
    encoder, decoder = VAEEncoder(config.vae), VAEDecoder(config.vae)
    with torch.inference_mode():
        encoding, decoding = peak_bytes(lambda: encoder(pictures)), peak_bytes(lambda: decoder(latents))
    for half, measured in (("encoder", encoding), ("decoder", decoding)):
        assert BAND[0] <= autoencoder_bytes(config, half, images, size, 4) / measured <= BAND[1]


@pytest.mark.parametrize(
    ("variant", "within_8_gb", "growth"), [("sv4d2", "turns", 4), ("sv4d2_8views", "resident", 1)]
)
def test_the_full_size_fits_the_usual_cards(variant, within_8_gb, growth):
    config = OFFICIAL_VARIANTS[variant]
    plans = {gb: plan_memory(config, torch.float16, 576, gb, "cuda") for gb in (141, 24, 16, 12, 8, 6)}
    for gb, plan in plans.items():
        assert plan.estimated_bytes <= 0.9 * gb * GIB
    assert [plan.placement for plan in plans.values()] == [*["resident"] * 4, within_8_gb, "streamed"]
    chunks = [plans[gb].chunk_bytes for gb in (12, 16, 24, 141)]
    assert chunks == sorted(chunks) and all(p.decode_batch <= p.encode_batch for p in plans.values())
    # A part of it is all of a layer.
    whole = 2 * config.n_frames * config.n_views * 72 * 72 * 8 * config.unet.base * 2
    assert chunks[-1] >= growth * chunks[0] and whole <= chunks[-1] < 2 * whole
    said = {"turns": "weights of one network at a time", "resident": "all weights on the device"}
    assert said[within_8_gb] in str(plans[8])


def free_of(monkeypatch, free, held=0):
    """Let a device have ``free`` bytes, and ``held`` by tensors."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: held)
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda _device: (free, 8 * GIB))
    monkeypatch.setattr(torch.xpu, "memory_allocated", lambda _device: held)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: free + held)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: held)


def free_plan(device, limit=math.inf):
    return plan_for_free_memory(OFFICIAL, torch.float16, 576, torch.device(device), limit_gb=limit)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_without_a_budget_a_device_is_asked_what_is_free(monkeypatch, caplog, kind):
    free_of(monkeypatch, 12 * GIB)
    plan = free_plan(kind)
    assert plan == plan_memory(OFFICIAL, torch.float16, 576, 12, kind)
    # Beside a fit.
    free_of(monkeypatch, 12 * GIB, 1 * GIB)
    assert free_plan(kind, 11) == plan_memory(OFFICIAL, torch.float16, 576, 10, kind)
    assert not caplog.records
    free_of(monkeypatch, 2 * GIB)
    assert free_plan(kind).placement == ("resident" if kind == "mps" else "streamed")
    assert "got a budget of 2 GiB" in caplog.text
    assert free_plan("cpu") is None and free_plan("cpu", 16) == plan_memory(OFFICIAL, torch.float16, 576, 16)


def test_devices_of_older_pytorch_tell_no_figures(monkeypatch):
    monkeypatch.delattr(torch.xpu, "mem_get_info")
    monkeypatch.delattr(torch.mps, "recommended_max_memory")
    assert free_plan("xpu") is None and free_plan("mps") is None


def test_memory_that_pytorch_keeps_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free_of(monkeypatch, 7 * GIB))
    free_of(monkeypatch, 5 * GIB)
    assert free_plan("cuda") == plan_memory(OFFICIAL, torch.float16, 576, 7, "cuda")


def test_apples_attention_holds_all_scores():
    plan = plan_memory(OFFICIAL, torch.float16, 576, 96, "mps")
    images = plan.chunk_bytes // (72 * 72 * 8 * 320 * 2)
    assert plan.placement == "resident" and images * 5 * (72 * 72) ** 2 * 4 <= 2**32
    assert plan.estimated_bytes > images * 5 * (72 * 72) ** 2 * 8


def test_parts_on_a_cpu_suit_its_cache():
    assert plan_memory(OFFICIAL, torch.float32, 576, 64).chunk_bytes == 128 * 2**20


def test_a_hosts_card_gets_parts_in_proportion():
    parts = [chunk_for_card(gb * GIB) for gb in (0, 8, 12, 96, 512)]
    assert parts == [n * 2**20 for n in (16, 128, 192, 1536, 4096)]
