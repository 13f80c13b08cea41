"""Experts and mixtures from the Hub and to it, against a real server on the loopback interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model
from safetensors.torch import load, save

import loramixer
from loramixer import LoraMixerConfig, load_mixer, push_mixer
from loramixer import hub as hub_module
from loramixer.backbones import backbone_files
from loramixer.data import AnySource, Example
from loramixer.errors import BackboneError, ExpertError, HubError, MixerError
from loramixer.evaluation.matrix import expert_matrix
from loramixer.experts import read_expert
from loramixer.fitting import outline_backbone
from loramixer.hub import push_folder, split_hub_id
from loramixer.tuner.export import export_expert
from tests import tiny
from tests.hub_server import FIRST_COMMIT, TOKEN, HubServer
from tests.tiny import logits_of

ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short deadlines, so that giving up takes no time."""
    from huggingface_hub import constants

    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.3)
    # Longer than the second that the client waits before it starts a broken download anew.
    monkeypatch.setattr(hub_module, "STALL_SECONDS", 1.5)
    # Small pieces, so that the tiny files of these tests show progress as large ones do.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 256)


@pytest.fixture
def published(hub: HubServer, experts: dict[str, str]) -> dict[str, str]:
    """The three experts as repositories: name → Hub id."""
    for name, folder in experts.items():
        hub.add(f"org/{name}", folder)
    return {name: f"org/{name}" for name in experts}


def move(hub: HubServer, repository: str) -> str:
    """Put other weights on main; returns the commit that main pointed at before."""
    before = hub.repositories[repository].names["main"]
    weights = load(hub.files(repository)["adapter_model.safetensors"])
    changed = {key: value * 1.5 for key, value in weights.items()}
    hub.add(repository, {"adapter_model.safetensors": save(changed, metadata={"format": "pt"})})
    return before


def tiny_backbone(folder: Path) -> Path:
    tiny.llama().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# Reading


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1")),
        ("name", None),
        ("a/b/c", None),
        ("../org/name", None),
        ("./name", None),
        ("org/name@", None),
        ("/org/name", None),
    ],
)
def test_hub_ids_and_their_revisions(text, expected):
    assert split_hub_id(text) == expected


def test_an_expert_by_id_is_the_one_in_the_folder(hub, published, experts):
    expert, local = read_expert("a", "org/a"), read_expert("a", experts["a"])
    assert expert.sha256 == local.sha256
    assert expert.source == f"org/a@{hub.repositories['org/a'].names['main']}"
    assert all(torch.equal(expert.sites[site].A, local.sites[site].A) for site in local.sites)


def test_a_pinned_revision_keeps_its_bytes_when_main_moves(hub, published, experts):
    before = move(hub, "org/a")
    original = read_expert("a", experts["a"]).sha256
    assert read_expert("a", f"org/a@{before}").sha256 == original
    assert read_expert("a", "org/a").sha256 != original
    hub.repositories["org/a"].names["v1"] = before
    assert read_expert("a", "org/a@v1").source == f"org/a@{before}"


def test_main_is_followed_when_it_moves(hub, published):
    first = read_expert("a", "org/a")
    move(hub, "org/a")
    assert read_expert("a", "org/a").sha256 != first.sha256


def test_the_expert_matrix_takes_experts_from_the_hub_and_opens_no_pickle(hub, published, tmp_path, monkeypatch):
    monkeypatch.setattr("loramixer.evaluation.matrix.held_out_examples", held_out_row)
    backbone = str(tiny_backbone(tmp_path / "backbone"))
    before = move(hub, "org/a")
    ids = {"a": f"org/a@{before}", "moved": "org/a"}
    losses = {name: rows[0].loss for name, rows in expert_matrix(ids, ["math"], backbone=backbone).items()}
    assert len(set(losses.values())) == 3
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/adapter_config.json").write_text("{}")
    (tmp_path / "pickled/adapter_model.bin").write_bytes(b"")
    with pytest.raises(ExpertError, match=r"has pickled weights \(.bin\), which are never opened"):
        expert_matrix({"b": tmp_path / "pickled"}, ["math"], backbone=backbone)


