"""Every workflow in the real page: it opens, says what we committed, and runs; blueprints can be added."""

import json
import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent.parent
WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
PROMPTS = REPOSITORY / "tests" / "data" / "prompts"
BLUEPRINTS = sorted((REPOSITORY / "subgraphs").glob("*.json"))
# The node that gives a blueprint what it begins with.
SOURCES = {"Views to 4D scene": "SV4D2LoadViews"}
SECONDS = 600


@pytest.fixture(scope="module")
def page(frontend, start_server, tiny_settings, recorded_schemas, tmp_path_factory):
    """Return what the page said about each workflow and blueprint; one browser opens them all."""
    folder = tmp_path_factory.mktemp("browser")
    with start_server(frontend.folder) as server:
        version = server.get("/system_stats")["system"]["comfyui_version"]
        pictures = Path(os.environ.get("SV4D2_SCREENSHOTS", folder)) / version / frontend.name
        pictures.mkdir(parents=True, exist_ok=True)
        job = {
            "url": server.url,
            "newNodes": frontend.new_nodes,
            "chromium": os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            "profile": str(folder / "profile"),
            "workflows": [
                {
                    "name": workflow.stem,
                    "file": str(workflow),
                    "settings": tiny_settings(workflow.stem),
                    "picture": str(pictures / f"{workflow.stem}.png"),
                }
                for workflow in WORKFLOWS
            ],
            "blueprints": [
                {"name": file.stem, "source": SOURCES.get(file.stem, "SV4D2SampleClip")}
                for file in BLUEPRINTS
            ],
        }
        job_file = folder / "job.json"
        job_file.write_text(json.dumps(job))
        done = subprocess.run(
            [os.environ.get("NODE", "node"), str(HERE / "shot.js"), str(job_file)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{done.stderr[-3000:]}\nServer log:\n{server.log[-3000:]}"
    said = json.loads(done.stdout)
    for workflow in said["workflows"].values():
        workflow["prompt"] = as_recorded(workflow["prompt"] or {}, recorded_schemas.read())
        workflow["frontend"] = frontend.name
    return said


def as_recorded(prompt, recorded):
    """Return the prompt without titles and without what only the page or a newer version knows."""
    read = {}
    for number, node in prompt.items():
        kind = node["class_type"]
        described = next(nodes[kind] for nodes in recorded.values() if kind in nodes)["input"]
        known = {name for group in ("required", "optional") for name in described.get(group, {})}
        inputs = {name: value for name, value in node["inputs"].items() if name in known}
        read[number] = {"class_type": kind, "inputs": inputs}
    return read


def test_there_are_workflows():
    assert len(WORKFLOWS) >= 5


@pytest.mark.parametrize("name", [workflow.stem for workflow in WORKFLOWS])
def test_workflow_opens_and_runs(name, page):
    said = page["workflows"][name]
    assert said["missing"] == [], f"the page misses nodes: {said['missing']}"
    committed = PROMPTS / f"{name}.json"
    if os.environ.get("SV4D2_RECORD") == "1" and said["frontend"] == "installed":
        committed.write_text(json.dumps(said["prompt"], indent=2) + "\n")
    assert said["prompt"] == json.loads(committed.read_text()), (
        f"{committed.name} is not what the page makes of the workflow; SV4D2_RECORD=1 writes it anew"
    )
    assert said["status"] == "execution_success", said["message"]


@pytest.mark.parametrize("name", [workflow.stem for workflow in WORKFLOWS])
def test_no_node_covers_another_after_the_run(name, page):
    boxes = page["workflows"][name]["boxes"]
    assert len(boxes) == len(page["workflows"][name]["prompt"])
    covered = [
        (one[0], other[0])
        for i, one in enumerate(boxes)
        for other in boxes[:i]
        if one[1] < other[3] and other[1] < one[3] and one[2] < other[4] and other[2] < one[4]
    ]
    assert not covered, boxes


@pytest.mark.parametrize("file", BLUEPRINTS, ids=[file.stem for file in BLUEPRINTS])
def test_blueprint_becomes_the_prompt_of_its_nodes(file, page):
    if page["blueprints"] is None:
        pytest.skip("This version of ComfyUI has no blueprints")
    said = page["blueprints"][file.stem]
    blueprint = json.loads(file.read_text())
    (outside,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    promoted = [entry["name"] for entry in outside["inputs"] if "widget" in entry]
    assert [widget for widget in said["widgets"] if widget in promoted] == promoted
    source = SOURCES.get(file.stem, "SV4D2SampleClip")
    prompt = said["prompt"]
    kinds = sorted([source, *(node["type"] for node in subgraph["nodes"])])
    assert sorted(node["class_type"] for node in prompt.values()) == kinds
    known = {node["id"]: node for node in subgraph["nodes"]}
    by_kind = {node["class_type"]: node["inputs"] for node in prompt.values()}
    # What is linked inside, and what comes from outside, arrives.
    for link in subgraph["links"]:
        if link["target_id"] not in known or (link["origin_id"] not in known and link["origin_slot"] != 0):
            continue
        origin = known.get(link["origin_id"])
        target = known[link["target_id"]]
        name = target["inputs"][link["target_slot"]]["name"]
        number, output = by_kind[target["type"]][name]
        assert prompt[number]["class_type"] == (origin["type"] if origin else source)
        assert output == (link["origin_slot"] if origin else 0)
    for (number, widget), _ in zip(outside["properties"]["proxyWidgets"], promoted, strict=True):
        node = known[int(number)]
        assert by_kind[node["type"]][widget] in node["widgets_values"]
