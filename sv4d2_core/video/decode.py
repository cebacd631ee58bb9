"""Pixels out of files: images, animations and videos, as they are to be seen, and when."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count, islice, takewhile
from pathlib import Path
from typing import Generic, TypeVar, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import BlockingIOError, EOFError, FFmpegError
from av.filter import Graph
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from PIL import Image, ImageOps

from ..files import is_out_of_memory
from ..messages import cut, listed
from ..views import FPS_RANGE, playable
from .colour import LARGEST_OF_VIDEO, VideoColours, beside, linear_picture, open_video, to_uint8, with_profile
from .places import LINEAR_SUFFIXES, regular

DEFAULT_FPS = 8.0

# Whatever the suffix says. EPS, which runs Ghostscript, WMF, FITS and their like are not there.
_FORMATS = "PNG JPEG MPO WEBP GIF BMP DIB TIFF AVIF TGA JPEG2000 PPM QOI DDS SGI PCX"
LARGEST = 2**27  # pixels of a picture: it takes up to 13 bytes for each
_SMALL, _MOST, _PIXELS_PER_BYTE = 2**26, 2**30, 2**13  # pixels of all pictures: always, ever, by size of file
_SHORTEST_DELAY_MS, _USUAL_DELAY_MS = 20, 100  # browsers show what is shorter, or states nothing, so long
_LARGEST_PIXEL_ASPECT = 8  # beyond it is damage, not a wide-screen format
# Covers, previews, tiles of a picture.
_ATTACHED = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
_NEARLY = 0.01  # a rate that is off by less is not worth a word
_UNEVEN = 0.1  # deviation from the mean distance of two frames that is said
_TICK_S, _GIF_TICK_S = 1.1e-3, 1.1e-2  # to which the times of videos and animations are rounded
_ROUNDED_S = 1e-6  # by which a stamp may miss the end of a window that was computed
_SAME_TIME_S = 2e-3  # of rounded time stamps; the earlier picture wins a tie
REORIENTED = "turned or mirrored as the file says"

WHOLE = -math.inf, math.inf  # of a source's time

Picture = TypeVar("Picture")


@dataclass(frozen=True)
class Decoded:
    """The pictures that were picked, and what is known of them."""

    pictures: list[np.ndarray]  # uint8 [H, W, 3] RGB or [H, W, 4] RGBA with straight alpha
    total: int  # pictures that were seen, picked or not
    fps: float = DEFAULT_FPS  # of the picked pictures
    numbers: Sequence[int] = ()  # which of the source each is, counted from 0
    times: Sequence[float] = ()  # seconds after the source's first picture; empty where it has no times
    seconds: float = 0.0  # from the first picture that was seen to the last one
    notes: tuple[str, ...] = ()  # what was decided for the user, one line each
    masks: list[Path] | tuple[()] = ()  # images that stand beside the pictures as their masks


@dataclass(frozen=True)
class Pick:
    """Which pictures of a source are taken.

    By number, or, where the source has times, by time: with ``fps`` those nearest to 0, every / fps,
    2 every / fps, ... seconds after number ``start``; with ``times`` those nearest to each of these. ``only``
    are the numbers themselves.
    """

    start: int = 0
    every: int = 1
    count: int | None = None  # at most; None: all
    fps: float | None = None
    times: Sequence[float] = ()  # ascending seconds after the source's first picture
    only: frozenset[int] = frozenset()
    window: tuple[float, float] = WHOLE  # time stamps, seconds, from and before; the rest is not there

    def __post_init__(self) -> None:
        if (self.count is not None and self.count < 1) or self.start < 0 or self.every < 1:
            raise ValueError(
                f"Expected frames >= 1 (or none for all), start >= 0 and every >= 1; got frames = "
                f"{self.count}, start = {self.start}, every = {self.every}."
            )

    @property
    def numbers(self) -> slice:
        """The numbers, counted from 0, where pictures are taken by number."""
        stop = None if self.count is None else self.start + (self.count - 1) * self.every + 1
        return slice(self.start, stop, self.every)

    def within(self, total: int) -> Sequence[int]:
        """Return the numbers that are taken by number of ``total`` pictures."""
        return sorted(n for n in self.only if n < total) if self.only else range(total)[self.numbers]

    def among(self, total: int, rate: float) -> list[int]:
        """Return the numbers that are taken of pictures that follow each other evenly, ``rate`` a second."""
        if self.fps is None:
            return [*range(total)[self.numbers]]
        step = self.every * rate / self.fps
        places = takewhile(lambda place: place < total - self.start - 0.5, (step * k for k in count()))
        # The earlier one wins a tie.
        return [self.start + round(place - 1e-6) for place in islice(places, self.count)]


def read_image(file: Path, notes: list[str] | None = None) -> np.ndarray:
    """Return an image file upright, as pictures are in `Decoded`; ValueError names what cannot be read."""
    if file.suffix.lower() in LINEAR_SUFFIXES:
        return to_uint8(linear_picture(file), str(file))
    with open_image(file) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return _pixels(image, file, [] if notes is None else notes)


def read_images(files: Sequence[Path], pick: Pick) -> Decoded:
    """Return the picked ones of image files, of which each is a frame; errors as `read_image`."""
    notes: list[str] = []
    numbers = pick.within(len(files))
    check_room([files[number] for number in numbers])
    pictures = [read_image(files[number], notes) for number in numbers]
    return Decoded(pictures, len(files), DEFAULT_FPS / pick.every, numbers, notes=tuple(dict.fromkeys(notes)))


def read_animation(file: Path, pick: Pick) -> Decoded:
    """Return the picked pictures of an image file of one or more; errors as `read_image`."""
    notes: list[str] = []
    with open_image(file) as image:
        # What a photo holds beside itself (MPO) are previews, or the other eye's picture.
        total = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        # Of an APNG, one before the animation is for programs that play none.
        first = int(getattr(image, "default_image", False))
        total -= first
        if total > 1 or first:
            room = Room([file])
            if pick.fps is None and not pick.times:
                room.check(len(pick.within(total)), *image.size)
            choice = _Choice[np.ndarray](pick, lambda pixels: pixels, room)
            choice.read(_animation(image, range(first, first + total), file, notes))
            return choice.decoded(None, notes)
    return read_images([file], pick)


def _animation(
    image: Image.Image, numbers: Iterable[int], file: Path, notes: list[str]
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the time, seconds, and the composed picture of every frame."""
    time_ms = 0.0
    for number in numbers:
        image.seek(number)
        yield time_ms / 1000, _pixels(image, file, notes)
        delay_ms = float(image.info.get("duration") or 0)
        if delay_ms < _SHORTEST_DELAY_MS:
            notes.append(f"delays below {_SHORTEST_DELAY_MS} ms last {_USUAL_DELAY_MS} ms, as in browsers")
            delay_ms = _USUAL_DELAY_MS
        time_ms += delay_ms


