"""Files of Gaussians, read back by plyfile, trimesh, numpy and by hand, show the scene that was written."""

import json
from pathlib import Path

import numpy as np
import plyfile
import pygltflib
import pytest
import torch
from accessors import read_accessor
from scipy.spatial.transform import Rotation

from sv4d2_core.export.scene_export import ExportSettings
from sv4d2_core.export.splats import (
    checked,
    gaussians_at,
    in_splat_frame,
    write_splat_sequence,
    write_splats,
    write_trajectories,
)
from sv4d2_core.scene.gaussians.gaussians import Gaussians
from sv4d2_core.scene.gaussians.splat_torch import GaussiansAt
from sv4d2_core.scene.geometry.placement import ObjectPath
from sv4d2_core.scene.store import load_scene

COUNT = 150
SH_0 = 0.28209479177387814
KINDS = ("ply", "splat", "glb")
TIMES = (0.0, 0.25, 1.0)
# What 3DGS programs and viewers look for, in this order.
BEFORE, AFTER = (
    "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2",
    "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3",
)
COLUMNS = [*BEFORE.split(), *(f"f_rest_{i}" for i in range(45)), *AFTER.split()]
UPRIGHT, HALF_TURN = np.eye(3), np.diag([1.0, -1.0, -1.0])


@pytest.fixture(scope="module")
def scene() -> Gaussians:
    """Return Gaussians of all shapes that turn, grow and fade, about a path."""
    made = load_scene(Path(__file__).parent / "data/version_0_1/all_settings/gaussians.safetensors")
    assert isinstance(made, Gaussians)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for values in (made.canonical.quats, made.canonical.log_scales, made.canonical.opacities):
            values += 2 * torch.rand(values.shape, generator=draw) - 1
    made.path = ObjectPath((0.0, 1.0), ((0.0, 0.0, 0.0), (0.1, 0.05, -0.08)))
    return made


@pytest.fixture(scope="module")
def gaussians(scene) -> GaussiansAt:
    return gaussians_at(scene, 0.25)


def rotations(wxyz) -> Rotation:
    return Rotation.from_quat(np.asarray(wxyz)[:, [1, 2, 3, 0]])


def covariances(wxyz, scales, turn=UPRIGHT) -> np.ndarray:
    axes = turn @ rotations(wxyz).as_matrix() * np.asarray(scales, np.float64)[:, None]
    return axes @ axes.transpose(0, 2, 1)


def read_ply(path: Path, columns: list[str] = COLUMNS) -> dict[str, np.ndarray]:
    """Read a 3DGS PLY as its authors' code does, then turn it from +y down to our +y up.

    That code refuses other than 3 (degree + 1)^2 - 3 columns f_rest, by default 45.
    """
    data = plyfile.PlyData.read(str(path))
    vertex = data["vertex"]
    assert [p.name for p in vertex.properties] == columns
    assert data.byte_order == "<" and not data.text
    rest = [vertex[name] for name in columns if name.startswith("f_rest_")]
    assert not np.any(rest)
    names = (*BEFORE.split(), *AFTER.split())
    table = np.stack([vertex[name] for name in names], axis=1).astype(np.float64)
    return {
        "means": table[:, :3] * (1, -1, -1),
        "normals": table[:, 3:6],
        "colours": 0.5 + SH_0 * table[:, 6:9],
        "opacities": 1 / (1 + np.exp(-table[:, 9])),
        "covariances": covariances(table[:, 13:], np.exp(table[:, 10:13]), HALF_TURN),
        "scales": np.exp(table[:, 10:13]),
        "norms": np.linalg.norm(table[:, 13:], axis=1),
    }


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_fewer_harmonics_make_a_small_ply(tmp_path, gaussians, degree):
    size = write_splats(tmp_path / "a.ply", gaussians, kind="ply")
    small = write_splats(tmp_path / "b.ply", gaussians, kind="ply", sh_degree=degree)
    rest = 3 * (degree + 1) ** 2 - 3
    assert size - small >= 4 * COUNT * (45 - rest)
    columns = [name for name in COLUMNS if not name.startswith("f_rest_") or int(name[7:]) < rest]
    read, expected = read_ply(tmp_path / "b.ply", columns), read_ply(tmp_path / "a.ply")
    assert all(np.array_equal(read[key], expected[key]) for key in expected)
    with pytest.raises(ValueError, match="degree of harmonics of 0 to 3; got 4"):
        ExportSettings(sh_degree=4)


