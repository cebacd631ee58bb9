"""The sampler node against the core's own pipeline, and what it does with finished windows and bad input."""

import dataclasses

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sv4d2_recorded_schemas import defaults

T, V = 3, 2
DEFAULTS = defaults("SV4D2Sampler", seed=5, steps=3)


def sample(pack, loaded, clip, cameras, **changes):
    with torch.inference_mode():
        return pack["SV4D2Sampler"].execute(*loaded, clip, cameras, **{**DEFAULTS, **changes}).args


def close(actual, expected):
    return float((actual - expected).abs().max()) < 1e-3 * float(expected.max() - expected.min())


@pytest.mark.parametrize(("equal", "windows"), [(True, "official"), (False, "held")])
def test_the_node_equals_the_core(
    pack, core, nodes_of, tiny_checkpoint, clip, cameras, host_dirs, tmp_path, equal, windows
):
    with safe_open(tiny_checkpoint, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        metadata = {k: v for k, v in file.metadata().items() if k != "sv4d2.shared_encoder"}
    # The encoders of frames and views.
    frames, of_views = (f"conditioner.embedders.{i}.encoder." for i in (1, 4))
    for key in [key for key in tensors if key.startswith(frames)]:
        tensors[of_views + key.removeprefix(frames)] = tensors[key] * (1 if equal else 1.1)
    path = tmp_path / "encoders.safetensors"
    save_file(tensors, path, metadata)
    loaded = nodes_of("load_model").load_checkpoint(str(path), "auto", "default")
    assert (loaded[2].sv4d2_views is None) == equal
    views, images, latent = sample(pack, loaded, clip, cameras, windows=windows)
    model = core("diffusion.checkpoint").load_checkpoint(path)
    sample_views = core("diffusion.novel_views").sample_views
    expected = sample_views(model, clip, cameras, steps=3, seed=5, windows=windows)
    assert close(views.latents, expected.latents) and close(views.images, expected.images)
    assert images.shape == (V * 7, 32, 32, 3) and torch.equal(images[7], views.images[0, 2])
    with torch.inference_mode():
        decoded = loaded[2].decode(latent["samples"][7:8])
    assert close(decoded[0], views.images[0, 2])
    if not equal:
        loaded[2].sv4d2_views = None
        views = sample(pack, loaded, clip, cameras, windows=windows)[0]
        assert not close(views.latents, expected.latents)


def test_tokens_are_the_core_s_and_not_the_host_s(host, core, nodes_of, loaded, tiny_checkpoint):
    import comfy.clip_vision

    model = core("diffusion.checkpoint").load_checkpoint(tiny_checkpoint)
    backend = nodes_of("backend").HostBackend(*loaded, model.config)
    images = torch.rand(2, 100, 100, 3, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours = backend.embed(images)
        pixels = comfy.clip_vision.clip_preprocess(images, size=56, crop=False)
        stock = loaded[1].model(pixel_values=pixels)[2]
    expected = model.embed(images)
    # The host keeps this model in half precision; its own preparation of pixels adds far more.
    scale = float(expected.abs().max())
    assert float((ours - expected).abs().max()) < 1e-3 * scale
    assert float((stock - expected).abs().max()) > 1e-2 * scale


def test_given_views_several_passes_references_and_mask(pack, core, loaded, clip, host_dirs, tiny_checkpoint):
    cameras = core("cameras").Cameras.ring(2 * V)
    first = sample(pack, loaded, clip, cameras, steps=1)[0]
    config = loaded[0].model.config_for(V)
    assert first.settings["guidance"] == [config.guidance, config.cfg_min, config.cfg_max]
    mask = torch.zeros(7, 32, 32)
    mask[:, 4:20, 4:20] = 1
    given = {"reference_views": first.images[0, 1:], "guidance": "triangle", "cfg_min": 1.0, "cfg_max": 3.0}
    given |= {"windows": "held", "mask": mask}
    views = sample(pack, loaded, clip, cameras, init_views=first, denoise=0.6, **given)[0]
    model = core("diffusion.checkpoint").load_checkpoint(tiny_checkpoint)
    table = core("diffusion.sampling").guidance_table("triangle", T, V, 1.0, 3.0)
    start = dict(reference_views=first.images[0, 1:], init_views=first.images[:, 1:], strength=0.6)
    start |= {"windows": "held"}
    sample_views = core("diffusion.novel_views").sample_views
    expected = sample_views(model, clip, cameras, steps=3, seed=5, cfg=table, **start)
    assert close(views.images, expected.images) and torch.equal(views.masks[:, 0], mask)
    assert views.settings["windows"] == "held" and views.settings["sampler"] == ["euler", "karras"]
    assert views.settings["strength"] == 0.6
    assert views.settings["guidance"] == ["triangle", 1.0, 3.0] and views.settings["weights"] == "float32"


def test_guidance_of_the_model_is_used(pack, loaded, clip, cameras, host_dirs):
    model = pack["SV4D2Guidance"].execute(loaded[0], "constant", 1.0, 4.0)[0]
    through_model = sample(pack, (model, *loaded[1:]), clip, cameras)[0]
    through_widgets = sample(pack, loaded, clip, cameras, guidance="constant", cfg_max=4.0)[0]
    default = sample(pack, loaded, clip, cameras)[0]
    assert torch.equal(through_model.latents, through_widgets.latents)
    assert not torch.equal(through_model.latents, default.latents)


def test_guidance_of_another_node_is_refused(pack, loaded, clip, cameras, host_dirs):
    model = pack["SV4D2Guidance"].execute(loaded[0], "constant", 1.0, 4.0)[0]
    model.set_model_sampler_cfg_function(lambda args: args["cond"])
    for guidance in ("model default", "constant"):
        with pytest.raises(ValueError, match="that of another node, such as RescaleCFG"):
            sample(pack, (model, *loaded[1:]), clip, cameras, guidance=guidance)
    with pytest.raises(ValueError, match="that of another node, such as RescaleCFG"):
        pack["SV4D2Guidance"].execute(model, "constant", 1.0, 4.0)


@pytest.fixture
def counted(loaded, monkeypatch):
    """Return the list of forward passes that the model makes."""
    calls = []
    apply_model = loaded[0].model.apply_model

    def recorded(*args, **kwargs):
        calls.append(1)
        return apply_model(*args, **kwargs)

    monkeypatch.setattr(loaded[0].model, "apply_model", recorded)
    return calls


def test_cancel_inside_a_pass_keeps_finished_windows(
    host, pack, loaded, clip, cameras, host_dirs, monkeypatch, counted
):
    import comfy.model_management as management

    whole = sample(pack, loaded, clip, cameras, seed=77)[0]
    assert len(counted) == 3 * 3
    counted.clear()
    layers = []

    def cancel_in_the_second_window():
        layers.append(1)
        if len(counted) == 5 and len(layers) % 7 == 0:
            management.interrupt_current_processing()
        management.throw_exception_if_processing_interrupted()

    unet = loaded[0].model.diffusion_model
    with monkeypatch.context() as patch:
        patch.setattr(unet, "before_layer", cancel_in_the_second_window)
        with pytest.raises(management.InterruptProcessingException):
            sample(pack, loaded, clip, cameras, seed=78)
    assert len(counted) == 5
    counted.clear()
    resumed = sample(pack, loaded, clip, cameras, seed=78)[0]
    assert len(counted) == 2 * 3
    counted.clear()
    again = sample(pack, loaded, clip, cameras, seed=78)[0]
    assert not counted and torch.equal(again.images, resumed.images)
    assert not torch.equal(again.images, whole.images)


def test_finished_windows_belong_to_their_settings(pack, core, loaded, clip, cameras, host_dirs, counted):
    import comfy.model_patcher
    import comfy.sd

    # One window of two steps: that a change samples again shows in its first pass.
    clip = clip[:T]
    sample(pack, loaded, clip, cameras, steps=2)
    changes = [
        {"seed": 6},
        {"steps": 1},
        {"scheduler": "exponential"},
        {"sampler_name": "heun"},
        {"guidance": "constant"},
        {"reference_views": clip[:V]},
    ]
    name = "diffusion_model.input_blocks.1.1.proj_in"
    width = loaded[0].model.state_dict()[f"{name}.weight"].shape[0]
    lora = {f"{name}.lora_up.weight": torch.ones(width, 1), f"{name}.lora_down.weight": torch.ones(1, width)}
    patched = comfy.sd.load_lora_for_models(loaded[0], None, lora, 1.0, 0.0)[0]
    jobs = [(loaded, clip, cameras, change) for change in changes]
    bypassed = loaded[0].clone()
    bypassed.set_injections("bypass_lora", [comfy.model_patcher.PatcherInjection(print, print)])
    hooked = loaded[0].clone()
    hooked.set_attachments("extra", object())
    jobs += [((model, *loaded[1:]), clip, cameras, {}) for model in (patched, bypassed, hooked)]
    jobs += [
        (loaded, clip.flip(0), cameras, {}),
        (loaded, clip, core("cameras").Cameras.ring(V, 20.0), {}),
    ]
    for models, frames, orbit, change in jobs:
        counted.clear()
        sample(pack, models, frames, orbit, **{"steps": 2, **change})
        assert counted, change
    counted.clear()
    sample(pack, loaded, clip, dataclasses.replace(cameras, radius=3.0), steps=2, fps=24.0)
    assert not counted


def test_largest_seed_and_a_full_disk_end_no_job(
    pack, core, loaded, clip, cameras, host_dirs, monkeypatch, caplog
):
    first = sample(pack, loaded, clip, cameras, seed=2**64 - 1, steps=1)[0]
    assert first.images.isfinite().all()

    def full(*_args):
        raise OSError(28, "No space left")

    monkeypatch.setattr(core("diffusion.window_store"), "write_whole", full)
    again = sample(pack, loaded, clip, cameras, seed=3, steps=1)[0]
    assert again.images.isfinite().all() and "No space left" in caplog.text


def test_progress_covers_all_windows_and_shows_all_views(pack, loaded, clip, cameras, host_dirs, monkeypatch):
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_kw: seen.append(args))
    sample(pack, loaded, clip, cameras, seed=99)
    assert [args[:2] for args in seen] == [(i + 1, 9) for i in range(9)]
    kind, picture, _ = seen[0][2]
    assert kind == "JPEG" and picture.size == (T * 16, V * 16)


def test_images_of_one_frame_are_a_copy(pack, loaded, clip, cameras, host_dirs):
    views, images, _ = sample(pack, loaded, clip[:1], cameras)
    kept = views.images.clone()
    with torch.inference_mode():
        images.zero_()
    assert torch.equal(views.images, kept)


def test_wrong_inputs_are_explained(pack, core, loaded, clip, cameras, host_dirs, monkeypatch):
    import comfy.model_management as management

    views = sample(pack, loaded, clip, cameras)[0]
    with pytest.raises(ValueError, match="cameras of this job .*; got .* SV4D2 Load Views gives them"):
        other = core("cameras").Cameras.ring(V, 10.0)
        sample(pack, loaded, clip, other, init_views=views, denoise=0.5)
    with pytest.raises(ValueError, match="embeddings of width 48"):
        sample(pack, (loaded[0], type("Other", (), {"model": None})(), loaded[2]), clip, cameras)
    with pytest.raises(ValueError, match="finite numbers in the mask"):
        sample(pack, loaded, clip, cameras, mask=torch.full((7, 32, 32), torch.nan))
    monkeypatch.setattr(management, "get_free_memory", lambda *_args: 1e5)
    with pytest.raises(ValueError, match="7 frames of 32 x 32 from 2 views need about .* Lower frames"):
        sample(pack, loaded, clip, cameras)


def test_views_of_a_stock_sampler_carry_the_model_s_name(pack, core, loaded, clip, cameras):
    pack_views = pack["SV4D2ImagesToViews"].execute
    arguments = (clip[:3], clip[:6], cameras, "frame by frame", 8.0)
    plain, named = pack_views(*arguments)[0], pack_views(*arguments, model=loaded[0])[0]
    assert (plain.variant, plain.trained) == ("", True)
    assert (named.variant, named.trained) == ("sv4d2", False)
