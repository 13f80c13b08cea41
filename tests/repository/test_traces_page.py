"""The page about traces: its code runs, and its table of fields is the class."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import numpy as np

from loramixer.trace import RoutingTrace, trace
from loramixer.trace_file import FORMAT_VERSION
from tests import tiny

PROMPT = "A patient takes 5 mg; how many tablets?"


def page(root: Path) -> str:
    return (root / "docs/traces.md").read_text(encoding="utf-8")


def code(root: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page(root), flags=re.MULTILINE | re.DOTALL)


def test_the_code_runs(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """On a tiny mixture with experts of these names, in place of the one that ships."""
    monkeypatch.chdir(tmp_path)
    experts = {
        name: tiny.save_expert(tmp_path / name, seed, r=2, target_modules=["q_proj", "v_proj"])
        for seed, name in enumerate(("math", "medical", "code"))
    }
    names = {"model": tiny.mixture(experts, gate="top_k", top_k=2), "tokenizer": tiny.tokenizer()}
    recording, using, intervening = code(root)
    load = 'model, tokenizer = load_mixer("smollm2-135m/rsl")\n'
    assert load in recording
    exec(compile(recording.replace(load, ""), "traces.md", "exec"), names)
    assert names["recorded"].contributions is not None
    exec(compile(using, "traces.md", "exec"), names)
    assert "compared one by one" in capsys.readouterr().out
    exec(compile(intervening, "traces.md", "exec"), names)
    assert len(names["answers"]) == 2
    assert not np.array_equal(names["answers"][0].gates[:, :5], names["answers"][1].gates[:, :5])


def test_every_field_and_the_format_are_described(root: Path) -> None:
    text = page(root)
    for field in fields(RoutingTrace):
        assert f"`{field.name}" in text, field.name
    assert f"format is {FORMAT_VERSION};" in text


def test_every_fact_of_the_provenance_is_described(root: Path, tmp_path: Path) -> None:
    experts = {"a": tiny.save_expert(tmp_path / "a", 1, r=2, target_modules=["q_proj"])}
    found = trace(tiny.mixture(experts), tiny.tokenizer(), PROMPT)
    table = page(root).partition("| fact |")[2]
    assert not [name for name in found.provenance if f"`{name}`" not in table]
