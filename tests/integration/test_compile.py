"""`torch.compile`: equal to eager, in one graph, and never a stale graph after the gates change."""

from __future__ import annotations

import pytest
import torch

from loramixer import set_gate
from tests import tiny
from tests.tiny import logits_of


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_mixture_is_one_graph_and_follows_its_gates(experts):
    model = tiny.mixture(experts, gate="top_k", top_k=2)
    compiled = torch.compile(model, backend="inductor", fullgraph=True)
    before = logits_of(model)
    torch.testing.assert_close(logits_of(compiled), before, atol=1e-5, rtol=0)
    set_gate(model, k=1)
    after = logits_of(model)
    torch.testing.assert_close(logits_of(compiled), after, atol=1e-5, rtol=0)
    assert not torch.allclose(after, before, atol=1e-3)


def test_the_sparse_form_does_not_break_the_graph(tmp_path):
    """PyTorch cannot compile its sparse matrices, so a compiled mixture sums densely; one token needs none of them."""
    targets = list(tiny.ALL_PROJECTIONS)
    experts = {
        name: tiny.save_expert(tmp_path / name, seed, target_modules=targets) for seed, name in enumerate("abc")
    }
    model = tiny.mixture(experts, top_k=1, mixing="sparse")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for ids in (tiny.token_ids(), tiny.token_ids(1, 1)):
        with torch.no_grad():
            torch.testing.assert_close(compiled(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_a_compiled_mixture_switches_adapters(experts, tmp_path):
    other = tiny.mixture({"c": experts["c"]}, seed=9)
    other.save_pretrained(tmp_path)
    model = tiny.mixture(experts)
    expected = {"default": logits_of(model), "other": logits_of(other)}
    model.load_adapter(str(tmp_path), adapter_name="other")
    compiled = torch.compile(model.eval(), backend="eager")
    for name, logits in expected.items():
        model.set_adapter(name)
        torch.testing.assert_close(logits_of(compiled), logits, atol=1e-6, rtol=0)
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(compiled), logits_of(tiny.llama()), atol=1e-6, rtol=0)


def test_compiled_training_has_the_loss_and_gradients_of_eager(experts):
    ids = tiny.token_ids()
    results = []
    for compile_it in (False, True):
        model = tiny.mixture(experts, routing_loss="rsl", balance_weight=1.0, entropy_weight=0.2).train()
        run = torch.compile(model, backend="eager") if compile_it else model
        loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == 9
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
