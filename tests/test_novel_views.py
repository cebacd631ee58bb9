"""The pipeline: windows, short clips, passes, seeds, resume, cancel, bad input."""

from unittest.mock import Mock

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.novel_views import ping_pong, plan_windows, sample_views, window_noise
from sv4d2_core.diffusion.sampling import first_step, holding
from sv4d2_core.video.prepare import PreparedClip

CAMERAS = Cameras((0, 0, 0), (0, 90, 180))


def clip(n_frames, size=32):
    return torch.rand(n_frames, size, size, 3, generator=torch.Generator().manual_seed(n_frames))


class Memory(dict):
    load, save = dict.get, dict.__setitem__


@pytest.mark.parametrize("window", [5, 12])
@pytest.mark.parametrize("n_frames", [5, 12, 13, 21, 23, 24, 34, 50])
def test_windows_cover_everything_once(n_frames, window):
    if n_frames < window:
        with pytest.raises(ValueError, match=f"at least {window} frames.*got {n_frames}"):
            plan_windows(n_frames, window)
        return
    starts = plan_windows(n_frames, window)
    assert len(set(starts)) == len(starts)
    assert {f for s in starts for f in range(s, s + window)} == set(range(n_frames))
    assert all(1 <= later - earlier <= window - 1 for earlier, later in zip(starts, starts[1:], strict=False))


def test_ping_pong():
    assert ping_pong(3, 8) == [0, 1, 2, 1, 0, 1, 2, 1]
    assert ping_pong(1, 3) == [0, 0, 0]
    assert ping_pong(5, 3) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n_frames", [1, 2, 3, 4, 7])
def test_any_number_of_frames(micro_model, n_frames):
    images = clip(n_frames)
    grid = sample_views(micro_model, images, CAMERAS, steps=2)
    assert grid.images.shape == (n_frames, 3, 32, 32, 3)
    assert grid.latents is not None and grid.latents.shape == (n_frames, 2, 4, 16, 16)
    assert torch.equal(grid.images[:, 0], images)
    assert 0 <= grid.images.min() and grid.images.max() <= 1
    assert grid.seed == 23 and grid.steps == 2 and not grid.trained


