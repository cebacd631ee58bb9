"""How the evaluation report is written: all or nothing, and over nobody else's files."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.export.report import write_report
from sv4d2_core.metrics.evaluate import SceneScores
from sv4d2_core.metrics.report.tables import SceneComparison


def scene(method: str = "A", name: str = "s") -> SceneComparison:
    """Return hand-made scores of one method without pictures."""
    clips = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = {"tangency": torch.ones(3, 2, dtype=torch.float64)}
    cameras = Cameras((0, 0, 0), (0, 90, 180))
    scores = SceneScores(method, name, cameras, 3, values, {"FHD-F": (clips, clips)}, {"FHD-F": 3})
    return SceneComparison(name, (scores,), (), ((64, 64),))


@pytest.mark.parametrize("names", [[], ["one", "one"]])
def test_scenes_need_names_of_their_own(names: Sequence[str], tmp_path: Path):
    with pytest.raises(ValueError, match="each with its own name"):
        write_report(tmp_path / "report", [scene(name=name) for name in names])
    assert list(tmp_path.iterdir()) == []


def test_report_is_written_as_one_and_replaced_only_when_asked(tmp_path: Path):
    page = write_report(tmp_path / "report", [scene("predicted")], run={"command": "metrics"})
    names = {"report.json", "report.md", "report.html"}
    assert page == tmp_path / "report/report.html" and {p.name for p in page.parent.iterdir()} == names
    record = json.loads((page.parent / "report.json").read_text())
    assert record["run"] == {"command": "metrics"} and record["methods"] == ["predicted"]
    before = page.read_bytes()
    other = scene("A")
    with pytest.raises(FileExistsError, match="overwrite it"):
        write_report(page.parent, [other])
    assert page.read_bytes() == before
    (page.parent / "mine.txt").write_text("mine")
    write_report(page.parent, [other], overwrite=True)
    assert page.read_bytes() != before and (page.parent / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["report.json", "report.md", "report.html"])
def test_files_of_others_are_never_replaced(name: str, tmp_path: Path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError, match="did not write"):
        write_report(tmp_path, [scene("A")], overwrite=True)
    assert (tmp_path / name).read_text() == "{}" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("settings", [{"run": {"a": math.nan}}, {"shrinkage": 2.0}])
def test_nothing_is_written_when_the_report_cannot_be_made(settings: dict, tmp_path: Path):
    with pytest.raises(ValueError, match=r"Expected|JSON"):
        write_report(tmp_path / "report", [scene("A")], **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = write_report(tmp_path, [scene("A")])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == page.name:
            raise OSError(28, "No space left on device")
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="Free some space"):
        write_report(tmp_path, [scene("B")], overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
