"""LoRA checkpoints on disk or on the Hub, read and checked, ready to be concatenated along the rank.

Only safetensors are read. What a rank-concatenated mixture cannot represent exactly is refused, with the reason.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from loramixer.errors import ExpertError, HubError
from loramixer.hub import fetch, split_hub_id

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

IDENTITY_LENGTH = 16
"""Digits of a SHA-256 that name the weights of an expert."""

_LORA_KEY = re.compile(r"^(?:base_model\.model\.)?(?P<site>.+)\.lora_(?P<part>[AB])(?:\.[^.]+)?\.weight$")

_COPIES = "unsloth/"
_COPY_IN_FOUR_BITS = re.compile(r"(-unsloth)?-bnb-4bit$")


@dataclass(frozen=True)
class SiteWeights:
    """The update of one expert at one site: y += scaling · B A x.

    Attributes:
        A: ``[rank, in_features]``.
        B: ``[out_features, rank]``.
        scaling: lora_alpha / r, or lora_alpha / √r with rsLoRA.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """Rank r of the update at this site."""
        return self.A.shape[0]


@dataclass(frozen=True)
class Expert:
    """One LoRA expert read from disk.

    Attributes:
        name: its name in the mixture.
        source: where it was read from: a folder, or ``organisation/name@commit``, which gives these bytes for ever;
            None for a new one.
        sha256: digest of its weights file, or None.
        backbone: the backbone that its configuration names, or None.
        sites: update per module name of the backbone.
    """

    name: str
    source: str | None
    sha256: str | None
    backbone: str | None
    sites: dict[str, SiteWeights]

    @property
    def dtype(self) -> torch.dtype:
        """The widest type of its matrices."""
        types = {part.dtype for weights in self.sites.values() for part in (weights.A, weights.B)}
        return functools.reduce(torch.promote_types, types)

    def is_of_another_backbone(self, backbone: str) -> bool:
        """Whether it was trained on other weights, as far as names can tell: where both are ids on the Hub.

        The Hub does not tell case apart. LoRAs that Unsloth trained name its copy of the backbone, often the one in
        four bits, as Unsloth does by default; they are LoRAs of the backbone for all that.

        Args:
            backbone: name of another one, or of the same.
        """
        names = [split_hub_id(name or "") for name in (self.backbone, backbone)]
        if None in names:
            return False
        one, other = (named[0].lower() for named in names if named)
        if one.startswith(_COPIES) or other.startswith(_COPIES):
            one, other = (_COPY_IN_FOUR_BITS.sub("", name.rpartition("/")[2]) for name in (one, other))
        return one != other


def read_expert(name: str, source: str | Path, weights: bool = True, max_bytes: int | None = None) -> Expert:
    """Read a plain PEFT LoRA checkpoint.

    Args:
        name: what the mixture calls it.
        source: a folder, or a Hub id with an optional ``@revision``.
        weights: whether the matrices are read; without, they are on the ``meta`` device and only their shapes count.
        max_bytes: largest weights file that is read or fetched; None reads any.

    Raises:
        ExpertError: not found, no safetensors, corrupt, no LoRA, or a LoRA that cannot be mixed exactly.
    """
    folder, pinned = locate_expert(name, str(source), max_bytes)
    if max_bytes is not None and (found := (folder / WEIGHTS_FILE).stat().st_size) > max_bytes:
        raise ExpertError(
            f"Expert '{name}' takes {found / 1e6:,.1f} MB, and at most {max_bytes / 1e6:,.1f} MB are read here."
        )
    config = _read_config(name, folder)
    _refuse_inexact(name, config)
    tensors = _read_tensors(name, folder) if weights else _read_shapes(name, folder)
    sites: dict[str, dict[str, torch.Tensor]] = {}
    leftover = []
    for key, tensor in tensors.items():
        if match := _LORA_KEY.match(key):
            sites.setdefault(match["site"], {})[match["part"]] = tensor
        else:
            leftover.append(key)
    if leftover or not sites:
        what = f"holds {leftover[0]}" if leftover else "holds no LoRA weights"
        raise ExpertError(
            f"Expert '{name}' in {folder} {what}; only LoRA A and B matrices of linear layers can be mixed."
        )
    return Expert(
        name=name,
        source=pinned,
        sha256=file_sha256(folder / WEIGHTS_FILE),
        backbone=config.get("base_model_name_or_path"),
        sites={site: _site_weights(name, site, parts, config) for site, parts in sites.items()},
    )