class _Choice(Generic[Picture]):
    """The wanted pictures of a source, their numbers, and the times of all that were looked at."""

    def __init__(self, pick: Pick, convert: Callable[[Picture], np.ndarray], room: Room) -> None:
        self.pick, self.convert, self.room = pick, convert, room
        self.pictures: list[np.ndarray] = []
        self.numbers: list[int] = []
        self.times: list[float | None] = []

    def read(self, source: Iterable[tuple[float | None, Picture]]) -> None:
        """Take from pictures, each with its time in seconds where it has one, only as far as needed."""
        pick, before, now, step = self.pick, None, 0.0, 0.0
        stop = max(pick.only) + 1 if pick.only else pick.numbers.stop or sys.maxsize
        wanted, by_time = pick.only or range(pick.start, stop, pick.every), bool(pick.fps or pick.times)
        targets = iter(pick.times)
        target = next(targets, None)
        for number, (time, picture) in enumerate(self._within_window(source)):
            self.times.append(time)
            if time is None or not by_time:
                if number in wanted:
                    self._take(number, picture)
                if number + 1 >= stop:
                    return
                continue
            earlier, now = now, time - (self.times[0] or 0.0)
            if pick.fps is not None and number == pick.start:
                targets = islice(count(now, pick.every / pick.fps), pick.count)
                target = next(targets)
            while target is not None and target <= now + _SAME_TIME_S:
                if before is not None and target - earlier <= now - target + _SAME_TIME_S:
                    self._take(number - 1, before)
                else:
                    self._take(number, picture)
                target = next(targets, None)
                if target is None:
                    return
            before, step = picture, now - earlier
        # The last picture stays as long as the one before it did.
        if before is not None:
            end = now + (step if pick.times else step / 2)
            while target is not None and target < end:
                self._take(len(self.times) - 1, before)
                target = next(targets, None)

    def _within_window(
        self, source: Iterable[tuple[float | None, Picture]]
    ) -> Iterator[tuple[float | None, Picture]]:
        first, end = self.pick.window
        for time, picture in source:
            if time is not None and time >= end - _ROUNDED_S:
                return
            if time is None or time >= first - _ROUNDED_S:
                yield time, picture

    def _take(self, number: int, picture: Picture) -> None:
        again = bool(self.numbers) and self.numbers[-1] == number
        pixels = self.pictures[-1] if again else self.convert(picture)
        self.room.check(len(self.pictures) + 1, *pixels.shape[:2])
        self.pictures.append(pixels)
        self.numbers.append(number)

    def decoded(self, stated_fps: float | None, notes: list[str]) -> Decoded:
        """Return what was taken, with the rate that the times give, else the stated one."""
        pick, all_times = self.pick, np.asarray(self.times, float)  # no time becomes NaN
        all_times -= all_times[:1].sum()
        times = all_times[np.asarray(self.numbers, int)]
        steps = np.diff(times)
        mean = float(steps.mean()) if len(steps) else 0.0
        has_times = bool(mean > 0 and steps.min() >= 0)
        fps = (stated_fps or 1000 / _USUAL_DELAY_MS) / pick.every
        tick_s = _TICK_S if stated_fps else _GIF_TICK_S
        if len(steps) and not has_times:
            notes.append(f"the frames have no usable times: {fps:.4g} fps, as the file states")
        elif pick.fps is not None:
            notes.append(resampled(pick.fps, self.numbers))
        elif has_times and not pick.times and not pick.only:
            off = np.abs(times - times[0] - np.arange(len(times)) / fps)
            if off.max() > tick_s:
                if stated_fps and abs(mean * fps - 1) > _NEARLY:
                    notes.append(f"{1 / mean:.4g} fps by the frames' times; the file states {fps:.4g}")
                fps = 1 / mean
            if np.abs(steps - mean).max() > _UNEVEN * mean + tick_s:
                notes.append(
                    f"frame times are uneven: {1000 * steps.min():.0f} to {1000 * steps.max():.0f} ms apart, "
                    f"{1000 * mean:.0f} on average; --fps (in ComfyUI resample) takes frames at even times"
                )
        if not pick.times and playable(fps) != fps:
            slowest, fastest = FPS_RANGE
            notes.append(f"{fps:.4g} fps is not a rate that clips can have: {slowest:g} to {fastest:g}")
            fps = playable(fps)
        known = times.tolist() if has_times or len(times) == 1 else ()
        seconds = float(all_times[-1]) if known else 0.0
        said = tuple(dict.fromkeys(notes))
        return Decoded(self.pictures, len(all_times), fps, self.numbers, known, seconds, said)


