"""Tables, figures and verdicts of the experiments for pages, each from the CSV files that an experiment wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from loramixer.evaluation import verdicts
from loramixer.evaluation.csv_files import Row, read_csv
from loramixer.evaluation.experiments import data_size, grid
from loramixer.evaluation.experiments.plan import Options
from loramixer.evaluation.markdown import table
from loramixer.evaluation.verdicts import Verdict, find, gate_words, printed, shipped_gate, table_line

Maker = Callable[[Path], str]

ROUTING = {
    "token_entropy": "E[H]",
    "load_entropy": "H(p̄)",
    "mutual_information": "I(token; expert)",
    "domain_information": "I(domain; expert)",
    "own_share": "own-expert share",
    "load_variance": "load variance",
}
"""Quantities of routing, measured on soft gates, and their heads."""


def losses_table(folder: Path) -> str:
    """Loss and accuracy under every gate, and routing, one line per setting."""
    rows = read_csv(folder / "losses-summary.csv")
    gates = list(dict.fromkeys(row["gate"] for row in rows if row["quantity"] == "loss" and row["against"] is None))
    columns = [("loss", gate, f"loss, {gate.replace('_', '-')}") for gate in gates]
    columns += [
        ("accuracy", shipped_gate(rows), "accuracy"),
        *((name, "soft", head) for name, head in ROUTING.items()),
    ]
    return _settings(rows, columns)


def losses_domains_table(folder: Path) -> str:
    """Loss and accuracy of every domain under the shipped gate, and the own expert's share on soft gates."""
    rows = read_csv(folder / "losses-summary.csv")
    gate = shipped_gate(rows)
    columns = [(f"loss_{name}", gate, f"loss, {name}") for name in _parts(rows, "loss_")]
    columns += [(f"accuracy_{name}", gate, f"accuracy, {name}") for name in _parts(rows, "accuracy_")]
    columns += [(f"own_share_{name}", "soft", f"own share, {name}") for name in _parts(rows, "own_share_")]
    return _settings(rows, columns)


def losses_differences_table(folder: Path) -> str:
    """Paired differences of loss, RSL minus each other and each minus none; bold where the interval leaves 0 out."""
    rows = read_csv(folder / "losses-summary.csv")
    gate = shipped_gate(rows)
    apart = [row for row in rows if row["against"] is not None and str(row["quantity"]).startswith("loss")]
    columns = [("loss", "soft", "all, soft gates"), ("loss", gate, f"all, {gate_words(gate)}")]
    columns += [(f"loss_{name}", gate, f"{name}, {gate_words(gate)}") for name in _parts(rows, "loss_")]
    lines = []
    for setting, against in dict.fromkeys((row["setting"], row["against"]) for row in apart):
        own = [row for row in apart if (row["setting"], row["against"]) == (setting, against)]
        found = [find(own, quantity=quantity, gate=name) for quantity, name, _ in columns]
        head, *cells = table_line(f"{setting} − {against}", found)
        lines.append([head, *(_decided(cell, row) for cell, row in zip(cells, found, strict=True))])
    return table(["difference of loss", *(head for *_, head in columns)], lines)


def _decided(cell: str, row: Row | None) -> str:
    return f"**{cell}**" if row is not None and (row["low"] > 0 or row["high"] < 0) else cell


def token_shares_table(folder: Path) -> str:
    """Share of every domain in the test tokens beside the load of its expert: long answers draw load."""
    rows = read_csv(folder / "losses.csv")
    summary = read_csv(folder / "losses-summary.csv")
    domains = [str(name).removeprefix("test_tokens_") for name in rows[0] if str(name).startswith("test_tokens_")]
    total = sum(rows[0][f"test_tokens_{name}"] for name in domains)
    lines = [["share of the test tokens", *(f"{rows[0][f'test_tokens_{name}'] / total:.3f}" for name in domains)]]
    summary = verdicts.named([row for row in summary if row["against"] is None])
    for setting in dict.fromkeys(row["setting"] for row in summary):
        found = [find(summary, setting=setting, quantity=f"load_{name}") for name in domains]
        if any(found):
            lines.append(table_line(f"load, {setting}", found))
    return table(["", *domains], lines)


