"""Trace files of visitors: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from explorer.files import read_drawable_trace, read_trace_file
from explorer.settings import MEGABYTE, PUBLIC_LIMITS
from loramixer.errors import TraceError
from tests.app.synthetic import make_trace


def refused(path: Path, read: object = read_drawable_trace) -> str:
    with pytest.raises(TraceError) as error:
        read(path)  # type: ignore[operator]
    assert str(path.parent) not in str(error.value)
    assert str(error.value).startswith(path.name)
    return str(error.value)


def test_a_trace_file_is_read(tmp_path: Path) -> None:
    path = make_trace(layers=2).save(tmp_path / "mine.npz")
    assert len(read_drawable_trace(path).tokens) == len(read_trace_file(path).tokens) > 0


def test_what_is_no_trace_is_one_sentence_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    assert "upload it again" in refused(path)
    path.write_bytes(b"nothing")
    assert "is no routing trace" in refused(path)


def test_arrays_may_not_take_more_than_a_visitor_may_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the file is."""
    monkeypatch.setenv("LORAMIXER_PUBLIC", "1")
    path = tmp_path / "bomb.npz"
    trace = make_trace(layers=2).save(path)
    arrays = dict(np.load(trace))
    np.savez_compressed(path, **{**arrays, "gates": np.zeros(PUBLIC_LIMITS.trace_bytes // 4 + 1, np.float32)})
    assert path.stat().st_size < PUBLIC_LIMITS.trace_bytes / 10
    text = refused(path, read_trace_file)
    assert f"more than the {PUBLIC_LIMITS.trace_bytes / MEGABYTE:.1f} MB" in text
    assert text.endswith("trace a shorter text.")


def test_what_cannot_be_drawn_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_trace(layers=2).save(tmp_path / "mine.npz")
    monkeypatch.setattr("explorer.files.MAX_NUMBERS", 100)
    assert "100 gates can be drawn" in refused(path)
    assert read_trace_file(path)
