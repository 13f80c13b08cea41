"""Your own: uploads that are safe, a table before anything is loaded, a mixture that only its owner knows."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from explorer.rooms.own import uploads
from explorer.rooms.own.handlers import UNTRAINED, OwnHandlers, shipped_experts
from explorer.rooms.own.shelf import Shelves
from explorer.rooms.own.uploads import unpack
from explorer.settings import PUBLIC_LIMITS
from loramixer.errors import ExpertError
from loramixer.experts import read_expert
from loramixer.fitting import Fit, outline_backbone
from loramixer.mixers import ZOO
from tests import tiny
from tests.app.synthetic import FakeSource

BACKBONE = "smollm2-135m"


def session(name: str = "one") -> Any:
    return SimpleNamespace(session_hash=name)


@pytest.fixture
def handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnHandlers:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for variable in ("LORAMIXER_PUBLIC", "SPACE_ID"):
        monkeypatch.delenv(variable, raising=False)
    return OwnHandlers(FakeSource())


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that fits no backbone of the zoo."""
    return Path(tiny.save_expert(tmp_path_factory.mktemp("adapter") / "law", 1, r=4, target_modules=["q_proj"]))


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def content_of(adapter: Path) -> dict[str, bytes]:
    return {name: (adapter / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}


def table_of(view: tuple[Any, ...]) -> str:
    assert isinstance(view[0], str), view[1]
    return view[0]


# ---------------------------------------------------------------------- uploads


def test_an_archive_gives_one_folder_for_each_adapter(tmp_path: Path, adapter: Path) -> None:
    files = {f"{place}{name}": data for place in ("", "deep/tax law/") for name, data in content_of(adapter).items()}
    path = zipped(tmp_path / "law.v2.zip", {**files, "deep/readme.md": b"x"})
    target = tmp_path / "target"
    target.mkdir()
    folders = unpack([path], target, 10_000_000)
    assert [folder.name for folder in folders] == ["law-v2", "tax-law"]
    for folder in folders:
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == content_of(adapter)


def test_the_two_files_themselves_are_an_adapter(tmp_path: Path, adapter: Path) -> None:
    files = [adapter / name for name in content_of(adapter)]
    (folder,) = unpack(files, tmp_path, 10_000_000)
    assert {file.name for file in folder.iterdir()} == set(content_of(adapter))


def test_entries_with_paths_upwards_go_nowhere(tmp_path: Path, adapter: Path) -> None:
    files = {f"../../outside/{name}": data for name, data in content_of(adapter).items()}
    target = tmp_path / "a/b/target"
    target.mkdir(parents=True)
    (folder,) = unpack([zipped(tmp_path / "evil.zip", files)], target, 10_000_000)
    assert folder.parent == target
    assert not (tmp_path / "a/outside").exists()


@pytest.mark.parametrize(
    ("name", "members", "words"),
    [
        ("pickled.zip", {"adapter_config.json": b"{}", "adapter_model.bin": b"x"}, "pickled weights"),
        ("other.zip", {"notes.txt": b"x"}, "no folder with adapter_config.json"),
        ("many.zip", {f"{number}.txt": b"" for number in range(1001)}, "holds 1,001 files"),
    ],
)
def test_archives_without_an_adapter_are_refused(tmp_path: Path, name: str, members: Any, words: str) -> None:
    with pytest.raises(ExpertError, match=words):
        unpack([zipped(tmp_path / name, members)], tmp_path, 10_000_000)


@pytest.mark.parametrize("name", ["model.bin", "weights.pt", "last.ckpt"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch x'\ntR.")
    with pytest.raises(ExpertError, match="can run code and are never opened"):
        unpack([tmp_path / name], tmp_path, 10_000_000)


def test_half_an_adapter_says_what_is_missing(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(ExpertError, match=r"adapter_model\.safetensors is missing"):
        unpack([adapter / "adapter_config.json"], tmp_path, 10_000_000)


def test_no_archive_at_all(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ExpertError, match="cannot be unpacked"):
        unpack([tmp_path / "broken.zip"], tmp_path, 10_000_000)


def test_a_bomb_is_given_up_while_it_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten megabytes of zeros in ten kilobytes, which says of itself that it is small."""
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"\0" * 10_000_000}
    path = zipped(tmp_path / "bomb.zip", files)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(uploads, "PIECE", 1 << 16)
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(ExpertError, match="takes more than is allowed here"):
        unpack([path], target, 1_000_000)
    assert list(target.rglob("*")) == []


# ---------------------------------------------------------------------- what fits


def test_what_fits_is_shown_before_anything_is_loaded(handlers: OwnHandlers, adapter: Path, tmp_path: Path) -> None:
    shipped = next(name for name in shipped_experts() if name.startswith(BACKBONE))
    view = handlers.add_shipped(shipped, BACKBONE, [], session())
    name = shipped.rpartition(" ")[2]
    assert "Fits" in table_of(view)
    assert "Memory for the weights" in table_of(view)
    assert view[2].value == [name]
    upload = zipped(tmp_path / "law.zip", content_of(adapter))
    view = handlers.add_files([str(upload)], BACKBONE, [name], session())
    assert "sites have another shape" in table_of(view)
    assert view[1]["kind"] == "note"
    assert view[2].value == [name]
    assert handlers.source.requests == []  # type: ignore[attr-defined]


def test_the_same_expert_twice_is_one(handlers: OwnHandlers) -> None:
    chosen = first_shipped(handlers)
    assert first_shipped(handlers) == chosen
    assert list(handlers.shelves.of("one").sources) == chosen


def test_texts_of_a_visitor_are_escaped(handlers: OwnHandlers, adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["peft_type"] = "<img src=x onerror=alert(1)>"
    upload = zipped(tmp_path / "x.zip", {**content_of(adapter), "adapter_config.json": json.dumps(config).encode()})
    table = table_of(handlers.add_files([str(upload)], BACKBONE, [], session()))
    assert "&lt;img src=x" in table
    assert "<img" not in table
    assert str(tmp_path) not in table


def test_trained_routers_are_offered_for_their_own_experts(handlers: OwnHandlers) -> None:
    own = next(mixer for mixer in handlers.source.mixers() if (ZOO / mixer.name).is_dir())
    config = json.loads((ZOO / own.name / "adapter_config.json").read_text())
    folders = {folder.name: key for key, folder in shipped_experts().items() if key.startswith(BACKBONE)}
    chosen: list[str] = []
    view: tuple[Any, ...] = ()
    for name in config["expert_order"]:
        view = handlers.add_shipped(folders[name], BACKBONE, chosen, session())
        chosen = view[2].value
        if len(chosen) == 1:  # the first routers that fit are new in the list
            assert view[3].value == UNTRAINED
    offered = [value for _, value in view[3].choices]
    assert own.name in offered
    assert offered[0] == UNTRAINED
    # Leaving a control is an input too: it brings nothing, and the router that was chosen stays so.
    for again in (
        handlers.check(BACKBONE, chosen, session()),
        handlers.add_shipped(None, BACKBONE, chosen, session()),
    ):
        assert again[1]["kind"] == "quiet"
        assert again[2].value == chosen
        assert again[3].value is None


# ---------------------------------------------------------------------- using


def first_shipped(handlers: OwnHandlers, name: str = "one") -> list[str]:
    shipped = next(key for key in shipped_experts() if key.startswith(BACKBONE))
    return handlers.add_shipped(shipped, BACKBONE, [], session(name))[2].value


def test_a_mixture_is_for_its_owner_and_is_freed(handlers: OwnHandlers, tmp_path: Path) -> None:
    chosen = first_shipped(handlers)
    wanted, tabs, line = handlers.explore(BACKBONE, chosen, UNTRAINED, session())
    assert wanted["room"] == "explore"
    assert tabs.selected == "explore"
    assert "untrained router" in wanted["title"]
    assert line["kind"] == "note"
    assert wanted["mixer"] not in [mixer.name for mixer in handlers.source.mixers()]
    assert handlers.source.find(wanted["mixer"]).title == wanted["title"]
    assert list(tmp_path.glob("loramixer-explorer-own-*"))
    handlers.leave(session())
    assert handlers.source.added == {}  # type: ignore[attr-defined]
    assert list(tmp_path.glob("loramixer-explorer-own-*")) == []


def test_a_second_mixture_takes_the_place_of_the_first(handlers: OwnHandlers) -> None:
    chosen = first_shipped(handlers)
    first, *_ = handlers.explore(BACKBONE, chosen, UNTRAINED, session())
    second, *_ = handlers.explore(BACKBONE, chosen, UNTRAINED, session())
    assert list(handlers.source.added) == [second["mixer"]] != [first["mixer"]]  # type: ignore[attr-defined]


def test_mixtures_of_all_visitors_together_are_bounded(handlers: OwnHandlers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMIXER_PUBLIC", "1")
    for number in range(PUBLIC_LIMITS.mixtures + 2):
        chosen = first_shipped(handlers, str(number))
        handlers.explore(BACKBONE, chosen, UNTRAINED, session(str(number)))
    assert len(handlers.source.added) == PUBLIC_LIMITS.mixtures  # type: ignore[attr-defined]


def test_the_mixture_that_was_run_last_stays(handlers: OwnHandlers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever explores with a mixture does nothing in this room, and is no idler."""
    monkeypatch.setenv("LORAMIXER_PUBLIC", "1")
    names = [handlers.explore(BACKBONE, first_shipped(handlers, name), UNTRAINED, session(name))[0]["mixer"]
             for name in ("one", "two", "three")]  # fmt: skip
    assert list(handlers.source.added) == [names[0], names[2]]  # type: ignore[attr-defined]


def test_what_is_brought_meanwhile_stays_ticked(handlers: OwnHandlers) -> None:
    """Two events on their way at once: neither has seen what the other ticked."""
    first, second, third = [name for name in shipped_experts() if name.startswith(BACKBONE)][:3]
    handlers.add_shipped(first, BACKBONE, [], session())
    both = handlers.add_shipped(second, BACKBONE, [], session())[2].value
    assert len(both) == 2
    handlers.check(BACKBONE, both[:1], session())  # unticked
    assert len(handlers.add_shipped(third, BACKBONE, both[:1], session())[2].value) == 2


def test_visitors_who_do_nothing_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("explorer.rooms.own.shelf.MOST_SHELVES", 3)
    shelves = Shelves(FakeSource())
    folders = [shelves.of(str(number)).folder for number in range(5)]
    assert [folder.exists() for folder in folders] == [False, False, True, True, True]


def test_nothing_chosen_is_one_sentence(handlers: OwnHandlers) -> None:
    assert "at least one" in handlers.explore(BACKBONE, [], UNTRAINED, session())[2]["text"]


# ---------------------------------------------------------------------- public mode


def test_paths_are_for_the_owner_of_the_machine(
    handlers: OwnHandlers, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "another shape" in table_of(handlers.add_named(str(adapter), BACKBONE, [], session()))
    monkeypatch.setenv("LORAMIXER_PUBLIC", "1")
    for text in (str(adapter), "../x", "explorer/traces", "/etc"):
        view = handlers.add_named(text, BACKBONE, [], session("two"))
        assert "comes from the Hub" in view[1]["text"], text
    assert "comes from the Hub" in handlers.check(str(adapter), [], session("two"))[1]["text"]


def test_the_number_of_experts_is_limited(handlers: OwnHandlers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMIXER_PUBLIC", "1")
    shipped = next(iter(shipped_experts()))
    for number in range(PUBLIC_LIMITS.experts):
        handlers.shelves.of("one").add("expert", f"organisation/expert-{number}")
    view = handlers.add_shipped(shipped, BACKBONE, [], session())
    assert f"{PUBLIC_LIMITS.experts} experts are the most" in view[1]["text"]


def test_a_single_expert_can_be_removed(handlers: OwnHandlers, adapter: Path, tmp_path: Path) -> None:
    chosen = first_shipped(handlers)
    upload = zipped(tmp_path / "law.zip", content_of(adapter))
    handlers.add_files([str(upload)], BACKBONE, chosen, session())
    shelf = handlers.shelves.of("one")
    law = Path(shelf.sources["law"])
    shelf.training = BACKBONE, dict(shelf.sources)
    view = handlers.keep(BACKBONE, chosen, session())
    assert list(shelf.sources) == view[2].value == chosen
    assert list(handlers.shelves.training_of("one")[1]) == chosen
    assert "law" not in table_of(view)
    assert not law.exists()
    assert shipped_experts() != {}
    assert Path(shelf.sources[chosen[0]]).is_dir()  # of the package, not of the visitor


@pytest.mark.parametrize("first", [True, False])
def test_a_refused_upload_takes_no_room(
    handlers: OwnHandlers, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    monkeypatch.setenv("LORAMIXER_PUBLIC", "1")
    shelf = handlers.shelves.of("one")
    for number in range(PUBLIC_LIMITS.experts - first):
        shelf.add("expert", f"organisation/expert-{number}")
    kept = dict(shelf.sources)
    two = {f"{name}/{file}": content for name in ("a", "b") for file, content in content_of(adapter).items()}
    view = handlers.add_files([str(zipped(tmp_path / "two.zip", two))], BACKBONE, [], session())
    assert "press “Remove unticked”" in view[1]["text"]
    assert (shelf.sources, shelf.bytes, list(shelf.folder.iterdir())) == (kept, 0, [])


def test_the_hub_out_of_reach_is_one_sentence(handlers: OwnHandlers, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    view = handlers.add_named("organisation/law", BACKBONE, [], session())
    assert "HF_HUB_OFFLINE" in table_of(view)
    view = handlers.check("organisation/backbone", [], session())
    assert view[1]["kind"] == "error"
    assert "organisation/backbone" in view[1]["text"]


def test_downloads_of_a_visitor_go_with_the_visitor(
    handlers: OwnHandlers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("org--mine", "org--shared", "HuggingFaceTB--SmolLM2-135M-Instruct"):
        (tmp_path / f"hub/models--{name}").mkdir(parents=True)
    mine, other = handlers.shelves.of("one"), handlers.shelves.of("two")
    mine.fetched |= {"org/mine", "org/shared", "HuggingFaceTB/SmolLM2-135M-Instruct"}
    other.fetched.add("org/shared")
    monkeypatch.setenv("LORAMIXER_PUBLIC", "1")
    handlers.leave(session("one"))
    assert sorted(os.listdir(tmp_path / "hub")) == [
        "models--HuggingFaceTB--SmolLM2-135M-Instruct",
        "models--org--shared",
    ]


def test_a_damaged_file_is_a_row_and_no_failure(handlers: OwnHandlers, adapter: Path, tmp_path: Path) -> None:
    whole = content_of(adapter)["adapter_model.safetensors"]
    files = {**content_of(adapter), "adapter_model.safetensors": whole[: len(whole) // 2]}
    view = handlers.add_files([str(zipped(tmp_path / "cut.zip", files))], BACKBONE, [], session())
    assert "damaged or no safetensors file" in table_of(view)


def test_train_takes_the_chosen_experts_of_its_visitor(handlers: OwnHandlers) -> None:
    chosen = first_shipped(handlers)
    assert handlers.shelves.training_of("one") == ("", {})
    wanted, tabs, _ = handlers.train(BACKBONE, chosen, session())
    assert (wanted["room"], tabs.selected) == ("train", "train")
    backbone, experts = handlers.shelves.training_of("one")
    assert backbone == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert list(experts) == chosen
    assert (Path(experts[chosen[0]]) / "adapter_model.safetensors").is_file()
    assert handlers.shelves.training_of("two") == ("", {})
    assert "at least one" in handlers.train(BACKBONE, [], session())[2]["text"]


def test_train_takes_the_revision_that_was_checked(handlers: OwnHandlers, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = first_shipped(handlers)
    plain = outline_backbone(BACKBONE)
    for name, revision, expected in (
        ("org/backbone", "a" * 40, f"org/backbone@{'a' * 40}"),
        (plain.name, "a" * 40, plain.name),  # the catalogue pins it
        ("folder", None, "folder"),
    ):
        found = replace(plain, name=name, revision=revision)
        monkeypatch.setattr("explorer.rooms.own.handlers.outline_backbone", lambda *_, found=found: found)
        monkeypatch.setattr("explorer.rooms.own.handlers.check_fit", fits_anything)
        handlers.train("org/backbone", chosen, session())
        assert handlers.shelves.training_of("one")[0] == expected


def fits_anything(name: str, source: str, *_: Any) -> Fit:
    return Fit(name, read_expert(name, source, weights=False), 1)
