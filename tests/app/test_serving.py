"""Public mode: what it is, what it limits, where it writes; and the MCP server that must be asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from explorer import serving
from explorer.layout import launch_options
from explorer.settings import OWN_LIMITS, PUBLIC_LIMITS, check_new_tokens, is_public, limits
from loramixer.errors import LoraMixerError, TraceError


@pytest.fixture(autouse=True)
def not_on_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LORAMIXER_PUBLIC", "SPACE_ID", "LORAMIXER_MCP"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"LORAMIXER_PUBLIC": "1"}, True),
        ({"LORAMIXER_PUBLIC": "0"}, False),
        ({"SPACE_ID": "somebody/explorer"}, True),
        ({"SPACE_ID": "somebody/explorer", "LORAMIXER_PUBLIC": "0"}, False),
    ],
)
def test_who_is_public(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: bool) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_public() is expected
    assert limits() is (PUBLIC_LIMITS if expected else OWN_LIMITS)


def test_strangers_may_ask_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_new_tokens(OWN_LIMITS.new_tokens) == OWN_LIMITS.new_tokens
    monkeypatch.setenv("LORAMIXER_PUBLIC", "1")
    with pytest.raises(TraceError, match=f"from 0 to {PUBLIC_LIMITS.new_tokens}"):
        check_new_tokens(OWN_LIMITS.new_tokens)
    assert launch_options()["max_file_size"] == PUBLIC_LIMITS.upload_bytes
    assert not PUBLIC_LIMITS.local_paths


def test_an_mcp_server_must_be_asked_for_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch_options()["mcp_server"] is False
    monkeypatch.setenv("LORAMIXER_MCP", "1")
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    with pytest.raises(LoraMixerError, match=r"pip install 'loramixer\[mcp\]'"):
        launch_options()
    monkeypatch.setattr(serving, "find_spec", lambda name: object())
    assert launch_options()["mcp_server"] is True


def test_a_public_server_downloads_into_the_temp_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("HF_HUB_CACHE", "LORAMIXER_CACHE", "HF_HOME"):
        # Set and deleted again, so that what the function sets is undone after the test.
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(serving.tempfile, "gettempdir", lambda: "/scratch")
    serving.keep_writes_in_temp_folder()
    assert "HF_HUB_CACHE" not in os.environ
    monkeypatch.setenv("LORAMIXER_PUBLIC", "1")
    (tmp_path / "huggingface" / "hub").mkdir(parents=True)
    serving.keep_writes_in_temp_folder()
    assert "HF_HUB_CACHE" not in os.environ
    assert os.environ["LORAMIXER_CACHE"] == "/scratch/loramixer/loramixer_cache"


def test_starting_the_page_writes_nothing_beside_the_code(tmp_path: Path) -> None:
    """A page is built and launched by a process whose home and working folder are empty; both stay empty."""
    root = Path(__file__).resolve().parents[2]
    program = f"""
import sys
sys.dont_write_bytecode = True
sys.path[:0] = [{str(root)!r}, {str(root / "lib")!r}]
from pathlib import Path
from explorer.layout import build, launch_options
from explorer.recordings import Recordings
from tests.app.synthetic import FakeSource
demo = build(FakeSource(), Recordings(Path("none")))
demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
demo.close()
"""
    before = set((root / "explorer").rglob("*.pyi"))
    home, temp = tmp_path / "home", tmp_path / "temp"
    home.mkdir()
    temp.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HF_", "GRADIO_"))},
        "HOME": str(home),
        "TMPDIR": str(temp),
        "LORAMIXER_PUBLIC": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert set((root / "explorer").rglob("*.pyi")) == before


def test_a_busy_machine_does_not_end_the_app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Gradio asks its own page once, waits three seconds, and gives up; that question is not asked."""
    from explorer.layout import build
    from explorer.recordings import Recordings
    from tests.app.synthetic import FakeSource

    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    demo = build(FakeSource(), Recordings(tmp_path))
    try:
        demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    finally:
        demo.close()
