"""Markdown tables of stored results: ``python -m loramixer.evaluation.tables docs/results [README.md]``.

With a second path the tables are written into that file, each between its markers ``<!-- table NAME -->`` and
``<!-- end -->``; else they are printed.

Reads what ``loramixer experiment``, ``loramixer count-parameters --json`` and the benchmarks wrote, so that a table in
a page is always the print of a file, and a test can hold them together.
A table whose file does not exist yet is left as it stands.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.evidence import EVIDENCE
from loramixer.evaluation.markdown import line
from loramixer.evaluation.verdicts import find, named, shipped_gate, table_line


def expert_matrix_table(folder: Path) -> str:
    """Expert × domain test loss from ``expert-matrix.csv``; the lowest loss of each domain is bold."""
    rows = read_csv(folder / "expert-matrix.csv")
    domains, names = (list(dict.fromkeys(row[field] for row in rows)) for field in ("domain", "expert"))
    best = {name: min(row["loss"] for row in rows if row["domain"] == name) for name in domains}
    lines = [line("", *domains), line("---", *("---:" for _ in domains))]
    for name in names:
        cells = [_loss(find(rows, expert=name, domain=domain), best[domain]) for domain in domains]
        lines.append(line("backbone alone" if name == "backbone" else f"{name} expert", *cells))
    return "\n".join(lines)


def _loss(row: dict[str, Any] | None, best: float) -> str:
    if row is None:
        return "–"
    value = f"**{row['loss']:.3f}**" if row["loss"] == best else f"{row['loss']:.3f}"
    return f"{value} [{row['loss_low']:.3f}, {row['loss_high']:.3f}]"


def own_expert_table(folder: Path) -> str:
    """Mean soft gate weight of the own expert per domain, one line per routing loss, from ``losses-summary.csv``."""
    return _by_domain(folder, "own_share_", lambda _: "soft")


def router_loss_table(folder: Path) -> str:
    """Test loss per answer token per domain under the shipped gate, one line per routing loss."""
    return _by_domain(folder, "loss_", shipped_gate)


def _by_domain(folder: Path, prefix: str, gate_of: Callable[[list[dict[str, Any]]], str]) -> str:
    rows = named([row for row in read_csv(folder / "losses-summary.csv") if row["against"] is None])
    gate = gate_of(rows)
    found = [row for row in rows if row["gate"] == gate and str(row["quantity"]).startswith(prefix)]
    quantities, settings = (list(dict.fromkeys(row[field] for row in found)) for field in ("quantity", "setting"))
    lines = [line("", *(name.removeprefix(prefix) for name in quantities)), line("---", *("---:" for _ in quantities))]
    for setting in settings:
        cells = [find(found, setting=setting, quantity=quantity) for quantity in quantities]
        lines.append(line(*table_line(setting, cells)))
    return "\n".join(lines)


def state_space_table(folder: Path) -> str:
    """The shipped state-space backbone: its experts by domain, then its router, from two ``falcon-mamba-*.json``."""
    matrix, router = (_read(folder / f"falcon-mamba-{name}.json") for name in ("expert-matrix", "evaluate-rsl"))
    domains = [row["domain"] for row in matrix["backbone"]]
    lines = [line("loss per answer token", *domains), line("---", *("---:" for _ in domains))]
    best = [min(rows[place]["loss"] for rows in matrix.values()) for place in range(len(domains))]
    for name, rows in matrix.items():
        cells = (_loss(row, lowest) for row, lowest in zip(rows, best, strict=True))
        lines.append(line("backbone alone" if name == "backbone" else f"{name} expert", *cells))
    routed = {row["domain"]: row for row in router["domains"]}
    lines.append(line("RSL router, top 2", *(_loss(routed[name], -1) for name in domains)))
    shares = (
        f"{row['own_expert_share']:.2f} [{row['own_expert_share_low']:.2f}, {row['own_expert_share_high']:.2f}]"
        for row in (routed[name] for name in domains)
    )
    lines.append(line("its own-expert share", *shares))
    return "\n".join(lines)


def parameters_table(folder: Path) -> str:
    """Counted parameters of ours and of MixLoRA, then the paper's figures, from ``parameters.json``."""
    found = _read(folder / "parameters.json")
    parts = {"backbone": "backbone", "experts": "experts", "routers": "routers", "shared": "attention LoRA"}
    lines = [line("parameters, millions", *parts.values(), "trainable"), line("---", *["---:"] * 5)]
    for label, row in (("LoRA-Mixer", found["loramixer"]), ("MixLoRA", found["mixlora"])):
        lines.append(line(label, *(f"{row[part] / 1e6:,.2f}" for part in (*parts, "trainable"))))
    lines += ["", line("share", "counted", "paper", "why they differ"), line("---", "---:", "---:", "---")]
    for row in found["figures"]:
        lines.append(line(row["what"], f"{row['counted']:.2%}", f"{100 * row['paper']:g}%", row["explanation"]))
    return "\n".join(lines)


