"""Weights that wait in main memory, and the retry when memory runs out: results stay the same."""

import dataclasses
import errno
import logging
import weakref
from contextlib import contextmanager, nullcontext
from itertools import chain, repeat
from unittest.mock import Mock

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.blocks import SMALLEST_CHUNK, is_out_of_memory, retry_on_oom
from sv4d2_core.diffusion.checkpoint import load_checkpoint
from sv4d2_core.diffusion.memory import layers_of, place, weights_on
from sv4d2_core.diffusion.novel_views import sample_views

CPU = torch.device("cpu")


def sample(model):
    clip = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    return sample_views(model, clip, Cameras.from_lists(model.config.n_views), steps=2)


@pytest.fixture
def model(micro_model):
    """Return the model such that what a test sets is taken back."""
    yield dataclasses.replace(micro_model)
    micro_model.unet.chunk_bytes = None
    place(micro_model, CPU, "resident")


def test_weights_are_on_the_device_inside_the_block_only(monkeypatch):
    layer = nn.Linear(2, 2)
    before = [parameter.data_ptr() for parameter in layer.parameters()]
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _device, **_options: tensor.clone())
    with pytest.raises(KeyError), weights_on(CPU, layer):
        assert not {parameter.data_ptr() for parameter in layer.parameters()} & set(before)
        raise KeyError
    assert [parameter.data_ptr() for parameter in layer.parameters()] == before


@pytest.mark.parametrize("placement", ["resident", "turns", "streamed"])
def test_every_placement_gives_the_same_views(model, placement):
    expected = sample(model).images
    place(model, CPU, placement)
    assert sample(model).images.equal(expected)


def test_without_page_locked_memory_weights_wait_in_plain_memory(micro_checkpoint, monkeypatch, caplog):
    model = load_checkpoint(micro_checkpoint)
    refuse = Mock(side_effect=RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    caplog.set_level(logging.WARNING)
    place(model, torch.device("cuda"), "turns")
    assert (
        refuse.call_count == 1 and "(CUDA error: out of memory): weights wait in plain memory" in caplog.text
    )
    assert all(parameter.device == CPU for parameter in model.unet.parameters())


@pytest.mark.parametrize("placement", ["turns", "streamed"])
def test_no_weight_is_used_while_it_is_offloaded(model, placement):
    place(model, CPU, placement)
    networks = (model.unet, model.clip, model.frame_encoder, model.view_encoder, model.decoder)
    waiting = {id(p) for network in networks for p in network.parameters()}
    if placement == "streamed":
        waiting -= {id(p) for p in model.unet.parameters()}
        waiting |= {id(p) for layer in layers_of(model.unet) for p in layer.parameters()}
    present, at_once, used = [], [], set()

    @contextmanager
    def bring(module):
        present.append({id(p) for p in module.parameters()} & waiting)
        at_once.append(sum(map(len, present)))
        yield
        present.pop()

    def check(module, _inputs):
        own = {id(p) for p in module.parameters(recurse=False)} & waiting
        used.update(own)
        assert all(any(key in keys for keys in present) for key in own), module

    model.loaded = bring
    if placement == "streamed":
        model.unet.loaded = bring
        model.loaded = lambda module: nullcontext() if module is model.unet else bring(module)
    hooks = [m.register_forward_pre_hook(check) for network in networks for m in network.modules()]
    sample(model)
    for hook in hooks:
        hook.remove()
    assert used and not present
    of_unet = len(list(model.unet.parameters()))
    assert max(at_once) == of_unet if placement == "turns" else max(at_once) < of_unet


@pytest.mark.parametrize(
    ("part", "how"),
    [
        ("unet", "in the smallest parts"),
        ("clip", "image by image"),
        ("frame_encoder", "image by image"),
        ("decoder", "image by image"),
    ],
)
def test_a_part_that_runs_out_of_memory_is_tried_once_more(model, caplog, part, how):
    expected = sample(model).images
    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    fails_first = Mock(side_effect=chain([error], repeat(None)))
    hook = getattr(model, part).register_forward_pre_hook(fails_first)
    torch.testing.assert_close(sample(model).images, expected, atol=1e-4, rtol=0)
    hook.remove()
    assert [record.message for record in caplog.records] == [
        f"Out of memory (CUDA out of memory). Trying once more, {how}."
    ]
    assert (model.unet.chunk_bytes == SMALLEST_CHUNK) == (part == "unet")
    assert (model.encode_batch == model.decode_batch == 1) == (part != "unet")


def test_the_retry_does_not_keep_the_tensors_of_the_first():
    held = []

    def work():
        big = torch.zeros(1)
        held.append(weakref.ref(big))
        if len(held) == 1:
            raise torch.cuda.OutOfMemoryError("full")
        return big

    def shrink():
        assert held[0]() is None
        return "smaller"

    assert retry_on_oom(work, shrink).equal(torch.zeros(1)) and len(held) == 2


def accelerator_error(code):
    """Return what newer versions of torch raise for errors of a device."""
    error = getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: out of memory")
    error.error_code = code
    return error


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (accelerator_error(2), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.1 GB)"), True),
        (RuntimeError("XPU out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (SafetensorError('Error: IoError(Os { code: 12, kind: OutOfMemory, message: "full" })'), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_recognised_and_tried_again(error, known):
    assert is_out_of_memory(error) == known
    work = Mock(side_effect=[error, torch.ones(1)])
    with nullcontext() if known else pytest.raises(type(error)):
        assert retry_on_oom(work, lambda: "smaller") == 1
    assert work.call_count == 1 + known
    # A second failure is not hidden.
    with pytest.raises(type(error)):
        retry_on_oom(Mock(side_effect=[error, error, torch.ones(1)]), lambda: "smaller")