def domain_shares_table(folder: Path) -> str:
    """Share of every expert in the tokens of each domain, under what is called ``rsl``; files may not have it yet.

    Raises:
        FileNotFoundError: nothing was measured since shares are recorded.
    """
    rows = [row for row in read_csv(folder / "losses-summary.csv") if row["against"] is None and row["gate"] == "soft"]
    rows = [row for row in verdicts.named(rows) if row["setting"] == rows[0]["setting"]]
    if not any(str(row["quantity"]).startswith("share_of_") for row in rows):
        raise FileNotFoundError(folder / "losses-summary.csv")
    experts = verdicts.expert_names(rows)
    domains = [name for name in experts if find(rows, quantity=f"own_share_{name}")]
    cells = {
        domain: [
            find(rows, quantity=f"own_share_{domain}" if expert == domain else f"share_of_{expert}_in_{domain}")
            for expert in experts
        ]
        for domain in domains
    }
    lines = [table_line(domain, line) for domain, line in cells.items()]
    return table([f"{rows[0]['setting']}, tokens of", *experts], lines)


def choice_table(folder: Path) -> str:
    """Loss under the shipped gate, and routing, one line per candidate."""
    rows = read_csv(folder / "choice-summary.csv")
    gate = shipped_gate(rows)
    columns = [("loss", gate, f"loss, {gate_words(gate)}"), ("accuracy", gate, "accuracy")]
    return _settings(rows, [*columns, *((name, "soft", head) for name, head in ROUTING.items())])


def chosen_text(folder: Path) -> str:
    """The rule, and what it gives."""
    rows = verdicts.of_one_size(read_csv(folder / "choice-summary.csv"))
    found = verdicts.chosen(rows)
    candidates = list(dict.fromkeys(row["setting"] for row in rows))
    if found is None or len(candidates) < 2:
        return f"Measured so far: {', '.join(candidates)}; one candidate is no choice yet."
    loss, information = found
    return (
        f"**{loss['setting']}** ships, out of {', '.join(candidates)}: loss {printed(loss)} nats per token, "
        f"I(token; expert) {printed(information)} nats ({verdicts.sizes(loss)})."
    )


def grid_table(folder: Path) -> str:
    """Every cell of the grid by loss on soft gates; an order chosen on the test rows, so the top is optimistic."""
    rows = read_csv(folder / "grid-summary.csv")
    rows.sort(key=lambda row: row["value"] if row["quantity"] == "loss" and row["gate"] == "soft" else float("inf"))
    columns = [
        ("loss", "soft", "loss, soft"),
        ("loss", shipped_gate(rows), f"loss, {gate_words(shipped_gate(rows))}"),
    ]
    return _settings(rows, [*columns, *((name, "soft", head) for name, head in ROUTING.items())])


FEWER_EXPERTS = ("two-experts", "four-experts")
"""Folders, inside that of the results, of the experiment `choice` with some of the experts."""


def expert_count_table(folder: Path) -> str:
    """RSL sharpen by α, with some of the experts and with all; entropies and mutual information as shares of log K.

    Raises:
        FileNotFoundError: nothing has been measured with fewer experts, or not with all.
    """
    paths = [folder / name / "choice-summary.csv" for name in FEWER_EXPERTS]
    fewer = [read_csv(path) for path in paths if path.is_file()]
    if not fewer:
        raise FileNotFoundError(paths[0])
    candidates = dict.fromkeys(row["setting"] for rows in fewer for row in rows)
    lines = []
    for rows in [*fewer, read_csv(folder / "grid-summary.csv")]:
        plain = verdicts.of_one_size([row for row in rows if row["against"] is None])
        experts = verdicts.expert_count(plain)
        for setting in sorted(candidates, key=_balance_weight):
            found = [find(plain, setting=setting, quantity=name, gate="soft") for name in EXPERT_COUNT]
            if not any(found):
                continue
            scales = [math.log(experts) if name in OF_LOG_K else 1.0 for name in EXPERT_COUNT]
            cells = ["–" if row is None else printed(row, scale) for row, scale in zip(found, scales, strict=True)]
            alpha = _balance_weight(setting)
            lines.append([str(experts), f"{alpha:g}", f"{alpha * experts:g}", *cells])
    return table(["K", "α of K Σ p̄ f̄", "α of Σ p̄ f̄", *EXPERT_COUNT.values()], lines)


EXPERT_COUNT = {
    "token_entropy": "E[H] / log K",
    "load_entropy": "H(p̄) / log K",
    "mutual_information": "I(token; expert) / log K",
    "own_share": "own-expert share",
    "loss": "loss, soft",
}
"""Quantities that are compared between numbers of experts, and their heads."""

OF_LOG_K = ("token_entropy", "load_entropy", "mutual_information")


