"""Help pages and translations against the schemas that the nodes' source declares; ComfyUI is not needed."""

from __future__ import annotations

import ast
import importlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "web" / "docs"
LOCALES = ROOT / "locales"
# What only ComfyUI knows, such as its list of samplers.
UNKNOWN = object()
SOCKETS = {"ClipVision": "CLIP_VISION", "Load3DCamera": "LOAD3D_CAMERA"}
CJK = re.compile("[\u4e00-\u9fff]")
# Labels that ComfyUI's Chinese interface leaves in Latin letters, too.
LATIN_LABELS = {"VAE", "Latent"}
# The page compiles translations; these characters would be read as its syntax.
SYNTAX = re.compile(r"[{}@|]")
# Words of categories that ComfyUI translates by itself; ours would replace its own.
TRANSLATED_BY_THE_HOST = {"clip", "sampling"}


@dataclass(frozen=True)
class Input:
    """One ``X.Input(...)``: ``choices`` and ``default`` as a help page words them, None where it is free."""

    name: str
    tooltip: str
    choices: str | None
    default: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """One ``io.Schema(...)``; outputs are pairs of display name and tooltip."""

    id: str
    display_name: str
    description: str
    category: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, str], ...]


class Module:
    """The names of one source file of ``nodes/`` and what they stand for."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text())
        self.values: dict[str, ast.expr] = {}
        self.imported: dict[str, str] = {}
        for node in self.tree.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self.values[node.target.id] = node.value
            elif isinstance(node, ast.Assign):
                self._assign(node.targets[0], node.value)
            elif isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Return):
                self.values[node.name] = node.body[-1].value or ast.Constant(None)
            elif isinstance(node, ast.ImportFrom):
                self.imported.update({alias.name: node.module or "" for alias in node.names if node.level})

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.values[target.id] = value
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=True):
                self._assign(one, its)

    def constant(self, node: ast.expr) -> Any:
        """Return the value of an expression of literals and names, UNKNOWN where the host must be asked."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._named(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.constant(node.operand)
        if isinstance(node, ast.Subscript):
            return self.constant(node.value)[self.constant(node.slice)]
        if isinstance(node, ast.Dict):
            return [self.constant(key) for key in node.keys if key is not None]
        if isinstance(node, (ast.List, ast.Tuple)):
            items = [item.value if isinstance(item, ast.Starred) else item for item in node.elts]
            nested = [self.constant(item) for item in items]
            return [
                value
                for item, found in zip(node.elts, nested, strict=True)
                for value in (found if isinstance(item, ast.Starred) else [found])
            ]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "list":
            return list(self.constant(node.args[0]))
        return UNKNOWN

    def _named(self, name: str) -> Any:
        if name in self.values:
            return self.constant(self.values[name])
        home = self.imported[name]
        if home.startswith("sv4d2_core"):
            return getattr(importlib.import_module(home), name)
        return module(home).constant(ast.Name(name))

    def calls(self, node: ast.expr) -> list[tuple[Module, ast.Call]]:
        """Return the socket calls of a list, with the module they stand in; helpers are looked up."""
        if isinstance(node, ast.List):
            return [call for item in node.elts for call in self.calls(item)]
        assert isinstance(node, ast.Call), ast.unparse(node)
        if not isinstance(node.func, ast.Name):
            return [(self, node)]
        home = self if node.func.id in self.values else module(self.imported[node.func.id])
        return home.calls(home.values[node.func.id])


@cache
def module(name: str) -> Module:
    return Module(ROOT / "nodes" / f"{name}.py")


def keywords(call: ast.Call, names: tuple[str, ...] = ()) -> dict[str, ast.expr]:
    return {**dict(zip(names, call.args, strict=False)), **{k.arg: k.value for k in call.keywords if k.arg}}


def socket_name(home: Module, kind: ast.expr) -> str:
    """Return the type of ``io.X``, or of a name that stands for ``io.Custom("...")``."""
    if isinstance(kind, ast.Attribute):
        return SOCKETS.get(kind.attr, kind.attr.upper())
    assert isinstance(kind, ast.Name), ast.unparse(kind)
    custom = module(home.imported[kind.id]).values[kind.id]
    assert isinstance(custom, ast.Call), ast.unparse(custom)
    return str(home.constant(custom.args[0]))


