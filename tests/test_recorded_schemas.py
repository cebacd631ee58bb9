"""How the recorded descriptions of nodes are compared with those of a ComfyUI, and put together."""

import copy

from tests import recorded_schemas

NODE = {
    "input": {
        "required": {"scene": ["SV4D2_SCENE", {}], "format": [["glb", "usd"]]},
        "optional": {"cameras": ["SV4D2_CAMERAS", {}]},
    },
    "output": ["STRING"],
    "output_name": ["file"],
    "output_tooltips": ["The file."],
    "output_is_list": [False],
}
# As a newer version has it: more of everything, and wider types.
NEWER = copy.deepcopy(NODE)
NEWER["input"]["required"] = {"scene": ["SV4D2_SCENE,MESH", {}], "format": ["COMFY_DYNAMICCOMBO_V3", {}]}
NEWER["input"]["optional"]["size"] = ["INT", {}]
NEWER |= {"output": ["STRING", "FILE_3D"], "output_name": ["file", "model"], "description": "new"}


def test_a_newer_version_may_have_more_but_not_other_types_or_places():
    assert recorded_schemas.lost(NODE, NEWER) == []
    lost = ["scene (SV4D2_SCENE,MESH)", "size (INT)", "outputs ['STRING', 'FILE_3D']"]
    assert recorded_schemas.lost(NEWER, NODE) == lost
    other = copy.deepcopy(NEWER)
    other["input"]["optional"]["cameras"][0] = "LOAD3D_CAMERA"
    other["output"].reverse()
    assert recorded_schemas.lost(NODE, other) == ["cameras (SV4D2_CAMERAS)", "outputs ['STRING']"]


def test_our_nodes_are_described_with_all_that_any_version_has():
    newer = copy.deepcopy(NEWER)
    del newer["input"]["optional"]["cameras"]
    old, new = {"SV4D2Export": NODE, "KSampler": NODE}, {"SV4D2Export": newer, "SV4D2Newer": newer}
    for versions in ((old, new), (new, old)):
        ours = recorded_schemas.ours(*versions)
        assert list(ours) == ["SV4D2Export", "SV4D2Newer"]
        both = ours["SV4D2Export"]
        assert both["output_name"] == ["file", "model"] and (versions[-1] is old or "description" in both)
        assert recorded_schemas.inputs_of(both).keys() == {"scene", "format", "cameras", "size"}


def test_a_version_without_a_record_is_compared_with_the_nearest_older_one():
    versions = list(recorded_schemas.read())
    assert versions == sorted(versions, key=recorded_schemas.age) and versions[0] == "0.3.64"
    assert recorded_schemas.nearest("0.4.0") == recorded_schemas.nearest("0.3.10") == "0.3.64"
    assert [recorded_schemas.nearest(version) for version in versions] == versions
    assert recorded_schemas.nearest("99.0.0") == versions[-1]
