"""Our pack in a running ComfyUI server, spoken to as the page does."""

import copy
import json
import os
import urllib.error
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent / "data"
PROMPTS = sorted((DATA / "prompts").glob("*.json"))
WORKFLOWS = sorted((DATA.parent.parent / "workflows").glob("*.json"))
BLUEPRINTS = sorted((DATA.parent.parent / "subgraphs").glob("*.json"))

# Combos that list the files of one machine.
FILE_LISTS = {("LoadVideo", "file"), ("SV4D2CheckpointLoader", "ckpt_name"), ("SV4D2UNETLoader", "unet_name")}


def tiny(file, settings):
    """Return a committed prompt with small sizes, few steps and the sample media."""
    graph = json.loads(file.read_text())
    for node in graph.values():
        for name, value in settings.get(node["class_type"], {}).items():
            assert name in node["inputs"], f"{node['class_type']} has no input {name}"
            node["inputs"][name] = value
    return graph


@pytest.fixture(scope="module")
def live(server):
    """Return the descriptions of our nodes and of the core nodes that the workflows use."""
    info = server.object_info()
    used = {node["type"] for file in WORKFLOWS for node in json.loads(file.read_text())["nodes"]}
    used |= {node["class_type"] for file in PROMPTS for node in json.loads(file.read_text()).values()}
    wanted = {name for name in info if name.startswith("SV4D2") or name in used}
    nodes = {name: without_file_lists(name, info[name]) for name in sorted(wanted)}
    return {"comfyui": server.get("/system_stats")["system"]["comfyui_version"], "nodes": nodes}


def without_file_lists(name, description):
    description = copy.deepcopy(description)
    for kind, widget in FILE_LISTS:
        if kind == name:
            description["input"]["required"][widget][1]["options"] = []
    return description


def test_what_was_recorded_is_there(live, recorded_schemas):
    version, nodes = live["comfyui"], live["nodes"]
    if os.environ.get("SV4D2_RECORD") == "1":
        recorded_schemas.write(version, nodes)
    nearest = recorded_schemas.nearest(version)
    recorded = recorded_schemas.read()[nearest]
    assert recorded.keys() <= nodes.keys()
    lost = {name: recorded_schemas.lost(node, nodes[name]) for name, node in recorded.items()}
    assert not any(lost.values()), f"recorded with {nearest}: {lost}"
    if version == nearest:
        ours = recorded_schemas.ours(recorded)
        assert recorded_schemas.ours(nodes).keys() == ours.keys()
        for name, node in ours.items():
            assert nodes[name] == node, f"{name} changed; SV4D2_RECORD=1 writes {version}.json anew"


def test_workflows_help_pages_and_translations_are_served(server, live, recorded_schemas):
    assert sorted(server.get("/workflow_templates")["sv4d2"]) == [file.stem for file in WORKFLOWS]
    for file in WORKFLOWS:
        assert server.read(f"/api/workflow_templates/sv4d2/{file.name}") == file.read_bytes()
        picture = file.with_suffix(".jpg")
        assert server.read(f"/api/workflow_templates/sv4d2/{picture.name}") == picture.read_bytes()
    translations = server.get("/i18n")
    for name, node in recorded_schemas.ours(live["nodes"]).items():
        assert len(server.read(f"/extensions/sv4d2/docs/{name}.md")) > 200, name
        for language in ("en", "zh"):
            known = translations[language]["nodeDefs"][name]
            assert recorded_schemas.inputs_of(node).keys() <= known["inputs"].keys(), (language, name)
            assert len(node["output"]) <= len(known["outputs"]), (language, name)


def test_blueprints_are_served(server, live, recorded_schemas):
    try:
        listed = server.get("/global_subgraphs")
    except urllib.error.HTTPError:
        assert recorded_schemas.age(live["comfyui"]) < (0, 4)
        pytest.skip(f"ComfyUI {live['comfyui']} has no blueprints")
    ours = {entry["name"]: key for key, entry in listed.items() if "sv4d2" in entry["info"]["node_pack"]}
    assert ours.keys() == {file.stem for file in BLUEPRINTS}
    for file in BLUEPRINTS:
        assert server.get(f"/global_subgraphs/{ours[file.stem]}")["data"] == file.read_text()


@pytest.mark.parametrize("file", PROMPTS, ids=[file.stem for file in PROMPTS])
def test_committed_prompt_runs(file, server, tiny_settings, live, recorded_schemas):
    graph = tiny(file, tiny_settings(file.stem))
    info = server.object_info()
    missing = {node["class_type"] for node in graph.values()} - info.keys()
    if missing:
        nearest = recorded_schemas.nearest(live["comfyui"])
        assert not missing & recorded_schemas.read()[nearest].keys()
        pytest.skip(f"ComfyUI {live['comfyui']} has no {', '.join(sorted(missing))}")
    outcome = server.prompt(graph)
    assert outcome.status == "success", outcome.message
    showing = {number for number, node in graph.items() if info[node["class_type"]]["output_node"]}
    assert showing <= outcome.outputs.keys()
    n_files = 0
    for shown in outcome.outputs.values():
        for picture in shown.get("images", []):
            place = server.base / picture["type"] / picture["subfolder"] / picture["filename"]
            assert place.stat().st_size > 100, place
            n_files += 1
    assert n_files >= len([n for n in showing if "Save" in graph[n]["class_type"]]) > 0


def test_progress_counts_the_steps_of_all_windows(server, tiny_settings):
    graph = tiny(DATA / "prompts/04 long video.json", tiny_settings("04 long video"))
    (sampler,) = (number for number, node in graph.items() if node["class_type"] == "SV4D2Sampler")
    graph[sampler]["inputs"] |= {"seed": 101, "steps": 3}
    outcome = server.prompt(graph)
    assert outcome.status == "success", outcome.message
    # 5 frames in windows of 3 that overlap by one: 2 windows.
    assert outcome.progress(sampler)[-1] == (6, 6)
    values = [value for value, _ in outcome.progress(sampler)]
    assert values == sorted(values) and set(range(1, 7)) <= set(values)
    assert outcome.n_previews > 0
