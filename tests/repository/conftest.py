"""What every test of the repository itself starts from."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def repository_files() -> list[Path]:
    """The files that git tracks or would add, as absolute paths; ignored ones are not among them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = {ROOT / name for name in listed.stdout.split("\0") if name}
    return sorted(path for path in paths if path.is_file())


@pytest.fixture(scope="session")
def pyproject() -> dict[str, Any]:
    """pyproject.toml, parsed."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def requirement_lines() -> list[str]:
    """The lines of requirements.txt that pip acts on."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [bare for line in lines if (bare := re.sub(r"(^|\s)#.*", "", line).strip())]


@pytest.fixture(scope="session")
def pins(requirement_lines: list[str]) -> dict[str, Version]:
    """Library → the one version that requirements.txt gives it."""
    requirements = [Requirement(line) for line in requirement_lines]
    return {
        canonicalize_name(requirement.name): Version(specifier.version)
        for requirement in requirements
        for specifier in requirement.specifier
    }
