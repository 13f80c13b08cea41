"""The one place that speaks with the Hugging Face Hub: which files are fetched, how long is waited, what went wrong.

The Hub's client waits without end for a server that accepts a connection and stays silent, starts a broken download
anew as often as it breaks off, and raises two dozen types. Here a Hub that does not answer is given up after
:data:`ANSWER_SECONDS`, a download that stops growing after :data:`STALL_SECONDS`, what arrives is checked against the
digest that the Hub announced, and all that can go wrong is one :class:`loramixer.errors.HubError` with one sentence.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from loramixer.errors import HubError

ANSWER_SECONDS = 5.0
"""How long the Hub may take to answer a question."""

STALL_SECONDS = 10.0
"""How long a download may bring nothing new, beyond what the next piece takes at the slowest speed."""

SLOWEST = 100_000
"""Bytes per second below which a download counts as stalled; the client reports pieces of 10 MB, or whole files."""

PUSHED_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md", "run_log.json")
"""What a pushed adapter consists of."""

_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

RepositoryType = Literal["model", "dataset"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class HubFiles:
    """Files of one commit of a repository, on disk.

    Attributes:
        folder: where they are; one folder of the Hub's own cache.
        hub_id: ``organisation/name``.
        commit: the 40 hexadecimal digits of the commit that they belong to.
    """

    folder: Path
    hub_id: str
    commit: str

    @property
    def pinned(self) -> str:
        """``organisation/name@commit``, which gives the same bytes for ever."""
        return f"{self.hub_id}@{self.commit}"


def split_hub_id(text: str) -> tuple[str, str | None] | None:
    """``(organisation/name, revision or None)`` of a Hub id with an optional ``@revision``; None for anything else."""
    match = _HUB_ID.fullmatch(text)
    return (match["id"], match["revision"]) if match else None


def is_pinned(text: str) -> bool:
    """Whether a text is a Hub id with a commit, which gives the same bytes to everybody and for ever."""
    named = split_hub_id(text)
    return named is not None and _COMMIT.fullmatch(named[1] or "") is not None


def fetch(
    hub_id: str,
    revision: str | None,
    required: Sequence[str],
    optional: Sequence[str] = (),
    repo_type: RepositoryType = "model",
    max_bytes: int | None = None,
) -> HubFiles:
    """Fetch named files of a repository, from the cache when the Hub does not give them.

    A pinned commit that is in the cache asks no network. Of a branch or tag the Hub is asked what it points at now;
    when there is no answer, what it pointed at last time is used, as the Hub's own client does.

    Args:
        hub_id: ``organisation/name``.
        revision: branch, tag or commit; None is the main branch.
        required: files that must be there; no other files than these and ``optional`` are ever requested.
        optional: files that may be missing.
        repo_type: whether it is a repository of a model or of a data set.
        max_bytes: how large all these files together may be; a larger one is refused before it is downloaded.

    Raises:
        HubError: not found, private or gated, no answer, offline, incomplete, too large, or damaged on the way.
    """
    cached = cached_files(hub_id, revision, required, repo_type)
    if cached is not None and _COMMIT.fullmatch(revision or ""):
        return cached
    try:
        known = ask(hub_id, revision, repo_type)
    except HubError as error:
        if cached is not None and not error.final:
            return cached
        raise
    if missing := [file for file in required if file not in known.files]:
        pickled = any(file.endswith(".bin") for file in known.files)
        raise HubError(
            f"{hub_id} at {known.commit[:8]} holds no {' and no '.join(missing)}",
            "its pickled weights (.bin) are never opened, ask its author for safetensors"
            if pickled
            else "give the repository of a PEFT adapter"
            if repo_type == "model"
            else "give a revision that holds them",
        )
    wanted = [*required, *(file for file in optional if file in known.files)]
    # The branch is named for the first file, which is how the client's cache learns what it points at.
    first = _download(hub_id, revision or "main", wanted[0], repo_type, max_bytes)
    folder = first.parents[wanted[0].count("/")]
    here = first.stat().st_size
    for file in wanted[1:]:
        left = None if max_bytes is None else max_bytes - here
        here += _download(hub_id, folder.name, file, repo_type, left).stat().st_size
    return HubFiles(folder, hub_id, folder.name)


def cached_files(
    hub_id: str, revision: str | None, required: Sequence[str], repo_type: RepositoryType = "model"
) -> HubFiles | None:
    """The cached folder that holds all these files at this revision, or None; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(hub_id, file, revision=revision, repo_type=repo_type) for file in required]
    folders = {
        Path(path).parents[file.count("/")]
        for path, file in zip(found, required, strict=True)
        if isinstance(path, str)
    }
    if len(folders) != 1 or not all(isinstance(path, str) for path in found):
        return None
    (folder,) = folders
    return HubFiles(folder, hub_id, folder.name)