def read_input(home: Module, call: ast.Call) -> Input:
    assert isinstance(call.func, ast.Attribute), ast.unparse(call)
    kind = call.func.value
    given = keywords(call, ("id", "types"))
    values = {key: home.constant(value) for key, value in given.items() if key != "types"}
    name, tooltip, default = values["id"], values["tooltip"], values.get("default")
    type_name = socket_name(home, kind)
    connected = Input(name, tooltip, type_name, "optional" if values.get("optional") else "required")
    if type_name == "MULTITYPE":
        assert isinstance(given["types"], ast.List)
        names = [socket_name(home, one) for one in given["types"].elts]
        return Input(name, tooltip, " or ".join(names), connected.default)
    if values.get("force_input") or type_name not in ("INT", "FLOAT", "BOOLEAN", "STRING", "COMBO"):
        return connected
    if type_name in ("INT", "FLOAT"):
        return Input(name, tooltip, f"{number(values['min'])} to {number(values['max'])}", number(default))
    if type_name == "BOOLEAN":
        return Input(name, tooltip, "on, off", "on" if default else "off")
    worded = "first" if default is None else f"`{default}`" if default else "blank"
    if type_name == "STRING":
        return Input(name, tooltip, "text", worded)
    options = () if values["options"] is UNKNOWN else tuple(values["options"])
    choices = ", ".join(f"`{option}`" for option in options) if options else None
    return Input(name, tooltip, choices, worded, options)


def number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def read_node(home: Module, call: ast.Call) -> Node:
    given = keywords(call)
    names = ("node_id", "display_name", "description", "category")
    node_id, display_name, description, category = (home.constant(given[name]) for name in names)
    outputs = [keywords(output) for _, output in home.calls(given["outputs"])]
    return Node(
        node_id,
        display_name,
        description,
        category,
        tuple(read_input(*one) for one in home.calls(given["inputs"])),
        tuple((home.constant(x["display_name"]), home.constant(x["tooltip"])) for x in outputs),
    )


