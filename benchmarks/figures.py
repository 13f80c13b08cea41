"""Writes the page of figures, docs/figures.md, and one small picture for each: `python benchmarks/figures.py`.

Every picture is made by the very call that stands under it, from one prompt that two routers read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loramixer import RoutingTrace, load_mixer, trace, viz
from loramixer.data.schema import Span
from loramixer.metrics import PlanePoint, shuffled_token_band
from loramixer.mixers import mixer_folder
from loramixer.spans import spans_in_trace
from loramixer.training.run_log import RunLog

MATH = "A patient takes 250 mg three times a day for 7 days. How many mg is that?"
MEDICAL = " And what are the side effects of amoxicillin?"
DOCS = Path(__file__).parents[1] / "docs"

FIGURES = [
    (
        "token_map",
        "viz.token_map(routing)",
        "Who takes each token in each layer. Other measures: `entropy`, `margin`, or the name of an expert. "
        "`projection`, `layers`, `roles`, `template`, `unit` and `how` choose the part, in every figure of a trace.",
    ),
    ("entropy", 'viz.token_map(routing, "entropy", unit="word")', "How undecided the routers are, word by word."),
    ("expert_maps", "viz.expert_maps(routing)", "One map for each expert, on one scale."),
    ("load_bars", "viz.load_bars(routing)", "How much of the weight each expert gets, layer by layer."),
    (
        "token_card",
        "viz.token_card(routing, token)",
        "One token in every layer and projection; logits, ranks and leads are under the pointer.",
    ),
    (
        "agreement_matrix",
        "viz.agreement_matrix(routing)",
        "How often the routers of two projections of a layer put the same expert first.",
    ),
    (
        "contribution_map",
        'viz.contribution_map(routing, routing.experts[0], roles="prefill")',
        "The gate beside what the expert really added; the trace is recorded with `contributions=True`.",
    ),
    (
        "difference_map",
        'viz.difference_map(routing, other, routing.experts[0], names=("RSL", "balance"))',
        "One expert’s gate under two routers. Where tokens differ, equal words or gold spans are compared, and the "
        "subtitle says so.",
    ),
    ("divergence", 'viz.difference_map(routing, other, names=("RSL", "balance"))', "How far apart two routers are."),
    (
        "span_confusion",
        "viz.span_confusion(routing, spans)",
        "Gold spans of a prompt that crosses domains, against the experts.",
    ),
    (
        "plane",
        "viz.plane(points, bands=bands, paths=paths)",
        "How decided single tokens are against how even the load is: two routers on this prompt, the box where half "
        "as many tokens of the prompt fall, drawn at random, and the way of each router through its training.",
    ),
    (
        "training_curves",
        "viz.training_curves(logs)",
        "The task, every term of the loss, and what became of the routing; of one run log or of several.",
    ),
]
"""Name of the picture, the call that makes it, and what it shows."""

HEAD = """# Figures

`from loramixer import viz` has every view of the explorer and the notebooks as a function. Figures are Plotly figures:
interactive in a page, and written without a browser by these:

| function | gives |
|---|---|
| `viz.show(figure)` | in a notebook: interactive, with a picture and a sentence for hosts that show no Plotly |
| `viz.watch(folder)` | in a notebook: curves and path of a router training, drawn anew while the block runs |
| `viz.themed(figure, "dark")` | a copy with the ink of a dark page, for interactive display |
| `viz.to_png(figure, width, height, scale, theme)` | PNG bytes of an exact size, for a light or a dark page |
| `viz.to_small_png(figure)` | PNG bytes with a palette, for notebooks and documents |
| `viz.to_svg(figure)` | SVG text |
| `viz.to_html(figures, title, provenance)` | one HTML file with pictures and their numbers; no script, no network |
| `viz.figure_tables(figure)` | the numbers of a figure as tables of text |
| `viz.trace_table(trace, …)` | the numbers of a part of a trace as a tidy data frame |
| `viz.recipe(trace, "token_map", {…})` | a Python script that makes the view again |
| `viz.text_lane(trace)`, `viz.text_lane_plain(trace)` | the words with their experts, as safe HTML or for a terminal |
| `viz.text_difference(a, b)`, `viz.text_difference_plain(a, b)` | two answers as one, with what differs marked |

Experts have letters and fixed Okabe–Ito colours, magnitudes are cividis, differences run from blue over nothing to
orange. Titles name the number of tokens, the layers and the projections that are shown. `viz.figure_text(figure)`
gives title and subtitle as a text. Bad arguments get a `FigureError` of one sentence.

The pictures below show one prompt, read by two routers: `%s` and `%s`. This page is written by
`python benchmarks/figures.py`.
"""


def main() -> None:
    """Trace the prompt twice, draw, and write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--mixer", default="smollm2-135m/rsl")
    options.add_argument("--other", default="smollm2-135m/load-balance")
    options.add_argument("--new-tokens", type=int, default=0, help="how much the model writes")
    options.add_argument("--output", type=Path, default=DOCS)
    found = options.parse_args()
    write_page(scene(found.mixer, found.other, found.new_tokens), found.output, found.mixer, found.other)


def scene(mixer: str, other: str, new_tokens: int) -> dict[str, Any]:
    """The names that the calls on the page use."""
    prompt = MATH + MEDICAL
    spans = [Span(0, len(MATH), "math"), Span(len(MATH), len(prompt), "medical")]
    traces = {name: _traced(name, prompt, new_tokens) for name in (mixer, other)}
    logs = {name.rpartition("/")[2]: RunLog.load(mixer_folder(name)) for name in traces}
    routing = traces[mixer]
    experts = len(routing.experts)
    texts = [routing.tokens[position] for position in range(len(routing.tokens))]
    own = routing.select(roles=("prompt", "generated"))[1]
    return {
        "viz": viz,
        "routing": routing,
        "other": traces[other],
        "token": next(index for index, text in enumerate(texts) if "effects" in text),
        "spans": spans_in_trace(routing, prompt, spans),
        "points": {name.rpartition("/")[2]: found for name, found in traces.items()},
        "bands": {mixer.rpartition("/")[2]: shuffled_token_band(routing.gates[:, own], int(own.sum()) // 2)},
        "paths": {
            name: [
                PlanePoint(row["token_entropy"], row["load_entropy"], experts)
                for row in log.steps
                if row.get("token_entropy") is not None and row.get("load_entropy") is not None
            ]
            for name, log in logs.items()
        },
        "logs": logs,
    }


def write_page(names: dict[str, Any], docs: Path, mixer: str, other: str) -> None:
    """Draw every figure of :data:`FIGURES` and write ``figures.md`` beside their folder."""
    folder = docs / "images" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [HEAD % (mixer, other)]
    for name, call, words in FIGURES:
        figure = eval(call, dict(names))  # the calls of this file
        (folder / f"{name}.png").write_bytes(viz.to_small_png(figure))
        title = viz.figure_text(figure).partition(" — ")[0]
        parts.append(f"## {title}\n\n{words}\n\n```python\n{call}\n```\n\n![{title}](images/figures/{name}.png)\n")
    (docs / "figures.md").write_text("\n".join(parts), encoding="utf-8")


def _traced(mixer: str, prompt: str, new_tokens: int) -> RoutingTrace:
    model, tokenizer = load_mixer(mixer)
    return trace(model, tokenizer, prompt, new_tokens, contributions=True)


if __name__ == "__main__":
    main()
