"""The blueprints of the pack against the recorded schemas of the nodes, checked without ComfyUI."""

import json
import re
from pathlib import Path

import pytest

from tests.test_workflows import SCHEMAS, check_links, inputs_of, values_of

FILES = sorted((Path(__file__).parent.parent / "subgraphs").glob("*.json"))
NAMES = {"Video to novel views (SV4D 2.0)", "Views to 4D scene", "Video to animated GLB"}
# The two ends of a subgraph, as nodes.
INPUTS, OUTPUTS = -10, -20
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")

blueprints = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


def parts_of(file):
    """Return the node that stands in a graph, the subgraph behind it, and its nodes by number."""
    blueprint = json.loads(file.read_text())
    (outside,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert outside["type"] == subgraph["id"]
    assert outside["title"] == subgraph["name"] == file.stem
    return outside, subgraph, {node["id"]: node for node in subgraph["nodes"]}


def test_there_are_the_three_which_share_no_number_or_id():
    assert {file.stem for file in FILES} == NAMES
    texts = [file.read_text() for file in FILES]
    ids = [set(re.findall(r'"[0-9a-f]{8}-[0-9a-f-]{27}"', text)) for text in texts]
    numbers = [set(parts_of(file)[2]) | {parts_of(file)[0]["id"]} for file in FILES]
    for sets in (ids, numbers):
        assert len(set.union(*sets)) == sum(map(len, sets)) > 10


@blueprints
def test_nodes_are_known_and_values_fit(file):
    _, _, nodes = parts_of(file)
    for node in nodes.values():
        assert node["type"] in SCHEMAS, f"{node['type']} is neither ours nor a recorded core node"
        sockets = sorted(inputs_of(node["type"]), key=lambda name: "widget" in _socket(node, name))
        assert [entry["name"] for entry in node["inputs"]] == sockets and values_of(node) is not None


@blueprints
def test_links_agree_at_both_ends(file):
    _, subgraph, nodes = parts_of(file)
    given = [{**end, "links": end["linkIds"]} for end in subgraph["inputs"]]
    taken = [{**end, "link": link} for end in subgraph["outputs"] for link in end["linkIds"]]
    nodes[INPUTS] = {"type": None, "inputs": [], "outputs": given}
    nodes[OUTPUTS] = {"type": None, "inputs": taken, "outputs": []}
    check_links(nodes, [[link[key] for key in LINK] for link in subgraph["links"]])


@blueprints
def test_what_a_node_needs_comes_from_inside_or_from_the_blueprint(file):
    outside, subgraph, nodes = parts_of(file)
    for node in nodes.values():
        given = {entry["name"] for entry in node["inputs"] if entry["link"]} | values_of(node).keys()
        needed = {name for name, (*_, kind) in inputs_of(node["type"]).items() if kind == "required"}
        assert needed <= given, f"{node['type']} lacks {needed - given}"
    for shown, inside in ((outside["inputs"], subgraph["inputs"]), (outside["outputs"], subgraph["outputs"])):
        assert [(one["name"], one["type"]) for one in shown] == [(one["name"], one["type"]) for one in inside]
    for entry in subgraph["inputs"]:
        links = [link for link in subgraph["links"] if link["id"] in entry["linkIds"]]
        targets = [(nodes[link["target_id"]], link["target_slot"]) for link in links]
        kinds = {inputs_of(node["type"])[node["inputs"][slot]["name"]][2] for node, slot in targets}
        assert (entry.get("shape") == 7) == (kinds == {"optional"}), entry["name"]


@blueprints
def test_five_widgets_are_shown_and_exist(file):
    outside, subgraph, nodes = parts_of(file)
    shown = outside["properties"]["proxyWidgets"]
    promoted = [entry for entry in outside["inputs"] if "widget" in entry]
    assert len(shown) == len(promoted) == 5
    for (number, widget), entry in zip(shown, promoted, strict=True):
        node = nodes[int(number)]
        assert widget in values_of(node)
        socket = _socket(node, widget)
        (inside,) = (one for one in subgraph["inputs"] if one["name"] == entry["name"])
        assert socket["widget"] == {"name": widget} and inside["linkIds"] == [socket["link"]]


@blueprints
def test_it_is_explained_and_can_be_found(file):
    blueprint = json.loads(file.read_text())
    outside, subgraph, nodes = parts_of(file)
    extra = blueprint["extra"]
    assert extra["BlueprintDescription"] == subgraph["description"] and len(subgraph["description"]) > 100
    assert "sv4d" in extra["BlueprintSearchAliases"] and subgraph["category"] == "SV4D2"
    for node in [outside, *nodes.values()]:
        ours = node is outside or node["type"].startswith("SV4D2")
        assert node["properties"]["cnr_id"] == ("sv4d2" if ours else "comfy-core")
        assert re.fullmatch(r"\d+\.\d+\.\d+", node["properties"]["ver"])


def _socket(node, name):
    (socket,) = (entry for entry in node["inputs"] if entry["name"] == name)
    return socket
