"""Finding and loading whole mixtures: from the zoo that ships with the package, from a folder, or from the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loramixer.backbones import CATALOGUE, SAFE_FILES, Notify, load_backbone
from loramixer.errors import LoraMixerError, MixerError

ZOO = Path(__file__).parent / "zoo"
"""Folder of the experts and routers that ship with the package."""

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class MixerInfo:
    """What is known of a mixture without loading it.

    Attributes:
        name: what :func:`load_mixer` takes.
        title: a short name for people.
        backbone: name of its backbone in the catalogue, or the Hub id.
        loss: the routing loss in one line.
        experts: expert names, in the order of the gates.
        top_k: experts per token.
        seed: of the router training, or None where no run log is beside it.
    """

    name: str
    title: str
    backbone: str
    loss: str
    experts: tuple[str, ...]
    top_k: int
    seed: int | None


def list_mixers() -> list[MixerInfo]:
    """The mixtures of the zoo, by name; loads no model."""
    folders = [path.parent for path in sorted(ZOO.glob(f"*/*/{CONFIG_FILE}"))]
    return [mixer_info(folder, folder.relative_to(ZOO).as_posix()) for folder in folders]


def mixer_info(folder: Path, name: str) -> MixerInfo:
    """Read what a mixture folder says about itself."""
    config = _read_config(folder, name)
    backbone = config["base_model_name_or_path"]
    known = next((entry.name for entry in CATALOGUE.values() if entry.hub_id == backbone), backbone)
    log = folder / "run_log.json"
    settings = json.loads(log.read_text())["settings"] if log.is_file() else {}
    return MixerInfo(
        name=name,
        title=config.get("title") or name,
        backbone=known,
        loss=settings.get("loss_text", config.get("routing_loss", "none")),
        experts=tuple(config["expert_order"]),
        top_k=config["top_k"],
        seed=settings.get("seed"),
    )


def load_mixer(
    name: str | Path,
    *,
    backbone: str | Path | None = None,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    notify: Notify | None = None,
) -> tuple[Any, Any]:
    """Load a mixture with its backbone and tokenizer.

    Args:
        name: a zoo name such as ``smollm2-135m/rsl``, a folder, or a Hub id.
        backbone: another place of its backbone; by default the one that the mixture names.
        revision: Hub revision of the mixture.
        dtype: floating-point type of the backbone; experts and routers stay in float32.
        device: where everything goes.
        notify: receives one line of text for every slow step.

    Returns:
        ``(peft_model, tokenizer)``, in evaluation mode.

    Raises:
        MixerError: unknown name, or damaged or unsuitable files.
        BackboneError, ExpertError: from the parts.
    """
    folder = mixer_folder(name, revision)
    config = _load_config(folder, str(name))
    model, tokenizer = load_backbone(
        backbone or config.base_model_name_or_path, dtype=dtype, device=device, notify=notify
    )
    from peft import PeftModel

    with _one_sentence(folder):
        peft_model = PeftModel.from_pretrained(model, str(folder), config=config)
    return peft_model.eval(), tokenizer


def add_mixer(model: Any, name: str | Path, *, revision: str | None = None) -> str:
    """Put another mixture on a loaded backbone beside the ones it has, and activate it.

    Args:
        model: what :func:`load_mixer` returned.
        name: as for :func:`load_mixer`.
        revision: Hub revision.

    Returns:
        PEFT's name of the adapter; adding the same mixture twice only activates it.
    """
    for adapter, config in model.peft_config.items():
        if getattr(config, "mixer_name", None) == str(name):
            model.set_adapter(adapter, inference_mode=True)
            return adapter
    folder = mixer_folder(name, revision)
    config = _load_config(folder, str(name))
    here = next(iter(model.peft_config.values())).base_model_name_or_path
    if config.base_model_name_or_path != here:
        raise MixerError(f"'{name}' was trained on {config.base_model_name_or_path}; the loaded backbone is {here}.")
    adapter = re.sub(r"[^\w-]", "_", str(name))

    with _one_sentence(folder):
        model.load_adapter(str(folder), adapter_name=adapter)
    model.peft_config[adapter].mixer_name = str(name)
    model.set_adapter(adapter, inference_mode=True)
    model.eval()
    return adapter


def mixer_folder(name: str | Path, revision: str | None = None) -> Path:
    """The local folder of a mixture; downloads it when it is a Hub id."""
    text = str(name)
    for folder in (ZOO / text, Path(text)):
        if (folder / CONFIG_FILE).is_file():
            return folder
    if Path(text).exists():
        raise MixerError(f"{text} holds no {CONFIG_FILE}; give the folder of a saved mixture.")
    known = ", ".join(info.name for info in list_mixers()) or "none"
    if text.split("/", maxsplit=1)[0] in CATALOGUE or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
        raise MixerError(f"There is no mixture '{text}'; the zoo has {known}, or give a folder or a Hub id.")
    return _download(text, revision, known)


def _download(hub_id: str, revision: str | None, known: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=SAFE_FILES, etag_timeout=5))
    except Exception as error:  # the client raises many types; the sentence keeps the first line of what it said
        raise MixerError(
            f"'{hub_id}' is no folder and no mixture of the zoo ({known}), and the Hub did not give it "
            f"({str(error).strip().splitlines()[0][:160]})."
        ) from error


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MixerError(f"{folder / CONFIG_FILE} cannot be read ({error}).") from error
    if config.get("peft_type") != "LORA_MIXER":
        raise MixerError(
            f"'{name}' is a PEFT adapter of type {config.get('peft_type')}, not a mixture; to mix LoRAs pass them to "
            "LoraMixerConfig(experts=…)."
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise MixerError(f"'{name}' has no {WEIGHTS_FILE}; mixtures are read from safetensors only.")
    return config


def _load_config(folder: Path, name: str) -> Any:
    from loramixer.tuner import LoraMixerConfig

    _read_config(folder, name)
    config = LoraMixerConfig.from_pretrained(str(folder))
    config.mixer_name = name
    return config


@contextmanager
def _one_sentence(folder: Path) -> Iterator[None]:
    """Turn what PEFT and safetensors raise on damaged files into one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except LoraMixerError:
        raise
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise MixerError(
            f"The mixture in {folder} cannot be loaded ({str(error).strip().splitlines()[0][:200]}); its files are "
            "damaged or belong to another version."
        ) from error
