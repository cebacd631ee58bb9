"""Pixels as they are to be seen: orientation, HDR, profiles, colour matrices, fields, premultiplied alpha."""

import struct
from itertools import product

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from sv4d2_core.video.prepare import prepare_clip
from sv4d2_core.video.read import Clip, load_clip

PATCHES = np.array([(200, 40, 40), (40, 160, 60), (40, 60, 200), (255, 255, 255)])
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.088, 0.8956]])


def write_rgb(path, pictures, codec="libx264", pix_fmt="yuv444p", tags=(), **options):
    """Write uint8 or uint16 pictures [T, H, W, 3 or 4]; tags: matrix, primaries and transfer of H.273."""
    pictures = np.asarray(pictures)
    deep, kind = pictures.dtype == np.uint16, "rgba" if pictures.shape[-1] == 4 else "rgb"
    form = f"{kind}{'64le' if kind == 'rgba' else '48le'}" if deep else {"rgb": "rgb24", "rgba": "rgba"}[kind]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], pix_fmt
        stream.options = {"crf": "0", **options}
        context = stream.codec_context
        if tags:
            context.colorspace, context.color_primaries, context.color_trc = tags
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format=form)
            if tags:
                frame = frame.reformat(format=pix_fmt, dst_colorspace=tags[0])
                frame.colorspace = tags[0]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def bars(colours=PATCHES, side=16) -> np.ndarray:
    return np.repeat(np.repeat(np.asarray(colours)[None, None], side, 1), side, 2)


def patches(frame, side=16) -> np.ndarray:
    return frame[4 : side - 4, :].reshape(side - 8, -1, side, frame.shape[-1])[:, :, 4:-4].mean((0, 2))


