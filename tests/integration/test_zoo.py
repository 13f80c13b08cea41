"""The shipped experts and routers do what the README says, on the real backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from explorer.examples import EXAMPLES
from explorer.recordings import Recordings
from loramixer import add_mixer, list_mixers, load_backbone, load_mixer, set_gate, trace
from loramixer.data import DEFAULT_DOMAINS, held_out_examples
from loramixer.evaluation.experiments.plan import Options
from loramixer.evaluation.harness import evaluate
from loramixer.evaluation.shipping import shipped_runs
from loramixer.metrics import plane_point
from loramixer.mixers import ZOO
from loramixer.trace import RoutingTrace
from loramixer.tuner.runtime import active_runtime, describe_mixture
from tests import tiny

ROUTERS = tuple(info.name for info in list_mixers() if info.backbone == "smollm2-135m")
PROMPT = "A patient weighs 62 kg and needs 15 mg of amoxicillin per kg. How many mg is that?"


@pytest.fixture(scope="module")
def shipped(embedded_backbone):
    """The RSL mixture as it ships (the backbone is there already)."""
    return load_mixer("smollm2-135m/rsl")


def test_the_zoo_lists_its_routers_without_loading_a_model():
    found = {info.name: info for info in list_mixers() if info.backbone == "smollm2-135m"}
    names = {f"smollm2-135m/{name}" for name in shipped_runs(Options(tuple(DEFAULT_DOMAINS)))}
    assert {"smollm2-135m/load-balance", "smollm2-135m/rsl"} <= set(found) <= names
    for info in found.values():
        assert info.experts == tuple(DEFAULT_DOMAINS)
        assert (info.backbone, info.top_k, info.seed) == ("smollm2-135m", 3, 0)
    assert "E[H(p)]" in found["smollm2-135m/rsl"].loss


def test_all_routers_saw_the_same_rows_and_are_those_of_the_experiments():
    runs = {f"smollm2-135m/{name}": run for name, (run, _) in shipped_runs(Options(tuple(DEFAULT_DOMAINS))).items()}
    logs = {name: json.loads((ZOO / name / "run_log.json").read_text())["settings"] for name in ROUTERS}
    assert len({log["rows_fingerprint"] for log in logs.values()}) == 1
    assert {log["data"] for log in logs.values()} == {"folder"}
    for name, log in logs.items():
        assert log["run"] == runs[name].name


def test_a_training_can_be_replayed_step_by_step(shipped):
    model, tokenizer = shipped
    for name in ("rsl", "load-balance"):
        steps = sorted((ZOO / "smollm2-135m/replay" / name).iterdir())
        assert steps[0].name == "step-00000"
        assert len(steps) >= 5

    def token_entropy() -> float:
        p = torch.softmax(torch.from_numpy(trace(model, tokenizer, PROMPT).logits), dim=-1).numpy()
        return plane_point(p).token_entropy

    trained = token_entropy()
    add_mixer(model, ZOO / "smollm2-135m/replay/rsl/step-00000")
    untrained = token_entropy()
    add_mixer(model, "smollm2-135m/rsl")
    assert untrained > 0.9 * np.log(len(DEFAULT_DOMAINS))
    assert trained < untrained


def test_the_zoo_is_small():
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 70_000_000


@pytest.mark.parametrize(
    "folder",
    sorted(path.parent for path in ZOO.rglob("adapter_config.json") if "replay" not in path.parts),
    ids=lambda path: f"{path.parent.name}-{path.name}",
)
def test_every_folder_has_a_card_that_names_data_licence_rows_seed_and_command(folder: Path):
    card = (folder / "README.md").read_text(encoding="utf-8")
    settings = json.loads((folder / "run_log.json").read_text())["settings"]
    for task, rows in settings["rows"].items():
        assert f"| {task} | {rows} |" in card
    assert f"seed {settings['seed']}" in card
    assert "loramixer train-" in card
    assert "license: apache-2.0" in card


def test_a_trace_covers_all_120_routers_and_every_token(shipped):
    model, tokenizer = shipped
    found = trace(model, tokenizer, PROMPT, max_new_tokens=4)
    assert found.gates.shape == (120, len(found.tokens), 6)
    assert (len(found.layers), found.projections) == (30, tiny.ALL_PROJECTIONS)
    np.testing.assert_allclose(found.gates.sum(-1), 1, atol=1e-5)
    assert ((found.gates > 0).sum(-1) <= 3).all()
    assert [role for role in found.tokens.roles if role == "generated"] == ["generated"] * 4


def test_one_hot_gates_equal_pefts_own_lora_on_the_real_backbone(shipped):
    model, tokenizer = shipped
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    for index, name in enumerate(active_runtime(model).experts):
        reference = PeftModel.from_pretrained(load_backbone("smollm2-135m")[0], ZOO / "smollm2-135m/experts" / name)
        with torch.no_grad(), tiny.only_expert(model, index):
            ours, theirs = model(ids).logits, reference.eval()(ids).logits
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-5)
        assert (ours.argmax(-1) == theirs.argmax(-1)).all()


def test_generation_with_and_without_cache_agrees_on_the_real_backbone(shipped):
    model, tokenizer = shipped
    ids = tokenizer(PROMPT, return_tensors="pt")
    cached, recomputed = (
        model.generate(**ids, max_new_tokens=12, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(cached, recomputed)


def test_switching_routers_and_k_on_one_backbone(shipped):
    model, tokenizer = shipped
    first = trace(model, tokenizer, PROMPT)
    add_mixer(model, "smollm2-135m/load-balance")
    second = trace(model, tokenizer, PROMPT)
    assert second.provenance["mixer"] == "smollm2-135m/load-balance"
    assert not np.allclose(first.gates, second.gates)
    add_mixer(model, "smollm2-135m/rsl")
    set_gate(model, k=1)
    assert (trace(model, tokenizer, PROMPT).gates.max(-1) == 1).all()
    set_gate(model, k=3)
    np.testing.assert_allclose(trace(model, tokenizer, PROMPT).gates, first.gates, atol=1e-6)


def test_each_expert_beats_the_backbone_on_its_own_domain(embedded_backbone, real_data):
    model, tokenizer = load_backbone("smollm2-135m")
    rows = {domain: held_out_examples(domain, 4, seed=1) for domain in DEFAULT_DOMAINS}
    before = {
        domain: evaluate(model, tokenizer, rows[domain], routing=False, max_answer=48)[0].loss
        for domain in DEFAULT_DOMAINS
    }
    peft_model = None
    for domain in DEFAULT_DOMAINS:
        folder = str(ZOO / "smollm2-135m/experts" / domain)
        if peft_model is None:
            peft_model = PeftModel.from_pretrained(model, folder, adapter_name=domain)
        else:
            peft_model.load_adapter(folder, adapter_name=domain)
        peft_model.set_adapter(domain)
        after = evaluate(peft_model, tokenizer, rows[domain], routing=False, max_answer=48)[0].loss
        assert after < 0.95 * before[domain], domain


def test_the_rsl_router_gives_every_domain_its_own_expert_more_than_uniform(shipped, real_data):
    model, tokenizer = shipped
    for domain in DEFAULT_DOMAINS:
        (result,) = evaluate(model, tokenizer, held_out_examples(domain, 4, seed=1), max_answer=48)
        assert result.own_expert_share_low > 1 / len(DEFAULT_DOMAINS), domain


def test_recordings_were_made_with_the_router_that_ships(shipped):
    recordings = Recordings()
    assert {key for key, mixer in recordings.files if not mixer} == {example.key for example in EXAMPLES}
    model, _ = shipped
    descriptions = {}
    for mixer in sorted({mixer for _, mixer in recordings.files}, reverse=True):  # the first router comes last again
        add_mixer(model, mixer or "smollm2-135m/rsl")
        descriptions[mixer] = describe_mixture(model)
    for (_, mixer), path in recordings.files.items():
        description, recorded = descriptions[mixer], RoutingTrace.load(path)
        assert recorded.provenance["router_sha256"] == description["router_sha256"]
        assert recorded.provenance["expert_sha256"] == description["expert_sha256"]
        assert "generated" in recorded.tokens.roles
