"""The nodes around the sampler: clips, cameras, views as images, as a video and in folders."""

import json
import os
import struct
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from sv4d2_recorded_schemas import defaults

CLIP = defaults("SV4D2PrepareClip", size=64)
ORBIT = defaults("SV4D2CameraOrbit")


def run(node, /, *, hidden=None, **inputs):
    """Execute a node as the host does: on a clone that holds the hidden values."""
    from comfy_api.latest import io

    values = {io.Hidden(key): value for key, value in (hidden or {}).items()}
    # Newer hosts keep them under a name of their own, beside other things.
    return node.PREPARE_CLASS_CLONE({**values, "hidden_inputs": values}).EXECUTE_NORMALIZED(**inputs)


def moving_square(n_frames=12, height=40, width=60):
    """Return a striped square wandering over grey, [T, H, W, 3], and its masks; frame t begins at 4 + t."""
    images = torch.full((n_frames, height, width, 3), 0.5)
    masks = torch.zeros(n_frames, height, width)
    for t in range(n_frames):
        images[t, 10:30, 4 + t : 24 + t] = (torch.arange(20) // 4 % 2).float()[:, None, None]
        masks[t, 10:30, 4 + t : 24 + t] = 1
    return images, masks


@pytest.fixture(scope="module")
def grid(core):
    """Return 3 frames of a creature from 4 novel views, with latents, labelled as of untrained weights."""
    true = core("world.render").render_views(
        core("world.body").make_creature(5), core("cameras").Cameras.default(4), 3, 64
    )
    latents = torch.randn(3, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return replace(true, fps=7.5, latents=latents, variant="sv4d2", trained=False, seed=23, steps=4)


class TestPrepareClip:
    def prepare(self, pack, clip, **changes):
        return run(pack["SV4D2PrepareClip"], clip=clip, **{**CLIP, **changes})

    def test_images_with_a_mask(self, pack, host_dirs):
        images, masks = moving_square()
        output = self.prepare(pack, images, mask=masks, fps=12.5)
        clip, mask, crop, report, fps = output.args
        assert clip.shape == (12, 64, 64, 3) and mask.shape == (12, 64, 64)
        assert clip.dtype == mask.dtype == torch.float32 and fps == 12.5
        assert (clip[mask == 0] == 1).all() and 0.02 < mask.mean() < 0.8
        crop = json.loads(crop)
        assert crop["source_frames"] == list(range(12)) and crop["size"] == 64
        assert (crop["source_height"], crop["source_width"], len(crop["centers"])) == (40, 60, 12)
        assert report.startswith("12 frames of 60 x 40 at 12.5 fps, object from mask")
        assert output.ui["text"] == report.split("\n")
        (picture,) = output.ui["images"]
        assert picture["type"] == "temp"
        with Image.open(host_dirs.temp / picture["subfolder"] / picture["filename"]) as strip:
            assert strip.width == 4 * 192 + 1 and 2 * 192 < strip.height < 2 * 250

    def test_frames_are_picked_as_on_the_command_line(self, pack, core, host_dirs):
        images, masks = moving_square()
        source = host_dirs.input / "frames"
        core("video.pictures").write_frames(source, images)
        core("video.pictures").write_frames(host_dirs.input / "masks", masks)
        choice = dict(frames=4, start=1, every=3)
        loaded = core("video.read").load_clip(source, mask=host_dirs.input / "masks", **choice)
        expected = core("video.prepare").prepare_clip(loaded, size=64)
        clip, mask, crop, _, fps = self.prepare(pack, images, mask=masks, **choice).args
        torch.testing.assert_close(clip, expected.images, rtol=0, atol=0)
        torch.testing.assert_close(mask, expected.masks, rtol=0, atol=0)
        assert json.loads(crop) == {**expected.crop.to_json(), "source_frames": [1, 4, 7, 10]}
        assert fps == 8, "the rate of images is taken as it is"

    def test_a_video_brings_its_rate(self, pack, host_dirs):
        from comfy_api.latest import InputImpl, Types

        images, masks = moving_square()
        for rate in (Fraction(24), Fraction(30000, 1001)):
            video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=rate))
            clip, _, crop, report, fps = self.prepare(pack, video, mask=masks, every=3, fps=1.0).args
            assert fps == pytest.approx(float(rate) / 3)
            assert json.loads(crop)["source_frames"] == [0, 3, 6, 9] and len(clip) == 4
            assert "only 4 frames" in report

    def test_a_video_file_is_read_as_on_the_command_line(self, pack, core, host_dirs):
        from comfy_api.latest import InputImpl, Types

        images, masks = moving_square()
        images[images == 0.5] = 1
        core("video.write").write_video(host_dirs.input / "a.mp4", images, 12)
        place = str(host_dirs.input / "a.mp4")
        video = InputImpl.VideoFromFile(place)
        clip, _, crop, report, fps = self.prepare(
            pack, video, mask=masks, fps=6.0, frames=5, resample=True, alpha="straight"
        ).args
        assert json.loads(crop)["source_frames"] == [0, 2, 4, 6, 8] and fps == 6 and len(clip) == 5
        assert "resampled by time to 6 fps" in report
        # As many frames are taken as there are, but others: a mask for each of the file goes with its own.
        faster = dict(frames=12, fps=24.0, resample=True, centering="none")
        _, cut, crop, *_ = self.prepare(pack, video, mask=masks, **faster).args
        taken = json.loads(crop)["source_frames"]
        assert taken == [k // 2 for k in range(12)]
        _, each, *_ = self.prepare(pack, video, mask=masks, centering="none").args
        torch.testing.assert_close(cut, each[taken], rtol=0, atol=0)
        with pytest.raises(ValueError, match=r"one mask per frame \(5\) or a single mask; got 7"):
            self.prepare(pack, video, mask=masks[:7], frames=5)
        data = bytearray(Path(place).read_bytes())
        matrix = data.index(b"tkhd") + 44
        data[matrix : matrix + 4] = struct.pack(">i", -1 << 16)  # mirrored
        (host_dirs.input / "b.mp4").write_bytes(data)
        video = InputImpl.VideoFromFile(str(host_dirs.input / "b.mp4"))
        assert "mirrored as the file says" in self.prepare(pack, video, centering="none").args[3]
        # A mask was made from the frames that the host shows.
        shown = video.get_components().images
        fitting = self.prepare(pack, video, mask=masks).args
        of_host = self.prepare(pack, shown, mask=masks, fps=12.0).args
        torch.testing.assert_close(fitting[0], of_host[0], rtol=0, atol=0)
        assert "the mask fits ComfyUI's own frames" in fitting[3]
        in_memory = InputImpl.VideoFromComponents(
            Types.VideoComponents(images=shown, frame_rate=Fraction(12))
        )
        for given in (video, in_memory):
            *_, crop, report, fps = self.prepare(pack, given, mask=masks, fps=5.0, resample=True).args
            assert json.loads(crop)["source_frames"] == [0, 2, 5, 7, 10] and fps == 5
            assert "resampled by time to 5 fps, 0 frames shown again" in report
        unsaved = InputImpl.VideoFromFile(BytesIO(data))
        again = self.prepare(pack, unsaved, centering="none").args
        whole = self.prepare(pack, video, centering="none").args
        torch.testing.assert_close(again[0], whole[0], rtol=0, atol=0)
        assert "mirrored as the file says" in again[3]

    def test_a_cut_video_is_the_part_of_its_file(self, pack, core, host_dirs):
        from comfy_api.latest import InputImpl

        images, _ = moving_square()
        images[images == 0.5] = 1
        core("video.write").write_video(host_dirs.input / "a.mp4", images, 12)
        place = str(host_dirs.input / "a.mp4")
        if not hasattr(InputImpl.VideoFromFile, "get_active_trim_window"):
            pytest.skip("this ComfyUI cuts no videos")
        whole = self.prepare(pack, InputImpl.VideoFromFile(place), centering="none").args
        for start, duration, expected in (
            (0.25, 0.5, range(3, 9)),
            (-0.5, 0, range(6, 12)),
            (0, 0.25, range(3)),
        ):
            video = InputImpl.VideoFromFile(place, start_time=start, duration=duration)
            assert len(video.get_components().images) == len(expected)
            made = self.prepare(pack, video, centering="none").args
            torch.testing.assert_close(made[0], whole[0][list(expected)], rtol=0, atol=0)
            masks = torch.linspace(0, 1, len(expected))[:, None, None].expand(-1, *images.shape[1:3])
            taken = self.prepare(pack, video, mask=masks.contiguous(), every=2, centering="none").args
            assert json.loads(taken[2])["source_frames"] == [*range(0, len(expected), 2)]
            assert len(taken[0]) == len(expected) // 2 + len(expected) % 2 and taken[4] == 6

    def test_alpha_that_the_host_decoded_is_alpha(self, pack, host_dirs):
        from comfy_api.latest import InputImpl, Types

        images, masks = moving_square()
        if "alpha" not in Types.VideoComponents.__dataclass_fields__:
            pytest.skip("videos of this ComfyUI have no alpha")
        components = Types.VideoComponents(images=images, alpha=masks, frame_rate=Fraction(8))
        video = InputImpl.VideoFromComponents(components)
        video.get_components = lambda: components
        made = self.prepare(pack, video).args
        expected = self.prepare(pack, torch.cat([images, masks[..., None]], dim=-1)).args
        torch.testing.assert_close(made[0], expected[0], rtol=0, atol=0)
        assert "object from alpha" in made[3]

    @pytest.mark.parametrize("turned", [False, True])
    def test_a_mask_of_the_hosts_frames_fits_those_of_the_file(self, pack, host_dirs, turned):
        """Whose pixels are wider, or turned a quarter as in recordings of phones."""
        from comfy_api.latest import InputImpl

        place = host_dirs.input / "a.mp4"
        with av.open(str(place), "w") as container:
            stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
            stream.width, stream.height, stream.pix_fmt = 48, 96, "yuv444p"
            stream.codec_context.sample_aspect_ratio = Fraction(1 if turned else 2)
            picture = np.full((96, 48, 3), 255, np.uint8)
            picture[24:72, 12:36] = (200, 40, 40)
            for _ in range(3):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        if turned:
            data = bytearray(place.read_bytes())
            matrix = data.index(b"tkhd") + 44
            data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
            place.write_bytes(data)
        video = InputImpl.VideoFromFile(str(place))
        shown = video.get_components().images
        mask = (shown[..., 1] < 0.6).float()
        bare = self.prepare(pack, video, centering="none").args
        masked = self.prepare(pack, video, mask=mask, centering="none").args
        left_to_host = turned and shown.shape[1:3] == (96, 48)  # as older ones do not turn it
        assert ("the mask fits ComfyUI's own frames" in masked[3]) == left_to_host
        assert ("mirrored as the file says" in masked[3]) == (turned and not left_to_host)
        assert ((masked[0] - bare[0]).abs().mean() < 0.02) == (not left_to_host)

    def test_alpha_is_taken_from_images(self, pack, host_dirs):
        images, masks = moving_square()
        with_alpha = torch.cat([images, masks[..., None]], dim=-1)
        clip, mask, _, report, _ = self.prepare(pack, with_alpha).args
        masked = self.prepare(pack, images, mask=masks).args
        torch.testing.assert_close(clip, masked[0], rtol=0, atol=0)
        torch.testing.assert_close(mask, masked[1], rtol=0, atol=0)
        assert "object from alpha" in report

    def test_centering_and_ratio(self, pack, host_dirs):
        images, masks = moving_square()
        for centering in ("global", "smooth", "per_frame"):
            given = dict(mask=masks, centering=centering)
            wide, small = (self.prepare(pack, images, **given, object_ratio=x).args for x in (0.9, 0.5))
            assert small[1].mean() < 0.5 * wide[1].mean()
            assert json.loads(wide[2])["centering"] == centering
            columns = [mask.nonzero()[:, 1].float().mean().item() for mask in wide[1]]
            assert (max(columns) - min(columns) > 5) == (centering == "global")

    def test_a_background_without_an_object_is_refused(self, pack, host_dirs):
        with pytest.raises(ValueError, match="near-white background.*RemoveBackground"):
            self.prepare(pack, moving_square()[0])


class TestCameraOrbit:
    def orbit(self, pack, preset, **changes):
        return run(pack["SV4D2CameraOrbit"], **{**ORBIT, "preset": preset, **changes})

    def test_widgets_become_cameras_and_a_picture(self, pack, core, host_dirs):
        Cameras = core("cameras").Cameras
        assert self.orbit(pack, "8 views (sv4d2_8views)").args[0] == Cameras.official("sv4d2_8views")
        assert self.orbit(pack, "rings", elevations_deg="-15; 20").args[0] == Cameras.rings(4, (-15, 20))
        sweep = self.orbit(pack, "sweep", n_views=6, sweep_azimuth_deg=-90.0, sweep_elevation_deg=10.0)
        assert sweep.args[0] == Cameras.sweep(6, -90, 10)
        custom = self.orbit(pack, "custom", azimuths_deg="90 270", elevations_deg="0 5 -5")
        assert custom.args[0] == Cameras((0, 5, -5), (0, 90, 270))
        output = self.orbit(pack, "ring", input_elevation_deg=12.0, radius=3.0, fov_deg=50.0)
        cameras = output.args[0]
        assert (cameras.input_elevation_deg, cameras.radius, cameras.fov_deg) == (12, 3, 50)
        (picture,) = output.ui["images"]
        with Image.open(host_dirs.temp / picture["subfolder"] / picture["filename"]) as rig:
            assert rig.width == 720 and rig.height > 400


class TestViewsToImages:
    def images(self, pack, grid, mode, **changes):
        inputs = {"view": 1, "frame": 0, "include_input": True, **changes}
        return run(pack["SV4D2ViewsToImages"], views=grid, mode=mode, **inputs).args

    def test_one_view_one_frame_or_all_view_by_view(self, pack, grid):
        for mode, changes, seen in (
            ("one view", {"view": 4}, lambda x: x[:, 4]),
            ("one frame", {"frame": 2}, lambda x: x[2]),
            ("one frame", {"frame": 2, "include_input": False}, lambda x: x[2, 1:]),
            ("all views", {}, lambda x: x.transpose(0, 1).flatten(0, 1)),
            ("all views", {"include_input": False}, lambda x: x[:, 1:].transpose(0, 1).flatten(0, 1)),
        ):
            images, mask, fps = self.images(pack, grid, mode, **changes)
            assert torch.equal(images, seen(grid.images)) and torch.equal(mask, seen(grid.masks))
            assert fps == 7.5

    def test_masks_are_made_where_there_are_none(self, pack, grid):
        images, mask, _ = self.images(pack, replace(grid, masks=None), "one view")
        assert mask.shape == (3, 64, 64) and 0.02 < mask.mean() < 0.6
        assert (images[mask == 0] > 0.9).all()


class TestImagesToViews:
    def test_images_of_views_are_views_again(self, pack, grid):
        inputs = dict(view=0, frame=0, include_input=False)
        images, masks, fps = run(pack["SV4D2ViewsToImages"], views=grid, mode="all views", **inputs).args
        given = dict(novel_views=images, cameras=grid.cameras, fps=fps, clip_mask=grid.masks[:, 0])
        node, clip = pack["SV4D2ImagesToViews"], grid.images[:, 0]
        views = run(node, clip=clip, order="view by view", **given).args[0]
        assert torch.equal(views.images, grid.images) and torch.equal(views.masks[:, 0], grid.masks[:, 0])
        assert views.cameras == grid.cameras and views.fps == 7.5 and views.latents is None
        given["novel_views"] = grid.images[:, 1:].flatten(0, 1)
        assert torch.equal(run(node, clip=clip, order="frame by frame", **given).args[0].images, grid.images)


class TestViewsGridVideo:
    def mosaic(self, pack, views, **inputs):
        return run(pack["SV4D2ViewsGridVideo"], views=views, **inputs).args

    def test_mosaic_and_video(self, pack, grid, tmp_path):
        images, video = self.mosaic(pack, grid, columns=0, labels=True, cell_size=72)
        assert images.shape[0] == 3 and images.shape[2] == 3 * 72
        assert images.shape[1] > 2 * 72 and images.shape[1] % 2 == 0
        components = video.get_components()
        assert components.frame_rate == Fraction(15, 2) and torch.equal(components.images, images)
        assert components.images.data_ptr() != images.data_ptr()  # other packs write into pictures
        video.save_to(str(tmp_path / "a.mp4"))
        assert (tmp_path / "a.mp4").stat().st_size > 1000

    def test_bare(self, pack, grid):
        views = replace(grid, trained=True)
        images, _ = self.mosaic(pack, views, columns=5, labels=False, cell_size=0)
        assert images.shape == (3, 64, 5 * 64, 3)
        assert torch.equal(images[:, :, 64:128], grid.images[:, 1])


class TestFolders:
    def save(self, pack, grid, **changes):
        inputs = {"views": grid, "filename_prefix": "sv4d2/views", "save_latents": False, **changes}
        return run(pack["SV4D2SaveViews"], **inputs)

    def load(self, pack, folder):
        return run(pack["SV4D2LoadViews"], folder=folder).args

    def test_round_trip(self, pack, grid, host_dirs):
        crop = json.dumps({"side": 40, "centers": [[1.5, 2.0]]})
        hidden = {"PROMPT": {"1": {"class_type": "A", "is_changed": [float("nan")]}}}
        hidden["EXTRA_PNGINFO"] = {"workflow": {"nodes": []}}
        output = self.save(pack, grid, save_latents=True, crop=crop, hidden=hidden)
        assert output.args == ("sv4d2/views_00001",)
        assert output.ui == {
            "images": [{"filename": "contact_sheet.png", "subfolder": "sv4d2/views_00001", "type": "output"}]
        }
        folder = host_dirs.output / "sv4d2/views_00001"
        assert (folder / "contact_sheet.png").is_file() and (folder / "view_04.mp4").is_file()
        settings = json.loads((folder / "run.json").read_text())["settings"]
        assert settings["host"]["name"] == "ComfyUI" and settings["host"]["version"][0].isdigit()
        assert settings["prompt"] == {"1": {"class_type": "A", "is_changed": [None]}}
        assert settings["extra_pnginfo"] == {"workflow": {"nodes": []}}
        views, crop_back, cameras_back = self.load(pack, output.args[0])
        assert cameras_back == views.cameras
        assert json.loads(crop_back) == json.loads(crop)
        assert (views.images - grid.images).abs().max() <= 0.5 / 255 + 1e-6
        assert views.latents is not None and views.latents.shape == grid.latents.shape
        for field in ("cameras", "fps", "variant", "trained", "seed", "steps"):
            assert getattr(views, field) == getattr(grid, field)

    def test_no_metadata_where_the_user_wants_none(self, pack, grid, host_dirs, monkeypatch):
        from comfy.cli_args import args

        monkeypatch.setattr(args, "disable_metadata", True)
        (name,) = self.save(pack, grid, hidden={"PROMPT": {"1": {}}}).args
        settings = json.loads((host_dirs.output / name / "run.json").read_text())["settings"]
        assert list(settings) == ["host"]
        views = replace(grid, settings={"prompt": {"1": {}}, "extra_pnginfo": {"workflow": {}}, "cfg": 2})
        (name,) = self.save(pack, views).args
        settings = json.loads((host_dirs.output / name / "run.json").read_text())["settings"]
        assert sorted(settings) == ["cfg", "host"], "nor that of the workflow that views were loaded from"

    def test_numbers_go_on_and_nothing_is_overwritten(self, pack, grid, host_dirs):
        taken = host_dirs.output / "sv4d2/views_00007"
        taken.mkdir(parents=True)
        assert self.save(pack, grid).args == ("sv4d2/views_00008",)
        assert self.save(pack, grid, filename_prefix="a%width%x%height%").args == ("a64x64_00001",)
        assert not any(taken.iterdir())

    def test_a_failure_leaves_no_folder(self, pack, grid, host_dirs):
        with pytest.raises(ValueError, match="Leave save_latents off"):
            self.save(pack, replace(grid, latents=None), save_latents=True)
        assert list((host_dirs.output / "sv4d2").iterdir()) == []
        assert self.save(pack, grid).args == ("sv4d2/views_00001",)

    def test_crops_that_are_none_leave_nothing(self, pack, grid, host_dirs):
        for crop in ("{not json", "[1, 2]", "3"):
            with pytest.raises(ValueError, match="crop output of SV4D2 Prepare Clip"):
                self.save(pack, grid, crop=crop)
        assert not any(host_dirs.output.iterdir())

    def test_without_a_crop(self, pack, grid, host_dirs):
        (name,) = self.save(pack, grid, crop=" ").args
        assert self.load(pack, name)[1] == ""

    def test_the_input_folder_comes_second(self, pack, core, grid, host_dirs):
        write = core("data.views_folder").write_views
        write(host_dirs.input / "mine", replace(grid, fps=3.0))
        (host_dirs.output / "mine").mkdir()
        assert self.load(pack, "mine")[0].fps == 3, "a folder without views does not hide one with"
        write(host_dirs.output / "mine", replace(grid, fps=4.0))
        assert self.load(pack, " mine ")[0].fps == 4

    def test_new_views_of_the_same_name_are_read_again(self, pack, core, grid, host_dirs):
        fingerprint = pack["SV4D2LoadViews"].fingerprint_inputs
        assert fingerprint(folder="mine") == fingerprint(folder=None) == fingerprint() == ""
        core("data.views_folder").write_views(host_dirs.output / "mine", grid)
        first = fingerprint(folder="mine")
        assert first == fingerprint(folder="mine") != ""
        core("data.views_folder").write_views(host_dirs.output / "mine", grid, overwrite=True)
        second = fingerprint(folder="mine")
        assert second not in ("", first)
        picture = host_dirs.output / "mine/frames/view_00/00000.png"
        picture.write_bytes(picture.read_bytes() + b"more")
        os.utime(picture, (1, 1))
        assert fingerprint(folder="mine") != second, "retouched, with an older time of its own"


def test_previews_take_pictures_and_tensors(nodes_of, host_dirs):
    preview = nodes_of("preview").picture_preview
    ramp = torch.linspace(0, 1, 48).view(4, 4, 3)
    for picture in (ramp, ramp[None], Image.fromarray((ramp * 255).round().byte().numpy())):
        result = preview(picture)
        assert "text" not in result and result["animated"] == (False,)
        (saved,) = result["images"]
        with Image.open(host_dirs.temp / saved["subfolder"] / saved["filename"]) as written:
            assert np.abs(np.asarray(written) / 255 - ramp.numpy()).max() < 1.01 / 255
    assert preview(ramp, ["one", "two"])["text"] == ["one", "two"]
