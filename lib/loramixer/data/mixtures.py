"""Which rows an expert is trained on, which the routers, and which nothing is trained on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from loramixer.data.generated import DEFAULT_FAMILIES, FAMILIES, generated_examples
from loramixer.data.overlap import OverlapReport, without_overlap
from loramixer.data.recipes import Origin, recipe_has
from loramixer.data.schema import Example, fingerprint
from loramixer.data.sources import AnySource, GeneratedSource, Source, find_source
from loramixer.errors import DataError

GENERATED_ROWS = 400
"""Rows that the generator gives for one expert."""

HELD_OUT_SEED = 1_000_003
"""Added to the seed of generated evaluation rows: training never uses such a seed."""


SPLIT_SEED = 0
"""Divides the rows of every task between experts and routers, whatever the seeds of their trainings are."""


def expert_examples(
    domain: str,
    seed: int,
    source: AnySource = None,
    evaluation: Iterable[Example] | None = None,
    reports: list[OverlapReport] | None = None,
) -> list[Example]:
    """The training rows of one expert: the part of each of its tasks that routers take last.

    Args:
        domain: name of a recipe, or a domain that the source has of its own.
        seed: the order of the rows; which they are is the same for all seeds, so that routers of any seed have others.
        source: what :func:`loramixer.data.find_source` takes.
        evaluation: rows whose prompts must not be trained on, from :func:`evaluation_examples`.
        reports: receives what was left out of each task.

    Raises:
        DataError: no such domain, no such rows, or nothing left of a task.
    """
    found = find_source(source)
    tasks = found.tasks(domain)
    if isinstance(found, GeneratedSource):
        return _generated_rows(domain, GENERATED_ROWS, seed)
    held_out = None if evaluation is None else list(evaluation)
    reports = [] if reports is None else reports
    rows = []
    for task in tasks:
        own, _ = _divided(found, domain, task)
        rows += own if held_out is None else _without(own, held_out, task, reports)
    random.Random(seed).shuffle(rows)
    return rows


def held_out_examples(
    domain: str, count: int, seed: int, split: str = "test", source: AnySource = None
) -> list[Example]:
    """Seeded evaluation rows of one domain, equal shares of its tasks; never rows that anything was trained on."""
    found = find_source(source)
    tasks = found.tasks(domain)
    if isinstance(found, GeneratedSource):
        return _generated_rows(domain, count, seed + HELD_OUT_SEED)
    return [
        row
        for task, share in zip(tasks, _equal_shares(count, len(tasks)), strict=True)
        for row in _shuffled(_rows(found, domain, task, split), seed, task)[:share]
    ]


def evaluation_examples(
    domains: Sequence[str] | None = None, source: AnySource = None, splits: Sequence[str] = ("validation", "test")
) -> list[Example]:
    """All rows of the evaluation splits of some domains, for :func:`draw_mixture` to keep out of training.

    Generated rows have none: their families are small and repeat themselves on purpose.
    """
    found = find_source(source)
    return [
        row
        for domain in domains or found.domains()
        for task in found.tasks(domain)
        for split in splits
        if split in found.splits(task)
        for row in _rows(found, domain, task, split)
    ]


@dataclass(frozen=True)
class Mixture:
    """Rows of several domains in training order, and what they are.

    Attributes:
        rows: the rows.
        origin: where they come from.
        balance: what the domains' shares are shares of, ``rows`` or ``tokens``.
        seed: of the draw.
        rows_of: domain → number of rows.
        tokens_of: domain → number of tokens; None where no counter was given.
        overlap: what was left out because an evaluation set has it; None where nothing was compared.
        too_long: rows passed over since they have no tokens within the allowed length.
    """

    rows: list[Example]
    origin: Origin
    balance: Literal["rows", "tokens"]
    seed: int
    rows_of: dict[str, int]
    tokens_of: dict[str, int] | None
    overlap: OverlapReport | None
    too_long: int

    def to_dict(self) -> dict[str, Any]:
        """All but the rows, with their fingerprint, for a run log."""
        described = {name: value for name, value in asdict(replace(self, rows=[])).items() if name != "rows"}
        return {**described, "fingerprint": fingerprint(self.rows)}


def mixed_examples(
    count: int, seed: int, domains: Sequence[str] | None = None, source: AnySource = None
) -> list[Example]:
    """A mixture for router training: equal shares of every domain, and of every task inside a domain.

    The rows of :func:`draw_mixture` without its options.
    """
    return draw_mixture(count, seed, domains, source=source).rows


def draw_mixture(
    count: int,
    seed: int,
    domains: Sequence[str] | None = None,
    *,
    shares: Mapping[str, float] | None = None,
    balance: Literal["rows", "tokens"] = "rows",
    count_tokens: Callable[[Example], int] | None = None,
    evaluation: Iterable[Example] | None = None,
    source: AnySource = None,
) -> Mixture:
    """Draw a mixture for router training.

    The rows of a task that :func:`expert_examples` leaves come first, so that routers of any seed see rows that their
    experts were not trained on wherever a task has enough of them. Inside a domain every task has an equal share. A
    task with too few rows is repeated rather than leaving its domain short.

    Routing losses are means over tokens, so with equal rows the domains with long rows draw most of the load;
    ``balance="tokens"`` gives every domain its share of the tokens instead.

    Args:
        count: number of rows in all.
        seed: the same rows in the same order for the same seed.
        domains: names of recipes, or domains that the source has of its own; the source's usual ones by default, see
            :meth:`loramixer.data.Source.domains`.
        shares: domain → its relative share; equal by default.
        balance: what the shares are shares of.
        count_tokens: tokens of a row in training, from :func:`loramixer.data.token_counter`; ``balance="tokens"``
            needs it, and then passes rows of no tokens over.
        evaluation: rows whose prompts must not be trained on, from :func:`evaluation_examples`.
        source: what :func:`loramixer.data.find_source` takes.

    Raises:
        DataError: an unknown domain, domains that share a data set, fewer than one row per domain, shares that do not
            fit the domains, or nothing left of a task.
    """
    found = find_source(source)
    names = list(domains or found.domains())
    _check_disjoint(found, names)
    if count < len(names):
        raise DataError(f"{count} examples cannot cover {len(names)} domains; ask for at least {len(names)}.")
    weights = _weights(names, shares)
    if balance == "tokens" and count_tokens is None:
        raise DataError("balance='tokens' needs count_tokens; give token_counter(tokenizer).")
    drawn: dict[str, list[Example]]
    reports: list[OverlapReport] = []
    too_long = 0
    if isinstance(found, GeneratedSource) and shares is None and balance == "rows" and evaluation is None:
        # In turn and unshuffled, so that the shortest trial sees every domain.
        families = [family for family in FAMILIES if family in map(_family_of, names)]
        rows = generated_examples(count, seed, families)
        drawn = {name: [row for row in rows if row.domain == name] for name in names}
    else:
        held_out = None if evaluation is None else list(evaluation)
        queues = []
        for name in names:
            pools = _pools(name, count, seed, found)
            if held_out is not None:
                pools = {task: _without(pool, held_out, task, reports) for task, pool in pools.items()}
            queues.append(_Domain(pools, count_tokens if balance == "tokens" else None))
        for _ in range(count):
            chosen = min(range(len(names)), key=lambda index: queues[index].level() / weights[names[index]])
            queues[chosen].take()
        drawn = {name: queue.taken() for name, queue in zip(names, queues, strict=True)}
        too_long = sum(queue.too_long() for queue in queues)
        rows = [row for part in drawn.values() for row in part]
        random.Random(seed).shuffle(rows)
    return Mixture(
        rows=rows,
        origin=found.origin,
        balance=balance,
        seed=seed,
        rows_of={name: len(part) for name, part in drawn.items()},
        tokens_of={name: sum(map(count_tokens, part)) for name, part in drawn.items()} if count_tokens else None,
        overlap=_merged(reports) if evaluation is not None else None,
        too_long=too_long,
    )


class _Task:
    """The rows of one task in order, how many are taken, and what they cost."""

    def __init__(self, task: str, pool: list[Example], count_tokens: Callable[[Example], int] | None) -> None:
        self.task, self.pool, self.count_tokens = task, pool, count_tokens
        self.taken: list[Example] = []
        self.used = 0
        self.too_long = 0
        self.position = 0
        self.cost = 1
        self._skip()

    def level(self) -> float:
        """How much is used up when half of the next row is counted: whoever is lowest is next (Webster's method)."""
        return self.used + self.cost / 2

    def take(self) -> None:
        self.taken.append(self.pool[self.position % len(self.pool)])
        self.used += self.cost
        self.position += 1
        self._skip()

    def _skip(self) -> None:
        """Go on to the next row that has tokens."""
        if self.count_tokens is None:
            return
        for _ in self.pool:
            self.cost = self.count_tokens(self.pool[self.position % len(self.pool)])
            if self.cost > 0:
                return
            self.too_long += self.position < len(self.pool)  # a row that comes round again is no other row
            self.position += 1
        raise DataError(f"No row of {self.task} fits the allowed length; raise max_length, or leave its domain out.")


class _Domain:
    """The tasks of one domain, with equal shares."""

    def __init__(self, pools: dict[str, list[Example]], count_tokens: Callable[[Example], int] | None) -> None:
        self.tasks = [_Task(task, pool, count_tokens) for task, pool in pools.items()]

    def _next(self) -> _Task:
        return min(self.tasks, key=_Task.level)

    def level(self) -> float:
        return sum(task.used for task in self.tasks) + self._next().cost / 2

    def take(self) -> None:
        self._next().take()

    def taken(self) -> list[Example]:
        return [row for task in self.tasks for row in task.taken]

    def too_long(self) -> int:
        return sum(task.too_long for task in self.tasks)


def _weights(names: Sequence[str], shares: Mapping[str, float] | None) -> dict[str, float]:
    if shares is None:
        return dict.fromkeys(names, 1.0)
    if set(shares) != set(names) or not all(0 < share < float("inf") for share in shares.values()):
        raise DataError(
            f"The shares are {dict(shares)}; one positive number for each of {', '.join(names)} is needed."
        )
    return dict(shares)


def _pools(domain: str, count: int, seed: int, source: Source) -> dict[str, list[Example]]:
    """Task → its rows in the order in which routers take them."""
    if isinstance(source, GeneratedSource):
        rows = _generated_rows(domain, count, seed)
        return {rows[0].task: rows}
    return {task: _router_order(*_divided(source, domain, task), seed, task) for task in source.tasks(domain)}


def _divided(source: Source, domain: str, task: str) -> tuple[list[Example], list[Example]]:
    """The rows of a task that its expert is trained on, and the others."""
    order = _shuffled(_rows(source, domain, task, "train"), SPLIT_SEED, task)
    count = source.expert_count(domain, task, len(order))
    return order[:count], order[count:]


def _router_order(experts_own: list[Example], others: list[Example], seed: int, task: str) -> list[Example]:
    """Rows that are new to the expert first, both parts in an order of the seed."""
    if seed == SPLIT_SEED:  # the order of the routers that ship
        return others[::-1] + experts_own[::-1]
    return _shuffled(others, seed, task) + _shuffled(experts_own, seed, task)


def _without(
    pool: list[Example], evaluation: Sequence[Example], task: str, reports: list[OverlapReport]
) -> list[Example]:
    kept, report = without_overlap(pool, evaluation)
    reports.append(report)
    if not kept:
        raise DataError(f"Every row of {task} is also in an evaluation set; leave its domain out.")
    return kept


def _merged(reports: Sequence[OverlapReport]) -> OverlapReport:
    """Reports of different tasks as one."""
    merged = OverlapReport()
    for report in reports:
        for name in ("same", "overlapping", "kept"):
            counts = getattr(merged, name)
            for task, count in getattr(report, name).items():  # two own domains can share a task
                counts[task] = counts.get(task, 0) + count
    return merged


def _generated_rows(domain: str, count: int, seed: int) -> list[Example]:
    family = _family_of(domain)
    if family not in DEFAULT_FAMILIES:
        return generated_examples(count, seed, [family])
    return [row for row in generated_examples(count * len(DEFAULT_FAMILIES), seed) if row.domain == domain]


def _family_of(domain: str) -> str:
    return next(name for name, family in FAMILIES.items() if family.domain == domain)


def _rows(source: Source, domain: str, task: str, split: str) -> list[Example]:
    """The rows of a task that belong to a domain: all of them where its recipe says so, else those that state it."""
    rows = source.rows(task, split)
    if not recipe_has(domain, task):
        return [row for row in rows if row.domain == domain]
    return [row if row.domain == domain else replace(row, domain=domain) for row in rows]


def _check_disjoint(source: Source, domains: Sequence[str]) -> None:
    """Refuse domains that share a row: it would belong to two experts."""
    owners: dict[tuple[str, str], str] = {}
    for domain in domains:
        for task in source.tasks(domain):
            rows = (task, "" if recipe_has(domain, task) else domain)
            if rows in owners:
                raise DataError(
                    f"The domains '{owners[rows]}' and '{domain}' both hold the data set {task}; name one of them."
                )
            owners[rows] = domain


def _shuffled(examples: list[Example], seed: int, task: str) -> list[Example]:
    order = list(examples)
    random.Random(f"{seed}-{task}").shuffle(order)
    return order


def _equal_shares(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]
