"""Files that several processes write: whole, whoever comes last."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from loramixer.whole_files import write_whole


def write_often(path: Path, text: str) -> None:
    for _ in range(200):
        write_whole(path, json.dumps(text * 5000))
        json.loads(path.read_text(encoding="utf-8"))  # the other one's or this one's, never a part


def test_two_processes_may_write_the_same_file(tmp_path):
    with ProcessPoolExecutor(2) as pool:
        for done in [pool.submit(write_often, tmp_path / "origin.json", text) for text in "ab"]:
            done.result()
    assert [path.name for path in tmp_path.iterdir()] == ["origin.json"]