@dataclass(frozen=True)
class KnownRepository:
    """What the Hub says of a revision: its commit, and the names of all its files."""

    commit: str
    files: frozenset[str]


def ask(hub_id: str, revision: str | None, repo_type: RepositoryType = "model") -> KnownRepository:
    """Ask the Hub for a revision, for at most :data:`ANSWER_SECONDS`.

    Raises:
        HubError: not found, private, no answer, or offline.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise HubError(
            f"HF_HUB_OFFLINE is set and the cache does not hold {_at(hub_id, revision)}", "unset it and fetch it once"
        )

    def question() -> KnownRepository:
        api = HfApi()
        if repo_type == "model":
            model = api.model_info(hub_id, revision=revision, timeout=ANSWER_SECONDS)
            return KnownRepository(str(model.sha), frozenset(file.rfilename for file in model.siblings or ()))
        dataset = api.dataset_info(hub_id, revision=revision, timeout=ANSWER_SECONDS)
        return KnownRepository(str(dataset.sha), frozenset(file.rfilename for file in dataset.siblings or ()))

    try:
        # Name resolution and proxies can outlast any time-out that the client itself is given.
        return _in_time(question, ANSWER_SECONDS)
    except Exception as error:
        raise explained(error, hub_id, revision) from error


def push_folder(
    folder: str | Path,
    hub_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload adapter",
    files: Sequence[str] = PUSHED_FILES,
) -> str:
    """Push an adapter folder, such as an exported expert, to the Hub.

    The repository is created when there is none.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        hub_id: ``organisation/name``.
        private: whether a new repository is private; None leaves that to the organisation's setting.
        revision: branch to push to, created when there is none; the main branch by default.
        message: of the commit.
        files: names of what is uploaded; nothing else of the folder leaves the machine.

    Returns:
        ``organisation/name@commit``, which can be given as an expert or to :func:`loramixer.load_mixer`.

    Raises:
        HubError: no such folder, not logged in, no right to write there, or no answer.
    """
    from huggingface_hub import HfApi

    if missing := [file for file in PUSHED_FILES[:2] if not (Path(folder) / file).is_file()]:
        raise HubError(f"{folder} holds no {' and no '.join(missing)}", "only PEFT adapter folders can be pushed.")
    api = HfApi()
    try:
        _in_time(lambda: api.create_repo(hub_id, private=private, exist_ok=True), ANSWER_SECONDS)
        if revision is not None:
            _in_time(lambda: api.create_branch(hub_id, branch=revision, exist_ok=True), ANSWER_SECONDS)
        done = api.upload_folder(
            repo_id=hub_id,
            folder_path=folder,
            allow_patterns=list(files),
            revision=revision,
            commit_message=message,
        )
    except Exception as error:
        found = explained(error, hub_id, revision)
        raise HubError(f"Pushing to {hub_id} failed: {found.reason}", f"{found.remedy}.") from error
    return f"{hub_id}@{done.oid}"


class _Progress:
    """When a download last brought bytes that it had not brought before."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.abandoned = False

    def bar(self) -> type:
        """A progress bar for the Hub's client that reports here."""
        from huggingface_hub.utils import tqdm

        progress = self

        class Bar(tqdm):
            position = 0.0
            highest = 0.0

            def update(self, n: float | None = 1) -> bool | None:
                if progress.abandoned:
                    raise TimeoutError("abandoned")
                # The client counts back when it starts a broken download anew; the same bytes again are no progress.
                self.position += n or 0
                if self.position > self.highest:
                    self.highest, progress.last = self.position, time.monotonic()
                return super().update(n)

        return Bar


