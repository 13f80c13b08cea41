"""MixLoRA computes what its paper says, token by token."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from loramixer.baselines.mixlora import MixLoraFeedForward, MixLoraSettings, add_mixlora, routing_loss
from loramixer.errors import BackboneError, RoutingError
from tests import tiny
from tests.tiny import logits_of

SETTINGS = MixLoraSettings(experts=4, rank=3, alpha=5, router_init_std=0.5)


@pytest.fixture
def model():
    """A MixLoRA model whose experts all do something."""
    torch.manual_seed(11)
    made = add_mixlora(tiny.llama(), SETTINGS)
    with torch.no_grad():
        for module in blocks(made):
            for experts in module.experts.values():
                experts.B.normal_(std=0.3)
    return made.eval()


def blocks(model) -> list[MixLoraFeedForward]:
    return [module for module in model.modules() if isinstance(module, MixLoraFeedForward)]


@torch.no_grad()
def naive(block: MixLoraFeedForward, x_D: torch.Tensor) -> torch.Tensor:
    """One token through the formula of the paper: every expert is a whole FFN with its own merged weights."""

    def merged(name: str, expert: int) -> torch.Tensor:
        experts = block.experts[name]
        return getattr(block.block, name).weight + 5 / 3 * experts.B[expert] @ experts.A[expert]

    p_E = torch.softmax(block.router.weight @ x_D, dim=0)
    best = sorted(range(4), key=lambda expert: -float(p_E[expert]))[:2]
    y_D = torch.zeros_like(x_D)
    for expert in best:
        h = F.silu(merged("gate_proj", expert) @ x_D) * (merged("up_proj", expert) @ x_D)
        y_D += p_E[expert] / sum(p_E[other] for other in best) * (merged("down_proj", expert) @ h)
    return y_D


def test_a_block_is_the_formula_of_the_paper(model):
    block = blocks(model)[0]
    x_BTD = torch.randn(2, 5, 32)
    expected = torch.stack([naive(block, x_D) for x_D in x_BTD.flatten(0, 1)]).view(2, 5, 32)
    torch.testing.assert_close(block(x_BTD), expected, atol=1e-5, rtol=1e-5)


def test_a_new_model_is_its_backbone():
    """B starts at zero in every expert and in the attention LoRA, and the chosen weights sum to 1."""
    torch.testing.assert_close(logits_of(add_mixlora(tiny.llama()).eval()), logits_of(tiny.llama()))


def test_what_trains_is_experts_routers_and_attention(model):
    model.train()
    ids = tiny.token_ids()
    loss = model(input_ids=ids, labels=ids).loss + routing_loss(model)
    loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert with_gradient == trainable
    # Per layer: a router, A and B of three projections, A and B of four attention projections.
    assert len(trainable) == 2 * (1 + 3 * 2 + 4 * 2)


def test_the_routing_loss_is_mixtrals_over_all_layers(model):
    """Against the function of Transformers, which takes logits; padding is left out by both."""
    model.train()
    ids, mask = tiny.token_ids(), torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    logits = []
    for block in blocks(model):
        block.router.register_forward_hook(lambda module, inputs, output: logits.append(output))
    model(input_ids=ids, attention_mask=mask)
    expected = 0.001 * load_balancing_loss_func(tuple(logits), 4, 2, mask)
    torch.testing.assert_close(routing_loss(model, mask), expected)


def test_generation_with_and_without_cache_agrees(model):
    ids = tiny.token_ids(1, 6)
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached = model.generate(input_ids=ids, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(input_ids=ids, use_cache=False, **settings))


def test_a_bfloat16_backbone_keeps_float32_experts():
    model = add_mixlora(tiny.llama().to(torch.bfloat16), SETTINGS).eval()
    assert logits_of(model).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


def test_what_cannot_be_mixlora_is_refused():
    bert = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    with pytest.raises(BackboneError, match="BertModel has no FFN blocks with gate_proj, up_proj, down_proj"):
        add_mixlora(bert)
    with pytest.raises(RoutingError, match="from 1 to 1"):
        add_mixlora(tiny.llama(), MixLoraSettings(experts=1))
