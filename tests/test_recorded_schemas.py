"""How the recorded descriptions of nodes are compared with those of a ComfyUI, and put together."""

from __future__ import annotations

import copy

import pytest

from tests import recorded_schemas

NODE = {
    "input": {
        "required": {"scene": ["SV4D2_SCENE", {"tooltip": "A scene."}], "format": [["glb", "usd"]]},
        "optional": {"cameras": ["SV4D2_CAMERAS", {}]},
        "hidden": {"prompt": ["PROMPT"]},
    },
    "output": ["STRING"],
    "output_name": ["file"],
    "output_tooltips": ["The file."],
    "output_is_list": [False],
    "description": "old",
}


@pytest.fixture
def newer():
    """Return the node as a newer version has it: more of everything, wider types, other words."""
    node = copy.deepcopy(NODE)
    node["input"]["required"]["scene"][0] = "SV4D2_SCENE,MESH"
    node["input"]["required"]["format"] = ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "glb"}]}]
    node["input"]["optional"]["size"] = ["INT", {}]
    node["output"].append("FILE_3D")
    node["output_name"].append("model")
    node["output_tooltips"].append("For the viewers.")
    node["output_is_list"].append(False)
    return {**node, "description": "new"}


def test_a_newer_version_may_have_more(newer):
    assert recorded_schemas.lost(NODE, newer) == []
    assert recorded_schemas.lost(newer, NODE) == [
        "scene (SV4D2_SCENE,MESH)",
        "size (INT)",
        "outputs ['STRING', 'FILE_3D']",
    ]


def test_what_changed_its_type_or_place_is_lost(newer):
    newer["input"]["optional"]["cameras"][0] = "LOAD3D_CAMERA"
    newer["output"].reverse()
    assert recorded_schemas.lost(NODE, newer) == ["cameras (SV4D2_CAMERAS)", "outputs ['STRING']"]


def test_our_nodes_are_described_with_all_that_any_version_has(newer):
    del newer["input"]["optional"]["cameras"]
    old, new = {"SV4D2Export": NODE, "KSampler": NODE}, {"SV4D2Export": newer, "SV4D2Newer": newer}
    for versions in ((old, new), (new, old)):
        ours = recorded_schemas.ours(*versions)
        assert list(ours) == ["SV4D2Export", "SV4D2Newer"]
        both = ours["SV4D2Export"]
        assert both["output_name"] == ["file", "model"]
        assert recorded_schemas.inputs_of(both).keys() == {"scene", "format", "cameras", "size"}
        assert both["description"] == versions[-1]["SV4D2Export"]["description"]
    assert recorded_schemas.ours(old) == {"SV4D2Export": NODE}


def test_a_version_without_a_record_is_compared_with_the_nearest_older_one():
    versions = list(recorded_schemas.read())
    assert versions == sorted(versions, key=recorded_schemas.age) and versions[0] == "0.3.64"
    assert recorded_schemas.nearest("0.4.0") == recorded_schemas.nearest("0.3.10") == "0.3.64"
    assert [recorded_schemas.nearest(version) for version in versions] == versions
    assert recorded_schemas.nearest("99.0.0") == versions[-1]
