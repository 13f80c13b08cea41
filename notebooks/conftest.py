"""pytest collects the notebooks here through nbmake and runs each in a fresh kernel, with FAST=1."""

from __future__ import annotations

import os

os.environ["FAST"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
