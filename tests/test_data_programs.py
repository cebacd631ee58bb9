"""Data sets as people's programs write them: names, times, paths and matrices of their own habits."""

import importlib.util
import json
import logging
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from bending import bending_ball
from PIL import Image

from sv4d2_core.__main__ import main
from sv4d2_core.cameras import Cameras
from sv4d2_core.data.reader import read_any_views, read_dataset
from sv4d2_core.data.transforms import read_cameras
from sv4d2_core.data.views_folder import read_views, write_views
from sv4d2_core.export.glb import write_animated_glb
from sv4d2_core.world import make_creature, render_views

CAMERAS = Cameras((0, 0, 12.5), (0, 60, 210), radius=2.2, fov_deg=35.0, input_elevation_deg=8.0)
SIZE, N_FRAMES = 16, 3


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views") / "ours"
    write_views(folder, render_views(make_creature(2), CAMERAS, N_FRAMES, SIZE))
    return folder


@pytest.fixture
def data(tmp_path, written):
    """Return a folder of frames and masks, and a function that writes the transforms file as it is edited."""
    for name in ("frames", "masks"):
        shutil.copytree(written / name, tmp_path / name)
    content = json.loads((written / "transforms_train.json").read_text())

    def write(edit=lambda content: None, encoding="utf-8", name="transforms.json"):
        edit(content)
        (tmp_path / name).write_text(json.dumps(content), encoding=encoding)
        return tmp_path

    return write


def per_frame(edit):
    return lambda content: [edit(frame, i) for i, frame in enumerate(content["frames"])]


