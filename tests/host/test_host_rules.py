"""What a guest owes its host: its previews, its kinds of errors, its loaders, its other nodes."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch

TINY = Path(__file__).parents[2] / "sv4d2_core/weights/sv4d2_tiny.safetensors"


@pytest.fixture
def tiny(host_dirs):
    """Return the name under which stock loaders find the shipped model."""
    (host_dirs.models / "checkpoints" / TINY.name).symlink_to(TINY)
    return TINY.name


def test_previews_follow_the_users_method_and_size(host, nodes_of, monkeypatch):
    from comfy.cli_args import LatentPreviewMethod, args
    from PIL import Image

    live_preview, drawn = nodes_of("preview").live_preview, []

    def draw():
        drawn.append(1)
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    assert live_preview(draw) is None and not drawn
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    monkeypatch.setattr(args, "preview_size", 96)
    kind, picture, side = live_preview(draw)
    assert (kind, picture.size, side) == ("JPEG", (8, 8), 96)
    assert live_preview(draw, full_size=True)[2] is None and live_preview(lambda: None) is None


def test_memory_that_ran_out_is_told_to_the_host_in_its_own_words(host, nodes_of, monkeypatch):
    import comfy.model_management as management

    module = nodes_of("host")
    errors = [RuntimeError("MPS backend out of memory"), management.OOM_EXCEPTION("CUDA out of memory")]

    class Accelerator(RuntimeError):
        """Stands for what only a newer host's own test recognises."""

    monkeypatch.setattr(management, "is_oom", lambda e: isinstance(e, Accelerator), raising=False)
    for error in (*errors, Accelerator("2")):
        with pytest.raises(management.OOM_EXCEPTION, match="Lower size"), module.memory_advice("Lower size."):
            raise error
    with pytest.raises(KeyError), module.memory_advice("Lower size."):
        raise KeyError("size")


def test_pictures_on_nodes_come_back_after_a_reload(pack):
    from comfy_api.latest import io

    known = "has_intermediate_output" in io.Schema.__dataclass_fields__
    for name in ("SV4D2PrepareClip", "SV4D2CameraOrbit", "SV4D2Refine4D"):
        schema = pack[name].GET_SCHEMA()
        assert not schema.is_output_node and getattr(schema, "has_intermediate_output", False) == known, name


def test_five_widgets_are_shown_and_the_others_on_demand(pack):
    expected = {
        "SV4D2Sampler": {"seed", "steps", "sampler_name", "guidance", "denoise"},
        "SV4D2Refine4D": {"backend", "steps", "stages", "size", "trust"},
        "SV4D2CameraOrbit": {"preset", "n_views", "elevations_deg", "azimuths_deg", "input_elevation_deg"},
    }
    from comfy_api.latest import io

    for name, shown in expected.items():
        inputs = pack[name].GET_SCHEMA().inputs
        widgets = [x for x in inputs if isinstance(x, io.WidgetInput) and not x.force_input]
        # Older hosts know no advanced inputs and show all.
        known = hasattr(inputs[0], "advanced")
        assert {x.id for x in widgets if not (known and x.advanced)} == (
            shown if known else {x.id for x in widgets}
        )
        assert shown <= {x.id for x in widgets}


def test_vae_and_image_tower_can_be_loaded_again(host, loaded):
    for socket in (loaded[1], loaded[2]):
        patcher = socket.patcher
        if not hasattr(patcher, "cached_patcher_init"):
            pytest.skip("This ComfyUI loads nothing again: there is no cached_patcher_init")
        load, arguments = patcher.cached_patcher_init
        again = load(*arguments)
        assert again is not patcher
        ours = patcher.model.state_dict()
        assert all(torch.equal(x, ours[key]) for key, x in again.model.state_dict().items())
    from comfy_extras.nodes_multigpu import SelectVAEDeviceNode

    assert SelectVAEDeviceNode.execute(loaded[2], "default")[0].sv4d2_views is loaded[2].sv4d2_views


def test_context_windows_say_what_to_remove(loaded, ksampler):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    inputs = [x.id for x in ContextWindowsManualNode.GET_SCHEMA().inputs]
    widgets = {"context_length": 3, "context_overlap": 0, "context_stride": 1, "closed_loop": False}
    widgets |= {"freenoise": False}
    given = {"context_schedule": "standard_static", "fuse_method": "pyramid", "dim": 0, **widgets}
    kept = {key: value for key, value in given.items() if key in inputs}
    model = ContextWindowsManualNode.execute(loaded[0], **kept)[0]
    with pytest.raises(ValueError, match="at once. Remove the Context Windows node"):
        ksampler(model, cfg=2.0)


