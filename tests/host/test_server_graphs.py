"""Graphs as users get them wrong, and cancelling: one readable message each, and the server goes on."""

import json
from pathlib import Path

import pytest

PROMPT = Path(__file__).parent.parent / "data/prompts/01 novel views from a video.json"


class Edit:
    """A graph that can be changed by the kinds of its nodes."""

    def __init__(self, graph):
        self.graph = graph

    def number(self, kind):
        (number,) = (number for number, node in self.graph.items() if node["class_type"] == kind)
        return number

    def set(self, kind, **inputs):
        """Change inputs of the one node of a kind; None disconnects."""
        target = self.graph[self.number(kind)]["inputs"]
        target.update(inputs)
        for name, value in inputs.items():
            if value is None:
                del target[name]

    def add(self, kind, **inputs):
        """Add a node and return the link to its first output."""
        number = str(1000 + len(self.graph))
        self.graph[number] = {"class_type": kind, "inputs": inputs}
        return [number, 0]

    def frames(self):
        """Return the link to the clip's frames as IMAGE."""
        return self.add("GetVideoComponents", video=[self.number("LoadVideo"), 0])


@pytest.fixture
def edit(tiny_settings):
    """Return the first workflow's prompt, with small sizes."""
    graph = json.loads(PROMPT.read_text())
    for node in graph.values():
        node["inputs"].update(tiny_settings(PROMPT.stem).get(node["class_type"], {}))
    return Edit(graph)


def other_model(edit):
    model = edit.add("UNETLoader", unet_name="other.safetensors", weight_dtype="default")
    edit.set("SV4D2Sampler", model=model)


def other_file(edit):
    model = edit.add("SV4D2UNETLoader", unet_name="other.safetensors", variant="auto", weight_dtype="default")
    edit.set("SV4D2Sampler", model=model)


def four_cameras_for_eight(edit):
    edit.set("SV4D2CheckpointLoader", ckpt_name="sv4d2_8views.safetensors")


def angles_that_are_no_numbers(edit):
    edit.set("SV4D2CameraOrbit", preset="custom", azimuths_deg="60, abc")


def transparent_unprepared(edit):
    alpha = edit.add("SolidMask", value=0.0, width=64, height=64)
    clip = edit.add("JoinImageWithAlpha", image=edit.frames(), alpha=alpha)
    edit.set("SV4D2Sampler", clip=clip, mask=None, fps=8.0)


def views_outside(edit):
    edit.set("SV4D2ViewsGridVideo", views=edit.add("SV4D2LoadViews", folder="../../etc"))


# What a user must read: what is wrong, with the numbers, and what to do.
WRONG = {
    other_model: ["SD3", "SV4D2 Load Checkpoint"],
    other_file: ["other.safetensors", "sv4d2.safetensors"],
    four_cameras_for_eight: ["8 novel views", "got 4"],
    angles_that_are_no_numbers: ["abc", "azimuth"],
    transparent_unprepared: ["channels", "4", "SV4D2 Prepare Clip"],
    views_outside: ["outside", "../../etc"],
}


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_wrong_graph_gets_a_message(change, edit, refused):
    change(edit)
    refused(edit.graph, WRONG[change])


def one_frame(edit):
    edit.set("SV4D2PrepareClip", frames=1)


def wide_clip(edit):
    edit.set("LoadVideo", file="wide.mp4")


def transparent_clip(edit):
    edit.set("LoadVideo", file="footage.mp4")
    frames = edit.frames()
    matte = edit.add("GetVideoComponents", video=edit.add("LoadVideo", file="mask.mp4"))
    # The host counts alpha the other way round: 1 is transparent.
    alpha = edit.add("InvertMask", mask=edit.add("ImageToMask", image=matte, channel="red"))
    edit.set("SV4D2PrepareClip", clip=edit.add("JoinImageWithAlpha", image=frames, alpha=alpha))


def full_mask(edit):
    edit.set("SV4D2PrepareClip", mask=edit.add("SolidMask", value=1.0, width=64, height=64))


def two_passes(edit):
    edit.set("SV4D2CameraOrbit", preset="8 views (sv4d2_8views)")


def five_hundred_frames(edit):
    edit.set("SV4D2CheckpointLoader", ckpt_name="sv4d2_long.safetensors")
    edit.set("SV4D2CameraOrbit", preset="custom", azimuths_deg="180")
    clip = edit.add("RepeatImageBatch", image=edit.frames(), amount=42)
    edit.set("SV4D2PrepareClip", clip=clip, frames=500)
    edit.set("SV4D2Sampler", steps=1)
    edit.set("SV4D2ViewsGridVideo", cell_size=32, labels=False)


@pytest.mark.parametrize(
    ("change", "n_frames", "n_views"),
    [
        (one_frame, 1, 4),
        (wide_clip, 5, 4),
        (transparent_clip, 5, 4),
        (full_mask, 5, 4),
        (two_passes, 5, 8),
        (five_hundred_frames, 500, 1),
    ],
)
def test_unusual_graph_runs(change, n_frames, n_views, edit, server):
    change(edit)
    outcome = server.prompt(edit.graph, timeout=120)
    assert outcome.status == "success", outcome.message
    (sheet,) = outcome.outputs[edit.number("SV4D2SaveViews")]["images"]
    frames = server.base / "output" / sheet["subfolder"] / "frames"
    assert len(list(frames.iterdir())) == n_views + 1
    assert {len(list(view.iterdir())) for view in frames.iterdir()} == {n_frames}


def test_cancelled_run_stops_at_once_and_goes_on_where_it_was(edit, server):
    sampler, steps = edit.number("SV4D2Sampler"), 40
    # 12 frames in windows of 3 that overlap: 6 windows.
    edit.set("SV4D2PrepareClip", frames=12)
    edit.set("SV4D2Sampler", steps=steps, seed=777)
    cancelled = server.prompt(
        edit.graph,
        interrupt_when=lambda event: event.kind == "progress" and event.data["value"] > 2 * steps + 5,
    )
    assert cancelled.status == "interrupted", cancelled.message
    assert cancelled.interrupt_seconds < 5
    assert cancelled.progress(sampler)[-1][0] < 5 * steps

    again = server.prompt(edit.graph)
    assert again.status == "success", again.message
    values = [value for value, _ in again.progress(sampler)]
    # Two windows were finished: they are reported whole, and no step of theirs runs again.
    # Newer versions leave out what follows at once, such as the second of these two.
    assert values[0] == steps and not any(value % steps for value in values if value < 2 * steps)
    assert 2 * steps + 1 in values
    assert again.progress(sampler)[-1] == (6 * steps, 6 * steps)
    assert edit.number("SV4D2CheckpointLoader") in again.cached_nodes
