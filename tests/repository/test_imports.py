"""Who may know whom: the import rules of the architecture, read from the source without running it.

An import counts wherever it stands: at the top, inside a function, for type checking only, or through importlib.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

OWN = "loramixer"


@dataclass(frozen=True)
class Rule:
    """What the files below some paths may import.

    Attributes:
        name: the rule in words.
        paths: modules without ``.py``, or folders; those that do not exist yet are passed over, but not all of them.
        libraries: the only third-party libraries allowed; None allows all.
        modules: the only modules of loramixer allowed; None allows all.
        never: top-level names that are forbidden in any case.
    """

    name: str
    paths: tuple[str, ...]
    libraries: frozenset[str] | None = None
    modules: frozenset[str] | None = None
    never: frozenset[str] = field(default_factory=frozenset)


RULES = [
    Rule(
        "routing and losses are pure torch",
        paths=("lib/loramixer/routing", "lib/loramixer/losses", "lib/loramixer/distributed"),
        libraries=frozenset({"torch"}),
        modules=frozenset({"errors", "distributed", "losses"}),
    ),
    Rule(
        "what is done with a trace draws and counts without a model",
        paths=(
            *(f"lib/loramixer/{name}" for name in ("metrics", "whatif", "aggregate", "comparison", "spans", "viz")),
            "lib/loramixer/trace_file",
        ),
        # IPython: viz.notebook asks whether it runs in a notebook, and does without when there is none.
        libraries=frozenset({"numpy", "pandas", "plotly", "PIL", "IPython"}),
        modules=frozenset(
            {"errors", "versions", "data", "trace", "metrics", "whatif", "aggregate", "comparison", "spans", "viz"}
        ),
        never=frozenset({"torch", "gradio"}),
    ),
    Rule(
        "the PEFT method knows routing, losses, experts and its card only",
        paths=("lib/loramixer/tuner",),
        modules=frozenset({"errors", "versions", "routing", "losses", "distributed", "experts", "cards", "tuner"}),
    ),
    Rule(
        "the library knows no explorer and no gradio",
        paths=("lib/loramixer",),
        never=frozenset({"gradio", "gradio_client", "explorer"}),
    ),
    Rule(
        "notebooks and benchmarks draw without gradio",
        paths=("lib/loramixer/viz", "notebooks", "benchmarks"),
        never=frozenset({"gradio", "gradio_client"}),
    ),
    Rule(
        "rows are text: they need no model, and no code of a data set",
        paths=("lib/loramixer/data",),
        libraries=frozenset({"pyarrow"}),
        modules=frozenset({"errors", "hub", "data"}),
    ),
    Rule(
        "shapes of backbones need no adapters",
        paths=("lib/loramixer/shapes",),
        modules=frozenset({"errors", "backbones", "hub"}),
    ),
    Rule(
        "tables and verdicts read result files without a model",
        paths=tuple(f"lib/loramixer/evaluation/{name}" for name in ("csv_files", "evidence", "markdown", "verdicts")),
        libraries=frozenset(),
        modules=frozenset({"evaluation", "whole_files"}),
    ),
    Rule(
        "the Hub is spoken with in one place, which knows no model",
        paths=("lib/loramixer/hub",),
        libraries=frozenset({"huggingface_hub"}),
        modules=frozenset({"errors"}),
    ),
]


def imported_names(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in ``source``; ``package`` is what relative imports start from."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*start, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def violations(rule: Rule, source: str, package: tuple[str, ...]) -> list[str]:
    """The imports in ``source`` that ``rule`` forbids, each as ``line N: name``."""
    broken = []
    for line, name in imported_names(source, package):
        top, _, rest = name.partition(".")
        if top == OWN:
            forbidden = rule.modules is not None and rest.partition(".")[0] not in rule.modules
        else:
            forbidden = rule.libraries is not None and top not in rule.libraries | sys.stdlib_module_names
        if forbidden or top in rule.never:
            broken.append(f"line {line}: {name}")
    return broken


def files_of(rule: Rule, root: Path) -> list[Path]:
    """The Python files that a rule speaks of."""
    found = [root / f"{path}.py" for path in rule.paths if (root / f"{path}.py").is_file()]
    return found + [file for path in rule.paths for file in sorted((root / path).rglob("*.py"))]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_is_kept(rule: Rule, root: Path) -> None:
    files = files_of(rule, root)
    assert files, "no file is left that this rule speaks of; has something been renamed?"
    broken = {}
    for file in files:
        folder = file.relative_to(root).parent.parts
        package = folder[1:] if folder[0] == "lib" else folder
        if found := violations(rule, file.read_text(encoding="utf-8"), package):
            broken[str(file.relative_to(root))] = found
    assert not broken


@pytest.mark.parametrize(
    ("rule_index", "source", "expected"),
    [
        (0, "import torch\nimport math\nfrom loramixer.errors import RoutingError", []),
        (0, "import numpy as np", ["line 1: numpy"]),
        (0, "from loramixer.trace import RoutingTrace", ["line 1: loramixer.trace.RoutingTrace"]),
        (0, "from loramixer import trace", ["line 1: loramixer.trace"]),
        (0, "import loramixer", ["line 1: loramixer"]),
        (0, "from .errors import RoutingError", []),
        (0, "from . import metrics", ["line 1: loramixer.metrics"]),
        (0, "from .metrics import load", ["line 1: loramixer.metrics.load"]),
        (1, "from PIL import Image\nimport plotly.graph_objects as go", []),
        (1, "def draw():\n    import torch.nn", ["line 2: torch.nn"]),
        (1, "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import gradio", ["line 3: gradio"]),
        (1, "import importlib\nimportlib.import_module('torch')", ["line 2: torch"]),
        (2, "from loramixer.experts import ExpertBank", []),
        (2, "from loramixer.viz.palette import NEUTRAL", ["line 1: loramixer.viz.palette.NEUTRAL"]),
        (3, "import torch, transformers, numpy", []),
        (3, "import gradio as gr", ["line 1: gradio"]),
        (3, "from explorer.state import View", ["line 1: explorer.state.View"]),
    ],
)
def test_rules_see_what_breaks_them(rule_index: int, source: str, expected: list[str]) -> None:
    assert violations(RULES[rule_index], source, package=(OWN,)) == expected
