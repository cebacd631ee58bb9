"""Where the pictures of a clip are: one file, or the frames of a folder or pattern, in order."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..messages import cut, listed

# Of linear light, in floats: neither Pillow nor a screen shows them as they are.
LINEAR_SUFFIXES = (".exr", ".hdr", ".pfm")
IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".tga"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pnm", ".qoi", ".dds", ".sgi", ".pcx", *LINEAR_SUFFIXES),
)

_PRINTF = re.compile(r"%0?(\d{0,2})d|#{2,}")  # frame_%04d.png of FFmpeg, frame_####.png of compositors
_HOLE = "\ue000"  # stands for such a number; no name holds it
_NUMBER = re.compile(r"(?<![^\W_])-[0-9]+|[0-9]+")
# 0001 (1).png of browsers, 0001 - Copy (2).png of Windows, 0001 copy 2.png of macOS.
_COPY = re.compile(r"(?<=\d)(\s?\(\d+\)|[\s_-]+\(?(copy|kopie|copie|copia)\)?(\s\(?\d+\)?)?)$", re.IGNORECASE)
_MASK = re.compile(r"mask(?!ed)|matte|silhouette|(?<![a-z])(alpha|seg|segmentation)(?![a-z])", re.IGNORECASE)
_BESIDE = re.compile(r"thumb|(?<![a-z])preview|contact.?sheet", re.IGNORECASE)


class Place(NamedTuple):
    """The files of a clip, in order."""

    files: list[Path]  # one file of any kind, or images
    masks: list[Path]  # images beside them, one each; none where there are none
    notes: tuple[str, ...]  # how they were chosen, for the clip's report


def find_pictures(path: str | Path) -> Place:
    """Return the one file, or the one group of images of a folder or pattern.

    Images whose names differ in one number are a group. Copies, thumbnails and lone others are left out.
    Raises FileNotFoundError for nothing or no images, ValueError for several groups or a NUL byte.
    """
    if "\0" in str(path):
        raise ValueError(f"Expected a path; got {cut(repr(str(path)))}: it holds a NUL byte. Check the path.")
    place = Path(path).expanduser()
    if place.is_file():
        return Place([place], [], ())
    if place.is_dir():
        # A link to nothing counts, so that it is named when it is opened, not silently left out.
        found = [file for file in place.iterdir() if not file.is_dir()]
    elif glob.has_magic(str(path)) or _PRINTF.search(str(path)):
        found = [file for file in matches(path) if not file.is_dir()]
        if len(found) == 1:
            return Place(found, [], ())
    else:
        link = f", a link to {os.readlink(place)}" if place.is_symlink() else ""
        raise FileNotFoundError(
            f"Expected a video, an image, a folder or a pattern; there is nothing at {path}{link}."
        )
    # A leading dot marks what systems leave beside the files, such as macOS' ._0001.png.
    visible = [file for file in found if not file.name.startswith(".")]
    images = [file for file in visible if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise FileNotFoundError(
            f"Expected images ({' '.join(IMAGE_SUFFIXES)}) in {path}; got {len(found)} files, no "
            f"image among them. Give the folder that holds the frames, or one video file."
        )
    return _one_group(sorted(images, key=natural_key), str(path))


def natural_key(file: Path) -> list[tuple[int, str]]:
    """Sort key by which frame_2 comes before frame_10."""
    parts = re.split(r"([0-9]+)", file.as_posix().lower())
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def regular(file: Path) -> Path:
    """Return a path to a file. Raises ValueError for a pipe or a device, which may never end."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError(
            f"Expected a file; {file} is a pipe or a device. Leave it out, or copy it to a file."
        )
    return file


def file_url(path: str | Path) -> str:
    """Return a path for FFmpeg, which takes what stands before a colon for a protocol."""
    return f"file:{path}"


def matches(pattern: str | Path) -> list[Path]:
    """Return what a pattern matches, in natural order; brackets that match nothing are part of the name."""
    place = Path(pattern).expanduser()
    # Brackets and numbers in the names of folders that are there are no pattern.
    fixed = next((folder for folder in place.parents if folder.is_dir()), Path())
    rest = str(place.relative_to(fixed))
    for text in (rest, rest.replace("[", "[[]")):
        found = glob.glob(_PRINTF.sub("*", text), root_dir=fixed, recursive=True)
        if digits := _PRINTF.findall(text):
            exact = fnmatch.translate(_PRINTF.sub(_HOLE, text))
            for at_least in digits:
                exact = exact.replace(_HOLE, f"-?[0-9]{{{at_least or 1},}}", 1)
            found = [name for name in found if re.match(exact, name)]
        if found:
            return sorted((fixed / name for name in found), key=natural_key)
    return []


