"""Runs the command line: ``python -m sv4d2_core``."""

import sys

from .cli import main

sys.exit(main())
