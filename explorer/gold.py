"""Gold spans: which part of an example prompt is about which topic, and the tokens that lie in it."""

from __future__ import annotations

from explorer.examples import EXAMPLES, ExamplePrompt
from explorer.summary import prompt_text
from loramixer.data.schema import Span
from loramixer.spans import spans_in_trace, tokens_of_spans
from loramixer.trace import RoutingTrace


def gold_spans(example: ExamplePrompt) -> tuple[Span, ...]:
    """The topics of an example as spans of its prompt: one span where it has a single topic."""
    if not example.topics:
        return (Span(0, len(example.prompt), example.expert),) if example.expert else ()
    spans, start = [], 0
    for topic in example.topics:
        start = example.prompt.index(topic.text, start)
        spans.append(Span(start, start + len(topic.text), topic.expert))
        start += len(topic.text)
    return tuple(spans)


def spans_of(trace: RoutingTrace) -> tuple[Span, ...]:
    """The topics of a trace's prompt as spans of its whole text; only prompts of the examples have marked topics."""
    prompt = prompt_text(trace).strip()
    example = next((example for example in EXAMPLES if example.prompt.strip() == prompt), None)
    return () if example is None else spans_in_trace(trace, example.prompt, gold_spans(example))


def gold_experts(trace: RoutingTrace) -> list[int]:
    """For each token the index of the expert whose topic it is about, −1 for none.

    Only topics that are experts of the trace count. Empty when there are none, or fewer than two, for a single topic
    has no border to follow.
    """
    spans = spans_of(trace)
    if sum(span.domain in trace.experts for span in spans) < 2:
        return []
    experts = [trace.experts.index(span.domain) if span.domain in trace.experts else -1 for span in spans]
    found = tokens_of_spans(trace.tokens, spans)
    return [experts[span] if span >= 0 else -1 for span in found.tolist()]
