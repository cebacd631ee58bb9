"""The example workflows and prompts against the recorded schemas of the nodes, checked without ComfyUI.

Workflows are those of the oldest recorded version, which newer ones can open; prompts are valid in all.
"""

import copy
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from tests import recorded_schemas

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "workflows").glob("*.json"))
PROMPTS = ROOT / "tests/data/prompts"
RECORDED = recorded_schemas.read()
SCHEMAS = next(iter(RECORDED.values()))
OURS = recorded_schemas.ours(*RECORDED.values())

# Nodes of the page itself, which no server describes.
NOTES = {"MarkdownNote", "Note"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
WEIGHTS = "https://huggingface.co/stabilityai/sv4d2.0/resolve/main/"
# Comes with the pack.
SHIPPED = {"sv4d2_tiny.safetensors"}
LOADERS = {"SV4D2CheckpointLoader": "ckpt_name", "SV4D2UNETLoader": "unet_name"}
MOST_BYTES = 100_000
# Distance in pixels between nodes above each other.
STACKED = 60

workflows = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


def inputs_of(kind):
    """Return the inputs of a node in order: name to type, options and kind."""
    return recorded_schemas.inputs_of(SCHEMAS[kind])


def widgets_of(kind):
    """Return the names of a node's widgets in the order of a saved workflow, None for the page's own."""
    names = []
    for name, (type_, options, _) in inputs_of(kind).items():
        if (isinstance(type_, list) or type_ in WIDGETS) and not options.get("forceInput"):
            names.append(name)
            # The page adds "control after generate" to a seed and a button to an upload.
            names += [None] * (
                options.get("control_after_generate", False) + options.get("video_upload", False)
            )
    return names


def values_of(node):
    """Return the widgets' values by name, each of which fits."""
    values = node.get("widgets_values") or []
    names = widgets_of(node["type"])
    assert len(values) == len(names), f"{node['type']} has widgets {names}, the workflow {values}"
    values = {name: value for name, value in zip(names, values, strict=True) if name is not None}
    described = inputs_of(node["type"])
    misfits = {name: value for name, value in values.items() if not fits(value, *described[name][:2])}
    assert not misfits, f"{node['type']} cannot take {misfits}"
    return values


def fits(value, type_, options):
    """Return whether a widget takes the value. File lists are recorded empty and take any name."""
    listed = type_ if isinstance(type_, list) else options.get("options")
    if listed is not None:
        # Choices that bring inputs of their own are described, others named.
        choices = [choice["key"] if isinstance(choice, dict) else choice for choice in listed]
        return value in choices or (choices == [] and isinstance(value, str))
    if type_ == "BOOLEAN":
        return isinstance(value, bool)
    if type_ in ("STRING", "COLOR"):
        return isinstance(value, str)
    whole = type_ == "FLOAT" or isinstance(value, int)
    return whole and options.get("min", value) <= value <= options.get("max", value)


def prompt_of(graph):
    """Return what the page sends to the server for a saved workflow, whose nodes were all recorded."""
    sources = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] not in NOTES:
            linked = {i["name"]: sources[i["link"]] for i in node["inputs"] if i["link"] is not None}
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": {**values_of(node), **linked}}
    return prompt


def check_links(nodes, links):
    """Check that every link of a saved graph is known at both ends, whose types fit; ends have no type."""
    seen = set()
    for number, source, output, target, socket, type_ in links:
        out, into = nodes[source]["outputs"][output], nodes[target]["inputs"][socket]
        assert number in out["links"] and into["link"] == number
        kind, wanted = nodes[source]["type"], nodes[target]["type"]
        kind = SCHEMAS[kind]["output"][output] if kind else out["type"]
        wanted = inputs_of(wanted)[into["name"]][0] if wanted else into["type"]
        assert out["type"] == kind and type_ in (kind, wanted)
        fitting = recorded_schemas.types_of(kind) <= recorded_schemas.types_of(wanted)
        assert fitting or wanted == "*", f"{kind} into {wanted}"
        seen.add(number)
    ends = [i["link"] for node in nodes.values() for i in node["inputs"] if i["link"] is not None]
    ends += [link for node in nodes.values() for out in node["outputs"] for link in out["links"] or []]
    assert set(ends) == seen and len(ends) == 2 * len(seen) == 2 * len(links)