def held_out_row(domain: str, count: int, seed: int, source: AnySource = None) -> list[Example]:
    return [Example("1", "t", domain, "the dose", "ten")]


def test_only_the_named_files_are_ever_requested(hub, experts):
    hub.add("org/a", experts["a"])
    hub.add("org/a", {"adapter_model.bin": b"pickle", "setup.py": b"raise SystemExit", "extra.safetensors": b""})
    read_expert("a", "org/a")
    assert hub.fetched() == ADAPTER


def test_what_is_too_large_is_refused_before_it_is_downloaded(hub, published):
    with pytest.raises(ExpertError, match="more than may be fetched here"):
        read_expert("a", published["a"], max_bytes=2000)
    assert not any(request.startswith("GET") and "safetensors" in request for request in hub.requests)
    size = len(hub.files(published["a"])["adapter_model.safetensors"])
    assert read_expert("a", published["a"], max_bytes=size + 10_000, weights=False).sites


def test_only_the_configuration_of_a_backbone_is_fetched_for_its_shapes(hub, tmp_path):
    commit = hub.add("org/backbone", tiny_backbone(tmp_path / "backbone"))
    outline = outline_backbone("org/backbone")
    assert (outline.name, outline.revision) == ("org/backbone", commit)
    assert outline.shapes["model.layers.0.self_attn.k_proj"] == (32, 16)
    assert hub.fetched() == {"config.json"}


def test_a_repository_with_pickled_weights_only(hub, experts):
    config = Path(experts["a"], "adapter_config.json").read_bytes()
    hub.add("org/old", {"adapter_config.json": config, "adapter_model.bin": b"pickle"})
    with pytest.raises(ExpertError, match=r"holds no adapter_model.safetensors; its pickled weights .* never opened"):
        read_expert("a", "org/old")
    assert not hub.fetched()


def test_a_pinned_commit_in_the_cache_asks_no_network(hub, published):
    commit = read_expert("a", "org/a").source
    hub.requests.clear()
    assert read_expert("a", commit).source == commit
    assert not [request for request in hub.requests if "org/a" in request]


# What goes wrong


def test_no_such_repository(hub):
    with pytest.raises(ExpertError, match=r"Expert 'a': .* the Hub has no repository org/none, or it is private"):
        read_expert("a", "org/none")
    with pytest.raises(MixerError, match=r"'org/none' is no folder and no mixture .* has no repository org/none"):
        load_mixer("org/none")
    with pytest.raises(BackboneError, match="no local folder, and the Hub has no repository org/none"):
        backbone_files("org/none")


def test_no_such_revision(hub, published):
    read_expert("a", "org/a")
    with pytest.raises(ExpertError, match="org/a has no revision 'v9'; give a branch"):
        read_expert("a", "org/a@v9")
    with pytest.raises(ExpertError, match=f"no revision '{'0' * 40}'"):
        read_expert("a", f"org/a@{'0' * 40}")


def test_a_tag_that_was_deleted_is_gone_though_the_cache_knows_it(hub, published):
    names = hub.repositories["org/a"].names
    names["v1"] = names["main"]
    read_expert("a", "org/a@v1")
    del names["v1"]
    with pytest.raises(ExpertError, match="org/a has no revision 'v1'"):
        read_expert("a", "org/a@v1")


def test_a_gated_repository_says_what_to_do(hub, published, monkeypatch):
    hub.faults["org/a"] = "gated"
    with pytest.raises(ExpertError, match=r"org/a is gated; accept its licence at http.*/org/a and log in with `hf"):
        read_expert("a", "org/a")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read_expert("a", "org/a").sites


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("silent", "no answer from the Hub at http"),
        ("silent_files", "the download of adapter_config.json of org/a broke off"),
        ("down", "the Hub answered with status 503; try again later"),
    ],
)
def test_a_hub_that_does_not_answer_is_given_up(hub, published, impatient, fault, reason):
    hub.faults["org/a"] = fault
    with pytest.raises(ExpertError, match=reason):
        read_expert("a", "org/a")


def test_no_connection_at_all(hub, published, impatient):
    hub.close()
    with pytest.raises(ExpertError, match=r"no answer from the Hub at .* check the connection"):
        read_expert("a", "org/a")


