"""Files of Gaussians, read back by plyfile, trimesh, numpy and by hand, show the scene that was written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.splats import (
    checked,
    gaussians_at,
    in_splat_frame,
    write_splat_sequence,
    write_splats,
    write_trajectories,
)
from sv4d2_core.scene.config import GaussiansConfig
from sv4d2_core.scene.gaussians.gaussians import CanonicalGaussians, Gaussians
from sv4d2_core.scene.gaussians.splat_torch import GaussiansAt
from sv4d2_core.scene.gaussians.splatting import splat
from sv4d2_core.scene.geometry.placement import ObjectPath

CAMERAS = Cameras((0, 20), (0, 75))
COUNT, SIZE = 60, 48
SH_0 = 0.28209479177387814
KINDS = ("ply", "splat", "glb")
TIMES = (0.0, 0.25, 1.0)
# What 3DGS programs and viewers look for, in this order.
COLUMNS = (
    "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
)
UPRIGHT, HALF_TURN = np.eye(3), np.diag([1.0, -1.0, -1.0])


@pytest.fixture(scope="module")
def scene() -> Gaussians:
    """Return Gaussians of all shapes that turn, grow and fade, about a path."""
    draw = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw)

    config = GaussiansConfig(count=COUNT, features=4, plane_sizes=(8,), hidden=16, fade=1.0)
    canonical = CanonicalGaussians(drawn(COUNT, 3) - 0.5, 0.05, 0.6, drawn(COUNT, 3))
    box = torch.tensor([[-0.6] * 3, [0.6] * 3])
    made = Gaussians(canonical, box, (0.01, 0.2), CAMERAS, 8.0, TIMES, config, draw)
    with torch.no_grad():
        canonical.quats.copy_(drawn(COUNT, 4) - 0.5)
        canonical.log_scales += 1.5 * (drawn(COUNT, 3) - 0.5)
        canonical.opacities += 4 * (drawn(COUNT) - 0.5)
        made.deformation.head.weight.copy_(0.1 * (drawn(10, 16) - 0.5))
        for planes in made.deformation.time:
            planes.mul_(0.5 + drawn(*planes.shape))
    made.path = ObjectPath((0.0, 1.0), ((0.0, 0.0, 0.0), (0.1, 0.05, -0.08)))
    return made


@pytest.fixture(scope="module")
def gaussians(scene) -> GaussiansAt:
    return gaussians_at(scene, 0.25)


def matrices(wxyz: np.ndarray) -> np.ndarray:
    """Return the rotations of quaternions by the textbook's formula, [N, 3, 3]."""
    w, x, y, z = (wxyz / np.linalg.norm(wxyz, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def covariances(wxyz, scales, turn=UPRIGHT) -> np.ndarray:
    axes = turn @ matrices(np.asarray(wxyz, np.float64)) * np.asarray(scales, np.float64)[:, None]
    return axes @ axes.transpose(0, 2, 1)


def read_ply(path: Path) -> dict[str, np.ndarray]:
    """Read a 3DGS PLY as its authors' code does, then turn it from +y down to our +y up."""
    plyfile = pytest.importorskip("plyfile", reason="plyfile reads the PLY files back")
    data = plyfile.PlyData.read(str(path))
    vertex = data["vertex"]
    assert [p.name for p in vertex.properties] == COLUMNS
    assert data.byte_order == "<" and not data.text
    table = np.stack([vertex[name] for name in COLUMNS], axis=1).astype(np.float64)
    return {
        "means": table[:, :3] * (1, -1, -1),
        "normals": table[:, 3:6],
        "colours": 0.5 + SH_0 * table[:, 6:9],
        "opacities": 1 / (1 + np.exp(-table[:, 9])),
        "covariances": covariances(table[:, 13:], np.exp(table[:, 10:13]), HALF_TURN),
        "scales": np.exp(table[:, 10:13]),
        "quats": table[:, 13:],
    }


def read_glb(path: Path) -> tuple[dict, list[np.ndarray]]:
    content = path.read_bytes()
    *head, text_length = np.frombuffer(content[:16], "<u4").tolist()
    assert head == [0x46546C67, 2, len(content)]
    text = json.loads(content[20 : 20 + text_length])
    body = content[28 + text_length :]
    arrays = []
    for accessor in text["accessors"]:
        view = text["bufferViews"][accessor["bufferView"]]
        part = body[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        kind = {5126: "<f4", 5123: "<u2"}[accessor["componentType"]]
        width = {"SCALAR": (), "VEC3": (3,), "VEC4": (4,)}[accessor["type"]]
        arrays.append(np.frombuffer(part, kind).reshape(accessor["count"], *width))
    return text, arrays


def test_the_ply_read_by_plyfile_holds_the_same_gaussians(tmp_path, gaussians):
    size = write_splats(tmp_path / "a.ply", gaussians, kind="ply")
    assert size == (tmp_path / "a.ply").stat().st_size
    back = read_ply(tmp_path / "a.ply")
    for name in ("means", "colours", "opacities", "scales"):
        np.testing.assert_allclose(back[name], getattr(gaussians, name), atol=1e-6)
    np.testing.assert_allclose(back["covariances"], covariances(gaussians.quats, gaussians.scales), atol=1e-8)
    assert not back["normals"].any()
    np.testing.assert_allclose(np.linalg.norm(back["quats"], axis=1), 1, atol=1e-6)


def test_the_file_shows_what_the_scene_shows(tmp_path, scene):
    """Sees the file's Gaussians in its own axes, with cameras turned into them: the scene's own pictures."""
    expected = scene.render(CAMERAS, [1.0], SIZE)
    write_splats(tmp_path / "a.ply", gaussians_at(scene, 1.0), kind="ply")
    back = read_ply(tmp_path / "a.ply")
    # The half turn in the other direction, by scipy.
    rotation = pytest.importorskip("scipy.spatial.transform", reason="scipy turns the quaternions").Rotation
    turned = rotation.from_matrix(HALF_TURN) * rotation.from_quat(back["quats"][:, [1, 2, 3, 0]])
    back["quats"] = turned.as_quat()[:, [3, 0, 1, 2]]
    own = [torch.tensor(back[name]).float() for name in GaussiansAt._fields]
    assert float(expected.alpha.mean()) > 0.1
    for view in range(2):
        picture = splat(GaussiansAt(*own), CAMERAS, view, SIZE)
        assert float((picture.rgb - expected.rgb[0, view]).abs().max()) < 2e-3


def test_the_axes_are_those_of_3dgs(tmp_path):
    """What is above the object (+y) is at -y in the file; what is nearer to the input camera (+z) at -z."""
    place, quats, colours = [[0.1, 0.2, 0.3]], [[1.0, 0, 0, 0]], [[1.0, 0.5, 0.0]]
    above = GaussiansAt(*map(torch.tensor, (place, quats, place, [0.5], colours)))
    write_splats(tmp_path / "a.ply", above, kind="ply")
    rows = np.frombuffer((tmp_path / "a.ply").read_bytes()[-68:], "<f4")
    assert rows[:3] == pytest.approx([0.1, -0.2, -0.3])
    assert rows[6:10] == pytest.approx([0.5 / SH_0, 0, -0.5 / SH_0, 0], abs=1e-6)
    assert rows[10:13] == pytest.approx(np.log([0.1, 0.2, 0.3]), abs=1e-6)
    back = in_splat_frame(in_splat_frame(above))
    assert torch.equal(back.means, above.means)
    np.testing.assert_allclose(matrices(back.quats.numpy()), matrices(above.quats.numpy()), atol=1e-6)


@pytest.mark.parametrize(("kind", "axes"), [("ply", (1, -1, -1)), ("glb", (1, 1, 1))])
def test_trimesh_reads_points(tmp_path, gaussians, kind, axes):
    trimesh = pytest.importorskip("trimesh", reason="trimesh reads the files back")
    write_splats(tmp_path / f"a.{kind}", gaussians, kind=kind)
    (cloud,) = trimesh.load_scene(tmp_path / f"a.{kind}").geometry.values()
    np.testing.assert_allclose(cloud.vertices, gaussians.means * torch.tensor(axes), atol=1e-6)


def test_opacities_of_0_and_1_and_flat_gaussians_stay_finite(tmp_path, gaussians):
    opacities, scales = gaussians.opacities.clone(), gaussians.scales.clone()
    opacities[0], opacities[1], scales[2, 1] = 0, 1, 0
    write_splats(tmp_path / "a.ply", gaussians._replace(opacities=opacities, scales=scales), kind="ply")
    back = read_ply(tmp_path / "a.ply")
    assert all(np.isfinite(values).all() for values in back.values())
    np.testing.assert_allclose(back["opacities"], opacities, atol=2e-6)


def test_a_splat_row_is_32_bytes_and_what_matters_most_comes_first(tmp_path, gaussians):
    assert write_splats(tmp_path / "a.splat", gaussians, kind="splat") == 32 * COUNT
    content = (tmp_path / "a.splat").read_bytes()
    floats = np.frombuffer(content, "<f4").reshape(COUNT, 8)[:, :6]
    octets = np.frombuffer(content, np.uint8).reshape(COUNT, 32)[:, 24:].astype(float)
    weights = floats[:, 3:6].astype(np.float64).prod(1) * octets[:, 3]
    assert (np.diff(weights) <= 0.005 * weights[:-1] + 1e-6).all()
    own = GaussiansAt(*(tensor.numpy() for tensor in gaussians))
    order = np.argsort(-(own.scales.astype(np.float64).prod(1) * own.opacities), kind="stable")
    np.testing.assert_allclose(floats[:, :3], (own.means * (1, -1, -1))[order], atol=1e-6)
    np.testing.assert_allclose(octets[:, :4] / 255, np.c_[own.colours, own.opacities][order], atol=0.002)
    read = covariances((octets[:, 4:] - 128) / 128, floats[:, 3:], HALF_TURN)
    np.testing.assert_allclose(read, covariances(own.quats, own.scales)[order], atol=5e-4)


def test_the_glb_has_the_attributes_of_the_khronos_extension(tmp_path, gaussians):
    write_splats(tmp_path / "a.glb", gaussians, kind="glb")
    content, arrays = read_glb(tmp_path / "a.glb")
    primitive = content["meshes"][0]["primitives"][0]
    assert content["extensionsUsed"] == ["KHR_gaussian_splatting"] and primitive["mode"] == 0
    about = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    assert primitive["extensions"] == {"KHR_gaussian_splatting": about}
    prefix = "KHR_gaussian_splatting:"
    values = {name: arrays[i] for name, i in primitive["attributes"].items()}
    own = GaussiansAt(*(tensor.numpy() for tensor in gaussians))
    np.testing.assert_allclose(values.pop("POSITION"), own.means)
    np.testing.assert_allclose(values.pop(f"{prefix}SCALE"), own.scales)
    np.testing.assert_allclose(values.pop(f"{prefix}OPACITY"), own.opacities)
    np.testing.assert_allclose(values.pop(f"{prefix}ROTATION")[:, [3, 0, 1, 2]], own.quats, atol=1e-6)
    harmonics = values.pop(f"{prefix}SH_DEGREE_0_COEF_0")
    np.testing.assert_allclose(0.5 + SH_0 * harmonics, own.colours, atol=1e-6)
    points = values.pop("COLOR_0")
    assert points.dtype == np.uint16 and points.shape == (COUNT, 4) and not values
    linear = points[:, :3] / 65535
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(encoded, own.colours, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_is_one_file_per_time(tmp_path, scene, kind):
    frames = (gaussians_at(scene, time) for time in TIMES)
    made = write_splat_sequence(tmp_path / "out", frames, TIMES, 12.5, kind=kind)
    names = [f"splat_{t:05d}.{kind}" for t in range(3)]
    assert [path.name for path in made] == [*names, "sequence.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sequence.json", *names]
    about = json.loads((tmp_path / "out/sequence.json").read_text())
    assert (about["fps"], about["times"], about["format"]) == (12.5, list(TIMES), kind)
    assert ("y up, z towards" if kind == "glb" else "y down, z forward") in about["axes"]
    for name, time in zip(names, TIMES, strict=True):
        write_splats(tmp_path / f"alone.{kind}", gaussians_at(scene, time), overwrite=True, kind=kind)
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / f"alone.{kind}").read_bytes()
    assert len({(tmp_path / "out" / name).read_bytes() for name in names}) == 3


def test_a_list_of_entries_that_leads_elsewhere_removes_nothing(tmp_path, gaussians):
    (tmp_path / "mine.ply").write_text("mine")
    out = tmp_path / "out"
    write_splat_sequence(out, [gaussians], [0], 8)
    about = json.loads((out / "sequence.json").read_text())
    about["entries"] += ["../mine.ply", str(tmp_path / "mine.ply"), 7]
    (out / "sequence.json").write_text(json.dumps(about))
    write_splat_sequence(out, [gaussians], [0], 8, overwrite=True)
    assert (tmp_path / "mine.ply").read_text() == "mine"


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_gaussians_leave_nothing_and_others_become_single_precision(tmp_path, gaussians, kind):
    worst = gaussians.scales.clone()
    worst[3, 1] = float("inf")
    for wrong, text in (
        (GaussiansAt(*(tensor[:0] for tensor in gaussians)), "at least one Gaussian"),
        (gaussians._replace(scales=worst), "finite scales; 1 of 180"),
        (gaussians._replace(scales=-gaussians.scales), "scales of at least 0"),
        (gaussians._replace(opacities=gaussians.opacities + 1), "opacities in 0..1"),
    ):
        with pytest.raises(ValueError, match=text):
            write_splats(tmp_path / "a", wrong, kind=kind)
        with pytest.raises(ValueError, match=text):
            write_splat_sequence(tmp_path / "a/b", [gaussians, wrong], [0, 1], 8, kind=kind)
    assert list(tmp_path.iterdir()) == []
    one = checked(GaussiansAt(*(tensor[:1].double() for tensor in gaussians)))
    assert [tensor.dtype for tensor in one] == [torch.float32] * 5
    assert float(one.quats.norm()) == pytest.approx(1)


def test_the_path_of_the_object_is_in_what_is_written(scene):
    still, resting, moved = gaussians_at(scene, None), scene.at_time(1.0), gaussians_at(scene, 1.0)
    assert torch.allclose(moved.means, resting.means + torch.tensor([0.1, 0.05, -0.08]), atol=1e-6)
    assert torch.equal(still.means, scene.canonical.means)
    assert not moved.means.requires_grad
    with pytest.raises(ValueError, match=r"a time in 0\.\.1; got 1\.5"):
        gaussians_at(scene, 1.5)


def test_trajectories_hold_every_field_that_is_promised(tmp_path, scene):
    size = write_trajectories(tmp_path / "a.npz", scene, TIMES)
    assert size == (tmp_path / "a.npz").stat().st_size
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        held = dict(file)
    n = COUNT
    own = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,)}
    others = {"colours": (n, 3), "shifts": (3, 3), "times": (3,), "fps": ()}
    moving = {name: (3, *shape) for name, shape in own.items()}
    canonical = {f"canonical_{name}": shape for name, shape in own.items()}
    assert {name: array.shape for name, array in held.items()} == moving | canonical | others
    assert held["times"].tolist() == list(TIMES) and held["fps"] == 8
    assert held["shifts"][2].tolist() == pytest.approx([0.1, 0.05, -0.08])
    for i, time in enumerate(TIMES):
        now = gaussians_at(scene, time)
        for name in own:
            np.testing.assert_array_equal(held[name][i], getattr(now, name))
    assert not np.array_equal(held["opacities"][0], held["opacities"][2])
    np.testing.assert_array_equal(held["canonical_means"], scene.canonical.means.detach())


def test_trajectories_of_chosen_times_and_of_a_scene_without_path(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(scene, "path", None)
    write_trajectories(tmp_path / "a.npz", scene, [0.5])
    with np.load(tmp_path / "a.npz") as file:
        assert file["means"].shape == (1, COUNT, 3) and not file["shifts"].any()
    with pytest.raises(FileExistsError):
        write_trajectories(tmp_path / "a.npz", scene, TIMES)
    with torch.no_grad():
        monkeypatch.setattr(scene.canonical.means, "data", scene.canonical.means.data * float("nan"))
    with pytest.raises(ValueError, match="finite"):
        write_trajectories(tmp_path / "b.npz", scene, TIMES)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
