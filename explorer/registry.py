"""What can be run, and running it: one backbone in memory, its routers switched on demand, one run at a time."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from explorer.settings import DEFAULT_MIXER, MAX_PROMPT_TOKENS, RunRequest
from loramixer.errors import LoraMixerError, MixerError
from loramixer.mixers import MixerInfo, list_mixers, mixer_info
from loramixer.trace import RoutingTrace, stream_trace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelStatus:
    """Whether the model is in memory, in one sentence."""

    kind: Literal["idle", "loading", "ready", "failed"]
    text: str


class ModelSource(Protocol):
    """What the handlers need of a registry; tests give their own."""

    def backbones(self) -> Sequence[str]:
        """Names of the backbones that can be chosen."""

    def mixers(self) -> Sequence[MixerInfo]:
        """The routers that everybody can choose; empty when none is installed."""

    def find(self, name: str) -> MixerInfo:
        """A router by its name, also one that only its owner knows; MixerError when there is none."""

    def add(self, folder: Path, title: str) -> str:
        """Take a mixture from a folder, for whoever knows the name that is returned."""

    def remove(self, name: str) -> None:
        """Forget a mixture that was added; its folder stays."""

    def status(self) -> ModelStatus:
        """Whether the model is in memory."""

    def stream(self, request: RunRequest, stop: threading.Event) -> Iterator[RoutingTrace]:
        """Run a request; yields the growing trace until it is whole or ``stop`` is set."""


class ModelRegistry:
    """The real thing: loads through `loramixer`, in a thread of its own.

    Args:
        mixer: the router that is loaded first.
    """

    def __init__(self, mixer: str = DEFAULT_MIXER) -> None:
        self._first_mixer = mixer
        self._model: Any = None
        self._tokenizer: Any = None
        self._status = ModelStatus("idle", "The model is not loaded yet.")
        self._loading = threading.Lock()
        self._running = threading.Lock()
        self._added: dict[str, tuple[MixerInfo, Path]] = {}

    def backbones(self) -> list[str]:
        """Names of the catalogue, then those that only a router names."""
        from loramixer.backbones import CATALOGUE

        return list(dict.fromkeys([*CATALOGUE, *(mixer.backbone for mixer in self.mixers())]))

    def mixers(self) -> list[MixerInfo]:
        """The routers of the zoo, the default one first."""
        return sorted(list_mixers(), key=lambda mixer: mixer.name != self._first_mixer)

    def find(self, name: str) -> MixerInfo:
        """A router of the zoo, or an added one.

        Raises:
            MixerError: there is none of this name.
        """
        known = {entry.name: entry for entry in self.mixers()}
        if name in known:
            return known[name]
        if name in self._added:
            return self._added[name][0]
        raise MixerError(f"'{name}' is no known router; known are {', '.join(known) or 'none yet'}.")

    def add(self, folder: Path, title: str) -> str:
        """Take a mixture from a folder. Its name cannot be guessed and is in no list, so that it stays private.

        Raises:
            MixerError: the folder holds no mixture.
        """
        name = f"own/{uuid.uuid4().hex}"
        self._added[name] = replace(mixer_info(folder, name), title=title), folder
        return name

    def remove(self, name: str) -> None:
        """Forget an added mixture, in memory too; its folder stays."""
        if self._added.pop(name, None) is None or self._model is None:
            return
        with self._running:
            for adapter, config in list(self._model.peft_config.items()):
                if getattr(config, "mixer_name", None) == name:
                    self._model.delete_adapter(adapter)

    def status(self) -> ModelStatus:
        """Whether the model is in memory."""
        return self._status

    def start_loading(self) -> None:
        """Begin to load in the background; returns at once."""
        if not self.mixers():
            self._status = ModelStatus("failed", "No trained router is installed, so only recordings can be shown.")
            return
        threading.Thread(target=self._load_quietly, name="load-model", daemon=True).start()

    def stream(self, request: RunRequest, stop: threading.Event) -> Iterator[RoutingTrace]:
        """Run a request; waits for the model, and for a run that is still ending.

        Raises:
            LoraMixerError: unknown router, impossible gate, unusable prompt, or a model that cannot be loaded.
        """
        import loramixer

        self.find(request.mixer)
        self._load()
        with self._running:
            self._activate(request.mixer)
            loramixer.set_gate(self._model, mode=request.gate, k=request.k)
            yield from stream_trace(
                self._model,
                self._tokenizer,
                request.prompt,
                request.max_new_tokens,
                seed=request.seed,
                max_prompt_tokens=MAX_PROMPT_TOKENS,
                stop=stop,
            )

    def _activate(self, name: str) -> None:
        """Put a router on the loaded model, or only switch to it."""
        import loramixer

        loaded = {getattr(config, "mixer_name", None): key for key, config in self._model.peft_config.items()}
        if name not in self._added:
            loramixer.add_mixer(self._model, name)
            return
        if name in loaded:
            self._model.set_adapter(loaded[name], inference_mode=True)
            return
        adapter = loramixer.add_mixer(self._model, self._added[name][1])
        # Its folder may not be shown to anybody, and the trace names its router.
        self._model.peft_config[adapter].mixer_name = name

    def _load_quietly(self) -> None:
        """Thread body: the status tells what went wrong, and the next run tries again."""
        try:
            self._load()
        except LoraMixerError:
            pass
        except Exception:
            logger.exception("Loading the model failed")

    def _load(self) -> None:
        import loramixer

        with self._loading:
            if self._model is not None:
                return
            self._status = ModelStatus("loading", "The model is loading …")
            try:
                self._model, self._tokenizer = loramixer.load_mixer(self._first_mixer, notify=self._note)
            except Exception as error:
                is_expected = isinstance(error, LoraMixerError)
                reason = str(error) if is_expected else f"Loading failed ({type(error).__name__}); see the log."
                self._status = ModelStatus("failed", f"The model is not loaded. {reason}")
                raise
            self._status = ModelStatus("ready", "Model ready.")

    def _note(self, line: str) -> None:
        """Progress of a slow step, from the library."""
        logger.info(line)
        self._status = ModelStatus("loading", line)
