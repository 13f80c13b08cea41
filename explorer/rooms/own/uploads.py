"""Uploaded files as expert folders: two names are taken, sizes are counted while reading, nothing is unpickled."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from loramixer.errors import ExpertError
from loramixer.experts import CONFIG_FILE, WEIGHTS_FILE

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that could run code when they are opened."""

MOST_MEMBERS = 1000
"""Entries of an archive that are looked at."""

MAX_CONFIG_BYTES = 1_000_000
"""Of an adapter_config.json; real ones take a few thousand."""

PIECE = 1 << 20


def unpack(files: Sequence[str | Path], target: Path, max_bytes: int) -> list[Path]:
    """Put each uploaded expert into a folder of its own below ``target``.

    Args:
        files: zip archives, each with one or more adapter folders; or an adapter's two files themselves.
        target: a folder that is there.
        max_bytes: how much all of them together may take.

    Returns:
        The folders, named after the archive, or the folder inside it.

    Raises:
        ExpertError: nothing usable, pickled weights, a damaged archive, or more bytes than allowed.
    """
    left = max_bytes
    folders: list[Path] = []
    loose: dict[str, Path] = {}
    for file in map(Path, files):
        if file.suffix.lower() == ".zip":
            found, left = _unpack_archive(file, target, left)
            folders += found
        elif file.suffix.lower() in PICKLED:
            raise _pickled(file.name)
        elif file.name in (CONFIG_FILE, WEIGHTS_FILE):
            loose[file.name] = file
        else:
            raise ExpertError(
                f"{file.name} is no expert; upload {CONFIG_FILE} and {WEIGHTS_FILE} together, or a .zip of both."
            )
    if loose:
        if missing := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in loose]:
            raise ExpertError(
                f"{missing[0]} is missing; upload both files of the adapter together, or a .zip of both."
            )
        folder = _new_folder(target, "uploaded")
        for name, file in loose.items():
            with file.open("rb") as source:
                left -= _copy(source, folder / name, left)
        folders.append(folder)
    return folders


def _unpack_archive(file: Path, target: Path, left: int) -> tuple[list[Path], int]:
    """The experts of one archive, and how many bytes are left."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > MOST_MEMBERS:
                raise ExpertError(f"{file.name} holds {len(members):,} files; make a .zip of the adapter alone.")
            places: dict[PurePosixPath, dict[str, zipfile.ZipInfo]] = {}
            for member in members:
                path = PurePosixPath(member.filename)
                if path.name in (CONFIG_FILE, WEIGHTS_FILE):
                    places.setdefault(path.parent, {})[path.name] = member
            whole = {place: parts for place, parts in places.items() if len(parts) == 2}
            if not whole:
                if any(PurePosixPath(member.filename).suffix.lower() in PICKLED for member in members):
                    raise _pickled(file.name)
                raise ExpertError(f"{file.name} holds no folder with {CONFIG_FILE} and {WEIGHTS_FILE}.")
            folders = []
            for place, parts in sorted(whole.items()):
                folder = _new_folder(target, place.name or file.stem)
                # Their own names are never used as paths, so an entry like ../../x goes nowhere.
                for name, member in parts.items():
                    with archive.open(member) as source:
                        left -= _copy(source, folder / name, left)
                folders.append(folder)
            return folders, left
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise ExpertError(
            f"{file.name} cannot be unpacked ({error}); make the .zip again, without a password."
        ) from error


def _copy(source: IO[bytes], path: Path, left: int) -> int:
    """Copy piece by piece; what an archive says about sizes is not believed."""
    most = min(left, MAX_CONFIG_BYTES) if path.name == CONFIG_FILE else left
    taken = 0
    with path.open("wb") as sink:
        while piece := source.read(PIECE):
            taken += len(piece)
            if taken > most:
                sink.close()
                shutil.rmtree(path.parent)
                raise ExpertError(
                    f"The upload takes more than is allowed here ({most / 1e6:,.0f} MB for {path.name}); use experts "
                    "of a lower rank, or run the explorer on a machine of your own."
                )
            sink.write(piece)
    return taken


def _new_folder(target: Path, wish: str) -> Path:
    """An empty folder with a name that is safe as the name of an expert, and not taken."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", wish).strip("-")[:40] or "expert"
    number = 1
    while True:
        folder = target / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _pickled(name: str) -> ExpertError:
    return ExpertError(
        f"{name} holds pickled weights, which can run code and are never opened; save the adapter as safetensors "
        "(PEFT does so by itself) and upload that."
    )
