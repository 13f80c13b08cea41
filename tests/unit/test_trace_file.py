"""Trace objects without a model: validation, table, saving and loading."""

import numpy as np
import pytest

from loramixer.errors import TraceError
from loramixer.trace import RoutingTrace, Site, TraceTokens


def make_trace(gates=None) -> RoutingTrace:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 3, 2)).astype(np.float32)
    soft = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return RoutingTrace(
        tokens=TraceTokens(
            text="Hi <b>",
            ids=np.array([5, 6, 7]),
            spans=np.array([[0, 2], [2, 4], [4, 6]]),
            roles=("template", "prompt", "generated"),
            special=np.array([True, False, False]),
        ),
        sites=tuple(
            Site(layer, projection, f"layers.{layer}.{projection}")
            for layer in (0, 1)
            for projection in ("q_proj", "k_proj")
        ),
        experts=("math", "medical"),
        logits=logits,
        gates=soft if gates is None else gates,
        provenance={"k": 2, "renormalize": True},
    )


def test_saves_and_loads_without_loss(tmp_path):
    trace = make_trace()
    loaded = RoutingTrace.load(trace.save(tmp_path / "t.npz"))
    np.testing.assert_array_equal(loaded.gates, trace.gates)
    np.testing.assert_array_equal(loaded.logits, trace.logits)
    assert loaded.tokens.text == trace.tokens.text
    assert (loaded.sites, loaded.experts, loaded.provenance) == (trace.sites, trace.experts, trace.provenance)
    assert [loaded.tokens[i] for i in range(3)] == ["Hi", " <", "b>"]


def test_frame_is_tidy():
    trace = make_trace()
    frame = trace.to_frame()
    assert len(frame) == 4 * 3 * 2
    row = frame[(frame.layer == 1) & (frame.projection == "k_proj") & (frame.token == 2) & (frame.expert == "math")]
    assert row.gate.item() == pytest.approx(trace.gates[3, 2, 0])
    assert row.role.item() == "generated"
    assert frame.groupby(["layer", "projection", "token"]).gate.sum().to_numpy() == pytest.approx(np.ones(12))


def test_select_masks():
    sites, tokens = make_trace().select(layers=[1], projections=["q_proj"], roles=["prompt", "generated"])
    assert sites.tolist() == [False, False, True, False]
    assert tokens.tolist() == [False, True, True]


def test_gates_that_do_not_sum_to_one_are_an_error():
    gates = make_trace().gates.copy()
    gates[2, 1] = 0
    with pytest.raises(TraceError, match=r"layers\.1\.q_proj at token 1 sum to 0\.0000"):
        make_trace(gates)


def test_wrong_shapes_are_an_error():
    with pytest.raises(TraceError, match="sites × tokens × experts"):
        make_trace(make_trace().gates[:3])


def test_files_that_are_no_trace(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(TraceError, match="no routing trace"):
        RoutingTrace.load(tmp_path / "x.npz")
    with pytest.raises(TraceError, match="no routing trace"):
        RoutingTrace.load(tmp_path / "missing.npz")
    np.savez(tmp_path / "pickled.npz", header=np.array([{"a": 1}], dtype=object))
    with pytest.raises(TraceError, match="no routing trace"):
        RoutingTrace.load(tmp_path / "pickled.npz")
