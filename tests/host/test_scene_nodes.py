"""The nodes that turn views into a 4D scene, take pictures of it, save and load it."""

import json

import pytest
import torch
from sv4d2_recorded_schemas import defaults

T, V, SIZE = 3, 2, 32
REFINE = defaults("SV4D2Refine4D", steps=10, elevation="given", strength=0.5, sampling_steps=2, seed=3)
RENDER = dict(mode="views", frames=0, size=SIZE, turns=1.0)


@pytest.fixture(scope="module")
def views(core):
    """Return views as the host hands them on: tensors of inference mode."""
    with torch.inference_mode():
        creature = core("world.body").make_creature(5)
        return core("world.render").render_views(creature, core("cameras").Cameras.ring(V), T, SIZE, 8.0)


@pytest.fixture
def refine(pack, views, host_dirs):
    """Return a function that runs the refiner as the host does: ``refine(steps=5)``."""

    def run(views=views, **changes):
        with torch.inference_mode():
            node = pack["SV4D2Refine4D"].PREPARE_CLASS_CLONE({})
            return node.execute(views, **{**REFINE, **changes})

    return run


@pytest.fixture
def render(pack):
    """Return a function that takes pictures of a scene as the host does."""

    def run(scene, **changes):
        with torch.inference_mode():
            return pack["SV4D2Render4D"].execute(scene, **{**RENDER, **changes}).args

    return run


@pytest.fixture
def bar(host, monkeypatch):
    """Return the list of what the progress bar is told."""
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_kw: seen.append(args))
    return seen


@pytest.fixture
def cancel_at(host, monkeypatch):
    """Return a function that makes the user cancel when the bar stands at a value."""
    import comfy.model_management
    import comfy.utils

    def arrange(wanted):
        def hook(value, *_args, **_kw):
            if wanted(value):
                comfy.model_management.interrupt_current_processing()

        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)

    return arrange


