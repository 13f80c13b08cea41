"""The front matter of README.md, which is what a Hugging Face Space is configured by."""

from __future__ import annotations

import ast
import sys
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.utils import canonicalize_name
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


def test_space_preloads_the_backbone_that_the_app_loads(front_matter: dict[str, Any]) -> None:
    from loramixer.backbones import CATALOGUE, SAFE_FILES

    (line,) = front_matter["preload_from_hub"]
    hub_id, files, revision = line.split(" ")
    backbone = next(entry for entry in CATALOGUE.values() if entry.hub_id == hub_id)
    assert revision == backbone.revision
    assert hub_id in front_matter["models"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files.split(","))
    assert all(any(fnmatch(file, allowed) for allowed in SAFE_FILES) for file in files.split(","))


def test_space_installs_whatever_the_explorer_imports(root: Path, pins: dict[str, Version]) -> None:
    """Imports at the top of the modules; what is imported inside functions is optional, or covered by the extras."""
    needed: set[str] = set()
    for file in (root / "explorer").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                needed |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                needed.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    third_party = needed - sys.stdlib_module_names - {"explorer", "loramixer", "__future__"}
    missing = [name for name in third_party if not {canonicalize_name(d) for d in distributions[name]} & pins.keys()]
    assert third_party
    assert not missing, f"requirements.txt lacks {missing}"