def resampled(fps: float, numbers: Sequence[int]) -> str:
    """Return what to say of pictures that were taken by time."""
    again = np.count_nonzero(np.diff(numbers) == 0)
    return f"resampled by time to {fps:.4g} fps, {again} frames shown again"


class Room:
    """How many pixels may be decoded out of files: a few bytes can stand for more than the memory holds."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.name = listed(files)
        self.size = sum(regular(file).stat().st_size for file in files)
        self.pixels = min(max(_SMALL, _PIXELS_PER_BYTE * self.size), _MOST)

    def check(self, count: int, *sides: int) -> None:
        """Raise ValueError where so many pictures of these sides, pixels, are too many."""
        if (needed := count * math.prod(sides)) > self.pixels:
            raise ValueError(
                f"Expected at most {self.pixels / 1e6:.0f} million pixels, of all frames, out of {self.size} "
                f"bytes; {self.name} would make {needed / 1e6:.0f} million. Take fewer frames, or make them "
                f"smaller."
            )


def check_room(files: Sequence[Path]) -> None:
    """Raise ValueError where images have more pixels than `Room` has, before any is decoded."""
    pixels = 0
    for file in files:
        if file.suffix.lower() not in LINEAR_SUFFIXES:
            with open_image(file) as image:
                pixels += math.prod(image.size)
    Room(files).check(1, pixels)


@lru_cache
def _formats() -> tuple[str, ...]:
    """Return those of Pillow's formats that we read: others run programs (Ghostscript) or follow links."""
    Image.init()
    return tuple(name for name in _FORMATS.split() if name in Image.OPEN)


