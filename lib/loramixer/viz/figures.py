"""Figures of the experiments, from the rows of their CSV files; plotly in a page, :func:`loramixer.viz.svg.to_svg` on
disk.

Every axis states its range and ticks, so that both draw the same. Text is in a grey that is legible on white and on
black, backgrounds are transparent, and settings are told apart by letters as well as by colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from loramixer.viz.canvas import axes, axis_name, canvas, error_bars, round_scale
from loramixer.viz.drawing import DASHES
from loramixer.viz.palette import NEUTRAL, ExpertStyle, expert_styles
from loramixer.viz.planes import add_band, add_path, add_point, empty_plane

Row = dict[str, Any]


SCALE = ("#E8F1F8", "#0072B2")
"""Ends of heat maps; texts on them are black or white."""


def dashes(colours: Sequence[str]) -> list[str | None]:
    """A dash for the line of each colour: lines beyond the palette share one grey, and differ in this alone."""
    patterns = (None, *DASHES)
    greys = accumulate(colour == NEUTRAL for colour in colours)
    return [
        patterns[min(number, len(patterns)) - 1] if colour == NEUTRAL else None
        for colour, number in zip(colours, greys, strict=True)
    ]


def losses_figure(summary: Sequence[Row], gate: str) -> go.Figure:
    """Dots with intervals per setting: test loss under a gate; own-expert share, mutual information (soft gates)."""
    panels = [
        ("loss", f"test loss, {_words(gate)}, nats per token"),
        ("own_share", "own-expert share"),
        ("mutual_information", "I(token; expert), nats"),
    ]
    return _dots(_loss_and_routing(summary, gate), panels, f"Routing losses on the same rows ({_sizes(summary)})")


def choice_figure(summary: Sequence[Row], gate: str) -> go.Figure:
    """Dots with intervals per candidate: test loss under the shipped gate, mutual information, load entropy."""
    panels = [
        ("loss", f"test loss, {_words(gate)}, nats per token"),
        ("mutual_information", "I(token; expert), nats"),
        ("load_entropy", "H(p̄), nats"),
    ]
    return _dots(_loss_and_routing(summary, gate), panels, f"Candidates for RSL ({_sizes(summary)})")


def loads_figure(summary: Sequence[Row]) -> go.Figure:
    """Load of every expert under every setting."""
    rows = _plain(summary, "soft")
    experts = [name.removeprefix("load_") for name in _names(rows, "quantity") if _is_load(name)]
    panels = [(f"load_{name}", f"load of {name}") for name in experts]
    return _dots(rows, panels, f"Load of the experts ({_sizes(summary)})", colours=expert_styles(experts))


def domain_shares_figure(summary: Sequence[Row]) -> go.Figure:
    """Where the tokens of each domain go: a heat map of domains by experts for every setting; darker is more.

    The tokens of a text that routes to its own expert lie on the diagonal, which is what the other shares leave.
    """
    rows = _plain(summary, "soft")
    cells = {(row["setting"], row["quantity"]): row for row in rows if str(row["quantity"]).startswith("share_of_")}
    styles = expert_styles([name.removeprefix("load_") for name in _names(rows, "quantity") if _is_load(name)])
    domains = [style for style in styles if f"own_share_{style.name}" in _names(rows, "quantity")]
    seeds = {setting: f"{row['seeds']:.0f} seed{'s' * (row['seeds'] > 1)}" for (setting, _), row in cells.items()}
    shares: dict[str, list[list[float]]] = {}
    for setting in seeds:
        shares[setting] = [
            [cells[setting, f"share_of_{expert.name}_in_{domain.name}"]["value"] if expert != domain else 0.0
             for expert in styles]
            for domain in domains
        ]  # fmt: skip
        for row_of_domain, domain in zip(shares[setting], domains, strict=True):
            row_of_domain[styles.index(domain)] = 1 - sum(row_of_domain)
    across, down = min(3, len(shares)), math.ceil(len(shares) / 3)
    alike = next(iter(seeds.values())) if len(set(seeds.values())) == 1 else "seeds as named"
    title = f"Where the tokens of each domain go (n = {rows[0]['rows']:.0f} rows, {alike})"
    figure = canvas(title, 150 + across * 54 * len(styles), 130 + down * (40 + 30 * len(domains)), left=120, right=20)
    highest = max(value for values in shares.values() for line in values for value in line)
    letters = [style.letter for style in styles]
    for number, (setting, values) in enumerate(shares.items()):
        line, column = divmod(number, 3)
        ends = (column / across + 0.01, (column + 1) / across - 0.01)
        heights = (1 - (line + 1) / down + 0.035, 1 - line / down - 0.13 / down)
        names = [f"{style.name} {style.letter}" if column == 0 else "" for style in domains]
        texts = [[f"{value:.2f}" for value in row] for row in values]
        _heat_map(figure, number + 1, values, texts, letters, names,
                  ends=(0, highest), reverse=True, across=ends, up=heights)  # fmt: skip
        text = setting if alike in seeds.values() else f"{setting}, {seeds[setting]}"
        _panel_title(figure, text, ends, heights[1] + 0.03)
    return figure


def oracle_figure(summary: Sequence[Row]) -> go.Figure:
    """Loss of backbone, mean of all experts, router and oracle; all domains and each."""
    rows = [row for row in summary if not row["against"]]
    domains = [name.removeprefix("loss_") for name in _names(rows, "quantity") if str(name).startswith("loss_")]
    panels = [("loss", "all domains"), *((f"loss_{name}", name) for name in domains)]
    return _dots(rows, panels, f"Test loss between backbone and oracle, nats per token ({_sizes(summary)})")


def top_k_figure(summary: Sequence[Row], settings: Mapping[tuple[str, float], str]) -> go.Figure:
    """Loss by experts per token, all domains and each; of several settings, one line each for all domains together.

    Args:
        summary: rows of losses under top-k gates.
        settings: ``(setting, examples)`` → its name, of all settings in ``summary``.
    """
    rows = [row for row in summary if not row["against"] and str(row["quantity"]).split("_")[0] == "loss"]
    names = [str(name).removeprefix("loss_") for name in _names(rows, "quantity")]
    styles = {style.name: style for style in expert_styles([name for name in names if name != "loss"])}
    counts = [int(str(gate).removeprefix("top_")) for gate in _names(rows, "gate")]
    lines = []
    if len(settings) > 1:
        whole = [row for row in rows if row["quantity"] == "loss"]
        for group, own in zip(settings, expert_styles(list(settings.values())), strict=True):
            found = [row for row in whole if (row["setting"], row["examples"]) == group]
            lines.append((f"{own.letter} {own.name}", own.colour, _by_count(found)))
    else:
        for name in names:
            found = [row for row in rows if row["quantity"] in (name, f"loss_{name}")]
            style = styles.get(name)
            label, colour = ("all domains", NEUTRAL) if style is None else (f"{style.letter} {name}", style.colour)
            lines.append((label, colour, _by_count(found)))
    ticks = [(count, str(count)) for count in sorted(counts)]
    return _lines(lines, ticks, "experts per token", "test loss, nats per token", f"Top-k ({_sizes(summary)})")


def _by_count(rows: Sequence[Row]) -> list[tuple[float, float, float | None, float | None]]:
    """``(k, value, low, high)`` of losses under top-k gates, by k."""
    points = [(int(str(row["gate"]).removeprefix("top_")), row["value"], row["low"], row["high"]) for row in rows]
    return sorted(points, key=lambda point: point[0])


def data_size_figure(summary: Sequence[Row], gate: str) -> go.Figure:
    """Loss by number of training rows under a gate, one line per setting."""
    rows = [row for row in _plain(summary, gate) if row["quantity"] == "loss"]
    lines = []
    for style in expert_styles(_names(rows, "setting")):
        points = sorted(
            (math.log2(row["examples"]), row["value"], row["low"], row["high"])
            for row in rows
            if row["setting"] == style.name
        )
        lines.append((f"{style.letter} {style.name}", style.colour, points))
    ticks = [(math.log2(size), f"{size:,.0f}") for size in sorted(set(row["examples"] for row in rows))]
    title = f"Rows that a router needs ({_sizes(summary)})"
    return _lines(lines, ticks, "training rows", f"test loss, {_words(gate)}, nats per token", title)


def balance_curve_figure(steps: Sequence[Row]) -> go.Figure:
    """The balance term K Σ p̄ f̄ by share of the training, mean over seeds; 1 is an even load."""
    steps = [row for row in steps if row["balance"] is not None]
    lines = []
    for style in expert_styles(_names(steps, "setting")):
        own = [row for row in steps if row["setting"] == style.name]
        points = []
        for share in sorted({row["share"] for row in own}):
            values = [row["balance"] for row in own if row["share"] == share]
            points.append((share, _mean(values), min(values), max(values)))
        lines.append((f"{style.letter} {style.name}", style.colour, points))
    ticks = [(share / 4, f"{share / 4:.0%}") for share in range(5)]
    seeds = len({row["seed"] for row in steps})
    title = f"Balance term while training ({seeds} seed{'s' * (seeds > 1)}; bars: smallest and largest seed)"
    return _lines(lines, ticks, "share of the training", "K Σ p̄ f̄", title)


def convergence_figure(steps: Sequence[Row]) -> go.Figure:
    """KL to the minimiser by step, one line per objective and seed, and the bound of Theorem 1 (b)."""
    rows = [row for row in steps if row["kl"] is not None and row["kl"] > 1e-12]
    lines = []
    for style in expert_styles(_names(rows, "setting")):
        own = [row for row in rows if row["setting"] == style.name]
        for seed in _names(own, "seed"):
            found = [row for row in own if row["seed"] == seed]
            points = [(row["step"], math.log10(row["kl"]), None, None) for row in found]
            lines.append((style.name if seed == own[0]["seed"] else "", style.colour, points))
    first = [row for row in rows if row["seed"] == rows[0]["seed"] and row["setting"] == rows[0]["setting"]]
    bound = [
        (row["step"], math.log10(first[0]["kl"]) + row["step"] * math.log10(row["bound"]), None, None) for row in first
    ]
    lines.append(("bound (1 − ηλ) per step", NEUTRAL, bound))
    last = max(row["step"] for row in rows)
    ticks = [(last * part / 4, f"{last * part / 4:.0f}") for part in range(5)]
    seeds = len(set(row["seed"] for row in rows))
    title = f"Descent on F_S: distance to its minimum ({seeds} seed{'s' * (seeds > 1)})"
    figure = _lines(lines, ticks, "step", "mean KL(P* ‖ P), nats", title)
    low, high = figure.layout.yaxis.range
    powers = range(math.ceil(low), math.floor(high) + 1, max(1, round((high - low) / 6)))
    figure.update_yaxes(tickvals=list(powers), ticktext=[f"1e{power}" for power in powers])
    return figure


def scaling_figure(rows: Sequence[Row], *, title: str = "What more experts cost in time") -> go.Figure:
    """Time over that of a mixture of six experts, by number of experts, with 95 % intervals.

    Args:
        rows: of ``benchmarks/scaling.py``: measure, experts, ratio and its interval; one rank and one k.
        title: of the figure.
    """
    styles = expert_styles(_names(rows, "measure"))
    lines = []
    for style in styles:
        own = sorted((row for row in rows if row["measure"] == style.name), key=lambda row: row["experts"])
        points = [(math.log2(row["experts"]), row["ratio"], row["ratio_low"], row["ratio_high"]) for row in own]
        lines.append((f"{style.letter} {style.name}", style.colour, points))
    ticks = [(math.log2(count), str(count)) for count in sorted({row["experts"] for row in rows})]
    return _lines(lines, ticks, "experts", "time against six experts", title)


def expert_matrix_figure(rows: Sequence[Row]) -> go.Figure:
    """Heat map of test loss, experts by domains; darker is lower."""
    experts, domains = _names(rows, "expert"), _names(rows, "domain")
    cells = {(row["expert"], row["domain"]): row["loss"] for row in rows}
    values = [[cells.get((expert, domain)) for domain in domains] for expert in experts]
    title = f"Test loss of every expert alone, nats per token (n = {rows[0]['rows']:.0f} per domain)"
    figure = canvas(title, 200 + 110 * len(domains), 130 + 40 * len(experts), left=130, right=30)
    # The colour says how much worse than the best expert of the domain, since domains differ in difficulty.
    best = [min(line[index] or math.inf for line in values) for index in range(len(domains))]
    shades = [[None if v is None else best[i] - v for i, v in enumerate(line)] for line in values]
    worst = min(value for line in shades for value in line if value is not None)
    _heat_map(figure, 1, shades, _texts(values), domains, experts, ends=(worst, 0), reverse=True)
    return figure


def grid_figure(runs: Sequence[Row]) -> go.Figure:
    """Heat maps over α and λ: a line of panels for each sign; means over seeds; darker is more.

    Runs of several learning rates or numbers of training rows are never averaged: those of the rate and number with
    the most runs are drawn, the first of them where several have equally many, and the title says which these are.
    """
    alike: dict[tuple[float, float], list[Row]] = {}
    for row in runs:
        alike.setdefault((row["learning_rate"], row["examples"]), []).append(row)
    (rate, examples), runs = max(alike.items(), key=lambda found: len(found[1]))
    panels: list[tuple[str, str]] = [
        ("loss_soft", "test loss (soft gates)"),
        ("token_entropy", "token entropy, nats"),
        ("mutual_information", "I(token; expert), nats"),
        ("load_variance", "load variance"),
    ]
    balance = sorted({row["balance_weight"] for row in runs})
    entropy = sorted({row["entropy_weight"] for row in runs})
    seeds = len({row["seed"] for row in runs})
    title = f"α (across) × λ (up), means of {seeds} seed{'s' * (seeds > 1)}, n = {runs[0]['test_rows']:.0f} rows"
    if len(alike) > 1:
        title += f"; learning rate {rate:g}, {examples:,.0f} training rows"
    figure = canvas(title, 1120, 170 + 2 * (60 + 40 * len(entropy)), left=70, right=20)
    signs = ("sharpen", "flatten")
    names = [f"{value:g}" for value in balance], [f"{value:g}" for value in entropy]
    for column, (quantity, label) in enumerate(panels):
        both = [_cells(runs, quantity, sign, balance, entropy) for sign in signs]
        flat = [value for values in both for line in values for value in line if value is not None]
        for line, (sign, values) in enumerate(zip(signs, both, strict=True)):
            across = (column / len(panels) + 0.02, (column + 1) / len(panels) - 0.02)
            up = (0.56, 0.93) if line == 0 else (0.03, 0.40)
            number = line * len(panels) + column + 1
            ends = min(flat), max(flat)  # one scale for both signs, so that their shades can be compared
            _heat_map(figure, number, values, _texts(values), *names, across=across, up=up, ends=ends)
            _panel_title(figure, f"{sign}: {label}", across, up[1] + 0.04)
    return figure


def _panel_title(figure: go.Figure, text: str, across: tuple[float, float], up: float) -> None:
    """A text over the middle of a panel."""
    figure.add_annotation(
        x=sum(across) / 2, y=up, xref="paper", yref="paper", text=text, showarrow=False, xanchor="center"
    )


def _cells(
    runs: Sequence[Row], quantity: str, sign: str, balance: Sequence[float], entropy: Sequence[float]
) -> list[list[float | None]]:
    """Mean over seeds of every cell, λ by α; λ = 0 has no sign and belongs to both."""
    found: dict[tuple[float, float], list[float]] = {}
    for row in runs:
        if row[quantity] is not None and (row["entropy"] == sign or not row["entropy_weight"]):
            found.setdefault((row["balance_weight"], row["entropy_weight"]), []).append(row[quantity])
    return [[_mean(found.get((alpha, weight), [])) for alpha in balance] for weight in entropy]


def plane_figure(points: Sequence[Row], paths: Sequence[Row], others: Sequence[Row] = ()) -> go.Figure:
    """The entropy–balance plane: every setting with intervals, its shuffled-token band, and its training paths.

    Args:
        points: one row for each setting.
        paths: steps of trainings, of settings in ``points``.
        others: single routers with other settings and sizes, which are small dots.
    """
    sizes = f"n = {points[0]['rows']:.0f} texts, {points[0]['tokens']:,.0f} tokens, {points[0]['seeds']:.0f} seed"
    sizes += "s" * (points[0]["seeds"] > 1)
    tokens = {row["band_tokens"] for row in points if row.get("band_tokens") is not None}
    counts = "/".join(f"{count:.0f}" for count in sorted(tokens))
    figure = empty_plane(f"Routers on the entropy–balance plane ({sizes})", f"Boxes: {counts} shuffled tokens")
    styles = {style.name: style for style in expert_styles(_names(points, "setting"))}
    for row in points:
        if row.get("band_undecided_low") is None:
            continue
        ends = (row["band_undecided_low"], row["band_undecided_high"])
        heights = (row["band_balanced_low"], row["band_balanced_high"])
        add_band(figure, ends, heights, styles[row["setting"]], row["band_tokens"])
    own_dashes = dashes([style.colour for style in styles.values()])
    for (setting, style), dash in zip(styles.items(), own_dashes, strict=True):
        for seed in _names([row for row in paths if row["setting"] == setting], "seed"):
            steps = [row for row in paths if (row["setting"], row["seed"]) == (setting, seed)]
            places = [(row["undecided"], row["balanced"]) for row in steps]
            add_path(figure, places, style, f"{setting}, seed {seed:.0f}, while training", dash=dash)
    if others:
        texts = [
            f"{row['setting']}, {row['examples']:,.0f} training rows, seed {row['seed']:.0f}: token entropy "
            f"{row['undecided']:.3f}, load entropy {row['balanced']:.3f}"
            for row in others
        ]
        figure.add_trace(
            go.Scatter(
                x=[row["undecided"] for row in others], y=[row["balanced"] for row in others], mode="markers",
                marker={"color": NEUTRAL, "size": 5}, hovertext=texts, hoverinfo="text",
                name=f"{len(others)} other routers",
            )
        )  # fmt: skip
    for row in points:
        across = row["undecided"], row["undecided_low"], row["undecided_high"]
        add_point(figure, styles[row["setting"]], across, (row["balanced"], row["balanced_low"], row["balanced_high"]))
    return figure


def _dots(
    rows: Sequence[Row], panels: Sequence[tuple[str, str]], title: str, colours: Sequence[ExpertStyle] | None = None
) -> go.Figure:
    """Panels side by side that share their settings; ``colours`` gives each panel its own instead of each setting."""
    styles = expert_styles(_names(rows, "setting"))
    panels = [panel for panel in panels if any(row["quantity"] == panel[0] for row in rows)]
    longest = max((len(style.name) for style in styles), default=0)
    figure = canvas(title, 120 + 7 * longest + 230 * len(panels), 130 + 30 * len(styles), 50 + 7 * longest, 20)
    heights = {style.name: len(styles) - index for index, style in enumerate(styles)}
    for number, (quantity, label) in enumerate(panels, start=1):
        found = [row for row in rows if row["quantity"] == quantity]
        for row in found:
            style = next(style for style in styles if style.name == row["setting"])
            colour = colours[number - 1].colour if colours else style.colour
            figure.add_trace(
                go.Scatter(
                    x=[row["value"]], y=[heights[row["setting"]]], mode="markers", marker={"color": colour, "size": 9},
                    error_x=error_bars([(row["value"], row["low"], row["high"])]), showlegend=False,
                    hovertext=f"{row['setting']}: {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
                    xaxis=axis_name("x", number), yaxis=axis_name("y", number),
                )
            )  # fmt: skip
        names = [(heights[style.name], f"{style.letter} {style.name}" if number == 1 else "") for style in styles]
        low, high, ticks = round_scale([row["low"] for row in found] + [row["high"] for row in found])
        across = ((number - 1) / len(panels) + 0.015, number / len(panels) - 0.015)
        axes(figure, number, (low, high), ticks, label, (0.4, len(styles) + 0.6), names, "", across)
    return figure


def _lines(
    lines: Sequence[tuple[str, str, Sequence[tuple[float, float, float | None, float | None]]]],
    ticks: Sequence[tuple[float, str]],
    x_title: str,
    y_title: str,
    title: str,
) -> go.Figure:
    """Lines of ``(x, value, low, high)`` with their names in a legend; without ends there are no bars or dots."""
    figure = canvas(title, 820, 420, left=70, right=240)
    seen = []
    own_dashes = dashes([colour for _, colour, _ in lines])
    for (name, colour, points), dash in zip(lines, own_dashes, strict=True):
        barred = any(low is not None for _, _, low, _ in points)
        seen += [value for point in points for value in point[1:] if value is not None]
        figure.add_trace(
            go.Scatter(
                x=[point[0] for point in points], y=[point[1] for point in points],
                mode="lines+markers" if barred and len(points) < 20 else "lines", name=name or None,
                showlegend=bool(name), line={"color": colour, "width": 2, "dash": dash},
                marker={"color": colour, "size": 7},
                error_y=error_bars([point[1:] for point in points]) if barred else None,
            )
        )  # fmt: skip
    places = [place for place, _ in ticks]
    room = (max(places) - min(places) or 1) * 0.04
    low, high, up = round_scale(seen)
    axes(figure, 1, (min(places) - room, max(places) + room), ticks, x_title, (low, high), up, y_title)
    return figure


def _heat_map(
    figure: go.Figure, number: int, values: Any, texts: Any, across_names: Sequence[str],
    up_names: Sequence[str], *, ends: tuple[float, float], reverse: bool = False, across: tuple[float, float] = (0, 1),
    up: tuple[float, float] = (0, 1),
) -> None:  # fmt: skip
    """One panel; ``reverse`` puts the first line on top, ``ends`` are the values of the lightest and darkest shade."""
    order = (lambda items: list(items)[::-1]) if reverse else list
    figure.add_trace(
        go.Heatmap(
            x=list(range(len(across_names))), y=list(range(len(up_names))), z=order(values), text=order(texts),
            texttemplate="%{text}", colorscale=[[0, SCALE[0]], [1, SCALE[1]]], zmin=ends[0],
            zmax=ends[1], showscale=False, xaxis=axis_name("x", number), yaxis=axis_name("y", number),
        )
    )  # fmt: skip
    axes(
        figure, number, (-0.5, len(across_names) - 0.5), list(enumerate(across_names)), "",
        (-0.5, len(up_names) - 0.5), list(enumerate(order(up_names))), "", across, up,
    )  # fmt: skip


def _loss_and_routing(summary: Sequence[Row], gate: str) -> list[Row]:
    """Losses under one gate, and everything else under soft gates."""
    losses = [row for row in _plain(summary, gate) if row["quantity"] == "loss"]
    return [*losses, *(row for row in _plain(summary, "soft") if row["quantity"] != "loss")]


def _words(gate: str) -> str:
    """``top-3`` or ``soft gates``."""
    return "soft gates" if gate == "soft" else gate.replace("_", "-")


def _plain(summary: Sequence[Row], gate: str) -> list[Row]:
    """The numbers of one gate that are not differences."""
    return [row for row in summary if not row["against"] and row["gate"] == gate]


def _sizes(summary: Sequence[Row]) -> str:
    """What every title says: rows, seeds, and what the intervals cover."""
    first = max(summary, key=lambda row: row["seeds"])
    seeds = f"up to {first['seeds']:.0f} seeds" if first["seeds"] > 1 else "1 seed"
    single = next((row["covers"] for row in summary if row["seeds"] == 1 and row["covers"] != first["covers"]), None)
    apart = f", of single seeds over {single}" if single else ""
    return f"n = {first['rows']:.0f} rows, {seeds}; 95 % over {first['covers']}{apart}"


def _names(rows: Sequence[Row], field: str) -> list[Any]:
    return list(dict.fromkeys(row[field] for row in rows))


def _is_load(name: str) -> bool:
    return name.startswith("load_") and name not in ("load_entropy", "load_variance")


def _texts(values: Sequence[Sequence[float | None]]) -> list[list[str]]:
    return [["" if value is None else f"{value:.3f}" for value in line] for line in values]


def _mean(values: Sequence[float]) -> Any:
    return sum(values) / len(values) if values else None
