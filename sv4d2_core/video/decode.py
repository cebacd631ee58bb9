"""Pixels out of files: images, animations and videos, as they are to be seen, and when."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import BlockingIOError, EOFError, FFmpegError
from av.filter import Graph
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from ..files import is_out_of_memory
from .linear import linear_picture
from .places import LINEAR_SUFFIXES, file_url

DEFAULT_FPS = 8.0

_SHORTEST_DELAY_MS, _USUAL_DELAY_MS = 20, 100  # browsers show what is shorter, or states nothing, so long
_LARGEST_PIXEL_ASPECT = 8  # beyond it is damage, not a wide-screen format
# Covers, previews, tiles of a picture.
_ATTACHED = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
_NEARLY = 0.01  # a rate that is off by less is not worth a word
_UNEVEN = 0.1  # deviation from the mean distance of two frames that is said
_TICK_S, _GIF_TICK_S = 1.1e-3, 1.1e-2  # to which the times of videos and animations are rounded
_SAME_TIME_S = 2e-3  # of rounded time stamps; the earlier picture wins a tie
_ROUNDING = 2  # levels that a profile of sRGB itself changes at most
# Values of ITU-T H.273, as FFmpeg has them.
_BT709, _UNKNOWN, _BT601, _BT2020, _P3 = 1, 2, 5, 9, 12
_MATRICES = {_BT709: "BT.709", _BT601: "BT.601", _BT2020: "BT.2020"}
_PQ, _HLG = 16, 18
_HDR = {_PQ: "PQ", _HLG: "HLG"}
_DOLBY = (14, 15)  # ICtCp and IPT, of which only Dolby Vision's data make colours
_MATRIX = SideData.DISPLAYMATRIX
REORIENTED = "turned or mirrored as the file says"
UNCONVERTED = "HDR that cannot be converted"
_HD_LINES = 720  # from here on players take untagged video for BT.709
_TO_BT709 = {  # linear light, D65
    _BT2020: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    _P3: ((1.2249, -0.2249, 0.0), (-0.0421, 1.0421, 0.0), (-0.0196, -0.0786, 1.0983)),
}
_WHITE_NITS = (100.0, 203.0)  # of SDR and, by ITU-R BT.2408, of HDR
_KNEE = 0.98  # share of white above which highlights are rolled off
_BRIGHTEST, _PLACES = 4.0, 65535  # light, in whites, up to which the table of sRGB goes

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
    2 every / fps, ... seconds after number ``start``; with ``times`` those nearest to each of these.
    """

    start: int = 0
    every: int = 1
    count: int | None = None  # at most; None: all
    fps: float | None = None
    times: Sequence[float] = ()  # ascending seconds after the source's first picture

    def __post_init__(self) -> None:
        if (self.count is not None and self.count < 1) or self.start < 0 or self.every < 1:
            raise ValueError(
                f"Expected frames >= 1 (or none for all), start >= 0 and every >= 1; got frames = "
                f"{self.count}, start = {self.start}, every = {self.every}."
            )

    @property
    def by_time(self) -> bool:
        return self.fps is not None or bool(self.times)

    @property
    def numbers(self) -> slice:
        """The numbers, counted from 0, where pictures are taken by number."""
        stop = None if self.count is None else self.start + (self.count - 1) * self.every + 1
        return slice(self.start, stop, self.every)


def read_image(file: Path, notes: list[str] | None = None) -> np.ndarray:
    """Return an image file upright, as pictures are in `Decoded`; ValueError names what cannot be read."""
    if file.suffix.lower() in LINEAR_SUFFIXES:
        return to_uint8(linear_picture(file), str(file))
    with _naming(file), Image.open(file) as image:
        return _pixels(ImageOps.exif_transpose(image), file, [] if notes is None else notes)


def read_images(files: Sequence[Path], pick: Pick) -> Decoded:
    """Return the picked ones of image files, of which each is a frame; errors as `read_image`."""
    notes: list[str] = []
    numbers = range(len(files))[pick.numbers]
    pictures = [read_image(files[number], notes) for number in numbers]
    return Decoded(pictures, len(files), DEFAULT_FPS / pick.every, numbers, notes=tuple(dict.fromkeys(notes)))


