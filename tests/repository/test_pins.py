"""One version of every library, wherever the repository names one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version


def declared(pyproject: dict[str, Any], *extras: str) -> Iterator[Requirement]:
    """The requirements of the package and of the named extras; the package itself is left out."""
    project = pyproject["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    for line in lines:
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) != project["name"]:
            yield requirement


@pytest.fixture(scope="module")
def environment(root: Path) -> dict[str, Any]:
    """environment.yml, parsed."""
    return yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pip_lines(environment: dict[str, Any]) -> list[str]:
    """What environment.yml hands to pip."""
    return next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))


def test_every_line_of_requirements_is_one_exact_pin(requirement_lines: list[str]) -> None:
    assert requirement_lines
    for line in requirement_lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line), f"'{line}' is not NAME==VERSION"


def test_no_library_is_pinned_twice(requirement_lines: list[str], pins: dict[str, Version]) -> None:
    assert len(pins) == len(requirement_lines)


def test_pins_lie_in_the_ranges_of_pyproject(pyproject: dict[str, Any], pins: dict[str, Version]) -> None:
    ranges: dict[str, list[SpecifierSet]] = {}
    for requirement in declared(pyproject, *pyproject["project"]["optional-dependencies"]):
        ranges.setdefault(canonicalize_name(requirement.name), []).append(requirement.specifier)
    undeclared = sorted(pins.keys() - ranges.keys())
    assert not undeclared, f"requirements.txt pins what pyproject.toml never asks for: {undeclared}"
    outside = [
        f"{name} {version} is not in {allowed}"
        for name, version in pins.items()
        for allowed in ranges[name]
        if not allowed.contains(version)
    ]
    assert not outside


def test_whatever_the_explorer_needs_is_pinned(pyproject: dict[str, Any], pins: dict[str, Version]) -> None:
    needed = {canonicalize_name(requirement.name) for requirement in declared(pyproject, "explorer")}
    assert not sorted(needed - pins.keys())


def test_every_range_has_an_upper_bound(pyproject: dict[str, Any]) -> None:
    open_ended = [
        str(requirement)
        for requirement in declared(pyproject, "explorer", "notebooks", "eval")
        if not any(bound.operator in ("<", "<=", "==", "~=") for bound in requirement.specifier)
    ]
    assert not open_ended


def test_conda_gives_python_and_pip_only(environment: dict[str, Any], pyproject: dict[str, Any]) -> None:
    assert environment["channels"] == ["conda-forge"]
    plain = [entry.partition("=") for entry in environment["dependencies"] if isinstance(entry, str)]
    from_conda = {name: version for name, _, version in plain}
    assert sorted(from_conda) == ["pip", "python"]
    assert SpecifierSet(pyproject["project"]["requires-python"]).contains(from_conda["python"])


def test_environment_installs_from_requirements(pip_lines: list[str]) -> None:
    assert "-r requirements.txt" in pip_lines
    assert "-e ." in pip_lines


def test_environment_repeats_no_different_pin(
    pip_lines: list[str], pins: dict[str, Version], pyproject: dict[str, Any]
) -> None:
    allowed = {
        canonicalize_name(requirement.name): requirement.specifier
        for requirement in declared(pyproject, *pyproject["project"]["optional-dependencies"])
    }
    for line in (line for line in pip_lines if not line.startswith("-")):
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        (pin,) = requirement.specifier
        assert pin.operator == "==", f"environment.yml gives {line}, which is no exact pin"
        assert name not in pins or pins[name] == Version(pin.version), f"requirements.txt pins {name} {pins[name]}"
        assert allowed[name].contains(pin.version), f"{line} is not in {allowed[name]} of pyproject.toml"


def test_citation_names_the_version_of_the_package(root: Path) -> None:
    module = ast.parse((root / "lib/loramixer/versions.py").read_text(encoding="utf-8"))
    versions = [
        ast.literal_eval(statement.value)
        for statement in module.body
        if isinstance(statement, ast.Assign)
        and [target.id for target in statement.targets if isinstance(target, ast.Name)] == ["__version__"]
    ]
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert versions == [citation["version"]]