def _balance_weight(setting: str) -> float:
    """α of ``RSL sharpen α / λ``."""
    return float(setting.split()[2])


def data_size_table(folder: Path) -> str:
    """Loss by number of rows under the shipped gate, one column per setting."""
    rows = read_csv(folder / "data-size-summary.csv")
    gate = shipped_gate(rows)
    plain = [row for row in rows if row["against"] is None and row["quantity"] == "loss" and row["gate"] == gate]
    settings = list(dict.fromkeys(row["setting"] for row in plain))
    lines = []
    for size in sorted({row["examples"] for row in plain}):
        found = [find(plain, setting=setting, examples=size) for setting in settings]
        lines.append(table_line(f"{size:,.0f}", found))
    return table(["training rows", *settings], lines)


def top_k_table(folder: Path) -> str:
    """Loss by experts per token, one column per domain; lines name their setting where there are several."""
    rows = read_csv(folder / "top-k-summary.csv")
    plain = [row for row in rows if row["against"] is None]
    quantities = {"loss": "all domains", **{f"loss_{name}": name for name in _parts(plain, "loss_")}}
    names = verdicts.setting_names(plain)
    lines = []
    for (setting, examples), name in names.items():
        own = [row for row in plain if (row["setting"], row["examples"]) == (setting, examples)]
        for gate in dict.fromkeys(row["gate"] for row in own):
            found = [find(own, gate=gate, quantity=quantity) for quantity in quantities]
            count = gate.removeprefix("top_")
            lines.append(table_line(f"{name}, k = {count}" if len(names) > 1 else count, found))
    return table(["setting and k" if len(names) > 1 else "k", *quantities.values()], lines)


def balance_curve_table(folder: Path) -> str:
    """The balance term in the first and the last tenth of the training."""
    rows = [row for row in read_csv(folder / "balance-curve-summary.csv") if row["quantity"] == "balance"]
    parts = list(dict.fromkeys(row["part"] for row in rows))
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        found = [find(rows, setting=setting, part=part) for part in parts]
        lines.append(table_line(setting, found))
    return table(["K Σ p̄ f̄", *parts], lines)


def convergence_table(folder: Path) -> str:
    """Factors by which KL shrinks, the promised one, and where the descent ends."""
    rows = read_csv(folder / "convergence-summary.csv")
    heads = {
        "largest_ratio": "largest factor of KL per step",
        "last_ratio": "last factor",
        "token_entropy": "E[H] / log K at the end",
        "load_entropy": "H(p̄) / log K at the end",
    }
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        found = [find(rows, setting=setting, quantity=quantity) for quantity in heads]
        bound = next((f"{row['bound']:.5f}" for row in found if row and row["bound"] is not None), "–")
        lines.append([setting, bound, *("–" if row is None else f"{row['value']:.5f}" for row in found)])
    return table(["objective", "1 − ηλ", *heads.values()], lines)


def oracle_table(folder: Path) -> str:
    """Loss of the backbone, the mean of all experts, the router and the oracle, one column per domain."""
    rows = [row for row in read_csv(folder / "oracle-summary.csv") if row["against"] is None]
    quantities = {"loss": "all domains", **{f"loss_{name}": name for name in _parts(rows, "loss_")}}
    lines = []
    for setting in sorted(
        dict.fromkeys(row["setting"] for row in rows),
        key=lambda name: -_value(find(rows, setting=name, quantity="loss")),
    ):
        found = [find(rows, setting=setting, quantity=quantity) for quantity in quantities]
        lines.append(table_line(setting, found))
    return table(["loss, nats per token", *quantities.values()], lines)


def _value(row: Row | None) -> float:
    return 0.0 if row is None else row["value"]


def _settings(rows: Sequence[Row], columns: Sequence[tuple[str, str, str]]) -> str:
    """One line per setting; columns are ``(quantity, gate, head)``, and those that nobody has are left out."""
    plain = verdicts.named([row for row in rows if row["against"] is None])
    columns = [column for column in columns if find(plain, quantity=column[0], gate=column[1])]
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in plain):
        found = [find(plain, setting=setting, quantity=quantity, gate=gate) for quantity, gate, _ in columns]
        lines.append(table_line(setting, found))
    return table(["", *(head for _, _, head in columns)], lines)


