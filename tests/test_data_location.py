"""Numbered folders, folders of views found by name, and damaged ones."""

import os
from pathlib import Path

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.views_folder import RUN_FILE, read_views, write_views
from sv4d2_core.files import claimed
from sv4d2_core.lookup import find_inside
from sv4d2_core.views import ViewGrid

GRID = ViewGrid(
    torch.rand(2, 2, 16, 16, 3, generator=torch.Generator().manual_seed(0)),
    Cameras.ring(1),
    torch.ones(2, 2, 16, 16),
    latents=torch.zeros(2, 1, 4, 2, 2),
)


def find_views(name: str, roots: list[Path]) -> Path:
    return find_inside(name, roots, lambda path: (path / RUN_FILE).is_file(), "a folder of views")


def made(parent: Path, name: str = "views") -> str:
    with claimed(parent, name) as folder:
        (folder / "file").touch()
    return folder.name


def test_numbers_go_on_after_the_highest(tmp_path):
    parent = tmp_path / "a/b"
    assert [made(parent), made(parent), made(parent, "view")] == ["views_00001", "views_00002", "view_00001"]
    for other in ("views_00041_old", "views_7", "views_99x"):
        (parent / other).mkdir()
    assert made(parent) == "views_00008"
    (parent / "views_123456").touch()
    assert made(parent) == "views_123457"
    (parent / "views_123459.glb").touch()
    assert made(parent) == "views_123460", "a number is one export's, whatever the suffix"
    assert made(parent, "a.c") == made(parent, "abc").replace("abc", "a.c") == "a.c_00001"


def test_a_number_that_another_process_takes_meanwhile_is_left_to_it(tmp_path, monkeypatch):
    mkdir, raced = Path.mkdir, []

    def racing(self, *args, **kwargs):
        if self.name == "views_00001" and not raced:
            raced.append(self)
            mkdir(self)
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", racing)
    assert made(tmp_path) == "views_00002"
    assert list(raced[0].iterdir()) == []


def test_a_file_or_an_unnumbered_folder_is_claimed_once_and_given_back_when_left_empty(tmp_path):
    with claimed(tmp_path, "walk", ".glb") as first, claimed(tmp_path, "walk", ".glb") as second:
        assert (first.name, second.name) == ("walk_00001.glb", "walk_00002.glb")
        second.write_bytes(b"a")
    for name in ("plain", "plain_00001"):
        with claimed(tmp_path, "plain", numbered=False) as folder:
            assert folder.name == name
            (folder / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "plain_00001", "walk_00002.glb"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_gives_the_number_back_unless_something_was_written(tmp_path, error):
    for content, left in ((None, []), ("file", ["views_00001"])):
        with pytest.raises(error), claimed(tmp_path, "views") as folder:
            if content:
                (folder / content).touch()
            raise error
        assert [path.name for path in tmp_path.iterdir()] == left


def test_folders_are_found_in_the_first_root_that_has_views(tmp_path):
    output, given = tmp_path / "output", tmp_path / "input"
    write_views(given / "deep/mine", GRID)
    assert find_views("deep/mine", [output, given]) == given / "deep/mine"
    (output / "deep/mine").mkdir(parents=True)
    assert find_views("deep/mine/", [output, given]) == given / "deep/mine"
    write_views(output / "deep/mine", GRID)
    assert find_views(" ./deep/mine\n", [output, given]) == output / "deep/mine"
    assert find_views(str(given / "deep/mine"), [output, given]) == given / "deep/mine"
    (output / "short").symlink_to(output / "deep/mine")
    assert find_views("short", [output, given]) == output / "deep/mine"
    (tmp_path / "linked").symlink_to(output)
    assert find_views("short", [tmp_path / "linked"]) == output / "deep/mine", "a root may be a link"


def test_nothing_outside_the_roots_is_found(tmp_path):
    root = tmp_path / "output"
    root.mkdir()
    write_views(tmp_path / "secret", GRID)
    write_views(tmp_path / "output2", GRID)
    (root / "link").symlink_to(tmp_path / "secret")
    for name in ("../secret", "../output2", "link", str(tmp_path / "secret"), "a/../../secret"):
        with pytest.raises(ValueError, match="outside"):
            find_views(name, [root, tmp_path / "input"])
    with pytest.raises(ValueError, match="NUL"):
        find_views("a\0", [root])


def test_the_latest_folders_are_listed(tmp_path):
    for i in range(7):
        write_views(tmp_path / f"sub/views_{i}", GRID)
        os.utime(tmp_path / f"sub/views_{i}", (i, 1000 - 100 * i))
    with pytest.raises(FileNotFoundError) as caught:
        find_views("views_0", [tmp_path, tmp_path / "missing"])
    assert f"exist: {', '.join(f'sub/views_{i}' for i in range(7))}." in str(caught.value)
    with pytest.raises(FileNotFoundError, match="Those that exist: none"):
        find_views("", [tmp_path / "missing"])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "run.json").write_text("{"), ValueError, "JSON in .*run.json; it is damaged"),
        (lambda f: (f / "run.json").write_text("{}"), ValueError, "as n_frames in .*run.json; got none"),
        (lambda f: (f / "cameras.json").write_text("{}"), ValueError, "as elevations_deg in .*cameras.json"),
        (
            lambda f: (f / "frames/view_01/00001.png").write_bytes(b""),
            ValueError,
            "readable image; .*00001.png is not",
        ),
        (lambda f: (f / "masks/view_00/00000.png").unlink(), FileNotFoundError, "lacks 1 .*: masks/view_00"),
        (
            lambda f: [path.unlink() for path in (f / "frames").rglob("*.png")],
            FileNotFoundError,
            r"lacks 4 of its files: frames/view_00/00000\.png, .*\. Bring them back",
        ),
        (lambda f: (f / "latents/latents.safetensors").unlink(), FileNotFoundError, "lacks 1 .*latents/"),
        (
            lambda f: (f / "latents/latents.safetensors").write_bytes(b"abc"),
            ValueError,
            "latents; .*cannot be read",
        ),
    ],
)
def test_damaged_folders_are_named(tmp_path, damage, error, message):
    write_views(tmp_path / "a", GRID, save_latents=True)
    damage(tmp_path / "a")
    with pytest.raises(error, match=message):
        read_views(tmp_path / "a")


def test_what_is_for_people_alone_may_be_missing(tmp_path):
    write_views(tmp_path / "a", GRID)
    for name in ("view_00.mp4", "contact_sheet.png", "transforms.json"):
        (tmp_path / "a" / name).unlink()
    assert read_views(tmp_path / "a").n_frames == 2
