"""The evaluation report: tables of hand-made scores; page, pictures and JSON of rendered scenes."""

import json
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.metrics.evaluate import METRICS, PAPER, REFERENCE, Networks, SceneScores
from sv4d2_core.metrics.report.page import report_json, report_page
from sv4d2_core.metrics.report.tables import SceneComparison, compare, markdown_report, summaries_of
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import corrupt_views, make_creature, render_views

RIG = Cameras((0, 0, 20, 0), (0, 40, 120, 240))
SIZE, N_FRAMES = 40, 3
HOSTILE = 'x | *y* <script>alert("1")</script>'
PAPERS = "The columns of the SV4D papers"


@pytest.fixture(scope="module")
def truth() -> ViewGrid:
    return render_views(make_creature(10), RIG, N_FRAMES, SIZE)


@pytest.fixture(scope="module")
def gaps(truth: ViewGrid) -> SceneComparison:
    """Three methods: equal to the truth, without view 2, with one image that holds NaN."""
    spoilt = corrupt_views(truth, seed=1)
    images, masks = (pixels[:, [0, 1, 3]] for pixels in (spoilt.images, spoilt.masks))
    fewer = replace(spoilt, images=images, masks=masks, cameras=RIG.select([0, 2]), trained=False)
    images = spoilt.images.clone()
    images[1, 3, 5:9] = math.nan
    methods = {"equal": truth, "fewer": fewer, HOSTILE: replace(spoilt, images=images)}
    return compare("dog & <i>co</i>", methods, truth)


@pytest.fixture(scope="module")
def alone(truth: ViewGrid) -> SceneComparison:
    return compare("", {"predicted": corrupt_views(truth, seed=2)}, None)


def markdown(*scenes: SceneComparison) -> str:
    return markdown_report(scenes, summaries_of(scenes))


def rows_of(text: str, title: str) -> dict[str, list[str]]:
    """Return the rows of the Markdown table below a title, by their first cell."""
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in cells if not row[0].startswith("---")}


def page_of(*scenes: SceneComparison) -> tuple[str, list[ElementTree.Element], str]:
    """Return a page, its elements, every tag of which is closed in its turn, and its text."""
    html = report_page(scenes, summaries_of(scenes), {"command": "<b>&"})
    closed = re.sub(r"<((?:meta|img)\b[^>]*)>", r"<\1/>", html.removeprefix("<!doctype html>"))
    root = ElementTree.fromstring(closed)
    return html, list(root.iter()), "\n".join(root.itertext())


def test_values_over_incomplete_data_carry_a_mark_and_never_win(gaps: SceneComparison):
    text = markdown(gaps)
    rows = rows_of(text, "Against the true views")
    assert all(cell.endswith(" †") for name, row in rows.items() if name[0] in "fx" for cell in row)
    assert rows["equal"][0] == "∞" and "**" not in "".join(rows["equal"])
    assert "† The value leaves out" in text
    assert "- fewer: Missing views: 2." in text
    assert "View 3: 1 of 3 images hold NaN or infinite values." in text
    # The true views have a row where no truth is needed.
    alone = rows_of(text, "Without true views")
    assert list(alone)[:3] == ["method", "reference", "equal"]
    # The same pictures: the same values.
    assert [cell.strip("*") for cell in alone["equal"]] == alone["reference"]
    assert "reference" not in rows_of(text, PAPERS)
    assert "reference" not in rows_of(text, "Against the true views")


def test_without_truth_only_what_needs_none_is_told(alone: SceneComparison):
    text = markdown(alone)
    assert PAPERS not in text and "Against the true views" not in text
    assert float(rows_of(text, "Without true views")["predicted"][0]) > 0
    assert "There are no true views" in text and "--i3d" not in text
    html, page, _ = page_of(alone)
    assert "PSNR ↑" not in html and "tangency ↓" in html and "Absolute error" not in html
    # Two strips of pictures, tangency view by frame, plots over time and angle.
    assert sum(element.tag == "img" for element in page) == 3 + 3 + 1 + 2


def test_json_holds_every_number(gaps: SceneComparison, alone: SceneComparison):
    text = json.dumps(report_json([gaps, alone], summaries_of([gaps, alone])), allow_nan=False)
    record = json.loads(text)
    assert record["methods"] == ["equal", "fewer", HOSTILE, "predicted"]
    assert set(record["metrics"]) == set(METRICS)
    of_scene = record["scenes"]["dog & <i>co</i>"]["scores"]
    assert of_scene["equal"]["values"]["PSNR"] == [["inf"] * 3] * N_FRAMES
    assert record["summary"]["equal"]["values"]["PSNR"] == "inf"
    column = [row[1] for row in of_scene["fewer"]["values"]["SSIM"]]
    assert column == [None] * N_FRAMES and of_scene["fewer"]["missing_views"] == [2]
    assert of_scene["fewer"]["cameras"]["azimuths_deg"] == list(RIG.azimuths_deg)
    first = float(gaps.of_methods[1].values["SSIM"][2, 0])
    assert of_scene["fewer"]["values"]["SSIM"][2][0] == pytest.approx(first, rel=1e-6)
    assert "PSNR" in record["summary"]["fewer"]["incomplete"]
    # The scene without truth is one that this method lacks.
    assert record["summary"]["equal"]["incomplete"] == list(gaps.scores[0].values)
    assert record["summary"]["equal"]["frechet"]["FHD-V"] == {
        "distance": pytest.approx(0, abs=1e-6),
        "n": N_FRAMES,
        "n_reference": N_FRAMES,
        "clip_length": 3,
        "n_features": 276,
        "shrinkage": 0.1,
        "rank_deficient": True,
    }