@pytest.mark.parametrize(
    ("a", "b", "c", "d"),
    [
        *((x, 0, 0, y) for x, y in product((1, -1), repeat=2)),
        *((0, x, y, 0) for x, y in product((1, -1), repeat=2)),
    ],
)
def test_every_flip_and_turn_of_a_display_matrix_is_applied(tmp_path, a, b, c, d):
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), np.uint8)
    path = write_rgb(tmp_path / "a.mov", picture, "png", "rgb24")
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    one = 1 << 16
    data[place : place + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    clip = load_clip(path)
    height, width = (32, 48) if a else (48, 32)
    assert clip.frames.shape[1:3] == (height, width)
    # A pixel's place, counted from the picture's middle, goes through the matrix.
    y, x = np.mgrid[0:32, 0:48].astype(float)
    x, y = x - 23.5, y - 15.5
    rows = (b * x + d * y + (height - 1) / 2).astype(int)
    columns = (a * x + c * y + (width - 1) / 2).astype(int)
    np.testing.assert_array_equal(clip.frames[0][rows, columns], picture[0])
    assert any("mirrored" in note for note in clip.notes) == ((a, b, c, d) != (1, 0, 0, 1))


def hdr_signal(nits, transfer) -> np.ndarray:
    """Return the coded level, 0..1, of light in cd/m2 by ITU-R BT.2100."""
    if transfer == 16:
        power = (nits / 1e4) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    light = (nits / 1e3) ** (1 / 1.2)
    bright = 0.17883277 * np.log(np.maximum(12 * light - 0.28466892, 1e-9)) + 0.55991073
    return np.where(light <= 1 / 12, np.sqrt(3 * light), bright)


@pytest.mark.parametrize("white", [203, 100])
@pytest.mark.parametrize(
    ("transfer", "codec"), [(16, "libx264"), (18, "libx264"), (16, "ffv1"), (18, "ffv1")]
)
def test_hdr_comes_out_as_the_same_picture_in_sdr(tmp_path, transfer, codec, white):
    light = np.where(
        PATCHES / 255 <= 0.04045, PATCHES / 255 / 12.92, ((PATCHES / 255 + 0.055) / 1.055) ** 2.4
    )
    coded = np.rint(65535 * hdr_signal(white * light @ TO_2020.T, transfer)).astype(np.uint16)
    path = tmp_path / ("a.mkv" if codec == "ffv1" else "a.mp4")
    clip = load_clip(write_rgb(path, bars(coded), codec, "yuv444p10le", (9, 9, transfer)))
    assert np.abs(patches(clip.frames[0]) - PATCHES).max() <= 8
    assert clip.notes[0].startswith(f"HDR ({'PQ' if transfer == 16 else 'HLG'}) converted to sRGB")


def test_hdr_that_cannot_be_converted_is_the_first_thing_that_is_said(tmp_path):
    path = write_rgb(tmp_path / "a.mp4", bars(PATCHES[:3].astype(np.uint8)), tags=(9, 9, 16))
    import sv4d2_core.video.colour as colour

    clip = load_clip(path)
    assert clip.notes[0].startswith("HDR (PQ)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colour, "_DOLBY", (9,))
        clip = load_clip(path)
        with pytest.raises(
            ValueError, match=r"^HDR that cannot be converted.*Expected a near-white background"
        ):
            prepare_clip(clip, size=32)
        with pytest.raises(
            ValueError, match=r"^HDR that cannot.*Expected pictures of one size|^HDR that cannot.*size"
        ):
            Image.new("L", (3, 3), 255).save(tmp_path / "mask.png")
            load_clip(path, mask=tmp_path / "mask.png")


@pytest.mark.parametrize(("height", "matrix", "name"), [(720, 1, "BT.709"), (96, 5, "BT.601")])
def test_untagged_video_has_the_matrix_that_players_take(tmp_path, height, matrix, name):
    picture = np.full((1, height, 64, 3), (200, 40, 60), np.uint8)
    frame = av.VideoFrame.from_ndarray(picture[0], format="rgb24").reformat(
        format="yuv444p", dst_colorspace=matrix
    )
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.options = height, 64, "yuv444p", {"crf": "0"}
        frame.colorspace = 2
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = load_clip(tmp_path / "a.mp4")
    assert np.abs(clip.frames[0, 40, 30].astype(int) - (200, 40, 60)).max() <= 2
    assert any(f"no colour matrix stated: {name}" in note for note in clip.notes)


def profile_of_swapped_channels() -> bytes:
    """Return an sRGB profile whose red and blue primaries are swapped: what it does cannot be overlooked."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = data.index(b"rXYZ", 128), data.index(b"bXYZ", 128)
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = (
        data[blue + 4 : blue + 12],
        data[red + 4 : red + 12],
    )
    return bytes(data)


@pytest.mark.parametrize(
    "name", ["a.png", "a.tif", "a.jpg", "a.webp", "animated.png", "animated.webp", "palette.png"]
)
def test_embedded_profiles_become_srgb(tmp_path, name):
    image = Image.new("RGB", (16, 16), (200, 40, 60))
    if name == "palette.png":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
    lossy = {"quality": 100} if name.endswith(("jpg", "webp")) else {}
    more = (
        {"save_all": True, "append_images": [Image.new("RGB", (16, 16), (10, 40, 250))]}
        if "anim" in name
        else {}
    )
    image.save(tmp_path / name, icc_profile=profile_of_swapped_channels(), **lossy, **more)
    clip = load_clip(tmp_path / name)
    assert np.abs(clip.frames[0, 8, 8, :3].astype(int) - (60, 40, 200)).max() <= 6
    assert any("profile" in note for note in clip.notes)


def test_alpha_survives_a_profile_and_srgb_itself_or_damage_changes_nothing(tmp_path):
    image = Image.new("RGBA", (16, 16), (200, 40, 60, 90))
    image.save(tmp_path / "a.png", icc_profile=profile_of_swapped_channels())
    assert (
        np.abs(
            load_clip(tmp_path / "a.png", alpha="straight").frames[0, 3, 3].astype(int) - (60, 40, 200, 90)
        ).max()
        <= 2
    )
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for icc in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"no profile at all"):
        Image.fromarray(noise).save(tmp_path / "b.png", icc_profile=icc)
        clip = load_clip(tmp_path / "b.png")
        np.testing.assert_array_equal(clip.frames[0], noise)
        assert any("not used" in note for note in clip.notes) == (icc[:2] == b"no")


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"x264-params": "tff=1", "crf": "1"}),
        ("a.mkv", "libx264", {"x264-params": "bff=1", "crf": "1"}),
        ("a.mpg", "mpeg2video", {"flags": "+ildct+ilme", "qmin": "1", "qmax": "2"}),
    ],
)
def test_fields_are_not_seen_as_a_comb(tmp_path, name, codec, options):
    pictures = np.full((8, 96, 160, 3), 255, np.uint8)
    for t, field in product(range(8), range(2)):
        left = 10 + 12 * t + 6 * (field if "bff" not in str(options) else 1 - field)
        pictures[t, field::2][15:35, left : left + 30] = (200, 40, 40)
    clip = load_clip(write_rgb(tmp_path / name, pictures, codec, "yuv420p", **options))
    assert clip.n_frames == 8 and clip.fps == pytest.approx(10)
    assert any("interlaced" in note for note in clip.notes)

    def comb(frames):
        rows = frames[2:-2, 34:66, :, 1].astype(int)
        return np.abs(rows[:, 1:-1] - (rows[:, :-2] + rows[:, 2:]) / 2).mean()

    assert comb(clip.frames) < comb(pictures) / 3


def soft_disc(premultiplied: bool, colour=(200, 120, 40)) -> np.ndarray:
    y, x = np.mgrid[0:64, 0:64] - 31.5
    opacity = ((24 - np.hypot(x, y)) / 8).clip(0, 1)[..., None]
    rgb = np.asarray(colour) * (opacity if premultiplied else np.ones_like(opacity))
    return np.dstack([np.rint(rgb), np.rint(255 * opacity)]).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.png", "", ""),
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_premultiplied_alpha_is_recognised_and_undone(tmp_path, name, codec, pix_fmt):
    for premultiplied in (True, False):
        picture = soft_disc(premultiplied)
        if codec:
            write_rgb(tmp_path / name, picture[None], codec, pix_fmt)
        else:
            Image.fromarray(picture).save(tmp_path / name)
        clip = load_clip(tmp_path / name)
        half = (clip.frames[0, ..., 3] > 60) & (clip.frames[0, ..., 3] < 240)
        assert np.abs(clip.frames[0][half][:, :3].mean(0) - (200, 120, 40)).max() <= 12
        assert any("premultiplied" in note for note in clip.notes) == premultiplied
    written = load_clip(tmp_path / name, alpha="premultiplied")
    assert any("taken for premultiplied" in note for note in written.notes)
    with pytest.raises(ValueError, match="Expected alpha auto or straight or premultiplied; got 'none'"):
        load_clip(tmp_path / name, alpha="none")


def test_dark_objects_and_tensors_with_straight_alpha_stay(tmp_path):
    for colour in ((14, 10, 12), (255, 255, 255)):
        picture = soft_disc(False, colour)
        Image.fromarray(picture).save(tmp_path / "a.png")
        np.testing.assert_array_equal(load_clip(tmp_path / "a.png").frames[0], picture)
    import torch

    tensors = torch.from_numpy(soft_disc(True)[None]).float() / 255
    assert any("premultiplied" in note for note in Clip.from_tensors(tensors).notes)
    assert Clip.from_tensors(tensors, alpha="straight").notes == ()
