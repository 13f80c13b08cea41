"""Models in memory: one for each backbone that is in use, loaded when it is first needed, two at most."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from loramixer.errors import LoraMixerError

MOST = 2
"""Models in memory at once; the one that was not used for longest makes room."""

logger = logging.getLogger(__name__)

Load = Callable[[str, Callable[[str], None]], tuple[Any, Any]]
"""Loads the model and tokenizer of a backbone; the second argument receives a line for every slow step."""


@dataclass(frozen=True)
class ModelStatus:
    """Whether a model is in memory, in one sentence."""

    kind: Literal["idle", "loading", "ready", "failed"]
    text: str


@dataclass
class LoadedModel:
    """A backbone with its mixtures.

    Attributes:
        model: the PEFT model.
        tokenizer: of the backbone.
        running: held while a run, or a change of its mixtures, goes on.
    """

    model: Any
    tokenizer: Any
    running: threading.Lock = field(default_factory=threading.Lock)


class LoadedModels:
    """The models in memory, by backbone: its name, with ``@revision`` where a mixture names one.

    Args:
        load: loads one.
        is_private: whether the name of a backbone is one visitor's affair; everybody reads the status.
    """

    def __init__(self, load: Load, is_private: Callable[[str], bool] = lambda backbone: False) -> None:
        self._load = load
        self._is_private = is_private
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self._loading = threading.Lock()
        self._status = ModelStatus("idle", "The model is not loaded yet.")

    @property
    def status(self) -> ModelStatus:
        """Of what is loading, or else of what is in memory."""
        return self._status

    def fail(self, text: str) -> None:
        """Say that nothing can be loaded."""
        self._status = ModelStatus("failed", text)

    def names(self) -> list[str]:
        """Backbones in memory, the one used last at the end."""
        return list(self._models)

    def drop(self, loaded: LoadedModel) -> None:
        """Let go of a model, which whoever has it may still use."""
        for backbone, found in list(self._models.items()):
            if found is loaded:
                self._models.pop(backbone, None)

    def in_memory(self) -> list[LoadedModel]:
        """The models, in the order of their names."""
        return list(self._models.values())

    def hold(self, backbone: str, model: Any, tokenizer: Any) -> LoadedModel:
        """Keep a model that is loaded already."""
        found = self._models[backbone] = LoadedModel(model, tokenizer)
        return found

    def get(self, backbone: str) -> LoadedModel:
        """The model of a backbone, loaded if it is not in memory; waits for one that is being loaded.

        Raises:
            LoraMixerError: it cannot be loaded; the next call tries again.
        """
        with self._loading:
            if backbone in self._models:
                self._models.move_to_end(backbone)
                return self._models[backbone]
            self._make_room()
            private, former = self._is_private(backbone), self._status
            self._status = ModelStatus("loading", f"The model {'of a visitor' if private else backbone} is loading …")
            try:
                found = self.hold(backbone, *self._load(backbone, logger.info if private else self._note))
            except Exception as error:
                is_expected = isinstance(error, LoraMixerError)
                reason = str(error) if is_expected else f"Loading failed ({type(error).__name__}); see the log."
                failed = ModelStatus("failed", f"The model {backbone} is not loaded. {reason}")
                self._status = former if private else failed
                raise
            self._status = ModelStatus("ready", "Model ready.")
            return found

    def get_unlocked(self, backbone: str) -> LoadedModel:
        """Like :meth:`get`, for a forked process: no other thread is there, but a lock may be held for ever."""
        return self._models.get(backbone) or self.hold(backbone, *self._load(backbone, logger.info))

    def _make_room(self) -> None:
        """Let go of the model that was not used for longest, once its run has ended."""
        while len(self._models) >= MOST:
            name, oldest = next(iter(self._models.items()))
            with oldest.running:
                del self._models[name]
            logger.info("%s makes room in memory", name)

    def _note(self, line: str) -> None:
        """Progress of a slow step, from the library."""
        logger.info(line)
        self._status = ModelStatus("loading", line)
