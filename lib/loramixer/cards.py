"""Model cards: of trained weights, written from the run log, and of saved mixtures, written from their configuration.

Neither can drift from what it describes, since nothing in it is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramixer.backbones import CATALOGUE
from loramixer.hub import split_hub_id
from loramixer.versions import library_versions

if TYPE_CHECKING:  # the PEFT method writes cards too, and must not load data sources for that
    from loramixer.training.run_log import RunLog
    from loramixer.tuner.config import LoraMixerConfig

GENERATED = "<!-- Written by loramixer from adapter_config.json; delete this line to keep your own words. -->"
"""Marks a card that may be written anew."""

UNPUBLISHED = "local:"
"""Stands before the name of a folder in a pushed configuration: it lies on the author's machine only."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")

_JOINTLY = "It was trained jointly with {}: all rows in one run, each row moving the expert of its own domain only."
_PEFT_TEMPLATE = "<!-- Provide a quick summary of what the model is/does. -->"
_LOADING = (
    "import loramixer  # registers the method with PEFT; without it PEFT says KeyError: 'LORA_MIXER'",
    "",
)


def write_expert_card(
    folder: Path,
    domain: str,
    licenses: Mapping[str, str],
    log: RunLog,
    measured: Sequence[str] = (),
    license: str = "",
) -> Path:
    """Write the ``README.md`` of an expert: data, licences, rows, seed, command, speed, and lines on what it gave.

    Args:
        folder: of the expert.
        domain: that it was trained for, which is its name.
        licenses: of each data set.
        log: of the training.
        measured: lines on what it gave.
        license: of the weights, as the Hub calls it; empty leaves it to whoever publishes them.
    """
    run = log.settings
    lines = [
        *_front_matter(run["backbone"], ["lora"], license),
        f"# {domain} expert for {run['backbone']}",
        "",
        f"A plain PEFT LoRA (r = {run['rank']}, lora_alpha = {run.get('lora_alpha', 2 * run['rank']):g}) on "
        f"{', '.join(run.get('targets', ATTENTION))}, one",
        f"of the experts that LoRA-Mixer routes between. {_loading_alone(run.get('targets', ATTENTION))}",
        *(["", _JOINTLY.format(", ".join(run["experts"]))] if run.get("jointly") else []),
        "",
        "## Data",
        "",
        *_data_table(run, licenses),
        "",
        "## Training",
        "",
        f"`{_expert_command(run, domain)}`, with data",
        f"from: {run['data']} (docs/data.md of the repository).",
        "",
        *_run_facts(log),
        *_measured(measured),
    ]
    return _write(folder, lines)


def _loading_alone(targets: Sequence[str]) -> str:
    if "dt_proj" in targets:  # docs/backbones.md
        return (
            "It acts in a mixture only: of Mamba's mixers\n"
            "PEFT by itself refuses `out_proj`, and passes over `dt_proj` without a word."
        )
    return "It also loads by itself with `PeftModel.from_pretrained`."


def _expert_command(run: dict[str, Any], domain: str) -> str:
    chosen = run["experts"] if run.get("jointly") else [domain]
    words = ["loramixer train-experts", *(f"--domains {name}" for name in chosen), f"--seed {run['seed']}"]
    if run["data"] == "files":
        words.append("--data FILE")
    if run.get("jointly"):
        words.append("--jointly")
    if run.get("preset"):
        words.append(f"--preset {run['preset']} --rank {run['rank']} --lora-alpha {run['lora_alpha']:g}")
        words += _other_than_preset(run)
    if tuple(run.get("targets", ATTENTION)) != ATTENTION:
        words += [f"--targets {name}" for name in run["targets"]]
    words += _backbone_option(run["backbone"])
    if run.get("limit"):
        words.append(f"--limit {run['limit']}")
    if run.get("dedupe"):
        words.append("--dedupe")
    return " ".join([*words, "--output experts"])


