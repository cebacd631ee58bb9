"""What the diffusion model is trained on: the samples of a step, and that they are what inference gives."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from sv4d2_core.cameras import Cameras
from sv4d2_core.diffusion.config import ModelConfig
from sv4d2_core.diffusion.sampling import (
    Conditioning,
    camera_vectors,
    guided_denoiser,
    guided_inputs,
    precondition,
)
from sv4d2_core.training.batches import DrawConfig, EncodedScene, ViewsBatch, ViewsLoss, draw_batch

T, V, SIDE = 3, 4, 2
N_FRAMES, N_CAMERAS = 8, 12
DRAW = DrawConfig(n_frames=T, batch=4, drop_conditioning=0.0)
RING = [30.0 * k for k in range(N_CAMERAS)]
TILTED = [float(7 * k % 25) for k in range(N_CAMERAS)]


@pytest.fixture
def config(training_config) -> ModelConfig:
    return replace(training_config, n_frames=T, n_views=V, scale_factor=0.5)


def scene(azimuths: list[float] = RING, elevations: list[float] | None = None, number: int = 1):
    """Return a scene whose latents tell scene, frame and camera, and whose tokens tell frame and camera."""
    f, c = torch.meshgrid(torch.arange(N_FRAMES), torch.arange(N_CAMERAS), indexing="ij")
    latents = torch.stack([f, c, torch.full_like(f, number), torch.ones_like(f)], dim=-1)
    return EncodedScene(
        latents.half()[..., None, None].expand(-1, -1, -1, SIDE, SIDE),
        torch.stack([f, c], dim=-1).half().repeat(1, 1, 8) + 1,
        None,
        tuple(elevations or [0.0] * N_CAMERAS),
        tuple(azimuths),
    )


def drawn(config: ModelConfig, draw: DrawConfig, step: int = 0, of: EncodedScene | None = None, seed=7):
    return draw_batch(lambda _: of or scene(), 1, config, draw, seed, step)


def frames_and_cameras(config: ModelConfig, batch: ViewsBatch) -> tuple[list, list]:
    """Return the frames [B][T] and the cameras [B][V + 1] of a batch, the input's first."""
    clean = batch.clean[..., 0, 0] / config.scale_factor  # [B, T, V, 4]
    cameras = torch.cat([batch.frames[:, :1, 1, 0, 0], clean[:, 0, :, 1]], dim=1)
    assert torch.equal(clean[..., 1], clean[:, :1, :, 1].expand_as(clean[..., 1]))
    assert torch.equal(clean[..., 0], batch.frames[:, :, 0, 0, 0][..., None].expand_as(clean[..., 0]))
    return clean[:, :, 0, 0].int().tolist(), cameras.int().tolist()


def relative(azimuths: list[float], elevations: list[float], order: list[int]) -> Cameras:
    first = order[0]
    return Cameras(
        tuple(elevations[k] - elevations[first] for k in order),
        tuple(azimuths[k] - azimuths[first] for k in order),
    )


def test_a_batch_follows_from_seed_and_step(config):
    first = drawn(config, DRAW, step=5)
    torch.manual_seed(3)
    again = drawn(config, DRAW, step=5)
    assert all(torch.equal(getattr(again, f.name), getattr(first, f.name)) for f in fields(first))
    noises = torch.cat([drawn(config, DRAW, step, seed=s).noise for s in (7, 8) for step in range(5)])
    assert len(noises.flatten(1).unique(dim=0)) == len(noises) == 40


def test_views_from_far_below_and_above_are_one_sample(config):
    wide = [60.0 * (k % 3 - 1) for k in range(N_CAMERAS)]
    batch = drawn(config, DRAW, of=scene(elevations=wide))
    _, cameras = frames_and_cameras(config, batch)
    at_zero = drawn(config, DRAW, of=scene(elevations=[e / 8 for e in wide]))
    assert any(wide[a] != wide[b] for row in cameras for a, b in zip(row, row[1:], strict=False))
    assert batch.vectors.isfinite().all() and not torch.equal(batch.vectors, at_zero.vectors)


def test_scenes_are_drawn_evenly(config):
    batch = draw_batch(lambda k: scene(number=k), 5, config, replace(DRAW, batch=400), 1, 0)
    numbers = (batch.frames[:, 0, 2, 0, 0]).int().bincount()
    assert len(numbers) == 5 and numbers.min() > 50


