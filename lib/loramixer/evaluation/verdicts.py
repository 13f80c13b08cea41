"""What the numbers say about each claim: held, not held or undecided, by rules that are the same whoever reads them.

A difference counts only when its 95 % interval lies on one side of 0; each rule says in its docstring what it
compares. Intervals are not corrected for the number of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]
Status = Literal["held", "not held", "undecided"]

UNIFORM = 0.95
"""Token entropy over log K from which gates count as uniform."""

MARGIN = 0.01
"""Nats per answer token by which a loss may be above another one and still count as no worse."""

SPECIALISATION = {"mutual_information": "I(token; expert)", "own_share": "the own expert's share"}
"""What a router that specialises has more of."""


@dataclass(frozen=True)
class Verdict:
    """One claim and what became of it.

    Attributes:
        claim: in words, with its setting.
        status: what the rule gives.
        numbers: what was measured.
    """

    claim: str
    status: Status
    numbers: str

    def __str__(self) -> str:
        return f"**{self.status}** – {self.claim}: {self.numbers}."


def below(row: Row, bound: float = 0.0) -> Status:
    """Whether a number lies below a bound: its whole interval does, its whole interval does not, or neither.

    A number without an interval, of one seed whose rows were not drawn again, decides nothing.
    """
    if row.get("covers") == "nothing":
        return "undecided"
    if row["high"] < bound:
        return "held"
    return "not held" if row["low"] >= bound else "undecided"


def above(row: Row, bound: float = 0.0) -> Status:
    """The reverse of :func:`below`."""
    if row.get("covers") == "nothing":
        return "undecided"
    if row["low"] > bound:
        return "held"
    return "not held" if row["high"] <= bound else "undecided"


def printed(row: Row, scale: float = 1.0) -> str:
    """``0.123 [0.100, 0.150]``, or ``0.123`` of a number without an interval."""
    value, low, high = (row[name] / scale for name in ("value", "low", "high"))
    return f"{value:.3f}" if row.get("covers") == "nothing" else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def table_line(head: str, rows: Sequence[Row | None]) -> list[str]:
    """A line of a table: its head, with the number of training seeds where there are several, and every number.

    A number that stands on fewer seeds than the others of its line says so.
    """
    seeds = max((int(row["seeds"]) for row in rows if row is not None), default=1)
    cells = ["–" if row is None else _cell(row, seeds) for row in rows]
    return [f"{head} ({seeds} seeds)" if seeds > 1 else head, *cells]


def _cell(row: Row, seeds: int) -> str:
    fewer = int(row["seeds"])
    return printed(row) + (f" ({fewer} seed{'s' * (fewer > 1)})" if fewer < seeds else "")


def sizes(row: Row) -> str:
    """How many seeds and rows stand behind a number, and what its interval covers."""
    rows = f", {row['rows']:.0f} rows" if row.get("rows") else ""
    covers = "without an interval" if row["covers"] == "nothing" else f"interval over {row['covers']}"
    return f"{row['seeds']:.0f} seed{'s' * (row['seeds'] > 1)}{rows}, {covers}"


def find(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """The first row with these fields; ``against=None`` is a plain number."""
    return next((row for row in rows if all(row.get(name) == value for name, value in wanted.items())), None)


def setting_names(rows: Sequence[Row]) -> dict[tuple[str, float], str]:
    """``(setting, examples)`` → its name, in order of appearance; with the examples where these differ."""
    groups = dict.fromkeys((row["setting"], row["examples"]) for row in rows)
    several = len({examples for _, examples in groups if examples is not None}) > 1
    return {
        (setting, examples): f"{setting}, {examples:,.0f} training rows" if several and examples else setting
        for setting, examples in groups
    }


def named(rows: Sequence[Row]) -> list[Row]:
    """The rows with settings by the names of :func:`setting_names`, for tables and figures with one line for each."""
    names = setting_names(rows)
    return [{**row, "setting": names[row["setting"], row["examples"]]} for row in rows]


def of_one_size(rows: Sequence[Row]) -> list[Row]:
    """The rows with the number of training rows that most settings have, the larger one where two have as many.

    For rules that look for the best of several settings, which must have been trained on equally many rows.
    """
    settings: dict[float, set[str]] = {}
    for row in rows:
        settings.setdefault(row["examples"] or 0, set()).add(row["setting"])
    most = max(settings, key=lambda examples: (len(settings[examples]), examples), default=None)
    return [row for row in rows if (row["examples"] or 0) == most]


def expert_names(rows: Sequence[Row]) -> list[str]:
    """The experts, from the loads in a summary."""
    loads = dict.fromkeys(str(row["quantity"]) for row in rows if str(row["quantity"]).startswith("load_"))
    return [name.removeprefix("load_") for name in loads if name not in ("load_entropy", "load_variance")]


def expert_count(rows: Sequence[Row]) -> int:
    """K, from the loads in a summary."""
    return len(expert_names(rows))


def shipped_gate(rows: Sequence[Row]) -> str:
    """The top-k gate with the most experts, which is the one that ships."""
    counts = [int(str(row["gate"]).removeprefix("top_")) for row in rows if str(row["gate"]).startswith("top_")]
    return f"top_{max(counts)}"


def gate_words(gate: str) -> str:
    """``top-3`` or ``soft gates``."""
    return "soft gates" if gate == "soft" else gate.replace("_", "-")


def _collapse_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Whether each load balance that stands alone ends with the same gates for all experts."""
    verdicts = []
    for row in rows:
        plain = row["against"] is None and row["quantity"] == "token_entropy"
        if plain and str(row["setting"]).startswith("load balance"):
            width = math.log(expert_count(rows))
            share = {**row, **{name: row[name] / width for name in ("value", "low", "high")}}
            verdicts.append(
                Verdict(
                    f"{row['setting']} (K Σ p̄ f̄) alone ends with uniform gates, E[H] / log K above {UNIFORM:g}",
                    _uniform(share),
                    f"E[H] / log K = {printed(share)} ({sizes(row)})",
                )
            )
    return verdicts


