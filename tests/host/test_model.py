"""Our model inside ComfyUI: detection, loaders, the network, guidance, one window, weight types."""

from __future__ import annotations

import copy

import pytest
import torch

T, V = 3, 2


@pytest.fixture(scope="module")
def core_model(core, tiny_checkpoint):
    return core("diffusion.checkpoint").load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def clip(core):
    return torch.rand(7, 32, 32, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def cameras(core):
    return core("cameras").Cameras.ring(V)


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(patcher, inputs, timestep):
    """Return the host model's prediction for concatenated conditions."""
    import comfy.model_management

    comfy.model_management.load_model_gpu(patcher)
    with torch.inference_mode():
        return patcher.model.apply_model(inputs["x"], timestep, **inputs["conds"])


def test_unet_in_comfyui_equals_the_core(loaded, core_model, core):
    patcher = loaded[0]
    x, frames = seeded(2 * T * V, 4, 16, 16), seeded(2 * T, 4, 16, 16, seed=1)
    context, vectors = seeded(2, T, 48, seed=2), seeded(2 * V, 128, seed=3)
    references = seeded(2 * V, 4, 16, 16, seed=4)
    sigma = torch.tensor(3.0)
    config = core_model.config
    with torch.inference_mode():
        window = core_model.unet.prepare(context, references)
        scale = core("diffusion.sampling").precondition(sigma)
        out = core_model.unet(
            torch.cat([x * scale.c_in, frames.repeat_interleave(V, 0)], dim=1),
            scale.c_noise.expand(2 * V),
            vectors,
            window,
        )
        expected = out * scale.c_out + x * scale.c_skip
    conds = {
        "frames": frames,
        "c_crossattn": context,
        "y": vectors,
        "references": references,
        "view_mixing": config.unet.view_mixing,
    }
    actual = run(patcher, {"x": x, "conds": conds}, sigma.expand(len(x)))
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


def window_of(core, pack, loaded, clip, cameras, start=0):
    model, clip_vision, vae = loaded
    return pack["SV4D2Conditioning"].execute(model, clip_vision, vae, clip, cameras, start).args


def test_the_window_s_frames_fit_what_it_makes(pack, core, loaded, clip, cameras):
    later = window_of(core, pack, loaded, clip, cameras, start=2)[3]
    short = window_of(core, pack, loaded, clip[:2], cameras)
    assert torch.equal(later, clip[2:5]) and torch.equal(short[3], clip[[0, 1, 0]])
    novel = torch.rand(T * V, 32, 32, 3)
    arguments = (short[3], novel, cameras, "frame by frame", 8.0)
    assert pack["SV4D2ImagesToViews"].execute(*arguments)[0].n_frames == T


def ksampler(host, model, window, seed=5, steps=4, cfg=1.0, sampler="euler"):
    positive, negative, latent = window[:3]
    return host.KSampler().sample(model, seed, steps, cfg, sampler, "karras", positive, negative, latent)[0]


def test_one_window_of_a_stock_ksampler_equals_the_core(host, core, pack, loaded, core_model, clip, cameras):
    model, _, vae = loaded
    guided = pack["SV4D2Guidance"].execute(model, "official", 1.0, 2.0)[0]
    with torch.inference_mode():
        latent = ksampler(host, guided, window_of(core, pack, loaded, clip, cameras))
        images = host.VAEDecode().decode(vae, latent)[0]
    expected = core("diffusion.novel_views").sample_views(core_model, clip[:T], cameras, steps=4, seed=5)
    scaled = latent["samples"].unflatten(0, (T, V)) * core_model.config.scale_factor
    assert (scaled - expected.latents).abs().max() < 1e-3 * expected.latents.abs().max()
    assert (images.unflatten(0, (T, V)) - expected.images[:, 1:]).abs().max() < 1e-3


def test_concatenated_and_split_halves_agree(host, core, pack, loaded, clip, cameras, monkeypatch):
    model = pack["SV4D2Guidance"].execute(loaded[0], "linear", 1.0, 3.0)[0]
    window = window_of(core, pack, loaded, clip, cameras)
    batches = []
    apply_model = model.model.apply_model

    def recorded(x, *args, **kwargs):
        batches.append(len(x))
        return apply_model(x, *args, **kwargs)

    monkeypatch.setattr(model.model, "apply_model", recorded)
    with torch.inference_mode():
        together = ksampler(host, model, window)["samples"]
        assert set(batches) == {2 * T * V}
        batches.clear()
        monkeypatch.setattr(model.model, "memory_required", lambda *_args, **_kw: 1e18)
        apart = ksampler(host, model, window)["samples"]
        assert set(batches) == {T * V}
    assert (together - apart).abs().max() < 1e-4 * together.abs().max()


def test_plain_cfg_1_runs_the_conditional_half_alone(host, core, pack, loaded, clip, cameras):
    window = window_of(core, pack, loaded, clip, cameras)
    constant = pack["SV4D2Guidance"].execute(loaded[0], "constant", 0.0, 1.0)[0]
    with torch.inference_mode():
        plain = ksampler(host, loaded[0], window, cfg=1.0)["samples"]
        guided = ksampler(host, constant, window, cfg=7.0)["samples"]
    assert (plain - guided).abs().max() < 1e-4 * plain.abs().max()


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "uni_pc", "lcm"])
def test_stock_samplers_run(host, core, pack, loaded, clip, cameras, sampler):
    model = pack["SV4D2Guidance"].execute(loaded[0], "official", 1.0, 2.0)[0]
    with torch.inference_mode():
        latent = ksampler(host, model, window_of(core, pack, loaded, clip, cameras), sampler=sampler)
    assert latent["samples"].shape == (T * V, 4, 16, 16) and latent["samples"].isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("fp16", 0.02), ("bf16", 0.1), ("fp8_e4m3fn", 0.6), ("fp8_e5m2", 1.0)]
)
def test_weight_types(host, core, pack, loaded, clip, cameras, tiny_checkpoint, host_dirs, dtype, tolerance):
    (host_dirs.models / "diffusion_models" / "unet.safetensors").symlink_to(tiny_checkpoint)
    model = pack["SV4D2UNETLoader"].execute("unet.safetensors", "auto", dtype)[0]
    unet = model.model.diffusion_model
    assert unet.dtype == unet.time_embed[0].weight.dtype != torch.float32
    if dtype.startswith("fp8"):
        assert unet.input_blocks[1][1].time_mixer.mix_factor.dtype == torch.float32
    window = window_of(core, pack, loaded, clip, cameras)
    with torch.inference_mode():
        exact = ksampler(host, loaded[0], window)["samples"]
        narrow = ksampler(host, model, window)["samples"]
    assert 0 < (narrow - exact).abs().mean() < tolerance * exact.abs().mean()


