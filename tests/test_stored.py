"""Files of anybody: fields, tensors, pictures and videos that are not what they say."""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz.files import campaign
from PIL import Image
from safetensors.torch import load_file, save_file

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.reader import read_dataset
from sv4d2_core.data.views_folder import read_views, write_views
from sv4d2_core.scene.config import FieldConfig, GaussiansConfig, RefineConfig, Settings
from sv4d2_core.scene.gaussians.splat_torch import Projected, tile_lists
from sv4d2_core.scene.scene import turntable
from sv4d2_core.scene.store import load_scene
from sv4d2_core.stored import Fields, json_object, load_tensors, read_tensors, write_tensors
from sv4d2_core.training.batches import DrawConfig
from sv4d2_core.training.curation import CurationLimits
from sv4d2_core.training.loop import LoopConfig
from sv4d2_core.video.decode import Room
from sv4d2_core.video.read import load_clip
from sv4d2_core.views import ViewGrid

SCENES = Path(__file__).parent / "data/version_0_1/all_settings"


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_are_read_or_refused_in_one_short_message():
    assert set(campaign(cases=128, seed=0)) == {"read", "refused"}


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (lambda f: f.number("a"), float("nan"), "Expected a number from .* as a in here; got nan"),
        (lambda f: f.number("a", 0, 1), 2, "number from 0 to 1 as a"),
        (lambda f: f.number("a"), True, "got True"),
        (lambda f: f.count("a", 1), 1.5, "whole number from 1 to"),
        (lambda f: f.text("a"), 3, "Expected text"),
        (lambda f: f.flag("a"), 0, "true or false"),
        (lambda f: f.object("a"), [1], "JSON object in a of here"),
        (lambda f: f.objects("a"), [], "at least one object"),
        (lambda f: f.numbers("a", None, 2), [[1, 2], [3]], "N x 2 finite numbers"),
        (lambda f: f.times("a"), [0.5, 0.1], "rising times"),
        (lambda f: f.like("a", (1, 2)), [2] * 65, "at most 64 whole numbers"),
        (lambda f: f.like("b", 1), "x" * 60_000, r"none \(there are \['a'\]\)"),
        (lambda f: f.number("a"), "x" * 60_000, r"got 'x+\.\.\.x+'"),
    ],
)
def test_fields_are_what_they_have_to_be(read: Callable[[Fields], object], value, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(Fields({"a": value}, "here"))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["", "[" * 200_000, "9" * 5000, b"\xff\xfe{", "[1]"])
def test_texts_that_are_no_objects_are_refused(text):
    with pytest.raises(ValueError, match="in here"):
        json_object(text, "here")


def test_tensors_are_finite_and_of_their_shapes(tmp_path):
    save_file({"a": torch.tensor([[1.0, torch.nan]])}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="1 of 2 in a are NaN or infinite"):
        load_tensors(tmp_path / "a.safetensors", "numbers")
    save_file({"a": torch.zeros(0, 2)}, tmp_path / "a.safetensors")
    tensors = load_tensors(tmp_path / "a.safetensors", "numbers")
    for call, message in (
        (lambda: tensors["b"], "Expected a tensor b"),
        (lambda: tensors.shaped("a", None, 2), r"a \['N', 2\] in .*; got \[0, 2\]"),
        (lambda: tensors.check_like({}), "a is one too many"),
        (
            lambda: tensors.check_state_of(lambda: torch.nn.Linear(2**40, 2**40)),
            "sizes that tensors can have",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder. Name the file"):
        load_scene(tmp_path)


def test_a_file_that_was_read_can_be_replaced_on_windows(tmp_path):
    """Windows refuses that for a file of which a view is mapped."""
    file, ones = tmp_path / "a.safetensors", torch.ones(100_000)
    write_tensors(file, "numbers", {"a": ones}, {})
    held = [read_tensors(file, "numbers")[0], load_tensors(file, "numbers")]
    assert str(file) not in Path("/proc/self/maps").read_text()
    held.append(read_tensors(file, "numbers", mapped=True)[0])
    assert str(file) in Path("/proc/self/maps").read_text()
    assert all(torch.equal(tensors["a"], ones) for tensors in held)


@pytest.mark.parametrize(
    ("backend", "key", "value"),
    [
        ("dynerf", "grid", [3, 10**5, 10**5, 10**5]),
        ("dynerf", "config", {"plane_sizes": [20_000, 40_000]}),
        ("gaussians", "config", {"plane_sizes": [10**9], "features": 10**9}),
        ("gaussians", "config", {"count": 10**9}),
        ("gaussians", "scale_limits", [0, 0]),
        ("dynerf", "config", {"samples": 10**7}),
        ("dynerf", "config", {"features": 10**5}),
        ("dynerf", "fps", 0),
        ("gaussians", "fps", 1e9),
        ("gaussians", "times", [0.5, 0.5, 0.5]),
        ("dynerf", "times", [0, 0.5, 0.5]),
    ],
)
def test_numbers_in_a_scene_are_bounded_or_those_of_its_tensors(tmp_path, backend, key, value):
    file = tmp_path / "scene.safetensors"
    load_scene(SCENES / f"{backend}.safetensors").save(file)
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]["sv4d2.scene"])
    header[key] = {**header[key], **value} if isinstance(value, dict) else value
    del header["checksum"]
    save_file(load_file(file), file, {"sv4d2.scene": json.dumps(header)})
    with pytest.raises(ValueError, match="Expected .*; got "):
        load_scene(file)