def overhead_table(folder: Path) -> str:
    """Time of every form over the backbone's, then tracing, training and memory, from ``overhead.json``."""
    result = _read(folder / "overhead.json")
    rows = result["rows"]
    inference = [row for row in rows if row["measure"] == "decode" or row["measure"].startswith("prefill-")]
    measures = list(dict.fromkeys(row["measure"] for row in inference))
    labels = list(dict.fromkeys(row["label"] for row in inference))
    lines = [
        line("time / backbone alone", *(measure.replace("-", " ") for measure in measures)),
        line("---", *("---:" for _ in measures)),
    ]
    for label in labels:
        cells = {row["measure"]: _judged(row) for row in inference if row["label"] == label}
        lines.append(line(label, *(cells.get(measure, "–") for measure in measures)))
    goals = {row["measure"]: row["goal"] for row in inference if row["goal"]}
    lines.append(line("goal for LoRA-Mixer", *(goals.get(measure, "–") for measure in measures)))
    sections = ["\n".join(lines)]
    if others := [row for row in rows if row not in inference]:
        lines = [line("measure", "form", "against", "ratio", "goal"), line("---", "---", "---", "---:", "---:")]
        for row in others:
            what = OVERHEAD_MEASURES.get(row["measure"], row["measure"])
            lines.append(line(what, row["label"], row["reference"], _judged(row), row["goal"] or "–"))
        sections.append("\n".join(lines))
    if notes := dict.fromkeys(f"{row['label']}: {row['note']}." for row in rows if row["note"]):
        sections.append("\n".join(notes))
    return "\n\n".join([*sections, _circumstances(result)])


def explorer_table(folder: Path) -> str:
    """What the explorer took beside its goals, from ``explorer.json``; and how busy the machine was meanwhile."""
    result = _read(folder / "explorer.json")
    lines = [line("measure", "value", "unit", "goal", "met", "note"), line("---", "---:", "---", "---:", "---", "---")]
    for row in result["rows"]:
        met = "yes" if row["met"] else "no"
        lines.append(line(row["measure"], f"{row['value']:.3g}", row["unit"], row["goal"], met, row["note"]))
    cores, loads = result["machine"]["cores"], (result["settings"]["load_before"], result["settings"]["load_after"])
    busy = " and ".join(f"{load[0]:.1f}" for load in loads)
    lines += ["", f"Mean number of processes that wanted to run, before and after, on {cores} cores: {busy}."]
    return "\n".join(lines)


OVERHEAD_MEASURES = {
    "trace-prefill-256": "time of prefill 256",
    "trace-decode": "time of decode",
    "training": "training speed, tokens/s",
    "memory": "extra peak memory over the size of the adapters",
}
"""What the rows of ``overhead.json`` that are not times over the backbone's mean."""


def scaling_table(folder: Path) -> str:
    """Time over that of six experts, by rank, k and number of experts, from ``scaling.json``."""
    result = _read(folder / "scaling.json")
    rows = result["rows"]
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    lines = [
        line("rank", "k", "experts", *(measure.replace("-", " ") for measure in measures)),
        line(*["---:"] * (3 + len(measures))),
    ]
    groups: dict[tuple[int, int, int], dict[str, str]] = {}
    for row in rows:
        groups.setdefault((row["rank"], row["k"], row["experts"]), {})[row["measure"]] = _judged(row)
    for key, cells in groups.items():
        lines.append(line(*map(str, key), *(cells.get(measure, "–") for measure in measures)))
    goals = {row["measure"]: row["goal"] for row in rows if row["goal"]}
    lines.append(line("", "", "goal for the most", *(goals.get(measure, "–") for measure in measures)))
    return "\n".join([*lines, "", _circumstances(result)])