def read_experts(sources: Mapping[str, str]) -> dict[str, Expert]:
    """Read several experts, name → folder or Hub id; what is wrong with any of them is said at once.

    Raises:
        ExpertError: as :func:`read_expert`, for all that cannot be read.
    """
    found, faults = {}, []
    for name, source in sources.items():
        try:
            found[name] = read_expert(name, source)
        except ExpertError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise ExpertError(f"{len(faults)} of {len(sources)} experts cannot be used: " + " ".join(map(str, faults)))
    return found


class NewExpertSettings(Protocol):
    """What a new expert is made with; `LoraMixerConfig` has these fields."""

    r: int
    lora_alpha: float
    use_rslora: bool


def new_expert(name: str, shapes: Mapping[str, tuple[int, int]], settings: NewExpertSettings) -> Expert:
    """An untrained expert, as PEFT initialises a LoRA: A random (Kaiming uniform), B zero.

    Args:
        name: of the expert.
        shapes: module name → in and out features.
        settings: rank and scaling.

    Raises:
        ExpertError: no site, or a rank below 1.
    """
    if not shapes:
        raise ExpertError(f"Expert '{name}' is new, so target_modules must say which linear layers it changes.")
    if settings.r < 1:
        raise ExpertError(f"Expert '{name}' is new with rank r={settings.r}; a whole number from 1 on is needed.")
    scaling = settings.lora_alpha / (math.sqrt(settings.r) if settings.use_rslora else settings.r)
    sites = {}
    for site, (in_features, out_features) in shapes.items():
        A = torch.nn.init.kaiming_uniform_(torch.empty(settings.r, in_features), a=math.sqrt(5))
        sites[site] = SiteWeights(A, torch.zeros(out_features, settings.r), scaling)
    return Expert(name, None, None, None, sites)


def expert_identity(source: str) -> str:
    """What tells an expert from others of its name: the hash of its weights in a folder, or its Hub id."""
    weights = Path(source) / WEIGHTS_FILE
    return file_sha256(weights)[:IDENTITY_LENGTH] if weights.is_file() else source


