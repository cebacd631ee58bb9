"""Camera files and data sets, read as COLMAP, D-NeRF and nerfstudio do, point at the right pixels."""

import json
import math
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.datasets import ColouredPoints, write_colmap, write_dataset
from sv4d2_core.data.reader import read_dataset
from sv4d2_core.data.transforms import read_cameras
from sv4d2_core.data.views_folder import cameras_json, write_views
from sv4d2_core.video.pictures import to_bytes
from sv4d2_core.views import ViewGrid

CAMERAS = Cameras((0, 0, 25, -15), (0, 60, 150, 280), input_elevation_deg=10.0)
N_FRAMES, SIZE = 3, 96
TIMES = (0.0, 0.4, 1.0)
# Three dots, far enough apart to be told by their colour, which move to their next place.
DOTS = torch.tensor([[0.3, 0.25, 0.1], [-0.25, 0.3, -0.2], [0.1, -0.35, 0.2]], dtype=torch.float64)
COLOURS = torch.tensor([[1.0, 0, 0], [0, 0.8, 0], [0, 0, 1.0]])
STEP = torch.tensor([0.05, -0.04, 0.03], dtype=torch.float64)
WHERE = {"colmap": write_colmap, "dataset": write_dataset}


def dots_at(frame: int) -> torch.Tensor:
    return DOTS + frame * STEP


@pytest.fixture(scope="module")
def grid() -> ViewGrid:
    """Return views of the dots, drawn with the cameras' own formula, with soft edges."""
    rows, columns = torch.meshgrid(*(2 * [torch.arange(SIZE, dtype=torch.float64) + 0.5]), indexing="ij")
    images = torch.ones(N_FRAMES, 4, SIZE, SIZE, 3)
    masks = torch.zeros(N_FRAMES, 4, SIZE, SIZE)
    K, w2c = CAMERAS.intrinsics(SIZE), CAMERAS.w2c_opencv()
    for t, v in np.ndindex(N_FRAMES, 4):
        for dot, colour in zip(dots_at(t), COLOURS, strict=True):
            x, y, z = (K @ (w2c[v, :3, :3] @ dot + w2c[v, :3, 3])).tolist()
            alpha = (3.5 - torch.hypot(columns - x / z, rows - y / z)).clamp(0, 1).float()
            images[t, v].lerp_(colour.expand(SIZE, SIZE, 3), alpha[..., None])
            masks[t, v].lerp_(torch.ones(SIZE, SIZE), alpha)
    return ViewGrid(images, CAMERAS, masks, 12.0, times=TIMES)


def seen_at(picture: np.ndarray, colour: torch.Tensor) -> tuple[float, float]:
    """Return the middle (x, y) of a dot in a picture [H, W, 3] on white."""
    weight = (1 - np.abs(picture / 255 - colour.numpy()).max(-1)).clip(0) ** 2 * (picture.min(-1) < 250)
    weight = np.where(weight > 0.25, weight, 0)
    rows, columns = np.indices(weight.shape) + 0.5
    return float((weight * columns).sum() / weight.sum()), float((weight * rows).sum() / weight.sum())


def on_white(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture.convert("RGBA"))
    return np.asarray(white.convert("RGB")).astype(float)


def read_model(folder: Path) -> list[list[list[str]]]:
    """Read a COLMAP text model by its documentation: the words of its cameras, images and points."""
    model = []
    for name in ("cameras", "images", "points3D"):
        lines = (folder / f"{name}.txt").read_text().split("\n")[:-1]
        model.append([line.split() for line in lines if not line.startswith("#")])
    # Two lines per image, the second of them (its 2D points) empty.
    assert len(model[1]) % 2 == 0 and not any(model[1][1::2])
    del model[1][1::2]
    return model


