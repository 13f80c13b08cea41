"""Gate modes in a model: known domains, rules for single sites, noise."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

import loramixer
from loramixer import set_gate
from loramixer.errors import MixerError, RoutingError
from tests import tiny
from tests.tiny import logits_of


def reference(experts, name):
    return logits_of(PeftModel.from_pretrained(tiny.llama(), experts[name]).eval())


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_known_domain_sends_everything_to_its_expert(experts, name):
    model = tiny.mixture(experts)
    set_gate(model, mode="domain", domain=name)
    torch.testing.assert_close(logits_of(model), reference(experts, name), atol=1e-5, rtol=0)


def test_every_row_has_its_own_domain_also_under_beam_search(experts):
    model = tiny.mixture(experts)
    set_gate(model, mode="domain", domain=["c", "a"])
    logits = logits_of(model)
    torch.testing.assert_close(logits[0], reference(experts, "c")[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[1], reference(experts, "a")[1], atol=1e-5, rtol=0)
    ids = tiny.token_ids()
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    both = model.generate(input_ids=ids, **settings)
    single = (
        PeftModel.from_pretrained(tiny.llama(), experts["a"])
        .eval()
        .generate(input_ids=ids[1:], **{**settings, "attention_mask": torch.ones_like(ids[1:])})
    )
    assert both[1, : single.shape[1]].tolist() == single[0].tolist()


def test_domains_that_cannot_be_are_refused(experts):
    model = tiny.mixture(experts)
    set_gate(model, mode="domain")
    with pytest.raises(RoutingError, match="needs the domain of each row"):
        logits_of(model)
    with pytest.raises(RoutingError, match="no expert 'law'; it has a, b, c"):
        set_gate(model, domain="law")
    with pytest.raises(RoutingError, match="domain is an empty list"):
        set_gate(model, domain=[])
    set_gate(model, domain=["a", "b", "c"])
    with pytest.raises(RoutingError, match="3 rows, but this batch has 2"):
        logits_of(model)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_joint_training_by_domain_moves_the_experts_of_the_batch_only(experts, checkpointing):
    model = tiny.mixture(experts, training_gate="domain", train_experts=True)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = tiny.token_ids()
    model(input_ids=ids, labels=ids, expert_index=torch.tensor([1, 1])).loss.backward()
    for module in model.modules():
        if isinstance(module, loramixer.tuner.LoraMixerLayer):
            layout = module.layouts["default"]
            for matrix in (module.lora_mixer_A["default"], module.lora_mixer_B["default"]):
                for index in range(3):
                    gradient = matrix.grad[layout.slice_of(index)]
                    assert bool(gradient.any()) == (index == 1 and layout.ranks[1] > 0)


def test_every_row_of_a_mixed_batch_moves_its_own_expert_alone(experts):
    """In a batch of two domains an expert has the gradient of its rows, as if the others were not there."""
    ids = tiny.token_ids(2, 7)
    found = []
    for rows, own in (([0, 1], [0, 1]), ([1], [1])):
        model = tiny.mixture(experts, training_gate="domain", train_experts=True).train()
        model(input_ids=ids[rows], labels=ids[rows], expert_index=torch.tensor(own)).loss.backward()
        found.append([
            matrix.grad[module.layouts["default"].slice_of(1)] * len(rows)
            for module in model.modules() if isinstance(module, loramixer.tuner.LoraMixerLayer)
            for matrix in (module.lora_mixer_A["default"], module.lora_mixer_B["default"])
        ])  # fmt: skip
    for together, alone in zip(*found, strict=True):  # half of the labels are those of the other row
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-4)
    assert any(part.any() for part in found[0])


def test_rules_change_single_sites_and_the_first_one_counts(experts):
    rules = [
        {"sites": r".*layers\.0\..*q_proj", "gate": "off"},
        {"sites": ".*q_proj", "top_k": 1},
        {"sites": ".*v_proj", "gate": "uniform"},
    ]
    model = tiny.mixture(experts, top_k=2, site_gates=rules)
    trace = loramixer.trace(model, tiny.tokenizer(), "the dose", chat=False)
    gates = {(site.layer, site.projection): gate for site, gate in zip(trace.sites, trace.gates, strict=True)}
    assert (gates[0, "q_proj"] == 0).all()
    assert ((gates[1, "q_proj"] > 0).sum(-1) == 1).all()
    for layer in (0, 1):
        assert gates[layer, "v_proj"][0].tolist() == [0.5, 0.5, 0.0]
        assert gates[layer, "k_proj"][0].tolist() == [1.0, 0.0, 0.0]
    assert trace.provenance["site_gates"] == rules


def test_rules_survive_saving(experts, tmp_path):
    model = tiny.mixture(experts, site_gates=[{"sites": ".*", "top_k": 1}, {"sites": ".*", "gate": "soft"}])
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(tiny.llama(), tmp_path).eval()
    assert torch.equal(logits_of(reloaded), logits_of(model))


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ({"gate": "soft"}, MixerError, "no rule of site_gates"),
        ({"sites": ".*", "gates": "soft"}, MixerError, "no rule of site_gates"),
        ({"sites": ["q_proj"], "gate": "soft"}, MixerError, "no rule of site_gates"),
        ({"sites": "(", "gate": "soft"}, MixerError, "no regular expression"),
        ({"sites": ".*", "gate": "loud"}, RoutingError, "'loud'"),
        ({"sites": ".*", "top_k": 9}, RoutingError, "from 1 to 3"),
        ({"sites": ".*", "temperature": 0}, RoutingError, "above 0"),
    ],
)
def test_rules_that_make_no_sense(experts, rule, error, message):
    with pytest.raises(error, match=message):
        tiny.mixture(experts, site_gates=[rule])


def test_noise_is_for_training_only_and_off_by_default(experts):
    ids = tiny.token_ids()

    def losses(**fields):
        model = tiny.mixture(experts, **fields)
        quiet = torch.equal(logits_of(model), logits_of(model))
        model.train()
        return quiet, {model(input_ids=ids, labels=ids).loss.item() for _ in range(3)}

    assert losses() == (True, losses()[1])
    assert len(losses()[1]) == 1
    quiet, noisy = losses(noise_std=1.0)
    assert quiet
    assert len(noisy) == 3
    with pytest.raises(MixerError, match="0 or above"):
        tiny.mixture(experts, noise_std=-1.0)