def locate_expert(name: str, source: str, max_bytes: int | None = None) -> tuple[Path, str]:
    """The local folder of an expert, downloaded when ``source`` is a Hub id, and the source for later.

    That is a Hub id pinned to its commit, or the absolute path of a folder, so that it means the same in any folder.
    A download of more than ``max_bytes`` is refused before it begins.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / WEIGHTS_FILE).is_file() and list(folder.glob("*.bin")):
            raise ExpertError(
                f"Expert '{name}' in {folder} has pickled weights (.bin), which are never opened; convert it to "
                f"{WEIGHTS_FILE}, for example by loading and saving it with PEFT."
            )
        missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / file).is_file()]
        if missing:
            raise ExpertError(f"Expert '{name}' in {folder} lacks {' and '.join(missing)}; give a PEFT LoRA folder.")
        here = os.path.abspath(folder)
        return Path(here), here
    named = split_hub_id(source)
    if named is None:
        raise ExpertError(f"Expert '{name}': there is no folder {source}; give a PEFT LoRA folder or a Hub id.")
    try:
        files = fetch(*named, required=(CONFIG_FILE, WEIGHTS_FILE), max_bytes=max_bytes)
    except HubError as error:
        raise ExpertError(f"Expert '{name}': there is no folder {source}, and {error}.") from error
    return files.folder, files.pinned


def check_unchanged(name: str, folder: Path, sha256: str) -> None:
    """Raise ExpertError unless the weights in ``folder`` have this digest."""
    if (digest := file_sha256(folder / WEIGHTS_FILE)) != sha256:
        raise ExpertError(
            f"Expert '{name}' in {folder} has changed since the routers were trained (SHA-256 {digest[:12]}…, "
            f"expected {sha256[:12]}…); restore it or train the routers again."
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExpertError(f"Expert '{name}': {folder / CONFIG_FILE} cannot be read ({error}).") from error
    if config.get("peft_type") != "LORA":
        raise ExpertError(
            f"Expert '{name}' in {folder} is of PEFT type {config.get('peft_type')!r}; only plain LORA can be mixed."
        )
    return config


def _refuse_inexact(name: str, config: dict[str, Any]) -> None:
    reasons = {
        "use_dora": "DoRA rescales the whole weight",
        "modules_to_save": "it replaces whole modules",
        "trainable_token_indices": "it changes embeddings",
        "alora_invocation_tokens": "it is active for a part of the tokens only",
        "lora_bias": "it adds a bias to B",
        "target_parameters": "it changes parameters that are no linear layer",
        "layer_replication": "it repeats layers of the backbone",
        "use_qalora": "it averages the input in groups",
        "use_bdlora": "its matrices are block-diagonal",
        "kasa_config": "it changes the backbone's weight",
        "velora_config": "it compresses the input",
        "monteclora_config": "its weights are drawn at random",
        "arrow_config": "it is a router itself",
    }
    found = [f"{field} ({why})" for field, why in reasons.items() if config.get(field)]
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(("pissa", "corda", "olora", "mica", "loftq", "lora_ga")):
        found.append(
            f"init_lora_weights='{start}' (it goes with a changed backbone; save it converted to a plain LoRA with "
            "path_initial_model_for_weight_conversion)"
        )
    if config.get("bias", "none") != "none":
        found.append(f"bias='{config['bias']}' (it changes the backbone's biases)")
    if found:
        raise ExpertError(f"Expert '{name}' cannot be mixed exactly: it uses {', '.join(found)}.")


def _read_tensors(name: str, folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    with _one_sentence(name, folder):
        return load_file(folder / WEIGHTS_FILE)


def _read_shapes(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors on the ``meta`` device: only the head of the file is read."""
    from safetensors import safe_open

    found = {}
    with _one_sentence(name, folder), safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - it is no dictionary
            part = file.get_slice(key)
            dtype = _DTYPES.get(part.get_dtype(), torch.float32)
            found[key] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    return found


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@contextmanager
def _one_sentence(name: str, folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise ExpertError(
            f"Expert '{name}': {folder / WEIGHTS_FILE} is damaged or no safetensors file ({error}); fetch it again."
        ) from error


def _site_weights(name: str, site: str, parts: dict[str, torch.Tensor], config: dict[str, Any]) -> SiteWeights:
    if set(parts) != {"A", "B"} or any(part.dim() != 2 for part in parts.values()):
        raise ExpertError(
            f"Expert '{name}' at {site} is no pair of matrices A and B; only linear layers can be mixed."
        )
    A, B = parts["A"], parts["B"]
    if A.shape[0] != B.shape[1]:
        raise ExpertError(f"Expert '{name}' at {site} has A of rank {A.shape[0]} but B of rank {B.shape[1]}.")
    alpha = _by_pattern(config.get("alpha_pattern"), site, config.get("lora_alpha", 8))
    scaling = alpha / (math.sqrt(A.shape[0]) if config.get("use_rslora") else A.shape[0])
    return SiteWeights(A, B, scaling)


def _by_pattern(patterns: dict[str, float] | None, site: str, default: float) -> float:
    """PEFT's rule: the first pattern that matches the end of the module name wins."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", site):
            return value
    return default
