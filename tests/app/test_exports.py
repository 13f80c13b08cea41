"""Files behind the download buttons: right content, sensible names, bounded and cleaned."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pandas as pd
import pytest

from explorer import exports as module
from explorer.exports import FORMATS, Exports
from loramixer import viz
from loramixer.errors import FigureError
from loramixer.trace import RoutingTrace
from loramixer.whatif import what_if
from tests.routing_traces import awkward_trace

ARGUMENTS = {"measure": "medical", "layers": (1, 2), "roles": "generation"}


@pytest.fixture
def exports(tmp_path: Path) -> Exports:
    return Exports(tmp_path)


def trace(**fields):
    return awkward_trace(mixer="smollm2-135m/rsl", gate="soft", k=2, **fields)


def test_every_kind_of_file_can_be_read_again(exports):
    shown = trace()
    files = {kind: Path(exports.view("me", shown, "token_map", ARGUMENTS, kind)) for kind in FORMATS}
    assert {file.name for file in files.values()} == {
        f"rsl-token_map-medical-1to2-generation.{kind}" for kind in FORMATS
    }
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert files["svg"].read_text(encoding="utf-8").startswith("<svg")
    page = files["html"].read_text(encoding="utf-8")
    assert "smollm2-135m/rsl" in page
    assert "<svg" in page
    for table in (pd.read_csv(files["csv"]), pd.read_parquet(files["parquet"])):
        assert set(table.layer) == {1, 2}
        assert set(table.role) == {"generated"}
        assert len(table) == 2 * 6 * 3
    assert RoutingTrace.load(files["npz"]).provenance == shown.provenance
    compile(files["py"].read_text(encoding="utf-8"), "view.py", "exec")


def test_parquet_without_its_library_is_one_sentence(exports, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    with pytest.raises(FigureError, match="needs pyarrow, which is not installed; choose CSV"):
        exports.table("me", pd.DataFrame({"a": [1]}), "table", "parquet")


def test_comparisons_and_figures_without_a_trace_have_files_too(exports):
    path = exports.view("me", trace(), "difference_map", {"measure": "math"}, "csv", other=trace(seed=1))
    numbers = pd.read_csv(path)
    assert len(numbers) == 3 * 18
    assert numbers.table.unique().tolist() == ["B − A"]
    plane = exports.figure("me", viz.plane({"rsl": trace()}), "plane", "html")
    assert "Entropy–balance plane" in Path(plane).read_text(encoding="utf-8")
    with pytest.raises(FigureError, match="has no npz file"):
        exports.figure("me", viz.plane({"rsl": trace()}), "plane", "npz")


def test_a_what_if_is_scripted_from_its_recording(exports):
    recorded = trace()
    changed = what_if(recorded, bias={"math": math.log(2)})
    path = exports.view("me", changed, "load_bars", {}, "py", recorded=recorded)
    assert "what_if(trace, bias={'math':" in Path(path).read_text(encoding="utf-8")


def test_a_router_that_no_script_can_load_gets_none(exports):
    own = awkward_trace(mixer="own/0123", title="Mine")
    with pytest.raises(FigureError, match="'Mine' is only in this page's memory"):
        exports.view("me", own, "load_bars", {}, "py")
    assert Path(exports.view("me", own, "load_bars", {}, "npz")).is_file()


def test_files_of_sessions_are_apart_bounded_and_forgotten(exports, monkeypatch):
    monkeypatch.setattr(module, "FILES_PER_SESSION", 3)
    monkeypatch.setattr(module, "SESSIONS", 2)
    files = [Path(exports.view("me", trace(), "token_card", {"token": token}, "svg")) for token in range(5)]
    assert [file.exists() for file in files] == [False, False, True, True, True]
    yours = Path(exports.view("you", trace(), "load_bars", {}, "svg"))
    assert yours.parent != files[0].parent
    exports.forget("me")
    assert not files[0].parent.exists()
    assert yours.exists()
    for session in ("a", "b"):
        exports.view(session, trace(), "load_bars", {}, "svg")
    assert not yours.exists()


def test_names_are_harmless_and_unknown_views_are_refused(exports, tmp_path):
    shown = awkward_trace(mixer="../../etc/<b> x", gate="soft")
    path = Path(exports.view("../up", shown, "token_map", {"measure": "a<b>"}, "svg"))
    assert path.parent.parent == tmp_path
    assert path.name == "_b_x-token_map-a_b_.svg"
    with pytest.raises(FigureError, match="no view that can be saved"):
        exports.view("me", shown, "to_png", {}, "svg")
    with pytest.raises(FigureError, match="no 'exe' file"):
        exports.view("me", shown, "token_map", {}, "exe")
