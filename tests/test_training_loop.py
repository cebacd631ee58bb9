"""The training loop: it learns, goes on where it was stopped, and says when it cannot."""

import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from sv4d2_core.diffusion.blocks import ResBlock
from sv4d2_core.diffusion.config import UNetConfig
from sv4d2_core.diffusion.model import Model
from sv4d2_core.diffusion.unet import UNet
from sv4d2_core.stored import read_tensors
from sv4d2_core.training.batches import DrawConfig, ViewsBatch, ViewsLoss
from sv4d2_core.training.loop import LoopConfig, Progress, process_group, train
from sv4d2_core.training.recipe import DTYPES, Phase, Recipe, initialise, prepare_for_training, train_phase
from sv4d2_core.training.weights import Weights, add_lora

MAPS = Path("/proc/self/maps")  # files in memory; Linux alone has it
T, V, SIDE = 2, 2, 4
STEPS = 20
FAST = LoopConfig(STEPS, learning_rate=1e-2, warm_up=2, average=0.5)


class Stopped(Exception):
    """What a callback of these tests raises."""


@pytest.fixture
def config(training_config) -> UNetConfig:
    return training_config.unet


def views_loss(config: UNetConfig, seed: int = 0) -> ViewsLoss:
    torch.manual_seed(seed)
    return ViewsLoss(UNet(config))


def views_batch(config: UNetConfig, n: int = 2) -> ViewsBatch:
    """Return smooth views of ``n`` samples under fixed noise of fixed levels."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    latents = drawn(n, T, V, 4, 1, 1).expand(-1, -1, -1, -1, SIDE, SIDE)
    return ViewsBatch(
        clean=latents,
        noise=drawn(n, T, V, 4, SIDE, SIDE),
        sigmas=torch.linspace(0.5, 2.0, n),
        tokens=drawn(n, T, config.context_dim),
        frames=drawn(n, T, 4, SIDE, SIDE),
        references=latents[:, 0],
        vectors=drawn(n, V, config.vector_dim),
    )


class Line(nn.Module):
    """A matrix and a bias whose loss is their distance to what the batch asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.full((2, 3), 2.0))
        self.bias = nn.Parameter(torch.full((3,), 2.0))

    def forward(self, wanted: float) -> Tensor:
        return (self.matrix - wanted).square().mean() + (self.bias - wanted).square().mean()


