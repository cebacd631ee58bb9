"""Texts that name files: each stays inside ComfyUI's folders, whatever is typed or posted."""

import os
import sys
from contextlib import contextmanager

import pytest
import torch
from sv4d2_host_media import moving_block
from sv4d2_recorded_schemas import defaults

# Every text and choice of our nodes; a new one is put down here, with what it names.
READ = {"SV4D2LoadViews.folder", "SV4D2LoadScene.file"}
WRITTEN = {
    *("SV4D2SaveViews.filename_prefix", "SV4D2SaveScene.filename_prefix", "SV4D2Export4D.filename_prefix"),
    *("SV4D2ExportDataset.filename_prefix", "SV4D2Metrics.filename_prefix"),
}
LISTED = {
    *("SV4D2CheckpointLoader.ckpt_name", "SV4D2UNETLoader.unet_name"),
    *("SV4D2Metrics.lpips", "SV4D2Metrics.i3d"),
}
NO_PLACE = {
    *("SV4D2CheckpointLoader.variant", "SV4D2CheckpointLoader.weight_dtype"),
    *("SV4D2UNETLoader.variant", "SV4D2UNETLoader.weight_dtype"),
    *("SV4D2PrepareClip.centering", "SV4D2PrepareClip.alpha"),
    *("SV4D2CameraOrbit.preset", "SV4D2CameraOrbit.elevations_deg", "SV4D2CameraOrbit.azimuths_deg"),
    *("SV4D2CameraInfoToCameras.input_view", "SV4D2Guidance.shape"),
    *("SV4D2Sampler.sampler_name", "SV4D2Sampler.scheduler", "SV4D2Sampler.guidance"),
    "SV4D2Sampler.windows",
    *("SV4D2ViewsToImages.mode", "SV4D2ImagesToViews.order", "SV4D2RendersToViews.order"),
    *("SV4D2SaveViews.crop", "SV4D2ExportDataset.crop", "SV4D2Refine4D.crop", "SV4D2Metrics.method"),
    *("SV4D2Refine4D.backend", "SV4D2Refine4D.stages", "SV4D2Refine4D.elevation", "SV4D2Refine4D.field"),
    *("SV4D2Render4D.mode", "SV4D2Export4D.format", "SV4D2ExportDataset.format"),
}
NEWER = {"SV4D2CameraInfoToCameras.input_view"}  # of nodes that older hosts lack

HOSTILE = [
    *("../outside/views", "a/../../outside/x", "..\\..\\outside\\x", "{outside}/views", "{outside}/x", "/"),
    *(
        "/etc/x",
        "/dev/zero",
        "//host/share/x",
        "\\\\host\\share\\x",
        "C:\\Windows\\x",
        "c:x",
        "~/x",
        "~root/x",
    ),
    *("a\0b", "a\nb", "a\x1b[31m", "a\x1fb", "\ud800", "x" * 300, "é" * 120, "a/" * 600, "x" * 60_000),
    *("NUL", "con/x", "sub/COM1.txt/x", "aux .x", ".. /x", ".../x", "a/..", 5, None, ["x"], True),
    *("link/views", "link/x", "loop/x", "loop/x/y", "file/x", "pipe/x"),
]
EMPTY = ["", " ", ".", "..", "./"]
THERE = ["link", "linked", "device", "loop", "file", "pipe"]
THERE += [f"{name}.safetensors" for name in ("link", "device", "pipe")]
ODD = ["%date%/x", "%date:yyyy-MM-dd%", "%year%/%width%", "x [output]", "name [../input]", "file:///etc/x"]
ODD += ["é/名", "a/../b", "-x", "$HOME", "`id`"]

_seen, _watching = [], []


def _hear(event, args):
    """Note the whole paths of what Python opens, lists or changes; others belong to an open folder."""
    if _watching and event.split(".")[0] in ("open", "os", "shutil"):
        _seen.extend(os.path.realpath(x) for x in args[:2] if isinstance(x, str) and os.path.isabs(x))


sys.addaudithook(_hear)


@contextmanager
def nothing_outside(folder):
    """Check that nothing but the host's folders in ``folder`` was opened, listed or changed meanwhile."""
    kept = ("output", "temp")

    def content():
        places = [path for path in folder.rglob("*") if path.relative_to(folder).parts[0] not in kept]
        return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in places}

    before = content()
    _seen.clear()
    _watching.append(True)
    try:
        yield
    finally:
        _watching.clear()
    assert content() == before
    refused = (str(folder / "outside"), "/etc", "/dev/zero", os.path.expanduser("~/x"))
    assert [path for path in _seen if path.startswith(refused)] == []


