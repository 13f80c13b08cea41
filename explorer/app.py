"""Starts the explorer: ``python explorer/app.py``, or ``gradio explorer/app.py`` to reload while editing."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

# Run as a script, only explorer/ is on the path; `gradio` and Spaces do the same.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [folder for folder in (str(ROOT / "lib"), str(ROOT)) if folder not in sys.path]
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from explorer.serving import keep_writes_in_temp_folder  # noqa: E402

# Before gradio, which imports the Hub's client.
keep_writes_in_temp_folder()

import gradio as gr  # noqa: E402

from explorer.layout import build, launch_options  # noqa: E402
from explorer.recordings import Recordings  # noqa: E402
from explorer.registry import ModelRegistry  # noqa: E402
from loramixer.errors import LoraMixerError  # noqa: E402

# Reloading runs this file again, and must not load the model again.
if gr.NO_RELOAD:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    registry = ModelRegistry()
    registry.start_loading()

demo = build(registry, Recordings())

if __name__ == "__main__":
    try:
        options = launch_options()
    except LoraMixerError as error:
        sys.exit(str(error))
    demo.launch(**options)