def keeping(path: Path, step: int, stop: bool = False):
    """Return a callback that saves the state of a step and, if asked, stops there."""

    def callback(progress: Progress) -> None:
        if progress.step == step:
            progress.save(path)
            if stop:
                raise Stopped

    return callback


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_loss_falls_and_a_resumed_training_is_the_same(tmp_path, config, dtype):
    batch = views_batch(config)

    def run(network: ViewsLoss, callback, state: Path | None = None) -> list[float]:
        return train(network, lambda _: batch, FAST, dtype=DTYPES[dtype], state=state, callback=callback)

    whole, resumed = views_loss(config), views_loss(config, seed=5)
    losses = run(whole, keeping(tmp_path / "whole", STEPS))
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
    with pytest.raises(Stopped):
        run(views_loss(config), keeping(tmp_path / "half", STEPS // 2, stop=True))
    keep = keeping(tmp_path / "resumed", STEPS)

    def keep_and_look(progress) -> None:
        # Windows would not replace a file that is mapped.
        assert not MAPS.exists() or str(tmp_path / "half") not in MAPS.read_text()
        keep(progress)

    assert run(resumed, keep_and_look, tmp_path / "half") == losses
    # Weights, averages, moments and losses.
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()
    ends = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert all(tensor.dtype == torch.float32 for tensor in ends[0].values())


def test_bf16_computes_in_bf16_and_keeps_float32_weights(tmp_path, config):
    network, batch, seen = views_loss(config), views_batch(config), []

    def callback(progress: Progress) -> None:
        seen.append({p.dtype for p in network.parameters()})
        progress.save(tmp_path / "state")

    train(network, lambda _: batch, replace(FAST, steps=2), dtype=torch.bfloat16, callback=callback)
    assert seen == [{torch.bfloat16}] * 2
    tensors, _ = read_tensors(tmp_path / "state", "sv4d2.training")
    weight = tensors["weight.unet.input_blocks.0.0.weight"]
    assert weight.dtype == torch.float32 and not torch.equal(weight, weight.bfloat16().float())


def test_processes_wait_for_one_that_draws_and_writes_for_long(monkeypatch):
    """The first process alone draws samples and writes states; PyTorch's patience is ten minutes on GPUs."""
    joined: dict = {}
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **options: joined.update(options))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with process_group(torch.device("cpu")):
        pass
    assert joined["timeout"] >= timedelta(hours=6)


def test_what_is_no_number_stops_the_training_before_it_harms():
    for bad in (math.nan, math.inf):
        message = rf"diverged: in step 3 the loss is {bad}\. .*lower learning rate \(it is 0.01\)"
        with pytest.raises(ValueError, match=message):
            train(Line(), lambda step, bad=bad: bad if step == 3 else 1.0, FAST)
    network = Line()
    network.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(ValueError, match="in step 0 the gradient's length is (inf|nan)"):
        train(network, lambda _: 1.0, FAST)
    assert torch.equal(network.bias, torch.full((3,), 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_trained_stay_exactly(dtype):
    network = Line()
    network.matrix.requires_grad_(False).fill_(1 / 3)
    train(network, lambda _: 1.0, replace(FAST, steps=2), dtype=dtype)
    assert torch.equal(network.matrix, torch.full((2, 3), 1 / 3))
    assert network.bias.dtype == torch.float32 and not torch.equal(network.bias, torch.full((3,), 2.0))


def test_states_of_other_trainings_are_refused(tmp_path, config):
    def run(network: nn.Module, fingerprint: str, callback=None) -> list[float]:
        state = tmp_path / "state"
        return train(network, lambda _: 1.0, FAST, fingerprint=fingerprint, state=state, callback=callback)

    with pytest.raises(Stopped):
        run(Line(), "a", keeping(tmp_path / "state", 2, stop=True))
    with pytest.raises(ValueError, match="training with other data, settings or number of processes"):
        run(Line(), "b")
    with pytest.raises(ValueError, match="Expected 475 tensors of this kind in .*state"):
        run(views_loss(config), "a")
    assert len(run(Line(), "a")) == STEPS


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    loop = LoopConfig(steps=1000, learning_rate=1.0, warm_up=10)
    rates = [loop.rate(step, step / 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1) and rates[4] == pytest.approx(0.5, abs=1e-3)
    assert rates.index(max(rates)) == 9 and max(rates) == pytest.approx(1.0, abs=1e-3)
    assert all(a > b for a, b in zip(rates[9:], rates[10:], strict=False))
    assert rates[500] == pytest.approx(0.51) and rates[-1] == pytest.approx(0.02, abs=1e-4)
    assert loop.rate(1000, 1) == pytest.approx(1.0 / 50)


def test_the_result_is_the_average_which_forgets_the_start():
    network, expected, inside = Line(), Line().bias.detach(), []

    def callback(progress: Progress) -> None:
        nonlocal expected
        decay = min(0.5, progress.step / (9 + progress.step))
        expected = decay * expected + (1 - decay) * network.bias.detach()
        now = network.bias.detach().clone()
        with progress.averaged():
            inside.append(network.bias.detach().clone())
        assert torch.allclose(inside[-1], expected) and torch.equal(network.bias, now)

    train(network, lambda _: 1.0, LoopConfig(STEPS, 0.1, warm_up=1, average=0.5), callback=callback)
    assert torch.equal(network.bias, inside[-1]) and torch.allclose(inside[0], torch.full((3,), 1.91))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_when_a_block_on_the_average_fails(dtype):
    weights = Weights(network := Line(), dtype, 0.0, 0.5)
    network(0.0).backward()
    weights.step(0, 0.1, 1.0)
    before = {name: tensor.clone() for name, tensor in weights.tensors().items()}
    now = network.bias.detach().clone()
    with pytest.raises(Stopped), weights.averaged():
        assert not torch.equal(network.bias, now)
        raise Stopped
    assert torch.equal(network.bias, now)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.tensors().items())


def test_matrices_alone_decay():
    network = Line()
    train(network, lambda _: 2.0, LoopConfig(1, learning_rate=0.1, warm_up=0, weight_decay=0.5, average=0.0))
    assert torch.allclose(network.matrix, torch.full((2, 3), 2 * (1 - 0.1 * 0.5)))
    assert torch.equal(network.bias, torch.full((3,), 2.0))


def gradients(network: ViewsLoss, batch: ViewsBatch) -> dict[str, Tensor]:
    network.zero_grad(set_to_none=True)
    network(batch).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rank", [0, 2])
def test_gradient_checkpointing_gives_the_same_gradients(config, close, rank):
    network, batch, passes = views_loss(config), views_batch(config), []
    if rank:
        add_lora(network.unet, rank)
    for module in network.modules():
        if isinstance(module, ResBlock):
            module.register_forward_pre_hook(lambda *_: passes.append(1))
    expected, once = gradients(network, batch), len(passes)
    network.unet.recomputes = True
    actual = gradients(network, batch)
    assert len(passes) - once == 2 * once
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        close(actual[name], gradient, 1e-6)
    with torch.no_grad():
        network(batch)
    assert len(passes) == 4 * once


@pytest.mark.parametrize("view_mixing", ["joint_3d", "view", "released_3d"])
def test_a_batch_in_training_equals_its_elements_in_inference(config, close, view_mixing):
    unet = views_loss(replace(config, view_mixing=view_mixing)).unet
    batch, generator = views_batch(config, 3), torch.Generator().manual_seed(2)
    x = torch.randn(3, T * V, 8, SIDE, SIDE, generator=generator)
    times = torch.randn(3, generator=generator)

    def output(elements: slice) -> Tensor:
        window = unet.prepare(batch.tokens[elements], batch.references[elements].flatten(0, 1))
        steps = times[elements].repeat_interleave(V)
        return unet(x[elements].flatten(0, 1), steps, batch.vectors[elements].flatten(0, 1), window)

    together = output(slice(3))
    assert together.requires_grad
    with torch.no_grad():
        apart = torch.cat([output(slice(k, k + 1)) for k in range(3)])
    close(together.detach(), apart, 1e-5)


@pytest.mark.parametrize("n_frames", [1, 2])
@pytest.mark.parametrize("rank", [0, 2])
def test_what_is_trained_is_what_gets_a_gradient(config, n_frames, rank):
    """Several processes would wait for ever for a gradient that never comes."""
    network = views_loss(config)
    network.requires_grad_(False)
    if rank:
        add_lora(network.unet, rank)
    prepare_for_training(network.unet, mixes_frames=n_frames > 1, recomputes=False)
    batch = views_batch(config)
    if n_frames == 1:
        first = {name: getattr(batch, name)[:, :1] for name in ("clean", "noise", "tokens", "frames")}
        batch = replace(batch, **first)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert gradients(network, batch).keys() == trained
    assert any(".motion_blocks." in name for name in trained) == (n_frames > 1)
    assert all(".lora_" in name for name in trained) == (rank > 0)


def test_an_untrained_unet_predicts_nothing_and_mixes_no_frames(config, close):
    network, batch = views_loss(config), views_batch(config)
    initialise(network.unet)
    sigma = batch.sigmas.view(-1, 1, 1, 1, 1, 1)
    target = (batch.noise - sigma * batch.clean) / (sigma.square() + 1).sqrt()
    with torch.no_grad():
        close(network(batch), target.square().mean(), 1e-5)
        torch.nn.init.eye_(network.unet.middle_block[1].proj_out.weight)
        torch.nn.init.dirac_(network.unet.out[2].weight)
        mixed = network(batch)
        network.unet.set_frame_mixing(False)
        close(network(batch), mixed, 1e-5)


def test_two_pictures_in_bf16_on_a_cpu_are_refused(training_config):
    config = replace(training_config, n_views=2)
    model = Model(config, UNet(config.unet), *([None] * 4))
    phase = Phase("static", LoopConfig(steps=1), DrawConfig(n_frames=1, batch=1))
    with pytest.raises(ValueError, match="fp32 for samples of 2 pictures"):
        train_phase(phase, Recipe(model=config), model, None)
