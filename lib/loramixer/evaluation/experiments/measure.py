"""One mixture under one gate on the test rows: every number with its bootstrap samples over rows.

All measurements of the same rows use the same resamples (:func:`loramixer.metrics.row_resamples`), so any two of them
are paired, and a difference needs nothing but the difference of their samples.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loramixer.data import Example
from loramixer.evaluation.harness import Progress, RowScore, score_rows
from loramixer.metrics import entropy, load_variance, row_resamples, shuffled_token_band
from loramixer.tuner.runtime import active_runtime, set_gate
from loramixer.whole_files import scratch_file

ROUTING_GATE = "soft"
"""The gate under which routing is recorded: the one that routers train with."""

SHUFFLES = 200
"""Random assignments of rows to domains behind the null of the domain information."""

Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]
"""From how often each row counts, ``[B, n]``, to named numbers ``[B]``."""


@dataclass(frozen=True)
class Measurement:
    """What one mixture under one gate gave.

    Attributes:
        values: quantity → number over all rows.
        draws: quantity → the number on every bootstrap sample of the rows, ``[B]``.
        facts: ``rows``, ``device`` (as in ``cuda``; older files have none), ``seconds`` and, with routing, ``tokens``
            and the shuffled-token band.
        scores: what each row gave, without its gates; loss and accuracy are made of them.
    """

    values: dict[str, float]
    draws: dict[str, np.ndarray]
    facts: dict[str, Any]
    scores: list[RowScore]

    def interval(self, quantity: str) -> tuple[float, float]:
        """95 % bootstrap interval over rows."""
        low, high = np.quantile(self.draws[quantity], [0.025, 0.975])
        return float(low), float(high)

    def rows_of(self, quantity: str) -> int:
        """The number of rows that a quantity stands on: of a domain its own, of an accuracy those with choices."""
        named = (name for name in _domains(self.scores) if quantity.endswith(f"_{name}"))
        domain = max(named, key=len, default=None)  # one name can end another
        if quantity == f"load_{domain}":  # all rows load every expert
            domain = None
        return sum(
            domain in (None, score.domain) and (score.correct is not None or not quantity.startswith("accuracy"))
            for score in self.scores
        )

    def save(self, path: Path) -> None:
        """Write one ``.npz`` of some 4 to 30 kB; a kill leaves either nothing or the whole file.

        What follows from the rows is left out, and the samples of the routing are kept as half-precision distances
        from their number, so that the files of many runs can lie in a repository.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = scratch_file(path)
        routing = [name for name in self.values if name not in _task_statistic(self.scores)(_once(self.scores))]
        with scratch.open("wb") as file:
            np.savez_compressed(
                file,
                names=np.array(routing, dtype=str),
                values=np.array([self.values[name] for name in routing], dtype=float),
                distances=np.array([_distance(self.draws[name], self.values[name]) for name in routing]),
                domain=np.array([score.domain for score in self.scores]),
                task=np.array([score.task for score in self.scores]),
                loss=np.array([score.loss for score in self.scores]),
                tokens=np.array([score.tokens for score in self.scores], dtype=np.int32),
                correct=np.array([NOT_JUDGED if score.correct is None else score.correct for score in self.scores],
                                 dtype=np.int8),
                facts=np.array(json.dumps(self.facts)),
            )  # fmt: skip
        os.replace(scratch, path)

    @classmethod
    def load(cls, path: Path) -> Measurement:
        """Read what :meth:`save` wrote; nothing is unpickled."""
        with np.load(path, allow_pickle=False) as stored:
            columns = (stored[name].tolist() for name in ("domain", "task", "loss", "tokens", "correct"))
            scores = [
                RowScore(domain, task, loss, tokens, None if correct == NOT_JUDGED else bool(correct), None)
                for domain, task, loss, tokens, correct in zip(*columns, strict=True)
            ]
            names, values = stored["names"].tolist(), stored["values"].tolist()
            routing = dict(zip(names, values, strict=True))
            draws = {
                name: _from_distance(found, routing[name])
                for name, found in zip(names, stored["distances"], strict=True)
            }
            return cls._of(scores, routing, draws, json.loads(str(stored["facts"])))

    @classmethod
    def _of(
        cls, scores: list[RowScore], routing: dict[str, float], draws: dict[str, np.ndarray], facts: dict[str, Any]
    ) -> Measurement:
        """The numbers of the task from the rows, beside those of the routing."""
        statistic = _task_statistic(scores)
        values = {name: float(found[0]) for name, found in statistic(_once(scores)).items()}
        task_draws = {
            name: found.astype(np.float32) for name, found in statistic(_resamples(scores, TASK_DRAWS)).items()
        }
        return cls(values | routing, task_draws | draws, facts, scores)


NOT_JUDGED = -1
"""Stands in files for a row without choices."""