def test_untrained_weights_are_named_everywhere(gaps: SceneComparison):
    assert "**fewer: UNTRAINED WEIGHTS" in markdown(gaps)
    # In the warning, and beside both strips of pictures.
    assert page_of(gaps)[2].count("UNTRAINED WEIGHTS") == 3
    record = report_json([gaps], summaries_of([gaps]))
    assert record["warning"].startswith("fewer: UNTRAINED")
    assert not record["scenes"]["dog & <i>co</i>"]["scores"]["fewer"]["trained"]


def test_page_is_one_file_that_loads_and_runs_nothing(gaps: SceneComparison, alone: SceneComparison):
    html, page, _ = page_of(gaps, alone)
    assert not {element.tag for element in page} & {"script", "link", "iframe", "object", "i"}
    own = r'"data:image/(png|svg\+xml);base64,[^"]*"'
    assert not re.search(r"https?:|//|@import|url\(", re.sub(own, "", html))
    sources = [element.attrib["src"] for element in page if element.tag == "img"]
    assert sources and all(re.fullmatch(own, f'"{source}"') for source in sources)
    targets = {element.attrib["href"] for element in page if element.tag == "a"}
    assert targets == {"#" + element.attrib["id"] for element in page if element.tag == "section"}


def test_names_show_as_they_are(gaps: SceneComparison):
    html, _, text = page_of(gaps)
    assert HOSTILE in text and "dog & <i>co</i>" in text and "<b>&" in text
    assert "alert(" not in re.sub(r"&lt;script&gt;alert\(", "", html)
    row = next(line for line in markdown(gaps).splitlines() if line.startswith("| x"))
    assert row.startswith(r'| x \| \*y\* \<script\>alert("1")\</script\> |')


def test_page_has_the_cells_of_the_markdown(gaps: SceneComparison):
    _, page, text = page_of(gaps)
    for title in (PAPERS, "Against the true views", "Without true views"):
        rows = rows_of(markdown(gaps), title)
        assert title in text
        for cell in [*rows["method"], *rows["fewer"]]:
            assert cell in text
    tooltips = {element.get("title") for element in page if element.tag == "th"}
    assert {metric.meaning for metric in PAPER} <= tooltips


def test_pictures_are_small_and_name_their_gaps(gaps: SceneComparison, truth: ViewGrid):
    across, along = gaps.pictures
    methods = [name for name, _, _ in across.rows]
    assert methods == [REFERENCE, "equal", "fewer", HOSTILE]
    equal, fewer, spoilt = (pictures for _, pictures, _ in across.rows[1:])
    assert [p.gap for p in fewer] == ["", "missing", ""]
    assert [p.gap for p in spoilt] == ["", "", "holds NaN or infinite values"]
    assert all(p.error is not None and not p.error.any() for p in equal)
    assert fewer[0].error is not None and fewer[0].error.max() > 20
    image = across.rows[0][1][2].image
    assert image is not None and (image == (truth.images[1, 3] * 255).round().byte().numpy()).all()
    assert along.title == "View 3 · 240° (worst PSNR fg), over time"


def test_pictures_of_large_views_are_reduced():
    large = render_views(make_creature(10), Cameras((0, 0), (0, 90)), 1, 200)
    (_, (picture,), _) = compare("large", {"a": large}, large).pictures[0].rows[1]
    assert picture.image is not None and picture.image.shape == (160, 160, 3)
    assert picture.error is not None and picture.error.shape == (160, 160)


def test_methods_of_other_rigs_show_the_nearest_view_without_truth(truth: ViewGrid):
    other = render_views(make_creature(10), Cameras((0, 0, 0), (0, 130, 250)), 2, SIZE)
    strips = compare("", {"a": truth, "b": other}, None).pictures
    captions = [[p.caption for p in pictures] for _, pictures, _ in strips[0].rows]
    assert captions[1] == ["view 1 · 130°", "view 1 · 130°", "view 2 · 250°"]
    assert strips[0].rows[1][2] == "frame 0" and strips[1].rows[1][2].startswith("view ")


def test_methods_cannot_be_called_like_the_true_views(truth: ViewGrid):
    for name in (REFERENCE, " Reference ", " "):
        with pytest.raises(ValueError, match="Choose another name"):
            compare("s", {name: truth}, None)
    with pytest.raises(ValueError, match="at least one method"):
        compare("s", {}, truth)