def test_registration_is_idempotent(nodes_of):
    import comfy.supported_models

    host_model = nodes_of("host_model")
    before = list(comfy.supported_models.models)
    host_model.register()
    assert comfy.supported_models.models == before
    assert comfy.supported_models.models[0] is host_model.SV4D2


def official_keys(core, prefix):
    unet = core("diffusion.unet").UNet(core("diffusion.config").UNetConfig(), device="meta")
    return {prefix + key: tensor for key, tensor in unet.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_detection_of_the_official_keys(host, pack, core, prefix):
    import comfy.model_detection

    keys = official_keys(core, prefix)
    assert type(comfy.model_detection.model_config_from_unet(keys, prefix)).__name__ == "SV4D2"
    without = {k: v for k, v in keys.items() if "motion" not in k}
    assert type(comfy.model_detection.model_config_from_unet(without, prefix)).__name__ == "SV3D_p"


def test_lora_of_the_host_changes_the_prediction(host, core, pack, loaded, clip, cameras):
    import comfy.sd

    key = "diffusion_model.input_blocks.1.1.proj_in.weight"
    width = loaded[0].model.state_dict()[key].shape[0]
    name = "diffusion_model.input_blocks.1.1.proj_in"
    lora = {f"{name}.lora_up.weight": seeded(width, 4), f"{name}.lora_down.weight": seeded(4, width, seed=1)}
    patched, _ = comfy.sd.load_lora_for_models(loaded[0], None, lora, 1.0, 0.0)
    window = window_of(core, pack, loaded, clip, cameras)
    with torch.inference_mode():
        plain = ksampler(host, loaded[0], window)["samples"]
        changed = ksampler(host, patched, window)["samples"]
        again = ksampler(host, loaded[0], window)["samples"]
    assert (plain - changed).abs().max() > 1e-3 and torch.equal(plain, again)


def test_wrong_inputs_are_explained(host, core, pack, loaded, clip, cameras):
    model, clip_vision, vae = loaded
    positive, negative, latent, _ = window_of(core, pack, loaded, clip, cameras)
    with torch.inference_mode():
        longer = {"samples": torch.zeros(T * V + 1, 4, 16, 16)}
        with pytest.raises(ValueError, match=r"Expected latents \[6, 4, 16, 16\].*got \[7, 4, 16, 16\]"):
            ksampler(host, model, (positive, negative, longer))
        text = [[torch.zeros(1, 77, 48), {}]]
        with pytest.raises(ValueError, match="Connect SV4D2 Conditioning"):
            ksampler(host, model, (text, text, latent))
    other = copy.copy(model)
    other.model = torch.nn.Identity()
    with pytest.raises(ValueError, match="Stable Video 4D 2.0 model in the socket 'model'; got Identity"):
        pack["SV4D2Guidance"].execute(other, "official", 1.0, 2.0)
    with pytest.raises(ValueError, match="2 novel views; got 3"):
        pack["SV4D2Conditioning"].execute(model, clip_vision, vae, clip, core("cameras").Cameras.ring(3), 0)
    with pytest.raises(ValueError, match="start from 0 to 4; got 5"):
        pack["SV4D2Conditioning"].execute(model, clip_vision, vae, clip, cameras, 5)
    with pytest.raises(ValueError, match="minimum <= maximum; got 3 to 2"):
        pack["SV4D2Guidance"].execute(model, "linear", 3.0, 2.0)


class _Unreadable(dict):
    """A state dict of a host to come: whoever looks at its keys fails."""

    def keys(self):
        raise TypeError("keys() takes 2 positional arguments")


def test_overrides_take_what_newer_hosts_may_pass(host, core, nodes_of, loaded, pack, clip, cameras, caplog):
    host_model = nodes_of("host_model")
    entry, more = host_model.SV4D2, {"unet_key_prefix": "", "something_new": object()}
    model = loaded[0].model
    state_dict = {f"model.{key}": tensor for key, tensor in model.diffusion_model.state_dict().items()}
    assert entry.matches({}, state_dict, "model.", **more) and not entry.matches({}, {}, **more)
    assert not entry.matches({}, None, **more)
    with caplog.at_level("WARNING"):
        assert not entry.matches({}, _Unreadable(), **more) and not entry.matches({}, _Unreadable(), **more)
    assert caplog.text.count("left to ComfyUI's own detection") == 1

    config = entry({})
    with host_model.declared(model.sv4d2_config):
        built = config.get_model(state_dict, "model.", None, **more)
    assert built.sv4d2_config == model.sv4d2_config
    assert config.process_vae_state_dict({}, **more) == {}
    window = window_of(core, pack, loaded, clip, cameras)
    (context, conds), noise = window[0][0], window[2]["samples"]
    known = {"noise": noise, "device": "cpu", "cross_attn": context, **conds}
    for name, cond in model.extra_conds(**known, **more).items():
        assert cond.process_cond(batch_size=len(noise), area=None, **more).size() == cond.size(), name
    assert model.memory_required([T * V, 4, 8, 8], {}, **more) > 0


def test_a_registration_that_fails_changes_nothing(host, nodes_of, monkeypatch, caplog):
    import asyncio

    import comfy.supported_models

    extension = nodes_of("host_model").__package__
    module = __import__("sys").modules[extension]

    def register():
        raise AttributeError("this host has no such list")

    before = list(comfy.supported_models.models)
    monkeypatch.setattr(module, "register", register)
    with caplog.at_level("ERROR"):
        listed = asyncio.run(module.SV4D2Extension().get_node_list())
    assert len(listed) >= 20 and comfy.supported_models.models == before
    assert caplog.text.count("register failed in this ComfyUI; the rest of the pack works") == 1