def test_the_ply_read_by_plyfile_holds_the_same_gaussians(tmp_path, gaussians):
    size = write_splats(tmp_path / "a.ply", gaussians, kind="ply")
    assert size == (tmp_path / "a.ply").stat().st_size
    back = read_ply(tmp_path / "a.ply")
    for name in ("means", "colours", "opacities", "scales"):
        np.testing.assert_allclose(back[name], getattr(gaussians, name), atol=1e-6)
    np.testing.assert_allclose(back["covariances"], covariances(gaussians.quats, gaussians.scales), atol=1e-8)
    assert not back["normals"].any()
    np.testing.assert_allclose(back["norms"], 1, atol=1e-6)


def test_the_axes_are_those_of_3dgs(tmp_path):
    """What is above the object (+y) is at -y in the file; what is nearer to the input camera (+z) at -z."""
    place, quats, colours = [[0.1, 0.2, 0.3]], [[1.0, 0, 0, 0]], [[1.0, 0.5, 0.0]]
    above = GaussiansAt(*map(torch.tensor, (place, quats, place, [0.5], colours)))
    write_splats(tmp_path / "a.ply", above, kind="ply", sh_degree=0)
    rows = np.frombuffer((tmp_path / "a.ply").read_bytes()[-68:], "<f4")
    assert rows[:3] == pytest.approx([0.1, -0.2, -0.3])
    assert rows[6:10] == pytest.approx([0.5 / SH_0, 0, -0.5 / SH_0, 0], abs=1e-6)
    assert rows[10:13] == pytest.approx(np.log([0.1, 0.2, 0.3]), abs=1e-6)
    back = in_splat_frame(in_splat_frame(above))
    assert torch.equal(back.means, above.means)
    assert (rotations(back.quats) * rotations(above.quats).inv()).magnitude() == pytest.approx(0, abs=1e-6)


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
    own = GaussiansAt(*(tensor.numpy() for tensor in gaussians))
    order = np.argsort(-(own.scales.astype(np.float64).prod(1) * own.opacities), kind="stable")
    np.testing.assert_allclose(floats[:, :3], (own.means * (1, -1, -1))[order], atol=1e-6)
    np.testing.assert_allclose(octets[:, :4] / 255, np.c_[own.colours, own.opacities][order], atol=0.002)
    read = covariances((octets[:, 4:] - 128) / 128, floats[:, 3:], HALF_TURN)
    np.testing.assert_allclose(read, covariances(own.quats, own.scales)[order], atol=5e-4)


def test_the_glb_has_the_attributes_of_the_khronos_extension(tmp_path, gaussians):
    write_splats(tmp_path / "a.glb", gaussians, kind="glb")
    glb = pygltflib.GLTF2().load_binary(str(tmp_path / "a.glb"))
    primitive = glb.meshes[0].primitives[0]
    assert glb.extensionsUsed == ["KHR_gaussian_splatting"] and primitive.mode == 0
    about = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    assert primitive.extensions == {"KHR_gaussian_splatting": about}
    prefix = "KHR_gaussian_splatting:"
    attributes = {name: i for name, i in vars(primitive.attributes).items() if i is not None}
    values = {name: read_accessor(glb, i) for name, i in attributes.items()}
    own = GaussiansAt(*(tensor.numpy() for tensor in gaussians))
    np.testing.assert_allclose(values.pop("POSITION"), own.means)
    np.testing.assert_allclose(values.pop(f"{prefix}SCALE"), own.scales)
    np.testing.assert_allclose(values.pop(f"{prefix}OPACITY")[:, 0], own.opacities)
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


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_gaussians_leave_nothing_and_others_become_single_precision(tmp_path, gaussians, kind):
    worst = gaussians.scales.clone()
    worst[3, 1] = float("inf")
    for wrong, text in (
        (GaussiansAt(*(tensor[:0] for tensor in gaussians)), "at least one Gaussian"),
        (gaussians._replace(scales=worst), "finite scales; 1 of 450"),
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
