"""Scenes in a running ComfyUI: previews, cancelling, going on, the host's own 3D nodes, and messages."""

from __future__ import annotations

import time

import pytest
from sv4d2_recorded_schemas import defaults

REFINE = defaults("SV4D2Refine4D", steps=12, elevation="given", strength=0.5, sampling_steps=2)


def graph_of(**changes):
    """Return views -> refine (node 2) -> render -> pictures; changes of the refiner's inputs."""
    inputs = {"views": ["1", 0], **REFINE, **changes}
    return {
        "1": {"class_type": "SV4D2LoadViews", "inputs": {"folder": "creature"}},
        "2": {"class_type": "SV4D2Refine4D", "inputs": inputs},
        "3": {
            "class_type": "SV4D2Render4D",
            "inputs": {"scene": ["2", 0], "mode": "views", "frames": 2, "size": 32, "turns": 1.0},
        },
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
        "5": {"class_type": "SV4D2SaveScene", "inputs": {"scene": ["2", 0], "filename_prefix": "4d/scene"}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}},
    }


def test_views_become_pictures_and_the_fit_is_watched(server):
    outcome = server.prompt(graph_of())
    assert outcome.status == "success", outcome.message
    assert "3 frames of 5 views at 32 px with dynerf: 12 steps" in "\n".join(outcome.outputs["2"]["text"])
    # The last of them brings the picture of the finished fit.
    assert outcome.progress("2") == [*((i + 1, 12) for i in range(12)), (12, 12)]
    assert outcome.n_previews > 1
    assert len(outcome.outputs["4"]["images"]) == 5 * 2
    again = server.prompt(graph_of())
    assert "2" in again.cached_nodes
    saved = sorted(path.name for path in (server.base / "output/4d").iterdir())
    assert saved[0] == "scene_00001.safetensors"


def test_cancelled_fit_stops_at_once_and_goes_on_where_it_was(server):
    graph = graph_of(seed=777, steps=2000)
    cancelled = server.prompt(
        graph, interrupt_when=lambda event: event.kind == "progress" and event.data["value"] >= 12
    )
    assert cancelled.status == "interrupted", cancelled.message
    assert cancelled.interrupt_seconds < 5
    stopped = cancelled.progress("2")[-1][0]
    again = server.prompt(
        graph, interrupt_when=lambda event: event.kind == "progress" and event.data["value"] >= stopped + 3
    )
    assert again.status == "interrupted" and again.interrupt_seconds < 5
    # The step in which the user cancelled is kept.
    assert again.progress("2")[0][0] == stopped + 2


EXPORT = defaults("SV4D2Export4D", filename_prefix="4d/export", faces=400, resolution=24, size=32)
VIEWER = dict(viewport_state={}, width=64, height=64)


def need(server, *kinds):
    """Skip the test where the host lacks a node, and say so."""
    info = server.object_info()
    if missing := [kind for kind in kinds if kind not in info]:
        version = server.get("/system_stats")["system"]["comfyui_version"]
        pytest.skip(f"ComfyUI {version} has no {', '.join(missing)}")


def exported(format, **readers):
    """Return views -> refine -> export (node 3) -> readers of its file, by node type, from node 4 on."""
    splats = format.startswith("splat")
    graph = graph_of(backend="gaussians" if splats else "dynerf", steps=30)
    graph = {number: graph[number] for number in "12"}
    graph["3"] = {"class_type": "SV4D2Export4D", "inputs": {"scene": ["2", 0], **EXPORT, "format": format}}
    for number, (kind, inputs) in enumerate(readers.items(), start=4):
        graph[str(number)] = {"class_type": kind, "inputs": inputs}
    return graph


def written(server, entry):
    """Return a file that a node's result names."""
    return server.base / entry["type"] / entry["subfolder"] / entry["filename"]


def job_of(server, outcome):
    """Return what the host keeps of a run, which it writes down shortly after its end."""
    for _ in range(100):
        job = server.get(f"/api/jobs/{outcome.events[-1].data['prompt_id']}")
        if job["status"] == "completed":
            return job
        time.sleep(0.1)
    raise TimeoutError(f"The run is still listed as {job['status']}")


def test_the_moving_mesh_reaches_the_hosts_viewer_and_saver(server):
    need(server, "Preview3DAdvanced", "Save3DAdvanced")
    file = {**VIEWER, "model_3d": ["3", 2]}
    saver = {**file, "filename_prefix": "4d/saved"}
    outcome = server.prompt(exported("glb", Preview3DAdvanced=file, Save3DAdvanced=saver))
    assert outcome.status == "success", outcome.message
    (made,) = outcome.outputs["3"]["3d"]
    original = written(server, made).read_bytes()
    assert made["filename"].endswith(".glb") and b'"animations"' in original
    assert (server.base / "temp" / outcome.outputs["4"]["result"][0]).read_bytes() == original
    saved = outcome.outputs["5"]["result"][0]
    assert saved.startswith("4d/saved_") and (server.base / "output" / saved).read_bytes() == original
    # What the page lists as the run's result.
    listed = job_of(server, outcome)["preview_output"]
    assert listed | made == listed and listed["mediaType"] == "3d"


def test_splats_reach_the_hosts_viewer_saver_and_parser(server):
    need(server, "PreviewGaussianSplat", "SaveGaussianSplat", "File3DToSplat", "GetSplatCount")
    file = {**VIEWER, "model_3d": ["3", 3]}
    graph = exported(
        "splat-ply",
        PreviewGaussianSplat=file,
        SaveGaussianSplat={**file, "filename_prefix": "4d/splat"},
        File3DToSplat={"model_3d": ["3", 3]},
        GetSplatCount={"splat": ["6", 0]},
        PreviewAny={"source": ["7", 1]},
    )
    outcome = server.prompt(graph)
    assert outcome.status == "success", outcome.message
    frames = outcome.outputs["3"]["3d"]
    first = written(server, frames[0])
    assert len(frames) == 3 and first.name == "splat_00000.ply"
    assert (server.base / "temp" / outcome.outputs["4"]["result"][0]).read_bytes() == first.read_bytes()
    saved = server.base / "output" / outcome.outputs["5"]["result"][0]
    assert saved.suffix == ".ply" and saved.read_bytes() == first.read_bytes()
    (count,) = [line for line in first.read_bytes().splitlines() if line.startswith(b"element vertex")]
    assert count.split()[-1].decode() == outcome.outputs["8"]["text"][0]


def test_a_turntable_in_the_place_of_views_is_explained(server):
    graph = graph_of(steps=4)
    graph["3"]["inputs"]["mode"] = "turntable"
    grid = {"views": ["3", 4], "columns": 0, "labels": True, "cell_size": 0}
    graph["8"] = {"class_type": "SV4D2ViewsGridVideo", "inputs": grid}
    graph["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    outcome = server.prompt(graph)
    assert outcome.status == "error", outcome.status
    assert "turntable has no views" in outcome.message and "images" in outcome.message
