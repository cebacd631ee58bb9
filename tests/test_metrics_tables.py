"""The tables of the evaluation report, from scores made by hand."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.evaluate import REFERENCE, SceneScores
from sv4d2_core.metrics.report.tables import SceneComparison, markdown_report, summaries_of

torch.set_num_threads(1)

RIG = Cameras((0, 0, 20, 0), (0, 40, 120, 240))
N_FRAMES = 3
PAPERS = "The columns of the SV4D papers"


def scores(method: str, scene: str = "s", **values: float) -> SceneScores:
    """Return hand-made scores: each metric has the same value everywhere, Frechet distances have features."""
    names = {name.replace("_", "-"): value for name, value in values.items()}
    features = {name: value for name, value in names.items() if name.startswith("F")}
    clips = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return SceneScores(
        method,
        scene,
        RIG,
        N_FRAMES,
        {
            name: torch.full((N_FRAMES, 3), v, dtype=torch.float64)
            for name, v in names.items()
            if name not in features
        },
        {name: (clips + shift, clips) for name, shift in features.items()},
        dict.fromkeys(features, N_FRAMES),
    )


def scene(*methods: SceneScores, **more) -> SceneComparison:
    """Return hand-made comparisons with true views but without pictures."""
    name = methods[0].scene
    return SceneComparison(name, (scores(REFERENCE, name), *methods), (), ((64, 64),), **more)


def markdown(*scenes: SceneComparison) -> str:
    return markdown_report(scenes, summaries_of(scenes))


def rows_of(text: str, title: str) -> dict[str, list[str]]:
    """Return the rows of the Markdown table below a title, by their first cell."""
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in cells if not row[0].startswith("---")}


def test_columns_stand_in_the_papers_order_with_the_best_of_each_in_bold():
    a = scores("A", LPIPS=0.1312, CLIP_S=0.92, FVD_F=0.5, FVD_V=0.1, FVD_Diag=0.3, FV4D=0.2)
    b = scores("B", LPIPS=0.1308, CLIP_S=0.93, FVD_F=0.3, FVD_V=0.2, FVD_Diag=0.1, FV4D=0.3)
    rows = rows_of(markdown(scene(a, b)), PAPERS)
    assert rows["method"] == ["LPIPS ↓", "CLIP-S ↑", "FVD-F ↓", "FVD-V ↓", "FVD-Diag ↓", "FV4D ↓"]
    # Equal as printed: both are the best. A shift of all three features by s is a distance of 3 s^2.
    assert rows["A"] == ["**0.131**", "0.920", "0.75", "**0.03**", "0.27", "**0.12**"]
    assert rows["B"] == ["**0.131**", "**0.930**", "**0.27**", "0.12", "**0.03**", "0.27"]


def test_one_method_is_not_the_best_of_anything():
    text = markdown(scene(scores("A", LPIPS=0.1)))
    assert rows_of(text, PAPERS)["A"] == ["0.100", "–", "–", "–", "–", "–"]
    assert "Bold" not in text


def test_what_is_missing_is_said_once_with_the_option_that_gives_it():
    text = markdown(scene(scores("A", LPIPS=0.1), networks=frozenset({"lpips"})))
    assert "--lpips" not in text
    assert text.count("--clip FILE") == text.count("--i3d FILE") == 1
    text = markdown(scene(scores("A"), networks=frozenset({"lpips", "clip", "i3d"})))
    assert "FILE" not in text


def test_a_method_that_lacks_a_scene_is_marked():
    first = scene(scores("A", "one", PSNR=20.0), scores("B", "one", PSNR=21.0), scores("C", "one", PSNR=19.0))
    second = scene(scores("A", "two", PSNR=22.0), scores("C", "two", PSNR=10.0))
    text = markdown(first, second)
    rows = rows_of(text, "Against the true views")
    assert [rows[name][0] for name in "ABC"] == ["**21.00**", "21.00 †", "14.50"]
    assert "- B: 1 of 2 scenes." in text


def test_every_scene_has_its_own_rows_where_there_are_several():
    first = scene(scores("A", "one", LPIPS=0.2), scores("B", "one", LPIPS=0.1))
    assert "Every scene" not in markdown(first)
    second = scene(scores("A", "two", LPIPS=0.2), scores("B", "two", LPIPS=0.3))
    lines = [line for line in markdown(first, second).splitlines() if line.startswith(("| one", "| two"))]
    assert [line for line in lines if "reference" not in line] == [
        "| one | A | 0.200 |",
        "| one | B | **0.100** |",
        "| two | A | **0.200** |",
        "| two | B | 0.300 |",
    ]


def test_frechet_distances_say_what_they_rest_on():
    four = scores("A", FHD_F=0.1, FVD_F=0.2)
    text = markdown_report([scene(four)], summaries_of([scene(four)], shrinkage=0.25))
    rows = rows_of(text, "What the Frechet distances rest on")
    assert rows["distances"][:5] == ["n", "n reference", "T", "features", "shrinkage"]
    assert rows["FVD-F, FHD-F"] == ["4", "4", "3", "3", "0.25", "all"]
    # 4 clips, 3 features: full rank.
    assert "no full rank" not in text and "are not FVD" in text
    assert "no full rank" in markdown(
        scene(
            scores("A", FHD_F=0.1),
            replace(four, method="B", features={"FHD-F": (torch.randn(3, 3), torch.randn(3, 3))}),
        )
    )