def read_animation(file: Path, pick: Pick) -> Decoded:
    """Return the picked pictures of an image file of one or more; errors as `read_image`."""
    notes: list[str] = []
    with _naming(file), Image.open(file) as image:
        total = getattr(image, "n_frames", 1)
        if total > 1:
            choice = _Choice[np.ndarray](pick, lambda pixels: pixels)
            choice.read(_animation(image, total, file, notes))
            return choice.decoded(None, notes, total)
    return read_images([file], pick)


def _animation(
    image: Image.Image, total: int, file: Path, notes: list[str]
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the time, seconds, and the composed picture of every frame."""
    time_ms = 0.0
    for number in range(total):
        image.seek(number)
        yield time_ms / 1000, _pixels(image, file, notes)
        delay_ms = float(image.info.get("duration") or 0)
        if delay_ms < _SHORTEST_DELAY_MS:
            notes.append(f"delays below {_SHORTEST_DELAY_MS} ms last {_USUAL_DELAY_MS} ms, as in browsers")
            delay_ms = _USUAL_DELAY_MS
        time_ms += delay_ms


class _Choice(Generic[Picture]):
    """The wanted pictures of a source, their numbers, and the times of all that were looked at."""

    def __init__(self, pick: Pick, convert: Callable[[Picture], np.ndarray]) -> None:
        self.pick, self.convert = pick, convert
        self.pictures: list[np.ndarray] = []
        self.numbers: list[int] = []
        self.times: list[float | None] = []

    def read(self, source: Iterable[tuple[float | None, Picture]]) -> None:
        """Take from pictures, each with its time in seconds where it has one, only as far as needed."""
        pick, before, now, step = self.pick, None, 0.0, 0.0
        stop = pick.numbers.stop or sys.maxsize
        targets = iter(pick.times)
        target = next(targets, None)
        for number, (time, picture) in enumerate(source):
            self.times.append(time)
            if time is None or not pick.by_time:
                if number in range(pick.start, stop, pick.every):
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

    def _take(self, number: int, picture: Picture) -> None:
        again = bool(self.numbers) and self.numbers[-1] == number
        self.pictures.append(self.pictures[-1] if again else self.convert(picture))
        self.numbers.append(number)

    def decoded(self, stated_fps: float | None, notes: list[str], total: int | None = None) -> Decoded:
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
            again = np.count_nonzero(np.diff(self.numbers) == 0)
            notes.append(f"resampled by time to {pick.fps:.4g} fps, {again} frames shown again")
        elif has_times and not pick.times:
            if np.abs(times - times[0] - np.arange(len(times)) / fps).max() > tick_s:
                if stated_fps and abs(mean * fps - 1) > _NEARLY:
                    notes.append(f"{1 / mean:.4g} fps by the frames' times; the file states {fps:.4g}")
                fps = 1 / mean
            if np.abs(steps - mean).max() > _UNEVEN * mean + tick_s:
                notes.append(
                    f"frame times are uneven: {1000 * steps.min():.0f} to {1000 * steps.max():.0f} ms apart, "
                    f"{1000 * mean:.0f} on average; --fps (in ComfyUI resample) takes frames at even times"
                )
        known = times.tolist() if has_times or not np.isnan(times).any() and len(times) == 1 else ()
        seconds = float(all_times[-1]) if known else 0.0
        total = total or len(all_times)
        return Decoded(self.pictures, total, fps, self.numbers, known, seconds, tuple(dict.fromkeys(notes)))


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Name the file whatever Pillow raises, which is nearly anything for a damaged one."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"Expected a readable image; {file} is not: {reason(error)}. Save it again as PNG, or make it "
            f"smaller where it is too large."
        ) from error


def reason(error: Exception) -> str:
    """Return an error's text as the end of a sentence."""
    return str(error).rstrip(".") or type(error).__name__


def _pixels(image: Image.Image, file: Path, notes: list[str]) -> np.ndarray:
    """Return uint8 [H, W, 3 or 4] sRGB of any PIL mode; 16-bit grey levels are scaled, not clipped."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.repeat(((levels * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        return np.repeat(to_uint8(np.asarray(image), str(file))[..., None], 3, axis=-1)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    pixels = np.array(image.convert("RGBA" if has_alpha else "RGB"))
    if icc := image.info.get("icc_profile"):
        try:
            mode, transform, name = _profile(icc)
            if transform is not None and (mode == "CMYK") == (image.mode == "CMYK"):
                source = image if mode == image.mode else Image.fromarray(pixels[..., :3]).convert(mode)
                pixels[..., :3] = np.asarray(ImageCms.applyTransform(source, transform))
                notes.append(f"colours of the embedded profile ({name}) converted to sRGB")
        except (ImageCms.PyCMSError, OSError, KeyError) as error:
            notes.append(f"the embedded colour profile is not used: {reason(error)}")
    return pixels


@lru_cache
def _profile(icc: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None, str]:
    """Return the mode of a profile's pictures, what turns them into sRGB where they differ, and its name."""
    profile = ImageCms.ImageCmsProfile(BytesIO(icc))
    mode = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}[icc[16:20]]
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    name = ImageCms.getProfileDescription(profile).strip()
    if mode != "CMYK":
        colours = Image.fromarray(np.indices((6, 6, 6), np.uint8).reshape(3, 1, 216).T * 51).convert(mode)
        shown = np.asarray(ImageCms.applyTransform(colours, transform), int)
        if np.abs(shown - np.asarray(colours.convert("RGB"))).max() <= _ROUNDING:
            return mode, None, name
    return mode, transform, name


