"""The public endpoints, called as a program calls them; and that nothing else is public."""

from __future__ import annotations

import json
import re
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest

from explorer.api import PublicApi
from explorer.examples import find_example
from explorer.recordings import Recordings
from explorer.settings import DEFAULT_MIXER
from explorer.summary import describe_change, summarise
from loramixer.comparison import compare
from loramixer.whatif import NOTE
from tests.app.synthetic import EXPERTS, FakeSource, make_trace

PUBLIC = {"route", "generate", "compare", "what_if", "metrics"}


@pytest.fixture
def api() -> PublicApi:
    return PublicApi(FakeSource())


def test_route_gives_plain_numbers(api: PublicApi) -> None:
    routed = api.route("How many mg?")
    assert routed["text"] == ""
    assert sum(routed["load"].values()) == pytest.approx(1, abs=1e-3)
    assert {token["role"] for token in routed["tokens"]} == {"prompt"}
    assert routed["measured_tokens"] == len(routed["tokens"])


def test_generate_gives_the_answer_too(api: PublicApi) -> None:
    answered = api.generate("How many mg?", max_new_tokens=4)
    assert answered["text"] == " Each dose is 310"
    assert 0 <= answered["specialised"] <= answered["balanced"] <= 1
    assert answered["specialised"] == pytest.approx(answered["balanced"] - answered["undecided"], abs=2e-4)


def test_a_call_is_counted_while_it_runs(api: PublicApi) -> None:
    seen = []
    stream = api.source.stream

    def watched(*arguments: Any) -> Any:
        visitor = api.tickets.open("a visitor", "explore")
        seen.append(api.tickets.ahead_of("a visitor"))
        visitor.close()
        return stream(*arguments)

    api.source.stream = watched  # type: ignore[method-assign]
    api.route("How many mg?")
    assert seen == [1]
    api.tickets.open("a visitor", "explore")
    assert api.tickets.ahead_of("a visitor") == 0


def test_k_is_the_router_s_own_unless_given(api: PublicApi) -> None:
    assert api.route("How many mg?")["provenance"]["k"] == 3
    assert api.route("How many mg?", k=1)["provenance"]["k"] == 1


def test_what_if_changes_the_gates_and_says_so(api: PublicApi) -> None:
    answer = api.what_if("How many mg?", mask=["math"], temperature=0.5)
    assert answer["note"] == NOTE
    assert answer["after"]["load"]["math"] == 0 < answer["before"]["load"]["math"]
    assert answer["after"]["undecided"] < answer["before"]["undecided"]
    assert 0 < answer["changed_decisions"] < 1
    assert 0 < answer["divergence"] < 0.7
    same = api.what_if("How many mg?")
    assert (same["changed_decisions"], same["divergence"]) == (0, 0)


def test_a_bias_moves_the_load(api: PublicApi) -> None:
    answer = api.what_if("How many mg?", bias={"code": 2.0})
    assert answer["after"]["load"]["code"] > answer["before"]["load"]["code"] + 0.1


def test_compare_says_how_it_aligned(api: PublicApi) -> None:
    same = api.compare("How many mg?")
    assert (same["alignment"], same["divergence"], same["changed_decisions"]) == ("token", 0, 0)
    fewer = api.compare("How many mg?", k_b=1)
    assert fewer["alignment"] == "token"
    assert fewer["divergence"] > 0
    assert sum(fewer["gate_change"].values()) == pytest.approx(0, abs=1e-3)
    # Like the page, without the tokens of the chat template.
    a, b = (api._run("How many mg?", DEFAULT_MIXER, k, 0) for k in (0, 1))
    change = compare(a, b).change()
    assert fewer["divergence"] == pytest.approx(change.jsd_share * np.log(2), abs=1e-4)
    assert fewer["changed_decisions"] == pytest.approx(change.leader_changed, abs=1e-4)
    assert fewer["pairs"] == api.route("How many mg?")["measured_tokens"]
    other = api.compare("How many mg?", "How many grams of it?")
    assert other["alignment"] == "word"
    assert other["pairs"] > 0
    topics = api.compare(find_example("math").prompt, find_example("medical").prompt)
    assert (topics["alignment"], topics["pairs"]) == ("span", 1)


def test_metrics_of_a_file_need_no_model(api: PublicApi, tmp_path: Path) -> None:
    trace = make_trace(layers=3, written=4)
    answer = api.metrics(trace=str(trace.save(tmp_path / "trace.npz")))
    assert api.source.requests == []  # type: ignore[attr-defined]
    assert [row["layer"] for row in answer["layers"]] == [0, 1, 2]
    assert [row["projection"] for row in answer["projections"]] == list(trace.projections)
    for expert in EXPERTS:
        mean = sum(row["load"][expert] for row in answer["layers"]) / 3
        assert mean == pytest.approx(answer["load"][expert], abs=2e-4)