@pytest.mark.parametrize("fault", ["silent", "down"])
@pytest.mark.parametrize("pinned", [True, False])
def test_the_cache_helps_out_when_the_hub_does_not_answer(hub, published, impatient, fault, pinned):
    expert = read_expert("a", "org/a")
    hub.faults["org/a"] = fault
    assert read_expert("a", expert.source if pinned else "org/a").source == expert.source


def test_offline_uses_the_cache_and_says_what_is_not_in_it(hub, published, monkeypatch):
    expert = read_expert("a", "org/a")
    offline(monkeypatch)
    hub.requests.clear()
    assert read_expert("a", "org/a").source == expert.source
    with pytest.raises(ExpertError, match="HF_HUB_OFFLINE is set and the cache does not hold org/b; unset it"):
        read_expert("b", "org/b")
    assert not hub.requests


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("truncated", "the download of adapter_model.safetensors of org/a broke off .* try again"),
        ("cut", "the download of adapter_model.safetensors of org/a broke off .*should be of size"),
        ("corrupted", "adapter_model.safetensors of org/a was damaged on the way .* it was not kept, try again"),
    ],
)
def test_damaged_downloads_are_not_kept(hub, published, experts, impatient, fault, reason):
    hub.faults["org/a"] = fault
    with pytest.raises(ExpertError, match=reason):
        read_expert("a", "org/a")
    del hub.faults["org/a"]
    assert read_expert("a", "org/a").sha256 == read_expert("a", experts["a"]).sha256


def test_a_slow_download_is_waited_for(hub, published, impatient):
    """It takes longer than a stalled one may, and grows all the time."""
    hub.faults["org/a"] = "slow"
    assert read_expert("a", "org/a").sites


# Backbones


@pytest.fixture
def sharded(hub: HubServer, tmp_path: Path) -> str:
    """A backbone on the Hub whose weights are cut into several files, beside what must not be fetched."""
    tiny_backbone(tmp_path / "tiny")
    tiny.llama().save_pretrained(tmp_path / "tiny", max_shard_size="40KB")
    hub.add("org/tiny", tmp_path / "tiny")
    hub.add("org/tiny", {"onnx/model.safetensors": b"", "pytorch_model.bin": b"pickle", "modeling.py": b"exit()"})
    return "org/tiny"


def quietly(name: str) -> Path:
    return backbone_files(name, notify=lambda line: None).path


def test_of_a_backbone_only_plain_files_at_the_top_are_fetched(hub, sharded):
    folder = quietly(sharded)
    asked = [request.partition("/resolve/")[2] for request in hub.requests if "/resolve/" in request]
    fetched = {file.partition("/")[2] for file in asked}
    assert fetched == {path.name for path in folder.iterdir()}
    assert len([name for name in fetched if name.endswith(".safetensors")]) > 2
    assert not [name for name in fetched if "/" in name or name.endswith((".bin", ".py"))]
    hub.requests.clear()
    assert quietly(sharded) == folder
    assert not hub.requests


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("silent_files", "the download of .* of org/tiny broke off"),
        ("truncated", "the download of .*safetensors of org/tiny broke off .* try again"),
        ("corrupted", "safetensors of org/tiny was damaged on the way .* it was not kept, try again"),
    ],
)
def test_a_backbone_that_does_not_come_whole_is_refused_and_fetched_again(hub, sharded, impatient, fault, reason):
    hub.faults[sharded] = fault
    with pytest.raises(BackboneError, match=reason):
        quietly(sharded)
    del hub.faults[sharded]
    model, _ = loramixer.load_backbone(sharded, notify=lambda line: None)
    assert torch.equal(model(tiny.token_ids()).logits, tiny.llama()(tiny.token_ids()).logits)


def test_a_download_that_was_ended_is_completed(hub, sharded):
    folder = quietly(sharded)
    part = sorted(folder.glob("*.safetensors"))[1]
    part.resolve().unlink()
    part.unlink()
    hub.requests.clear()
    assert quietly(sharded) == folder
    assert part.is_file()
    assert [request for request in hub.requests if request.startswith("GET") and "safetensors" in request]


