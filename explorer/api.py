"""The public endpoints: what programs call, by ``gradio_client`` or as MCP tools. All other events are private.

Names, parameters and docstrings here are what a caller sees, so they change only with the version of the package.
Gradio reads the docstrings line by line: what stands under Args and Returns must fit on one line each, or a model that
calls the tools is shown half of it.
"""

from __future__ import annotations

import uuid
from collections import deque
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.files import read_trace_file
from explorer.gold import spans_of
from explorer.registry import ModelSource
from explorer.sessions import Tickets
from explorer.settings import (
    DEFAULT_MIXER,
    DEFAULT_NEW_TOKENS,
    RunRequest,
    check_new_tokens,
    check_prompt,
    parse_gate,
)
from explorer.summary import describe_change, describe_comparison, describe_routing, summarise
from loramixer.comparison import compare
from loramixer.errors import LoraMixerError, TraceError
from loramixer.trace import RoutingTrace
from loramixer.whatif import NOTE, what_if


class PublicApi:
    """The endpoints over a source of models.

    Args:
        source: what can be run.
        tickets: where a call is counted while it runs, so that visitors of the page hear of it.
    """

    def __init__(self, source: ModelSource, tickets: Tickets | None = None) -> None:
        self.source = source
        self.tickets = tickets or Tickets()

    def add(self) -> None:
        """Give the endpoints to the page that is being built."""
        model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        for endpoint in (self.route, self.generate, self.compare, self.what_if):
            gr.api(endpoint, api_name=endpoint.__name__, **model)
        # Not by gr.api, which would open whatever path of the server a caller names; gr.File takes uploads only.
        inputs = [
            gr.Textbox("", label="prompt", visible=False),
            gr.File(label="trace", visible=False),
            gr.Textbox(DEFAULT_MIXER, label="mixer", visible=False),
            gr.Number(0, label="k", precision=0, visible=False),
        ]
        gr.Button(visible=False).click(self.metrics, inputs, gr.JSON(visible=False), api_name="metrics", **model)

    def route(self, prompt: str, mixer: str = DEFAULT_MIXER, k: int = 0) -> dict:
        """Say which LoRA experts a router would use for each token of a prompt, without generating anything.

        Undecided, balanced and specialised are from 0 to 1: how evenly single tokens spread over the experts, how
        evenly all of them together do, and the second less the first.

        Args:
            prompt: plain text; the chat template of the backbone is added. At most 512 tokens with it.
            mixer: name of the router, such as smollm2-135m/rsl; the error about a wrong name lists all of them.
            k: how many experts are mixed for one token, from 1 to all of them; 0 for the router's own number.

        Returns:
            The load of each expert, undecided, balanced, specialised, and the first expert of each token.
        """
        return _answer(lambda: summarise(self._run(prompt, mixer, k, 0)))

    def generate(
        self, prompt: str, mixer: str = DEFAULT_MIXER, k: int = 0, max_new_tokens: int = DEFAULT_NEW_TOKENS
    ) -> dict:
        """Let the model answer a prompt and report which experts its routers chose, for the prompt and the answer.

        Args:
            prompt: plain text; the chat template of the backbone is added. At most 512 tokens with it.
            mixer: name of the router, such as smollm2-135m/rsl; the error about a wrong name lists all of them.
            k: how many experts are mixed for one token, from 1 to all of them; 0 for the router's own number.
            max_new_tokens: longest answer in tokens, at most 256 (128 on a public server).

        Returns:
            The generated text and the same numbers as route.
        """
        return _answer(lambda: summarise(self._run(prompt, mixer, k, max_new_tokens)))

    def compare(
        self,
        prompt_a: str,
        prompt_b: str = "",
        mixer_a: str = DEFAULT_MIXER,
        mixer_b: str = DEFAULT_MIXER,
        k_a: int = 0,
        k_b: int = 0,
        max_new_tokens: int = 0,
    ) -> dict:
        """Run two prompts, or one prompt through two routers, and say how differently they were routed (B less A).

        Tokens are compared in pairs that belong together, and the answer says how these were found. The divergence of
        Jensen and Shannon is in nats, from 0 to 0.69.

        Args:
            prompt_a: plain text; the chat template of the backbone is added. At most 512 tokens with it.
            prompt_b: the other text; empty for the same one.
            mixer_a: name of the router that reads A, such as smollm2-135m/rsl.
            mixer_b: name of the router that reads B; it must have the same experts.
            k_a: experts per token in A; 0 for the router's own number.
            k_b: experts per token in B; 0 for the router's own number.
            max_new_tokens: how long an answer both runs write; 0 routes the prompts only.

        Returns:
            Both runs, the change of each expert's mean gate, the share of changed decisions, and the divergence.
        """

        def difference() -> dict[str, Any]:
            a = self._run(prompt_a, mixer_a, k_a, max_new_tokens)
            b = self._run(prompt_b if (prompt_b or "").strip() else prompt_a, mixer_b, k_b, max_new_tokens)
            return {
                "a": summarise(a),
                "b": summarise(b),
                **describe_comparison(compare(a, b, spans_of(a), spans_of(b))),
            }

        return _answer(difference)

    def what_if(
        self,
        prompt: str,
        mixer: str = DEFAULT_MIXER,
        k: int = 0,
        max_new_tokens: int = 0,
        temperature: float = 1.0,
        new_k: int = 0,
        mask: list[str] | None = None,
        bias: dict[str, float] | None = None,
    ) -> dict:
        """Ask what the routers would have chosen under other gate settings: routing only, text not regenerated.

        A decision is changed where another expert comes first. The divergence of Jensen and Shannon is in nats, from
        0 to 0.69.

        Args:
            prompt: plain text; the chat template of the backbone is added. At most 512 tokens with it.
            mixer: name of the router, such as smollm2-135m/rsl; the error about a wrong name lists all of them.
            k: experts per token of the run itself; 0 for the router's own number.
            max_new_tokens: how long an answer the run writes first; 0 routes the prompt only.
            temperature: divides the router's logits; below 1 sharpens, above 1 flattens.
            new_k: experts per token afterwards; 0 leaves k.
            mask: names of experts that may not be chosen.
            bias: expert name to what is added to its logits, in nats; 0.69 doubles its odds.

        Returns:
            The numbers before and after the change, the share of changed decisions, and the mean divergence.
        """

        def change() -> dict[str, Any]:
            before = self._run(prompt, mixer, k, max_new_tokens)
            after = what_if(before, k=new_k or None, temperature=temperature, mask=mask or (), bias=bias)
            return {
                "note": NOTE,
                "before": describe_routing(before),
                "after": describe_routing(after),
                **describe_change(before, after),
            }

        return _answer(change)

    def metrics(self, prompt: str = "", trace: str | None = None, mixer: str = DEFAULT_MIXER, k: int = 0) -> dict:
        """Give the numbers of a routing trace: of a trace file, or of a prompt that is routed now.

        The tokens of the chat template are left out. Undecided, balanced and specialised are from 0 to 1.

        Args:
            prompt: plain text that is routed, without generating; leave it empty when a file is given.
            trace: a saved trace file (.npz); tools give a public https: address, or the bytes as a data: address.
            mixer: name of the router that reads the prompt, such as smollm2-135m/rsl.
            k: experts per token for the prompt; 0 for the router's own number.

        Returns:
            Load, undecided, balanced and specialised, of the whole trace and of every layer and projection.
        """

        def numbers() -> dict[str, Any]:
            if trace and (prompt or "").strip():
                raise TraceError("Both a prompt and a trace file were given; give one of them.")
            found = read_trace_file(Path(trace)) if trace else self._run(prompt, mixer, k, 0)
            return {**describe_routing(found, by_site=True), "provenance": found.provenance}

        return _answer(numbers)

    def _run(self, prompt: str, mixer: str, k: int | None, max_new_tokens: int) -> RoutingTrace:
        """The whole trace of one run."""
        check_prompt(prompt)
        found = self.source.find(mixer)
        gate, checked = parse_gate(str(int(k or found.top_k)), len(found.experts))
        request = RunRequest(prompt, found.name, gate, checked, check_new_tokens(max_new_tokens))
        # A caller is no session of the page, and two calls of one must not stop each other.
        ticket = self.tickets.open(f"call {uuid.uuid4().hex}", "api")
        with self.tickets.claim(ticket.session, ticket.number):
            return deque(self.source.stream(request, ticket.stop), maxlen=1).pop()


def _answer(compute: Any) -> dict[str, Any]:
    """What ``compute`` returns; an expected error is its sentence, for the caller to read."""
    try:
        answer: dict[str, Any] = compute()
        return answer
    except LoraMixerError as error:
        # The caller's fault and told to the caller; a stack in the server's log would only hide real faults.
        raise gr.Error(str(error), print_exception=False) from error
