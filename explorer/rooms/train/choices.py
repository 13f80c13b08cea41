"""What the room Train offers: experts, rows and losses, each with the sentence that stands beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from explorer.settings import limits
from loramixer.data import RECIPES, FileSource, find_source
from loramixer.data.sources import VARIABLE
from loramixer.errors import DataError
from loramixer.mixers import ZOO

LEAST_EXPERTS = 2
DEFAULT_EXAMPLES = 200


@dataclass(frozen=True)
class LossChoice:
    """One routing loss.

    Attributes:
        key: what the library calls it.
        label: in the control.
        hint: its formula and what descent does, from docs/losses.md.
        has_balance: whether α weighs something of it.
        has_entropy: whether λ and its sign do.
        has_scale: whether it has a balance term with a form.
        balance_weight: α to begin with.
    """

    key: str
    label: str
    hint: str
    has_balance: bool = True
    has_entropy: bool = False
    has_scale: bool = False
    balance_weight: float = 1.0


LOSSES: dict[str, LossChoice] = {
    choice.key: choice
    for choice in (
        LossChoice(
            "rsl", "RSL (this paper)",
            "α · K Σ p̄ f̄ ± λ · E[H(p)]: an even load, and tokens that decide (sharpen) or stay undecided (flatten).",
            has_entropy=True, has_scale=True,
        ),
        LossChoice(
            "load_balance", "Load balance", "α · K Σ p̄ f̄: an even load; whether tokens decide is left to chance.",
            has_scale=True, balance_weight=4.0,
        ),
        LossChoice(
            "ds_moe", "DS-MoE", "α · (E[H(p)] − H(p̄)): minus the mutual information; an even load and tokens that "
            "decide, with one weight.",
        ),
        LossChoice(
            "gmoe", "GMoE", "Draws single tokens towards a Poisson profile and the load towards a Normal one; its own "
            "weights are the paper's.", has_balance=False,
        ),
        LossChoice(
            "aesl", "AESL", "α · K Σ p̄ f̄ + overlap of the experts’ outputs − variance of the probabilities.",
            has_scale=True,
        ),
        LossChoice(
            "supervised", "Supervised", "α · E[−log p of the own expert]: it is told which expert is right, so it is "
            "an upper bound and no rival.",
        ),
        LossChoice("none", "None", "The task loss only.", has_balance=False),
    )
}  # fmt: skip
"""All losses of docs/losses.md, in its order."""

SIGNS = (
    ("sharpen: + λ, tokens decide", "sharpen"),
    ("flatten: − λ, tokens stay undecided (Eq. 5 as printed)", "flatten"),
)
SCALES = (("unit: K Σ p̄ f̄, 1 when even", "unit"), ("paper: Σ p̄ f̄, 1/K when even", "paper"))

DATA_CHOICES = (
    ("as this machine is set up", "default"),
    ("Hugging Face Hub", "hub"),
    ("generated: a toy set", "generated"),
    ("a file of your own", "file"),
)

LEAST_EXAMPLES = 8
"""What the control of examples begins with: one step."""

MOST_ROWS_BYTES = 20_000_000
"""Of a visitor's file of rows."""

MOST_DOMAINS = 64
"""Of a visitor's file of rows: each becomes a box to tick."""

MOST_TASKS = 1000
"""Of a visitor's file of rows: the log of the training counts the rows of each."""


def zoo_experts(backbone: str, zoo: Path = ZOO) -> dict[str, str]:
    """Experts of the zoo for a backbone: name → folder, in the order of their domains."""
    folders = [path.parent for path in (zoo / backbone / "experts").glob("*/adapter_config.json")]
    order = list(RECIPES)
    folders.sort(key=lambda path: (order.index(path.name) if path.name in order else len(order), path.name))
    return {path.name: str(path) for path in folders}


def most_examples() -> int:
    """What the control of examples ends with, on this server."""
    return min(2000, limits().training_examples)


def domains_of(experts: Mapping[str, str]) -> list[str]:
    """The domains that experts have rows of."""
    return [name for name in experts if name in RECIPES]


def own_rows(path: str | None, experts: Sequence[str]) -> FileSource:
    """The rows of a visitor's file, for experts of these names.

    Raises:
        DataError: no file, one that is too large or has too many domains or tasks, or rows of another form; its
            folder is not named.
    """
    if not path or not Path(path).is_file():
        raise DataError("Give the file of your rows; one that was given more than an hour ago is no longer here.")
    if (size := Path(path).stat().st_size) > MOST_ROWS_BYTES:
        raise DataError(
            f"{Path(path).name} has {size / 1e6:,.0f} MB, and at most {MOST_ROWS_BYTES / 1e6:,.0f} MB of rows are "
            "read here; give fewer rows."
        )
    try:
        found = FileSource([path], experts)
    except DataError as error:
        raise DataError(str(error).replace(path, Path(path).name)) from error
    for what, count, most in (
        ("domains", len(found.domains()), MOST_DOMAINS),
        ("tasks", len(found.all_tasks()), MOST_TASKS),
    ):
        if count > most:
            raise DataError(
                f"The rows of {Path(path).name} name {count:,} {what}, and at most {most:,} are allowed here; give "
                "related rows the same name."
            )
    return found


def describe_data(choice: str) -> str:
    """Where rows will come from, without a folder of this machine."""
    if choice == "file":
        return (
            "A .jsonl file: one JSON object per line with id, task, domain, prompt and target, all texts; domain is "
            "the name of the expert that the row belongs to. The file is kept with the training, and goes with it."
        )
    if choice == "generated":
        return "Generated rows: a toy set with exact answers, good for a trial, and no measure of anything."
    if choice == "hub":
        return "Rows from the Hugging Face Hub, at pinned commits; they are fetched when the training begins."
    named = os.environ.get(VARIABLE)
    if named and named not in ("hub", "generated"):
        try:
            find_source()
        except DataError:
            return f"{VARIABLE} names a folder that is not there; choose other rows."
        return f"Rows from the folder that {VARIABLE} names."
    if named:
        return describe_data(named)
    return f"{VARIABLE} is not set: rows from the Hugging Face Hub where it answers, else generated ones."