def test_weights_without_a_tokenizer_are_completed(hub, sharded):
    """Whoever has loaded the model alone has no more than these in the cache."""
    folder = quietly(sharded)
    for part in folder.glob("tokenizer*"):
        part.unlink()
    assert quietly(sharded) == folder
    assert (folder / "tokenizer.json").is_file()


def test_a_repository_that_is_no_backbone_is_refused_unfetched(hub, published):
    with pytest.raises(BackboneError, match=r"org/a at \w+ holds no config.json with safetensors weights; give"):
        quietly("org/a")
    assert not hub.fetched()


# Mixtures


def test_a_router_only_mixture_reloads_the_experts_it_was_built_from(hub, published, tmp_path):
    model = tiny.mixture(published, save_experts=False)
    model.save_pretrained(tmp_path / "mixture")
    saved = json.loads((tmp_path / "mixture/adapter_config.json").read_text())["experts"]
    assert saved["a"]["source"] == f"org/a@{hub.repositories['org/a'].names['main']}"
    move(hub, "org/a")
    reloaded = PeftModel.from_pretrained(tiny.llama(), tmp_path / "mixture").eval()
    assert torch.equal(logits_of(model), logits_of(reloaded))


def test_an_expert_that_changed_on_the_hub_is_refused(hub, published, tmp_path):
    """A configuration that names a branch; ours name commits, but somebody may have written one by hand."""
    tiny.mixture(published, save_experts=False).save_pretrained(tmp_path / "mixture")
    path = tmp_path / "mixture/adapter_config.json"
    saved = json.loads(path.read_text())
    saved["experts"]["a"]["source"] = "org/a"
    path.write_text(json.dumps(saved))
    move(hub, "org/a")
    with pytest.raises(ExpertError, match=r"Expert 'a' .* has changed since the routers were trained"):
        PeftModel.from_pretrained(tiny.llama(), tmp_path / "mixture")


@pytest.fixture
def model(hub, published, tmp_path):
    """A router-only mixture of published experts on a backbone that lies on the Hub too."""
    hub.add("org/tiny", tiny_backbone(tmp_path / "tiny"))
    backbone, _ = loramixer.load_backbone("org/tiny", notify=lambda line: None)
    torch.manual_seed(5)
    config = LoraMixerConfig(
        experts=dict(published),
        router_init_std=0.5,
        task_type="CAUSAL_LM",
        top_k=2,
        routing_loss="rsl",
        title="Three",
        save_experts=False,
    )
    return get_peft_model(backbone, config).eval()


def test_a_pushed_mixture_is_loaded_by_its_id(hub, model, logged_in):
    pushed = push_mixer(model, "org/mixture")
    assert set(hub.files("org/mixture")) == {*ADAPTER, "README.md", *FIRST_COMMIT}
    assert pushed == f"org/mixture@{hub.repositories['org/mixture'].names['main']}"
    hub.requests.clear()
    for name in ("org/mixture", pushed):
        reloaded, _ = load_mixer(name, notify=lambda line: None)
        assert torch.equal(logits_of(model), logits_of(reloaded))
    assert torch.equal(logits_of(model), logits_of(PeftModel.from_pretrained(tiny.llama(), "org/mixture").eval()))
    assert not any(name.endswith((".bin", ".py", ".pt")) for name in hub.fetched())


