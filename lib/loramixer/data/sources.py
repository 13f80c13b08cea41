"""Where rows come from: files, a folder, the Hub, or the generator; and which of them is taken when nobody says."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from loramixer import hub
from loramixer.data.hub_sets import HUB_DATASETS
from loramixer.data.local_rows import FileSource, FolderSource
from loramixer.data.recipes import Origin, RecipeDomains, recipe_license
from loramixer.data.schema import Example
from loramixer.errors import DataError, HubError

VARIABLE = "LORAMIXER_DATA"
"""Names a folder of data sets or a file of rows, or is ``hub`` or ``generated``."""


class Source(Protocol):
    """What gives the rows of a task; :class:`GeneratedSource` gives rows by domain only.

    Attributes:
        origin: what kind of source it is.
    """

    origin: Origin

    def domains(self) -> tuple[str, ...]:
        """The domains that are mixed where nobody names any."""
        ...

    def has(self, domain: str) -> bool:
        """Whether there are rows of a domain."""
        ...

    def tasks(self, domain: str) -> tuple[str, ...]:
        """The data sets of a domain.

        Raises:
            DataError: there is no such domain.
        """
        ...

    def expert_count(self, domain: str, task: str, there: int) -> int:
        """How many of a data set's rows the expert of a domain is trained on, of those that are there."""
        ...

    def splits(self, task: str) -> tuple[str, ...]:
        """The splits that this source has of a task."""
        ...

    def rows(self, task: str, split: str) -> list[Example]:
        """All rows of one split of one task."""
        ...

    def revisions(self) -> dict[str, str]:
        """Task → ``organisation/name@commit`` of what has been read so far; empty where nothing has a revision."""
        ...

    def license(self, task: str) -> str:
        """The licence of a task, as its source states it."""
        ...

    def describe(self) -> str:
        """One line for screens."""
        ...