def read_video(file: Path, pick: Pick) -> Decoded:
    """Return the picked frames of a video, which is decoded only as far; ValueError names a damaged file."""
    notes: list[str] = []
    choice = None
    try:
        # Old files carry titles that are not UTF-8; they do not matter here.
        with av.open(file_url(file), metadata_errors="ignore") as container:
            stream = _video_stream(container, file, notes)
            aspect = float(stream.sample_aspect_ratio or 1)
            if not 1 / _LARGEST_PIXEL_ASPECT <= aspect <= _LARGEST_PIXEL_ASPECT:
                raise ValueError(
                    f"Expected pixels about as wide as high; {file} has a sample aspect ratio of {aspect:g}. "
                    f"Convert it to a video with square pixels, or give a folder of images."
                )
            rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
            colours = _Colours(stream.codec_context, notes)
            choice = _Choice[tuple[av.VideoFrame, bytes | None]](
                pick, lambda pair: _video_pixels(*pair, aspect, colours)
            )
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
            f"{error}. Convert it to mp4, or give a folder of images."
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
        for packet in container.demux(stream):
            if matrix is None:  # a decoder of its own does not get what the file holds beside the packets
                matrix = next((_beside(frame, _MATRIX) for frame in packet.decode()), None)
            yield from ((frame, matrix) for frame in decoder.decode(packet))
        return
    stream.thread_type = "AUTO"
    for frame in _deinterlaced(container.decode(stream), notes):
        matrix = _beside(frame, _MATRIX) or matrix  # H.264 states it once for all frames that follow
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