def test_processes_share_what_one_would_draw(config):
    draw = replace(DRAW, batch=6)
    whole = drawn(config, draw, step=2)
    parts = [draw_batch(lambda _: scene(), 1, config, draw, 7, 2, rank, 3) for rank in range(3)]
    for f in fields(whole):
        shares = [getattr(part, f.name) for part in parts]
        assert torch.equal(torch.stack(shares, dim=1).flatten(0, 1), getattr(whole, f.name))


def test_views_frames_and_tokens_belong_together(config):
    batch = drawn(config, replace(DRAW, batch=50))
    frames, cameras = frames_and_cameras(config, batch)
    assert batch.noise.shape == batch.clean.shape == (50, T, V, 4, SIDE, SIDE)
    expected = torch.tensor([[[f, c[0]] for f in fs] for fs, c in zip(frames, cameras, strict=True)])
    assert torch.equal(batch.tokens[..., :2], expected.float() + 1)
    assert all(len(set(order)) == V + 1 for order in cameras)
    assert {order[0] for order in cameras} == set(range(N_CAMERAS))
    assert torch.equal(batch.clean[..., 3, 0, 0], torch.full((50, T, V), 0.5))


def test_frames_are_evenly_spaced_at_any_pace(config):
    frames, _ = frames_and_cameras(config, drawn(config, replace(DRAW, batch=100)))
    steps = {b - a for fs in frames for a, b in zip(fs, fs[1:], strict=False)}
    assert all(fs[1] - fs[0] == fs[2] - fs[1] for fs in frames) and steps == {1, 2, 3}
    assert {fs[0] for fs in frames} >= {0, 5} and max(fs[-1] for fs in frames) == N_FRAMES - 1
    short = scene()
    short = replace(short, latents=short.latents[:2], tokens=short.tokens[:2])
    assert frames_and_cameras(config, drawn(config, DRAW, of=short))[0] == [[0, 1, 0]] * 4
    single = drawn(config, replace(DRAW, n_frames=1, batch=100))
    assert {fs[0] for fs in frames_and_cameras(config, single)[0]} == set(range(N_FRAMES))


def test_the_official_orbit_where_the_cameras_are_there(config):
    always, never = (replace(DRAW, batch=50, orbit_share=share) for share in (1.0, 0.0))
    orders = frames_and_cameras(config, drawn(config, always))[1]
    turns = {tuple((RING[k] - RING[order[0]]) % 360 for k in order) for order in orders}
    assert turns == {Cameras.official("sv4d2").azimuths_deg}
    assert {order[0] for order in orders} == set(range(N_CAMERAS))
    orders = frames_and_cameras(config, drawn(config, never))[1]
    assert len({tuple((k - order[0]) % N_CAMERAS for k in order) for order in orders}) > 45
    for odd in (scene([0.0, *(31.0 * k for k in range(1, 12))]), scene(elevations=TILTED)):
        orders = frames_and_cameras(config, drawn(config, always, of=odd))[1]
        assert len({tuple((k - order[0]) % N_CAMERAS for k in order) for order in orders}) > 45
        assert all(len(set(order)) == V + 1 for order in orders)


def test_the_network_is_told_the_cameras_as_in_inference(config):
    azimuths = [17.0 * k for k in range(N_CAMERAS)]
    batch = drawn(config, DRAW, of=scene(azimuths, TILTED))
    for order, vectors in zip(frames_and_cameras(config, batch)[1], batch.vectors, strict=True):
        cameras = relative(azimuths, TILTED, order)
        assert torch.allclose(vectors, camera_vectors(cameras, config.vector_dims)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("mask_all", "mask_view"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.2), (0.1, 0.7)]
)
def test_shares_of_missing_references(config, mask_all, mask_view):
    batch = drawn(config, replace(DRAW, batch=400, mask_all=mask_all, mask_view=mask_view))
    given = batch.references.flatten(2).any(-1)  # [B, V]
    assert torch.equal(batch.references[given], (batch.clean[:, 0] / config.scale_factor)[given])
    assert given.float().mean() == pytest.approx((1 - mask_all) * (1 - mask_view), abs=0.06)
    none = mask_all + (1 - mask_all) * mask_view**V
    assert (~given.any(1)).float().mean() == pytest.approx(none, abs=0.08)