@pytest.fixture
def folders(host_dirs, core, tmp_path, monkeypatch, views, scene):
    """Return the folder around the host's folders, in which links lead to things that could be read."""
    outside, output = tmp_path / "outside", host_dirs.output
    write = core("data.views_folder").write_views
    for place in (outside / "views", output / "linked"):
        write(place, views)
    (output / "linked/frames/view_00/00000.png").unlink()
    (output / "linked/frames/view_00/00000.png").symlink_to(outside / "views/frames/view_00/00000.png")
    scene.save(outside / "scene.safetensors")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    (output / "link").symlink_to(outside)
    (output / "link.safetensors").symlink_to(outside / "scene.safetensors")
    for name in ("device", "device.safetensors"):
        (output / name).symlink_to("/dev/zero")
    (output / "loop").symlink_to("loop")
    (output / "file").touch()
    for name in ("pipe", "pipe.safetensors"):
        os.mkfifo(output / name)
    return tmp_path


@pytest.fixture(scope="module")
def views(core):
    return core("views").ViewGrid(
        torch.rand(2, 2, 16, 16, 3), core("cameras").Cameras.ring(1), torch.ones(2, 2, 16, 16)
    )


@pytest.fixture(scope="module")
def scene(core):
    return moving_block(core, (0.8, 0.4, 0.2), 4.0)


@pytest.fixture
def given(pack, views, scene):
    """Return a function that runs a node with a text in an input: ``given("SV4D2LoadScene.file", "..")``."""
    more = {
        "SV4D2SaveViews": {"views": views, "save_latents": False},
        "SV4D2SaveScene": {"scene": scene},
        "SV4D2Export4D": {
            "scene": scene,
            **defaults("SV4D2Export4D", format="turntable-gif", frames=2, size=16),
        },
        "SV4D2ExportDataset": {"views": views, "format": "dataset"},
        "SV4D2Metrics": defaults(
            "SV4D2Metrics", views=views, reference=views, lpips="none", i3d="none", filename_prefix=""
        ),
        "SV4D2CheckpointLoader": {"variant": "auto", "weight_dtype": "default"},
        "SV4D2UNETLoader": {"variant": "auto", "weight_dtype": "default"},
    }

    def run(place, text):
        node, name = place.split(".")
        with torch.inference_mode():
            return pack[node].execute(**{**more.get(node, {}), name: text})

    return run


def test_every_text_and_choice_is_declared(pack):
    known = READ | WRITTEN | LISTED | NO_PLACE
    found = {
        f"{name}.{x.id}"
        for name, node in pack.items()
        for x in node.GET_SCHEMA().inputs
        if not {"STRING", "COMBO"}.isdisjoint(x.get_io_type().split(","))
    }
    assert found <= known and known - found <= NEWER, found ^ known


def readable(error):
    """Return whether a message is short, in whole sentences, on one line."""
    text = str(error)
    return len(text) <= 500 and text.endswith((".", ")")) and "\n" not in text and text.isprintable()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders, and links only for some users")
class TestHostile:
    @pytest.mark.parametrize("place", sorted(READ | WRITTEN | LISTED))
    def test_ends_in_one_message(self, place, folders, given):
        texts = HOSTILE + (EMPTY if place != "SV4D2Metrics.filename_prefix" else [])
        texts += ODD + THERE if place not in WRITTEN else []
        wrong = []
        for text in texts:
            text = text.format(outside=folders / "outside") if isinstance(text, str) else text
            with nothing_outside(folders):
                try:
                    wrong.append((text, given(place, text).args))
                except (ValueError, OSError) as error:
                    wrong += [] if readable(error) else [(text, type(error), str(error)[:300])]
        assert wrong == []
        assert sorted(path.name for path in (folders / "output").iterdir()) == sorted(THERE)

    @pytest.mark.parametrize("place", sorted(WRITTEN))
    def test_what_is_odd_alone_stays_inside(self, place, folders, given):
        for text in ODD + THERE:
            with nothing_outside(folders):
                name = given(place, text).args[2 if "Metrics" in place else 0]
            made = folders / "output" / name
            assert made.exists() and made.resolve().is_relative_to(folders / "output"), text


@pytest.mark.parametrize("text", ["../outside", "/etc/passwd", "a\0b", "\ud800", "x" * 5000, "NUL", "C:\\x"])
def test_posted_graphs_are_refused_and_the_server_goes_on(text, server):
    load = {"class_type": "SV4D2LoadScene", "inputs": {"file": "block.safetensors"}}
    for kind, inputs in (
        ("SV4D2SaveScene", {"scene": ["1", 0], "filename_prefix": text}),
        ("SV4D2LoadViews", {"folder": text}),
        ("SV4D2LoadScene", {"file": text}),
        ("SV4D2CheckpointLoader", {"ckpt_name": text, "variant": "auto", "weight_dtype": "default"}),
    ):
        graph = {"1": load, "2": {"class_type": kind, "inputs": inputs}}
        graph["3"] = {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}}
        outcome = server.prompt(graph)
        # Older hosts hand on what is not in a list.
        assert outcome.status == "error" or (outcome.status, kind) == ("refused", "SV4D2CheckpointLoader")
        assert outcome.status == "refused" or readable(outcome.message), outcome.message
