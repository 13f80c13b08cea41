"""Rows of text for training and evaluation: one schema, read from a folder or generated, and mixed by domain.

A folder holds ``<task>/<split>.jsonl.gz`` files; the environment variable ``LORAMIXER_DATA`` names it. Without one,
:func:`generated_examples` gives a small seeded set with exact answers, so that every command can be tried.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramixer.errors import DataError

IGNORED_LABEL = -100
"""Label of tokens that carry no loss (the value that PyTorch's cross-entropy skips)."""


@dataclass(frozen=True)
class Example:
    """One row of any data set.

    Attributes:
        id: unique within the task.
        task: name of the data set, such as ``gsm8k``.
        domain: the expert that this row belongs to, such as ``math``.
        prompt: plain question or instruction, without chat template.
        target: gold answer.
        choices: possible answers, or None where the answer is free text.
        label: index of the gold answer in ``choices``, or None.
    """

    id: str
    task: str
    domain: str
    prompt: str
    target: str
    choices: tuple[str, ...] | None = None
    label: int | None = None


@dataclass(frozen=True)
class DomainRecipe:
    """What one domain is made of.

    Attributes:
        expert: name of the expert and of the domain.
        tasks: data sets of the domain and the number of training rows taken from each for its expert.
        epochs: passes over those rows when the expert is trained.
        licenses: licence of each task, as its source states it; goes into model cards.
    """

    expert: str
    tasks: dict[str, int]
    epochs: int
    licenses: dict[str, str]


RECIPES: dict[str, DomainRecipe] = {
    recipe.expert: recipe
    for recipe in (
        DomainRecipe("math", {"gsm8k": 1200}, 1, {"gsm8k": "MIT"}),
        DomainRecipe("medical", {"medquad": 700, "pubmedqa": 200}, 1, {"medquad": "CC BY 4.0", "pubmedqa": "MIT"}),
        DomainRecipe("code", {"mbpp": 371}, 3, {"mbpp": "MIT (repository; none stated for the data file)"}),
        DomainRecipe(
            "language",
            {"cola": 1500, "sst2": 1500},
            1,
            {"cola": "fair use for research, copyright stays with the authors of the texts", "sst2": "MIT"},
        ),
    )
}
"""The four domains of the shipped mixture (experts of the embedded backbone)."""

DOMAIN_OF_TASK: dict[str, str] = {task: recipe.expert for recipe in RECIPES.values() for task in recipe.tasks}


def data_folder() -> Path | None:
    """The folder named by ``LORAMIXER_DATA``, or None when it is not set.

    Raises:
        DataError: the variable is set but names no folder.
    """
    given = os.environ.get("LORAMIXER_DATA")
    if not given:
        return None
    folder = Path(given)
    if not folder.is_dir():
        raise DataError(f"LORAMIXER_DATA is '{given}', which is no folder; unset it or name a folder of data sets.")
    return folder


def read_examples(path: str | Path) -> list[Example]:
    """Read a ``.jsonl`` or ``.jsonl.gz`` file in the schema of :class:`Example` (other fields are ignored).

    The domain of a task that :data:`RECIPES` knows is the name of its expert; other rows keep the domain they state.

    Raises:
        DataError: the file is missing or unreadable, or a line breaks the schema; names file, line and field.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no data file {path}; give a .jsonl or .jsonl.gz file.")
    examples = []
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    examples.append(_example_from_line(line, f"{path}, line {number}"))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"The data file {path} cannot be read ({error}); it must be UTF-8 JSON lines.") from error
    if not examples:
        raise DataError(f"The data file {path} has no rows.")
    return examples


def _example_from_line(line: str, where: str) -> Example:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no valid JSON ({error.msg}); every line must hold one JSON object.") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}; every line must hold one JSON object.")
    for field in ("id", "task", "domain", "prompt", "target"):
        if not isinstance(row.get(field), str):
            raise DataError(f"{where}: field '{field}' is {row.get(field)!r}; a text is needed.")
    choices, label = row.get("choices"), row.get("label")
    if choices is not None and not (isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)):
        raise DataError(f"{where}: field 'choices' is {choices!r}; a list of texts or null is needed.")
    if label is not None and not (isinstance(label, int) and choices and 0 <= label < len(choices)):
        raise DataError(f"{where}: field 'label' is {label!r}; an index into 'choices' or null is needed.")
    return Example(
        id=row["id"],
        task=row["task"],
        domain=DOMAIN_OF_TASK.get(str(row["task"])) or str(row["domain"]),
        prompt=row["prompt"],
        target=row["target"],
        choices=tuple(choices) if choices is not None else None,
        label=label,
    )


def task_examples(task: str, split: str, folder: Path) -> list[Example]:
    """All rows of one split of one task in a data folder."""
    return read_examples(folder / task / f"{split}.jsonl.gz")


def expert_examples(domain: str, seed: int) -> list[Example]:
    """The training rows of one expert: the head of a seeded shuffle of each of its tasks.

    Raises:
        DataError: no recipe for this domain.
    """
    recipe = _recipe(domain)
    folder = data_folder()
    if folder is None:
        return [row for row in generated_examples(400 * len(RECIPES), seed) if row.domain == domain]
    rows = [
        row
        for task, count in recipe.tasks.items()
        for row in _shuffled(task_examples(task, "train", folder), seed, task)[:count]
    ]
    random.Random(seed).shuffle(rows)
    return rows


def mixed_examples(count: int, seed: int, domains: Sequence[str] | None = None) -> list[Example]:
    """A mixture for router training: equal shares of every domain, and of every task inside a domain.

    Rows come from the end of the same seeded shuffle that :func:`expert_examples` takes the head of, so that routers
    see rows that their experts were not trained on wherever a task has enough of them.

    Args:
        count: number of rows in all.
        seed: shuffles the rows.
        domains: names of :data:`RECIPES`; all by default.

    Raises:
        DataError: an unknown domain, or fewer than one row per domain.
    """
    names = list(domains or RECIPES)
    if count < len(names):
        raise DataError(f"{count} examples cannot cover {len(names)} domains; ask for at least {len(names)}.")
    folder = data_folder()
    if folder is None:
        return [row for row in generated_examples(count, seed) if row.domain in names]
    rows: list[Example] = []
    for name, share in zip(names, _equal_shares(count, len(names)), strict=True):
        tasks = list(_recipe(name).tasks)
        for task, task_share in zip(tasks, _equal_shares(share, len(tasks)), strict=True):
            pool = _shuffled(task_examples(task, "train", folder), seed, task)[::-1]
            # A task with too few rows is repeated rather than leaving its domain short.
            rows.extend(pool[index % len(pool)] for index in range(task_share))
    random.Random(seed).shuffle(rows)
    return rows


def held_out_examples(domain: str, count: int, seed: int, split: str = "test") -> list[Example]:
    """Seeded evaluation rows of one domain, equal shares of its tasks; never rows that anything was trained on."""
    folder = data_folder()
    if folder is None:
        # A seed that training never uses: generated rows are then new, though of the same form.
        rows = [row for row in generated_examples(count * len(RECIPES), seed + 1_000_003) if row.domain == domain]
        return rows[:count]
    tasks = list(_recipe(domain).tasks)
    return [
        row
        for task, share in zip(tasks, _equal_shares(count, len(tasks)), strict=True)
        for row in _shuffled(task_examples(task, split, folder), seed, task)[:share]
    ]


def generated_examples(count: int, seed: int) -> list[Example]:
    """A small generated set with exact answers: arithmetic, dosing, one-line functions and grammar.

    It exists so that every command runs with no data at all; screens and logs that use it say ``generated``.
    """
    rng = random.Random(seed)
    makers = {"math": _sum_row, "medical": _dose_row, "code": _function_row, "language": _grammar_row}
    domains = list(makers)
    return [
        makers[domain](rng, f"generated-{domain}-{seed}-{index}")
        for index, domain in ((index, domains[index % len(domains)]) for index in range(count))
    ]


def _sum_row(rng: random.Random, row_id: str) -> Example:
    boxes, each, gone = rng.randint(2, 12), rng.randint(3, 20), rng.randint(1, 5)
    prompt = f"A shop has {boxes} boxes with {each} pens each and sells {gone} pens. How many pens are left?"
    total = boxes * each
    target = f"There are {boxes} * {each} = {total} pens. {total} - {gone} = {total - gone} pens are left.\n#### "
    return Example(row_id, "generated_math", "math", prompt, f"{target}{total - gone}")


def _dose_row(rng: random.Random, row_id: str) -> Example:
    weight, per_kilogram, times = rng.randint(10, 90), rng.choice([2, 5, 10, 15]), rng.randint(1, 4)
    prompt = (
        f"A patient weighs {weight} kg and receives {per_kilogram} mg of the drug per kg, {times} times a day. "
        "What is the daily dose?"
    )
    dose = weight * per_kilogram
    return Example(
        row_id,
        "generated_medical",
        "medical",
        prompt,
        f"Each dose is {dose} mg, so the patient receives {dose * times} mg of the drug a day.",
    )


def _function_row(rng: random.Random, row_id: str) -> Example:
    verb, sign = rng.choice([("adds", "+"), ("subtracts", "-"), ("multiplies by", "*")])
    number = rng.randint(2, 99)
    prompt = f"Write a Python function f(x) that {verb} {number}."
    return Example(row_id, "generated_code", "code", prompt, f"def f(x):\n    return x {sign} {number}")


def _grammar_row(rng: random.Random, row_id: str) -> Example:
    subject, verb = rng.choice(
        [("The dogs", "run"), ("The dog", "runs"), ("My friends", "sing"), ("My friend", "sings")]
    )
    correct = rng.random() < 0.5
    if not correct:
        verb = verb[:-1] if verb.endswith("s") else f"{verb}s"
    place = rng.choice(["in the park", "at home", "by the sea", "every day", "after lunch", "before dawn"])
    prompt = f"Is this sentence grammatically acceptable? Answer yes or no.\nSentence: {subject} {verb} {place}."
    return Example(
        row_id, "generated_language", "language", prompt, "yes" if correct else "no", ("no", "yes"), int(correct)
    )


def chat_prompt(tokenizer: Any, prompt: str) -> str:
    """What a model is given for a prompt: its chat template filled in, else the prompt and a line end."""
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": prompt}]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return f"{prompt}\n"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model reads it.

    Attributes:
        text: the prompt inside its chat template.
        span: character span of the user's own words in ``text``.
        ids: its tokens.
        offsets: character span of every token in ``text``.
    """

    text: str
    span: tuple[int, int]
    ids: list[int]
    offsets: list[tuple[int, int]]

    def is_own(self) -> list[bool]:
        """For every token, whether it belongs to the user's words and not to the template."""
        return [start >= self.span[0] and end <= self.span[1] and end > start for start, end in self.offsets]


def encode_prompt(tokenizer: Any, prompt: str, chat: bool = True) -> EncodedPrompt:
    """Tokenise a prompt, inside the chat template unless ``chat`` is false."""
    text = chat_prompt(tokenizer, prompt) if chat else prompt
    # Some templates strip the message, so the trimmed prompt is what can be found again.
    start = text.rfind(prompt.strip())
    encoded = tokenizer(text, add_special_tokens=not chat, return_offsets_mapping=True)
    return EncodedPrompt(text, (start, start + len(prompt.strip())), encoded["input_ids"], encoded["offset_mapping"])


def encode(
    example: Example, tokenizer: Any, max_length: int, max_answer: int | None = None, target: str | None = None
) -> dict[str, list[int]] | None:
    """Tokens of one row with loss on the answer only.

    Args:
        example: the row.
        tokenizer: a fast tokenizer.
        max_length: longest allowed row in tokens; a longer answer is cut at its end.
        max_answer: longest allowed answer in tokens, within ``max_length``.
        target: another answer than the gold one (to score a choice).

    Returns:
        ``input_ids``, ``labels`` (:data:`IGNORED_LABEL` on the prompt) and ``own_tokens`` (1 on the user's words and
        the answer, 0 on the template); or None when the prompt leaves no room for an answer of at least one token.
    """
    prompt = encode_prompt(tokenizer, example.prompt)
    answer = example.target if target is None else target
    answer_ids = tokenizer(answer + (tokenizer.eos_token or ""), add_special_tokens=False)["input_ids"]
    room = max_length - len(prompt.ids)
    if room < 1 or not answer_ids:
        return None
    answer_ids = answer_ids[: room if max_answer is None else min(room, max_answer)]
    return {
        "input_ids": prompt.ids + answer_ids,
        "labels": [IGNORED_LABEL] * len(prompt.ids) + answer_ids,
        "own_tokens": [int(own) for own in prompt.is_own()] + [1] * len(answer_ids),
    }


def encode_all(
    examples: Iterable[Example], tokenizer: Any, max_length: int, max_answer: int | None = None
) -> tuple[list[dict[str, list[int]]], list[Example]]:
    """Encode rows, leaving out those whose prompt is too long; returns the encoded rows and the rows they are of."""
    encoded, kept = [], []
    for example in examples:
        if (row := encode(example, tokenizer, max_length, max_answer)) is not None:
            encoded.append(row)
            kept.append(example)
    return encoded, kept


def batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most ``size`` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def fingerprint(examples: Iterable[Example]) -> str:
    """A short digest of which rows were used, in order: 12 hexadecimal digits of SHA-256 over task and id."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.task}\t{example.id}\n".encode())
    return digest.hexdigest()[:12]


def rows_per_task(examples: Sequence[Example]) -> dict[str, int]:
    """Number of rows of each task, sorted by task."""
    return dict(sorted(Counter(example.task for example in examples).items()))


def data_origin() -> str:
    """Where rows come from in this process: ``folder`` or ``generated``; logs and screens print it."""
    return "folder" if data_folder() is not None else "generated"


def _recipe(domain: str) -> DomainRecipe:
    if domain not in RECIPES:
        raise DataError(f"There is no recipe for the domain '{domain}'; there are {', '.join(RECIPES)}.")
    return RECIPES[domain]


def _shuffled(examples: list[Example], seed: int, task: str) -> list[Example]:
    order = list(examples)
    random.Random(f"{seed}-{task}").shuffle(order)
    return order


def _equal_shares(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]
