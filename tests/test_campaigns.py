"""Short forms of the campaigns in `tests/fuzz` that start, kill and starve whole jobs."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="ends processes by Linux's descriptors")
@pytest.mark.parametrize(
    "words",
    [
        "kills.py --cases 5 --jobs 'views over' 'refine gaussians' 'export over' 'convert over'",
        "pairs.py --cases 5 --seed 3",
        "disks.py --cases 6 --seed 3",
    ],
)
def test_killed_jobs_two_at_once_and_full_or_read_only_disks(words):
    script, *options = shlex.split(words)
    command = [sys.executable, str(ROOT / "tests/fuzz" / script), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