def test_seed_decides_and_matches_the_stated_noise(micro_model):
    images = clip(5)
    first, again, other = (sample_views(micro_model, images, CAMERAS, steps=2, seed=n) for n in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    noise = torch.stack([window_noise(1, k, (6, 4, 16, 16)) for k in range(2)])
    torch.manual_seed(1)
    assert torch.equal(noise[0], torch.randn(6, 4, 16, 16))
    explicit = sample_views(micro_model, images, CAMERAS, steps=2, seed=9, noise=noise)
    assert torch.equal(first.images, explicit.images)


def test_frames_are_encoded_once(micro_model):
    backend = Mock(wraps=micro_model, config=micro_model.config)
    sample_views(backend, clip(7), CAMERAS, steps=1)
    assert [len(call.args[0]) for call in backend.embed.call_args_list] == [7]
    encoded = [(call.kwargs["role"], len(call.args[0])) for call in backend.encode.call_args_list]
    assert encoded == [("frames", 7), ("views", 2), ("views", 2)]


def test_several_passes_share_the_input(micro_model):
    images = clip(4)
    cameras = Cameras((0, 0, 0, 10, 20), (0, 90, 180, 45, 270))
    both = sample_views(micro_model, images, cameras, steps=2, seed=5)
    assert both.images.shape[1] == 5
    first = sample_views(micro_model, images, cameras.select([0, 1]), steps=2, seed=5)
    second = sample_views(micro_model, images, cameras.select([2, 3]), steps=2, seed=5 + 2)
    assert torch.equal(both.images[:, :3], first.images)
    assert torch.equal(both.images[:, 3:], second.images[:, 1:])


def test_weak_strength_stays_near_the_given_views(micro_model):
    images, init = clip(3), torch.rand(3, 2, 32, 32, 3)
    encoded = micro_model.encode(init.flatten(0, 1), "frames") * micro_model.config.scale_factor
    distances = []
    for strength in (0.05, 0.5, 1.0):
        grid = sample_views(micro_model, images, CAMERAS, steps=20, init_views=init, strength=strength)
        assert grid.latents is not None
        distances.append((grid.latents.flatten(0, 1) - encoded).abs().mean().item())
    assert distances[0] < distances[1] < distances[2]
    assert first_step(50, 0.35) == 32


def test_the_forms_of_guidance_agree_and_references_change_the_views(micro_model):
    def sampled(cfg, references=None):
        options = {"steps": 2, "cfg": cfg, "reference_views": references}
        return sample_views(micro_model, clip(3), CAMERAS, **options).images

    constant = sampled(1.5)
    assert all(torch.equal(constant, sampled(form)) for form in (torch.full((3, 2), 1.5), (1.5, 1.5)))
    assert not torch.equal(constant, sampled(3.0))
    assert not torch.equal(constant, sampled(1.5, torch.rand(2, 32, 32, 3)))


def test_a_callback_may_cancel_and_what_was_kept_is_not_sampled_again(micro_model):
    images, whole, seen = clip(7), Memory(), []
    expected = sample_views(micro_model, images, CAMERAS, steps=3, store=whole)

    def cancel(step, total, _preview):
        seen.append((step, total))
        if step == 5:
            raise KeyboardInterrupt

    store = Memory({0: whole[0]})
    with pytest.raises(KeyboardInterrupt):
        sample_views(micro_model, images, CAMERAS, steps=3, store=store, callback=cancel)
    assert seen == [(3, 9), (4, 9), (5, 9)] and sorted(store) == [0]
    continued = sample_views(micro_model, images, CAMERAS, steps=3, store=store)
    assert torch.equal(continued.latents, expected.latents) and sorted(store) == [0, 1, 2]


HELD = {
    "official": {"windows": "official"},
    "held": {},
    "shortcuts": {"sampler": "dpmpp_2m", "step_cache": 0.1},
    "from others": {"init_views": torch.rand(6, 4, 32, 32, 3), "strength": 0.5},
}


@pytest.mark.parametrize("options", HELD.values(), ids=HELD)
def test_windows_hold_the_frames_of_the_one_before(micro_model, options):
    images, store, cameras = clip(6), Memory(), Cameras((0,) * 5, (0, 90, 180, 45, 270))
    options = {"steps": 4, "windows": "held", "store": store, **options}
    whole = sample_views(micro_model, images, cameras, **options)
    for i, shared in ((0, 2), (1, 4), (3, 2), (4, 4)):  # two passes; two views of frames 0-2, 2-4, 3-5
        held = torch.equal(store[i + 1][:shared], store[i][-shared:])
        assert held == (options["windows"] == "held")
    del store[5], store[4]
    assert torch.equal(sample_views(micro_model, images, cameras, **options).latents, whole.latents)


def test_the_network_sees_known_latents_at_the_noise_level_of_the_others():
    known, noise, x = torch.rand(2, 4, 4, 4), torch.rand(6, 4, 4, 4), torch.rand(6, 4, 4, 4)
    seen = torch.cat([known + 2 * noise[:2], x[2:]])
    denoised = holding(lambda x, _: x.flip(0), known, noise)(x, torch.tensor(2.0))
    assert torch.equal(denoised, torch.cat([known, seen.flip(0)[2:]]))


BAD = {
    "size": ({"clip": clip(3, 34)}, r"divisible by 4; got 34. The nearest sizes are 32 and 36"),
    "not square": ({"clip": torch.rand(3, 32, 64, 3)}, r"square.*got 64 x 32"),
    "no frames": ({"clip": torch.rand(0, 32, 32, 3)}, r"T >= 1; got \[0"),
    "channels": ({"clip": torch.rand(3, 32, 32, 4)}, r"got \[3, 32, 32, 4\]"),
    "dimensions": ({"clip": torch.rand(3, 32, 32)}, r"got \[3, 32, 32\]"),
    "nan": ({"clip": clip(3).index_fill(0, torch.tensor([1]), torch.nan)}, r"in clip; got 3072 NaN"),
    "bytes": ({"clip": clip(3) * 255}, r"0\.\.1 in clip; got .* Divide"),
    "cameras": ({"cameras": Cameras((0,) * 4, (0, 1, 2, 3))}, r"2 novel views per pass; got 3.* as 4 for"),
    "nan noise": ({"noise": torch.full((1, 6, 4, 16, 16), torch.nan)}, r"finite values in noise"),
    "range": ({"cfg": (2.0, 1.0)}, r"minimum <= maximum; got 2 to 1"),
    "three": ({"cfg": (1.0, 2.0, 3.0)}, r"3 values"),
    "reference values": ({"reference_views": torch.full((2, 32, 32, 3), 9.0)}, r"0\.\.1 in reference_views"),
    "references": (
        {"reference_views": torch.rand(3, 32, 32, 3)},
        r"reference_views \[2, 32, 32, 3\]; got \[3",
    ),
    "noise": ({"noise": torch.rand(1, 6, 4, 8, 8)}, r"noise \[1, 6, 4, 16, 16\]; got"),
    "fps": ({"fps": 0.05}, r"frames per second|fps|rate"),
    "masks": (
        {"clip": PreparedClip(torch.rand(3, 32, 32, 3), torch.ones(3, 16, 16), 8.0, None)},
        r"masks \[3, 32, 32\]; got \[3, 16, 16\]",
    ),
    "strength nan": ({"strength": float("nan")}, r"0 < strength <= 1"),
    "strength": ({"strength": 0.5}, r"give init_views"),
    "strength 0": ({"strength": 0.0, "init_views": torch.rand(3, 2, 32, 32, 3)}, r"0 < strength <= 1"),
    "steps": ({"steps": 0}, r"step"),
    "windows": ({"windows": "some"}, r"windows official or held; got 'some'"),
    "table": ({"cfg": torch.ones(2, 2)}, r"\[3, 2\] \(frames, views\); got \[2, 2\]"),
    "cfg": ({"cfg": float("nan")}, r"finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(micro_model, name):
    changes, message = BAD[name]
    arguments = {
        "clip": clip(3),
        "cameras": CAMERAS,
        "steps": 2,
        "callback": lambda *_: pytest.fail("it samples"),
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        sample_views(micro_model, arguments.pop("clip"), arguments.pop("cameras"), **arguments)
