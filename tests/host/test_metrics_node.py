"""The node that says how good views are."""

import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

# LPIPS with few channels: what the file's names and the first kernel's side say is all that is fixed.
LPIPS_LAYERS = {"1.0": (4, 3, 11), "2.3": (4, 4, 5), "3.6": (4, 4, 3), "4.8": (4, 4, 3), "5.10": (4, 4, 3)}


@pytest.fixture(scope="module")
def grid(core):
    """Return 4 frames of a creature from 2 novel views."""
    cameras = core("cameras").Cameras.ring(2)
    return core("world.render").render_views(core("world.body").make_creature(5), cameras, 4, 48)


@pytest.fixture(scope="module")
def clip_vision(core, nodes_of):
    """Return the image tower of the shipped model."""
    return nodes_of("load_model").load_checkpoint(str(core("shipped").TINY_MODEL), "auto", "default")[1]


@pytest.fixture
def models(host_dirs, pack, monkeypatch):
    """Return the model folder, which is empty."""
    import folder_paths

    folder = host_dirs.models / "sv4d2_metrics"
    folder.mkdir()
    extensions = folder_paths.folder_names_and_paths["sv4d2_metrics"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "sv4d2_metrics", ([str(folder)], extensions))
    return folder


@pytest.fixture
def score(pack, models):
    """Return a caller of the node as the host calls it, with nothing but views and defaults."""

    def call(views, **inputs):
        node = pack["SV4D2Metrics"].PREPARE_CLASS_CLONE({})
        given = {"lpips": "none", "i3d": "none", "method": "predicted", "filename_prefix": "", **inputs}
        with torch.inference_mode():
            return node.EXECUTE_NORMALIZED(views=views, **given)

    return call


def cells(table, method="predicted"):
    """Return a method's cell of every column of the Markdown tables."""
    found, head = {}, []
    for line in table.splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| method"):
            head = row
        elif line.startswith(f"| {method} "):
            found |= dict(zip(head, row, strict=True))
    return found


def value(output, name):
    (cell,) = (cell for head, cell in cells(output.args[0]).items() if head[:-2] == name)
    return float(cell.replace("∞", "inf"))


def test_views_alone(score, grid, host_dirs):
    output = score(grid)
    table, picture, folder = output.args
    assert "Without true views" in table and "no true views" in table and "reference" in table
    assert "PSNR ↑" not in table and 0 < value(output, "warping") < 1
    assert picture.shape[0] == 1 and picture.shape[3] == 3 and picture.dtype == torch.float32
    assert picture.min() >= 0 and picture.max() <= 1
    assert folder == "" and not any(host_dirs.output.iterdir()), "a blank prefix saves nothing"
    assert output.ui["images"]
    assert any("warping ↓ " in line for line in output.ui["text"])


def test_equal_views_are_perfect(score, grid):
    output = score(grid, reference=grid, method="  copy *1* ")
    table = output.args[0]
    row = cells(table, r"copy \*1\*")
    assert row["PSNR ↑"] == row["PSNR fg ↑"] == "∞" and row["SSIM ↑"] == row["mask IoU ↑"] == "1.000"
    assert "LPIPS is missing" in table and r"models/sv4d2\_metrics" in table
    assert "CLIP-S is missing" in table and r"clip\_vision" in table
    text = "\n".join(output.ui["text"])
    assert "PSNR ↑ ∞, SSIM ↑ 1.000" in text and "LPIPS" not in text


def test_untrained_weights_are_announced(score, grid):
    output = score(replace(grid, trained=False), reference=grid)
    assert "UNTRAINED WEIGHTS" in output.args[0] and "UNTRAINED WEIGHTS" in output.ui["text"][0]


def test_clip_s_comes_from_clip_vision(score, grid, clip_vision):
    assert value(score(grid, reference=grid, clip_vision=clip_vision), "CLIP-S") == 1
    other = replace(grid, images=1 - grid.images)
    assert value(score(other, reference=grid, clip_vision=clip_vision), "CLIP-S") < 0.999


def test_another_image_encoder_is_no_clip(score, grid):
    class Encoder:
        model = nn.Identity()

    with pytest.raises(ValueError, match="a CLIP vision model for CLIP-S; got Identity"):
        score(grid, reference=grid, clip_vision=Encoder())


def test_cancelling_stops_between_images(score, grid, clip_vision):
    import comfy.model_management

    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        score(grid, reference=grid, clip_vision=clip_vision)


