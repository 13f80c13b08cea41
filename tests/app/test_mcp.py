"""The public endpoints as tools of an MCP server: what a model is shown of them, and calls by a real client."""

from __future__ import annotations

import asyncio
import base64
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from gradio import utils

from explorer.api import PublicApi
from explorer.layout import build, launch_options
from explorer.recordings import Recordings
from explorer.serving import MCP_VARIABLE
from tests.app.conftest import launch
from tests.app.synthetic import EXPERTS, FakeSource, make_trace
from tests.app.test_api import PUBLIC
from tests.availability import unavailable

REQUIRED = {"route": ["prompt"], "generate": ["prompt"], "compare": ["prompt_a"], "what_if": ["prompt"], "metrics": []}
LONGEST_REPLY = 60


# ---------------------------------------------------------------- needs no MCP package: Gradio makes tools from these


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_gradio_reads_every_docstring_whole(name: str) -> None:
    """It reads Args and Returns line by line, so a wrapped line loses its second half without a word."""
    endpoint = getattr(PublicApi, name)
    description, parameters, returns = utils.get_function_description(endpoint)
    parameters.pop("self")
    assert description.endswith(".")
    assert set(parameters) == set(inspect.signature(endpoint).parameters) - {"self"}
    for parameter, text in parameters.items():
        assert text.endswith("."), f"{name}: the description of {parameter} is cut or missing: {text!r}"
    assert len(returns) == 1, f"{name}: Gradio joins the lines of Returns with commas: {returns}"
    assert returns[0].endswith(".")


def test_every_parameter_has_a_type_and_only_prompts_are_required(tmp_path: Path) -> None:
    demo = build(FakeSource(), Recordings(tmp_path))
    endpoints = demo.get_api_info()["named_endpoints"]
    assert {name.lstrip("/") for name in endpoints} == PUBLIC
    for name, required in REQUIRED.items():
        parameters = endpoints[f"/{name}"]["parameters"]
        assert all(_kinds(parameter["type"]) for parameter in parameters), name
        assert [found["parameter_name"] for found in parameters if not found["parameter_has_default"]] == required


def _kinds(schema: dict[str, Any]) -> set[str]:
    """The JSON types that a schema allows."""
    kinds = {schema["type"]} if "type" in schema else set()
    return kinds.union(*(_kinds(entry) for entry in schema.get("oneOf", [])))


# ---------------------------------------------------------------- with the package, and a client that speaks MCP


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page, started as ``LORAMIXER_MCP=1`` starts it."""
    if find_spec("mcp") is None:
        unavailable("The MCP server was not tried: mcp is not installed (pip install 'loramixer[mcp]').")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MCP_VARIABLE, "1")
        options = launch_options()
    demo = build(FakeSource(seconds=0.05), Recordings(tmp_path_factory.mktemp("no-traces")))
    url = launch(demo, options)
    yield url
    demo.close()


def _ask(server: str, *calls: tuple[str, dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """The tools that a client lists, and the results of its calls."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def session() -> tuple[list[Any], list[Any]]:
        address = f"{server}gradio_api/mcp/"
        async with (
            streamable_http_client(address) as (reading, writing, _),
            ClientSession(reading, writing) as client,
        ):
            await client.initialize()
            tools = (await client.list_tools()).tools
            return tools, [await client.call_tool(name, arguments) for name, arguments in calls]

    # In a thread of its own: the browser of other tests leaves a running event loop in this one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(asyncio.wait_for(session(), LONGEST_REPLY))).result()


def test_the_tools_are_the_public_endpoints(server: str) -> None:
    tools, _ = _ask(server)
    assert {tool.name for tool in tools} == PUBLIC
    for tool in tools:
        properties = tool.inputSchema["properties"]
        assert tool.inputSchema.get("required", []) == REQUIRED[tool.name]
        assert set(properties) == set(inspect.signature(getattr(PublicApi, tool.name)).parameters) - {"self"}
        assert all(entry["description"].endswith(".") for entry in properties.values()), tool.name
        assert tool.description.endswith(".")


def test_a_model_calls_the_tools(server: str, tmp_path: Path) -> None:
    _, (routed, changed, compared, measured) = _ask(
        server,
        ("route", {"prompt": "How many mg?"}),
        ("what_if", {"prompt": "How many mg?", "mask": ["math"], "bias": {"code": 2.0}}),
        ("compare", {"prompt_a": "How many mg?", "k_b": 1}),
        ("metrics", {"prompt": "How many mg?"}),
    )
    for result in (routed, changed, compared, measured):
        assert not result.isError, result.content[0].text
    for expert in EXPERTS:
        assert f"'{expert}': " in routed.content[0].text
    assert "'after': " in changed.content[0].text
    assert "'alignment': 'token'" in compared.content[0].text
    assert "'layers': " in measured.content[0].text


def test_what_cannot_be_done_is_one_sentence(server: str) -> None:
    _, (empty, unknown) = _ask(server, ("route", {"prompt": ""}), ("route", {"prompt": "x", "mixer": "nobody"}))
    assert empty.isError
    assert empty.content[0].text == "The prompt is empty; type a question or an instruction."
    assert "known are smollm2-135m/rsl" in unknown.content[0].text


def test_a_model_cannot_name_a_file_of_the_server(server: str, tmp_path: Path) -> None:
    trace = make_trace(layers=2).save(tmp_path / "trace.npz")
    addresses = [str(trace), trace.as_uri(), f"{server}gradio_api/file={trace}"]
    _, results = _ask(server, *(("metrics", {"trace": address}) for address in addresses))
    for result in results:
        assert result.isError
        assert "layers" not in result.content[0].text


def test_a_trace_travels_inside_the_call(server: str, tmp_path: Path) -> None:
    data = base64.b64encode(make_trace(layers=2).save(tmp_path / "trace.npz").read_bytes()).decode()
    _, (result,) = _ask(server, ("metrics", {"trace": f"data:application/octet-stream;base64,{data}"}))
    assert not result.isError, result.content[0].text
    assert result.content[0].text.count("'layer': ") == 2
