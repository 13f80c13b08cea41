"""The routing loss over the right tokens, weighted rightly, for every kind of task and way of calling the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from loramixer.errors import ExpertError, MixerError
from loramixer.tuner import LoraMixerLayer
from loramixer.tuner.runtime import active_runtime, capture_routing
from tests import architectures
from tests.architectures import ARCHITECTURES, PAD, Architecture, batch
from tests.stock_trainer import one_step

LOSS = {"routing_loss": "rsl", "balance_weight": 1.0, "entropy_weight": 0.2}
IGNORED = -100


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Experts of an architecture by its name, written once."""
    found: dict[str, dict[str, str]] = {}

    def experts_of(name: str) -> dict[str, str]:
        if name not in found:
            found[name] = architectures.save_experts(ARCHITECTURES[name], tmp_path_factory.mktemp(name))
        return found[name]

    return experts_of


@pytest.fixture
def training(saved: Any) -> Any:
    """A mixture in training mode on an architecture by its name."""

    def build(name: str, **fields: Any) -> Any:
        return architectures.mixture(ARCHITECTURES[name], saved(name), **{**LOSS, **fields}).train()

    return build


def router_gradients(model: Any) -> torch.Tensor:
    layers = [module for module in model.modules() if isinstance(module, LoraMixerLayer)]
    return torch.cat([layer.lora_mixer_router["default"].weight.grad.flatten() for layer in layers])


def padded(inputs: dict[str, torch.Tensor], lengths: dict[str, int], side: str) -> dict[str, torch.Tensor]:
    """The same rows with that many padding tokens more in each field, on one side."""
    fill = {"input_ids": PAD, "attention_mask": 0, "labels": IGNORED, "decoder_attention_mask": 0}

    def pad(name: str, tensor: torch.Tensor) -> torch.Tensor:
        more = torch.full((len(tensor), lengths.get(name, 0)), fill[name], dtype=tensor.dtype)
        return torch.cat([more, tensor] if side == "left" else [tensor, more], dim=1)

    return {name: pad(name, tensor) for name, tensor in inputs.items()}


@pytest.mark.parametrize("reduction", ["per_site", "pooled"])
@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [(4, 0), (0, 3), (3, 4), (1, 3)],
    ids=["encoder only", "decoder only", "both", "to the same length"],
)
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_padding_of_either_side_changes_neither_loss_nor_gradient(training, name, encoder, decoder, reduction):
    inputs = batch(ARCHITECTURES[name])
    lengths = {"input_ids": encoder, "attention_mask": encoder, "labels": decoder}
    results = []
    for given in (inputs, padded(inputs, lengths, "right")):
        model = training(name, reduction=reduction)
        index = torch.tensor([0, 2])
        loss = model(**given, expert_index=index).loss
        loss.backward()
        results.append((loss.detach(), router_gradients(model), model.base_model.routing_statistics))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=1e-3)
    for statistic, value in results[0][2].items():
        torch.testing.assert_close(value, results[1][2][statistic], equal_nan=True)


def test_a_mask_for_the_decoder_goes_before_its_labels(training):
    """The last token of the answer is no label here, but it is a token."""
    inputs = batch(ARCHITECTURES["t5"])
    mask = torch.ones_like(inputs["labels"])
    unlabelled = {**inputs, "labels": inputs["labels"].clone()}
    unlabelled["labels"][:, 2] = IGNORED
    values = []
    for given in ({**unlabelled, "decoder_attention_mask": mask}, unlabelled):
        given["decoder_input_ids"] = inputs["labels"]
        model = training("t5")
        model(**given)
        values.append(model.base_model.routing_statistics["load_entropy"])
    assert not torch.isclose(*values, rtol=1e-6)