def read_nodes() -> dict[str, Node]:
    found = []
    for path in sorted((ROOT / "nodes").glob("*.py")):
        home = module(path.stem)
        for call in ast.walk(home.tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "io.Schema":
                found.append(read_node(home, call))
    return {node.id: node for node in found}


NODES = read_nodes()


def section(page: str, title: str) -> str:
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(text: str) -> list[list[str]]:
    """Return the cells of a table's rows, without its two header lines."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def page_of(node: Node) -> str:
    return (DOCS / f"{node.id}.md").read_text(encoding="utf-8")


def locale(language: str, name: str = "nodeDefs") -> dict[str, Any]:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [text for item in value.values() for text in texts(item)]


def expected_locale(node: Node) -> dict[str, Any]:
    return {
        "display_name": node.display_name,
        "description": node.description,
        "inputs": {one.name: {"name": one.name, "tooltip": one.tooltip} for one in node.inputs},
        "outputs": {str(i): {"name": n, "tooltip": text} for i, (n, text) in enumerate(node.outputs)},
    }


def shape_of(value: Any) -> Any:
    return {key: shape_of(item) for key, item in value.items()} if isinstance(value, dict) else type(value)


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?", text))


@cache
def messages() -> list[str]:
    """Return the constant parts of all texts in the source: what an error message can consist of."""
    files = [path for room in ("nodes", "sv4d2_core") for path in (ROOT / room).rglob("*.py")]
    walked = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return [n.value for n in walked if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def test_every_node_is_read():
    classes = re.findall(
        r"^class (\w+)\(io\.ComfyNode\)",
        "\n".join(path.read_text() for path in (ROOT / "nodes").glob("*.py")),
        re.MULTILINE,
    )
    assert sorted(NODES) == sorted(classes)
    assert len(NODES) >= 13
    # A node id or an input with a dot would need another key in the translations.
    assert not [
        name for node in NODES.values() for name in (node.id, *[x.name for x in node.inputs]) if "." in name
    ]


def test_pages_belong_to_nodes():
    assert sorted(path.stem for path in DOCS.glob("*.md")) == sorted(NODES)


@pytest.mark.parametrize("node", NODES.values(), ids=list(NODES))
def test_page_tells_the_schema(node):
    page = page_of(node)
    rows = table(section(page, "Inputs"))
    assert [row[0] for row in rows] == [f"`{one.name}`" for one in node.inputs]
    for row, one in zip(rows, node.inputs, strict=True):
        assert len(row) == 4 and all(row), row
        assert row[1] == (one.choices or row[1]), f"{one.name}: choices"
        assert row[2] == one.default, f"{one.name}: default"
    outputs = table(section(page, "Outputs"))
    assert [row[0] for row in outputs] == [f"`{name}`" for name, _ in node.outputs]
    assert all(len(row) == 2 and row[1] for row in outputs)


@pytest.mark.parametrize("node", NODES.values(), ids=list(NODES))
def test_page_quotes_messages_that_exist(node):
    page = page_of(node)
    rows = table(section(page, "When it fails")) + table(section(page, "What the report says"))
    assert rows, "no table of messages"
    for message, remedy in rows:
        assert remedy
        if message.endswith("(ComfyUI)"):
            continue
        parts = [part.strip() for part in message.split("...") if part.strip()]
        assert max(map(len, parts)) >= 12, f"nothing to recognise in {message!r}"
        lost = [part for part in parts if not any(part in text for text in messages())]
        assert not lost, f"the source has no text {lost}"


@pytest.mark.parametrize("node", NODES.values(), ids=list(NODES))
def test_page_is_short_and_its_links_lead_somewhere(node):
    page = page_of(node)
    assert 20 <= len(page.splitlines()) <= 90
    assert "**Connect**" in page
    # The help panel resolves links against ComfyUI's own address, so that only absolute ones arrive.
    links = re.findall(r"\]\(([^)]*)\)|(?:href|src)=[\"']([^\"']*)", page)
    assert all("".join(link).startswith("https://") for link in links)
    named = set(re.findall(r"\*\*(SV4D2 [^*]+)\*\*", page))
    assert named <= {other.display_name for other in NODES.values()}


def test_english_texts_are_those_of_the_schema():
    assert locale("en") == {node.id: expected_locale(node) for node in NODES.values()}


def test_chinese_texts_cover_the_schema():
    chinese = locale("zh")
    assert shape_of(chinese) == shape_of(locale("en"))
    for node in NODES.values():
        translated = chinese[node.id]
        slots = [*translated["inputs"].values(), *translated["outputs"].values()]
        long = [translated["display_name"], translated["description"], *[slot["tooltip"] for slot in slots]]
        assert not [text for text in long if not CJK.search(text)]
        labels = [slot["name"] for slot in slots]
        assert not [label for label in labels if not CJK.search(label) and label not in LATIN_LABELS]
        for one in node.inputs:
            tooltip = translated["inputs"][one.name]["tooltip"]
            assert numbers(one.tooltip) <= numbers(tooltip), f"{node.id}.{one.name}"
            # Choices are not translated on the page, so the text must call them by their names.
            assert not [o for o in one.options if o in one.tooltip and o not in tooltip], (
                f"{node.id}.{one.name}"
            )


def test_chinese_texts_call_nodes_by_their_chinese_names():
    chinese = locale("zh")
    names = {chinese[node.id]["display_name"] for node in NODES.values()}
    english = [node.display_name for node in NODES.values()]
    for text in texts(chinese):
        assert not [name for name in english if name in text], text
        assert set(re.findall(r"“(SV4D2 [^”]+)”", text)) <= names, text


@pytest.mark.parametrize(
    "path", sorted(LOCALES.rglob("*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_translations_are_plain_text(path):
    found = texts(json.loads(path.read_text(encoding="utf-8")))
    assert found
    assert not [text for text in found if not text.strip() or SYNTAX.search(text)]


def test_categories_are_translated_without_touching_the_host():
    words = {word for node in NODES.values() for word in node.category.split("/")}
    categories = locale("zh", "main")["nodeCategories"]
    assert set(categories) == words - TRANSLATED_BY_THE_HOST - {"SV4D2"}
    assert all(CJK.search(text) for text in categories.values())