def _in_time(work: Callable[[], Result], seconds: float, progress: _Progress | None = None) -> Result:
    """The result of ``work``, run in a thread of its own; TimeoutError after so many seconds without any progress.

    A thread that is given up is a daemon: it ends with its own time-outs and keeps no program from ending.
    """
    progress = progress or _Progress()
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        left = progress.last + seconds - time.monotonic()
        if left <= 0:
            progress.abandoned = True
            raise TimeoutError(f"no answer within {seconds:g} s")
        thread.join(left)
    if errors:
        raise errors[0]
    return results[0]


def _download(hub_id: str, revision: str, file: str, repo_type: RepositoryType, max_bytes: int | None = None) -> Path:
    """One file into the Hub's cache, checked; for a commit, a file that is there already asks no network."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    progress = _Progress()
    known = _blobs(hub_id, repo_type)

    def question() -> int:
        url = hf_hub_url(hub_id, file, revision=revision, repo_type=repo_type)
        found = get_hf_file_metadata(url, timeout=ANSWER_SECONDS)
        return found.size or 0

    def work() -> str:
        return hf_hub_download(
            hub_id,
            file,
            revision=revision,
            repo_type=repo_type,
            etag_timeout=ANSWER_SECONDS,
            tqdm_class=progress.bar(),
        )

    size = 0
    try:
        if not _COMMIT.fullmatch(revision) or cached_files(hub_id, revision, [file], repo_type) is None:
            # Asked by itself first: the client repeats its own question for minutes, and when that is given up it
            # goes on in its thread and closes the connections of later downloads at every failure.
            size = _in_time(question, ANSWER_SECONDS)
            if max_bytes is not None and size > max_bytes:
                raise HubError(
                    f"{file} of {hub_id} has {size / 1e6:,.1f} MB, more than may be fetched here",
                    "use a smaller one, or run this on a machine of your own",
                    final=True,
                )
        piece = min(size, constants.DOWNLOAD_CHUNK_SIZE)
        path = Path(_in_time(work, STALL_SECONDS + piece / SLOWEST, progress))
    except HubError:
        raise
    except Exception as error:
        raise explained(error, hub_id, revision, file) from error
    if path.is_symlink():
        blob = path.parent / os.readlink(path)
        if blob.name not in known and not _matches(blob):
            path.unlink()
            blob.unlink()
            raise HubError(
                f"{file} of {hub_id} was damaged on the way (its digest is not {blob.name[:12]}…)",
                "it was not kept, try again",
            )
    return path


def _blobs(hub_id: str, repo_type: RepositoryType) -> set[str]:
    """Names of the files that the Hub's cache holds of a repository; they are the digests that the Hub announced."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type=repo_type) / "blobs"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _matches(blob: Path) -> bool:
    """Whether a file of the cache is what its name says: a SHA-256 of LFS files, a git hash of all others."""
    with blob.open("rb") as file:
        if re.fullmatch(r"[0-9a-f]{64}", blob.name):
            return hashlib.file_digest(file, "sha256").hexdigest() == blob.name
        if _COMMIT.fullmatch(blob.name):
            data = file.read()
            return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == blob.name
    return True  # a mirror with digests of another kind


def explained(error: Exception, hub_id: str, revision: str | None, file: str | None = None) -> HubError:
    """What one of the errors of the Hub's client means; ``file`` is what was being downloaded, if anything was."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = _status(error)
    if isinstance(error, GatedRepoError):
        return HubError(
            f"{hub_id} is gated",
            f"accept its licence at {constants.ENDPOINT}/{hub_id} and log in with `hf auth login`",
        )
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"the Hub has no repository {hub_id}, or it is private",
            "check the name, and for a private one log in with `hf auth login`",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            f"{hub_id} has no revision '{revision}'", "give a branch, a tag or a commit that it has", final=True
        )
    if status in (401, 403):
        return HubError(
            f"the Hub refuses access to {hub_id} (status {status})",
            "log in with `hf auth login`, with a token that has the right",
        )
    if status is not None:
        return HubError(f"the Hub answered with status {status}", "try again later")
    if file is not None:
        return HubError(
            f"the download of {file} of {hub_id} broke off ({_first_line(error)})",
            "nothing of it was kept, try again",
        )
    return HubError(f"no answer from the Hub at {constants.ENDPOINT} ({_first_line(error)})", "check the connection")


def _status(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with, or None when it did not answer."""
    response: Any = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _at(hub_id: str, revision: str | None) -> str:
    return f"{hub_id}@{revision}" if revision else hub_id


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
