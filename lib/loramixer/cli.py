"""The command line, ``loramixer``: one function per command, each a thin call of the public API."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Column, Table

from loramixer.commands.experiment import experiment
from loramixer.commands.train_backbone import train_backbone
from loramixer.errors import LoraMixerError
from loramixer.tuner.config import RoutingLoss

if TYPE_CHECKING:
    from loramixer.data import Source

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Train, trace and evaluate mixtures of LoRA experts."
)
console = Console()

NAME = Column("name", no_wrap=True)
"""A column that is never cut: names are there to be copied."""

Mixer = Annotated[str, typer.Option(help="Zoo name such as smollm2-135m/rsl, a folder, or a Hub id.")]
Backbone = Annotated[str, typer.Option(help="Catalogue name, folder or Hub id.")]
Seed = Annotated[int, typer.Option(help="Chooses rows, their order and new weights.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
PresetName = Annotated[
    str,
    typer.Option(
        help="Settings for what is not given: cpu-small (what ships), cpu-tiny (the same for falcon-mamba-tiny) or "
        "paper (its Appendix A.6)."
    ),
]
ReportTo = Annotated[
    str, typer.Option(help="Metrics besides the run log: none, trackio or tensorboard (OUTPUT/tensorboard).")
]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Where rows come from: a .jsonl(.gz) file (repeat for several), a folder of data sets, hub or generated; "
        "docs/data.md. By default what LORAMIXER_DATA names, else the Hub.",
    ),
]
Dedupe = Annotated[
    bool, typer.Option("--dedupe", help="Leave out rows whose prompts an evaluation row of the same source has.")
]
DataType = Annotated[
    Literal["auto", "float32", "bfloat16"], typer.Option(help="Type of the frozen backbone; auto is the fastest here.")
]

Device = Annotated[
    str,
    typer.Option(help="Where it runs: auto (cuda where torch sees one, else cpu), or a name of torch such as cuda:1."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=1, help="Longest row in tokens, prompt and answer; the preset's by default. Longer prompts are left out."
    ),
]
MaxAnswer = Annotated[
    int | None,
    typer.Option(min=1, help="Longest answer in tokens, longer ones are cut; the preset's by default."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Rows of a forward pass, of all processes together; the preset's by default."),
]


def main() -> None:
    """Entry point: errors that a user can mend are one sentence on stderr and exit status 2."""
    try:
        app()
    except LoraMixerError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def backbones(as_json: AsJson = False) -> None:
    """List the backbones that are known, and which are on disk."""
    from loramixer.backbones import backbone_status

    rows = backbone_status()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(NAME, Column("Hub id", no_wrap=True), "parameters", "licence", "on disk", box=None)
    for row in rows:
        place = row["origin"] if row["on_disk"] else "no, fetched at first use"
        table.add_row(
            row["name"], row["hub_id"] or "in this package", f"{row['parameters'] / 1e6:.1f} M", row["license"], place
        )
    console.print(table)
    for row in rows:
        if row["on_disk"]:
            console.print(f"{row['name']}: {row['on_disk']}", highlight=False, soft_wrap=True)
    console.print("Any local folder of a Transformers model and any Hub id work too.")


@app.command()
def mixers(as_json: AsJson = False) -> None:
    """List the mixtures that ship with the package."""
    from dataclasses import asdict

    from loramixer.mixers import list_mixers

    found = list_mixers()
    if as_json:
        print(json.dumps([asdict(info) for info in found], indent=1))
        return
    table = Table(NAME, "experts", "k", "routing loss", "seed", box=None)
    for info in found:
        table.add_row(info.name, ", ".join(info.experts), str(info.top_k), info.loss, str(info.seed))
    console.print(table)


@app.command()
def train_experts(
    output: Annotated[Path, typer.Option(help="Receives one PEFT folder per domain.")],
    domains: Annotated[
        list[str] | None,
        typer.Option("--domain", "--domains", help="Domain to train; repeat for several. All by default."),
    ] = None,
    data: Rows = None,
    backbone: Backbone = "smollm2-135m",
    seed: Seed = 0,
    rank: Annotated[int | None, typer.Option(help="LoRA rank; the preset's by default.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; the preset's by default.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many rows per expert, for a trial.")] = None,
    dtype: DataType = "auto",
    lora_alpha: Annotated[float | None, typer.Option(help="Twice the rank by default.")] = None,
    dropout: Annotated[float | None, typer.Option(help="On the experts' input; the preset's by default.")] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "--targets", help="Projection to change; repeat for several. q, k, v and o by default."
        ),
    ] = None,
    jointly: Annotated[bool, typer.Option(help="All domains at once, each row moving its own expert.")] = False,
    dedupe: Dedupe = False,
    preset: PresetName = "cpu-small",
    report_to: ReportTo = "none",
    max_length: MaxLength = None,
    max_answer: MaxAnswer = None,
    batch_size: BatchSize = None,
) -> None:
    """Train one LoRA expert per domain (stage 1); resumes where it was stopped."""
    from loramixer.training.experts import ATTENTION_PROJECTIONS
    from loramixer.training.experts import train_experts as run

    source = _rows_from(data)
    for folder in run(
        output,
        domains,
        source=source,
        backbone=backbone,
        seed=seed,
        rank=rank,
        learning_rate=learning_rate,
        limit=limit,
        dtype=_dtype(dtype),
        lora_alpha=lora_alpha,
        dropout=dropout,
        targets=targets or ATTENTION_PROJECTIONS,
        jointly=jointly,
        dedupe=dedupe,
        preset=preset,
        report_to=report_to,
        max_length=max_length,
        max_answer=max_answer,
        batch_size=batch_size,
    ):
        console.print(f"{folder}", highlight=False)


@app.command()
def train_router(
    mixer: Annotated[
        str, typer.Option(help="Whose experts to route: a mixture (zoo name, folder, Hub id), or a folder of LoRAs.")
    ],
    output: Annotated[Path, typer.Option(help="Receives the trained mixture.")],
    loss: Annotated[RoutingLoss, typer.Option(help="Routing loss; docs/losses.md has them all.")] = "rsl",
    data: Rows = None,
    examples: Annotated[
        int | None, typer.Option(help="Number of mixed training rows; 2,000 by default, of files all there are.")
    ] = None,
    dedupe: Dedupe = False,
    seed: Seed = 0,
    balance_weight: Annotated[
        float | None, typer.Option(help="α, of K Σ p̄ f̄ (1 when the load is even); the preset's by default.")
    ] = None,
    entropy_weight: Annotated[
        float | None, typer.Option(help="λ, of the mean token entropy in nats (rsl only); the preset's by default.")
    ] = None,
    entropy: Annotated[
        Literal["sharpen", "flatten"], typer.Option(help="Sign of λ: sharpen (+) or flatten (−, Eq. 5 as printed).")
    ] = "sharpen",
    learning_rate: Annotated[float | None, typer.Option(help="Peak; the preset's by default.")] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="k, 3 by default: experts per token in inference, and those whose use the balance counts."),
    ] = None,
    backbone: Backbone = "smollm2-135m",
    routers_only: Annotated[bool, typer.Option(help="Save routers alone and name the experts.")] = False,
    title: Annotated[str, typer.Option(help="A short name for people.")] = "",
    dtype: DataType = "auto",
    preset: PresetName = "cpu-small",
    keep_routers_at: Annotated[
        list[int] | None, typer.Option(help="Step after which the routers are kept for replay; repeat for several.")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, any further field of LoraMixerConfig, such as training_gate=straight_through."),
    ] = None,
    report_to: ReportTo = "none",
    max_length: MaxLength = None,
    max_answer: MaxAnswer = None,
    batch_size: BatchSize = None,
) -> None:
    """Train fresh routers over given experts (stage 2); resumes where it was stopped."""
    from loramixer.training.routers import find_experts
    from loramixer.training.routers import train_router as run

    fields = _config_fields(field or [])
    source = _rows_from(data)
    folder = run(
        output,
        find_experts(mixer),
        loss=loss,  # type: ignore[arg-type]
        balance_weight=balance_weight,
        entropy_weight=entropy_weight,
        entropy=entropy,
        examples=examples,
        source=source,
        dedupe=dedupe,
        backbone=backbone,
        seed=seed,
        learning_rate=learning_rate,
        top_k=top_k,
        dtype=_dtype(dtype),
        routers_only=routers_only,
        title=title,
        command=shlex.join(["loramixer", *sys.argv[1:]]),
        preset=preset,
        keep_routers_at=keep_routers_at or (),
        report_to=report_to,
        max_length=max_length,
        max_answer=max_answer,
        batch_size=batch_size,
        **fields,
    )
    console.print(f"{folder}", highlight=False)


@app.command()
def evaluate(
    mixer: Mixer,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A .jsonl(.gz) file, of which any row may be taken (repeat for several); or a folder of data sets, "
            "hub or generated, of which the test rows are. By default what LORAMIXER_DATA names, else the Hub."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Rows per domain or file; by default 100 held-out ones, of files all.")
    ] = None,
    seed: Seed = 0,
    dtype: DataType = "float32",
    device: Device = "auto",
    k: Annotated[int | None, typer.Option(help="Experts per token; the mixture's own by default.")] = None,
    max_length: Annotated[
        int, typer.Option(min=1, help="Longest row in tokens; a prompt without room for an answer is an error.")
    ] = 1024,
    max_answer: Annotated[
        int, typer.Option(min=1, help="Tokens of an answer, and of each choice, that are scored; the rest is cut.")
    ] = 256,
    as_json: AsJson = False,
) -> None:
    """Loss per answer token, accuracy, and own-expert share per domain, with n and 95 % intervals."""
    from dataclasses import asdict

    from loramixer.devices import choose_device
    from loramixer.evaluation.harness import evaluate as run
    from loramixer.mixers import load_mixer
    from loramixer.tuner.runtime import set_gate

    place = choose_device(device)
    rows = _evaluation_rows(data, limit, seed, mixer)
    model, tokenizer = load_mixer(mixer, dtype=_dtype(dtype, measuring=True), device=place)
    if k is not None:
        set_gate(model, "top_k", k)
    with _progress() as progress:
        task = progress.add_task("rows", total=len(rows))
        results = run(
            model,
            tokenizer,
            rows,
            max_length=max_length,
            max_answer=max_answer,
            progress=lambda done, _: progress.update(task, completed=done),
        )
    if as_json:
        print(json.dumps({"mixer": mixer, "seed": seed, "domains": [asdict(row) for row in results]}, indent=1))
        return
    table = Table("domain", "n", "loss per answer token", "accuracy", "own-expert share", "load", box=None)
    for row in results:
        table.add_row(
            escape(row.domain),
            str(row.n),
            _with_interval(row.loss, row.loss_low, row.loss_high),
            _with_interval(row.accuracy, row.accuracy_low, row.accuracy_high)
            + (f" ({row.n_choices} rows)" if 0 < row.n_choices < row.n else ""),
            _with_interval(row.own_expert_share, row.own_expert_share_low, row.own_expert_share_high),
            escape(" ".join(f"{name} {share:.2f}" for name, share in (row.shares or {}).items())),
        )
    console.print(table)
    words = "Square brackets: 95 % interval over rows, of accuracy Wilson's, of all else bootstrap. Losses in nats."
    console.print(words, markup=False)
    console.print("Own-expert share and load: mean gates as they act in inference, over prompt and answer.")


@app.command()
def expert_matrix(
    experts: Annotated[str, typer.Option(help="A mixture, or a folder of LoRAs.")],
    domains: Annotated[
        list[str] | None,
        typer.Option(
            "--domain", "--domains", help="Domain to test on; repeat for several. Those of the setting by default."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Where test rows come from: a folder of data sets, hub or generated. By default what LORAMIXER_DATA "
            "names, else the Hub."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="Test rows per domain.")] = 100,
    seed: Seed = 0,
    backbone: Backbone = "smollm2-135m",
    dtype: DataType = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Test loss of the backbone and of every expert alone on every domain."""
    from dataclasses import asdict

    from loramixer.devices import choose_device
    from loramixer.evaluation.matrix import expert_matrix as run
    from loramixer.training.routers import find_experts

    place = choose_device(device)
    source = _rows_from(data)
    found = find_experts(experts)
    known = [name for name in found if source.has(name)]
    # All domains of the setting that the experts belong to, those without an expert of their own too.
    setting = source.domains()
    tested = tuple(dict.fromkeys(domains or (setting if set(known) <= set(setting) else known)))
    with _progress() as progress:
        task = progress.add_task("rows", total=None)
        results = run(
            dict(found),
            tested,
            backbone=backbone,
            count=limit,
            seed=seed,
            source=source,
            dtype=_dtype(dtype, measuring=True),
            device=place,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        print(json.dumps({name: [asdict(row) for row in rows] for name, rows in results.items()}, indent=1))
        return
    counts = {row.domain: row.n for rows in results.values() for row in rows}
    heads = [f"{domain} (n = {counts.get(domain, 0)})" for domain in tested]
    table = Table("loss per answer token", *map(escape, heads), box=None)
    for name, rows in results.items():
        found = {row.domain: _with_interval(row.loss, row.loss_low, row.loss_high) for row in rows}
        table.add_row(escape(name), *(found.get(domain, "–") for domain in tested))
    console.print(table)
    console.print(f"n: test rows, seed {seed}; square brackets: 95 % bootstrap interval over rows.", markup=False)


@app.command()
def trace(
    prompt: Annotated[str, typer.Argument(help="What the model is asked.")],
    mixer: Mixer,
    out: Annotated[Path, typer.Option(help="Receives the trace (.npz).")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write; 0 traces the prompt only.")] = 0,
    k: Annotated[int | None, typer.Option(help="Experts per token; the mixture's own by default.")] = None,
    temperature: Annotated[float, typer.Option(help="0 decodes greedily.")] = 0.0,
    seed: Seed = 0,
    contributions: Annotated[bool, typer.Option("--contributions", help="Record what each expert adds, too.")] = False,
    device: Device = "auto",
) -> None:
    """Record every gate of every token at every site, and save it as a trace file."""
    from loramixer.devices import choose_device
    from loramixer.metrics import load, routers_that_are_on
    from loramixer.mixers import load_mixer
    from loramixer.trace import trace as run
    from loramixer.tuner.runtime import set_gate

    model, tokenizer = load_mixer(mixer, device=choose_device(device))
    if k is not None:
        set_gate(model, "top_k", k)
    found = run(
        model,
        tokenizer,
        prompt,
        max_new_tokens,
        temperature=temperature,
        seed=seed,
        contributions=contributions,
    )
    path = found.save(out)
    answer = "".join(
        found.tokens.text[slice(*span)]
        for span, role in zip(found.tokens.spans, found.tokens.roles, strict=True)
        if role == "generated"
    )
    if answer:
        console.print(answer, markup=False, highlight=False)
    shares = ", ".join(
        f"{name} {share:.3f}"
        for name, share in zip(found.experts, load(routers_that_are_on(found.gates)), strict=True)
    )
    console.print(
        f"{len(found.tokens)} tokens × {len(found.sites)} sites → {path}; load: {shares}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def transfer(
    mixer: Mixer,
    backbone: Annotated[str, typer.Option(help="The other backbone: catalogue name, folder or Hub id.")],
    output: Annotated[Path, typer.Option(help="Receives the moved mixture.")],
) -> None:
    """Move the experts and routers of a mixture to another backbone of the same shape; nothing is trained."""
    from loramixer.backbones import load_backbone
    from loramixer.mixers import mixer_folder, mixer_info
    from loramixer.transfer import save_transfer
    from loramixer.transfer import transfer as run

    former = mixer_info(mixer_folder(mixer), mixer).backbone
    model, _ = load_backbone(backbone, dtype=_dtype("bfloat16"))  # it does not run, and experts are never rounded
    moved = run(mixer, model)
    save_transfer(moved, output, mixer, former, shlex.join(["loramixer", *sys.argv[1:]]))
    console.print(f"{output}", highlight=False)


@app.command()
def count_parameters(
    backbone: Annotated[
        str, typer.Option(help="A shape such as llama3-8b, mistral-7b, smollm2-135m; a config.json; or a Hub id.")
    ] = "llama3-8b",
    experts: Annotated[int, typer.Option(min=1, help="Number of experts.")] = 6,
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank of every expert.")] = 64,
    targets: Annotated[
        list[str] | None, typer.Option(help="Routed projection; repeat for several. q, k, v and o by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count a mixture's parameters without any weights, beside MixLoRA's and the paper's figures."""
    from loramixer.accounting import parameter_table
    from loramixer.shapes import ATTENTION

    found = parameter_table(backbone, experts, rank, tuple(targets or ATTENTION))
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    sizes = Table("parameters", "backbone", "experts", "routers", "attention LoRA", "trainable", box=None)
    for name, row in (("LoRA-Mixer", found["loramixer"]), ("MixLoRA", found["mixlora"])):
        if row is not None:
            parts = ("backbone", "experts", "routers", "shared", "trainable")
            sizes.add_row(name, *(f"{row[part] / 1e6:,.2f} M" for part in parts))
    console.print(sizes)
    figures = Table("share", "counted", "paper", box=None)
    for row in found["figures"]:
        paper = "" if row["paper"] is None else f"{100 * row['paper']:g}%"
        figures.add_row(row["what"], f"{row['counted']:.2%}", paper)
    console.print(figures)
    for row in found["figures"]:
        if row["explanation"]:
            console.print(f"{row['what']}: {row['explanation']}", highlight=False)
    console.print(f"{backbone}, {experts} experts of rank {rank} on {', '.join(found['targets'])}.", highlight=False)


_WITH_OPTION = {
    "routing_loss": "--loss", "balance_weight": "--balance-weight", "entropy_weight": "--entropy-weight",
    "entropy": "--entropy", "top_k": "--top-k", "title": "--title", "save_experts": "--routers-only",
}  # fmt: skip
"""Fields of a mixture that train-router sets by options of their own."""


def _config_fields(given: list[str]) -> dict[str, Any]:
    """``{"train_experts": True}`` from ``["train_experts=true"]``; values are JSON, Python's words, or else texts."""
    from dataclasses import fields

    from loramixer.tuner import LoraMixerConfig

    usual = {field.name: field.default for field in fields(LoraMixerConfig)}
    known = sorted(usual.keys() - {"experts", "peft_type", *_WITH_OPTION})
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if equals and name in _WITH_OPTION:
            raise LoraMixerError(f"--field is '{text}'; give {_WITH_OPTION[name]} instead.")
        if not equals or name not in known:
            raise LoraMixerError(f"--field is '{text}'; it must be NAME=VALUE with a name of {', '.join(known)}.")
        try:
            found[name] = _PYTHON_WORDS[value] if value in _PYTHON_WORDS else json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
        types, words = _VALUES.get(type(usual[name]), ((type(found[name]),), ""))
        if type(found[name]) not in types:
            raise LoraMixerError(f"--field is '{text}'; {name} takes {words}.")
    return found


_PYTHON_WORDS = {"True": True, "False": False, "None": None}
_VALUES: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
}
"""What a field takes, by the type of its default; one whose default is None or a collection takes anything."""


app.command()(experiment)
app.command()(train_backbone)


def _evaluation_rows(data: list[str] | None, limit: int | None, seed: int, mixer: str) -> list[Any]:
    import random

    from loramixer.data import held_out_examples, names_a_file, read_examples
    from loramixer.mixers import mixer_folder, mixer_info

    experts = mixer_info(mixer_folder(mixer), mixer).experts
    if data and all(map(names_a_file, data)):
        rows = []
        for path in data:
            found = read_examples(path, experts)
            random.Random(seed).shuffle(found)
            rows += found[:limit]
        return rows
    source = _rows_from(data)
    domains = [name for name in experts if source.has(name)] or source.domains()
    return [row for domain in domains for row in held_out_examples(domain, limit or 100, seed, source=source)]


def _rows_from(data: str | list[str] | None) -> Source:
    """The source that is given, or the usual one; says which."""
    from loramixer.data import find_source

    source = find_source(data)
    Console(stderr=True).print(f"Data: {source.describe()}.", highlight=False, markup=False, soft_wrap=True)
    return source


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    return "–" if value is None else f"{value:.3f} \\[{low:.3f}, {high:.3f}]"


def _progress() -> Progress:
    return Progress(
        "[progress.description]{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _dtype(name: str, measuring: bool = False) -> Any:
    """A type of torch; None leaves the choice of ``auto`` to the training."""
    if name != "auto":
        import torch

        return getattr(torch, name)
    if not measuring:
        return None
    from loramixer.training.loop import fast_training_dtype  # which brings the Trainer

    return fast_training_dtype()
