"""The front matter of README.md, which is what a Hugging Face Space is configured by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version


@pytest.fixture(scope="module")
def front_matter(root: Path) -> dict[str, Any]:
    """The YAML between the first two lines of three dashes."""
    text = (root / "README.md").read_text(encoding="utf-8")
    empty, matter, _ = text.split("---\n", 2)
    assert empty == "", "README.md must begin with its front matter"
    return yaml.safe_load(matter)


def test_space_runs_the_pinned_gradio(front_matter: dict[str, Any], pins: dict[str, Version]) -> None:
    assert front_matter["sdk"] == "gradio"
    assert Version(str(front_matter["sdk_version"])) == pins["gradio"]


def test_space_starts_a_file_that_exists(front_matter: dict[str, Any], root: Path) -> None:
    assert front_matter["app_file"] == "explorer/app.py"
    assert (root / front_matter["app_file"]).is_file()


def test_space_runs_the_python_of_the_environment(front_matter: dict[str, Any], root: Path) -> None:
    environment = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))
    assert f"python={front_matter['python_version']}" in environment["dependencies"]


def test_space_description_fits(front_matter: dict[str, Any]) -> None:
    assert len(front_matter.get("short_description", "")) <= 60, "the Hub refuses more than 60 characters"