def test_lpips_comes_from_the_model_folder(score, grid, models):
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for stage, (name, (width, channels, side)) in enumerate(LPIPS_LAYERS.items()):
        weights[f"net.slice{name}.weight"] = torch.randn(width, channels, side, side, generator=generator)
        weights[f"net.slice{name}.bias"] = torch.zeros(width)
        weights[f"lin{stage}.model.1.weight"] = torch.ones(1, width, 1, 1)
    (models / "sub").mkdir()
    save_file(weights, models / "sub" / "alex.safetensors")
    assert value(score(grid, reference=grid, lpips="sub/alex.safetensors"), "LPIPS") == 0
    darker = replace(grid, images=grid.images / 2)
    output = score(darker, reference=grid, lpips="sub/alex.safetensors")
    assert value(output, "LPIPS") > 0.01 and "LPIPS is missing" not in output.args[0]


def test_fvd_comes_from_the_model_folder(score, core, models):
    i3d = core("metrics.i3d")
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for key, shape in i3d._expected_tensors().items():
        scale = 1 / math.sqrt(math.prod(shape[1:])) if key.endswith("weight") else 0.0
        weights[key] = scale * torch.randn(shape, generator=generator)
    core("stored").write_tensors(models / "i3d.safetensors", "sv4d2.i3d", weights, {"fixed_padding": True})
    cameras = core("cameras").Cameras.ring(10)
    ten = core("world.render").render_views(core("world.body").make_creature(5), cameras, 2, 32)
    output = score(ten, reference=ten, i3d="i3d.safetensors")
    assert value(output, "FVD-V") == pytest.approx(0, abs=1e-3)
    assert "FVD-F needs clips of at least 10 images; these have 2" in output.args[0]


def test_a_program_is_refused_with_its_risk(score, grid, models):
    with zipfile.ZipFile(models / "i3d_torchscript.pt", "w") as program:
        program.writestr("code/run.py", "")
    with pytest.raises(ValueError, match="TorchScript is a program: .*convert-i3d --trust-code"):
        score(grid, reference=grid, i3d="i3d_torchscript.pt")


def test_each_file_list_shows_its_own_kind(pack, models):
    for name in ("b.safetensors", "a.safetensors", "i3d_torchscript.pt", "readme.txt"):
        (models / name).touch()
    inputs = pack["SV4D2Metrics"].GET_NODE_INFO_V1()["input"]["required"]
    assert inputs["lpips"][1]["options"] == ["none", "a.safetensors", "b.safetensors"]
    programs = ["i3d_torchscript.pt"]
    assert sorted(inputs["i3d"][1]["options"][1:]) == ["a.safetensors", "b.safetensors", *programs]


def test_the_model_folder_may_lie_elsewhere(nodes_of, models, tmp_path, monkeypatch):
    import folder_paths

    # What the host makes of a line in extra_model_paths.yaml, before it loads packs.
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "sv4d2_metrics")
    folder_paths.add_model_folder_path("sv4d2_metrics", str(tmp_path))
    networks = nodes_of("metrics")
    for _ in range(2):
        networks.register_folder()
        own = str(Path(folder_paths.models_dir) / "sv4d2_metrics")
        assert folder_paths.get_folder_paths("sv4d2_metrics") == [str(tmp_path), own]


@pytest.mark.parametrize(("name", "help_text"), [("lpips", "save_model"), ("i3d", "i3d_torchscript.pt")])
def test_a_missing_file_says_where_it_goes(score, grid, models, name, help_text):
    with pytest.raises(FileNotFoundError, match=rf"Expected 'gone\.x' in .*/sv4d2_metrics.*{help_text}"):
        score(grid, reference=grid, **{name: "gone.x"})


def test_the_report_is_saved_in_a_new_folder(score, grid, host_dirs):
    for number in (1, 2):
        output = score(grid, reference=grid, filename_prefix="sv4d2/metrics")
        folder = output.args[2]
        assert folder == f"sv4d2/metrics_{number:05d}"
        assert any(f"Saved in {folder}" in line for line in output.ui["text"])
        names = {path.name for path in (host_dirs.output / folder).iterdir()}
        assert names == {"report.json", "report.md", "report.html"}
        assert (host_dirs.output / folder / "report.md").read_text(encoding="utf-8") == output.args[0]
    run = json.loads((host_dirs.output / folder / "report.json").read_text(encoding="utf-8"))["run"]
    assert run["host"]["name"] == "ComfyUI" and run["lpips"] == "none" and "torch" in run["versions"]