AT_ONCE: dict[str, tuple[str, Callable[[Row], Status]]] = {
    "load_variance": ("load variance", below),
    "mutual_information": ("I(token; expert)", above),
    "loss": ("test loss", below),
}
"""What a routing loss should improve together, on soft gates, and the side on which it is better."""


def _all_at_once_verdict(rows: Sequence[Row]) -> list[Verdict]:
    """Whether RSL has a more even load, more mutual information and a lower loss than no routing loss, all of them."""
    verdicts = []
    for loss in rows:
        ours = str(loss["setting"]).startswith("RSL sharpen") and _against_no_loss(loss)
        if not ours or loss["quantity"] != "loss" or loss["gate"] != "soft":
            continue
        same = {name: loss[name] for name in ("setting", "examples", "gate", "against")}
        found = [(words, rule, find(rows, quantity=name, **same)) for name, (words, rule) in AT_ONCE.items()]
        judged = [(words, row, rule(row)) for words, rule, row in found if row is not None]
        if len(judged) < len(AT_ONCE):
            continue
        claim = f"{loss['setting']} improves load, I(token; expert) and loss (soft gates) on none, all at once"
        parts = ", ".join(f"{words} {printed(row)} ({status})" for words, row, status in judged)
        numbers = f"differences: {parts} ({sizes(loss)})"
        verdicts.append(Verdict(claim, _of_all([status for *_, status in judged]), numbers))
    return verdicts


def _of_all(statuses: Sequence[Status]) -> Status:
    """Held when each of several claims is, and not held when any is not."""
    return "held" if set(statuses) == {"held"} else "not held" if "not held" in statuses else "undecided"


def losses_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Collapse of load balance, which sign specialises, whether RSL improves load, mutual information and loss at
    once, and RSL's loss below that of every other loss, under the shipped gate and under soft ones."""
    verdicts = _collapse_verdicts(rows)
    for row in rows:
        what = SPECIALISATION.get(row["quantity"])
        if what and str(row["setting"]).startswith("RSL") and _against_no_loss(row):
            verdicts.append(
                Verdict(
                    f"{row['setting']} specialises: {what} is above that without a routing loss",
                    above(row),
                    f"difference {printed(row)} ({sizes(row)})",
                )
            )
    verdicts += _all_at_once_verdict(rows)
    for gate in (shipped_gate(rows), "soft"):
        for row in rows:
            ours = str(row["setting"]).startswith("RSL sharpen") and row["against"] is not None
            if ours and row["quantity"] == "loss" and row["gate"] == gate:
                verdicts.append(
                    Verdict(
                        f"{row['setting']} has a lower test loss than {row['against']} ({gate_words(gate)})",
                        below(row),
                        f"difference {printed(row)} nats per token ({sizes(row)})",
                    )
                )
    return verdicts


