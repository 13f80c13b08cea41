"""Rows on this machine: files that somebody names, and folders of data sets; domains with a recipe, and others."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

from loramixer.data.recipes import (
    DEFAULT_DOMAINS,
    DOMAIN_OF_TASK,
    RECIPES,
    Origin,
    RecipeDomains,
    recipe_has,
    recipe_license,
)
from loramixer.data.schema import Example, read_examples
from loramixer.errors import DataError


class OwnDomains:
    """The domains that rows state, of data sets that are in no recipe."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._tasks: dict[str, list[str]] = {}

    def add(self, task: str, rows: Sequence[Example]) -> None:
        """Take note of a data set."""
        for domain in dict.fromkeys(row.domain for row in rows):
            self._tasks.setdefault(domain, []).append(task)

    def names(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    def tasks(self, domain: str) -> tuple[str, ...]:
        if domain not in self._tasks:
            known = f"there are rows of {', '.join(self._tasks)}" if self._tasks else "and of no other"
            raise DataError(f"{self.where} holds no rows of the domain '{domain}'; {known}.")
        return tuple(self._tasks[domain])


class LocalRows:
    """What no file of this machine states."""

    def revisions(self) -> dict[str, str]:
        """None: files have no revision; the run log's fingerprint of the rows says which they were."""
        return {}

    def license(self, task: str) -> str:
        """As the recipes state it; nobody states it for other data sets."""
        return recipe_license(task)


class FileSource(LocalRows):
    """Rows of files that somebody names; all of them may be trained on. Domains are those that the rows state.

    Args:
        paths: ``.jsonl`` or ``.jsonl.gz`` files.
        domains: experts that the rows are for, as :func:`loramixer.data.read_examples` takes them.

    Raises:
        DataError: a file is missing or breaks the schema.
    """

    origin: Origin = "files"

    def __init__(self, paths: Sequence[str | Path], domains: Sequence[str] = ()) -> None:
        self.paths = [Path(path) for path in paths]
        self.examples = [row for path in self.paths for row in read_examples(path, domains)]
        self._own = OwnDomains(self._names())
        # Once: a file may have as many data sets as rows, and a look at every row for each would never end.
        self._by_task: dict[str, list[Example]] = {}
        for row in self.examples:
            self._by_task.setdefault(row.task, []).append(row)
        for task, rows in self._by_task.items():
            self._own.add(task, rows)

    def all_tasks(self) -> tuple[str, ...]:
        """The data sets of all domains, in the order of the files."""
        return tuple(self._by_task)

    def domains(self) -> tuple[str, ...]:
        """All."""
        return self._own.names()

    def has(self, domain: str) -> bool:
        """Whether a row states it."""
        return domain in self._own.names()

    def tasks(self, domain: str) -> tuple[str, ...]:
        """Those with a row of the domain."""
        return self._own.tasks(domain)

    def expert_count(self, domain: str, task: str, there: int) -> int:
        """All."""
        return there

    def splits(self, task: str) -> tuple[str, ...]:
        """Training rows only."""
        return ("train",)

    def rows(self, task: str, split: str) -> list[Example]:
        """The rows of a task, in the order of the files."""
        if split != "train":
            raise DataError(
                f"The rows of {self._names()} are for training; test on the rows of another file "
                "(evaluate --data FILE), or on the test split of a folder."
            )
        return list(self._by_task.get(task, ()))

    def describe(self) -> str:
        """Names the files."""
        return f"rows from {self._names()}"

    def _names(self) -> str:
        return ", ".join(map(str, self.paths))


class FolderSource(LocalRows, RecipeDomains):
    """Rows of ``<task>/<split>.jsonl.gz`` files.

    A domain with a recipe is made of the recipe's data sets where the folder has one of them. All others are made of
    the data sets that are in no recipe, by the domain that each row states.

    Args:
        folder: that holds the tasks.
    """

    origin: Origin = "folder"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def domains(self) -> tuple[str, ...]:
        """Those of the paper's six that the folder has data sets of; where it has none, its own.

        A folder of the recipes' sets may hold others, for evaluation: their domains are there for who names them.
        """
        return tuple(filter(self._by_recipe, DEFAULT_DOMAINS)) or self._own.names()

    def has(self, domain: str) -> bool:
        """Whether a recipe's data set is there, or a row that states the domain."""
        return self._by_recipe(domain) or domain in self._own.names()

    def tasks(self, domain: str) -> tuple[str, ...]:
        """Those of the recipe, or those with a row of the domain."""
        by_recipe = self._by_recipe(domain) or (domain in RECIPES and domain not in self._own.names())
        return super().tasks(domain) if by_recipe else self._own.tasks(domain)

    def expert_count(self, domain: str, task: str, there: int) -> int:
        """As the recipe says, else three quarters: routers shall see rows that are new to the expert."""
        return super().expert_count(domain, task, there) if recipe_has(domain, task) else math.ceil(0.75 * there)

    def _by_recipe(self, domain: str) -> bool:
        return domain in RECIPES and any(self.splits(task) for task in RECIPES[domain].tasks)

    @functools.cached_property
    def _own(self) -> OwnDomains:
        """Read once, and only where a domain is asked for that is not made by a recipe."""
        found = OwnDomains(str(self.folder))
        for task in sorted(path.name for path in self.folder.iterdir() if path.is_dir()):
            splits = self.splits(task)
            if splits and task not in DOMAIN_OF_TASK:
                found.add(task, self.rows(task, "train" if "train" in splits else splits[0]))
        return found

    def splits(self, task: str) -> tuple[str, ...]:
        """The files of a task's folder."""
        return tuple(sorted(path.name.removesuffix(".jsonl.gz") for path in (self.folder / task).glob("*.jsonl.gz")))

    def rows(self, task: str, split: str) -> list[Example]:
        """All rows of a file."""
        return task_examples(task, split, self.folder)

    def describe(self) -> str:
        """Names the folder."""
        return f"rows from {self.folder}"


def task_examples(task: str, split: str, folder: Path) -> list[Example]:
    """All rows of one split of one task in a data folder."""
    return read_examples(folder / task / f"{split}.jsonl.gz")
