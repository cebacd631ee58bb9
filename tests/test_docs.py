"""What README and docs say exists: commands, options, names, files, and their size."""

import argparse
import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import sv4d2_core
from sv4d2_core.__main__ import build_parser

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "tests/bench/README.md", ROOT / "sv4d2_core/weights/MODEL_CARD.md"]
HELP = sorted((ROOT / "web/docs").glob("*.md"))
MOST_LINES = 150
# The module or the installed command, with whatever interpreter.
OURS = re.compile(r"(?:\S*python3? -m sv4d2_core|sv4d2)(?= [a-z])")
# Options of other programs that the pages name.
FOREIGN = {"--fp32-vae", "--fp32-text-enc", "--preview-method", "--disable-metadata"}
FOREIGN |= {"--nproc_per_node", "--measure", "--no-deps"}
# Words that stand for a file without being one.
SHORTHANDS = {"tiny", "sample"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def each(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=name_of)


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of some languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [code for language, code in found if language in languages]


def commands(code: str) -> Iterator[list[str]]:
    """Yield the arguments of every command of ours in the lines of a shell."""
    for line in code.splitlines():
        ours = OURS.search(line)
        if ours:
            yield shlex.split(line[ours.end() :], comments=True)


def subcommands() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._actions
    return next(action for action in actions if isinstance(action, argparse._SubParsersAction)).choices


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


def anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each(PAGES)
def test_commands_are_understood(page):
    for code in blocks(page, "sh", "bat"):
        for words in commands(code):
            try:
                build_parser().parse_args(words)
            except SystemExit:
                pytest.fail(f"{name_of(page)}: sv4d2 {' '.join(words)} is not understood")


def test_readme_starts_from_what_is_there():
    """Inputs of its commands come with the repository, or are the results of commands before."""
    ours = [words for code in blocks(README, "sh") for words in commands(code)]
    assert {words[0] for words in ours} >= {"views", "refine", "export"}
    made: set[str] = set()
    for words in ours:
        args = vars(build_parser().parse_args(words))
        given = [str(args[key]) for key in ("input", "views", "scene", "checkpoint") if args.get(key)]
        lost = [one for one in given if not (one in made | SHORTHANDS or (ROOT / one).exists())]
        assert not lost, f"{lost} of sv4d2 {' '.join(words)} is neither there nor made before"
        made.add(str(args["out"]))


@each([*PAGES, *HELP])
def test_options_and_commands_in_the_text_exist(page):
    parsers = subcommands()
    known = set.union(options_of(build_parser([])), *map(options_of, parsers.values())) | FOREIGN
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert options_in(prose) <= known, f"{name_of(page)} names {options_in(prose) - known}"
    for code in re.findall(r"`([^`]+)`", prose.replace("\n", " ")):
        ours = OURS.search(code)
        name, _, rest = code[ours.end() :].strip().partition(" ") if ours else ("", "", "")
        # A row of code in a sentence may stop after the program's name.
        if re.fullmatch(r"[a-z]+", name):
            assert name in parsers, f"{name_of(page)} names the command {name}"
            assert options_in(rest) <= options_of(parsers[name]), f"{name_of(page)}: {code}"


@each([README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_goals_of_make_exist(page):
    goals = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)", page.read_text(encoding="utf-8")))
    named |= set(re.findall(r"^make ([a-z]+)", "\n".join(blocks(page, "sh")), re.MULTILINE))
    assert named <= goals
    assert page != README or {"test", "demo"} <= named


@each(PAGES)
def test_names_of_python_examples_can_be_imported(page):
    examples = blocks(page, "python")
    assert examples or page != README
    for code in examples:
        names = {}
        for node in ast.parse(code).body:
            if isinstance(node, ast.Import):
                found = {alias: importlib.import_module(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                found = {alias: getattr(module, alias.name) for alias in node.names}
            else:
                continue
            names |= {alias.asname or alias.name: thing for alias, thing in found.items()}
        for node in ast.walk(ast.parse(code)):
            owner = getattr(getattr(node, "value", None), "id", "")
            if isinstance(node, ast.Attribute) and owner in names:
                assert hasattr(names[owner], node.attr), f"{owner}.{node.attr}"


@each(LINKED)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)} links to {target}"
        assert file.is_relative_to(ROOT.resolve()), f"{name_of(page)} links out of the repository: {target}"
        assert not anchor or anchor in anchors(file), f"{name_of(page)}: {target} has no such heading"


def test_the_readme_is_short_and_links_every_page_of_docs():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    linked = set(re.findall(r"\]\((docs/[^)#]+)", README.read_text(encoding="utf-8")))
    assert linked == {name_of(path) for path in (ROOT / "docs").glob("*.md")}


def test_every_node_and_workflow_is_told():
    # A row names several nodes, without the prefix that all share.
    table = README.read_text(encoding="utf-8").partition("\n## Nodes\n")[2].partition("\n## ")[0]
    told = {
        name.strip()
        for row in re.findall(r"^\| ([A-Z][^|]*)\|", table, re.MULTILINE)
        for name in row.split(",")
    }
    texts = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    assert told == {node["display_name"].removeprefix("SV4D2 ") for node in texts.values()}
    page = (ROOT / "docs/comfyui.md").read_text(encoding="utf-8")
    assert not [path.stem for path in (ROOT / "workflows").glob("*.json") if f"| {path.stem} |" not in page]
    assert not [path.stem for path in (ROOT / "subgraphs").glob("*.json") if f"**{path.stem}**" not in page]


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [sv4d2_core.__version__]
    assert "arxiv.org/abs/2503.16396" in citation
    titles = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert titles[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(sv4d2_core.__version__)} - \d{{4}}-\d\d-\d\d", titles[1])
