"""Animated GLB: what trimesh and pygltflib read back, and what is refused."""

import dataclasses
import importlib
import io
import os
import sys
import time
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from PIL import Image

from sv4d2_core.export.animations import write_animation
from sv4d2_core.export.glb import glb_bytes, write_animated_glb
from sv4d2_core.export.mesh import MeshAnimation, Texture, bake_texture
from sv4d2_core.export.sequences import write_usd
from sv4d2_core.export.splats import write_splats
from sv4d2_core.scene.gaussians.splatting import GaussiansAt

sys.path.insert(0, str(Path(__file__).parent / "three"))
bending = importlib.import_module("bending")

TYPES = {5126: np.float32, 5125: np.uint32, 5123: np.uint16}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def read_accessor(glb: pygltflib.GLTF2, number: int) -> np.ndarray:
    """Return the rows of an accessor, and check what it says about its own range."""
    accessor = glb.accessors[number]
    start, kind = glb.bufferViews[accessor.bufferView].byteOffset, TYPES[accessor.componentType]
    shape = accessor.count, WIDTHS[accessor.type]
    rows = np.frombuffer(glb.binary_blob(), kind, shape[0] * shape[1], start).reshape(shape)
    if accessor.max:
        assert rows.min(0).tolist() == accessor.min and rows.max(0).tolist() == accessor.max
    return rows


def test_pygltflib_reads_every_frame_at_its_time(tmp_path):
    animation = bending.bending_ball(n_frames=4, duration=1.5)
    size = write_animated_glb(tmp_path / "a.glb", animation)
    assert size == (tmp_path / "a.glb").stat().st_size
    glb = pygltflib.GLTF2().load_binary(str(tmp_path / "a.glb"))
    (mesh,), (motion,) = glb.meshes, glb.animations
    primitive = mesh.primitives[0]
    assert glb.nodes[0].name == mesh.name == "object"
    assert mesh.extras == {"targetNames": ["frame_001", "frame_002", "frame_003"]}
    sampler, target = motion.samplers[0], motion.channels[0].target
    assert (sampler.interpolation, target.node, target.path) == ("LINEAR", 0, "weights")
    assert read_accessor(glb, sampler.input)[:, 0] == pytest.approx([0, 0.5, 1.0, 1.5])
    weights = read_accessor(glb, sampler.output).reshape(4, 3)
    base = read_accessor(glb, primitive.attributes.POSITION)
    offsets = np.stack([read_accessor(glb, target["POSITION"]) for target in primitive.targets])
    shown = base + np.einsum("tk,knc->tnc", weights, offsets)
    np.testing.assert_allclose(shown, animation.positions.numpy(), atol=1e-6)
    indices = read_accessor(glb, primitive.indices)
    assert indices.reshape(-1, 3).tolist() == animation.faces.tolist()


def test_trimesh_reads_the_first_frame_with_its_colours(tmp_path):
    animation = bending.bending_ball()
    write_animated_glb(tmp_path / "a.glb", animation)
    scene = trimesh.load_scene(tmp_path / "a.glb", process=False)
    (read,) = scene.geometry.values()
    np.testing.assert_allclose(read.vertices, animation.positions[0].numpy(), atol=1e-6)
    assert read.faces.tolist() == animation.faces.tolist()
    assert read.is_watertight and read.volume > 0
    # The format's colours are linear; trimesh keeps them as they are, in 8 bits.
    expected = animation.colours.numpy()
    expected = np.where(expected <= 0.04045, expected / 12.92, ((expected + 0.055) / 1.055) ** 2.4)
    assert np.abs(read.visual.vertex_attributes["color"][:, :3] / 65535 - expected).max() < 1e-4


def test_the_material_asks_for_no_light_and_dark_tones_stay_apart():
    one = bending.bending_ball(n_frames=1)
    levels = torch.arange(len(one.colours)).clamp(max=255)
    dark = dataclasses.replace(one, colours=(levels / 255)[:, None].expand(-1, 3))
    glb = pygltflib.GLTF2().load_from_bytes(glb_bytes(dark))
    material, attributes = glb.materials[0], glb.meshes[0].primitives[0].attributes
    assert glb.extensionsUsed == ["KHR_materials_unlit"] and not glb.extensionsRequired
    assert "KHR_materials_unlit" in material.extensions
    # What a viewer without the extension falls back to.
    assert material.pbrMetallicRoughness.metallicFactor == 0
    assert material.pbrMetallicRoughness.roughnessFactor == 1
    colours = read_accessor(glb, attributes.COLOR_0)
    assert glb.accessors[attributes.COLOR_0].normalized and (colours[:, 3] == 65535).all()
    assert len(np.unique(colours[:, 0])) == len(levels.unique())


def test_one_frame_becomes_a_glb_without_animation():
    animation = bending.bending_ball(n_frames=1)
    glb = pygltflib.GLTF2().load_from_bytes(glb_bytes(animation))
    assert not glb.animations and not glb.meshes[0].primitives[0].targets
    assert glb_bytes(animation) == glb_bytes(animation.at(0))


def test_more_vertices_than_short_indices_reach():
    n = 70000
    mesh = bending.bending_ball(n_frames=1).at(0)
    faces = torch.tensor([[0, 1, n - 1]])
    large = dataclasses.replace(mesh, vertices=torch.rand(n, 3), colours=torch.rand(n, 3), faces=faces)
    glb = pygltflib.GLTF2().load_from_bytes(glb_bytes(large))
    assert read_accessor(glb, glb.meshes[0].primitives[0].indices)[:, 0].tolist() == [0, 1, n - 1]