def test_networks_that_were_given_are_known(truth: ViewGrid):
    networks = Networks(lpips=lambda x, y: (x - y).abs().mean(dim=(1, 2, 3)))
    result = compare("s", {"a": corrupt_views(truth, 3)}, truth, networks)
    text = markdown(result)
    assert result.networks == {"lpips"} and "--lpips" not in text and "--clip" in text
    assert float(rows_of(text, PAPERS)["a"][0]) > 0


def hand_made(method: str, scene: str = "s", **values: float) -> SceneScores:
    """Return hand-made scores: each metric has the same value everywhere, Frechet distances have features."""
    names = {name.replace("_", "-"): value for name, value in values.items()}
    features = {name: value for name, value in names.items() if name.startswith("F")}
    clips = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return SceneScores(
        method,
        scene,
        RIG,
        N_FRAMES,
        {k: torch.full((N_FRAMES, 3), v).double() for k, v in names.items() if k not in features},
        {name: (clips + shift, clips) for name, shift in features.items()},
        dict.fromkeys(features, N_FRAMES),
    )


def scene_of(*methods: SceneScores, **more) -> SceneComparison:
    """Return hand-made comparisons with true views but without pictures."""
    name = methods[0].scene
    return SceneComparison(name, (hand_made(REFERENCE, name), *methods), (), ((64, 64),), **more)


def test_columns_stand_in_the_papers_order_with_the_best_of_each_in_bold():
    a = hand_made("A", LPIPS=0.1312, CLIP_S=0.92, FVD_F=0.5, FVD_V=0.1, FVD_Diag=0.3, FV4D=0.2)
    b = hand_made("B", LPIPS=0.1308, CLIP_S=0.93, FVD_F=0.3, FVD_V=0.2, FVD_Diag=0.1, FV4D=0.3)
    rows = rows_of(markdown(scene_of(a, b)), PAPERS)
    assert rows["method"] == ["LPIPS ↓", "CLIP-S ↑", "FVD-F ↓", "FVD-V ↓", "FVD-Diag ↓", "FV4D ↓"]
    # Equal as printed: both are the best. A shift of all three features by s is a distance of 3 s^2.
    assert rows["A"] == ["**0.131**", "0.920", "0.75", "**0.03**", "0.27", "**0.12**"]
    assert rows["B"] == ["**0.131**", "**0.930**", "**0.27**", "0.12", "**0.03**", "0.27"]


def test_what_is_missing_is_said_once_with_the_option_that_gives_it():
    text = markdown(scene_of(hand_made("A", LPIPS=0.1), networks=frozenset({"lpips"})))
    # One method is not the best of anything.
    assert rows_of(text, PAPERS)["A"] == ["0.100", "–", "–", "–", "–", "–"] and "Bold" not in text
    assert "--lpips" not in text
    assert text.count("--clip FILE") == text.count("--i3d FILE") == 1
    text = markdown(scene_of(hand_made("A"), networks=frozenset({"lpips", "clip", "i3d"})))
    assert "FILE" not in text


def test_a_method_that_lacks_a_scene_is_marked():
    first = scene_of(
        hand_made("A", "one", PSNR=20.0), hand_made("B", "one", PSNR=21.0), hand_made("C", "one", PSNR=19.0)
    )
    second = scene_of(hand_made("A", "two", PSNR=22.0), hand_made("C", "two", PSNR=10.0))
    text = markdown(first, second)
    rows = rows_of(text, "Against the true views")
    assert [rows[name][0] for name in "ABC"] == ["**21.00**", "21.00 †", "14.50"]
    assert "- B: 1 of 2 scenes." in text


def test_every_scene_has_its_own_rows_where_there_are_several():
    first = scene_of(hand_made("A", "one", LPIPS=0.2), hand_made("B", "one", LPIPS=0.1))
    assert "Every scene" not in markdown(first)
    second = scene_of(hand_made("A", "two", LPIPS=0.2), hand_made("B", "two", LPIPS=0.3))
    lines = [line for line in markdown(first, second).splitlines() if line.startswith(("| one", "| two"))]
    assert [line for line in lines if "reference" not in line] == [
        "| one | A | 0.200 |",
        "| one | B | **0.100** |",
        "| two | A | **0.200** |",
        "| two | B | 0.300 |",
    ]


def test_frechet_distances_say_what_they_rest_on():
    four = hand_made("A", FHD_F=0.1, FVD_F=0.2)
    text = markdown_report([scene_of(four)], summaries_of([scene_of(four)], shrinkage=0.25))
    rows = rows_of(text, "What the Frechet distances rest on")
    assert rows["distances"][:5] == ["n", "n reference", "T", "features", "shrinkage"]
    assert rows["FVD-F, FHD-F"] == ["4", "4", "3", "3", "0.25", "all"]
    assert "never with published ones" in text and "are not FVD" in text
    # 4 clips, 3 features: full rank, as published.
    text = markdown_report([scene_of(four)], summaries_of([scene_of(four)], shrinkage=0))
    assert "never with published ones" not in text
    assert "never with published ones" in markdown(
        scene_of(
            hand_made("A", FHD_F=0.1),
            replace(four, method="B", features={"FHD-F": (torch.randn(3, 3), torch.randn(3, 3))}),
        )
    )
