"""Low-rank adaptation: what it changes, what is trained, its files, and merging."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sv4d2_core.diffusion.config import UNetConfig
from sv4d2_core.diffusion.unet import UNet
from sv4d2_core.training.weights import (
    add_lora,
    load_lora_state,
    lora_parameters,
    lora_state,
    merge_lora,
    merged_state,
)

torch.set_num_threads(1)

T, V, RANK, ALPHA = 2, 2, 3, 6.0
CONFIG = UNetConfig(
    view_mixing="joint_3d",
    base=32,
    multipliers=(1, 2),
    res_blocks=1,
    attention_levels=1,
    head_channels=16,
    context_dim=48,
    vector_dim=128,
)
# Per attention block: four layers of each of three self-attentions, two of each of three one-token ones.
LAYERS_PER_BLOCK = 3 * 4 + 3 * 2
BLOCKS = 4


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG)


@pytest.fixture
def adapted(unet: UNet) -> UNet:
    """Return a UNet whose low-rank parts are as far as long training would take them."""
    add_lora(unet, RANK, ALPHA)
    shake(lora_parameters(unet))
    return unet


def shake(parameters: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    shapes = ((T * V, 8, 8, 8), (V, 128), (1, T, 48), (V, 4, 8, 8))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def predict(unet: UNet, dtype: torch.dtype = torch.float32) -> Tensor:
    x, y, context, references = inputs(dtype)
    return unet(x, torch.full((V,), 0.3), y, unet.prepare(context, references))


@torch.no_grad()
def output(unet: UNet, dtype: torch.dtype = torch.float32) -> Tensor:
    return predict(unet, dtype)


def gradients(unet: UNet, run: Callable[[], Tensor]) -> dict[str, Tensor]:
    unet.zero_grad(set_to_none=True)
    run().square().mean().backward()
    return {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}


def test_nothing_changes_at_first(unet):
    before = output(unet)
    trained = add_lora(unet, RANK, ALPHA)
    assert torch.equal(output(unet), before)
    assert len(trained) == 2 * LAYERS_PER_BLOCK * BLOCKS
    shake(trained)
    assert (output(unet) - before).abs().max() > 1e-2


def test_queries_and_keys_of_one_token_attention_stay_plain(unet):
    add_lora(unet, RANK, ALPHA)
    names = {name.split(".lora_")[0] for name, p in unet.named_parameters() if p.requires_grad}
    ends = {".".join(name.split(".")[-2 - name.endswith("to_out.0") :]) for name in names}
    self_attention = {f"attn1.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    assert ends == self_attention | {"attn2.to_v", "attn2.to_out.0"}
    assert {name.split(".")[-4 - name.endswith("to_out.0")] for name in names} == {
        "transformer_blocks",
        "time_mix_blocks",
        "motion_blocks",
    }


def test_projections_are_adapted_on_request(unet):
    before = output(unet)
    assert len(add_lora(unet, RANK, ALPHA, projections=True)) == 2 * (LAYERS_PER_BLOCK + 2) * BLOCKS
    assert torch.equal(output(unet), before)
    assert sum(".proj_" in name and p.requires_grad for name, p in unet.named_parameters()) == 4 * BLOCKS


def test_only_the_low_rank_parts_learn_and_all_of_them_do(unet):
    frozen = {name: p.detach().clone() for name, p in unet.named_parameters()}
    trained = add_lora(unet, RANK, ALPHA)
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(2):  # the first step moves lora_up alone, as that starts at zero
        got = gradients(unet, lambda: predict(unet))
        assert got.keys() == {name for name, _ in unet.named_parameters() if ".lora_" in name}
        optimiser.step()
    assert all(bool(gradient.any()) for gradient in got.values())
    for name, value in frozen.items():
        assert torch.equal(unet.get_parameter(name), value)


def test_the_start_is_seeded(unet):
    twins = [copy.deepcopy(unet) for _ in range(3)]
    states = []
    for seed, twin in zip((4, 4, 5), twins, strict=True):
        torch.manual_seed(len(states))
        add_lora(twin, RANK, ALPHA, seed=seed)
        states.append(lora_state(twin))
    key = next(key for key in states[0] if key.endswith("lora_down.weight"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0][key], states[2][key])


def test_merged_weights_do_the_same(adapted, close):
    expected, plain = output(adapted), UNet(CONFIG)
    plain.load_state_dict(merged_state(adapted))
    close(output(plain), expected, 1e-5)
    assert torch.equal(output(adapted), expected)
    merge_lora(adapted)
    close(output(adapted), expected, 1e-5)
    assert adapted.state_dict().keys() == plain.state_dict().keys()
    assert not any("LoRA" in type(module).__name__ for module in adapted.modules())
    add_lora(adapted, RANK, ALPHA)
    close(output(adapted), expected, 1e-5)


def test_files_go_round(adapted, tmp_path):
    expected, base = output(adapted), copy.deepcopy(adapted)
    save_file(lora_state(adapted), tmp_path / "lora.safetensors")
    state = load_file(tmp_path / "lora.safetensors")
    torch.manual_seed(0)
    plain = UNet(CONFIG)
    trained = load_lora_state(plain, state)
    assert torch.equal(output(plain), expected)
    assert len(trained) == 2 * LAYERS_PER_BLOCK * BLOCKS
    assert {id(p) for p in trained} == {id(p) for p in plain.parameters() if p.requires_grad}
    shake(lora_parameters(base)[::-1])
    before = lora_parameters(base)
    after = load_lora_state(base, state)
    assert torch.equal(output(base), expected)
    assert all(old is new for old, new in zip(before, after, strict=True))


def test_a_written_state_is_a_copy(adapted):
    state = lora_state(adapted)
    before = {key: value.clone() for key, value in state.items()}
    shake(lora_parameters(adapted)[::-1])
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_alpha_scales_the_change(unet):
    add_lora(unet, RANK, ALPHA)
    shake(lora_parameters(unet))
    layer = "input_blocks.1.1.motion_blocks.0.attn1.to_q"
    plain, state = unet.get_parameter(f"{layer}.weight"), lora_state(unet)
    up, down = (state[f"diffusion_model.{layer}.lora_{end}.weight"] for end in ("up", "down"))
    change = merged_state(unet)[f"{layer}.weight"] - plain
    assert torch.allclose(change, ALPHA / RANK * up @ down, atol=1e-6)


@pytest.mark.parametrize("name", ["bf16 copy", "bf16 base", "autocast"])
def test_bf16(adapted, name):
    expected = output(adapted)
    if name == "bf16 copy":
        actual = output(copy.deepcopy(adapted).bfloat16(), torch.bfloat16)
    elif name == "bf16 base":
        trained = set(lora_parameters(adapted))
        for parameter in set(adapted.parameters()) - trained:
            parameter.data = parameter.data.bfloat16()
        assert gradients(adapted, lambda: predict(adapted, torch.bfloat16)).keys()
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in trained)
        actual = output(adapted, torch.bfloat16)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            actual = output(adapted)
    assert (actual.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_gradient_checkpointing_and_functional_calls(adapted, close):
    expected = gradients(adapted, lambda: predict(adapted))
    rerun = gradients(adapted, lambda: checkpoint(lambda: predict(adapted), use_reentrant=False))
    wrapped = Wrapped(adapted)
    values = {name: p.detach().clone().requires_grad_() for name, p in wrapped.named_parameters()}
    torch.func.functional_call(wrapped, values, ()).square().mean().backward()
    assert expected.keys() == rerun.keys()
    for name, gradient in expected.items():
        close(rerun[name], gradient, 1e-6)
        close(values[f"unet.{name}"].grad, gradient, 1e-6)


class Wrapped(nn.Module):
    """One call for conditioning and prediction."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self) -> Tensor:
        return predict(self.unet)