def _backbone_option(backbone: str) -> list[str]:
    """The option for every backbone but the usual one; of a folder its name, since paths are those of a machine."""
    usual = CATALOGUE["smollm2-135m"]
    if backbone in (usual.name, usual.hub_id):
        return []
    return [f"--backbone {backbone if _is_hub_id(backbone) else Path(backbone).name}"]


def _other_than_preset(run: dict[str, Any]) -> list[str]:
    """Options of the loop, where they are not those of the preset."""
    from loramixer.training.presets import PRESETS

    if (preset := PRESETS.get(run["preset"])) is None:
        return []
    names = ("learning_rate", "max_length", "max_answer", "batch_size")
    usual = {name: getattr(preset.experts, name) for name in names} | {"dropout": preset.dropout}
    return [
        f"--{name.replace('_', '-')} {run[name]:g}" for name, value in usual.items() if run.get(name, value) != value
    ]


def write_backbone_card(folder: Path, log: RunLog) -> Path:
    """Write the ``README.md`` of a backbone that was trained here: what it is for, data, numbers and command."""
    run, summary = log.settings, log.summary
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- falcon_mamba",
        "- toy",
        "---",
        "",
        "# Falcon-Mamba, tiny",
        "",
        f"A toy in size: {run['parameters'] / 1e6:.1f} million parameters, trained for {summary['seconds'] / 60:.0f} "
        "minutes beside other work on",
        "one CPU core. It shows routing in a state-space block; the text that it writes is no good, and nothing that",
        "it says is to be believed. The architecture is that of Falcon-Mamba (Transformers' `FalconMambaForCausalLM`,",
        "no remote code), and no weight of a published model is in it.",
        "",
        f"{run['layers']} blocks, {run['hidden_size']} features, {2 * run['hidden_size']} channels with "
        f"{run['states']} states each; a byte-level BPE of {run['vocabulary']} tokens, trained on",
        "the same rows, in which every digit is a token. There is no chat template: a prompt ends with a line end.",
        "",
        "```python",
        "import loramixer",
        "",
        'model, tokenizer = loramixer.load_backbone("falcon-mamba-tiny")',
        "```",
        "",
        "## Loss on held-out texts",
        "",
        "Nats per token of prompt and answer on test rows, with 95 % bootstrap intervals over rows.",
        "",
        *_held_out(summary["held_out"]),
        "",
        "## Data",
        "",
        "Texts of the training rows, prompt and answer; none whose prompt is in an evaluation split.",
        "",
        *_data_table(run, run["licenses"]),
        "",
        "Shares of the tokens: " + ", ".join(f"{name} {part:g}" for name, part in run["shares"].items()) + ".",
        "",
        "## Training",
        "",
        f"`{run['command']}`",
        "",
        f"- steps: {log.step_count} of {run['batch_size']} pieces of {run['max_length']} "
        f"tokens, {run['epochs']} epoch(s), learning rate {run['learning_rate']} (cosine), {run['dtype']}; saved in "
        "bfloat16",
        f"- time: {summary['seconds']} s for {summary['tokens']} tokens, whatever else the machine was doing",
        *([f"- note: {summary['note']}"] if "note" in summary else []),
        "- versions: " + ", ".join(f"{name} {number}" for name, number in run["versions"].items()),
        "- training curve: `run_log.json`",
    ]
    return _write(folder, lines)


def _held_out(table: dict[str, list[dict[str, Any]]]) -> list[str]:
    first = next(iter(table.values()))
    cells = [
        " | ".join(
            f"{rows[place]['loss']:.2f} [{rows[place]['low']:.2f}, {rows[place]['high']:.2f}]"
            for rows in table.values()
        )
        for place in range(len(first))
    ]
    return [
        "| domain | rows | tokens | " + " | ".join(table) + " |",
        "|---|---:|---:|" + "---:|" * len(table),
        *(
            f"| {row['domain']} | {row['n']} | {row['tokens']} | {cell} |"
            for row, cell in zip(first, cells, strict=True)
        ),
    ]


