"""Finding and loading whole mixtures: from the zoo that ships with the package, from a folder, or from the Hub."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loramixer.backbones import CATALOGUE, Notify, load_backbone
from loramixer.cards import UNPUBLISHED, write_mixture_card
from loramixer.errors import HubError, LoraMixerError, MixerError
from loramixer.hub import PUSHED_FILES, fetch, is_pinned, push_folder, split_hub_id
from loramixer.training.run_log import RunLog

ZOO = Path(__file__).parent / "zoo"
"""Folder of the experts and routers that ship with the package."""

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

SAVED_FIELDS = ("experts", "expert_order", "top_k")
"""Of the configuration, without which nobody knows what its routers choose from; settled before it is saved."""


@dataclass(frozen=True)
class MixerInfo:
    """What is known of a mixture without loading it.

    Attributes:
        name: what :func:`load_mixer` takes.
        title: a short name for people.
        backbone: name of its backbone in the catalogue, or the Hub id; empty where it was saved without one.
        loss: the routing loss in one line.
        experts: expert names, in the order of the gates.
        top_k: experts per token.
        seed: of the router training, or None where no run log is beside it.
        untrained: whether the routers are known to be as they were initialised.
        revision: of the backbone on the Hub; None where the mixture names none, or the one of the catalogue.
    """

    name: str
    title: str
    backbone: str
    loss: str
    experts: tuple[str, ...]
    top_k: int
    seed: int | None
    untrained: bool = False
    revision: str | None = None

    @property
    def pinned_backbone(self) -> str:
        """What :func:`load_backbone` takes: the backbone at the revision that the mixture names."""
        return f"{self.backbone}@{self.revision}" if self.backbone and self.revision else self.backbone


def list_mixers() -> list[MixerInfo]:
    """The mixtures of the zoo, by name; loads no model."""
    folders = [path.parent for path in sorted(ZOO.glob(f"*/*/{CONFIG_FILE}"))]
    return [mixer_info(folder, folder.relative_to(ZOO).as_posix()) for folder in folders]


def mixer_info(folder: Path, name: str) -> MixerInfo:
    """Read what a mixture folder says about itself.

    Raises:
        MixerError: a configuration or run log that is damaged, or of something else.
    """
    config = _read_config(folder, name)
    backbone = config.get("base_model_name_or_path") or ""
    revision = config.get("revision")
    known = next((entry for entry in CATALOGUE.values() if entry.public_name == backbone), None)
    settings = _logged_settings(folder)
    return MixerInfo(
        name=name,
        title=config.get("title") or name,
        backbone=known.name if known else backbone,
        loss=_loss_text(config, settings),
        experts=tuple(config["expert_order"]),
        top_k=config["top_k"],
        seed=settings.get("seed"),
        untrained=bool(config.get("untrained")),
        revision=None if known and revision == known.revision else revision,
    )


def _logged_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run log beside a mixture, if there is one."""
    path = folder / RunLog.FILE_NAME
    if not path.is_file():
        return {}
    try:
        return dict(RunLog.load(path).settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MixerError(
            f"{path} is no run log of a training ({error}); delete it, or copy it again from where the mixture comes "
            "from."
        ) from error


def _loss_text(config: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    if config.get("untrained"):
        return "nothing: these routers are untrained"
    return settings.get("loss_text") or config.get("routing_loss") or "none"


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
        name: a zoo name such as ``smollm2-135m/rsl``, a folder, or a Hub id with an optional ``@revision``.
        backbone: another place of its backbone; by default the one that the mixture names, at the revision it names.
        revision: Hub revision of the mixture; the same as ``@revision`` behind the id.
        dtype: floating-point type of the backbone; experts and routers stay in float32.
        device: where everything goes.
        notify: receives one line of text for every slow step.

    Returns:
        ``(peft_model, tokenizer)``, in evaluation mode.

    Raises:
        MixerError: unknown name, or damaged or unsuitable files.
        BackboneError, ExpertError: from the parts.
    """
    name = _with_revision(name, revision)
    folder = mixer_folder(name)
    config = _load_config(folder, name)
    backbone_name = backbone or config.base_model_name_or_path
    if not backbone_name:
        raise MixerError(
            f"'{name}' names no backbone (base_model_name_or_path in its {CONFIG_FILE}); give it with backbone=…."
        )
    model, tokenizer = load_backbone(
        backbone_name,
        revision=None if backbone else config.revision,
        dtype=dtype,
        device=device,
        notify=notify,
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
        revision: as for :func:`load_mixer`.

    Returns:
        PEFT's name of the adapter; adding the same mixture twice only activates it.
    """
    name = _with_revision(name, revision)
    for adapter, config in model.peft_config.items():
        if getattr(config, "mixer_name", None) == name:
            model.set_adapter(adapter, inference_mode=True)
            return adapter
    folder = mixer_folder(name)
    config = _load_config(folder, name)
    first = next(iter(model.peft_config.values()))
    here = first.base_model_name_or_path
    if config.base_model_name_or_path != here:
        raise MixerError(f"'{name}' was trained on {config.base_model_name_or_path}; the loaded backbone is {here}.")
    loaded = _loaded_commit(model)
    # A branch or tag may have been at the loaded commit; and who gave backbone=… chose other weights for all of them.
    if loaded and config.revision not in (loaded, first.revision) and is_pinned(f"{here}@{config.revision}"):
        raise MixerError(f"'{name}' was trained on {here} at {config.revision[:8]}; the loaded one is {loaded[:8]}.")
    adapter = _free_adapter_name(model, name)
    try:
        with _one_sentence(folder):
            model.load_adapter(str(folder), adapter_name=adapter)
    except BaseException:  # an interrupted one too: its weights are no numbers, and the next attempt would find it
        if adapter in model.peft_config:
            model.delete_adapter(adapter)
        raise
    model.peft_config[adapter].mixer_name = name
    model.set_adapter(adapter, inference_mode=True)
    model.eval()
    return adapter


def _loaded_commit(model: Any) -> str | None:
    """The commit on the Hub that the weights of a backbone came from; None where they did not, or nobody knows."""
    files = getattr(model.get_base_model(), "backbone_files", None)
    return files.commit if files else None


def _free_adapter_name(model: Any, name: str) -> str:
    """A name for PEFT without odd characters that no adapter has: PEFT loads into an adapter that there is already."""
    plain = re.sub(r"[^\w-]", "_", name)
    names = (plain, *(f"{plain}_{number}" for number in range(2, len(model.peft_config) + 2)))
    return next(free for free in names if free not in model.peft_config)


def push_mixer(
    model: Any,
    hub_id: str,
    *,
    experts: Mapping[str, str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    card: bool = True,
) -> str:
    """Push the active mixture of a model to the Hub, so that others can load it by its id.

    Args:
        model: a PEFT model with a mixture.
        hub_id: ``organisation/name``; created when there is none.
        experts: expert name → Hub id where this same expert lies, for a router-only mixture that was built from local
            folders; :func:`loramixer.hub.push_folder` puts them there.
        private: whether a new repository is private; None leaves that to the organisation's setting.
        revision: branch to push to; the main branch by default.
        card: whether the model card is written too; False leaves the one on the Hub as it is.

    Returns:
        ``organisation/name@commit``, which :func:`load_mixer` takes.

    Raises:
        MixerError: a router-only mixture whose experts nobody else could read.
        ExpertError: an id of ``experts`` that holds another expert.
        HubError: not logged in, no right to write there, or no answer.
    """
    from loramixer.tuner.runtime import active_runtime

    config = active_runtime(model).config
    adapter = next(name for name, found in model.peft_config.items() if found is config)
    with tempfile.TemporaryDirectory() as scratch, _published(model, config, experts or {}):
        model.save_pretrained(scratch, selected_adapters=[adapter], save_embedding_layers=False)
        folder = Path(scratch) if adapter == "default" else Path(scratch, adapter)
        write_mixture_card(folder, config, hub_id)
        files = [file for file in PUSHED_FILES if card or file != "README.md"]
        return push_folder(folder, hub_id, private=private, revision=revision, message="Upload mixture", files=files)


@contextmanager
def _published(model: Any, config: Any, places: Mapping[str, str]) -> Iterator[None]:
    """While the block runs, the configuration says what others can use, and no path of this machine."""
    from loramixer.experts import check_unchanged, locate_expert

    if unknown := sorted(set(places) - set(config.experts)):
        raise MixerError(f"The mixture has no expert '{unknown[0]}'; it has {', '.join(config.experts)}.")
    experts = {}
    for name, description in config.experts.items():
        source = description["source"] or ""
        if name in places:
            folder, source = locate_expert(name, places[name])
            check_unchanged(name, folder, description["sha256"])
        if not is_pinned(source):
            if not config.save_experts:
                raise MixerError(
                    f"Expert '{name}' lies in {source}, where nobody else can read it; push it with "
                    f"loramixer.hub.push_folder and give experts={{'{name}': 'organisation/name'}}, or include all "
                    "experts with model.active_peft_config.save_experts = True."
                )
            source = UNPUBLISHED + Path(source.removeprefix(UNPUBLISHED)).name if source else None
        experts[name] = {**description, "source": source}
    files = getattr(model.get_base_model(), "backbone_files", None)
    backbone = files.name if files else config.base_model_name_or_path or ""
    revision = (files and files.commit) or config.revision
    if split_hub_id(backbone) is None or Path(backbone).exists():
        backbone = UNPUBLISHED + Path(backbone.removeprefix(UNPUBLISHED)).name
    former = config.experts, config.base_model_name_or_path, config.revision
    config.experts, config.base_model_name_or_path, config.revision = experts, backbone, revision
    try:
        yield
    finally:
        config.experts, config.base_model_name_or_path, config.revision = former


def mixer_folder(name: str | Path) -> Path:
    """The local folder of a mixture; downloads it when it is a Hub id."""
    text = str(name)
    for folder in (ZOO / text, Path(text)):
        if (folder / CONFIG_FILE).is_file():
            return folder
    if Path(text).exists():
        raise MixerError(f"{text} holds no {CONFIG_FILE}; give the folder of a saved mixture.")
    known = ", ".join(info.name for info in list_mixers()) or "none"
    named = split_hub_id(text)
    if named is None or text.split("/", maxsplit=1)[0] in CATALOGUE:
        raise MixerError(f"There is no mixture '{text}'; the zoo has {known}, or give a folder or a Hub id.")
    try:
        return fetch(*named, required=(CONFIG_FILE, WEIGHTS_FILE), optional=(RunLog.FILE_NAME,)).folder
    except HubError as error:
        raise MixerError(f"'{text}' is no folder and no mixture of the zoo ({known}), and {error}.") from error


def _with_revision(name: str | Path, revision: str | None) -> str:
    if revision is None:
        return str(name)
    if "@" in str(name):
        raise MixerError(f"'{name}' names a revision and revision='{revision}' another; give one of them.")
    return f"{name}@{revision}"


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MixerError(f"{folder / CONFIG_FILE} cannot be read ({error}).") from error
    if not isinstance(config, dict):
        raise MixerError(f"{folder / CONFIG_FILE} is no configuration but a {type(config).__name__}; give a mixture.")
    if config.get("peft_type") != "LORA_MIXER":
        raise MixerError(
            f"'{name}' is a PEFT adapter of type {config.get('peft_type')}, not a mixture; to mix LoRAs pass them to "
            "LoraMixerConfig(experts=…)."
        )
    if missing := [field for field in SAVED_FIELDS if config.get(field) is None]:
        raise MixerError(
            f"{folder / CONFIG_FILE} lacks {' and '.join(missing)}; give a folder that save_pretrained of a mixture "
            "wrote."
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