def test_distributed_training_finds_every_gradient(adapted, tmp_path, close):
    """DistributedDataParallel refuses a second pass when trained parameters took no part in the first."""
    expected = gradients(adapted, lambda: predict(adapted))
    torch.distributed.init_process_group(
        "gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(Wrapped(adapted))
        for _ in range(2):
            actual = gradients(adapted, parallel)
    finally:
        torch.distributed.destroy_process_group()
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        close(actual[name], gradient, 1e-6)


def test_wrong_ranks_and_second_parts_are_refused(unet):
    for rank, alpha in ((0, 1.0), (4, 0.0), (4, float("nan"))):
        with pytest.raises(ValueError, match=rf"rank 1 or more and alpha above 0; got {rank} and {alpha:g}"):
            add_lora(unet, rank, alpha)
    add_lora(unet, RANK, ALPHA)
    with pytest.raises(ValueError, match=rf"got one with {LAYERS_PER_BLOCK * BLOCKS} adapted layers"):
        add_lora(unet, RANK, ALPHA)


LAYER = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"


def rename(state):
    for end in ("lora_down.weight", "lora_up.weight", "alpha"):
        state[f"{LAYER}x.{end}"] = state.pop(f"{LAYER}.{end}")


def remove_layer(state):
    for end in ("lora_down.weight", "lora_up.weight", "alpha"):
        del state[f"{LAYER}.{end}"]


WRONG = {
    "a key missing": (lambda s: s.pop(f"{LAYER}.alpha"), rf"1 keys are missing or unknown, .*{LAYER}\.alpha"),
    "a key too many": (lambda s: s.update(odd=torch.zeros(1)), r"1 keys are .* the first is odd"),
    "another layer": (rename, r"no linear layer input_blocks\.1\.1\.transformer_blocks\.0\.attn1\.to_qx"),
    "another width": (
        lambda s: s.update({f"{LAYER}.lora_down.weight": torch.zeros(RANK, 40)}),
        rf"\[32, rank\] and \[rank, 32\] for .*to_q; got \[32, {RANK}\] and \[{RANK}, 40\]",
    ),
    "alpha": (lambda s: s.update({f"{LAYER}.alpha": torch.ones(2)}), r"one number as alpha .* got \[2\]"),
    "empty": (dict.clear, r"the file has 0 layers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_of_other_models_are_refused_and_change_nothing(unet, case):
    edit, message = WRONG[case]
    twin = copy.deepcopy(unet)
    add_lora(twin, RANK, ALPHA)
    state = lora_state(twin)
    edit(state)
    before = unet.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        load_lora_state(unet, state)
    assert unet.state_dict().keys() == before


def test_parts_that_a_file_lacks_are_named(unet):
    add_lora(unet, RANK, ALPHA)
    state = lora_state(unet)
    remove_layer(state)
    with pytest.raises(ValueError, match=r"lacks 1 of the UNet's, .*transformer_blocks\.0\.attn1\.to_q"):
        load_lora_state(unet, state)
