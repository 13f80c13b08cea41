"""What can be run, and running it: backbones in memory, their routers switched on demand, one run on each at once."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from explorer.models import LoadedModel, LoadedModels, ModelStatus
from explorer.provenance import OWN_PREFIX
from explorer.settings import DEFAULT_MIXER, MAX_PROMPT_TOKENS, RunRequest
from explorer.zero_gpu import is_zero_gpu, on_zero_gpu, results_until
from loramixer.errors import LoraMixerError, MixerError
from loramixer.kept_routers import kept_at, kept_info, kept_steps, routers_at
from loramixer.mixers import MixerInfo, list_mixers, mixer_info
from loramixer.trace import RoutingTrace, stream_trace

logger = logging.getLogger(__name__)


class ModelSource(Protocol):
    """What the handlers need of a registry; tests give their own."""

    def backbones(self) -> Sequence[str]:
        """Names of the backbones that can be chosen."""

    def mixers(self) -> Sequence[MixerInfo]:
        """The routers that everybody can choose; empty when none is installed."""

    def find(self, name: str) -> MixerInfo:
        """A router by its name, also one of a training step, or that only its owner knows; else MixerError."""

    def steps(self, mixer: str) -> Mapping[int, str]:
        """The routers that were kept along the training of a router: step → name; empty for most."""

    def add(self, folder: Path, title: str) -> str:
        """Take a mixture from a folder, for whoever knows the name that is returned."""

    def remove(self, name: str) -> None:
        """Forget a mixture that was added; its folder stays."""

    def last_use(self, name: str) -> float:
        """When a mixture was last added or run, by a clock that only rises."""

    def status(self) -> ModelStatus:
        """Whether the model is in memory, or which one is loading."""

    def stream(self, request: RunRequest, stop: threading.Event) -> Iterator[RoutingTrace]:
        """Run a request; yields the growing trace until it is whole or ``stop`` is set."""


class ModelRegistry:
    """The real thing: loads through `loramixer`, in a thread of its own.

    Args:
        mixer: the router that is loaded first.
    """

    def __init__(self, mixer: str = DEFAULT_MIXER) -> None:
        self._first_mixer = mixer
        self._models = LoadedModels(self._load, self._is_private)
        self._added: dict[str, tuple[MixerInfo, Path]] = {}
        self._last_use: dict[str, float] = {}
        self._run_on_gpu = on_zero_gpu(self._run_in_worker, _seconds_on_gpu)

    def backbones(self) -> list[str]:
        """The backbones that have a router, the default one first; without any router, those of the catalogue."""
        from loramixer.backbones import CATALOGUE

        return list(dict.fromkeys(mixer.backbone for mixer in self.mixers())) or list(CATALOGUE)

    def mixers(self) -> list[MixerInfo]:
        """The routers of the zoo: those of the default backbone before others, the default one first."""
        first = self._first_mixer
        own = first.partition("/")[0]
        return sorted(list_mixers(), key=lambda mixer: (mixer.name != first, mixer.name.partition("/")[0] != own))

    def find(self, name: str) -> MixerInfo:
        """A router of the zoo, one of a step of its training, or an added one.

        Raises:
            MixerError: there is none of this name.
        """
        known = {entry.name: entry for entry in self.mixers()}
        if name in known:
            return known[name]
        if name in self._added:
            return self._added[name][0]
        if kept_at(name):
            with suppress(MixerError):  # what is not known is said below
                return kept_info(name)
        if name.startswith(OWN_PREFIX):  # a name that says nothing to anybody
            raise MixerError(
                "This router of your own is no longer in memory, where it made room for others; press “Explore with "
                "these” in Your own, or “Open in Explore” in Train, to have it again."
            )
        raise MixerError(f"'{name}' is no known router; known are {', '.join(known) or 'none yet'}.")

    def steps(self, mixer: str) -> dict[int, str]:
        """The routers that were kept along the training of a router of the zoo."""
        return kept_steps(mixer)

    def add(self, folder: Path, title: str) -> str:
        """Take a mixture from a folder. Its name cannot be guessed and is in no list, so that it stays private.

        Raises:
            MixerError: the folder holds no mixture.
        """
        name = f"{OWN_PREFIX}{uuid.uuid4().hex}"
        self._last_use[name] = time.monotonic()
        self._added[name] = replace(mixer_info(folder, name), title=title), folder
        return name

    def remove(self, name: str) -> None:
        """Forget an added mixture, in memory too; its folder stays."""
        self._last_use.pop(name, None)
        if self._added.pop(name, None) is None:
            return
        for loaded in self._models.in_memory():
            with loaded.running:
                for adapter, config in list(loaded.model.peft_config.items()):
                    if getattr(config, "mixer_name", None) == name:
                        loaded.model.delete_adapter(adapter)
                if not loaded.model.peft_config:  # a backbone without any router takes no further one
                    self._models.drop(loaded)

    def last_use(self, name: str) -> float:
        """When a mixture was last added or run."""
        return self._last_use.get(name, 0.0)

    def status(self) -> ModelStatus:
        """Whether the model is in memory, or which one is loading."""
        return self._models.status

    def start_loading(self) -> None:
        """Begin to load the default backbone in the background; returns at once."""
        if not self.mixers():
            self._models.fail("No trained router is installed, so only recordings can be shown.")
            return
        threading.Thread(target=self._load_quietly, name="load-model", daemon=True).start()

    def stream(self, request: RunRequest, stop: threading.Event) -> Iterator[RoutingTrace]:
        """Run a request; waits for the model, and for a run on it that is still ending.

        Raises:
            LoraMixerError: unknown router, impossible gate, unusable prompt, or a model that cannot be loaded.
        """
        backbone = self.find(request.mixer).pinned_backbone
        self._last_use[request.mixer] = time.monotonic()
        with self._running(backbone) as loaded:
            if is_zero_gpu():
                yield from results_until(stop, self._run_on_gpu(request, self._added.get(request.mixer)))
            else:
                with self._prepared(loaded.model, request):
                    yield from _traces(loaded, request, stop)

    @contextmanager
    def _running(self, backbone: str) -> Iterator[LoadedModel]:
        """The model of a backbone while a run has it; one whose last router was freed meanwhile is loaded anew."""
        while True:
            loaded = self._models.get(backbone)
            with loaded.running:
                if loaded.model.peft_config:
                    yield loaded
                    return
                self._models.drop(loaded)

    def _run_in_worker(
        self, request: RunRequest, added: tuple[MixerInfo, Path] | None
    ) -> Generator[RoutingTrace | LoraMixerError]:
        """A run in a process of ZeroGPU; see `explorer.zero_gpu` for why it takes no lock and returns its errors."""
        import torch

        # The threads that computed before the fork are not in this process, and would be waited for.
        torch.set_num_threads(1)
        if added is not None:
            self._added[request.mixer] = added
        try:
            loaded = self._models.get_unlocked(self.find(request.mixer).pinned_backbone)
            with self._prepared(loaded.model, request):
                loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
                yield from _traces(loaded, request, threading.Event())
        except LoraMixerError as error:
            yield error

    @contextmanager
    def _prepared(self, model: Any, request: RunRequest) -> Iterator[None]:
        """Router and gate of a request; the router of a training step only for as long as the block runs."""
        import loramixer

        kept = None if request.mixer in self._added else kept_at(request.mixer)
        self._activate(model, kept[0] if kept else request.mixer)
        with routers_at(model, request.mixer) if kept else nullcontext():
            loramixer.set_gate(model, request.gate, request.k, request.gate_temperature)
            yield

    def _activate(self, model: Any, name: str) -> None:
        """Put a router on a loaded model, or only switch to it."""
        import loramixer

        loaded = {getattr(config, "mixer_name", None): key for key, config in model.peft_config.items()}
        if name not in self._added:
            loramixer.add_mixer(model, name)
            return
        if name in loaded:
            model.set_adapter(loaded[name], inference_mode=True)
            return
        adapter = loramixer.add_mixer(model, self._added[name][1])
        # Its folder may not be shown to anybody, and the trace names its router.
        model.peft_config[adapter].mixer_name = name

    def _load_quietly(self) -> None:
        """Thread body: the status tells what went wrong, and the next run tries again."""
        try:
            self._models.get(self.find(self._first_mixer).pinned_backbone)
        except LoraMixerError:
            pass
        except Exception:
            logger.exception("Loading the model failed")

    def _is_private(self, backbone: str) -> bool:
        """Whether only a visitor's router needs this backbone, at this revision."""
        return backbone not in {*self.backbones(), *(mixer.pinned_backbone for mixer in self.mixers())}

    def _load(self, backbone: str, note: Callable[[str], None]) -> tuple[Any, Any]:
        """A backbone with the first of its routers; one without a router in the zoo gets that of whoever asks."""
        import loramixer

        routers: list[str | Path] = [mixer.name for mixer in self.mixers() if mixer.pinned_backbone == backbone]
        added = [folder for mixer, folder in self._added.values() if mixer.pinned_backbone == backbone]
        if not routers and not added:
            raise MixerError(f"No router is known for the backbone {backbone}.")
        return loramixer.load_mixer([*routers, *added][0], notify=note)


def _traces(loaded: LoadedModel, request: RunRequest, stop: threading.Event) -> Iterator[RoutingTrace]:
    """The growing trace of a run on a prepared model."""
    return stream_trace(
        loaded.model,
        loaded.tokenizer,
        request.prompt,
        request.max_new_tokens,
        seed=request.seed,
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        contributions=request.contributions,
        interventions=request.interventions,
        stop=stop,
    )


def _seconds_on_gpu(request: RunRequest, added: Any) -> float:
    """For ZeroGPU, which takes it off the visitor's daily share: a start with the weights, then every token."""
    return 20 + 0.25 * request.max_new_tokens
