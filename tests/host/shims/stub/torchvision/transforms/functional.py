"""The three names that ComfyUI's dependencies import; calling one is an error that says so."""

from enum import Enum
from typing import NoReturn


class InterpolationMode(Enum):
    """The modes that are read as attributes on import."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


def rotate(*args: object, **options: object) -> NoReturn:
    """Raise: there is no torchvision here."""
    raise NotImplementedError("torchvision is not installed; install it to use this function.")


normalize = rotate
