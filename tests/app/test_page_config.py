"""What Gradio copies with every visit is plain data: an object in it would bring the page, and the model, along."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from explorer.layout import build
from tests.app.synthetic import FakeSource
from tests.app.synthetic_app import make_recordings


def objects_in(value: Any, path: str) -> Iterator[str]:
    """Places of bound methods, partials and other objects in nested plain data; a bare function copies as itself."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from objects_in(part, f"{path}/{key}")
    elif isinstance(value, list | tuple | set):
        for index, part in enumerate(value):
            yield from objects_in(part, f"{path}/{index}")
    elif _is_object(value):
        yield path


def _is_object(value: Any) -> bool:
    if isinstance(value, functools.partial) or hasattr(value, "__self__"):
        return True
    return not (value is None or callable(value) or isinstance(value, str | int | float | bool | bytes))


def test_the_page_holds_plain_data_only(tmp_path: Path) -> None:
    demo = build(FakeSource(), make_recordings(tmp_path))
    found = [
        place
        for component in demo.config["components"]
        for place in objects_in(component["props"], f"{component['type']} {component['props'].get('elem_id')}")
    ]
    assert found == []


def test_a_run_is_not_dropped_while_an_earlier_one_waits(tmp_path: Path) -> None:
    """Nor may it take the ticket of a later one, as it would from a state, which is read when the run begins."""
    demo = build(FakeSource(), make_recordings(tmp_path))
    types = {component["id"]: component["type"] for component in demo.config["components"]}
    runs = [
        found
        for block in demo.fns.values()
        if block.concurrency_id == "model" and (found := block.get_config())["api_visibility"] == "private"
    ]
    assert len(runs) == 5
    assert {found["trigger_mode"] for found in runs} == {"multiple"}
    assert all("number" in [types[component] for component in found["inputs"]] for found in runs)
