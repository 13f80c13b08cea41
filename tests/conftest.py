"""Fixtures for all tests: real data and the real backbone where they can be had, and what happens where not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loramixer.data import data_folder
from tests.availability import unavailable

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for the whole suite, and none more for a part of it, which starts sooner and can be debugged."""
    if config.args_source != pytest.Config.ArgsSource.TESTPATHS:
        return 0
    # Two processes with two threads each wait for one another most of the time, in small tensors even more.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return 2


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets."""
    folder = data_folder()
    if folder is None:
        unavailable("LORAMIXER_DATA is not set, so the tests on real data sets were not run")
    return folder


@pytest.fixture(scope="session")
def embedded_backbone() -> tuple:
    """SmolLM2-135M-Instruct with its tokenizer, fetched at first use."""
    from loramixer import load_backbone
    from loramixer.errors import BackboneError

    try:
        return load_backbone("smollm2-135m")
    except BackboneError as error:
        unavailable(f"the embedded backbone cannot be fetched: {error}")
