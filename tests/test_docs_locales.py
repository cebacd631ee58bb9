"""Help pages and texts of both languages against the recorded schemas of the nodes; ComfyUI is not needed.

The nodes take the English texts from the locale; the host's tests record and compare their schemas.
"""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

from tests import recorded_schemas

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "web" / "docs"
LOCALES = ROOT / "locales"
# With the inputs and outputs that only some versions of ComfyUI have.
NODES = recorded_schemas.ours(*recorded_schemas.read().values())
EVERY_NODE = pytest.mark.parametrize("name", NODES)
# Combos whose choices depend on the machine or on the version of ComfyUI.
HOSTS_CHOICES = {"ckpt_name", "unet_name", "sampler_name", "scheduler", "lpips", "i3d"}
CJK = re.compile("[\u4e00-\u9fff]")
# Labels that ComfyUI's Chinese interface leaves in Latin letters, too.
LATIN_LABELS = {"VAE", "Latent"}
# The page compiles translations; these characters would be read as its syntax.
SYNTAX = re.compile(r"[{}@|]")
# Words of categories that ComfyUI translates by itself; ours would replace its own.
TRANSLATED_BY_THE_HOST = {"sampling"}


def inputs_of(name):
    """Return type, options and ``required`` or ``optional`` of each input."""
    return recorded_schemas.inputs_of(NODES[name])


def expected_words(type_, options, kind):
    """Return choices and default of an input as a help page words them."""
    default = options.get("default")
    if type_ in ("INT", "FLOAT"):
        return f"{number(options['min'])} to {number(options['max'])}", f"; default {number(default)}"
    if type_ == "BOOLEAN":
        return "on, off", f"; default {'on' if default else 'off'}"
    worded = "; default " + ("first" if default is None else f"`{default}`" if default else "blank")
    if type_ == "COMBO":
        return ", ".join(f"`{option}`" for option in options["options"]), worded
    if type_ == "STRING" and not options.get("forceInput"):
        return "text", worded
    return type_.replace(",", " or "), ", optional" if kind == "optional" else ""


def number(value):
    return str(int(value)) if value == int(value) else str(value)


def page_of(name):
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def table(page, title):
    """Return the cells of the rows below a heading, without the table's two header lines."""
    section = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def locale(language, name="nodeDefs"):
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def english(name):
    """Return the entry of a node in the English translations: the schema's own texts."""
    node = NODES[name]
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {
            key: {"name": key, "tooltip": options["tooltip"]}
            for key, (_, options, _) in inputs_of(name).items()
        },
        "outputs": {str(i): {"name": key, "tooltip": text} for i, (key, text) in enumerate(outputs)},
    }


def texts(value):
    return [value] if isinstance(value, str) else [text for item in value.values() for text in texts(item)]


def shape_of(value):
    return {key: shape_of(item) for key, item in value.items()} if isinstance(value, dict) else type(value)


def numbers(text):
    return set(re.findall(r"\d+(?:\.\d+)?", text))


@cache
def messages():
    """Return the constant parts of all texts in the source: what an error message can consist of."""
    files = [path for room in ("nodes", "sv4d2_core") for path in (ROOT / room).rglob("*.py")]
    walked = (node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return [n.value for n in walked if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def test_every_node_of_the_source_is_recorded_and_has_a_page():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "nodes").glob("*.py"))
    assert sorted(re.findall(r'\bnode_id="(\w+)"', source)) == sorted(NODES)
    assert sorted(path.stem for path in DOCS.iterdir()) == sorted(NODES)


@EVERY_NODE
def test_page_tells_the_schema(name):
    inputs = inputs_of(name)
    rows = table(page_of(name), "Inputs")
    assert len(rows) == len(inputs)
    for row, (widget, described) in zip(rows, inputs.items(), strict=True):
        assert len(row) == 2 and all(row), row
        choices, default = expected_words(*described)
        if widget in HOSTS_CHOICES:
            assert row[0].startswith(f"`{widget}` (") and row[0].endswith(f"{default})"), row[0]
        else:
            assert row[0] == f"`{widget}` ({choices}{default})"
    outputs = table(page_of(name), "Outputs")
    assert [row[0] for row in outputs] == [f"`{output}`" for output in NODES[name]["output_name"]]
    assert all(len(row) == 2 and row[1] for row in outputs)