class _Colours:
    """Turns a video's frames into sRGB, 8 bits."""

    def __init__(self, context: av.VideoCodecContext, notes: list[str]) -> None:
        self.context, self.notes = context, notes
        self.tables: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Return uint8 [H, W, 3 or 4]."""
        transfer, primaries = self.context.color_trc, self.context.color_primaries
        if transfer == _UNKNOWN and _beside(frame, SideData.MASTERING_DISPLAY_METADATA):
            transfer = _PQ
        is_hdr = transfer in _HDR
        has_alpha = any(component.is_alpha for component in frame.format.components)
        if frame.colorspace == _UNKNOWN and not frame.format.is_rgb and len(frame.format.components) > 2:
            is_wide = is_hdr or primaries == _BT2020
            matrix = _BT2020 if is_wide else _BT709 if frame.height >= _HD_LINES else _BT601
            frame.colorspace = matrix
            self.notes.append(f"no colour matrix stated: {_MATRICES[matrix]} for {frame.height} lines")
        if frame.colorspace in _DOLBY or (not is_hdr and _beside(frame, SideData.DOVI_METADATA)):
            self.notes.insert(0, f"{UNCONVERTED}: Dolby Vision's own colours. Export it as SDR or HLG.")
        elif is_hdr or primaries in _TO_BT709:
            return self._to_srgb(frame.to_ndarray(format="rgba64le" if has_alpha else "rgb48le"), transfer)
        return frame.to_ndarray(format="rgba" if has_alpha else "rgb24")

    def _to_srgb(self, wide: np.ndarray, transfer: int) -> np.ndarray:
        """Return uint8 of uint16 pixels: the curve undone, BT.709's primaries, highlights rolled off."""
        import cv2

        primaries, is_hdr = self.context.color_primaries, transfer in _HDR
        to_bt709 = _TO_BT709.get(_BT2020 if is_hdr and primaries == _UNKNOWN else primaries, np.eye(3))
        light_of = _light(transfer) if self.tables is None else self.tables[0]
        light = cv2.transform(light_of[wide[..., :3] >> 4], np.asarray(to_bt709, np.float32))
        if self.tables is None:
            # Of the first picture, so that the brightness of the clip does not flicker.
            white = np.percentile(light[::4, ::4].max(axis=-1), 99.9).clip(*_WHITE_NITS) if is_hdr else 1.0
            self.tables = (light_of / np.float32(white), _shown(_KNEE if is_hdr else 1.0))
            light /= white
            name = f"HDR ({_HDR[transfer]})" if is_hdr else "wide-gamut colours"
            brightness = f", {white:.0f} cd/m2 is white, what is brighter rolled off" if is_hdr else ""
            self.notes.insert(0, f"{name} converted to sRGB{brightness}")
        places = (light * (_PLACES / _BRIGHTEST)).clip(0, _PLACES).astype(np.uint16)
        return np.dstack([self.tables[1][places], (wide[..., 3:] >> 8).astype(np.uint8)])


def _light(transfer: int) -> np.ndarray:
    """Return the light of 4096 levels, float32: cd/m2 of PQ and of HLG at 1000 cd/m2, else 0..1 of sRGB."""
    level = np.linspace(0, 1, 4096)
    if transfer == _PQ:
        power = level ** (1 / 78.84375)
        light = 1e4 * ((power - 0.8359375).clip(0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    elif transfer == _HLG:
        bright = (np.exp((level - 0.55991073) / 0.17883277) + 0.28466892) / 12
        light = 1e3 * np.where(level <= 0.5, level**2 / 3, bright) ** 1.2
    else:
        light = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


def _shown(knee: float) -> np.ndarray:
    """Return sRGB, uint8, of light from 0 to ``_BRIGHTEST`` whites; above the knee it nears white slowly."""
    light, room = np.linspace(0, _BRIGHTEST, _PLACES + 1), max(1 - knee, 1e-9)
    light = np.where(light <= knee, light, 1 - room * np.exp(-(light - knee).clip(0) / room))
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * coded).astype(np.uint8)


def _beside(frame: av.VideoFrame, kind: SideData) -> bytes | None:
    try:
        return bytes(cast(Any, frame.side_data)[kind])
    except KeyError:
        return None


def _video_pixels(frame: av.VideoFrame, matrix: bytes | None, aspect: float, colours: _Colours) -> np.ndarray:
    """Return uint8 [H, W, 3 or 4] in square pixels, upright as phones store it beside the frame."""
    pixels = colours(frame)
    if aspect != 1:
        size = (max(round(frame.width * aspect), 1), frame.height)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    return pixels if matrix is None else _upright(pixels, matrix, colours.notes)


def _upright(pixels: np.ndarray, matrix: bytes, notes: list[str]) -> np.ndarray:
    """Turn and mirror pixels as a display matrix says, to the nearest quarter turn."""
    # A point (x, y) goes to (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5] / 65536
    if (a, b, c, d) != (1, 0, 0, 1):
        notes.append(f"{REORIENTED} (display matrix {a:g} {b:g} / {c:g} {d:g})")
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def to_uint8(values: np.ndarray | Tensor, name: str) -> np.ndarray:
    """Return floats in 0..1 rounded to 0..255. A slight overshoot (a sharp resize) is cut."""
    values = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else values
    if bad := int(np.count_nonzero(~np.isfinite(values))):
        raise ValueError(
            f"Expected finite numbers in {name}; got {bad} NaN or infinite values of {values.size}. "
            f"Check the step that made them."
        )
    if values.size and (values.min() < -0.5 or values.max() > 1.5):
        raise ValueError(
            f"Expected {name} in 0..1; got {values.min():g} to {values.max():g}. Divide 8-bit values by 255."
        )
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)
