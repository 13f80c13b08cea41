"""Gold spans: which part of an example prompt is about which topic, and the tokens that lie in it."""

from __future__ import annotations

from explorer.examples import EXAMPLES, ExamplePrompt
from explorer.summary import prompt_text
from loramixer.data.schema import Span
from loramixer.spans import spans_in_trace, tokens_of_spans
from loramixer.trace import RoutingTrace


def gold_spans(example: ExamplePrompt) -> tuple[Span, ...]:
    """The topics of an example as spans of its prompt; empty unless it crosses domains."""
    spans, start = [], 0
    for topic in example.topics:
        start = example.prompt.index(topic.text, start)
        spans.append(Span(start, start + len(topic.text), topic.expert))
        start += len(topic.text)
    return tuple(spans)


def gold_experts(trace: RoutingTrace) -> list[int]:
    """For each token the index of the expert whose topic it is about, −1 for none.

    Only prompts of the examples have marked topics, and only topics that are experts of the trace count. Empty when
    there are none, or fewer than two, for a single topic has no border to follow.
    """
    prompt = prompt_text(trace).strip()
    example = next((example for example in EXAMPLES if example.prompt.strip() == prompt), None)
    spans = () if example is None else gold_spans(example)
    if example is None or sum(span.domain in trace.experts for span in spans) < 2:
        return []
    experts = [trace.experts.index(span.domain) if span.domain in trace.experts else -1 for span in spans]
    found = tokens_of_spans(trace.tokens, spans_in_trace(trace, example.prompt, spans))
    return [experts[span] if span >= 0 else -1 for span in found.tolist()]