@EVERY_NODE
def test_page_quotes_messages_that_exist(name):
    rows = table(page_of(name), "When it fails")
    assert rows, "no table of messages"
    for message, remedy in rows + table(page_of(name), "What the report says"):
        assert remedy
        if message.endswith("(ComfyUI)"):
            continue
        # "..." stands for what differs from case to case, code marks for a name that is filled in.
        parts = [part for part in map(str.strip, re.split(r"\.\.\.|`", message)) if part]
        assert max(map(len, parts)) >= 10, f"nothing to recognise in {message!r}"
        lost = [part for part in parts if not any(part in text for text in messages())]
        assert not lost, f"the source has no text {lost}"


@EVERY_NODE
def test_page_is_short_and_its_links_lead_somewhere(name):
    page = page_of(name)
    assert 20 <= len(page.splitlines()) <= 90
    assert "**Connect**" in page
    # The help panel leaves links as they are, so that only absolute ones arrive.
    links = re.findall(r"\]\(([^)]*)\)|(?:href|src)=[\"']([^\"']*)", page)
    assert all("".join(link).startswith("https://") for link in links)
    named = set(re.findall(r"\*\*(SV4D2 [^*]+)\*\*", page))
    assert named <= {node["display_name"] for node in NODES.values()}


def test_english_texts_are_those_of_the_schema_and_chinese_ones_cover_it():
    # In keys the page writes "_" for a dot; no name of ours has one.
    assert not [key for name in NODES for key in (name, *inputs_of(name)) if "." in key]
    recorded = {name: english(name) for name in NODES}
    assert locale("en") == recorded, "SV4D2_RECORD=1 with tests/host records the schemas anew; see to zh, too"
    assert shape_of(locale("zh")) == shape_of(recorded)


@EVERY_NODE
def test_chinese_texts_are_chinese_and_say_the_same(name):
    chinese = locale("zh")[name]
    slots = [*chinese["inputs"].values(), *chinese["outputs"].values()]
    sentences = [chinese["display_name"], chinese["description"], *[slot["tooltip"] for slot in slots]]
    assert not [text for text in sentences if not CJK.search(text)]
    labels = {slot["name"] for slot in slots}
    assert not [label for label in labels - LATIN_LABELS if not CJK.search(label)]
    for widget, (type_, options, _) in inputs_of(name).items():
        original, translated = options["tooltip"], chinese["inputs"][widget]["tooltip"]
        assert numbers(original) <= numbers(translated), widget
        # Choices are not translated on the page, so the text must call them by their names.
        choices = options["options"] if type_ == "COMBO" else []
        assert not [one for one in choices if one in original and one not in translated], widget


def test_chinese_texts_call_nodes_by_their_chinese_names():
    chinese = locale("zh")
    names = {entry["display_name"] for entry in chinese.values()}
    for text in texts(chinese):
        assert not [node for node in NODES.values() if node["display_name"] in text], text
        assert set(re.findall(r"“(SV4D2 [^”]+)”", text)) <= names, text


@pytest.mark.parametrize("path", sorted(LOCALES.rglob("*.json")), ids=lambda path: "-".join(path.parts[-2:]))
def test_translations_are_plain_text(path):
    found = texts(json.loads(path.read_text(encoding="utf-8")))
    assert found
    assert not [text for text in found if not text.strip() or SYNTAX.search(text)]


def test_categories_are_translated_without_touching_the_host():
    words = {word for node in NODES.values() for word in node["category"].split("/")}
    categories = locale("zh", "main")["nodeCategories"]
    assert categories.keys() == words - TRANSLATED_BY_THE_HOST - {"SV4D2"}
    assert all(CJK.search(text) for text in categories.values())