def _once(scores: Sequence[RowScore]) -> np.ndarray:
    """Every row counts once, ``[1, n]``."""
    return np.ones((1, len(scores)))


FEW_ROWS = 5
"""A task with fewer rows is drawn together with the rest of its domain: one row drawn from one never varies."""

TASK_DRAWS = 5000
"""Bootstrap samples of loss and accuracy, which are drawn again whenever a file is read."""

ROUTING_DRAWS = 500
"""Of the routing, which are stored."""


def _resamples(scores: Sequence[RowScore], draws: int) -> np.ndarray:
    sizes = Counter((score.domain, score.task) for score in scores)
    few = {domain for (domain, _), size in sizes.items() if size < FEW_ROWS}
    return row_resamples([(s.domain, "" if s.domain in few else s.task) for s in scores], draws=draws)


def _distance(draws: np.ndarray, value: float) -> np.ndarray:
    return (draws - value).astype(np.float16)


def _from_distance(distance: np.ndarray, value: float) -> np.ndarray:
    return (value + distance.astype(float)).astype(np.float32)


def measure(
    model: Any, tokenizer: Any, rows: Sequence[Example], gate: str, progress: Progress | None = None
) -> Measurement:
    """Score rows under a gate; with soft gates, record the routing too.

    Args:
        model: a mixture; it is left with this gate.
        tokenizer: its tokenizer.
        rows: test rows; ``domain`` needs an expert for the domain of each.
        gate: ``soft``, ``top_K`` with a number, ``domain`` (each row to the expert of its domain), ``uniform`` or
            ``off`` (the backbone alone).
        progress: receives ``(done, total)`` rows.
    """
    started = time.monotonic()
    routing = _RoutingSums(len(rows)) if gate == ROUTING_GATE else None
    scores: dict[int, RowScore] = {}
    parts: list[str | None] = list(dict.fromkeys(row.domain for row in rows)) if gate == "domain" else [None]
    for domain in parts:
        members = [index for index, row in enumerate(rows) if domain in (None, row.domain)]
        _set_named_gate(model, gate, domain)
        before = len(scores)
        found = score_rows(
            model,
            tokenizer,
            [rows[index] for index in members],
            routing=routing is not None,
            progress=None if progress is None else _counting_on(progress, before, len(rows)),
            observe=None if routing is None else routing.add,
        )
        scores.update(zip(members, found, strict=True))
    ordered = [replace(scores[index], shares=None) for index in range(len(rows))]
    facts: dict[str, Any] = {"rows": len(rows), "device": next(model.parameters()).device.type}
    values: dict[str, float] = {}
    draws: dict[str, np.ndarray] = {}
    if routing is not None:
        domains, experts = [row.domain for row in rows], list(active_runtime(model).experts)
        statistic = routing.statistic(domains, experts)
        values = {name: float(found[0]) for name, found in statistic(_once(ordered)).items()}
        # Rounded as in the file, so that a number is the same before and after.
        draws = {
            name: _from_distance(_distance(found, values[name]), values[name])
            for name, found in statistic(_resamples(ordered, ROUTING_DRAWS)).items()
        }
        facts |= routing.facts(domains)
    facts["seconds"] = round(time.monotonic() - started, 1)
    return Measurement._of(ordered, values, draws, facts)