def test_folder_holds_workflows_and_their_pictures_only():
    assert len(FILES) >= 5
    pictures = {file.with_suffix(".jpg") for file in FILES}
    assert set((ROOT / "workflows").iterdir()) == {*FILES, *pictures}


@workflows
def test_name_speaks_and_picture_is_small(file):
    assert re.fullmatch(r"\d\d( \(?[A-Za-z0-9]+\)?){2,}", file.stem)
    picture = file.with_suffix(".jpg")
    assert picture.stat().st_size <= MOST_BYTES
    with Image.open(picture) as opened:
        assert opened.format == "JPEG" and opened.width * 9 == opened.height * 16


@workflows
def test_links_agree_at_both_ends(file):
    graph = json.loads(file.read_text())
    check_links({node["id"]: node for node in graph["nodes"]}, graph["links"])


@workflows
def test_committed_prompt_is_that_of_the_workflow(file):
    committed = json.loads((PROMPTS / file.name).read_text())
    assert prompt_of(json.loads(file.read_text())) == committed, (
        "tests/host/browser writes it: SV4D2_RECORD=1"
    )


@pytest.mark.parametrize("file", sorted(PROMPTS.iterdir()), ids=lambda file: file.stem)
def test_prompt_is_valid_in_every_recorded_version(file):
    graph = json.loads(file.read_text())
    kinds = {node["class_type"] for node in graph.values()}
    if (ROOT / "workflows" / file.name).exists():
        assert kinds <= SCHEMAS.keys(), "neither ours nor recorded core nodes"
    versions = [version for version, nodes in RECORDED.items() if kinds <= nodes.keys()]
    assert versions and versions == list(RECORDED)[-len(versions) :], f"no recorded version has {kinds}"
    for version in versions:
        nodes = RECORDED[version]
        for number, node in graph.items():
            described = recorded_schemas.inputs_of(nodes[node["class_type"]])
            needed = {name for name, (*_, kind) in described.items() if kind == "required"}
            assert needed <= node["inputs"].keys(), f"{version}: node {number} lacks inputs"
            for name, value in node["inputs"].items():
                where = f"{version}: {node['class_type']}.{name} = {value!r}"
                type_, options, _ = described[name]
                if isinstance(value, list):
                    given = nodes[graph[value[0]]["class_type"]]["output"][value[1]]
                    assert type_ == "*" or given in recorded_schemas.types_of(type_), where
                else:
                    assert fits(value, type_, options), where


@workflows
def test_missing_nodes_and_models_can_be_found(file):
    loaders, models = 0, 0
    for node in json.loads(file.read_text())["nodes"]:
        properties = node["properties"]
        ours = node["type"].startswith("SV4D2")
        assert properties["cnr_id"] == ("sv4d2" if ours else "comfy-core")
        assert re.fullmatch(r"\d+\.\d+\.\d+", properties["ver"])
        models += any(i["name"] == "model" and i["link"] is not None for i in node["inputs"])
        if node["type"] in LOADERS:
            loaders += 1
            name = values_of(node)[LOADERS[node["type"]]]
            file_at = {"name": name, "url": WEIGHTS + name, "directory": "checkpoints"}
            assert properties.get("models", []) == ([] if name in SHIPPED else [file_at])
    assert loaders == (models > 0)


@workflows
def test_graph_is_tidy_and_explained(file):
    graph = json.loads(file.read_text())
    (note,) = (node for node in graph["nodes"] if node["type"] in NOTES)
    (text,) = note["widgets_values"]
    assert 5 <= len(text.splitlines()) <= 8
    boxes = [group["bounding"] for group in graph["groups"]]
    assert len(boxes) >= 3 and len({group["color"] for group in graph["groups"]}) == len(boxes)
    areas = [(*node["pos"], *node["size"]) for node in graph["nodes"]]
    for i, (x, y, width, height) in enumerate(areas):
        inside = [
            x >= left and y >= top and x + width <= left + w and y + height <= top + h
            for left, top, w, h in boxes
        ]
        assert sum(inside) == 1, f"{graph['nodes'][i]['type']} lies in {sum(inside)} groups"
        for x2, y2, width2, height2 in areas[:i]:
            # The title stands above a node, and the newest page draws nodes taller than older ones.
            apart = y >= y2 + height2 + STACKED or y2 >= y + height + STACKED
            assert x >= x2 + width2 or x2 >= x + width or apart, (y, y2)


