"""Colours as a screen shows them: profiles, matrices and HDR of files become sRGB of 8 bits."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideData
from PIL import Image, ImageCms
from torch import Tensor

from .places import file_url, regular

LARGEST_OF_VIDEO = 2**26  # pixels of a picture
# What FFmpeg may take a file for: playlists would open others. Sound and text are there to be named.
_CONTAINERS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,ivf,h264,hevc,vvc,av1,obu,m4v,vc1,dv,rm,"
    "yuv4mpegpipe,nut,swf,gxf,wtv,h261,h263,cavsvideo,dirac,mjpeg,mjpeg_2000,bink,smk,amv,gif,apng,webp_pipe,"
    "png_pipe,jpeg_pipe,exr_pipe,hdr_pipe,pfm_pipe,image2,wav,mp3,flac,aac,aiff,tty,svg_pipe"
)
UNCONVERTED = "HDR that cannot be converted"
_ROUNDING = 2  # levels that a profile of sRGB itself changes at most
# Values of ITU-T H.273, as FFmpeg has them.
_BT709, _UNKNOWN, _BT601, _BT2020, _P3 = 1, 2, 5, 9, 12
_MATRICES = {_BT709: "BT.709", _BT601: "BT.601", _BT2020: "BT.2020"}
_PQ, _HLG = 16, 18
_HDR = {_PQ: "PQ", _HLG: "HLG"}
_DOLBY = (14, 15)  # ICtCp and IPT, of which only Dolby Vision's data make colours
_HD_LINES = 720  # from here on players take untagged video for BT.709
_TO_BT709 = {  # linear light, D65
    _BT2020: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    _P3: ((1.2249, -0.2249, 0.0), (-0.0421, 1.0421, 0.0), (-0.0196, -0.0786, 1.0983)),
}
_WHITE_NITS = (100.0, 203.0)  # of SDR and, by ITU-R BT.2408, of HDR
_KNEE = 0.98  # share of white above which highlights are rolled off
_BRIGHTEST, _PLACES = 4.0, 65535  # light, in whites, up to which the table of sRGB goes


def with_profile(image: Image.Image, pixels: np.ndarray, notes: list[str]) -> None:
    """Turn an image's pixels, uint8 [H, W, 3 or 4], from its embedded colour profile into sRGB, in place."""
    if icc := image.info.get("icc_profile"):
        try:
            mode, transform, name = _profile(icc)
            if transform is not None and (mode == "CMYK") == (image.mode == "CMYK"):
                source = image if mode == image.mode else Image.fromarray(pixels[..., :3]).convert(mode)
                pixels[..., :3] = np.asarray(ImageCms.applyTransform(source, transform))
                notes.append(f"colours of the embedded profile ({name}) converted to sRGB")
        except (ImageCms.PyCMSError, OSError, KeyError) as error:
            notes.append(f"the embedded colour profile is not used: {error}")


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


class VideoColours:
    """Turns a video's frames into sRGB, and notes how."""

    def __init__(self, context: av.VideoCodecContext, notes: list[str]) -> None:
        self.context, self.notes = context, notes
        self.tables: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Return uint8 [H, W, 3 or 4]."""
        transfer, primaries = self.context.color_trc, self.context.color_primaries
        if transfer == _UNKNOWN and beside(frame, SideData.MASTERING_DISPLAY_METADATA):
            transfer = _PQ
        is_hdr, form = transfer in _HDR, frame.format
        has_alpha = any(component.is_alpha for component in form.components)
        plain, deep = ("rgba", "rgba64le") if has_alpha else ("rgb24", "rgb48le")
        if frame.colorspace == _UNKNOWN and not form.is_rgb and len(form.components) > 2:
            is_wide = is_hdr or primaries == _BT2020
            frame.colorspace = _BT2020 if is_wide else _BT709 if frame.height >= _HD_LINES else _BT601
            self.notes.append(
                f"no colour matrix stated: {_MATRICES[frame.colorspace]} for {frame.height} lines"
            )
        if frame.colorspace in _DOLBY or (not is_hdr and beside(frame, SideData.DOVI_METADATA)):
            self.notes.insert(0, f"{UNCONVERTED}: Dolby Vision's own colours. Export it as SDR or HLG.")
        elif is_hdr or primaries in _TO_BT709:
            return self._to_srgb(frame.to_ndarray(format=deep), transfer)
        return frame.to_ndarray(format=plain)

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


def beside(frame: av.VideoFrame, kind: SideData) -> bytes | None:
    """Return what a file holds beside a frame, or None."""
    with suppress(KeyError):
        return bytes(cast(Any, frame.side_data)[kind])
    return None


def to_uint8(values: np.ndarray | Tensor, name: str) -> np.ndarray:
    """Return floats in 0..1 rounded to 0..255; raise as `check_unit`."""
    values = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else values
    check_unit(values, name)
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def check_unit(values: np.ndarray, name: str) -> None:
    """Raise ValueError unless floats are finite and in 0..1; a sharp resize may overshoot a little."""
    if bad := int(np.count_nonzero(~np.isfinite(values))):
        raise ValueError(
            f"Expected finite numbers in {name}; got {bad} NaN or infinite values of {values.size}. "
            f"Check the step that made them."
        )
    if values.size and (values.min() < -0.5 or values.max() > 1.5):
        raise ValueError(
            f"Expected {name} in 0..1; got {values.min():g} to {values.max():g}. Divide 8-bit values by 255."
        )


def open_video(file: Path) -> InputContainer:
    """Return a video, or an image that FFmpeg reads, in one of `_CONTAINERS`, which open no other file."""
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    # Old files carry titles that are not UTF-8; they do not matter here.
    limits = {"max_pixels": str(LARGEST_OF_VIDEO), **options}
    return av.open(file_url(regular(file)), options=limits, metadata_errors="ignore")


def linear_picture(file: Path) -> np.ndarray:
    """Return a picture as sRGB, float32 [H, W, 3 or 4], with straight alpha; what is beyond white is cut.

    In the file colours are multiplied by the alpha, as EXR is defined. ValueError: it cannot be read.
    """
    try:
        with open_video(file) as container:
            container.streams.video[0].codec_context.options = {"max_pixels": str(LARGEST_OF_VIDEO // 2)}
            frame = next(container.decode(video=0))
    except (FFmpegError, StopIteration, IndexError) as error:
        raise ValueError(
            f"Expected a readable image; {file} is not: {error}. Save it again as PNG."
        ) from error
    has_alpha = any(component.is_alpha for component in frame.format.components)
    values = frame.to_ndarray(format="gbrapf32le" if has_alpha else "gbrpf32le")
    if has_alpha:
        values[..., :3] /= np.where(values[..., 3:] > 0, values[..., 3:], 1)
    light = values[..., :3].clip(0, 1)
    values[..., :3] = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return values
