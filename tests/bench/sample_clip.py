"""Writes the sample clip of the pack anew, from the procedural world: `python tests/bench/sample_clip.py`."""

import torch
from PIL import Image

from sv4d2_core.cameras import Cameras
from sv4d2_core.shipped import SAMPLE_CLIP, SAMPLE_CREATURE, SAMPLE_FPS, SAMPLE_FRAMES
from sv4d2_core.video.pictures import to_bytes, with_alpha
from sv4d2_core.world.body import make_creature
from sv4d2_core.world.render import render_creature

_SIZE = 576
# The official model's own size; as an opaque picture of that quality the clip looks like the rendering.
_QUALITY = 85


def sample_frames(times: torch.Tensor, size: int = _SIZE) -> torch.Tensor:
    """Return what the clip shows at ``times`` in 0..1, as RGBA [T, size, size, 4] in 0..1."""
    cameras = Cameras((0, 0), (0, 180))
    rendering = render_creature(make_creature(SAMPLE_CREATURE), cameras, times, size)
    return with_alpha(rendering.rgb[:, 0], rendering.mask[:, 0])


def main() -> None:
    frames = sample_frames(torch.linspace(0, 1, SAMPLE_FRAMES, dtype=torch.float64))
    first, *others = map(Image.fromarray, to_bytes(frames))
    first.save(
        SAMPLE_CLIP,
        save_all=True,
        append_images=others,
        duration=round(1000 / SAMPLE_FPS),
        loop=0,
        quality=_QUALITY,
        method=6,
    )
    print(f"{SAMPLE_CLIP}: {SAMPLE_CLIP.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
