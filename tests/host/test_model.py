"""Our model inside ComfyUI: detection, loaders, the network, guidance, one window, weight types."""

import copy

import pytest
import torch

T, V = 3, 2


def test_the_window_s_frames_fit_what_it_makes(pack, loaded, clip, cameras):
    conditioning = pack["SV4D2Conditioning"].execute
    later, short = conditioning(*loaded, clip, cameras, 2), conditioning(*loaded, clip[:2], cameras, 0)
    assert torch.equal(later[3], clip[2:5]) and torch.equal(short[3], clip[[0, 1, 0]])
    novel = torch.rand(T * V, 32, 32, 3)
    arguments = (short[3], novel, cameras, "frame by frame", 8.0)
    assert pack["SV4D2ImagesToViews"].execute(*arguments)[0].n_frames == T


def test_one_window_of_a_stock_ksampler_equals_the_core(
    host, core, loaded, guided, ksampler, tiny_checkpoint, clip, cameras
):
    latents = ksampler(guided)
    with torch.inference_mode():
        images = host.VAEDecode().decode(loaded[2], {"samples": latents})[0]
    model = core("diffusion.checkpoint").load_checkpoint(tiny_checkpoint)
    expected = core("diffusion.novel_views").sample_views(model, clip[:T], cameras, steps=4, seed=5)
    scaled = latents.unflatten(0, (T, V)) * model.config.scale_factor
    assert (scaled - expected.latents).abs().max() < 1e-3 * expected.latents.abs().max()
    assert (images.unflatten(0, (T, V)) - expected.images[:, 1:]).abs().max() < 1e-3


def test_concatenated_and_split_halves_agree(pack, loaded, ksampler, monkeypatch):
    model = pack["SV4D2Guidance"].execute(loaded[0], "linear", 1.0, 3.0)[0]
    batches = []
    apply_model = model.model.apply_model

    def recorded(x, *args, **kwargs):
        batches.append(len(x))
        return apply_model(x, *args, **kwargs)

    monkeypatch.setattr(model.model, "apply_model", recorded)
    together = ksampler(model)
    assert set(batches) == {2 * T * V}
    batches.clear()
    monkeypatch.setattr(model.model, "memory_required", lambda *_args, **_kw: 1e18)
    apart = ksampler(model)
    assert set(batches) == {T * V}
    assert (together - apart).abs().max() < 1e-4 * together.abs().max()


def test_plain_cfg_1_runs_the_conditional_half_alone(pack, loaded, ksampler):
    constant = pack["SV4D2Guidance"].execute(loaded[0], "constant", 0.0, 1.0)[0]
    plain, guided = ksampler(loaded[0], cfg=1.0), ksampler(constant, cfg=7.0)
    assert (plain - guided).abs().max() < 1e-4 * plain.abs().max()


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "uni_pc", "lcm"])
def test_stock_samplers_run(guided, ksampler, sampler):
    latents = ksampler(guided, sampler=sampler)
    assert latents.shape == (T * V, 4, 16, 16) and latents.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("fp16", 0.02), ("bf16", 0.1), ("fp8_e4m3fn", 0.6), ("fp8_e5m2", 1.0)]
)
def test_weight_types(pack, loaded, ksampler, tiny_checkpoint, host_dirs, dtype, tolerance):
    (host_dirs.models / "diffusion_models" / "unet.safetensors").symlink_to(tiny_checkpoint)
    model = pack["SV4D2UNETLoader"].execute("unet.safetensors", "auto", dtype)[0]
    unet = model.model.diffusion_model
    assert unet.dtype == unet.time_embed[0].weight.dtype != torch.float32
    if dtype.startswith("fp8"):
        assert unet.input_blocks[1][1].time_mixer.mix_factor.dtype == torch.float32
    exact, narrow = ksampler(loaded[0]), ksampler(model)
    assert 0 < (narrow - exact).abs().mean() < tolerance * exact.abs().mean()


def test_registration_is_idempotent(nodes_of):
    import comfy.supported_models

    host_model = nodes_of("host_model")
    before = list(comfy.supported_models.models)
    host_model.register()
    assert comfy.supported_models.models == before
    assert comfy.supported_models.models[0] is host_model.SV4D2


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_detection_of_the_official_keys(pack, core, prefix):
    import comfy.model_detection

    unet = core("diffusion.unet").UNet(core("diffusion.config").UNetConfig(), device="meta")
    keys = {prefix + key: tensor for key, tensor in unet.state_dict().items()}
    assert type(comfy.model_detection.model_config_from_unet(keys, prefix)).__name__ == "SV4D2"
    without = {k: v for k, v in keys.items() if "motion" not in k}
    assert type(comfy.model_detection.model_config_from_unet(without, prefix)).__name__ == "SV3D_p"


def test_wrong_inputs_are_explained(pack, core, loaded, clip, cameras, window, ksampler):
    model = loaded[0]
    longer = {"samples": torch.zeros(T * V + 1, 4, 16, 16)}
    with pytest.raises(ValueError, match=r"Expected latents \[6, 4, 16, 16\].*got \[7, 4, 16, 16\]"):
        ksampler(model, (*window[:2], longer))
    text = [[torch.zeros(1, 77, 48), {}]]
    with pytest.raises(ValueError, match="Connect SV4D2 Conditioning"):
        ksampler(model, (text, text, window[2]))
    other = copy.copy(model)
    other.model = torch.nn.Identity()
    with pytest.raises(ValueError, match="Stable Video 4D 2.0 model in the socket 'model'; got Identity"):
        pack["SV4D2Guidance"].execute(other, "official", 1.0, 2.0)
    with pytest.raises(ValueError, match="2 novel views; got 3"):
        pack["SV4D2Conditioning"].execute(*loaded, clip, core("cameras").Cameras.ring(3), 0)
    with pytest.raises(ValueError, match="start from 0 to 4; got 5"):
        pack["SV4D2Conditioning"].execute(*loaded, clip, cameras, 5)
    with pytest.raises(ValueError, match="minimum <= maximum; got 3 to 2"):
        pack["SV4D2Guidance"].execute(model, "linear", 3.0, 2.0)


class _Unreadable(dict):
    """A state dict of a host to come: whoever looks at its keys fails."""

    def keys(self):
        raise TypeError("keys() takes 2 positional arguments")


def test_overrides_take_what_newer_hosts_may_pass(nodes_of, loaded, window, caplog):
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
    (context, conds), noise = window[0][0], window[2]["samples"]
    known = {"noise": noise, "device": "cpu", "cross_attn": context, **conds}
    for name, cond in model.extra_conds(**known, **more).items():
        assert cond.process_cond(batch_size=len(noise), area=None, **more).size() == cond.size(), name
    on_cpu = model.memory_required([T * V, 4, 72, 72], {}, **more)
    model.diffusion_model.chunk_bytes = 2**32
    assert 0 < on_cpu < model.memory_required([T * V, 4, 72, 72], {}, **more)


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