def test_20k_vertices_and_21_frames_are_quick_and_small(tmp_path):
    n, times = 20000, tuple(t / 20 for t in range(21))
    faces = torch.randint(0, n, (2 * n, 3))
    animation = MeshAnimation(torch.rand(21, n, 3), faces, torch.rand(n, 3), times, duration=2.5)
    start = time.process_time()
    size = write_animated_glb(tmp_path / "a.glb", animation)
    assert size < 10e6 and time.process_time() - start < 5


def test_a_texture_takes_the_place_of_the_vertex_colours():
    animation = bending.bending_ball()
    n = animation.positions.shape[1]
    texture = Texture(torch.rand(n, 2), torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8))
    glb = pygltflib.GLTF2().load_from_bytes(glb_bytes(animation, texture))
    attributes = glb.meshes[0].primitives[0].attributes
    assert attributes.COLOR_0 is None
    np.testing.assert_array_equal(read_accessor(glb, attributes.TEXCOORD_0), texture.uvs.numpy())
    image = glb.images[glb.textures[glb.materials[0].pbrMetallicRoughness.baseColorTexture.index].source]
    view = glb.bufferViews[image.bufferView]
    png = glb.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), texture.pixels.numpy())


def test_a_baked_texture_has_the_colours_of_the_surface():
    pytest.importorskip("xatlas", reason="the optional extra texture is not installed")
    animation = bending.bending_ball(n_frames=3)
    opened, texture = bake_texture(animation, 256)
    assert opened.positions.shape[1] > animation.positions.shape[1]
    assert opened.faces.shape == animation.faces.shape
    for frame in range(3):
        before = animation.positions[frame][animation.faces]
        torch.testing.assert_close(opened.positions[frame][opened.faces], before)
    centres = texture.uvs[opened.faces].mean(1) * 256
    painted = texture.pixels[centres[:, 1].long(), centres[:, 0].long()] / 255
    assert (painted - opened.colours[opened.faces].mean(1)).abs().max() < 0.03
    red = torch.tensor([1.0, 0.0, 0.0]).expand_as(animation.colours)
    _, texture = bake_texture(dataclasses.replace(animation, colours=red), 128)
    assert (texture.pixels == torch.tensor([255, 0, 0])).all(), "texels beyond the charts, too"


def test_a_texture_that_cannot_be_baked_is_refused(monkeypatch):
    for size in (10, 9000):
        with pytest.raises(ValueError, match="64 to 8192"):
            bake_texture(bending.bending_ball(), size)
    monkeypatch.setitem(sys.modules, "xatlas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install xatlas"):
        bake_texture(bending.bending_ball())


BALL = bending.bending_ball(n_frames=3)
DAMAGED = BALL.positions.clone()
DAMAGED[1, :7, 2] = torch.nan


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"faces": torch.zeros(0, 3, dtype=torch.int64)}, "0 faces"),
        ({"positions": torch.zeros(3, 0, 3), "colours": torch.zeros(0, 3)}, "0 vertices"),
        ({"positions": DAMAGED}, "7 of 1458 numbers in the animation are NaN"),
        ({"colours": torch.full((162, 3), torch.nan)}, "finite colours"),
    ],
)
def test_what_no_file_can_hold_is_refused_and_leaves_nothing(tmp_path, changes, text):
    with pytest.raises(ValueError, match=text):
        write_animated_glb(tmp_path / "out" / "a.glb", dataclasses.replace(BALL, **changes))
    assert list(tmp_path.iterdir()) == []


def splats(path: Path, **options: bool) -> None:
    """Write one Gaussian."""
    one = GaussiansAt(*(torch.full((1, *shape), 0.5) for shape in ((3,), (4,), (3,), (), (3,))))
    write_splats(path, one, kind=path.suffix[1:], **options)


def pictures(path: Path, **options: bool) -> None:
    """Write two pictures."""
    write_animation(path, torch.rand(2, 32, 32, 3), None, 8, **options)


WRITERS = {
    "a.glb": lambda path, **options: write_animated_glb(path, BALL, **options),
    "a.usda": lambda path, **options: write_usd(path, [BALL.at(0)], [0.0], **options),
    **dict.fromkeys(("a.ply", "a.splat"), splats),
    **dict.fromkeys(("a.mp4", "a.webm", "a.gif"), pictures),
}


@pytest.mark.parametrize("name", WRITERS)
def test_an_existing_file_stays_unless_told(tmp_path, name):
    if name == "a.usda":
        pytest.importorskip("pxr.Usd", reason="the optional extra usd (usd-core) is not installed")
    path, write = tmp_path / name, WRITERS[name]
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        write(path)
    with pytest.raises(OSError, match="a file stands at"):
        write(path / name)
    assert path.read_text() == "mine"
    write(path, overwrite=True)
    assert path.read_bytes()[:4] != b"mine" and len(list(tmp_path.iterdir())) == 1
    folder = tmp_path / f"folder{path.suffix}"
    folder.mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        write(folder, overwrite=True)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "denied")])
def test_a_failure_on_the_disk_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch, error):
    def fail(_descriptor):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Free some space|change its permissions"):
        write_animated_glb(tmp_path / "new" / "a.glb", bending.bending_ball())
    assert list(tmp_path.iterdir()) == []