class HubSource(RecipeDomains):
    """Rows of :data:`loramixer.data.HUB_DATASETS`: Parquet files only, read without any code of the repository.

    Args:
        revisions: task → branch, tag or commit, instead of the pinned commit; what a branch pointed at is recorded.
    """

    origin: Origin = "hub"

    def __init__(self, revisions: Mapping[str, str] | None = None) -> None:
        if unknown := set(revisions or {}) - set(HUB_DATASETS):
            raise DataError(
                f"No data set {sorted(unknown)[0]} is read from the Hub; there are {', '.join(HUB_DATASETS)}."
            )
        self._asked = dict(revisions or {})
        self._read: dict[str, str] = {}

    def splits(self, task: str) -> tuple[str, ...]:
        """The splits that the Hub's copy has."""
        return tuple(HUB_DATASETS[task].files) if task in HUB_DATASETS else ()

    def rows(self, task: str, split: str) -> list[Example]:
        """Fetch a split, or take it from the Hub's cache.

        Raises:
            DataError: no such task or split, no Hub, no pyarrow, or columns that the converter does not know.
        """
        if split not in self.splits(task):
            raise DataError(
                f"The Hub has no split '{split}' of {task} for this package; there are "
                f"{', '.join(self.splits(task)) or 'none'}."
            )
        if not _has_pyarrow():
            raise DataError(
                "Data sets of the Hub are Parquet files and need pyarrow; install loramixer[eval], or set "
                "LORAMIXER_DATA to a folder or to 'generated'."
            )
        dataset = HUB_DATASETS[task]
        file = dataset.files[split]
        revision = self._asked.get(task, dataset.revision)
        try:
            found = hub.fetch(dataset.hub_id, revision, [file], repo_type="dataset")
        except HubError as error:
            raise DataError(
                f"The data set {task} cannot be had from the Hub ({error.reason}); set LORAMIXER_DATA to a folder of "
                "data sets, or to 'generated' for a toy set."
            ) from error
        self._read[task] = found.pinned
        return self._converted(task, split, found.folder / file, found.pinned)

    def _converted(self, task: str, split: str, path: Path, pinned: str) -> list[Example]:
        import pyarrow
        from pyarrow import parquet

        convert = HUB_DATASETS[task].convert
        try:
            raw = parquet.read_table(path).to_pylist()
            rows = [convert(task, split, number, row) for number, row in enumerate(raw)]
        except (pyarrow.ArrowException, KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise DataError(
                f"{path.name} of {pinned} has another form than {task} is known to have "
                f"({type(error).__name__}: {error}); pin the commit that this package names."
            ) from error
        return [row for row in rows if row is not None]

    def revisions(self) -> dict[str, str]:
        """Task → ``organisation/name@commit`` of what has been read so far."""
        return dict(sorted(self._read.items()))

    def license(self, task: str) -> str:
        """As the card of the repository states it."""
        return HUB_DATASETS[task].license if task in HUB_DATASETS else recipe_license(task)

    def describe(self) -> str:
        """Says that it is the Hub."""
        return "rows from the Hugging Face Hub, at pinned commits"


class GeneratedSource(RecipeDomains):
    """The generator of :func:`loramixer.data.generated_examples`.

    Args:
        reason: why nothing better was taken, for screens.
    """

    origin: Origin = "generated"

    def __init__(self, reason: str = "") -> None:
        self.reason = reason

    def splits(self, task: str) -> tuple[str, ...]:
        """None: a seed takes the place of splits."""
        return ()

    def rows(self, task: str, split: str) -> list[Example]:
        """Not for the generator.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"{task} is a data set, and the rows here are generated; set LORAMIXER_DATA to a folder of data sets or "
            "to 'hub'."
        )

    def revisions(self) -> dict[str, str]:
        """None."""
        return {}

    def license(self, task: str) -> str:
        """Nobody's."""
        return "generated by loramixer"

    def describe(self) -> str:
        """Says so in capitals, and why."""
        return f"GENERATED rows{f' ({self.reason})' if self.reason else ''}: a toy set, good for a trial"


AnySource = Source | str | Path | Sequence[str | Path] | None
"""What :func:`find_source` takes."""


def find_source(given: AnySource = None, domains: Sequence[str] = ()) -> Source:
    """The source to take: what is given, else what ``LORAMIXER_DATA`` names, else the Hub, else the generator.

    Args:
        given: a source, a folder, a file of rows or several of them, ``hub`` or ``generated``.
        domains: experts that the rows of files are for, as :func:`loramixer.data.read_examples` takes them.

    Raises:
        DataError: a folder or file is named that is none, or a file breaks the schema.
    """
    found = _find(given)
    return FileSource(found.paths, domains) if domains and isinstance(found, FileSource) else found


def _find(given: AnySource) -> Source:
    if isinstance(given, str | Path):
        return _named_source(str(given), "The data source")
    if isinstance(given, Sequence):
        return _named_source(str(given[0]), "The data source") if len(given) == 1 else FileSource(given)
    if given is not None:
        return given
    named = os.environ.get(VARIABLE)
    return _named_source(named, VARIABLE) if named else _default_source()


def _named_source(name: str, what: str) -> Source:
    if name == "hub":
        return _hub_source()
    if name == "generated":
        return GeneratedSource()
    if names_a_file(name):
        return FileSource([name])
    if not Path(name).is_dir():
        raise DataError(
            f"{what} is '{name}', which is no folder; name a folder of data sets, a .jsonl(.gz) file, 'hub' or "
            "'generated', or leave it out."
        )
    return FolderSource(name)


def names_a_file(name: str | Path) -> bool:
    """Whether a data source is a file of rows by its name, and no folder."""
    return str(name).endswith((".jsonl", ".jsonl.gz"))


@functools.lru_cache(maxsize=1)
def _hub_source() -> HubSource:
    """One for the process, so that it knows all that has been read."""
    return HubSource()


@functools.lru_cache(maxsize=1)
def _default_source() -> Source:
    """What is taken when nothing is named; asked once, so that all rows of a process have one origin."""
    unset = f"{VARIABLE} is not set"
    if not _has_pyarrow():
        return GeneratedSource(f"{unset}, and without pyarrow the Hub's data sets cannot be read")
    first = next(iter(HUB_DATASETS.values()))
    if hub.cached_files(first.hub_id, first.revision, [first.files["train"]], "dataset") is None:
        try:
            hub.ask(first.hub_id, first.revision, "dataset")
        except HubError as error:
            return GeneratedSource(f"{unset}, and {error.reason}")
    return _hub_source()


def _has_pyarrow() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def data_folder() -> Path | None:
    """The folder named by ``LORAMIXER_DATA``, or None when it names none.

    Raises:
        DataError: the variable is set but names no folder.
    """
    if not os.environ.get(VARIABLE):
        return None
    source = find_source()
    return source.folder if isinstance(source, FolderSource) else None


def data_origin(source: AnySource = None) -> Origin:
    """Where rows come from: ``files``, ``folder``, ``hub`` or ``generated``; logs and screens print it."""
    return find_source(source).origin


def data_revisions(source: AnySource = None) -> dict[str, str]:
    """Task → ``organisation/name@commit`` of what has been read from the Hub so far; for run logs."""
    return find_source(source).revisions()


def describe_source(source: AnySource = None) -> str:
    """One line that says which source is taken, for commands to print before they start."""
    return find_source(source).describe()


def task_licenses(tasks: Sequence[str], source: AnySource = None) -> dict[str, str]:
    """The licence of each task as the source in use states it; for run logs and model cards."""
    found = find_source(source)
    return {task: found.license(task) for task in tasks}