def test_replaced_attention_says_what_to_remove(loaded, ksampler):
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    execute = getattr(SelfAttentionGuidance, "execute", None) or SelfAttentionGuidance().patch
    model = execute(loaded[0], 0.5, 2.0)[0]
    with pytest.raises(ValueError, match="whose attn1 another node changes.* Remove that node"):
        ksampler(model, cfg=2.0)


def test_patched_layers_say_what_to_remove(loaded, ksampler):
    patched = loaded[0].clone()
    patched.set_model_output_block_patch(lambda h, hsp, _options: (h, hsp))
    with pytest.raises(ValueError, match="whose output_block_patch another node changes.*FreeU"):
        ksampler(patched, cfg=2.0)


def test_an_area_says_what_to_remove(host, loaded, window, ksampler):
    limited = host.ConditioningSetArea().append(window[0], 64, 64, 0, 0, 1.0)[0]
    with pytest.raises(ValueError, match="cannot be limited to an area. Remove the Set Area node"):
        ksampler(loaded[0], (limited, *window[1:3]), cfg=2.0)


@pytest.mark.parametrize("axes", [3, 4])
def test_the_opacity_of_a_video_may_have_an_axis_for_its_channel(pack, host_dirs, axes):
    from comfy_api.latest import InputImpl, Types

    images = torch.rand(2, 48, 40, 3)
    alpha = torch.zeros(2, 48, 40)
    alpha[:, 12:30, 10:30] = 1

    class Video(InputImpl.VideoFromComponents):
        def get_components(self):
            components = Types.VideoComponents(images=images, frame_rate=Fraction(8))
            components.alpha = alpha if axes == 3 else alpha[..., None]
            return components

    video = Video(Types.VideoComponents(images=images, frame_rate=Fraction(8)))
    made = pack["SV4D2PrepareClip"].execute(video, 21, 0, 1, 8.0, 64, "global", 0.9, True)
    share = made[1].mean()
    assert made[0].shape == (2, 64, 64, 3) and 0.4 < share < 0.7


def test_stock_loaders_load_the_shipped_model(host, pack, core, tiny, caplog):
    from comfy_extras.nodes_video_model import ImageOnlyCheckpointLoader

    ours, clip_vision, vae = pack["SV4D2CheckpointLoader"].execute(tiny, "auto", "default").args
    expected = ours.model.sv4d2_config
    with caplog.at_level("WARNING"):
        stock = host.CheckpointLoaderSimple().load_checkpoint(tiny)
    assert "SV4D2 Load Checkpoint brings the VAE" in caplog.text
    assert "missing" not in caplog.text and "unexpected" not in caplog.text
    for model in (stock[0], ImageOnlyCheckpointLoader().load_checkpoint(tiny)[0]):
        assert model.model.config_for(8).unet == expected.unet and model.model.variant_known
        weights = ours.model.diffusion_model.state_dict()
        found = model.model.diffusion_model.state_dict()
        metadata = (json.loads(bytes(x.pop("sv4d2_metadata").tolist())) for x in (weights, found))
        assert next(metadata) == next(metadata)
        assert [key for key in weights if not torch.equal(weights[key], found[key])] == []
    clip, cameras = torch.rand(2, 32, 32, 3), core("cameras").Cameras.official("sv4d2")
    widgets = [5, 1, "euler", "karras", "model default", 1.0, 2.0, 1.0, 8.0]
    sampler = pack["SV4D2Sampler"]
    with torch.inference_mode():
        views = [
            sampler.execute(model, clip_vision, vae, clip, cameras, *widgets)[0] for model in (ours, stock[0])
        ]
        assert torch.equal(views[0].images, views[1].images)
        model = core("diffusion.checkpoint").load_checkpoint(TINY)
        assert model.config.trained and views[0].trained
        expected = core("diffusion.novel_views").sample_views(model, clip, cameras, steps=1, seed=5)
        assert (views[0].latents - expected.latents).abs().max() < 1e-3 * expected.latents.abs().max()
        with pytest.raises(ValueError, match="socket 'vae'; got none"):
            sampler.execute(stock[0], clip_vision, stock[2], clip, cameras, *widgets)


def test_a_model_that_the_host_saves_keeps_its_sizes(host, pack, core, tiny, host_dirs, tmp_path):
    import comfy.sd

    ours = pack["SV4D2CheckpointLoader"].execute(tiny, "auto", "default").args[0]
    saved = host_dirs.models / "checkpoints" / "saved.safetensors"
    comfy.sd.save_checkpoint(str(saved), ours)
    read_header, layout = core("diffusion.safetensors_stream").read_header, core("diffusion.layout")
    expected = layout.read_unet_only(read_header(TINY))[0]
    assert layout.read_unet_only(read_header(saved))[0].unet == expected.unet
    again = comfy.sd.load_diffusion_model(str(saved))
    assert again.model.sv4d2_config.n_frames == expected.n_frames and again.model.variant_known