def router_training_table(folder: Path) -> str:
    """Time of router trainings and the backbone's share of it, from ``router-training.json``."""
    result = _read(folder / "router-training.json")
    rows, goal = result["rows"], result["settings"]["goal_minutes"]
    lines = [
        line("trained", "routers", "tokens", "minutes", "tokens/s", "backbone alone"),
        line("---", *["---:"] * 5),
    ]
    for row in sorted((row for row in rows if row["alone"]), key=lambda row: row["minutes"]):
        missed = " (missed)" if row["minutes"] > goal else ""
        how = f"{row['loss']}: alone, {row['processes']} process{'es' * (row['processes'] > 1)} × "
        how += f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
        if row["memory_allocator"] != "system":
            how += f", {row['memory_allocator']}"
        lines.append(
            line(
                how,
                "1",
                f"{row['tokens']:,}",
                f"{row['minutes']:.1f}{missed}",
                f"{row['tokens_per_second']:.0f}",
                _share([row]),
            )
        )
    if beside := sorted((row for row in rows if not row["alone"]), key=lambda row: row["minutes"]):
        fast, middle, slow = beside[0], beside[len(beside) // 2], beside[-1]
        tokens = sorted({row["tokens"] for row in beside})
        lines.append(
            line(
                "by the experiments, beside other work: fastest, median, slowest",
                str(len(beside)),
                " – ".join(f"{count:,}" for count in dict.fromkeys((tokens[0], tokens[-1]))),
                ", ".join(f"{row['minutes']:.1f}" for row in (fast, middle, slow)),
                ", ".join(f"{row['tokens_per_second']:.0f}" for row in (fast, middle, slow)),
                _share(beside),
            )
        )
    lines.append(line("goal", "", "", f"≤ {goal}", "", ""))
    return "\n".join([*lines, "", f"{result['machine']['processor']}, {result['machine']['cores']} cores."])


def _share(rows: Sequence[dict[str, Any]]) -> str:
    """Median share of the backbone in a step."""
    shares = sorted(row["backbone_share"] for row in rows if row["backbone_share"] is not None)
    return f"{shares[len(shares) // 2]:.0%}" if shares else "–"


def _judged(row: dict[str, Any]) -> str:
    missed = " (missed)" if row["met"] is False else ""
    return f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]{missed}"


def _circumstances(result: dict[str, Any]) -> str:
    """One sentence on how a benchmark was run."""
    machine, settings = result["machine"], result["settings"]
    backbone = "SmolLM2-135M-Instruct" if settings.get("real") else f"random weights of shape `{settings['shape']}`"
    place = machine["accelerator"] or f"{machine['processor']}, {machine['threads']} thread(s)"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"Medians over {settings['rounds']} rounds with 95 % bootstrap intervals; {backbone}, {settings['dtype']}, "
        f"batch 1; {place}; {versions}; commit `{(machine['commit'] or 'unknown')[:10]}`."
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


TABLES: dict[str, Callable[[Path], str]] = {
    "expert-matrix": expert_matrix_table,
    "own-expert": own_expert_table,
    "router-loss": router_loss_table,
    "parameters": parameters_table,
    "overhead": overhead_table,
    "explorer": explorer_table,
    "scaling": scaling_table,
    "state-space": state_space_table,
    "router-training": router_training_table,
    **EVIDENCE,
}


def fill(text: str, folder: Path) -> str:
    """A text with every table between its markers made anew; without its result file a table stays as it is."""

    def replacement(found: re.Match[str]) -> str:
        table = _made(found["name"], folder)
        return found[0] if table is None else f"{found['start']}\n{table}\n\n{found['end']}"

    names = "|".join(TABLES)
    pattern = rf"(?P<start><!-- table (?P<name>{names}) -->\n).*?(?P<end><!-- end -->)"
    return re.sub(pattern, replacement, text, flags=re.DOTALL)


def _made(name: str, folder: Path) -> str | None:
    try:
        return TABLES[name](folder)
    except FileNotFoundError:
        return None


def main() -> None:
    """Print all tables, or write them into a file."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/results")
    if len(sys.argv) > 2:
        page = Path(sys.argv[2])
        page.write_text(fill(page.read_text(encoding="utf-8"), folder), encoding="utf-8")
        return
    for name in TABLES:
        print(f"{name}\n\n{_made(name, folder) or 'no result file yet'}\n")


if __name__ == "__main__":
    main()