@contextmanager
def open_image(file: Path) -> Iterator[Image.Image]:
    """Yield an image file, not decoded yet; ValueError names what cannot be read, whatever is raised then."""
    with _naming(file), Image.open(regular(file), formats=_formats()) as image:
        Room([file]).check(1, *image.size)
        if math.prod(image.size) > LARGEST:
            raise ValueError(f"it has {image.width} x {image.height} pixels")
        yield image


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Name the file whatever Pillow raises, which is nearly anything for a damaged one."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"Expected a readable image; {file} is not: {cut(reason(error), 200)}. Save it again as PNG, or "
            f"make it smaller where it is too large."
        ) from error


def reason(error: Exception) -> str:
    """Return an error's text as the end of a sentence."""
    return str(error).rstrip(".") or type(error).__name__


def _pixels(image: Image.Image, file: Path, notes: list[str]) -> np.ndarray:
    """Return uint8 [H, W, 3 or 4] sRGB of any PIL mode; 16-bit grey levels are scaled, not clipped."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).clip(0, 65535).astype(np.uint32)
        levels *= 255
        levels += 32767
        levels //= 65535
        return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        return np.repeat(to_uint8(np.asarray(image), str(file))[..., None], 3, axis=-1)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    pixels = np.array(image.convert("RGBA" if has_alpha else "RGB"))
    with_profile(image, pixels, notes)
    return pixels


def read_video(file: Path, pick: Pick) -> Decoded:
    """Return the picked frames of a video, which is decoded only as far; ValueError names a damaged file."""
    notes: list[str] = []
    choice = None
    room = Room([file])
    try:
        with open_video(file) as container:
            stream = _video_stream(container, file, notes)
            room.check(1, stream.width, stream.height)
            aspect = float(stream.sample_aspect_ratio or 1)
            if not 1 / _LARGEST_PIXEL_ASPECT <= aspect <= _LARGEST_PIXEL_ASPECT:
                raise ValueError(
                    f"Expected pixels about as wide as high; {file} has a sample aspect ratio of {aspect:g}. "
                    f"Convert it to a video with square pixels, or give a folder of images."
                )
            rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
            choice = _Choice(pick, _Shown(stream.codec_context, aspect, notes), room)
            # AVI orders its stamps as coded, not as shown; its frames are even, as those without stamps are.
            has_times = container.format.name != "avi"
            choice.read(
                (number / rate if not has_times or pair[0].time is None else pair[0].time, pair)
                for number, pair in enumerate(_decode(container, stream, notes))
            )
    except FFmpegError as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"Expected a readable video; {file} failed after {len(choice.times) if choice else 0} frames: "
            f"{error.strerror}. Convert it to mp4, or give a folder of images."
        ) from error
    return choice.decoded(rate, notes)


def _video_stream(container: InputContainer, file: Path, notes: list[str]) -> av.VideoStream:
    """Return the stream that is shown: a moving one, the default, the largest, the longest, in this order."""
    shown = [stream for stream in container.streams.video if not stream.disposition & _ATTACHED]
    # FFmpeg takes any text for pictures of a terminal ("tty").
    if not shown or container.format.name == "tty":
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        raise ValueError(
            f"Expected a video; {file} holds none (format {container.format.name}, streams: "
            f"{kinds}). Give a video file or a folder of images."
        )
    # PyAV leaves the context out where FFmpeg has no decoder: drawings (svg), damaged headers.
    readable = [stream for stream in shown if cast(object, stream.codec_context) is not None]
    if not readable:
        raise ValueError(
            f"Expected a readable video; {file} is in a format that cannot be decoded (container "
            f"{container.format.name}), or damaged. Convert it to mp4, or give a folder of images."
        )

    def rank(stream: av.VideoStream) -> tuple[bool, bool, int, int]:
        is_default = bool(stream.disposition & Disposition.default)
        return stream.frames != 1, is_default, stream.width * stream.height, stream.frames

    stream = max(readable, key=rank)
    stream.codec_context.options = {"max_pixels": str(LARGEST_OF_VIDEO)}
    if len(shown) > 1:
        notes.append(
            f"of {len(shown)} video streams number {stream.index} is taken: {stream.width} x {stream.height}"
        )
    return stream


def _decode(
    container: InputContainer, stream: av.VideoStream, notes: list[str]
) -> Iterator[tuple[av.VideoFrame, bytes | None]]:
    """Yield a stream's frames and display matrices.

    Webm with alpha needs libvpx, as the default decoders drop the alpha.
    """
    matrix = None
    alpha_decoder = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if stream.metadata.get("alpha_mode") == "1" and alpha_decoder in av.codecs_available:
        decoder = cast(av.VideoCodecContext, av.CodecContext.create(str(alpha_decoder), "r"))
        decoder.options = stream.codec_context.options
        for packet in container.demux(stream):
            if matrix is None:  # a decoder of its own does not get what the file holds beside the packets
                matrix = next((beside(frame, SideData.DISPLAYMATRIX) for frame in packet.decode()), None)
            yield from ((frame, matrix) for frame in decoder.decode(packet))
        return
    # Of large pictures every thread would hold one.
    stream.thread_type = "AUTO" if stream.width * stream.height <= LARGEST_OF_VIDEO // 4 else "SLICE"
    for frame in _deinterlaced(container.decode(stream), notes):
        # H.264 states it once for all frames that follow.
        matrix = beside(frame, SideData.DISPLAYMATRIX) or matrix
        yield frame, matrix


def _deinterlaced(frames: Iterable[av.VideoFrame], notes: list[str]) -> Iterator[av.VideoFrame]:
    """Yield frames in which both fields show one moment, where frames are interlaced."""
    graph = None
    for frame in chain(frames, [None]):
        if graph is None and frame is not None and frame.interlaced_frame:
            notes.append("interlaced: the lines of the second field are made anew (bwdif)")
            graph = Graph()
            fields = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
            graph.link_nodes(fields, graph.add("bwdif", "0:deint=1"), graph.add("buffersink")).configure()
        if graph is None:
            yield from [] if frame is None else [frame]
            continue
        graph.push(frame)
        with suppress(BlockingIOError, EOFError):  # until it wants another frame, or the end
            while True:
                yield cast(av.VideoFrame, graph.pull())


class _Shown:
    """Turns a video's frames into pictures: sRGB, 8 bits, in square pixels, upright."""

    def __init__(self, context: av.VideoCodecContext, aspect: float, notes: list[str]) -> None:
        self.colours, self.aspect, self.notes = VideoColours(context, notes), aspect, notes

    def __call__(self, pair: tuple[av.VideoFrame, bytes | None]) -> np.ndarray:
        """Return uint8 [H, W, 3 or 4] of a frame and its display matrix."""
        (frame, matrix), pixels = pair, self.colours(pair[0])
        if self.aspect != 1:
            size = (max(round(frame.width * self.aspect), 1), frame.height)
            if math.prod(size) > LARGEST_OF_VIDEO:
                raise ValueError(
                    f"Expected smaller pictures; these are shown as {size[0]} x {size[1]} pixels."
                )
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        return pixels if matrix is None else _upright(pixels, matrix, self.notes)


def _upright(pixels: np.ndarray, matrix: bytes, notes: list[str]) -> np.ndarray:
    """Turn and mirror pixels as a display matrix says, to the nearest quarter turn."""
    # A point (x, y) goes to (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5] / 65536
    if (a, b, c, d) != (1, 0, 0, 1):
        notes.append(f"{REORIENTED} (display matrix {a:g} {b:g} / {c:g} {d:g})")
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