def test_no_two_workflows_share_a_number():
    # The page keeps a node's pictures by its number, so that a workflow would show those of another.
    graphs = [json.loads(file.read_text()) for file in FILES]
    for key, number in (("nodes", "id"), ("links", 0)):
        numbers = [item[number] for graph in graphs for item in graph[key]]
        assert len(set(numbers)) == len(numbers) and min(numbers) > 100
    for graph in graphs:
        assert graph["last_node_id"] >= max(node["id"] for node in graph["nodes"])
        assert graph["last_link_id"] >= max(link[0] for link in graph["links"])


@pytest.mark.parametrize("number", ("01", "08"))
def test_workflow_opens_as_an_app(number):
    (file,) = (file for file in FILES if file.stem.startswith(number))
    graph = json.loads(file.read_text())
    nodes = {node["id"]: node for node in graph["nodes"]}
    app = graph["extra"]["linearData"]
    kinds = [nodes[node]["type"] for node in app["outputs"]]
    assert kinds == (["SaveVideo"] if number == "01" else ["Preview3D"])
    source, *others = app["inputs"]
    assert nodes[source[0]]["type"] == ("LoadVideo" if number == "01" else "SV4D2LoadViews")
    assert 3 <= len(others) <= 6
    for node, widget in app["inputs"]:
        assert widget in values_of(nodes[node])
        (socket,) = (entry for entry in nodes[node]["inputs"] if entry["name"] == widget)
        assert socket["link"] is None


@pytest.mark.parametrize("version", RECORDED)
def test_every_node_explains_itself(version):
    for name, node in recorded_schemas.ours(RECORDED[version]).items():
        assert node["display_name"].startswith("SV4D2 ") and node["category"].startswith("SV4D2/"), name
        assert len(node["description"]) > 80 and node["python_module"] == "custom_nodes.sv4d2", name
        texts = {widget: one["tooltip"] for widget, (_, one, _) in recorded_schemas.inputs_of(node).items()}
        texts |= dict(zip(node["output_name"], node["output_tooltips"], strict=True))
        assert not [name for name, text in texts.items() if len(text) <= 15], name


def test_a_newer_version_has_all_that_an_older_one_has():
    for older, newer in pairwise(RECORDED.values()):
        lost = {name: recorded_schemas.lost(node, newer[name]) for name, node in older.items()}
        assert not any(lost.values()), lost
    backwards = recorded_schemas.ours(*reversed(RECORDED.values()))
    assert backwards.keys() == OURS.keys()
    for name, node in OURS.items():
        assert backwards[name]["output"] == node["output"]
        assert recorded_schemas.inputs_of(backwards[name]).keys() == recorded_schemas.inputs_of(node).keys()


def test_what_a_version_lost_is_named():
    node = SCHEMAS["SV4D2Export4D"]
    newest = list(RECORDED.values())[-1]["SV4D2Export4D"]
    assert recorded_schemas.lost(newest, node) == [f"outputs {newest['output']}"]
    assert recorded_schemas.lost(newest, newest | {"output": newest["output"][::-1]}) != []
    other = copy.deepcopy(node)
    other["input"]["required"]["scene"][0] = "MESH"
    del other["input"]["required"]["fps"]
    assert recorded_schemas.lost(node, other) == ["scene (SV4D2_SCENE)", "fps (FLOAT)"]


def test_a_version_without_a_record_is_compared_with_the_nearest_older_one():
    asked = ["0.3.10", "0.3.64", "0.4.0", "0.33.0", "0.33.1", "99.0.0"]
    expected = 3 * ["0.3.64"] + 2 * ["0.33.0"] + [list(RECORDED)[-1]]
    assert list(map(recorded_schemas.nearest, asked)) == expected


def test_committed_prompts_use_every_node_of_ours():
    graphs = [json.loads(file.read_text()) for file in PROMPTS.iterdir()]
    assert OURS.keys() <= {node["class_type"] for graph in graphs for node in graph.values()}
