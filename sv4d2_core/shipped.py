"""The small model that comes with the pack."""

from __future__ import annotations

from pathlib import Path

TINY_MODEL = Path(__file__).parent / "weights" / "sv4d2_tiny.safetensors"
