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
    budget = 0.15
    plan = plan_memory(config, 0, 4, 256, budget)
    unet.chunk_bytes = plan.chunk_bytes
    with torch.inference_mode():
        window = unet.prepare(torch.randn(2, 3, 64), torch.randn(8, 4, 32, 32))
        peak = peak_bytes(lambda: unet(x, torch.zeros(8), y, window))
    assert 0.01 * GIB < peak <= plan.estimated_bytes <= budget * GIB


def test_larger_budgets_allow_larger_parts():
    config = OFFICIAL_VARIANTS["sv4d2"]
    weights = int(5.55 * 1e9)
    plans = [plan_memory(config, weights, 2, 576, gb) for gb in (12, 16, 24)]
    chunks = [plan.chunk_bytes for plan in plans]
    assert chunks == sorted(chunks) and all(p.decode_batch <= p.encode_batch for p in plans)
    for plan, gb in zip(plans, (12, 16, 24), strict=True):
        assert plan.estimated_bytes <= gb * GIB


def test_too_small_a_budget_names_what_is_needed():
    with pytest.raises(ValueError, match=r"at least \d+\.\d GiB.*budget of 4 GiB.*--size.*--memory-gb"):
        plan_memory(OFFICIAL_VARIANTS["sv4d2"], int(5.55e9), 2, 576, 4)


def test_shared_weights_count_once(micro_model):
    encoder = sum(p.numel() * 4 for p in micro_model.frame_encoder.parameters())
    assert micro_model.view_encoder is micro_model.frame_encoder
    separate = dataclasses.replace(
        micro_model, view_encoder=type(micro_model.frame_encoder)(micro_model.config.vae)
    )
    assert weight_bytes(separate) == weight_bytes(micro_model) + encoder
    plan = plan_memory(micro_model.config, weight_bytes(micro_model), 4, 32, 1)
    apply_plan(separate, plan)
    assert separate.unet.chunk_bytes == plan.chunk_bytes and separate.decode_batch == plan.decode_batch
    separate.unet.chunk_bytes = None
