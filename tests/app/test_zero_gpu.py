"""ZeroGPU: the card is asked for only where the model runs, in a forked process as the real package has it."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from explorer import zero_gpu
from explorer.registry import ModelRegistry
from explorer.settings import RunRequest
from loramixer.errors import BackboneError, LoraMixerError, TraceError
from loramixer.mixers import mixer_info
from tests import tiny

SECONDS = 60


class StandIn(ModuleType):
    """``spaces`` without its server: runs a call in a forked process, with pickled arguments and results.

    Attributes:
        durations: seconds that were asked for.
        closed: calls that were left before their end.
    """

    def __init__(self) -> None:
        super().__init__("spaces")
        self.durations: list[float] = []
        self.decorated: list[Callable[..., Any]] = []
        self.closed = 0

    def GPU(self, *, duration: Callable[..., float]) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            self.decorated.append(function)

            def call(*arguments: Any) -> Iterator[Any]:
                self.durations.append(duration(*arguments))
                yield from self._forked(function, pickle.dumps(arguments))

            return call

        return decorate

    def _forked(self, function: Any, arguments: bytes) -> Iterator[Any]:
        here, there = multiprocessing.Pipe()

        def work() -> None:
            try:
                for value in function(*pickle.loads(arguments)):
                    there.send(("value", value))
                there.send(("end", None))
            except Exception as error:
                there.send(("fault", type(error).__name__))  # all that comes back from the real one

        worker = multiprocessing.get_context("fork").Process(target=work, daemon=True)
        worker.start()
        try:
            while here.poll(SECONDS):
                kind, value = here.recv()
                if kind == "end":
                    return
                if kind == "fault":
                    raise RuntimeError(value)
                yield value
            raise TimeoutError("The forked process said nothing; it waits for a lock or a thread.")
        except GeneratorExit:
            self.closed += 1
            raise
        finally:
            worker.kill()
            worker.join()


@pytest.fixture
def spaces(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    monkeypatch.setitem(sys.modules, "spaces", found)
    monkeypatch.setenv(zero_gpu.VARIABLE, "true")
    return found


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    experts = tiny.save_experts(tmp_path / "experts")
    tiny.mixture({name: experts[name] for name in ("a", "b")}).save_pretrained(tmp_path / "mixture")
    return tmp_path / "mixture"


def prepared(saved: Path) -> ModelRegistry:
    registry = ModelRegistry()
    model = tiny.mixture(tiny.save_experts(saved.parent / "others"))
    registry._models.hold(mixer_info(saved, "saved").backbone, model, tiny.tokenizer())
    return registry


def asked(name: str, prompt: str = "the dose", tokens: int = 4) -> RunRequest:
    return RunRequest(prompt, name, "soft", 2, tokens)


def run(registry: ModelRegistry, request: RunRequest) -> list[Any]:
    return list(registry.stream(request, threading.Event()))


def test_elsewhere_spaces_is_not_even_imported() -> None:
    code = "import sys; from explorer.registry import ModelRegistry; ModelRegistry(); print('spaces' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("1", True), ("false", False), ("", False)])
def test_who_has_zero_gpu(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv(zero_gpu.VARIABLE, value)
    assert zero_gpu.is_zero_gpu() is expected


def test_elsewhere_the_function_stays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(zero_gpu.VARIABLE, raising=False)

    def function() -> Any:
        yield 1

    assert zero_gpu.on_zero_gpu(function, lambda: 1) is function


def test_zero_gpu_without_spaces_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(zero_gpu.VARIABLE, "true")
    monkeypatch.setitem(sys.modules, "spaces", None)
    with pytest.raises(BackboneError, match="pip install spaces"):
        ModelRegistry()


def test_the_card_gives_what_the_processor_gives(
    monkeypatch: pytest.MonkeyPatch, saved: Path, spaces: StandIn
) -> None:
    registry = prepared(saved)
    assert spaces.decorated == [registry._run_in_worker]
    name = registry.add(saved, "Mine")
    lent = run(registry, asked(name))
    assert spaces.durations == [21]
    monkeypatch.delenv(zero_gpu.VARIABLE)
    own = run(registry, asked(name))
    assert len(lent) == len(own) > 1
    assert lent[-1].provenance["mixer"] == name
    assert list(lent[-1].tokens.ids) == list(own[-1].tokens.ids)
    np.testing.assert_allclose(lent[-1].gates, own[-1].gates, atol=1e-5)
    assert len(spaces.durations) == 1


def test_a_worker_of_before_learns_of_a_new_mixture(saved: Path, spaces: StandIn) -> None:
    """A worker is kept for the next call, and knows nothing that happened here since its fork."""
    worker, registry = prepared(saved), prepared(saved)
    name = registry.add(saved, "Mine")
    outcomes = list(worker._run_in_worker(asked(name), registry._added[name]))
    assert outcomes[-1].provenance["mixer"] == name


def test_a_sentence_comes_back_from_the_other_process(saved: Path, spaces: StandIn) -> None:
    registry = prepared(saved)
    with pytest.raises(TraceError, match="at most 512 are allowed"):
        run(registry, asked(registry.add(saved, "Mine"), "dose " * 600))


def test_a_lock_that_another_thread_holds_blocks_nobody(saved: Path, spaces: StandIn) -> None:
    """A model may be loading here while a worker is forked."""
    registry = prepared(saved)
    name = registry.add(saved, "Mine")
    own = registry._run_on_gpu(asked(name), registry._added[name])
    with registry._models._loading, registry._models.in_memory()[0].running:
        assert not isinstance(list(own)[-1], LoraMixerError)


def test_stop_ends_the_other_process(saved: Path, spaces: StandIn) -> None:
    registry, stop = prepared(saved), threading.Event()
    runs = registry.stream(asked(registry.add(saved, "Mine"), tokens=200), stop)
    next(runs)
    stop.set()
    assert list(runs) == []
    assert spaces.closed == 1
    assert not registry._models.in_memory()[0].running.locked()
