"""One HTML file with pictures, their numbers and where they come from; it needs no server, script or network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from loramixer.viz.drawing import shown_text
from loramixer.viz.palette import PAGES
from loramixer.viz.svg import to_svg
from loramixer.viz.tables import FigureTable, figure_tables

STRIP = ("backbone", "mixer", "title", "loss", "gate", "k", "seed", "temperature", "dtype", "created")
"""Facts of the provenance that are shown at once; the others are folded away."""

_STYLE = f"""
:root {{ color-scheme: light dark; --page: {PAGES["light"].background}; --ink: {PAGES["light"].ink}; --line: #8884; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: {PAGES["dark"].background}; --ink: {PAGES["dark"].ink}; }}
}}
body {{ margin: 1.5rem auto; max-width: 110rem; padding: 0 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.25rem; }}
dl {{ display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: 0 0 1rem; font-size: .8125rem; }}
dl div {{ overflow-wrap: anywhere; }}
dt {{ display: inline; opacity: .8; }} dt::after {{ content: ": "; }} dd {{ display: inline; margin: 0; }}
figure {{ margin: 0 0 1.5rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .75rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; padding: .5rem 0 .25rem; }}
th, td {{ padding: .125rem .375rem; border-bottom: 1px solid var(--line); text-align: right; font-weight: 400;
  white-space: pre; }}
th:first-child {{ text-align: left; }}
summary {{ cursor: pointer; }}
"""


def to_html(
    figures: Any,
    title: str = "LoRA-Mixer",
    provenance: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Figures as one page: inline pictures, a table of the numbers under each, light or dark as the reader prefers.

    Args:
        figures: a figure of this package, or several.
        title: of the page.
        provenance: what produced the numbers, such as ``trace.provenance``.
        notes: sentences above the figures.

    Returns:
        The text of the file; every text that came from a model or a user is escaped.
    """
    shown = list(figures) if isinstance(figures, list | tuple) else [figures]
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        # Whatever a text says, the page runs nothing and asks nobody.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>",
    ]
    parts += [f"<p>{escape(note)}</p>" for note in notes]
    if provenance:
        parts.append(_strip(provenance))
    parts += [_figure(figure) for figure in shown]
    return "\n".join([*parts, "</body>\n</html>\n"])


def flat_provenance(provenance: Mapping[str, Any], head: str = "") -> dict[str, str]:
    """Nested facts as ``outer.inner`` → text, those that say nothing left out."""
    flat: dict[str, str] = {}
    for name, value in provenance.items():
        if isinstance(value, Mapping):
            flat |= flat_provenance(value, f"{head}{name}.")
        elif value is not None and value != "":
            flat[f"{head}{name}"] = str(value)
    return flat


def _strip(provenance: Mapping[str, Any]) -> str:
    facts = flat_provenance(provenance)
    first = {name: facts.pop(name) for name in STRIP if name in facts}
    folded = f"<details><summary>More about how this was made</summary>{_facts(facts)}</details>" if facts else ""
    return _facts(first) + folded


def _facts(facts: Mapping[str, str]) -> str:
    return (
        "<dl>"
        + "".join(
            f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(value)}</dd></div>"
            for name, value in facts.items()
        )
        + "</dl>"
    )


def _figure(figure: Any) -> str:
    name = escape(shown_text(figure.layout.title.text or ""))
    tables = "".join(_table(table) for table in figure_tables(figure))
    return (
        f'<figure aria-label="{name}">\n<div class="wide" tabindex="0">{to_svg(figure, theme="page")}</div>\n'
        f"<figcaption><details><summary>The numbers of “{name}”</summary>\n"
        f'<div class="wide" tabindex="0">{tables}</div></details></figcaption>\n</figure>'
    )


def _table(table: FigureTable) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>\n'
        for row in table.rows
    )
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>\n"
