"""The memory plan: it holds what it promises, and refuses what cannot be done."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sv4d2_core.diffusion.config import OFFICIAL_VARIANTS, UNetConfig, VAEConfig
from sv4d2_core.diffusion.memory import apply_plan, plan_memory, weight_bytes
from sv4d2_core.diffusion.unet import UNet

GIB = 2**30


def peak_bytes(call):
    """Return the peak of what ``call`` allocates on the CPU, from the allocator's own record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(itertools.accumulate(e.nbytes() for e in events), default=0)


def test_a_forward_pass_stays_within_the_plan():
    unet = UNet(UNetConfig(base=64, head_channels=32, context_dim=64, vector_dim=1280))
    config = dataclasses.replace(
        OFFICIAL_VARIANTS["sv4d2"], n_frames=3, unet=unet.config, vae=VAEConfig(base=32)
    )
    x, y = torch.randn(24, 8, 32, 32), torch.randn(8, 1280)
    weights = weight_bytes(config, torch.float32)
    budget = weights / GIB + 0.15
    plan = plan_memory(config, torch.float32, 256, budget)
    unet.chunk_bytes = plan.chunk_bytes
    with torch.inference_mode():
        window = unet.prepare(torch.randn(2, 3, 64), torch.randn(8, 4, 32, 32))
        peak = peak_bytes(lambda: unet(x, torch.zeros(8), y, window))
    assert 0.01 * GIB < peak <= plan.estimated_bytes - weights
    assert plan.estimated_bytes <= budget * GIB


def test_larger_budgets_allow_larger_parts():
    config = OFFICIAL_VARIANTS["sv4d2"]
    plans = [plan_memory(config, torch.float16, 576, gb) for gb in (12, 16, 24)]
    chunks = [plan.chunk_bytes for plan in plans]
    assert chunks == sorted(chunks) and all(p.decode_batch <= p.encode_batch for p in plans)
    for plan, gb in zip(plans, (12, 16, 24), strict=True):
        assert plan.estimated_bytes <= gb * GIB


def test_too_small_a_budget_names_what_is_needed():
    with pytest.raises(ValueError, match=r"at least \d+\.\d GiB.*budget of 4 GiB.*--size.*--memory-gb"):
        plan_memory(OFFICIAL_VARIANTS["sv4d2"], torch.float16, 576, 4)


def test_weights_are_counted_as_they_are_loaded(micro_model):
    networks = (micro_model.unet, micro_model.clip, micro_model.decoder, micro_model.frame_encoder)
    loaded = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
    encoder = sum(p.numel() * p.element_size() for p in micro_model.frame_encoder.parameters())
    # The plan does not know yet whether the two encoders of a file are equal, so it counts both.
    assert weight_bytes(micro_model.config, torch.float32) == loaded + encoder
    half = weight_bytes(OFFICIAL_VARIANTS["sv4d2"], torch.float16)
    assert half == 2 * (2_010_961_338 + 632_076_800 + 2 * 34_163_664) + 4 * 49_490_179


def test_a_plan_is_applied(micro_model):
    model = dataclasses.replace(micro_model)
    plan = plan_memory(model.config, torch.float32, 32, 1)
    apply_plan(model, plan)
    assert (model.encode_batch, model.decode_batch) == (plan.encode_batch, plan.decode_batch)
    assert model.unet.chunk_bytes == plan.chunk_bytes
    model.unet.chunk_bytes = None