def test_statistics_of_an_encoder_decoder_are_means_over_all_its_routers(training):
    """Against each router's own tokens, one by one."""
    model = training("t5", training_gate="soft")
    inputs = padded(batch(ARCHITECTURES["t5"]), {"input_ids": 2, "attention_mask": 2, "labels": 2}, "right")
    runtime = active_runtime(model)
    model(**inputs)
    model.eval()
    runtime.inference = runtime.training
    with torch.no_grad(), capture_routing(model) as capture:
        model(**inputs)
        seen = capture.take_streams()
    entropies = []
    for stream, real in (("encoder", 7), ("decoder", 5)):
        p = seen[stream].gates[:, :, :real]
        entropies.append(-(p * p.clamp_min(1e-9).log()).sum(-1).mean(dim=(1, 2)))
    expected = torch.cat(entropies).mean()
    torch.testing.assert_close(model.base_model.routing_statistics["token_entropy"], expected)


@pytest.mark.parametrize("gate", ["off", "uniform"])
def test_routers_without_a_choice_have_no_part_in_the_loss(training, gate):
    """And so get no gradient, while the others get what they would get in a mixture without them."""
    given = batch(ARCHITECTURES["llama"])
    model = training("llama", training_gate="soft", site_gates=[{"sites": ".*k_proj", "gate": gate}])
    model(**given).loss.backward()
    statistics = model.base_model.routing_statistics
    layers = [module for module in model.modules() if isinstance(module, LoraMixerLayer)]
    runtime = active_runtime(model)
    gradients = {runtime.sites[m.sites["default"]]: m.lora_mixer_router["default"].weight.grad for m in layers}
    moved = {site.split(".")[-1] for site, found in gradients.items() if found is not None and found.any()}
    assert moved >= {"q_proj", "v_proj"}
    assert "k_proj" not in moved
    model.eval()
    runtime.inference = runtime.training
    with torch.no_grad(), capture_routing(model) as capture:
        model(**given)
        p = capture.take_streams()["tokens"].gates
    routed = [index for index, site in enumerate(runtime.sites) if not site.endswith("k_proj")]
    entropies = -(p[routed] * p[routed].clamp_min(1e-9).log()).sum(-1)
    torch.testing.assert_close(statistics["token_entropy"], entropies.mean())


TASKS = ["llama", "gpt2", "t5", "llama-sequence", "bert-sequence", "bert-token"]


def rows_of(architecture: Architecture, uneven: bool) -> list[dict[str, Any]]:
    inputs = batch(architecture, rows=8)
    if uneven and inputs["labels"].dim() == 2:
        for row, labels in enumerate(inputs["labels"]):
            labels[: row % 4] = IGNORED
    return [{name: tensor[row] for name, tensor in inputs.items()} for row in range(8)]


@pytest.mark.parametrize("name", TASKS)
def test_accumulation_multiplies_no_term(training, tmp_path, name):
    # The balance term is quadratic in the batch's means, so only terms that are linear in tokens can agree exactly.
    results = [
        one_step(
            training(name, balance_weight=0.0, entropy_weight=1.0),
            rows_of(ARCHITECTURES[name], uneven=False),
            tmp_path / str(size),
            size,
            8 // size,
        )
        for size in (8, 2)
    ]
    assert results[1] == pytest.approx(results[0], rel=1e-3)


@pytest.mark.parametrize("name", TASKS)
def test_accumulation_weights_the_task_loss_by_its_labels(training, tmp_path, name):
    """Transformers passes the number of labels to backbones that ignore it, and then no longer divides."""
    results = [
        one_step(
            training(name, routing_loss="none"),
            rows_of(ARCHITECTURES[name], uneven=True),
            tmp_path / str(size),
            size,
            8 // size,
        )
        for size in (8, 2)
    ]
    assert results[1] == pytest.approx(results[0], rel=1e-3)


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_is_the_first_of_a_tuple_where_a_tuple_is_wanted(training, name):
    inputs = batch(ARCHITECTURES[name])
    expected = training(name)(**inputs).loss
    found = training(name)(**inputs, return_dict=False)
    assert isinstance(found, tuple)
    torch.testing.assert_close(found[0], expected)