class _Group(NamedTuple):
    """Images whose names differ in one number, or that have no number."""

    files: list[Path]
    numbers: list[int]
    pattern: str  # that gives these files, in the folder of all


def _one_group(images: list[Path], path: str) -> Place:
    known = set(images)
    copies = {file for file in images if file.with_stem(_COPY.sub("", file.stem)) in known - {file}}
    # One name many times over is how browsers number downloads.
    kept = [file for file in images if file not in copies or len(copies) == len(images) - 1]
    folder = Path(os.path.commonpath([file.parent for file in images]))
    groups = [*_grouped(kept, folder)]
    several = [group for group in groups if group.numbers and len(group.files) > 1]
    stems = [group.files[0].stem for group in groups]
    if not several and len(groups) > 1 and not any(a != b and b.startswith(a) for a in stems for b in stems):
        return Place(
            images,
            [],
            (f"names without a number in common, taken in order: {listed([one.name for one in images])}",),
        )
    several = several or groups
    several = [group for group in several if not _BESIDE.search(group.pattern)] or several
    clips = [group for group in several if not _MASK.search(group.pattern)] or several
    masks = [group for group in several if group not in clips]
    if len(clips) > 1 or len(masks) > 1:
        counts = [f"{group.pattern} ({len(group.files)})" for group in several]
        raise ValueError(
            f"Expected the frames of one clip in {path}; got {len(counts)} groups of names: {listed(counts)}"
            f". Give the pattern of one, such as {folder / several[0].pattern}."
        )
    clip, notes = clips[0], []
    by_number = {n: file for group in masks for n, file in zip(group.numbers, group.files, strict=True)}
    beside = [by_number[number] for number in clip.numbers if number in by_number]
    if by_number and len(beside) < len(clip.files):
        notes.append(f"masks for only {len(beside)} of {len(clip.files)} frames stand beside them: not taken")
        beside = []
    if left_out := [file.name for file in images if file not in {*clip.files, *beside}]:
        notes.append(f"{len(clip.files)} frames are {clip.pattern}; left out: {listed(left_out)}")
    return Place(clip.files, beside, (*notes, *_uneven(clip.numbers)))


def _uneven(numbers: list[int]) -> Iterator[str]:
    """Yield what to say about numbers that do not count evenly, or from below 0."""
    if min(numbers, default=0) < 0:
        yield f"frame numbers begin below 0, at {numbers[0]}"
    steps = Counter(b - a for a, b in pairwise(numbers))
    # Where they fall they are seconds of a clock.
    if len(steps) > 1 and min(steps) > 0:
        usual = steps.most_common(1)[0][0]
        gaps = [f"{a} to {b}" for a, b in pairwise(numbers) if b - a != usual]
        yield f"gaps in the frames' numbers, taken as evenly timed: {listed(gaps)}"


def _grouped(images: list[Path], folder: Path) -> Iterator[_Group]:
    """Yield images by what their names are but for a number, and by suffix where a name has several."""
    stems = {file: file.relative_to(folder).with_suffix("").as_posix() for file in images}
    times = Counter(stem.lower() for stem in stems.values())
    kinds: dict[tuple[str, str], list[Path]] = {}
    for file, stem in stems.items():
        words = _NUMBER.sub("#", stem.lower())
        suffix = file.suffix.lower() if times[stem.lower()] > 1 else ""
        kinds.setdefault((words if "#" in words else "", suffix), []).append(file)
    for (words, _), files in kinds.items():
        if not words:
            yield _Group(files, [], str(files[0].relative_to(folder)))
            continue
        texts = [*zip(*(_NUMBER.findall(stems[f]) for f in files), strict=True)]
        # A hyphen before every number, 0 too, only parts it from the name.
        parted = [all(text.startswith("-") for text in column) for column in texts]
        columns = [[abs(int(x)) if p else int(x) for x in c] for p, c in zip(parted, texts, strict=True)]
        frame = max(range(len(columns)), key=lambda c: (len(set(columns[c])), c))
        alone = len(set(columns[frame])) == len(files)  # else the other numbers tell clips apart
        clips: dict[tuple[int, ...], list[tuple[int, Path]]] = {}
        for *row, file in sorted(zip(*columns, files, strict=True)):
            others = () if alone else (*row[:frame], *row[frame + 1 :])
            clips.setdefault(others, []).append((row[frame], file))
        for clip in clips.values():
            numbers, names = zip(*clip, strict=True)
            digits = [*_NUMBER.findall(stems[names[0]]), ""]
            digits[frame] = "%d"
            parts = zip(_NUMBER.split(stems[names[0]]), digits, strict=True)
            pattern = "".join(word + number for word, number in parts) + names[0].suffix
            yield _Group([*names], [*numbers], pattern)
