"""Our nodes, and the core nodes that we use, as versions of ComfyUI describe them.

`data/node_schemas/<version>.json` holds one version. ``SV4D2_RECORD=1`` with `host/test_server.py` writes the
file of the ComfyUI that runs; on a version without a file, what the nearest older one has must be there.
"""

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "node_schemas"
Node = dict[str, Any]
Nodes = dict[str, Node]


def age(version: str) -> tuple[int, ...]:
    """Return a version's numbers, by which versions are sorted."""
    return tuple(map(int, re.findall(r"\d+", version)))


def read() -> dict[str, Nodes]:
    """Return the recorded nodes by version, the oldest version first."""
    files = sorted(FOLDER.glob("*.json"), key=lambda file: age(file.stem))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def write(version: str, nodes: Nodes) -> None:
    """Record the nodes of a version; of core nodes only what graphs rely on."""
    kept = {
        name: node if name.startswith("SV4D2") else {key: node[key] for key in ("input", "output")}
        for name, node in nodes.items()
    }
    text = json.dumps(kept, indent=1, ensure_ascii=False)
    (FOLDER / f"{version}.json").write_text(text + "\n", encoding="utf-8")


def nearest(version: str) -> str:
    """Return the newest recorded version that is not newer than this one, or the oldest."""
    recorded = list(read())
    return max((one for one in recorded if age(one) <= age(version)), key=age, default=recorded[0])


def inputs_of(node: Node) -> dict[str, tuple[Any, dict[str, Any], str]]:
    """Return type, options and ``required`` or ``optional`` of each input."""
    return {
        name: (type_, options[0] if options else {}, kind)
        for kind in ("required", "optional")
        for name, (type_, *options) in node["input"].get(kind, {}).items()
    }


def defaults(kind: str, **changes: Any) -> dict[str, Any]:
    """Return the defaults of a node's required widgets in the oldest version, with changes."""
    required = next(iter(read().values()))[kind]["input"]["required"].items()
    options = {name: more[0] if more else {} for name, (_, *more) in required}
    found = {name: one["default"] for name, one in options.items() if "default" in one}
    firsts = {name: one["options"][0] for name, one in options.items() if one.get("options")}
    return {**firsts, **found, **changes}


def types_of(type_: Any) -> set[str]:
    """Return the types that a socket takes or gives; all kinds of choices are one."""
    if isinstance(type_, list) or type_ == "COMFY_DYNAMICCOMBO_V3":
        return {"COMBO"}
    return set(type_.split(","))


def lost(recorded: Node, live: Node) -> list[str]:
    """Return the inputs and outputs that were recorded and that a saved workflow would miss."""
    inputs = inputs_of(live)
    missed = [
        f"{name} ({type_})"
        for name, (type_, *_) in inputs_of(recorded).items()
        if name not in inputs or not types_of(type_) <= types_of(inputs[name][0])
    ]
    kept = live["output"][: len(recorded["output"])]
    return missed if kept == recorded["output"] else [*missed, f"outputs {recorded['output']}"]


def ours(*versions: Nodes) -> Nodes:
    """Return our nodes with all that they have in any of the versions, in the newest one's words."""
    united: Nodes = {}
    for nodes in versions:
        for name, node in nodes.items():
            if name.startswith("SV4D2"):
                united[name] = _united(united.get(name, node), node)
    return dict(sorted(united.items()))


def _united(older: Node, newer: Node) -> Node:
    """Return the newer description with what only the older one has."""
    kinds = {**older["input"], **newer["input"]}
    inputs = {kind: {**older["input"].get(kind, {}), **newer["input"].get(kind, {})} for kind in kinds}
    outputs = max(newer, older, key=lambda node: len(node["output"]))
    listed = ("output", "output_name", "output_tooltips", "output_is_list")
    return {**newer, "input": inputs, **{key: outputs[key] for key in listed}}
