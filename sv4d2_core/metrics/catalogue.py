"""The metrics by name: which way is better, how many digits say something, what they mean."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One column of the tables.

    Args:
        name: title, and key in ``report.json``.
        higher_is_better: the direction of better.
        digits: digits after the point that are printed.
        meaning: one line for people.
    """

    name: str
    higher_is_better: bool
    digits: int
    meaning: str

    @property
    def title(self) -> str:
        """The name with an arrow towards better."""
        return f"{self.name} {'↑' if self.higher_is_better else '↓'}"


LPIPS_NAME, CLIP_NAME, RESIDUAL_NAME = "LPIPS", "CLIP-S", "fit residual"
# Of each order: its Frechet distance over I3D features, and over descriptors that need no network.
FVD_NAMES = {"F": "FVD-F", "V": "FVD-V", "Diag": "FVD-Diag", "4D": "FV4D"}
FHD_NAMES = {"F": "FHD-F", "V": "FHD-V", "Diag": "FHD-Diag", "4D": "FH4D"}

_WATCHED = {
    "F": "over the frames of each view",
    "V": "over the views of each frame",
    "Diag": "along the diagonals of the grid of frames and views",
    "4D": "over the whole grid, scanned to and fro",
}

# The columns of the tables of SV4D and SV4D 2.0, in their order.
PAPER = (
    Metric(LPIPS_NAME, False, 3, "learned perceptual distance of each image to the true one"),
    Metric(CLIP_NAME, True, 3, "cosine of CLIP's embeddings of each image and the true one"),
    *(
        Metric(FVD_NAMES[order], False, 2, f"Frechet video distance (I3D) {text}")
        for order, text in _WATCHED.items()
    ),
)
WITH_REFERENCE = (
    Metric("PSNR", True, 2, "dB, whole image; white background counts"),
    Metric("SSIM", True, 3, "structural similarity, whole image"),
    Metric("MS-SSIM", True, 3, "the same over several scales, whole image"),
    Metric("PSNR fg", True, 2, "dB, inside the true mask"),
    Metric("SSIM fg", True, 3, "structural similarity inside the true mask"),
    Metric("MS-SSIM fg", True, 3, "the same over several scales, inside the true mask"),
    Metric("mask IoU", True, 3, "overlap of the outline with the true one"),
    *(
        Metric(
            FHD_NAMES[order], False, 4, f"Frechet distance of HOG3D and colour descriptors {text}; not FVD"
        )
        for order, text in _WATCHED.items()
    ),
)
WITHOUT_REFERENCE = (
    Metric("flicker", False, 4, "mean change from frame to frame of the object's quietest pixels, 0..1"),
    Metric("acceleration", False, 4, "mean second difference over time of the same pixels, 0..1"),
    Metric("warping", False, 4, "what optical flow cannot explain from frame to frame, 0..1"),
    Metric(
        "tangency", False, 2, "per cent of the width by which outlines contradict each other across views"
    ),
    Metric("epipolar", False, 2, "per cent of the width by which matched corners miss their epipolar lines"),
    Metric(RESIDUAL_NAME, False, 4, "what a 4D scene fitted to all views leaves unexplained, 0..1"),
)
METRICS = (*PAPER, *WITH_REFERENCE, *WITHOUT_REFERENCE)
