"""Files of what a room shows, for its download buttons.

A room keeps one :class:`Exports` for the page and asks it for a file when a button is pressed::

    button.click(lambda request: exports.view(session, trace, "token_map", {"measure": "top"}, "png"), …)

``view`` makes files of the figures of one or two traces; ``figure`` of any figure of :mod:`loramixer.viz`, such as the
plane; ``page`` of several, ``table`` of a data frame. All return a path for a ``gr.DownloadButton``. Files lie in a
folder of the session below the temp folder; the oldest go when there are many, and all go when the session leaves.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from explorer.leftovers import delete_folder, temporary_folder
from explorer.provenance import check_loadable, short_router_name
from loramixer import viz
from loramixer.errors import FigureError
from loramixer.trace import RoutingTrace
from loramixer.viz.notebook import figure_text

Format = Literal["png", "svg", "html", "csv", "parquet", "npz", "py"]

FORMATS: tuple[Format, ...] = get_args(Format)
FILES_PER_SESSION = 24
SESSIONS = 64
"""More sessions than these with files at once: the one that asked longest ago loses its own."""

PART = ("projection", "layers", "roles", "template", "unit", "how")
"""Arguments of a figure that say which part of the trace it shows; tables show the same part."""


class Exports:
    """Writes views into files that the browser can take.

    Args:
        root: folder below which the sessions have theirs; a new one in the temp folder by default.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._folders: dict[str, Path] = {}

    def view(
        self,
        session: str,
        trace: RoutingTrace,
        name: str,
        arguments: Mapping[str, Any],
        kind: Format,
        *,
        other: RoutingTrace | None = None,
        recorded: RoutingTrace | None = None,
    ) -> str:
        """A file of a figure of one trace, or of two.

        Args:
            session: whose file it is.
            trace: what is on screen.
            name: one of ``loramixer.viz.TRACE_FIGURES``.
            arguments: what that function is called with besides the trace.
            kind: ``png``, ``svg``, ``html``; ``csv`` or ``parquet`` for the numbers of the part that is shown; ``npz``
                for the whole trace with its provenance; ``py`` for a script that makes the view again.
            other: the second trace of figures that compare two.
            recorded: the trace that a what-if started from, for its script.

        Returns:
            The path of the file, whose name says mixture, view and settings.

        Raises:
            LoraMixerError: what the figure refuses, in one sentence.
        """
        if name not in viz.TRACE_FIGURES:
            raise FigureError(f"'{name}' is no view that can be saved; known are {', '.join(viz.TRACE_FIGURES)}.")
        router = short_router_name(trace.provenance)[:60] if trace.provenance.get("mixer") else "trace"
        stem = "-".join([router, name, *_words(arguments)])

        def draw() -> Any:
            return getattr(viz, name)(trace, *([] if other is None else [other]), **arguments)

        if kind in ("png", "svg", "html"):
            return self._picture(session, stem, kind, draw(), dict(trace.provenance))
        if kind == "npz":
            return self._write(session, f"{stem}.npz", trace.save)
        if kind == "py":
            check_loadable(*(found for found in (recorded or trace, other) if found is not None))
            script = viz.recipe(trace, name, arguments, other=other, recorded=recorded)
            return self._write(session, f"{stem}.py", lambda path: path.write_text(script, encoding="utf-8"))
        if other is not None:
            return self._numbers(session, stem, kind, draw())
        part = {key: value for key, value in arguments.items() if key in PART}
        return self.table(session, viz.trace_table(trace, **part), stem, kind)

    def figure(
        self,
        session: str,
        figure: Any,
        stem: str,
        kind: Format,
        *,
        provenance: Mapping[str, Any] | None = None,
    ) -> str:
        """A file of any figure of ``loramixer.viz``.

        Args:
            session: whose file it is.
            figure: the figure.
            stem: beginning of the file's name.
            kind: ``png``, ``svg``, ``html``, ``csv`` or ``parquet`` (the numbers of the figure).
            provenance: for the strip of the HTML file.

        Returns:
            The path of the file.

        Raises:
            FigureError: a kind that a figure alone has not got.
        """
        if kind in ("png", "svg", "html"):
            return self._picture(session, stem, kind, figure, dict(provenance or {}))
        if kind in ("csv", "parquet"):
            return self._numbers(session, stem, kind, figure)
        raise FigureError(f"A figure alone has no {kind} file; choose png, svg, html, csv or parquet.")

    def page(self, session: str, figures: list[Any], stem: str, title: str, provenance: Mapping[str, Any]) -> str:
        """One HTML file of several figures with their numbers; opens without a network.

        Args:
            session: whose file it is.
            figures: figures of ``loramixer.viz``, in order.
            stem: beginning of the file's name.
            title: of the page.
            provenance: what produced the numbers.

        Returns:
            The path of the file.
        """
        text = viz.to_html(figures, title, provenance)
        return self._write(session, f"{stem}.html", lambda path: path.write_text(text, encoding="utf-8"))

    def table(self, session: str, frame: Any, stem: str, kind: str) -> str:
        """A data frame as ``csv`` or ``parquet``; returns the path of the file.

        Raises:
            FigureError: another kind, or ``parquet`` where pyarrow is not installed.
        """
        if kind == "parquet":
            return self._write(session, f"{stem}.parquet", lambda path: _write_parquet(frame, path))
        if kind == "csv":
            return self._write(session, f"{stem}.csv", lambda path: frame.to_csv(path, index=False))
        raise FigureError(f"There is no '{kind}' file of a view; choose {', '.join(FORMATS)}.")

    def forget(self, session: str) -> None:
        """Remove the files of a session that has left."""
        with self._lock:
            folder = self._folders.pop(session, None)
        if folder is not None:
            delete_folder(folder)

    def _picture(
        self,
        session: str,
        stem: str,
        kind: str,
        figure: Any,
        provenance: dict[str, Any],
    ) -> str:
        if kind == "png":
            content = viz.to_png(figure)
        elif kind == "svg":
            content = viz.to_svg(figure, theme="light").encode()
        else:
            title = f"LoRA-Mixer: {figure_text(figure).partition(' — ')[0]}"
            content = viz.to_html(figure, title, provenance).encode()
        return self._write(session, f"{stem}.{kind}", lambda path: path.write_bytes(content))

    def _numbers(self, session: str, stem: str, kind: str, figure: Any) -> str:
        import pandas as pd

        rows = [
            {"table": table.caption, "row": row[0], "column": column, "value": cell}
            for table in viz.figure_tables(figure)
            for row in table.rows
            for column, cell in zip(table.columns[1:], row[1:], strict=True)
        ]
        return self.table(session, pd.DataFrame(rows, columns=["table", "row", "column", "value"]), stem, kind)

    def _write(self, session: str, name: str, write: Callable[[Path], Any]) -> str:
        path = self._folder(session) / re.sub(r"[^\w.+-]+", "_", name)
        write(path)
        files = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        for old in files[:-FILES_PER_SESSION]:
            old.unlink(missing_ok=True)
        return str(path)

    def _folder(self, session: str) -> Path:
        with self._lock:
            folder = self._folders.pop(session, None)
            if folder is None or not folder.is_dir():
                # The name tells nobody whose it is.
                folder = temporary_folder("export", self._root)
            self._folders[session] = folder
            too_many = list(self._folders)[: max(0, len(self._folders) - SESSIONS)]
            gone = [self._folders.pop(old) for old in too_many]
        for old_folder in gone:
            delete_folder(old_folder)
        return folder


def _write_parquet(frame: Any, path: Path) -> None:
    try:
        frame.to_parquet(path, index=False)
    except ImportError as error:
        raise FigureError(
            "A Parquet file needs pyarrow, which is not installed; choose CSV, or run “pip install pyarrow” first."
        ) from error


def _words(arguments: Mapping[str, Any]) -> list[str]:
    """Settings that make one file different from another, for its name."""
    words = []
    for value in arguments.values():
        if isinstance(value, bool):
            continue
        if isinstance(value, str | int):
            words.append(str(value)[:24])
        elif isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, int) for part in value):
            words.append(f"{value[0]}to{value[1]}")
    return words