def _against_no_loss(row: Row) -> bool:
    """Whether a number is a difference from no routing loss at the same learning rate and with as many rows.

    A setting names its rate where it is not the usual one; no loss at another rate is no fair comparison.
    """
    _, named, rate = str(row["setting"]).partition(", learning rate ")
    return row["against"] == f"none{named}{rate}"


CHOICE = (
    f"Of the candidates whose test loss under the shipped gate lies at most {MARGIN:g} nats above the lowest one, the "
    "one with the highest mutual information between token and expert ships."
)
"""The rule by which :func:`chosen` names the RSL that ships; it looks at means, not at intervals."""


def chosen(rows: Sequence[Row]) -> tuple[Row, Row] | None:
    """The candidate that ships: its loss under the shipped gate and its mutual information; None without numbers."""
    gate = shipped_gate(rows)
    plain = of_one_size([row for row in rows if row["against"] is None])
    losses = [row for row in plain if row["quantity"] == "loss" and row["gate"] == gate]
    found = [
        (loss, information)
        for loss in losses
        if (information := find(plain, setting=loss["setting"], quantity="mutual_information"))
        and loss["value"] <= min(row["value"] for row in losses) + MARGIN
    ]
    return max(found, key=lambda pair: pair[1]["value"], default=None)


def grid_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Collapse of load balance by its weight, and over all cells what each sign does to token entropy, loss and mutual
    information, against no loss and each other."""
    verdicts = sorted(_collapse_verdicts(rows), key=lambda verdict: float(verdict.claim.split()[2].rstrip(",")))
    checks: list[tuple[str, str, str, Callable[[Row], Status]]] = [
        ("sharpen lowers the token entropy against no routing loss", "sharpen", "token_entropy", below),
        ("flatten lowers the token entropy against no routing loss", "flatten", "token_entropy", below),
        ("sharpen lowers the test loss against no routing loss", "sharpen", "loss", below),
        ("flatten lowers the test loss against no routing loss", "flatten", "loss", below),
    ]
    for claim, sign, quantity, rule in checks:
        found = [
            row for row in rows
            if sign in str(row["setting"]) and _against_no_loss(row) and row["quantity"] == quantity
            and row["gate"] == "soft"
        ]  # fmt: skip
        verdicts += _counted(claim, found, rule)
    verdicts += _one_best_cell_verdict(rows)
    apart = [row for row in rows if "flatten" in str(row["against"]) and row["quantity"] == "mutual_information"]
    verdicts += _counted("sharpen has more I(token; expert) than flatten with the same weights", apart, above)
    return verdicts


def _one_best_cell_verdict(rows: Sequence[Row]) -> list[Verdict]:
    """Whether one cell has the evenest load, the most mutual information and the lowest loss, all on soft gates.

    By the numbers alone, without their intervals; a loss within :data:`MARGIN` of the lowest counts as the lowest.
    """
    plain = of_one_size([row for row in rows if row["against"] is None and row["gate"] == "soft"])
    columns = {
        quantity: {row["setting"]: row["value"] for row in plain if row["quantity"] == quantity}
        for quantity in AT_ONCE
    }
    loss, variance, information = (columns[name] for name in ("loss", "load_variance", "mutual_information"))
    if not (loss and variance and information):
        return []
    lowest, evenest = (min(found, key=found.__getitem__) for found in (loss, variance))
    most = max(information, key=information.__getitem__)
    is_one = evenest == most and loss[most] <= loss[lowest] + MARGIN
    cells = [
        f"{name} ({loss[name]:.3f}; {information[name]:.3f}; {variance[name]:.4f})" for name in (lowest, most, evenest)
    ]
    first = next(row for row in plain if row["quantity"] == "loss")
    numbers = (
        f"lowest loss {cells[0]}, most information {cells[1]}, evenest load {cells[2]}, in brackets loss, information "
        f"and load variance ({sizes(first)})"
    )
    claim = "one cell is the best in load, I(token; expert) and loss (soft gates) at once"
    return [Verdict(claim, "held" if is_one else "not held", numbers)]


def _counted(claim: str, rows: Sequence[Row], rule: Callable[[Row], Status]) -> list[Verdict]:
    """Held when every cell holds it, not held when any cell denies it."""
    if not rows:
        return []
    found = [rule(row) for row in rows]
    low, high = min(row["value"] for row in rows), max(row["value"] for row in rows)
    counts = ", ".join(f"{name} in {found.count(name)}" for name in ("held", "not held", "undecided"))
    return [
        Verdict(
            claim,
            _of_all(found),
            f"{counts} of {len(rows)} cells; differences from {low:.3f} to {high:.3f} ({sizes(rows[0])})",
        )
    ]


def data_size_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """RSL with n rows against others with 2 n: no worse when the interval ends below the margin; and at equal n."""
    verdicts = []
    gate = shipped_gate(rows)
    for row in rows:
        if row["against"] is None or row["quantity"] != "loss" or row["gate"] != gate:
            continue
        halved = str(row["against"]).endswith("examples")
        if halved:
            claim = f"RSL needs half the data: {row['examples']:.0f} rows with it are no worse than {row['against']}"
            status: Status = "held" if row["high"] <= MARGIN else "not held" if row["low"] > MARGIN else "undecided"
        else:
            claim = f"RSL has a lower test loss than {row['against']} at {row['examples']:.0f} rows"
            status = below(row)
        verdicts.append(Verdict(claim, status, f"difference {printed(row)} nats per token ({sizes(row)})"))
    return sorted(verdicts, key=lambda verdict: not verdict.claim.startswith("RSL needs"))


def top_k_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """One expert more per token lowers the loss; the paper says so up to 3, and the reverse above.

    Claims name their setting where there are several.
    """
    names = setting_names(rows)
    heads = {group: f"{name}: " if len(names) > 1 else "" for group, name in names.items()}
    return [
        Verdict(
            f"{heads[row['setting'], row['examples']]}k = {row['gate'][4:]} has a lower test loss "
            f"than k = {row['against'][4:]}",
            below(row),
            f"difference {printed(row)} nats per token ({sizes(row)})",
        )
        for row in rows
        if row["against"] is not None and row["quantity"] == "loss"
    ]


def balance_curve_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """The balance term of the last tenth of the training is below that of the first."""
    return [
        Verdict(
            f"{row['setting']}: the balance term falls while training",
            below(row),
            f"last tenth − first tenth {printed(row)} ({sizes(row)})",
        )
        for row in rows
        if row["part"] == "last − first" and row["quantity"] == "balance"
    ]


def convergence_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """KL shrinks at least by 1 − ηλ in every step; where the descent ends."""
    verdicts = []
    for row in rows:
        if row["quantity"] == "largest_ratio":
            verdicts.append(
                Verdict(
                    f"{row['setting']}: KL(P* ‖ P) shrinks in every step at least by the factor of Theorem 1 (b)",
                    below(row, row["bound"]),
                    f"largest factor {row['value']:.5f} [{row['low']:.5f}, {row['high']:.5f}], "
                    f"promised {row['bound']:.5f} ({sizes(row)})",
                )
            )
    ends: list[tuple[str, str, Callable[[Row], Status]]] = [
        ("flatten", "the objective as printed, without a task loss, ends at uniform gates", _uniform),
        ("sharpen", "the objective that the text describes ends at decided tokens", _decided),
    ]
    for setting, claim, rule in ends:
        end = find(rows, setting=setting, quantity="token_entropy")
        if end is not None:
            numbers = f"E[H] / log K = {printed(end)} after {end['steps']:.0f} steps ({sizes(end)})"
            verdicts.append(Verdict(f"{setting}: {claim}", rule(end), numbers))
    return verdicts


def _uniform(share: Row) -> Status:
    return above(share, UNIFORM)


def _decided(share: Row) -> Status:
    return below(share, 1 - UNIFORM)


def oracle_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """The router's mean loss is below the backbone's and above the oracle's; the gap to both is printed."""
    verdicts = []
    for against, rule, word in (("backbone alone", below, "below"), ("oracle", above, "above")):
        row = next(
            (row for row in rows if row["quantity"] == "loss" and str(row["against"] or "").startswith(against)), None
        )
        if row is not None:
            router = f"{row['setting']} ({gate_words(row['gate'])})"
            claim = f"{router} has a mean test loss {word} that of {row['against']}"
            verdicts.append(Verdict(claim, rule(row), f"gap {printed(row)} nats per token ({sizes(row)})"))
    return verdicts
