"""What is in the repository and what must not be: hidden files, heavy files, traces of somebody's machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

LARGEST_FILE = 8_000_000
LARGEST_TREE = 120_000_000

MUST_BE_SEEN = [
    "lib/loramixer/__init__.py",
    "lib/loramixer/py.typed",
    "lib/loramixer/data/__init__.py",
    "lib/loramixer/zoo/smollm2-135m/math/adapter_model.safetensors",
    "lib/loramixer/zoo/smollm2-135m/math/adapter_config.json",
    "lib/loramixer/zoo/smollm2-135m/rsl/run_log.json",
    "explorer/traces/math-medical.npz",
    "explorer/components/routing_grid.js",
    "docs/screenshot.png",
    "requirements.txt",
    ".ci/run",
]
MUST_BE_HIDDEN = [
    "lib/loramixer/data/__pycache__/schema.cpython-311.pyc",
    "lib/loramixer.egg-info/PKG-INFO",
    "lib/loramixer/zoo/smollm2-135m/math/checkpoints/checkpoint-25/optimizer.pt",
    ".venv/bin/python",
    "runs/experts/math/run_log.json",
    ".cache/loramixer/model.safetensors",
]
LEFT_BY_TOOLS = re.compile(
    r"(^|/)(__pycache__|[^/]+\.egg-info|checkpoints|\.ipynb_checkpoints|\.gradio|\.cache)/|\.pyi$"
)

# Written with a bracket in each so that this file does not match itself.
MACHINE_TRACES = re.compile(
    rb"(?<![A-Za-z])/(?:wor[k]|far[m]|roo[t])/|pypi[.]org|pythonho[s]ted|registry[.]npmjs|deb[.]debian"
)


def is_ignored(root: Path, name: str) -> bool:
    """Whether .gitignore hides this path; the path need not exist, and what the user ignores elsewhere is left out."""
    command = ["git", "-c", "core.excludesFile=", "check-ignore", "--quiet", "--no-index", name]
    status = subprocess.run(command, cwd=root, check=False).returncode
    assert status in (0, 1), f"git check-ignore failed with {status}"
    return status == 0


def machine_traces(data: bytes) -> list[str]:
    """Paths and hosts of one particular machine in a file's bytes."""
    return [match.group().decode() for match in MACHINE_TRACES.finditer(data)]


@pytest.mark.parametrize("name", MUST_BE_SEEN)
def test_gitignore_does_not_hide(root: Path, name: str) -> None:
    assert not is_ignored(root, name)


@pytest.mark.parametrize("name", MUST_BE_HIDDEN)
def test_gitignore_hides(root: Path, name: str) -> None:
    assert is_ignored(root, name)


def test_nothing_but_leftovers_is_hidden_in_the_sources(root: Path) -> None:
    command = ["git", "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "lib", "explorer"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert not [name for name in listed.stdout.split("\0") if name and not LEFT_BY_TOOLS.search(name)]


def test_no_file_is_heavy(root: Path, repository_files: list[Path]) -> None:
    sizes = {str(path.relative_to(root)): path.stat().st_size for path in repository_files}
    assert not {name: size for name, size in sizes.items() if size > LARGEST_FILE}


def test_the_tree_is_light(repository_files: list[Path]) -> None:
    assert 0 < sum(path.stat().st_size for path in repository_files) < LARGEST_TREE


def test_no_machine_is_named(root: Path, repository_files: list[Path]) -> None:
    found = {str(path.relative_to(root)): machine_traces(path.read_bytes()) for path in repository_files}
    assert not {name: traces for name, traces in found.items() if traces}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"path": "/{}/shared"', 1),
        ("cd /{}/main && ls /{}/data", 2),
        ("https://example.com/network/{}", 0),
        ("../shared/data", 0),
    ],
)
def test_machine_paths_are_recognised(text: str, expected: int) -> None:
    filled = text.replace("{}", "work")
    assert len(machine_traces(filled.encode())) == expected


def test_every_python_folder_of_the_package_is_a_package(root: Path, repository_files: list[Path]) -> None:
    package = root / "lib/loramixer"
    folders = {path.parent for path in repository_files if path.suffix == ".py" and path.is_relative_to(package)}
    assert package in folders
    assert not [str(folder.relative_to(root)) for folder in folders if not (folder / "__init__.py").is_file()]


def test_whatever_the_package_ships_is_package_data(
    root: Path, repository_files: list[Path], pyproject: dict[str, Any]
) -> None:
    package = root / "lib/loramixer"
    patterns = pyproject["tool"]["setuptools"]["package-data"]["loramixer"]
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    shipped = [path for path in repository_files if path.is_relative_to(package) and path.suffix != ".py"]
    assert package / "py.typed" in shipped
    assert not [str(path.relative_to(root)) for path in shipped if path not in packed]