def test_a_pinned_mixture_with_its_revision_either_way(hub, model, logged_in):
    first = push_mixer(model, "org/mixture")
    expected = logits_of(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name:
                parameter.neg_()
    push_mixer(model, "org/mixture")
    commit = first.partition("@")[2]
    for found in (load_mixer(first), load_mixer("org/mixture", revision=commit)):
        assert torch.equal(logits_of(found[0]), expected)
    main, _ = load_mixer("org/mixture")
    assert torch.equal(logits_of(main), logits_of(model))
    loramixer.add_mixer(main, "org/mixture", revision=commit)
    assert torch.equal(logits_of(main), expected)
    with pytest.raises(MixerError, match="give one of them"):
        load_mixer(first, revision="main")


def test_a_backbone_by_id_is_pinned_where_the_mixture_was_built(hub, model, logged_in, monkeypatch, tmp_path):
    from huggingface_hub import constants

    before = hub.repositories["org/tiny"].names["main"]
    assert model.get_base_model().backbone_files.revision == before
    push_mixer(model, "org/mixture")
    expected = logits_of(model)
    changed = {key: value * 1.5 for key, value in load(hub.files("org/tiny")["model.safetensors"]).items()}
    after = hub.add("org/tiny", {"model.safetensors": save(changed, metadata={"format": "pt"})})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another machine"))
    assert torch.equal(logits_of(load_mixer("org/mixture")[0]), expected)
    assert not torch.equal(logits_of(load_mixer("org/mixture", backbone=f"org/tiny@{after}")[0]), expected)
    assert backbone_files(f"org/tiny@{before}").revision == before


def test_a_mixture_of_another_commit_is_not_put_on_a_loaded_backbone(hub, model, logged_in, tmp_path):
    push_mixer(model, "org/mixture")
    changed = {key: value * 1.5 for key, value in load(hub.files("org/tiny")["model.safetensors"]).items()}
    before = hub.repositories["org/tiny"].names["main"]
    after = hub.add("org/tiny", {"model.safetensors": save(changed, metadata={"format": "pt"})})
    folder = tmp_path / "other"
    model.peft_config["default"].base_model_name_or_path = "org/tiny"
    model.peft_config["default"].revision = after
    model.save_pretrained(folder, save_embedding_layers=False)
    loaded, _ = load_mixer("org/mixture")
    adapters = set(loaded.peft_config)
    with pytest.raises(MixerError, match=f"was trained on org/tiny at {after[:8]}; the loaded one is {before[:8]}"):
        loramixer.add_mixer(loaded, folder)
    assert set(loaded.peft_config) == adapters
    chosen, _ = load_mixer(folder, backbone=f"org/tiny@{before}")
    again = tmp_path / "again"
    model.save_pretrained(again, save_embedding_layers=False)
    loramixer.add_mixer(chosen, again)


def test_the_card_of_a_pushed_mixture_says_what_it_is(hub, model, logged_in):
    push_mixer(model, "org/mixture")
    card = hub.files("org/mixture")["README.md"].decode()
    head, body = card.removeprefix("---\n").split("\n---\n")
    data = yaml.safe_load(head)
    assert data["library_name"] == "peft"
    assert (data["base_model"], data["base_model_relation"]) == ("org/tiny", "adapter")
    assert {"lora-mixer", "mixture-of-experts"} <= set(data["tags"])
    assert "import loramixer  # registers the method with PEFT; without it PEFT says KeyError: 'LORA_MIXER'" in body
    assert 'load_mixer("org/mixture")' in body
    assert "gate in inference: top_k, k = 2" in body
    assert "RSL sharpen: 1 · K Σ p̄ f̄ + 0.05 · E[H(p)]" in body
    assert "holds the routers only" in body
    for name in "abc":
        commit = hub.repositories[f"org/{name}"].names["main"]
        link = f"[org/{name}](https://huggingface.co/org/{name}/tree/{commit}) at `{commit[:8]}`"
        assert f"| {name} | {link} | `{read_expert(name, f'org/{name}').sha256}` |" in body
    routers = sum(p.numel() for n, p in model.named_parameters() if "lora_mixer_router" in n)
    matrices = sum(p.numel() for n, p in model.named_parameters() if "lora_mixer_A" in n or "lora_mixer_B" in n)
    assert f"{routers:,} in routers, {matrices:,} in experts" in body


def test_pefts_own_push_uploads_what_loads(hub, model, logged_in):
    """Its card is Transformers' form: `push_to_hub` writes that over whatever was saved, which is why ours exists."""
    model.push_to_hub("org/plain")
    assert set(hub.files("org/plain")) == {*ADAPTER, "README.md", *FIRST_COMMIT}
    assert "lora-mixer" not in hub.files("org/plain")["README.md"].decode()
    assert torch.equal(logits_of(load_mixer("org/plain")[0]), logits_of(model))
    push_mixer(model, "org/plain")
    model.push_to_hub("org/plain")
    assert "lora-mixer" in hub.files("org/plain")["README.md"].decode()


def test_router_only_mixtures_of_local_experts_are_not_pushed(hub, published, experts, logged_in):
    model = tiny.mixture(experts, save_experts=False)
    with pytest.raises(MixerError, match=r"Expert 'a' lies in .* push it with loramixer.hub.push_folder and give"):
        push_mixer(model, "org/mixture")
    assert "org/mixture" not in hub.repositories
    move(hub, "org/b")
    with pytest.raises(ExpertError, match=r"Expert 'b' .* has changed"):
        push_mixer(model, "org/mixture", experts=published)
    assert "org/mixture" not in hub.repositories


def test_local_experts_can_be_named_by_where_they_were_pushed(hub, experts, logged_in, tmp_path):
    model = tiny.mixture(experts, save_experts=False)
    places = {name: push_folder(folder, f"org/{name}") for name, folder in experts.items()}
    push_mixer(model, "org/mixture", experts=places)
    reloaded, _ = load_mixer("org/mixture", backbone=tiny_backbone(tmp_path / "tiny"))
    assert torch.equal(logits_of(model), logits_of(reloaded))
    assert model.active_peft_config.experts["a"]["source"] == experts["a"]
    with pytest.raises(MixerError, match="has no expert 'law'"):
        push_mixer(model, "org/mixture", experts={"law": "org/law"})


def test_a_pushed_mixture_with_its_experts_names_no_path_of_this_machine(hub, experts, logged_in, tmp_path):
    tiny_backbone(tmp_path / "tiny")
    backbone, _ = loramixer.load_backbone(tmp_path / "tiny")
    model = get_peft_model(backbone, LoraMixerConfig(experts=dict(experts), task_type="CAUSAL_LM")).eval()
    push_mixer(model, "org/mixture")
    for data in hub.files("org/mixture").values():
        assert str(tmp_path.parent).encode() not in data
        assert b"../" not in data
    assert "a local folder (a)" in hub.files("org/mixture")["README.md"].decode()
    reloaded, _ = load_mixer("org/mixture", backbone=tmp_path / "tiny")
    assert torch.equal(logits_of(model), logits_of(reloaded))
    with pytest.raises(BackboneError, match="'local:tiny' is no known backbone"):
        load_mixer("org/mixture")


def test_pushing_without_a_right_or_an_answer_is_one_sentence(hub, model, impatient, monkeypatch):
    with pytest.raises(HubError, match=r"Pushing to org/mixture failed: the Hub refuses access .* `hf auth login`"):
        push_mixer(model, "org/mixture")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults["org/mixture"] = "silent"
    with pytest.raises(HubError, match="Pushing to org/mixture failed: no answer from the Hub"):
        push_mixer(model, "org/mixture")


def test_an_exported_expert_goes_to_the_hub_and_comes_back_bit_equal(hub, experts, logged_in, tmp_path):
    export_expert(tiny.mixture(experts), "c", tmp_path / "c")
    (tmp_path / "c/notes.txt").write_text("mine")
    pushed = push_folder(tmp_path / "c", "org/c")
    assert set(hub.files("org/c")) == {*ADAPTER, *FIRST_COMMIT}
    original, back = read_expert("c", experts["c"]), read_expert("c", pushed)
    for site, part in original.sites.items():
        assert torch.equal(part.A, back.sites[site].A)
        assert torch.equal(part.B, back.sites[site].B)
    with pytest.raises(HubError, match=r"holds no adapter_config.json and no adapter_model.safetensors"):
        push_folder(tmp_path, "org/c")


def test_saved_cards_replace_pefts_form_and_nobody_elses(experts, tmp_path):
    model = tiny.mixture(experts)
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "# LoRA mixture\n" in card
    assert "Model Card for Model ID" not in card
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == card
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# My own words\n")
    model.save_pretrained(tmp_path)
    assert "# My own words" in (tmp_path / "README.md").read_text()
    assert "lora-mixer" not in (tmp_path / "README.md").read_text()


def test_the_environment_variables_lead_to_the_same_hub(hub, model, logged_in, tmp_path):
    """In a process of its own, where nothing is patched."""
    push_mixer(model, "org/mixture")
    code = (
        "import loramixer, torch; from tests.tiny import logits_of; "
        "model, _ = loramixer.load_mixer('org/mixture'); torch.save(logits_of(model), 'logits.pt')"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "fresh"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits_of(model))