def _counting_on(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


def _set_named_gate(model: Any, gate: str, domain: str | None) -> None:
    if gate.startswith("top_"):
        set_gate(model, "top_k", k=int(gate.removeprefix("top_")))
    else:
        set_gate(model, gate, domain=domain)  # type: ignore[arg-type]


def _task_statistic(scores: Sequence[RowScore]) -> Statistic:
    """Loss per answer token and accuracy of every domain, and their means over domains."""
    loss = np.array([score.loss for score in scores])
    tokens = np.array([score.tokens for score in scores], dtype=float)
    judged = np.array([score.correct is not None for score in scores])
    correct = np.array([bool(score.correct) for score in scores])
    members = {name: np.array([score.domain == name for score in scores]) for name in _domains(scores)}

    def statistic(counts: np.ndarray) -> dict[str, np.ndarray]:
        losses = {f"loss_{name}": counts @ (loss * own) / (counts @ (tokens * own)) for name, own in members.items()}
        accuracies = {
            f"accuracy_{name}": _share(counts, correct, judged & own)
            for name, own in members.items()
            if (judged & own).any()
        }
        means = {"loss": np.mean(list(losses.values()), axis=0)}
        if accuracies:
            means["accuracy"] = np.mean(list(accuracies.values()), axis=0)
        return means | losses | accuracies

    return statistic


def _share(counts: np.ndarray, correct: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """``[B]``: share of the judged rows that are correct; a sample without any says nothing, and has that of all."""
    drawn = counts @ judged.astype(float)
    found = counts @ (correct & judged).astype(float) / np.maximum(drawn, 1)
    return np.where(drawn > 0, found, correct[judged].mean())


class _RoutingSums:
    """Sums over the own tokens of every row, which all numbers of the plane are made of."""

    def __init__(self, rows: int) -> None:
        self.tokens = np.zeros(rows)
        self.entropies: list[np.ndarray] = []  # [S] per row
        self.squares: list[np.ndarray] = []  # [S] per row
        self.sums: list[np.ndarray] = []  # [S, E] per row
        self.all: list[np.ndarray] = []  # [S, T, E] per row

    def add(self, index: int, logits: torch.Tensor) -> None:
        p = torch.softmax(logits, dim=-1).cpu().double().numpy()
        self.tokens[index] = p.shape[1]
        self.entropies.append(entropy(p).sum(axis=1))
        self.squares.append(np.square(p).sum(axis=(1, 2)))
        self.sums.append(p.sum(axis=1))
        self.all.append(p.astype(np.float32))

    def statistic(self, domains: Sequence[str], experts: Sequence[str]) -> Statistic:
        """Numbers of the plane, load, and each domain's share of each expert; means over sites of each site's number.

        Shares are means over the rows of a domain: that of its own expert is ``own_share_DOMAIN``, that of another is
        ``share_of_EXPERT_in_DOMAIN``.
        """
        entropies, squares, sums = (np.stack(part) for part in (self.entropies, self.squares, self.sums))
        rows, sites, width = sums.shape
        flat = sums.reshape(rows, sites * width)
        shares = (sums / self.tokens[:, None, None]).mean(axis=1)  # [n, E]
        members = {name: np.array([found == name for found in domains]) for name in dict.fromkeys(domains)}

        def loads(counts: np.ndarray) -> np.ndarray:
            return (counts @ flat / (counts @ self.tokens)[:, None]).reshape(-1, sites, width)

        def statistic(counts: np.ndarray) -> dict[str, np.ndarray]:
            total = (counts @ self.tokens)[:, None]
            load = loads(counts)
            token_entropy = (counts @ entropies / total).mean(axis=1)
            load_entropy = entropy(load).mean(axis=1)
            found = {
                "token_entropy": token_entropy,
                "load_entropy": load_entropy,
                "mutual_information": load_entropy - token_entropy,
                "token_awareness": (counts @ squares / total - np.square(load).sum(axis=-1)).mean(axis=1),
                "load_variance": load_variance(load).mean(axis=1),
                "domain_information": domain_information([loads(counts * own) for own in members.values()]),
            }
            own_shares, other_shares = {}, {}
            for name, own in members.items():
                for i, expert in enumerate(experts):
                    share = counts @ (shares[:, i] * own) / (counts @ own.astype(float))
                    if expert == name:
                        own_shares[f"own_share_{name}"] = share
                    else:
                        other_shares[f"share_of_{expert}_in_{name}"] = share
            if own_shares:
                found["own_share"] = np.mean(list(own_shares.values()), axis=0)
            all_loads = {f"load_{name}": load[:, :, i].mean(axis=1) for i, name in enumerate(experts)}
            # Once more at the end: an expert may have the name of a number, such as `entropy`.
            return found | own_shares | other_shares | all_loads | found

        return statistic

    def facts(self, domains: Sequence[str]) -> dict[str, Any]:
        """Token counts, the shuffled-token band, and what the domain information is when rows swap their domains."""
        band = shuffled_token_band(np.concatenate(self.all, axis=1), int(np.median(self.tokens)))
        random, names, sums = np.random.default_rng(0), np.array(domains), np.stack(self.sums)
        null = []
        for _ in range(SHUFFLES):
            shuffled = random.permutation(names)
            parts = [sums[shuffled == name].sum(axis=0) for name in dict.fromkeys(domains)]
            null.append(domain_information([(part / part[:1].sum())[None] for part in parts])[0])
        return {
            "tokens": int(self.tokens.sum()),
            "tokens_per_domain": {name: int(self.tokens[names == name].sum()) for name in dict.fromkeys(domains)},
            "domain_information_null": float(np.quantile(null, 0.975)),
            "band_tokens": band.tokens,
            "band_token_entropy": list(band.token_entropy),
            "band_load_entropy": list(band.load_entropy),
        }


def domain_information(loads: Sequence[np.ndarray]) -> np.ndarray:
    """I(domain; expert) in nats with every domain equally likely: the Jensen–Shannon divergence of their loads.

    Args:
        loads: of each domain, ``[B, S, E]``.

    Returns:
        ``[B]``, the mean over sites.
    """
    together = np.stack(loads)
    return (entropy(together.mean(axis=0)) - entropy(together).mean(axis=0)).mean(axis=-1)


def _domains(scores: Sequence[RowScore]) -> list[str]:
    return list(dict.fromkeys(score.domain for score in scores))