def test_colmap_points_project_onto_what_the_pictures_show(tmp_path, grid):
    clouds = [ColouredPoints(dots_at(t), COLOURS) for t in range(N_FRAMES)]
    made = write_colmap(tmp_path / "out", grid, clouds)
    assert [path.name for path in made] == ["frame_00000", "frame_00001", "frame_00002", "colmap.json"]
    for t in range(N_FRAMES):
        folder = tmp_path / f"out/frame_{t:05d}"
        [[camera, model, *lens]], images, points = read_model(folder / "sparse/0")
        width, height, fx, fy, cx, cy = map(float, lens)
        assert model == "PINHOLE" and {image[8] for image in images} == {camera}
        assert len({int(image[0]) for image in images}) == len(images) == 4 and len(points) == 3
        for _, *numbers, _, name in images:
            quat, shift = np.split(np.array(numbers, float), [4])
            picture = on_white(folder / "images" / name)
            assert picture.shape == (height, width, 3)
            assert np.linalg.norm(quat) == pytest.approx(1, abs=1e-12)
            for number, x, y, z, red, green, blue, error in points:
                assert float(error) == 0 and int(number) >= 1
                colour = torch.tensor([int(red), int(green), int(blue)]) / 255
                # COLMAP lists the real part first.
                turn = Rotation.from_quat(np.roll(quat, -1)).as_matrix()
                u, v, depth = turn @ np.array([x, y, z], float) + shift
                found = seen_at(picture, colour)
                assert math.dist((fx * u / depth + cx, fy * v / depth + cy), found) < 0.5
                assert depth > 0


def test_colmap_tells_the_times_and_names_masks_its_own_way(tmp_path, grid):
    write_colmap(tmp_path, grid)
    about = json.loads((tmp_path / "colmap.json").read_text())
    assert (about["times"], about["fps"]) == (list(TIMES), 12.0)
    folder = tmp_path / "frame_00001"
    assert read_model(folder / "sparse/0")[2] == []
    names = sorted(path.name for path in (folder / "images").iterdir())
    assert names == [f"view_{v:02d}.png" for v in range(4)]
    assert sorted(path.name for path in (folder / "masks").iterdir()) == [f"{name}.png" for name in names]
    with Image.open(folder / "images/view_00.png") as picture:
        assert picture.mode == "RGB"
    with Image.open(folder / "masks/view_00.png.png") as picture:
        assert np.array_equal(np.asarray(picture), to_bytes(grid.masks[1, 0]))
    write_colmap(tmp_path / "bare", ViewGrid(grid.images[:1], CAMERAS))
    assert not (tmp_path / "bare/frame_00000/masks").exists()
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == ["colmap.json", "frame_00000"]


def project_d_nerf(frame: dict, focal: float, point: torch.Tensor) -> tuple[float, float]:
    """Project a point of our world as D-NeRF's readers do: +z up, OpenGL axes, the middle of the picture."""
    x, y, z = point.tolist()
    there = np.linalg.inv(np.array(frame["transform_matrix"])) @ (x, -z, y, 1)
    return SIZE / 2 + focal * there[0] / -there[2], SIZE / 2 - focal * there[1] / -there[2]


@pytest.mark.parametrize("write", [write_dataset, write_views])
@pytest.mark.parametrize("name", ["transforms_train.json", "transforms.json"])
def test_transforms_point_at_what_the_pictures_show(tmp_path, grid, write, name):
    write(tmp_path, grid)
    content = json.loads((tmp_path / name).read_text())
    focal = 0.5 * SIZE / math.tan(0.5 * content["camera_angle_x"])
    assert (content["cx"], content["cy"], content["w"], content["h"]) == (48, 48, 96, 96)
    suffix = ".png" if name == "transforms.json" else ""
    for frame, (t, v) in zip(content["frames"], np.ndindex(N_FRAMES, 4), strict=True):
        path = f"./frames/view_{v:02d}/{t:05d}"
        assert (frame["file_path"], frame["time"]) == (path + suffix, TIMES[t])
        for dot, colour in zip(dots_at(t), COLOURS, strict=True):
            seen = seen_at(on_white(tmp_path / f"{path}.png"), colour)
            assert math.dist(project_d_nerf(frame, focal, dot), seen) < 0.5


def test_every_split_lists_all_views_and_nerfstudio_no_masks(tmp_path, grid):
    write_dataset(tmp_path, grid)
    train = (tmp_path / "transforms_train.json").read_text()
    frames = json.loads(train)["frames"]
    assert all((tmp_path / frame["mask_path"]).is_file() for frame in frames)
    nerfstudio = json.loads((tmp_path / "transforms.json").read_text())
    assert not any("mask_path" in frame for frame in nerfstudio["frames"])
    for split in ("train", "val", "test"):
        assert (tmp_path / f"transforms_{split}.json").read_text() == train
        assert nerfstudio[f"{split}_filenames"] == [f"{frame['file_path']}.png" for frame in frames]