@pytest.mark.parametrize(
    ("endpoint", "arguments", "words"),
    [
        ("route", {"prompt": ""}, "prompt is empty"),
        ("route", {"prompt": "x", "mixer": "nobody"}, "no known router"),
        ("generate", {"prompt": "x", "k": 9}, "choose a number from 1 to 4"),
        ("generate", {"prompt": "x", "max_new_tokens": 10_000}, "choose from 0 to"),
        ("what_if", {"prompt": "x", "mask": ["nobody"]}, "no expert 'nobody'"),
        ("what_if", {"prompt": "x", "temperature": 0.0}, "above 0"),
        ("what_if", {"prompt": "x", "mask": list(EXPERTS)}, "leave at least one"),
        ("metrics", {"prompt": "x", "trace": "x.npz"}, "give one of them"),
        ("metrics", {"prompt": ""}, "prompt is empty"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    api: PublicApi, endpoint: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(gr.Error, match=words):
        getattr(api, endpoint)(**arguments)


def test_a_file_that_is_no_trace_is_refused(api: PublicApi, tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    path.write_bytes(b"PK no trace")
    with pytest.raises(gr.Error, match=r"^'trace\.npz is no routing trace"):
        api.metrics(trace=str(path))


def test_nothing_else_is_public(tmp_path: Path) -> None:
    from explorer.layout import build

    demo = build(FakeSource(), Recordings(tmp_path))
    dependencies = demo.get_config_file()["dependencies"]
    public = {found["api_name"] for found in dependencies if found["api_visibility"] != "private"}
    assert public == PUBLIC


@pytest.fixture(scope="module")
def client(synthetic_page_url: str) -> Any:
    from gradio_client import Client

    return Client(synthetic_page_url, verbose=False)


def test_a_program_sees_names_types_and_defaults(client: Any) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {f"/{name}" for name in PUBLIC}
    for name, endpoint in endpoints.items():
        assert endpoint["description"].endswith("."), name
        for parameter in endpoint["parameters"]:
            assert parameter["type"], (name, parameter)
            assert not parameter["parameter_name"].startswith("param_"), (name, parameter)
        required = {found["parameter_name"] for found in endpoint["parameters"] if not found["parameter_has_default"]}
        assert required <= {"prompt", "prompt_a", "trace"}, name


def test_a_program_gets_answers(client: Any, tmp_path: Path) -> None:
    from gradio_client import handle_file

    assert set(client.predict("How many mg?", api_name="/route")["load"]) == set(EXPERTS)
    assert client.predict(prompt="How many mg?", max_new_tokens=3, api_name="/generate")["text"].startswith(" Each")
    assert client.predict("How many mg?", mask=["math"], api_name="/what_if")["after"]["load"]["math"] == 0
    assert client.predict("How many mg?", k_b=1, api_name="/compare")["divergence"] > 0
    assert client.predict("How many mg?", api_name="/metrics")["measured_tokens"] > 0
    trace = make_trace(layers=2).save(tmp_path / "trace.npz")
    answer = client.predict(prompt="", trace=handle_file(trace), api_name="/metrics")
    assert len(answer["layers"]) == 2


def test_a_caller_cannot_name_a_file_of_the_server(synthetic_page_url: str) -> None:
    """By plain HTTP, since the client would upload the file of its own machine."""
    path = str(Path(__file__).resolve().parents[2] / "explorer/traces/code.npz")
    call = f"{synthetic_page_url}gradio_api/call/metrics"
    data = json.dumps({"data": ["", {"path": path, "meta": {"_type": "gradio.FileData"}}, "", 0]}).encode()
    request = urllib.request.Request(call, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=60) as response:
        lines = response.read().decode()
    assert "event: error" in lines
    assert "layers" not in lines


def test_the_example_of_the_page_runs(synthetic_page_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/explorer.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert "http://127.0.0.1:7860" in code
    exec(compile(code.replace("http://127.0.0.1:7860", synthetic_page_url), "docs/explorer.md", "exec"), {})
    assert NOTE in capsys.readouterr().out


def test_the_page_names_the_endpoints_that_exist() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/explorer.md").read_text(encoding="utf-8")
    section = page.partition("## For programs")[2].partition("```")[0]
    assert set(re.findall(r"`(\w+)`", section)) >= PUBLIC


def test_the_end_of_an_answer_is_not_counted() -> None:
    trace = make_trace()
    special = np.array(trace.tokens.special)
    special[-1] = True
    ended = replace(trace, tokens=replace(trace.tokens, special=special))
    before, after = summarise(trace), summarise(ended)
    assert after["measured_tokens"] == len(after["tokens"]) == before["measured_tokens"] - 1
    assert after["tokens"] == before["tokens"][:-1]
    assert after["load"] != before["load"]
    changed = replace(ended, gates=np.concatenate([ended.gates[:, :-1], ended.gates[:, -1:, ::-1]], axis=1))
    assert describe_change(ended, changed) == {"changed_decisions": 0.0, "divergence": 0.0}


def test_a_router_that_is_off_is_left_out() -> None:
    trace = make_trace()
    rules = {"site_gates": [{"sites": ".*", "gate": "off"}]}
    gates = np.concatenate([np.zeros_like(trace.gates[:1]), trace.gates[1:]])
    off = replace(trace, gates=gates, provenance={**trace.provenance, **rules})
    assert (
        describe_change(off, trace) == describe_change(trace, trace) == {"changed_decisions": 0.0, "divergence": 0.0}
    )
    counted = [position for position, role in enumerate(trace.tokens.roles) if role != "template"]
    largest = trace.gates[1:].mean(axis=0).max(axis=-1)[counted]
    assert [token["gate"] for token in summarise(off)["tokens"]] == pytest.approx(largest.tolist(), abs=1e-4)