class TestRefineAndRender:
    def test_views_become_a_scene_that_is_seen_from_anywhere(self, refine, render, views, core):
        output = refine(steps=40)
        scene, fit, report = output.args
        images, masks, depth, normals, shown, fps = render(scene)
        assert images.shape == ((V + 1) * T, SIZE, SIZE, 3) and masks.shape == images.shape[:3]
        assert torch.equal(images[T], shown.images[0, 1]) and torch.equal(masks[1], shown.masks[1, 0])
        assert shown.cameras == scene.cameras and shown.frame_times() == views.frame_times()
        assert fps == views.fps
        error = (shown.images - views.images).abs().mean()
        assert error < 0.6 * (1 - views.images).abs().mean()
        for maps in (depth, normals, fit):
            assert maps.shape[-1] == 3 and 0 <= float(maps.min()) and float(maps.max()) <= 1
        assert float(depth[masks < 0.01].max()) < 0.02
        assert "3 frames of 3 views at 32 px with dynerf: 40 steps" in report
        assert "unexplained" in report and "0.0 degrees, as given" in report and "Stage 2" not in report
        assert output.ui["text"] == report.split("\n") and output.ui["images"]

    def test_times_and_cameras_may_be_others(self, refine, render, core):
        scene = refine(steps=6)[0]
        images, _, _, _, shown, fps = render(scene, frames=5, cameras=core("cameras").Cameras.ring(4, 20.0))
        assert images.shape[0] == 5 * 5 and shown.n_views == 4
        assert shown.frame_times() == (0.0, 0.25, 0.5, 0.75, 1.0) and fps == 16.0
        images, masks, depth, normals, blocked, fps = render(scene, mode="turntable", frames=6, turns=-1.0)
        assert len(images) == len(masks) == len(depth) == len(normals) == 6 and fps == 8.0
        assert "A turntable has no views" in blocked.message
        first = render(scene, frames=2)[0]
        assert torch.allclose(images[0], first[0], atol=1e-5)

    def test_pictures_of_one_time_are_copies(self, refine, render):
        images, masks, _, _, views, _ = render(refine()[0], frames=1)
        kept = views.images.clone(), views.masks.clone()
        with torch.inference_mode():
            images.zero_(), masks.zero_()
        assert torch.equal(views.images, kept[0]) and torch.equal(views.masks, kept[1])

    @pytest.mark.parametrize(("pace", "frames", "rate"), [(0.1, 1, 0.1), (800.0, 5, 1000.0)])
    def test_few_or_many_pictures_keep_to_the_rates_of_views(self, refine, render, pace, frames, rate):
        scene = refine(steps=1)[0]
        scene.fps = pace
        shown, fps = render(scene, frames=frames)[-2:]
        assert shown.fps == fps == rate

    def test_normals_return_as_they_went(self, nodes_of, views, core):
        packed = core("scene.targets").packed_normals
        given = torch.nn.functional.normalize(torch.randn(T, V + 1, SIZE, SIZE, 3), dim=-1)
        images = packed(given, views.cameras).movedim(0, 1).flatten(0, 1)
        back = nodes_of("refine").normals_of_images(images, views)
        axes = views.cameras.c2w_opengl()[:, :3, :3].float()
        world = torch.einsum("tvhwj,vij->tvhwi", back, axes)
        assert torch.allclose(world, given, atol=1e-5)
        # A surface that faces the input camera, which looks along -z, is blue.
        facing = packed(torch.tensor([0.0, 0, 1]).expand(1, V + 1, 1, 1, 3), views.cameras)
        assert torch.allclose(facing[0, 0, 0, 0], torch.tensor([0.5, 0.5, 1.0]))

    def test_given_normals_size_elevation_and_crop_are_used(self, refine, render, views, core):
        plain = refine(steps=8)[0]
        flat = torch.full(((V + 1) * T, 8, 8, 3), 0.5)
        flat[..., 2] = 1.0
        bent = refine(steps=8, normals=flat)[0]
        assert not torch.equal(render(plain)[0], render(bent)[0])
        small, _, report = refine(steps=5, size=16, elevation_deg=12.0).args
        assert small.cameras.input_elevation_deg == 12.0 and "at 16 px" in report and "12.0 degrees" in report
        guessed = refine(steps=5, elevation="auto")[2]
        assert "silhouettes" in guessed
        centers = [[20.0 + 5 * t, 20.0] for t in range(T)]
        crop = core("video.crop").CropPath
        fields = crop.__dataclass_fields__
        values = {"centers": centers, "side": 20.0, "size": SIZE, "centering": "smooth", "object_ratio": 0.9}
        crop_json = json.dumps({name: values.get(name, 40) for name in fields})
        moved = refine(steps=5, crop=crop_json)[0]
        assert moved.path is not None and plain.path is None
        assert render(moved)[4].cameras.fov_deg > plain.cameras.fov_deg

    def test_a_model_makes_the_views_anew(self, refine, loaded):
        model, clip_vision, vae = loaded
        report = refine(steps=8, model=model, clip_vision=clip_vision, vae=vae)[2]
        assert "made the views anew 2 times with sv4d2" in report and "UNTRAINED" in report
        assert "8 steps" in report
        assert "no model" in refine(steps=8, stages="2")[2]
        assert "Stage 2" not in refine(steps=4, stages="1", model=model)[2]

    def test_passes_are_shown_one_by_one(self, refine, loaded, core, nodes_of, monkeypatch):
        shown, draw = [], nodes_of("refine").latent_picture
        monkeypatch.setattr(nodes_of("refine"), "latent_picture", lambda *x: shown.append(draw(*x)))
        creature = core("world.body").make_creature(5)
        views = core("world.render").render_views(creature, core("cameras").Cameras.ring(4), T, SIZE, 8.0)
        model, clip_vision, vae = loaded
        refine(views, steps=4, model=model, clip_vision=clip_vision, vae=vae)
        assert {picture.size for picture in shown} == {(T * SIZE // 2, V * SIZE // 2)}


class TestProgress:
    def test_every_step_is_told_and_the_scene_is_shown(self, refine, bar):
        refine(steps=12)
        assert [args[0] for args in bar] == [*range(1, 13), 12] and {args[1] for args in bar} == {12}
        kind, picture, _ = bar[0][2]
        assert kind == "JPEG" and picture.size == (3 * SIZE, 2 * SIZE)
        assert sum(args[2] is not None for args in bar) < 7
        # The picture of the fit stays on the node.
        assert bar[-1][2][1].width == 1200

    @pytest.mark.parametrize("pixel_seconds", [1e-7, 1e-5, 1e-3])
    def test_previews_take_a_tenth_of_the_time(self, nodes_of, core, views, monkeypatch, pixel_seconds):
        module, now, spent, sizes = nodes_of("preview"), [0.0], [0.0], []

        class Clock:
            perf_counter = staticmethod(lambda: now[0])

        class Scene:
            def render(self, _cameras, _times, size, *, views, callback, normals):
                seconds = len(views) * size * size * pixel_seconds
                now[0] += seconds
                spent[0] += seconds
                sizes.append(size)
                return core("scene.scene").SceneRendering(
                    torch.rand(1, len(views), size, size, 3), *[torch.empty(0)] * 3
                )

        monkeypatch.setattr(module, "time", Clock)
        preview = module.ScenePreview(views.resized(256))
        for _ in range(4000):
            preview.picture(Scene())
            now[0] += 0.05
        # The first picture may cost more than its share: nothing is known then.
        first = len(views.images[0]) * sizes[0] ** 2 * pixel_seconds
        assert spent[0] - first < 0.1 * now[0] and len(sizes) > 3
        assert 32 <= min(sizes) and max(sizes) <= 128
        assert max(sizes) == {1e-7: 128, 1e-5: 80, 1e-3: 64}[pixel_seconds]

    def test_cancelled_fit_continues_to_the_same_scene(self, refine, render, bar, cancel_at, host_dirs):
        import comfy.model_management as management

        whole = render(refine(seed=5)[0])[0]
        cancel_at(lambda value: value == 5)
        with pytest.raises(management.InterruptProcessingException):
            refine(seed=5)
        (kept,) = (host_dirs.temp / "sv4d2_fits").iterdir()
        values = []
        cancel_at(lambda value: values.append(value) or False)
        scene, _, report = refine(seed=5).args
        # The step that ran while the user pressed the button counts.
        assert values[0] == 7 and "continued after step 6" in report
        assert torch.equal(render(scene)[0], whole)
        assert not kept.exists()
        other = refine(seed=6)[2]
        assert "continued" not in other

    @pytest.mark.parametrize("last", [3, 4])
    def test_fit_that_is_cancelled_in_its_last_step_or_report_is_finished(self, refine, cancel_at, last):
        import comfy.model_management as management

        cancel_at(lambda value: value == last)
        with pytest.raises(management.InterruptProcessingException):
            refine(steps=4)
        cancel_at(lambda value: False)
        scene, fit, report = refine(steps=4).args
        assert "continued after step 4" in report and scene.n_frames == T and fit.shape[-1] == 3
        assert "continued" not in refine(steps=4)[2]

    def test_cancelled_second_stage_continues_to_the_same_scene(
        self, refine, render, loaded, cancel_at, monkeypatch
    ):
        import comfy.model_management as management

        sockets = dict(zip(("model", "clip_vision", "vae"), loaded, strict=True))
        whole = render(refine(**sockets)[0])[0]
        calls = []
        apply_model = loaded[0].model.apply_model

        def slow(*args, **kwargs):
            calls.append(1)
            if len(calls) == 3:
                management.interrupt_current_processing()
            return apply_model(*args, **kwargs)

        monkeypatch.setattr(loaded[0].model, "apply_model", slow)
        with pytest.raises(management.InterruptProcessingException):
            refine(**sockets)
        assert len(calls) == 3
        cancel_at(lambda value: value == REFINE["steps"] - 1)
        with pytest.raises(management.InterruptProcessingException):
            refine(**sockets)
        cancel_at(lambda value: False)
        scene, _, report = refine(**sockets).args
        assert "continued after step" in report
        assert torch.equal(render(scene)[0], whole)

    def test_a_full_disk_ends_no_fit(self, refine, core, cancel_at, monkeypatch, caplog):
        import comfy.model_management as management

        def full(*_args):
            raise OSError(28, "No space left")

        monkeypatch.setattr(core("scene.store").FitState, "save", full)
        cancel_at(lambda value: value == 3)
        with pytest.raises(management.InterruptProcessingException):
            refine(seed=8)
        assert "No space left" in caplog.text
        cancel_at(lambda value: False)
        assert "continued" not in refine(seed=8)[2]

    def test_rendering_tells_every_picture_and_can_be_cancelled(self, refine, render, bar, cancel_at):
        import comfy.model_management as management

        scene = refine(steps=4)[0]
        bar.clear()
        render(scene)
        assert [args[:2] for args in bar] == [(i + 1, 9) for i in range(9)]
        for mode in ("views", "turntable"):
            cancel_at(lambda value: value == 2)
            with pytest.raises(management.InterruptProcessingException):
                render(scene, mode=mode)


class TestFiles:
    def test_a_saved_scene_is_the_same_when_loaded(self, pack, refine, render, host_dirs):
        scene = refine(steps=8)[0]
        save, load = pack["SV4D2SaveScene"].PREPARE_CLASS_CLONE({}), pack["SV4D2LoadScene"]
        with torch.inference_mode():
            first, second = save.execute(scene, "4d/cat"), save.execute(scene, "4d/cat")
            back, cameras = load.execute(first[0]).args
        assert (first[0], second[0]) == ("4d/cat_00001.safetensors", "4d/cat_00002.safetensors")
        assert torch.equal(render(back)[0], render(scene)[0]) and cameras == scene.cameras
        assert first.ui["images"] and "4d/cat_00001.safetensors: dynerf, 3 frames" in first.ui["text"][0]
        saved = {"filename": "cat_00001.safetensors", "subfolder": "4d", "type": "output"}
        assert first.ui["files"] == [saved]
        before = load.fingerprint_inputs(first[0])
        (host_dirs.output / first[0]).touch()
        assert load.fingerprint_inputs(first[0]) != before != "" == load.fingerprint_inputs("nothing")
        assert load.fingerprint_inputs(None) == ""

    def test_other_files_are_explained(self, pack, refine, host_dirs):
        load = pack["SV4D2LoadScene"].execute
        refine(steps=4)[0].save(host_dirs.input / "mine.safetensors")
        (host_dirs.input / "other").touch()
        with pytest.raises(FileNotFoundError, match="no 'other'.*exist: mine.safetensors"):
            load("other")
        assert load(str(host_dirs.input / "mine.safetensors"))[0].n_frames == T


class TestWrongInput:
    def test_normals_and_crops_that_do_not_fit_are_explained(self, refine):
        with pytest.raises(ValueError, match="Expected 9 normal maps.*3 views x 3 frames.*got 4"):
            refine(normals=torch.rand(4, 8, 8, 3))
        with pytest.raises(ValueError, match="the crop output of SV4D2 Prepare Clip"):
            refine(crop="no json")

    def test_models_that_do_not_fit_are_explained(self, refine, loaded, core, views):
        model, clip_vision, vae = loaded
        with pytest.raises(ValueError, match="socket 'clip_vision'; got none"):
            refine(model=model, vae=vae)
        with pytest.raises(ValueError, match="Stable Video 4D 2.0 model"):
            refine(model=object(), clip_vision=clip_vision, vae=vae)

    def test_memory_that_is_missing_is_told(self, refine, render, nodes_of, monkeypatch):
        import comfy.model_management as management

        scene = refine(steps=4)[0]

        def full(*_args, **_kw):
            raise management.OOM_EXCEPTION("no room")

        monkeypatch.setattr(nodes_of("refine"), "refine_scene", full)
        with pytest.raises(management.OOM_EXCEPTION, match="at 32 px. Lower size, or set memory_gb.*no room"):
            refine()
        monkeypatch.setattr(management, "get_free_memory", lambda *_args: 1e5)
        with pytest.raises(ValueError, match="9 pictures of 32 x 32 need about .* Lower size or frames"):
            render(scene)
