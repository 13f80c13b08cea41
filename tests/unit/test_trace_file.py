"""Trace objects without a model: validation, table, saving and loading."""

import io
import json
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest

from loramixer import Intervention
from loramixer.errors import TraceError
from loramixer.trace import INTERVENTION_FIELDS, RoutingTrace, Site, TraceTokens
from loramixer.whatif import what_if


def make_trace(gates=None, **arrays) -> RoutingTrace:
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
        **arrays,
    )


def with_contributions() -> RoutingTrace:
    random = np.random.default_rng(1)
    contributions = random.random((4, 3, 2)).astype(np.float32)
    return make_trace(contributions=contributions, base_norms=random.random((4, 3)).astype(np.float32))


def content_of(tmp_path, trace=None) -> dict[str, np.ndarray]:
    """The arrays of a saved trace, to be spoiled."""
    with np.load((trace or with_contributions()).save(tmp_path / "whole.npz")) as arrays:
        return dict(arrays)


def as_file(arrays, **settings) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays, **settings)
    return file.getvalue()


def header_with(arrays, **changes) -> np.ndarray:
    header = json.loads(arrays["header"].tobytes())
    facts = changes.pop("provenance", None)
    header |= changes
    if facts is not None:
        header["provenance"] = {**header["provenance"], **facts} if isinstance(facts, dict) else facts
    return np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)


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


def test_contributions_are_saved_and_in_the_frame(tmp_path):
    trace = with_contributions()
    loaded = RoutingTrace.load(trace.save(tmp_path / "t.npz"))
    np.testing.assert_array_equal(loaded.contributions, trace.contributions)
    np.testing.assert_array_equal(loaded.base_norms, trace.base_norms)
    row = trace.to_frame().query("layer == 1 and projection == 'k_proj' and token == 2 and expert == 'medical'")
    assert row.contribution.item() == pytest.approx(trace.contributions[3, 2, 1])
    assert row.contribution_share.item() == pytest.approx(trace.contributions[3, 2, 1] / trace.base_norms[3, 2])
    assert "contribution" not in make_trace().to_frame()
    assert make_trace().contribution_shares is None


def test_no_base_output_is_no_share():
    trace = with_contributions()
    base = trace.base_norms.copy()
    base[1, 2] = 0
    shares = replace(trace, base_norms=base).contribution_shares
    assert np.isnan(shares[1, 2]).all()
    assert np.isfinite(shares[0]).all()


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"contributions": np.ones((4, 3, 2))}, "recorded together"),
        (
            {"contributions": np.ones((4, 3, 1)), "base_norms": np.ones((4, 3))},
            r"contributions have shape \(4, 3, 1\)",
        ),
        ({"contributions": np.ones((4, 3, 2)), "base_norms": np.ones((4, 2))}, r"base_norms have shape \(4, 2\)"),
    ],
)
def test_contributions_of_another_shape_are_an_error(arrays, sentence):
    with pytest.raises(TraceError, match=sentence):
        make_trace(**arrays)


def test_files_of_version_1_are_read(tmp_path):
    arrays = content_of(tmp_path, make_trace())
    arrays["header"] = header_with(arrays, format=1)
    loaded = RoutingTrace.load(as_file(arrays))
    np.testing.assert_array_equal(loaded.gates, make_trace().gates)
    assert loaded.contributions is None


def test_a_path_its_content_and_an_open_file_are_the_same(tmp_path):
    path = make_trace().save(tmp_path / "t.npz")
    with path.open("rb") as file:
        read = [RoutingTrace.load(source) for source in (str(path), path, path.read_bytes(), file)]
    assert len({trace.gates.tobytes() for trace in read}) == 1


def test_a_later_format_names_itself(tmp_path):
    arrays = content_of(tmp_path)
    arrays["header"] = header_with(arrays, format=3)
    with pytest.raises(TraceError, match="This file is a trace of format 3; this version reads format 1 and 2"):
        RoutingTrace.load(as_file(arrays))


