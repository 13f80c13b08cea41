"""What a result says of the software that it was made with."""

from pathlib import Path

import pytest

from loramixer.versions import library_versions, memory_allocator

LINES = {
    "tcmalloc": "7f0 r-xp 0000 fe:01 5 /usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4.5.10",
    "jemalloc": "7f0 r-xp 0000 fe:01 5 /usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "system": "7f0 r-xp 0000 fe:01 5 /usr/lib/x86_64-linux-gnu/libc.so.6",
}


@pytest.mark.parametrize("name", LINES)
def test_the_memory_allocator_is_the_one_that_is_loaded(tmp_path: Path, name: str) -> None:
    maps = tmp_path / "maps"
    maps.write_text(LINES["system"] + "\n" + LINES[name] + "\n", encoding="utf-8")
    assert memory_allocator(maps) == name
    assert memory_allocator(tmp_path / "no such file") == "system"


def test_versions_of_what_can_change_a_number() -> None:
    assert list(library_versions()) == ["loramixer", "torch", "transformers", "peft"]