def test_a_batch_without_a_label_adds_nothing_and_is_a_number(training):
    inputs = batch(ARCHITECTURES["llama"])
    inputs["labels"] = torch.full_like(inputs["labels"], IGNORED)
    model = training("llama")
    loss = model(**inputs, num_items_in_batch=torch.tensor(12)).loss
    loss.backward()
    assert loss == 0
    assert router_gradients(model).abs().sum() == 0


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_every_way_of_calling_adds_the_routing_loss(training, task_type):
    """PEFT's model without task type calls the backbone and not the tuner."""
    inputs = batch(ARCHITECTURES["llama"])
    plain = training("llama", routing_loss="none", task_type=task_type)(**inputs).loss
    model = training("llama", task_type=task_type)
    difference = model(**inputs).loss - plain
    assert difference > 0.5
    ways = [
        model(inputs["input_ids"], inputs["attention_mask"], labels=inputs["labels"]).loss,
        model.base_model(**inputs).loss,
        model.get_base_model()(**inputs).loss,
    ]
    for loss in ways:
        torch.testing.assert_close(loss - plain, difference)
    torch.testing.assert_close(
        model.unload().train()(**inputs).loss, training("llama").unload().train()(**inputs).loss
    )


def test_the_task_type_that_needs_a_head_is_refused_with_what_to_do(training):
    with pytest.raises(MixerError, match=r"task type is TOKEN_CLS.*leave task_type out"):
        training("bert-token", task_type="TOKEN_CLS")


def test_layers_that_are_dropped_and_encoders_that_are_not_needed_are_no_fault(saved):
    architecture = ARCHITECTURES["opt"]
    model = architectures.mixture(architecture, saved("opt"), **LOSS).train()
    model.get_base_model().model.decoder.layerdrop = 1.0
    assert torch.isfinite(model(**batch(architecture)).loss)
    assert torch.isfinite(model.base_model.routing_statistics.get("routing_loss", torch.zeros(())))

    architecture = ARCHITECTURES["t5"]
    model = architectures.mixture(architecture, saved("t5"), **LOSS).train()
    inputs = batch(architecture)
    states = torch.randn(2, 7, 16)
    model(**{**inputs, "input_ids": None}, encoder_outputs=(states,)).loss.backward()
    layers = [module for module in model.get_base_model().encoder.modules() if isinstance(module, LoraMixerLayer)]
    assert layers
    assert all(layer.lora_mixer_router["default"].weight.grad is None for layer in layers)


def test_a_mask_that_is_given_by_position_counts(training):
    inputs = padded(batch(ARCHITECTURES["llama"]), {"input_ids": 3, "attention_mask": 3, "labels": 3}, "right")
    named, positional = training("llama"), training("llama")
    expected = named(**inputs).loss
    torch.testing.assert_close(
        positional(inputs["input_ids"], inputs["attention_mask"], labels=inputs["labels"]).loss, expected
    )


def test_unload_leaves_nothing_behind(training):
    inputs = batch(ARCHITECTURES["llama"])
    backbone = training("llama").unload()
    torch.testing.assert_close(backbone(**inputs).loss, ARCHITECTURES["llama"].build().train()(**inputs).loss)
    assert not backbone._forward_hooks
    assert not backbone._forward_pre_hooks


def test_a_forward_that_fails_leaves_nothing_recorded(training):
    model, inputs = training("llama"), batch(ARCHITECTURES["llama"])
    expected = model(**inputs).loss
    with pytest.raises(IndexError):
        model(input_ids=inputs["input_ids"] + 10_000, labels=inputs["labels"])
    assert active_runtime(model).recorded is None
    assert not model.get_submodule("base_model.model.model.layers.0.self_attn")._forward_hooks
    torch.testing.assert_close(model(**inputs).loss, expected)


def test_disabled_adapters_train_without_routing_loss(training):
    inputs = batch(ARCHITECTURES["llama"])
    model = training("llama")
    with model.disable_adapter():
        loss = model(**inputs).loss
    torch.testing.assert_close(loss, ARCHITECTURES["llama"].build().train()(**inputs).loss)