SPOILED = {
    "no logits": ({"logits": None}, "it has no logits"),
    "foreign array": ({"extra": np.ones(3)}, "other arrays than a trace"),
    "text as logits": ({"logits": np.full((4, 3, 2), "a")}, "its logits are of type <U1"),
    "NaN": ({"logits": np.full((4, 3, 2), np.nan)}, "its logits hold nan"),
    "infinity": ({"logits": np.full((4, 3, 2), np.inf)}, "its logits hold inf"),
    "negative gate": ({"gates": np.stack([np.full((4, 3), 2.0), np.full((4, 3), -1.0)], -1)}, "its gates hold -1.0"),
    "huge gate": ({"gates": np.full((4, 3, 2), 1e300)}, "its gates hold inf"),
    "other sites": ({"logits": np.ones((3, 3, 2))}, r"logits have shape \(3, 3, 2\)"),
    "gates that sum to 2": ({"gates": np.ones((4, 3, 2))}, "sum to 2.0000, not to 1"),
    "too few tokens": ({"ids": np.arange(2)}, r"its ids have shape \(2,\), expected \(3,\)"),
    "outside the text": ({"spans": np.array([[0, 2], [2, 4], [4, 700]])}, "its tokens lie outside its text"),
    "backwards": ({"spans": np.array([[0, 2], [4, 2], [4, 6]])}, "its tokens lie outside its text"),
    "negative norm": ({"base_norms": np.full((4, 3), -1.0)}, "its base_norms hold -1.0"),
    "no text": ({"header": {"text": 5}}, "its text are missing"),
    "unknown role": ({"header": {"roles": ["a", "b", "c"]}}, "a role is none of template, prompt, generated"),
    "unhashable role": ({"header": {"roles": [[], [], []]}}, "a role is none of"),
    "site without module": ({"header": {"sites": [[0, "q"]] * 4}}, "a site is no layer, projection and module"),
    "twins": ({"header": {"experts": ["math", "math"]}}, "its experts have no names of their own"),
    "list as provenance": ({"header": {"provenance": []}}, "its provenance are missing"),
    "k is a text": ({"header": {"provenance": {"k": "two"}}}, "its provenance says k is 'two'"),
    "k is 0": ({"header": {"provenance": {"k": 0}}}, "its provenance says k is 0"),
    "foreign rule": (
        {"header": {"provenance": {"site_gates": [{"sites": "(a+)+b"}], "site_rules": [7] * 4}}},
        "follow rules that are not there",
    ),
    "rule that is a text": ({"header": {"provenance": {"site_gates": ["x"]}}}, "a rule for single sites is none"),
    "masked numbers": ({"header": {"provenance": {"masked": [[1]]}}}, "masked experts have no names"),
    "code as a field of an intervention": (
        {"header": {"provenance": {"interventions": [{"kind": "mask", "seed=0)]); raise SystemExit #": 0}]}}},
        "an intervention is ",
    ),
    "intervention that is a text": ({"header": {"provenance": {"interventions": ["mask"]}}}, "an intervention is "),
    "code as a what-if": (
        {"header": {"provenance": {"what_if": {"note": "", "k=1)\nraise SystemExit #": 0}}}},
        "its what-if is ",
    ),
    "what-if that is a text": ({"header": {"provenance": {"what_if": "k"}}}, "its provenance says what_if is 'k'"),
    "endless gate temperature": ({"header": {"provenance": {"gate_temperature": np.inf}}}, "the temperature inf"),
    "endless temperature": ({"header": {"provenance": {"temperature": np.inf}}}, "temperature of sampling is inf"),
    "half a character": ({"header": {"text": "Hi \ud800b>"}}, "surrogates not allowed"),
    "empty": ({"header": {"roles": [], "sites": []}, "ids": np.zeros(0, int), "special": np.zeros(0, bool)}, "shape"),
    "header of a list": ({"header": np.frombuffer(b"[1]", np.uint8)}, "its header is none"),
    "deep header": ({"header": np.frombuffer(b"[" * 200_000, np.uint8)}, "recursion"),
    "header that is no JSON": ({"header": np.frombuffer(b"{", np.uint8)}, "no routing trace"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_files_are_one_sentence(tmp_path, name):
    changes, sentence = SPOILED[name]
    arrays = content_of(tmp_path)
    for key, value in changes.items():
        if value is None:
            del arrays[key]
        else:
            arrays[key] = header_with(arrays, **value) if isinstance(value, dict) else value
    with pytest.raises(TraceError, match=sentence) as raised:
        RoutingTrace.load(as_file(arrays))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_what_a_trace_says_of_interventions_and_what_ifs_is_read(tmp_path):
    assert tuple(field.name for field in fields(Intervention)) == INTERVENTION_FIELDS
    change = Intervention("random_mask", "math", (1, 2), "prompt", (0,), ("q_proj",), 4).to_dict()
    trace = make_trace(gates=None)
    facts = {**what_if(trace, k=1, bias={"math": 1.0}, mask=["medical"]).provenance, "interventions": [change]}
    loaded = RoutingTrace.load(replace(trace, provenance=facts).save(tmp_path / "t.npz"))
    assert loaded.provenance == facts


def test_a_small_file_that_unpacks_to_much_is_refused_unopened(tmp_path):
    arrays = content_of(tmp_path)
    bomb = as_file({**arrays, "logits": np.zeros(2_000_000, np.float32)})
    assert len(bomb) < 20_000
    with pytest.raises(TraceError, match=r"This file takes more than the 1\.0 MB that are read here"):
        RoutingTrace.load(bomb, max_megabytes=1)


def test_a_large_file_is_refused(tmp_path):
    path = tmp_path / "large.npz"
    path.write_bytes(bytes(20_000))
    with pytest.raises(TraceError, match=r"large\.npz takes more than the 0\.0 MB"):
        RoutingTrace.load(path, max_megabytes=0.01)


def test_an_array_that_says_it_is_huge_allocates_nothing(tmp_path):
    arrays = content_of(tmp_path)
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    spoiled = io.BytesIO()
    with zipfile.ZipFile(spoiled, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            part = io.BytesIO()
            np.save(part, array)
            archive.writestr(f"{name}.npy", file.getvalue() if name == "logits" else part.getvalue())
    with pytest.raises(TraceError, match="its logits are not as long as they say"):
        RoutingTrace.load(spoiled.getvalue())


def test_an_archive_that_lies_about_its_sizes_is_refused(tmp_path):
    content = bytearray(with_contributions().save(tmp_path / "t.npz").read_bytes())
    entry = content.rfind(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (64).to_bytes(4, "little")
    with pytest.raises(TraceError, match="no routing trace"):
        RoutingTrace.load(bytes(content))


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compression_is_refused(tmp_path, method):
    spoiled = io.BytesIO()
    with zipfile.ZipFile(spoiled, "w", method) as archive:
        for name, array in content_of(tmp_path).items():
            part = io.BytesIO()
            np.save(part, array)
            archive.writestr(f"{name}.npy", part.getvalue())
    with pytest.raises(TraceError, match="compressed in another way"):
        RoutingTrace.load(spoiled.getvalue())


def test_two_arrays_of_one_name_are_refused(tmp_path):
    path = make_trace().save(tmp_path / "t.npz")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("gates.npy", archive.read("gates.npy"))
    with pytest.raises(TraceError, match="other arrays"):
        RoutingTrace.load(path)


@pytest.mark.parametrize("cut", [0, 10, 100, 600])
def test_a_file_that_was_cut_is_one_sentence(tmp_path, cut):
    content = with_contributions().save(tmp_path / "t.npz").read_bytes()
    with pytest.raises(TraceError, match="no routing trace"):
        RoutingTrace.load(content[:cut])