def write_router_card(
    folder: Path,
    title: str,
    command: str,
    log: RunLog,
    experts: list[str],
    measured: Sequence[str] = (),
    license: str = "",
) -> Path:
    """Write the ``README.md`` of a router: experts, loss, data, seed, command, speed, and lines on what it gave.

    Without a ``license`` it states none: that of the experts and rows decides, which only their owner knows.
    """
    run = log.settings
    saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    lines = [
        *_front_matter(run["backbone"], ["lora-mixer", "mixture-of-experts"], license),
        f"# {title} for {run['backbone']}",
        "",
        f"One linear router per projection per layer over the experts {', '.join(experts)}. "
        f"{_content(saved['save_experts'])}",
        "",
        "```python",
        *_LOADING,
        'model, tokenizer = loramixer.load_mixer("path/of/this/folder")',
        "```",
        "",
        "## Loss",
        "",
        f"{run['loss_text']}",
        "",
        "## Data",
        "",
        *_data_table(run, run["licenses"]),
        "",
        "## Training",
        "",
        *([f"`{command}`", ""] if command else []),
        *_run_facts(log),
        *_measured(measured),
    ]
    return _write(folder, lines)


def _measured(lines: Sequence[str]) -> list[str]:
    return ["", "## Measured", "", *lines] if lines else []


def write_mixture_card(folder: Path, config: LoraMixerConfig, place: str = "path/of/this/folder") -> Path | None:
    """Write the ``README.md`` of a saved mixture: experts, backbone, gate, loss, parameters, and how to load it.

    A card that somebody has written is left as it is: only PEFT's empty template and a card of ours are replaced.

    Args:
        folder: of the saved mixture.
        config: with every expert described, as it is after injection.
        place: what readers give to ``load_mixer``.

    Returns:
        The file, or None where a card was left as it is.
    """
    path = folder / "README.md"
    if path.is_file():
        former = path.read_text(encoding="utf-8")
        if GENERATED not in former and _PEFT_TEMPLATE not in former:
            return None
    backbone = config.base_model_name_or_path or ""
    known = _is_hub_id(backbone)
    lines = [
        "---",
        "library_name: peft",
        *([f"base_model: {backbone}", "base_model_relation: adapter"] if known else []),
        *(["pipeline_tag: text-generation"] if config.task_type == "CAUSAL_LM" else []),
        "tags:",
        "- lora-mixer",
        "- mixture-of-experts",
        "- lora",
        "---",
        GENERATED,
        "",
        f"# {config.title or 'LoRA mixture'}" + (f" for {backbone}" if known else ""),
        "",
        f"A mixture of the LoRA experts {', '.join(config.experts)}: at each of {len(_widths(config))} projections a "
        f"linear router weighs them for every token. {_content(config.save_experts)}",
        "",
        "```python",
        *_LOADING,
        f'model, tokenizer = loramixer.load_mixer("{place}"{"" if known else ", backbone=…"})',
        "```",
        "",
        "## Experts",
        "",
        "| expert | source | SHA-256 of the source | ranks | projections | parameters |",
        "|---|---|---|---|---:|---:|",
        *(_expert_row(name, description, config.train_experts) for name, description in config.experts.items()),
        "",
        "## Routing",
        "",
        f"- backbone: {_shown(backbone)}" + (f", revision {config.revision}" if config.revision else ""),
        f"- gate in inference: {config.gate}" + (f", k = {config.top_k}" if config.gate == "top_k" else ""),
        f"- gate in training: {config.training_gate}",
        f"- weights of the chosen experts sum to 1: {'yes' if config.renormalize else 'no'}",
        f"- temperature: {config.temperature:g}",
        f"- routing loss: {config.loss_text}",
        f"- parameters: {len(config.experts) * sum(_widths(config).values()):,} in routers, "
        f"{sum(map(_parameters, config.experts.values())):,} in experts",
        "- versions: " + ", ".join(f"{name} {number}" for name, number in library_versions().items()),
    ]
    return _write(folder, lines)