def test_cameras_json_states_angles_conventions_matrices_and_crop(tmp_path, grid):
    write_views(tmp_path, grid, crop={"box": [1, 2, 3]})
    cameras = json.loads((tmp_path / "cameras.json").read_text())
    assert Cameras.from_json(cameras) == CAMERAS
    assert (cameras["size"], cameras["fps"], cameras["n_frames"]) == (SIZE, 12.0, N_FRAMES)
    assert cameras["crop"] == {"box": [1, 2, 3]}
    assert [view["azimuth_deg"] for view in cameras["views"]] == [0, 60, 150, 280]
    assert [view["elevation_deg"] for view in cameras["views"]] == [0, 0, 25, -15]
    assert [view["absolute_elevation_deg"] for view in cameras["views"]] == [10, 10, 35, -5]
    named = {"world", "angles", "c2w_opengl", "c2w_opencv", "K", "times", "crop"}
    assert named <= cameras["conventions"].keys()
    opengl = CAMERAS.c2w_opengl()
    for v, view in enumerate(cameras["views"]):
        # OpenCV's cameras look along +z and have y downwards.
        for key, expected in (
            ("c2w_opengl", opengl[v]),
            ("c2w_opencv", opengl[v] * torch.tensor([1, -1, -1, 1])),
        ):
            assert np.array(view[key]) == pytest.approx(expected.numpy())
        assert np.array(view["K"]) == pytest.approx(CAMERAS.intrinsics(SIZE).numpy())
    assert cameras_json(CAMERAS, 32, 8.0, [0.0], None)["crop"] is None


def test_our_own_reader_gives_the_grid_back(tmp_path, grid):
    even = replace(grid, times=None)
    write_dataset(tmp_path, even, crop={"box": [1, 2, 3]})
    for place in (tmp_path, tmp_path / "transforms.json"):
        back = read_dataset(place)
        assert torch.allclose(back.images, grid.images, atol=0.005)
        assert torch.allclose(back.masks, grid.masks, atol=0.002)
        assert back.fps == 12
        assert torch.allclose(back.cameras.c2w_opengl(), CAMERAS.c2w_opengl(), atol=1e-6)
    assert read_cameras(tmp_path) == CAMERAS
    assert json.loads((tmp_path / "cameras.json").read_text())["crop"] == {"box": [1, 2, 3]}


def test_pictures_are_rgba_and_every_view_has_a_video(tmp_path, grid):
    write_dataset(tmp_path, grid)
    with Image.open(tmp_path / "frames/view_02/00001.png") as picture:
        assert picture.mode == "RGBA"
        alpha = np.asarray(picture)[..., 3]
    with Image.open(tmp_path / "masks/view_02/00001.png") as mask:
        assert np.array_equal(np.asarray(mask), alpha)
    assert 0 < (alpha > 0).mean() < 0.2
    for v in range(4):
        with av.open(str(tmp_path / f"view_{v:02d}.mp4")) as video:
            assert len(list(video.decode(video=0))) == N_FRAMES


def test_views_without_masks_get_those_of_the_white_background(tmp_path, grid):
    write_dataset(tmp_path, ViewGrid(grid.images[:1], CAMERAS))
    with Image.open(tmp_path / "masks/view_00/00000.png") as mask:
        assert 0 < (np.asarray(mask) > 0).mean() < 0.2
    content = json.loads((tmp_path / "transforms.json").read_text())
    assert {frame["time"] for frame in content["frames"]} == {0}


@pytest.mark.parametrize("kind", WHERE)
def test_wrong_pictures_are_refused_before_anything_is_written(tmp_path, grid, kind):
    broken = grid.images.clone()
    broken[0, 0, 0, 0, 0] = float("nan")
    for wrong, text in (
        (replace(grid, images=grid.images[:, :, :80], masks=None), "80 x 96"),
        (replace(grid, images=broken), "finite numbers in the images; 1 are"),
        (replace(grid, masks=grid.masks / 0), "finite numbers in the masks"),
    ):
        with pytest.raises(ValueError, match=text):
            WHERE[kind](tmp_path / "out", wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_views_is_not_taken_for_a_data_set(tmp_path, grid):
    write_views(tmp_path, grid)
    with pytest.raises(FileExistsError, match=r"cameras\.json, frames, masks.*, which no export"):
        write_dataset(tmp_path, grid, overwrite=True)
