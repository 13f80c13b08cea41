"""The one row type of every data set, and reading it from files."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramixer.data.recipes import domain_of_task
from loramixer.errors import DataError


@dataclass(frozen=True)
class Span:
    """Which characters of a prompt belong to a domain.

    Attributes:
        start: first character.
        end: one past the last character.
        domain: name of the domain.
    """

    start: int
    end: int
    domain: str


@dataclass(frozen=True)
class Example:
    """One row of any data set.

    Attributes:
        id: unique within the task.
        task: name of the data set, such as ``gsm8k``.
        domain: the expert that this row belongs to, such as ``math``; ``math-medical`` for a row that crosses two.
        prompt: plain question or instruction, without chat template.
        target: gold answer.
        choices: possible answers, or None where the answer is free text.
        label: index of the gold answer in ``choices``, or None.
        spans: the domain of parts of the prompt, in order and without overlap, or None where nobody has marked them.
    """

    id: str
    task: str
    domain: str
    prompt: str
    target: str
    choices: tuple[str, ...] | None = None
    label: int | None = None
    spans: tuple[Span, ...] | None = None


def read_examples(path: str | Path, domains: Sequence[str] = ()) -> list[Example]:
    """Read a ``.jsonl`` or ``.jsonl.gz`` file in the schema of :class:`Example` (other fields are ignored).

    The domain of a task that a recipe knows is the name of its expert; other rows keep the domain they state.

    Args:
        path: the file.
        domains: experts that the rows are for; where two recipes hold a task (``language`` and ``acceptability`` both
            hold CoLA), the one that is named here gives the domain, else the one that the row states.

    Raises:
        DataError: the file is missing or unreadable, or a line breaks the schema; names file, line and field.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no data file {path}; give a .jsonl or .jsonl.gz file.")
    examples: list[Example] = []
    lines_of_ids: dict[tuple[str, str], int] = {}
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    examples.append(_example_from_line(line, f"{path}, line {number}", domains))
                    _note_id(examples[-1], number, lines_of_ids, path)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"The data file {path} cannot be read ({error}); it must be UTF-8 JSON lines.") from error
    if not examples:
        raise DataError(f"The data file {path} has no rows.")
    return examples


def _note_id(example: Example, number: int, lines_of_ids: dict[tuple[str, str], int], path: Path) -> None:
    """Rows are told apart by task and id, when they are drawn and when test rows are compared."""
    former = lines_of_ids.setdefault((example.task, example.id), number)
    if former != number:
        raise DataError(
            f"{path}, line {number}: field 'id' is {example.id!r}, as in line {former} of the same task; give "
            "every row of a task an id of its own."
        )


def _example_from_line(line: str, where: str, domains: Sequence[str]) -> Example:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and brackets without end
        raise DataError(f"{where}: no valid JSON ({error}); every line must hold one JSON object.") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}; every line must hold one JSON object.")
    for field in ("id", "task", "domain", "prompt", "target"):
        if not isinstance(row.get(field), str) or not _is_text(row[field]):
            raise DataError(f"{where}: field '{field}' is {row.get(field)!r}; a text is needed.")
        if not row[field].strip():
            raise DataError(f"{where}: field '{field}' is empty; a text is needed.")
    choices, label = row.get("choices"), row.get("label")
    of_texts = isinstance(choices, list) and all(isinstance(choice, str) and _is_text(choice) for choice in choices)
    if choices is not None and not of_texts:
        raise DataError(f"{where}: field 'choices' is {choices!r}; a list of texts or null is needed.")
    # A truth value is an int to Python; as a label it is somebody's mistake.
    is_index = isinstance(label, int) and not isinstance(label, bool)
    if label is not None and not (is_index and choices and 0 <= label < len(choices)):
        raise DataError(f"{where}: field 'label' is {label!r}; an index into 'choices' or null is needed.")
    if choices and label is not None and choices[label] != row["target"]:
        raise DataError(
            f"{where}: field 'target' is {row['target']!r}, and choice {label}, which 'label' names, is "
            f"{choices[label]!r}; both must be the gold answer (the first choice is 0)."
        )
    return Example(
        id=row["id"],
        task=row["task"],
        domain=domain_of_task(row["task"], (*domains, row["domain"])) or row["domain"],
        prompt=row["prompt"],
        target=row["target"],
        choices=tuple(choices) if choices is not None else None,
        label=label,
        spans=_spans(row.get("spans"), len(row["prompt"]), where),
    )


def _is_text(words: str) -> bool:
    """Half an emoji is a string to JSON and to Python, and no text that a tokenizer could read."""
    return not any("\ud800" <= character <= "\udfff" for character in words)


def _spans(given: Any, length: int, where: str) -> tuple[Span, ...] | None:
    if given is None:
        return None
    try:
        spans = tuple(Span(start, end, domain) for start, end, domain in given)
        edges = [0, *(edge for span in spans for edge in (span.start, span.end)), length]
        valid = edges == sorted(edges) and all(isinstance(span.domain, str) for span in spans)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise DataError(
            f"{where}: field 'spans' is {given!r}; a list of [start, end, domain] within the prompt, in order and "
            "without overlap, or null is needed."
        )
    return spans


def fingerprint(examples: Iterable[Example]) -> str:
    """A short digest of which rows were used, in order: 12 hexadecimal digits of SHA-256 over task and id."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.task}\t{example.id}\n".encode())
    return digest.hexdigest()[:12]


def content_fingerprint(examples: Iterable[Example]) -> str:
    """The same of what the rows hold, prompt, answer and choices: rows that were corrected keep their ids."""
    digest = hashlib.sha256()
    for example in examples:
        held = (example.domain, example.prompt, example.target, example.choices, example.label)
        digest.update(json.dumps([example.task, example.id, *held]).encode())
    return digest.hexdigest()[:12]


def rows_used(examples: Sequence[Example]) -> dict[str, Any]:
    """What a run log says of the rows of a training: how many of each task, which, and what they held."""
    return {
        "rows": rows_per_task(examples),
        "rows_fingerprint": fingerprint(examples),
        "rows_content": content_fingerprint(examples),
    }


def rows_per_task(examples: Sequence[Example]) -> dict[str, int]:
    """Number of rows of each task, sorted by task."""
    return dict(sorted(Counter(example.task for example in examples).items()))