@pytest.mark.parametrize(("key", "value"), [("n_frames", 10**5), ("fps", 0), ("fps", 1e9)])
def test_numbers_of_a_folder_of_views_are_bounded(tmp_path, key, value):
    write_views(tmp_path / "views", ViewGrid(torch.rand(1, 5, 16, 16, 3), Cameras.ring(4)))
    file = tmp_path / "views/run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "entries": [], key: value}))
    with pytest.raises(ValueError, match=f"Expected a .*number from .* as {key} in"):
        read_views(tmp_path / "views")


def test_no_setting_is_without_bounds():
    kinds = [FieldConfig, GaussiansConfig, RefineConfig, LoopConfig, DrawConfig, CurationLimits]
    for kind in kinds:
        assert issubclass(kind, Settings)
        for one in fields(kind):
            if type(one.default) in (int, float):
                with pytest.raises(ValueError, match=f"Expected {one.name} <="):
                    kind(**{one.name: type(one.default)(2**1000)})
            elif isinstance(one.default, tuple):
                for sizes in ((2,) * 9, (10**6,)):
                    with pytest.raises(ValueError, match=f"Expected {one.name} of"):
                        kind(**{one.name: sizes})


def test_pictures_larger_than_any_memory_are_refused_at_once():
    scene = load_scene(SCENES / "gaussians.safetensors")
    with pytest.raises(ValueError, match="1000 times of 1 cameras at 8192 px make 67109 million"):
        scene.render(scene.cameras, [0.0] * 1000, 8192, views=[0])
    with pytest.raises(ValueError, match="1 times of 96 cameras at 4096 px make 1611 million"):
        turntable(scene, scene.cameras, 96, 4096)
    everywhere = Projected(torch.full((129, 10), 4096.0), torch.full((129, 2), 1e6))
    with pytest.raises(ValueError, match="129 lie on 135266304"):
        tile_lists(everywhere, 8192)


def test_pictures_of_numbers_too_large_are_refused(tmp_path):
    scene = load_scene(SCENES / "gaussians.safetensors")
    with torch.no_grad():
        scene.canonical.colours.fill_(torch.nan)
    with pytest.raises(ValueError, match="Expected finite pictures"):
        scene.render(scene.cameras, [0.0], 16, views=[0])


def test_long_paths_in_data_sets_are_refused_shortly(tmp_path):
    frames = [
        {"file_path": path, "transform_matrix": matrix.tolist()}
        for path, matrix in (("x" * 60_000, turned(0)), ("a\0b", turned(90)))
    ]
    file = tmp_path / "transforms.json"
    for listed in (frames, frames[::-1]):
        file.write_text(json.dumps({"camera_angle_x": 0.6, "frames": listed}))
        with pytest.raises(ValueError, match="at most 255 characters") as caught:
            read_dataset(file)
        assert len(str(caught.value)) <= 500


def turned(angle_deg: float) -> np.ndarray:
    """Return a camera on a circle in a world of +z up that looks at the origin."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, 0, s, 2 * s], [s, 0, -c, -2 * c], [0, 1, 0, 0], [0, 0, 0, 1]])


def gif_of(width: int, height: int, frames: int = 1) -> bytes:
    """Return a GIF of a canvas of any size whose frames are one pixel."""
    frame = b"\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    palette = b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + struct.pack("<2H3B", width, height, 0x80, 0, 0) + palette + frame * frames + b"\x3b"


def test_small_files_do_not_stand_for_gigabytes(tmp_path):
    for name, content in (("one", gif_of(13_000, 13_000)), ("many", gif_of(4000, 4000, 21))):
        (tmp_path / f"{name}.gif").write_bytes(content)
        with pytest.raises(ValueError, match="at most 67 million pixels"):
            load_clip(tmp_path / f"{name}.gif")
    for t in range(21):
        (tmp_path / f"frame_{t:02d}.gif").write_bytes(gif_of(4000, 4000))
    with pytest.raises(ValueError, match="and 20 more would make 336 million"):
        load_clip(tmp_path / "frame_*.gif")
    assert load_clip(tmp_path / "frame_*.gif", frames=1).frames.shape == (1, 4000, 4000, 3)
    (tmp_path / "film").write_bytes(bytes(100_000))
    Room([tmp_path / "film"]).check(300, 1920, 1080)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_are_not_waited_for(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "frame_0.png")
    os.mkfifo(tmp_path / "frame_1.png")
    for place in (tmp_path, str(tmp_path / "frame_*.png")):
        with pytest.raises(ValueError, match=r"frame_1\.png is a pipe or a device"):
            load_clip(place)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"),
        ("a.mp4", b"ffconcat version 1.0\nfile b.mp4\n"),
        ("a.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nb.mp4\n#EXT-X-ENDLIST\n"),
    ],
)
def test_files_that_run_programs_or_open_others_are_refused(tmp_path, monkeypatch, name, content):
    ran = []
    monkeypatch.setattr("subprocess.check_call", lambda *_args, **_more: ran.append(1))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="Expected a readable"):
        load_clip(tmp_path / name)
    assert not ran
