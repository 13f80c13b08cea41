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
