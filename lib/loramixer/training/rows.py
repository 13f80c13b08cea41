"""Encoded rows for the training loop, and what was cut or left out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loramixer.data import Example, Source, encode_all, evaluation_examples
from loramixer.distributed import say
from loramixer.errors import DataError
from loramixer.training.settings import LoopSettings


@dataclass(frozen=True)
class EncodedRows:
    """Rows for :func:`loramixer.training.loop.run_training`.

    Attributes:
        rows: ``input_ids``, ``labels``, ``id``, and ``expert_index`` where experts are known.
        examples: the rows that they are of.
        facts: for the run log: how many rows were left out since their prompt was too long, and how many answers were
            cut at their end.
    """

    rows: list[dict[str, Any]]
    examples: list[Example]
    facts: dict[str, int]

    @property
    def text(self) -> str:
        """For people."""
        return (
            f"{len(self.rows)} rows ({self.facts['rows_left_out']} left out as too long, answers of "
            f"{self.facts['answers_cut']} cut)"
        )


def rows_to_leave_out(domains: Sequence[str] | None, source: Source) -> list[Example] | None:
    """The evaluation rows, which ``dedupe`` keeps out of a training; where there are none it says so: None."""
    rows = evaluation_examples(domains, source)
    if rows:
        return rows
    of = f" of {', '.join(domains)}" if domains else ""
    say(f"Nothing is left out by dedupe: the {source.origin} data have no evaluation rows{of} to compare with.")
    return None


def encode_rows(
    examples: Sequence[Example], tokenizer: Any, settings: LoopSettings, experts: Sequence[str] | None = None
) -> EncodedRows:
    """Encode rows within the lengths of the settings.

    Args:
        examples: the rows.
        tokenizer: of the backbone.
        settings: for the lengths.
        experts: names in the order of the gates, for ``expert_index`` (the row's own expert, −1 for none).

    Raises:
        DataError: no row, or none whose prompt leaves room for an answer.
    """
    if not examples:
        raise DataError("There are no rows to train on; give at least one (see limit and examples).")
    encoded, kept = encode_all(examples, tokenizer, settings.max_length, settings.max_answer)
    if not kept:
        raise DataError(
            f"0 of {len(examples)} rows leave room for an answer within {settings.max_length} tokens; raise "
            "max_length (--max-length), or give shorter prompts."
        )
    rows: list[dict[str, Any]] = []
    for row, example in zip(encoded, kept, strict=True):
        found: dict[str, Any] = {
            "input_ids": row["input_ids"],
            "labels": row["labels"],
            "id": f"{example.task}/{example.id}",
        }
        if experts is not None:
            found["expert_index"] = experts.index(example.domain) if example.domain in experts else -1
        rows.append(found)
    # A whole answer ends with the token that ends a text.
    cut = sum(row["input_ids"][-1] != tokenizer.eos_token_id for row in rows) if tokenizer.eos_token else 0
    return EncodedRows(rows, kept, {"rows_left_out": len(examples) - len(kept), "answers_cut": cut})
