"""Low-rank adaptation: what it changes, what is trained, its files, and merging."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sv4d2_core.diffusion.unet import UNet
from sv4d2_core.training.weights import add_lora, lora_state, merge_lora
from tests.host import media

T, V, RANK = 2, 2, 3
CONFIG = replace(media.micro_config().unet, view_mixing="joint_3d")
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
    shake(add_lora(unet, RANK))
    return unet


def shake(parameters: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def output(unet: UNet, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    shapes = ((T * V, 8, 8, 8), (V, 128), (1, T, 48), (V, 4, 8, 8))
    x, y, context, references = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return unet(x, torch.full((V,), 0.3), y, unet.prepare(context, references))


def test_nothing_changes_at_first(unet):
    before = output(unet)
    trained = add_lora(unet, RANK)
    assert torch.equal(output(unet), before)
    assert len(trained) == 2 * LAYERS_PER_BLOCK * BLOCKS
    shake(trained)
    assert (output(unet) - before).abs().max() > 1e-2


def test_queries_and_keys_of_one_token_attention_stay_plain(unet):
    add_lora(unet, RANK)
    names = {name.split(".lora_")[0] for name, p in unet.named_parameters() if p.requires_grad}
    ends = {".".join(name.split(".")[-2 - name.endswith("to_out.0") :]) for name in names}
    self_attention = {f"attn1.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    assert ends == self_attention | {"attn2.to_v", "attn2.to_out.0"}
    assert {name.split(".")[-4 - name.endswith("to_out.0")] for name in names} == {
        "transformer_blocks",
        "time_mix_blocks",
        "motion_blocks",
    }


def test_the_start_is_seeded(unet):
    states = []
    for seed in (4, 4, 5):
        torch.manual_seed(len(states))
        add_lora(twin := copy.deepcopy(unet), RANK, seed=seed)
        states.append(lora_state(twin))
    key = next(key for key in states[0] if key.endswith("lora_down.weight"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0][key], states[2][key])


def test_merged_weights_do_the_same(adapted, close):
    expected = output(adapted)
    merge_lora(adapted)
    close(output(adapted), expected, 1e-5)
    assert adapted.state_dict().keys() == UNet(CONFIG).state_dict().keys()
    assert not any("LoRA" in type(module).__name__ for module in adapted.modules())
    add_lora(adapted, RANK)
    close(output(adapted), expected, 1e-5)


def test_a_file_holds_copies_of_what_changes_the_weights(adapted):
    layer = "input_blocks.1.1.motion_blocks.0.attn1.to_q"
    state = lora_state(adapted)
    assert len(state) == 3 * LAYERS_PER_BLOCK * BLOCKS
    adapted.get_parameter(f"{layer}.lora_down.weight").data.zero_()
    down = state[f"diffusion_model.{layer}.lora_down.weight"]
    # Loaders multiply by alpha / rank.
    assert down.any() and state[f"diffusion_model.{layer}.alpha"] == RANK == len(down)


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16(adapted, autocast):
    expected = output(adapted)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = output(adapted) if autocast else output(adapted.bfloat16(), torch.bfloat16)
    assert (actual.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