def _content(experts_too: bool) -> str:
    if experts_too:
        return "This folder holds routers and experts."
    return (
        "This folder holds the routers only; the experts are read from where `adapter_config.json` says, and are "
        "checked."
    )


def _expert_row(name: str, description: dict[str, Any], trained: bool) -> str:
    ranks = sorted({rank for rank, *_ in description["sites"].values()})
    origin = _linked(description["source"]) if description["source"] else "new"
    digest = f"`{description['sha256']}`" if description["sha256"] else "none"
    return (
        f"| {name} | {origin}{', trained further with the routers' if trained else ''} | {digest} | "
        f"{', '.join(map(str, ranks))} | {len(description['sites'])} | {_parameters(description):,} |"
    )


def _linked(source: str) -> str:
    """A Hub id as a link to its commit; a folder by its name only, since a path says who worked where."""
    if not _is_hub_id(source):
        return _shown(source)
    hub_id, _, revision = source.partition("@")
    return f"[{hub_id}](https://huggingface.co/{hub_id}/tree/{revision or 'main'})" + (
        f" at `{revision[:8]}`" if revision else ""
    )


def _shown(name: str) -> str:
    if _is_hub_id(name):
        return name
    folder = Path(name.removeprefix(UNPUBLISHED)).name
    return f"a local folder ({folder})" if folder else "not named"


def _is_hub_id(name: str) -> bool:
    return split_hub_id(name) is not None and not Path(name).exists()


def _widths(config: LoraMixerConfig) -> dict[str, int]:
    """Projection → its number of inputs, of all projections that an expert changes."""
    return {site: shape[2] for description in config.experts.values() for site, shape in description["sites"].items()}


def _parameters(description: dict[str, Any]) -> int:
    return sum(rank * (inputs + outputs) for rank, _, inputs, outputs in description["sites"].values())


def _front_matter(backbone: str, tags: list[str], license: str) -> list[str]:
    return [
        "---",
        *([f"license: {license}"] if license else []),
        *([f"base_model: {backbone}"] if _is_hub_id(backbone) else []),
        "library_name: peft",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
        "",
    ]


def _data_table(run: dict[str, Any], licenses: Mapping[str, str]) -> list[str]:
    rows = ["| data set | training rows | licence as its source states it |", "|---|---:|---|"]
    rows += [
        f"| {task} | {count} | {licenses.get(task, 'generated by loramixer')} |" for task, count in run["rows"].items()
    ]
    return [*rows, "", f"Rows fingerprint `{run['rows_fingerprint']}`, seed {run['seed']}, data: {run['data']}."]


def _run_facts(log: RunLog) -> list[str]:
    run, summary = log.settings, log.summary
    note = f"- note: {summary['note']}" if "note" in summary else ""
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    preset = f"preset {run['preset']}, " if run.get("preset") else ""
    left_out = run.get("rows_left_out")
    cut = (
        [f"- rows left out as too long: {left_out}; answers cut: {run['answers_cut']}"] if left_out is not None else []
    )
    return [
        f"- steps: {log.step_count} of {run['batch_size']} × {run['accumulation']} rows, "
        f"{preset}{run['epochs']} epoch(s), learning rate {run['learning_rate']} (cosine), frozen backbone in "
        f"{run['dtype']}",
        *cut,
        f"- backbone: {run['backbone']}, weights from {run['backbone_revision']}",
        f"- time: {summary.get('seconds')} s for {summary.get('tokens')} tokens, whatever else the machine was doing",
        *([note] if note else []),
        f"- versions: {versions}",
        "- training curve: `run_log.json`",
    ]


def _write(folder: Path, lines: list[str]) -> Path:
    path = folder / "README.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
