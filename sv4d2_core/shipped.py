"""What comes with the pack: a small model and a clip for it, so that everything can be tried at once.

`python tests/bench/sample_clip.py` makes the clip.
"""

from __future__ import annotations

from pathlib import Path

TINY_MODEL = Path(__file__).parent / "weights" / "sv4d2_tiny.safetensors"
# A walking puppy: 21 frames at 8 per second, 576 pixels, transparent around it.
SAMPLE_CLIP = Path(__file__).parent / "samples" / "puppy.webp"
# What it shows, in the procedural world.
SAMPLE_CREATURE, SAMPLE_FRAMES, SAMPLE_FPS = 5, 21, 8.0