def test_a_mask_that_fits_no_tokens_is_refused(training):
    inputs = {**batch(ARCHITECTURES["llama"]), "attention_mask": torch.ones(2, 1, 7, 7, dtype=torch.bool)}
    with pytest.raises(MixerError, match=r"q_proj routed tokens of shape \(2, 7\), but the mask .* \(2, 1, 7, 7\)"):
        training("llama")(**inputs)


def test_a_classifier_on_an_encoder_decoder_needs_a_mask_for_its_decoder(tmp_path):
    architecture = Architecture(
        "T5ForSequenceClassification",
        "T5Config",
        {**ARCHITECTURES["t5"].settings, "num_labels": 3},
        ARCHITECTURES["t5"].projections,
        task="sequence",
    )
    model = architectures.mixture(architecture, architectures.save_experts(architecture, tmp_path), **LOSS).train()
    inputs = batch(architecture)
    inputs["input_ids"][:, -1] = 1  # the end of the text, which this head reads
    with pytest.raises(MixerError, match=r"labels have shape \(2,\).*pass decoder_attention_mask"):
        model(**inputs)
    model(**inputs, decoder_attention_mask=inputs["attention_mask"]).loss.backward()
    assert router_gradients(model).abs().sum() > 0


def save_expert(folder: Path, sites: dict[str, tuple[int, int]]) -> dict[str, str]:
    """One random expert of rank 2 on sites with their in and out features."""
    tensors = {}
    for site, (inputs, outputs) in sites.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = torch.randn(2, inputs)
        tensors[f"base_model.model.{site}.lora_B.weight"] = torch.randn(outputs, 2)
    LoraConfig(r=2, target_modules=list(sites)).save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return {"only": str(folder)}


def test_a_pooled_state_counts_once_per_row(tmp_path):
    experts = save_expert(tmp_path, {"bert.pooler.dense": (16, 16)})
    architecture = ARCHITECTURES["bert-sequence"]
    inputs = padded_rows(architecture)
    model = architectures.mixture(architecture, {**experts, "twin": experts["only"]}, **LOSS).train()
    model(**inputs).loss.backward()
    statistics = model.base_model.routing_statistics
    assert router_gradients(model).abs().sum() > 0
    assert 0 < statistics["token_entropy"] < 0.7  # at most ln 2, the mean over two rows


def padded_rows(architecture: Architecture) -> dict[str, torch.Tensor]:
    inputs = batch(architecture)
    inputs["attention_mask"][1, 4:] = 0
    return inputs


def test_a_projection_whose_weight_is_taken_without_a_call_is_refused_in_training(tmp_path):
    """Bloom slices the weight of its output projection where it repeats tensor-parallel training exactly."""
    settings = {"hidden_size": 16, "n_layer": 1, "n_head": 2, "pretraining_tp": 2}
    architecture = Architecture("BloomForCausalLM", "BloomConfig", settings, {})
    experts = save_expert(tmp_path, {"transformer.h.0.self_attention.dense": (16, 16)})
    inputs = batch(architecture)
    model = architectures.mixture(architecture, experts, **LOSS).train()
    model(**inputs).loss.backward()
    model.get_base_model().transformer.h[0].self_attention.slow_but_exact = True
    with pytest.raises(MixerError, match=r"self_attention\.dense was passed over: BloomAttention took its weight"):
        model(**inputs)


def test_projections_of_torchs_own_attention_are_refused(tmp_path):
    settings = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    architecture = Architecture("SiglipVisionModel", "SiglipVisionConfig", settings, {})
    experts = save_expert(tmp_path, {site_of_pooling_attention(architecture): (16, 16)})
    with pytest.raises(ExpertError, match=r"belongs to torch's MultiheadAttention"):
        architectures.mixture(architecture, experts)


def site_of_pooling_attention(architecture: Architecture) -> str:
    return next(name for name, _ in architecture.build().named_modules() if name.endswith("attention.out_proj"))
