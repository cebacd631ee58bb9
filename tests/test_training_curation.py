"""Curation: planted defects are found, off-centre objects come to the middle, nothing is lost on the way."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import planted_clips
import pytest
import torch

from sv4d2_core.__main__ import main
from sv4d2_core.cameras import Cameras
from sv4d2_core.data.reader import find_scenes, read_any_views, read_dataset
from sv4d2_core.data.views_folder import write_views
from sv4d2_core.training.curate import PAGE_FILE, REPORT_FILE, curate
from sv4d2_core.training.curation import (
    CurationLimits,
    centres_of,
    framed,
    judge,
    measured_grid,
    pictured,
    plan_rectification,
    rectify,
)
from sv4d2_core.views import ViewGrid
from sv4d2_core.world import Parts, benchmark_scenes, parts_at, render_parts

SEED, SIZE = 7000, 40
LIMITS = CurationLimits()
CAMERAS = Cameras((0, 0, 10), (0, 100, 220), fov_deg=48.0, input_elevation_deg=12.0)
SHIFT = torch.tensor([0.2, -0.1, 0.15], dtype=torch.float64)
WINDMILL = next(scene.creature for scene in benchmark_scenes() if scene.name == "windmill")


def windmill(shift: torch.Tensor, n_frames: int = 6) -> Parts:
    parts = parts_at(WINDMILL, torch.linspace(0, 1, n_frames))
    return replace(parts, centres=parts.centres + shift)


def pictures(parts: Parts, cameras: Cameras = CAMERAS, size: int = SIZE) -> ViewGrid:
    rendering = render_parts(parts, cameras, size)
    return ViewGrid(rendering.rgb, cameras, rendering.mask)


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.minimum(a, b).sum() / torch.maximum(a, b).sum())


@pytest.fixture(scope="module")
def clean() -> ViewGrid:
    return planted_clips.planted_clip(SEED, "none", SIZE).grid


@pytest.fixture(scope="module")
def source(tmp_path_factory, clean) -> Path:
    """Return a folder of three scenes: a good one as plain D-NeRF data set, a frozen one, a broken one."""
    root = tmp_path_factory.mktemp("source")
    write_views(root / "good", clean)
    for file in root.glob("good/*.*"):
        if file.name != "transforms_train.json":
            file.unlink()
    write_views(root / "frozen", clean.at_frames([0] * clean.n_frames))
    (root / "broken").mkdir()
    (root / "broken/transforms.json").write_text("{}")
    return root


def reported(out: Path) -> dict[str, dict]:
    return {scene["name"]: scene for scene in json.loads((out / REPORT_FILE).read_text())["scenes"]}


@pytest.mark.parametrize("defect", planted_clips.DEFECTS)
def test_a_planted_defect_is_found_and_nothing_else(defect):
    verdict = judge(planted_clips.planted_clip(SEED, defect, SIZE).grid, LIMITS)
    expected = {planted_clips.DEFECTS[defect]} - {""}
    assert {check.name for check in verdict.checks if not check.passed} == expected
    assert verdict.kept == (not expected) and not verdict.faults


def test_a_limit_decides(clean):
    motion = next(check for check in judge(clean, LIMITS).checks if check.name == "motion").found.value
    assert judge(clean, replace(LIMITS, least_motion=motion - 0.01)).kept
    verdict = judge(clean, replace(LIMITS, least_motion=motion + 0.01))
    assert "hardly moves" in verdict.reasons[0] and f"{motion:.3g}" in verdict.reasons[0]
    with pytest.raises(ValueError, match="largest_cut"):
        CurationLimits(largest_cut=float("nan"))


def test_few_frames_and_missing_objects(clean):
    assert "too few frames" in judge(clean.at_frames(range(5)), LIMITS).reasons[0]
    assert judge(clean.at_frames([0]), replace(LIMITS, least_frames=1, least_motion=0)).kept
    masks = clean.masks.clone()
    masks[3, 1] = 0
    cover = next(c for c in judge(replace(clean, masks=masks), LIMITS).checks if not c.passed)
    assert (cover.name, cover.found) == ("cover", (0.0, 3, 1))
    verdict = judge(replace(clean, masks=torch.zeros_like(masks)), LIMITS)
    assert not verdict.kept and "cannot be rectified" in verdict.reasons[0]


def test_pictures_that_are_no_numbers(clean):
    images, masks = clean.images.clone(), clean.masks.clone()
    images[2, 1, 5, 5, 0] = torch.nan
    masks[4, 0, 5, 5] = torch.inf
    total = clean.n_frames * (clean.n_views + 1)
    assert judge(replace(clean, images=images, masks=masks), LIMITS).reasons == [
        f"NaN or infinite values in 2 of {total} pictures"
    ]


def test_specks_neither_cut_nor_stretch(clean):
    large = clean.resized(128)
    images, masks = large.images.clone(), large.masks.clone()
    images[:, :, :2, 60:62], masks[:, :, :2, 60:62] = 0, 1
    dirty, before = judge(replace(large, images=images, masks=masks), LIMITS), judge(large, LIMITS)
    assert dirty.kept and dirty.plan.zoom == pytest.approx(before.plan.zoom, rel=0.02)


def test_views_that_contradict_each_other(clean):
    masks = torch.zeros_like(clean.masks)
    masks[:, ::2, :8, 20:28] = masks[:, 1::2, -8:, 20:28] = 1
    verdict = judge(replace(clean, masks=masks), LIMITS)
    assert any("silhouettes" in reason for reason in verdict.reasons)


def test_the_static_centre_is_that_of_the_tower_and_moves_with_the_object():
    here = centres_of(measured_grid(pictures(windmill(torch.zeros(3)))))[0]
    there = centres_of(measured_grid(pictures(windmill(SHIFT))))[0]
    assert (there - here - SHIFT).norm() < 0.04
    # The tower's axis is x = z = 0, its foot at -0.5 and the hub of the sails above 0.
    assert here[[0, 2]].norm() < 0.03 and -0.4 < here[1] < -0.1


@pytest.mark.parametrize(("fov", "held"), [(33.9, False), (48.0, True)])
def test_the_static_part_is_the_centre_only_where_the_object_stays_large(fov, held):
    grid = measured_grid(pictures(windmill(torch.zeros(3)), replace(CAMERAS, fov_deg=fov)))
    static, middle = centres_of(grid)
    plan, about_static = framed(grid), plan_rectification(grid, static)
    assert plan.zoom >= 0.9
    assert (about_static.zoom >= 0.9) == held == (plan.centre == about_static.centre)
    assert (torch.tensor(plan.centre) - middle).norm() <= (static - middle).norm() + 1e-6


def test_rectified_pictures_are_those_of_the_new_cameras():
    grid = pictures(windmill(SHIFT, 2), size=96)
    plan = plan_rectification(measured_grid(grid), SHIFT)
    new = rectify(grid, plan, 64)
    # The new world: its origin is the centre, and it is turned until the input camera is at azimuth 0.
    eye = CAMERAS.eyes()[0] - SHIFT
    angle = torch.atan2(eye[0], eye[2])
    turn = torch.tensor([[angle.cos(), 0, -angle.sin()], [0, 1, 0], [angle.sin(), 0, angle.cos()]]).double()
    parts = windmill(torch.zeros(3), 2)
    truth = pictures(
        replace(parts, centres=parts.centres @ turn.T, rotations=turn @ parts.rotations), plan.cameras, 64
    )
    assert overlap(new.masks, truth.masks) > 0.9 > 0.6 > overlap(grid.resized(64).masks, truth.masks)
    assert plan.offset == pytest.approx(float(pictured(SHIFT[None], CAMERAS).norm(dim=-1).mean() / 2))


def test_the_object_fills_all_views_and_is_never_cut():
    grid = planted_clips.planted_clip(SEED, "off centre", SIZE).grid
    verdict = judge(grid, LIMITS)
    masks = rectify(grid, verdict.plan, 100).masks.amax((0, 1)) > 0.2
    rows, columns = masks.nonzero().unbind(-1)
    margin = min(int(rows.min()), int(columns.min()), 99 - int(rows.max()), 99 - int(columns.max()))
    assert 3 <= margin <= 7  # 5 % on the side where it reaches farthest


def test_curated_scenes_are_data_sets_and_sources_stay(tmp_path, source, contents, monkeypatch):
    before = contents(source)
    records = curate(find_scenes(source), tmp_path / "out", LIMITS)
    assert contents(source) == before
    kept = {record.name: record.verdict.kept for record in records}
    assert kept == {"broken": False, "frozen": False, "good": True}
    assert list(find_scenes(tmp_path / "out")) == ["good"]
    monkeypatch.chdir(tmp_path / "out/good")
    assert list(find_scenes(".")) == ["good"]
    grid = read_any_views(tmp_path / "out/good")
    assert torch.equal(read_dataset(tmp_path / "out/good").images, grid.images)
    assert judge(grid, LIMITS).kept and judge(grid, LIMITS).plan.offset < 0.03
    report = reported(tmp_path / "out")
    assert "cannot be read" in report["broken"]["reasons"][0]
    assert not report["frozen"]["checks"]["motion"]["passed"]
    assert report["good"]["rectification"]["zoom"] > 1


def test_the_page_is_complete_in_itself(tmp_path, source):
    scenes = {"<good>": source / "good", "frozen": source / "frozen"}
    curate(scenes, tmp_path, LIMITS, dry_run=True)
    page = (tmp_path / PAGE_FILE).read_text()
    assert page.count('src="data:image/jpeg;base64,') == 2 == page.count("src=")
    assert "&lt;good&gt;" in page and "<good>" not in page
    assert "1 of 2 clips are kept" in page and "motion 1" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [PAGE_FILE, REPORT_FILE]


def test_names_that_are_not_utf8_are_curated_too(tmp_path, source):
    name = os.fsdecode(b"caf\xe9")
    curate({name: source / "frozen"}, tmp_path, LIMITS, dry_run=True)
    assert "caf?" in (tmp_path / PAGE_FILE).read_text(encoding="utf-8")
    assert name in reported(tmp_path)


def test_nothing_is_replaced_silently(tmp_path, source, contents):
    good = {"good": source / "good"}
    curate(good, tmp_path, LIMITS)
    first = contents(tmp_path)
    with pytest.raises(FileExistsError, match="overwrite"):
        curate(good, tmp_path, LIMITS)
    with pytest.raises(FileExistsError, match="dry run"):
        curate(good, tmp_path, LIMITS, dry_run=True, overwrite=True)
    notes = tmp_path / "good/notes.txt"
    notes.write_text("mine")
    with pytest.raises(FileExistsError, match="holds good/notes.txt, which no curation wrote"):
        curate(good, tmp_path, LIMITS, overwrite=True)
    notes.unlink()
    assert contents(tmp_path) == first
    curate(good, tmp_path, replace(LIMITS, least_motion=1.0), overwrite=True)
    assert not (tmp_path / "good").exists()  # it is rejected now
    (tmp_path / "good").mkdir()
    with pytest.raises(FileExistsError, match="none replaces"):
        curate(good, tmp_path, LIMITS, overwrite=True)


def test_a_failure_leaves_no_trace(tmp_path, source):
    def interrupt(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate({"good": source / "good"}, tmp_path / "out", LIMITS, on_scene=interrupt)
    assert not (tmp_path / "out").exists()


def test_command(tmp_path, source, capsys):
    def run(*arguments: object) -> int:
        return main(["curate", *map(str, arguments)])

    out = tmp_path / "out"
    assert run(source, "--out", out, "--least-motion", "0", "--size", 32) == 0
    assert [read_any_views(scene).images.shape[2] for scene in find_scenes(out).values()] == [32, 32]
    twice = tmp_path / "again" / "good"
    shutil.copytree(source / "good", twice)
    assert run(source / "good", twice.parent, "--out", tmp_path / "two", "--dry-run") == 0
    assert reported(tmp_path / "two").keys() == {"good_good", "again_good"}
    for bad in (source / "good", source / "good/out", source):
        assert run(source, "--out", bad) == 2 and "apart from the input" in capsys.readouterr().err
