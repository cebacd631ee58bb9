"""Measures how much memory a job took at its peak."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_INTERVAL_S = 0.1


class PeakMemory:
    """Watches this process from ``with`` to the end of the block.

    On Linux the figure is the process's own memory (RssAnon), sampled ten times a second: pages of the
    checkpoint that the system maps and can drop at any time do not count. Elsewhere it is the peak resident
    size since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def gigabytes(self) -> dict[str, float]:
        """Return the peak so far in GB: resident, and on the GPU where one is used."""
        peak = {}
        if resident := max(self._peak, _own_bytes()):
            peak["resident"] = round(resident / 1e9, 3)
        if self.device.type == "cuda":
            peak["gpu"] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 3)
        return peak

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._peak = max(self._peak, _own_bytes())


def _own_bytes() -> int:
    """Return the process's own resident bytes, or the peak resident size, or 0 where neither is known."""
    if _STATUS.exists() and (found := re.search(r"RssAnon:\s+(\d+) kB", _STATUS.read_text())):
        return int(found[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