def _parts(rows: Sequence[Row], prefix: str) -> list[str]:
    """What follows a prefix in the names of the quantities."""
    names = dict.fromkeys(str(row["quantity"]) for row in rows)
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _verdict_list(file: str, judge: Callable[[Sequence[Row]], list[Verdict]]) -> Maker:
    def make(folder: Path) -> str:
        return "\n".join(f"- {verdict}" for verdict in judge(read_csv(folder / file)))

    return make


def _figure(stem: str, text: str) -> Maker:
    """The picture of an experiment, for a page beside the folder of results."""

    def make(folder: Path) -> str:
        if not (folder / "figures" / f"{stem}.svg").is_file():
            raise FileNotFoundError(stem)
        return f"![{text}]({folder.name}/figures/{stem}.svg)"

    return make


def _state(name: str, all_sizes: Sequence[int] = (), all_settings: int = 0) -> Maker:
    """One sentence: how much of an experiment has been measured, and which numbers of training rows are missing."""

    def make(folder: Path) -> str:
        path = folder / f"{name}.csv"
        if not path.is_file():
            return "Not measured yet."
        rows = read_csv(path)
        settings, seeds = (sorted({row[field] for row in rows}) for field in ("setting", "seed"))
        several = "s" * (len(settings) > 1)
        of_all = f" of {all_settings}" if all_settings > len(settings) else ""
        missing = [f"{size:,}" for size in all_sizes if size not in {row["examples"] for row in rows}]
        return (
            f"Measured so far: {len(settings)}{of_all} setting{several}, {len(rows)} routers in all, training "
            f"seed{'s' * (len(seeds) > 1)} {', '.join(f'{seed:.0f}' for seed in seeds)}; "
            f"{rows[0]['test_rows']:.0f} test rows, {rows[0]['data']} data."
            + (f" Not measured yet: {', '.join(missing)} training rows." if missing else "")
        )

    return make


EVIDENCE: dict[str, Maker] = {
    **{f"{name}-state": _state(name) for name in ("losses", "choice", "top-k", "oracle")},
    "grid-state": _state("grid", all_settings=len(grid.settings(Options(experts=())))),
    "data-size-state": _state("data-size", data_size.halved()),
    "losses": losses_table,
    "losses-domains": losses_domains_table,
    "losses-differences": losses_differences_table,
    "token-shares": token_shares_table,
    "domain-shares": domain_shares_table,
    "domain-shares-figure": _figure(
        "domain-shares", "Share of every expert in the tokens of each domain, for every loss"
    ),
    "losses-verdicts": _verdict_list("losses-summary.csv", verdicts.losses_verdicts),
    "losses-figure": _figure("losses", "Test loss, own-expert share and mutual information of every routing loss"),
    "loads-figure": _figure("loads", "Load of every expert under every routing loss"),
    "plane-figure": _figure("plane", "All routers on the entropy–balance plane, with their training paths"),
    "choice": choice_table,
    "chosen": chosen_text,
    "choice-figure": _figure("choice", "Test loss, mutual information and load entropy of the candidates for RSL"),
    "grid": grid_table,
    "grid-verdicts": _verdict_list("grid-summary.csv", verdicts.grid_verdicts),
    "grid-figure": _figure("grid", "Loss, token entropy, mutual information and load variance over α and λ"),
    "expert-count": expert_count_table,
    "data-size": data_size_table,
    "data-size-verdicts": _verdict_list("data-size-summary.csv", verdicts.data_size_verdicts),
    "data-size-figure": _figure("data-size", "Test loss by number of training rows"),
    "top-k": top_k_table,
    "top-k-verdicts": _verdict_list("top-k-summary.csv", verdicts.top_k_verdicts),
    "top-k-figure": _figure("top-k", "Test loss by experts per token"),
    "balance-curve": balance_curve_table,
    "balance-curve-verdicts": _verdict_list("balance-curve-summary.csv", verdicts.balance_curve_verdicts),
    "balance-curve-figure": _figure("balance-curve", "The balance term while routers train"),
    "convergence": convergence_table,
    "convergence-verdicts": _verdict_list("convergence-summary.csv", verdicts.convergence_verdicts),
    "convergence-figure": _figure("convergence", "KL to the minimum of F_S by step"),
    "oracle": oracle_table,
    "oracle-verdicts": _verdict_list("oracle-summary.csv", verdicts.oracle_verdicts),
    "oracle-figure": _figure("oracle", "Test loss between the backbone and the oracle"),
    "expert-matrix-figure": _figure("expert-matrix", "Test loss of every expert alone on every domain"),
}
"""Marker of a page → what is printed there."""