def timed(key, values):
    return per_frame(lambda frame, i: frame.update({key: values[i // 3], "time": None}))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marks_of_an_encoding_are_no_damage(data, encoding, written):
    place = data(encoding=encoding)
    assert torch.equal(read_dataset(place).images, read_views(written).images)
    assert read_cameras(place) == CAMERAS
    for name in ("cameras.json", "run.json"):
        text = (written / name).read_text()
        (place / name).write_text(text, encoding="utf-8-sig")
    shutil.copytree(written, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.json"))
    assert read_any_views(place).cameras == CAMERAS


TIMES = {
    "milliseconds": timed("timestamp", (0, 33, 67)),
    "seconds since 1970": timed("timestamp", (1.7e9, 1.7e9 + 0.5, 1.7e9 + 1)),
    "nanoseconds": timed("timestamp_ns", (17 * 10**17, 17 * 10**17 + 10**8, 17 * 10**17 + 2 * 10**8)),
    "steps": timed("timestep_index", (7, 8, 9)),
    "camel case": timed("frameIndex", (0, 1, 2)),
    "texts": timed("frame_id", ("0000", "0001", "0002")),
    "D3DGS": timed("timestep", (0.0, 0.1, 0.2)),
    "a clock that stands still": per_frame(lambda f, i: f.update(time=0.0, timestep_index=i // 3)),
    "a number of every picture beside it": per_frame(lambda f, i: f.update(time=None, frame=i, t=i // 3)),
    "a name beside it": per_frame(lambda f, i: f.update(time=None, timestamp="noon", frame_idx=i // 3)),
}


@pytest.mark.parametrize("case", TIMES)
def test_times_under_other_names_are_read(data, case, written):
    assert torch.equal(read_dataset(data(TIMES[case])).images, read_views(written).images)


def test_times_that_are_not_understood_are_named(data):
    with pytest.raises(ValueError, match=r"no key of .*file_path.*moment is a time\. Call"):
        read_dataset(data(per_frame(lambda f, i: (f.pop("time"), f.update(moment=i // 3)))))
    with pytest.raises(ValueError, match=r"number as frame_id in frame 0 .*; got 'f0'"):
        read_dataset(data(per_frame(lambda f, i: f.update(frame_id=f"f{i}"))))
    with pytest.raises(ValueError, match=r"evenly spaced times \(timestep\) .* 0 to 30, number 2 at 12 "):
        read_dataset(data(per_frame(lambda f, i: f.update(frame_id=None, timestep=(0, 12, 30)[i // 3]))))


def test_a_still_object_has_no_times_though_its_pictures_have(data):
    def edit(content):
        content["frames"] = content["frames"][:3]
        per_frame(lambda f, i: f.update(time=None, timestamp=0.1 * i, frame_id=i))(content)

    assert read_dataset(data(edit)).n_frames == 1


def test_paths_of_all_kinds_are_found_inside_the_folder(data, written, tmp_path):
    def edit(frame, i):
        path = tmp_path / frame["file_path"]
        stated = (path, f"../{tmp_path.name}/{frame['file_path']}", path.with_suffix(".png"))[i // 3]
        frame.update(file_path=str(stated))

    assert torch.equal(read_dataset(data(per_frame(edit))).images, read_views(written).images)
    (tmp_path / "link").symlink_to(tmp_path)
    assert read_dataset(tmp_path / "link").n_frames == N_FRAMES
    beside = tmp_path.parent / f"{tmp_path.name}_2/a.png"
    with pytest.raises(ValueError, match="leads out of it"):
        read_dataset(data(per_frame(lambda frame, i: frame.update(file_path=str(beside)))))


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".webp", ".jpeg"])
def test_pictures_of_any_format_are_found_without_their_suffix(data, suffix):
    place = data()
    for file in (place / "frames").rglob("*.png"):
        with Image.open(file) as picture:
            picture.save(file.with_suffix(suffix), quality=95)
        file.unlink()
    assert read_dataset(place).n_frames == N_FRAMES


def test_matrices_of_three_rows_and_cameras_that_shake_are_read(data):
    noise = np.random.default_rng(0)

    def edit(frame, i):
        matrix = np.array(frame["transform_matrix"])
        matrix[:3] += noise.uniform(-4e-4, 4e-4, (3, 4))
        frame["transform_matrix"] = matrix[:3].tolist()

    read = read_dataset(data(per_frame(edit)))
    assert read.images.shape[:2] == (N_FRAMES, 3)
    assert read.cameras.azimuths_deg == pytest.approx(CAMERAS.azimuths_deg, abs=0.1)


def view(frame) -> int:
    return int(frame["file_path"].split("view_")[1][:2])


SAYS = {
    "order": (lambda c: c["frames"].reverse(), 0),
    "a frame": (lambda c: c["frames"][4].update(input_view=True), 1),
    "a frame in other words": (lambda c: c["frames"][5].update(is_input=True), 2),
    "the file, by number": (lambda c: c.update(input_view=2), 2),
    "the file, by name": (lambda c: c.update(input_view=c["frames"][1]["file_path"]), 1),
    "the file, by a name with a suffix": (lambda c: c.update(input_view="frames/view_01/00000.jpg"), 1),
}


@pytest.mark.parametrize("case", SAYS)
def test_the_input_view_is_the_one_that_says_so_else_the_first(data, case, written, caplog):
    edit, expected = SAYS[case]
    caplog.set_level(logging.INFO)
    read = read_dataset(data(edit))
    assert torch.equal(read.images[:, 0], read_views(written).images[:, expected])
    assert f"camera {expected} of 3, frame" in caplog.text and f"frames/view_0{expected}/0000" in caplog.text
    assert ("as the file says" in caplog.text) == (case != "order")
    assert read.cameras.input_azimuth_deg == pytest.approx(CAMERAS.azimuths_deg[expected])


def test_a_folder_called_input_is_the_input_view_unless_all_are(data, written):
    place = data(
        lambda c: [f.update(file_path=f["file_path"].replace("view_02", "input")) for f in c["frames"]]
    )
    (place / "frames/view_02").rename(place / "frames/input")
    assert torch.equal(read_dataset(place).images[:, 0], read_views(written).images[:, 2])
    data(per_frame(lambda frame, i: frame.update(file_path=frame["file_path"].replace("frames", "input"))))
    (place / "frames").rename(place / "input")
    assert torch.equal(read_dataset(place).images[:, 1], read_views(written).images[:, 0])


def test_the_command_chooses_the_input_view(data, written, tmp_path_factory, caplog):
    place = data(lambda content: content["frames"].reverse())
    expected = read_views(written)
    read = read_any_views(place, number=1)
    assert torch.equal(read.images, expected.images[:, [1, 0, 2]])
    with pytest.raises(ValueError, match=r"input view from 0 to 2 in .*; got 3"):
        read_any_views(place, number=3)
    for stated in ("nonsense", "1", 1.0, True):
        damaged = data(lambda content, stated=stated: content.update(input_view=stated))
        with pytest.raises(ValueError, match="number of a camera or the file_path of a frame as input_view"):
            read_any_views(damaged)
    place = data(lambda content: content.update(input_view=None))
    read_any_views(written, number=1)
    assert "--input-view is for data sets" in caplog.text
    out = str(tmp_path_factory.mktemp("out") / "views")
    assert main(["export", str(place), "--format", "dataset", "--input-view", "2", "--out", out]) == 0
    assert torch.allclose(read_any_views(out).images, expected.images[:, [2, 0, 1]], atol=0.02)
    assert read_any_views(out).cameras.input_azimuth_deg == pytest.approx(210)
    assert main(["metrics", str(place), str(place), "--input-view", "1", "--out", out + "m"]) == 0


PROGRAMS = {
    "NeRF-synthetic and D-NeRF": lambda c: (
        [c.pop(key) for key in ("fl_x", "fl_y", "cx", "cy", "w", "h", "camera_model", "fps")],
        per_frame(lambda f, i: f.update(rotation=0.0125))(c),
    ),
    "nerfstudio": lambda c: (
        c.pop("camera_angle_x"),
        c.update(ply_file_path="points.ply", applied_transform=[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]),
        per_frame(lambda f, i: f.update({k: c[k] for k in ("fl_x", "fl_y", "cx", "cy", "w", "h")}))(c),
        per_frame(lambda f, i: f.update(colmap_im_id=i, camera_model="OPENCV", k1=0.0, p1=0.0))(c),
        per_frame(lambda f, i: f.update(file_path=f["file_path"] + ".png"))(c),
        c["frames"].sort(key=lambda frame: str(frame["transform_matrix"])),
    ),
    "instant-ngp": lambda c: (
        c.update(
            aabb_scale=16, k1=0.0, k2=0.0, camera_angle_y=c["camera_angle_x"], scale=0.33, offset=[0, 0, 0]
        ),
        per_frame(lambda f, i: f.update(sharpness=31.5 + i))(c),
    ),
    "BlenderNeRF": lambda c: (
        c.update(camera_angle_y=c["camera_angle_x"], k1=0.0, k2=0.0, k3=0.0, k4=0.0, aabb_scale=4),
        per_frame(lambda f, i: f.update(file_path=f["file_path"] + ".png"))(c),
    ),
    "dynamic splats": lambda c: per_frame(
        lambda f, i: f.update(camera_id=i % 3, timestep_index=i // 3, timestep_id=f"{i // 3:05d}", time=None)
    )(c),
    "NeRFCapture": lambda c: per_frame(
        lambda f, i: f.update(timestamp=1234.5 + i // 3 / 30, time=None, depth_path=None, w=SIZE, h=SIZE)
    )(c),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_files_of_known_programs_read_right(data, program, written):
    expected, read = read_views(written), read_dataset(data(PROGRAMS[program]))
    assert torch.equal(read.images, expected.images)
    assert read.cameras.azimuths_deg == pytest.approx(CAMERAS.azimuths_deg)


BLENDER = shutil.which("blender")
BLENDER_SCRIPT = Path(__file__).parents[1] / "docs/render_with_blender.py"
RIG = Cameras((0, 0, 0, 25, -10), (0, 60, 120, 180, 240), input_elevation_deg=5)


def test_the_blender_script_writes_cameras_that_are_read(tmp_path):
    spec = importlib.util.spec_from_file_location("render_with_blender", BLENDER_SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    angles = zip(RIG.azimuths_deg, [e + 5 for e in RIG.elevations_deg], strict=True)
    content = script.transforms([script.camera_to_world(*pair) for pair in angles], 3, 6.0)
    for number, frame in enumerate(content["frames"]):
        file = tmp_path / f"{frame['file_path']}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (16, 16), (number, 0, 0, 128)).save(file)
    (tmp_path / "transforms_train.json").write_text(json.dumps(content))
    views = read_dataset(tmp_path)
    assert views.fps == 6 and views.frame_times() == (0, 0.5, 1)
    assert torch.allclose(views.cameras.c2w_opengl(), RIG.c2w_opengl(), atol=1e-6)
    assert torch.allclose(views.cameras.intrinsics(16), RIG.intrinsics(16))
    numbers = (views.images[:, :, 0, 0, 0] - (1 - 128 / 255)) * 255 * 255 / 128
    assert torch.allclose(numbers, torch.arange(15.0).view(3, 5), atol=1e-3)


@pytest.mark.skipif(BLENDER is None, reason="Blender is not installed")
def test_blender_renders_an_animated_glb_as_a_data_set(tmp_path):
    write_animated_glb(tmp_path / "ball.glb", bending_ball(n_frames=3))
    words = [BLENDER, "--background", "--python-exit-code", "1", "--python", BLENDER_SCRIPT]
    words += ["--", tmp_path / "ball.glb", tmp_path / "out", "--frames", "3", "--size", "48"]
    subprocess.run([*words, "--azimuths", "0", "60", "200", "--elevations", "10"], check=True, timeout=300)
    views = read_dataset(tmp_path / "out")
    cameras = Cameras((0, 0, 0), (0, 60, 200), input_elevation_deg=10)
    assert torch.allclose(views.cameras.c2w_opengl(), cameras.c2w_opengl(), atol=1e-6)
    shares = views.masks.mean(dim=(2, 3))
    assert 0.05 < shares.min() and not any(views.masks.movedim(axis, 0)[[0, -1]].any() for axis in (2, 3))
    assert (views.masks[0] - views.masks[-1]).abs().mean() > 0.01