def test_references_come_from_the_encoder_of_the_views(config):
    plain = scene()
    own = replace(plain, references=plain.latents + 100)
    draw = replace(DRAW, mask_all=0.0, mask_view=0.0)
    a, b = drawn(config, draw, of=plain), drawn(config, draw, of=own)
    assert torch.equal(b.references, a.references + 100) and torch.equal(b.clean, a.clean)
    assert torch.equal(b.frames, a.frames)


def test_noise_levels(config):
    logs = drawn(config, replace(DRAW, batch=400, p_mean=1.0, p_std=0.5)).sigmas.log()
    assert logs.mean() == pytest.approx(1.0, abs=0.1) and logs.std() == pytest.approx(0.5, abs=0.06)


def test_settings_out_of_range_are_refused():
    shares = {"mask_all": 1.1, "orbit_share": -0.1, "mask_view": float("nan"), "drop_conditioning": 2.0}
    for name, value in {**shares, "p_std": 0.0, "batch": 0, "n_frames": 0}.items():
        with pytest.raises(ValueError, match=rf"Expected {name} [<>]=? [01]; got {value}"):
            replace(DRAW, **{name: value})


class Oracle(nn.Module):
    """A network that knows the clean latents [N, 4, h, w] and keeps what it is told."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.clean = nn.Parameter(clean.clone())
        self.told: dict[str, Tensor] = {}

    def prepare(self, context: Tensor, references: Tensor) -> Tensor:
        self.told |= {"context": context, "references": references}
        return context

    def forward(self, x: Tensor, timesteps: Tensor, vectors: Tensor, window: Tensor) -> Tensor:
        """Return what makes the preconditioned output the clean latents, whatever made the noise."""
        self.told |= {"x": x, "timesteps": timesteps, "vectors": vectors}
        b, t, v = len(window), window.shape[1], len(vectors) // len(window)
        sigma = (4 * timesteps.view(b, 1, v)).exp().expand(b, t, v).reshape(-1, 1, 1, 1)
        scale = precondition(sigma)
        clean = self.clean.repeat(len(x) // len(self.clean), 1, 1, 1)
        return (clean - scale.c_skip * x[:, :4] / scale.c_in) / scale.c_out


def test_the_loss_of_the_true_denoiser_is_zero(config):
    draw = replace(DRAW, batch=8, drop_conditioning=0.5, p_std=1.0)
    batch = drawn(config, draw)
    oracle = Oracle(batch.clean.flatten(0, 2))
    assert ViewsLoss(oracle)(batch) < 1e-8
    oracle.clean.data += 0.1
    # The weight of an error of the denoised latents is 1 / c_out^2.
    expected = 0.01 * (1 + 1 / batch.sigmas.square()).mean()
    assert ViewsLoss(oracle)(batch).item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("dropped", [False, True])
def test_training_tells_the_network_what_inference_tells_it(config, close, dropped):
    draw = replace(DRAW, batch=1, mask_all=0.0, mask_view=0.3)
    for step in range(4):
        whole = drawn(config, draw, step)
        order = frames_and_cameras(config, whole)[1][0]
        vectors = camera_vectors(relative(RING, [0.0] * N_CAMERAS, order), config.vector_dims)
        conditioning = Conditioning(whole.tokens[0], whole.frames[0], whole.references[0], *vectors)
        inputs = guided_inputs(conditioning, torch.device("cpu"), torch.float32)
        batch = drawn(config, replace(draw, drop_conditioning=float(dropped)), step)
        sigma, clean, noise = batch.sigmas[0], batch.clean.flatten(0, 2), batch.noise.flatten(0, 2)
        trained, used = Oracle(clean), Oracle(clean)
        ViewsLoss(trained)(batch)
        denoise = guided_denoiser(used, inputs, torch.ones(T, V))
        close(denoise(clean + sigma * noise, sigma).detach(), clean, 1e-4)
        # The unconditional half comes first.
        for name, told in trained.told.items():
            close(told.detach(), used.told[name].chunk(2)[0 if dropped else 1].detach(), 1e-6)
