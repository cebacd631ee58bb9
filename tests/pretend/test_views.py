"""Views sampled on a pretend or a real device are the CPU's, in every placement and type."""

from itertools import product

import pytest
import torch
from pretend.cuda import ALL, PretendCuda

from sv4d2_core.__main__ import main
from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion import unet
from sv4d2_core.diffusion.memory import MemoryPlan, load_within
from sv4d2_core.diffusion.novel_views import sample_views

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float16}
PAIRS = [("fp32", "resident"), ("fp16", "turns"), ("bf16", "streamed"), ("fp8", "streamed")]
if ALL:
    PAIRS = list(product(TYPES, ("resident", "turns", "streamed")))


def drawn(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def sample(model, clip=None, **options):
    clip = drawn(3, 32, 32, 3) if clip is None else clip
    return sample_views(model, clip, Cameras.from_lists(model.config.n_views), **{"steps": 1, **options})


def load(path, plan, device="cuda", kind="fp32"):
    return load_within(path, "auto", TYPES[kind], torch.device(device), plan, eight_bits=kind == "fp8")


@pytest.fixture(scope="module")
def expected(micro_checkpoint):
    """Return the views that the CPU makes in each type."""
    return {kind: sample(load(micro_checkpoint, None, "cpu", kind)) for kind in TYPES}


@pytest.mark.parametrize(("kind", "placement"), PAIRS)
def test_every_placement_samples_as_the_cpu(
    cuda, no_waits, alike, micro_checkpoint, expected, kind, placement
):
    model = load(micro_checkpoint, MemoryPlan(2**20, 2, 1, placement, 0), kind=kind)
    where = {p.device.type for p in model.unet.parameters()}
    assert where == {"resident": {"cuda"}, "turns": {"cpu"}, "streamed": {"cuda", "cpu"}}[placement]
    views = sample(model)
    alike(views.images, expected[kind].images, 1e-4, 0.06 if kind == "bf16" else 0.01)
    assert views.images.is_cpu and views.latents.is_cpu and torch.cuda.max_memory_allocated() > 2**20


# Sizes are those of drawn tensors on the device.
OPTIONS = {
    "interval": {"guidance_interval": (0.3, 3.0), "sampler": "dpmpp_2m", "steps": 3},
    "step cache": {"step_cache": 0.5, "steps": 3},
    "inputs": {
        "init_views": torch.Size((3, 2, 32, 32, 3)),
        "strength": 0.5,
        "steps": 2,
        "reference_views": torch.Size((2, 32, 32, 3)),
        "cfg": torch.Size((3, 2)),
        "clip": torch.Size((3, 32, 32, 3)),
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_samples_as_the_cpu(cuda, alike, request, micro_checkpoint, name):
    if name != "step cache":  # which decides by what the network said
        request.getfixturevalue("no_waits")
    views = []
    for device in ("cpu", "cuda"):
        options = dict(OPTIONS[name])
        for key, value in options.items():
            if isinstance(value, torch.Size):
                options[key] = drawn(*value).to(device)
        views.append(sample(load(micro_checkpoint, None, device), **options).images)
    alike(views[1], views[0], 1e-4, 0.01)


def test_the_second_of_two_devices_does_all_the_work(micro_checkpoint, expected):
    with PretendCuda(devices=2):
        views = sample(load(micro_checkpoint, MemoryPlan(2**20, 2, 1, "streamed", 0), "cuda:1"))
        assert torch.cuda.max_memory_allocated(0) == 0 < torch.cuda.max_memory_allocated(1)
    torch.testing.assert_close(views.images, expected["fp32"].images, atol=1e-4, rtol=0)


def test_the_command_goes_on_with_what_it_kept(cuda, disc_clip, micro_checkpoint, tmp_path, contents):
    out = tmp_path / "out"
    words = ["views", str(disc_clip(tmp_path / "clip", 5)), "--checkpoint", str(micro_checkpoint)]
    words += ["--steps", "1", "--dtype", "fp16", "--fp8-weights", "--memory-gb", "1", "--out", str(out)]
    assert main(words) == 0 and torch.cuda.max_memory_allocated() > 2**20
    before = contents(out)
    (out / ".windows/window_001.safetensors").unlink()
    (out / "view_02.mp4").unlink()
    assert main(words) == 0 and contents(out) == before


def test_a_batch_is_the_views_of_each_clip(cuda, disc_clip, micro_checkpoint, tmp_path, contents):
    clips = [str(disc_clip(tmp_path / name, 3)) for name in ("one", "two")]
    options = ["--checkpoint", str(micro_checkpoint), "--steps", "1", "--device", "cuda", "--out"]
    assert main(["batch", *clips, *options, str(tmp_path / "batch")]) == 0
    assert torch.cuda.max_memory_allocated() > 2**20
    assert main(["views", clips[1], *options, str(tmp_path / "alone")]) == 0
    assert contents(tmp_path / "batch/two") == contents(tmp_path / "alone")


def test_a_pass_out_of_memory_is_tried_in_smaller_parts(micro_checkpoint, expected, monkeypatch, caplog):
    monkeypatch.setattr(unet, "SMALLEST_CHUNK", 2**14)
    with PretendCuda() as cuda:
        model = load(micro_checkpoint, MemoryPlan(2**30, 1, 1, "resident", 0))
        held = torch.cuda.memory_allocated()
        sample(model)
        cuda.counters[0].limit = held + int(0.8 * (torch.cuda.max_memory_allocated() - held))
        views = sample(model)
    torch.testing.assert_close(views.images, expected["fp32"].images, atol=1e-4, rtol=0)
    assert "Out of memory (CUDA out of memory). Trying once more, in the smallest parts." in caplog.text
