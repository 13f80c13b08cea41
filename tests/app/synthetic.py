"""Invented traces and a source of models that needs no model; for tests only, never for the page."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from explorer.registry import ModelStatus
from explorer.settings import RunRequest
from loramixer.errors import MixerError, TraceError
from loramixer.mixers import MixerInfo
from loramixer.trace import RoutingTrace, Site, TraceTokens

EXPERTS = ("math", "medical", "code", "language")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
ANSWER = " Each dose is 310 mg (62 * 15 / 3). Watch for rash, nausea and diarrhea; 🦊 <b>stop</b> and see a doctor."
CHANGED_ANSWER = " Each dose is 300 mg. Ask a doctor."
"""What is written under an intervention."""

MIXERS = tuple(
    MixerInfo(f"smollm2-135m/{loss}", title, "smollm2-135m", text, EXPERTS, top_k=3, seed=0)
    for loss, title, text in (
        ("rsl", "RSL", "routing specialisation loss, invented for a test"),
        ("load-balance", "Load balance", "load-balance loss, invented for a test"),
    )
)
STEPS = {step: f"smollm2-135m/replay/rsl/step-{step:05}" for step in (0, 100)}
"""Kept along the training of the first of them."""


def split_words(text: str) -> list[tuple[int, int]]:
    """Spans of words with the space before them; an emoji takes three tokens that share its span."""
    spans: list[tuple[int, int]] = []
    start = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or text[end] in " \n<🦊" or text[end - 1] in "\n🦊>":
            spans += [(start, end)] * (3 if "🦊" in text[start:end] else 1)
            start = end
    return spans


def make_trace(
    prompt: str = "How many mg is each dose?",
    answer: str = ANSWER,
    *,
    written: int | None = None,
    layers: int = 30,
    experts: tuple[str, ...] = EXPERTS,
    k: int = 3,
    mixer: str = "smollm2-135m/rsl",
    seed: int = 0,
) -> RoutingTrace:
    """A trace whose gates are a smooth random walk, the same for the same arguments however much is written."""
    head, tail = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    template_spans = [(0, 12), (12, 16), (16, 17)]
    asked = [(start + 17, end + 17) for start, end in split_words(prompt)]
    base = 17 + len(prompt)
    after = [(base, base + 10), (base + 10, base + 11), (base + 11, base + 23), (base + 23, base + 33)]
    replied = [(start + base + len(tail), end + base + len(tail)) for start, end in split_words(answer)]
    replied = replied[: len(replied) if written is None else written]
    spans = [*template_spans, *asked, *after, *replied]
    roles = ["template"] * 3 + ["prompt"] * len(asked) + ["template"] * 4 + ["generated"] * len(replied)
    special = [position in (0, 3 + len(asked), 5 + len(asked)) for position in range(len(spans))]
    generator = np.random.default_rng(seed)
    sites = tuple(
        Site(layer, projection, f"model.layers.{layer}.self_attn.{projection}")
        for layer in range(layers)
        for projection in PROJECTIONS
    )
    noise = generator.normal(size=(600, len(sites), len(experts)))[: len(spans)].transpose(1, 0, 2)
    periods, phases = generator.uniform(3, 8, size=len(experts)), generator.uniform(0, 6, size=len(experts))
    drift = 1.6 * np.sin(np.arange(len(spans))[:, None] / periods + phases)
    logits = (noise * 0.7 + drift[None]).astype(np.float32)
    gates = top_k_gates(logits, k)
    lengths = generator.uniform(0.002, 0.12, size=(len(sites), 1, len(experts)))
    return RoutingTrace(
        tokens=TraceTokens(
            text=head + prompt + tail + answer,
            ids=np.arange(len(spans)),
            spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
            roles=tuple(roles),
            special=np.array(special),
        ),
        sites=sites,
        experts=experts,
        logits=logits,
        gates=gates,
        contributions=(gates * lengths).astype(np.float32),
        base_norms=np.ones(gates.shape[:2], dtype=np.float32),
        provenance={
            "mixer": mixer,
            "backbone": "smollm2-135m",
            "backbone_revision": "synthetic",
            "backbone_origin": "synthetic",
            "loss": "invented for a test",
            "gate": "top_k" if k < len(experts) else "soft",
            "k": k,
            "renormalize": True,
            "seed": 0,
            "temperature": 0.0,
            "router_sha256": "0123456789abcdef" * 4,
        },
    )


def top_k_gates(logits: np.ndarray, k: int) -> np.ndarray:
    """Softmax over the k largest logits."""
    threshold = np.sort(logits, axis=-1)[..., -k, None]
    weights = np.where(logits >= threshold, np.exp(logits - logits.max(axis=-1, keepdims=True)), 0)
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


class FakeSource:
    """Streams invented traces; a prompt that contains a magic word fails in the way that the word says.

    Args:
        seconds: pause before each token.
        seconds_to_load: how long it says that it is loading.
    """

    def __init__(self, seconds: float = 0.0, seconds_to_load: float = 0.0) -> None:
        self.seconds = seconds
        self.ready_at = time.monotonic() + seconds_to_load
        self.requests: list[RunRequest] = []
        self.added: dict[str, MixerInfo] = {}

    def backbones(self) -> list[str]:
        """One backbone."""
        return ["smollm2-135m"]

    def mixers(self) -> list[MixerInfo]:
        """Two routers."""
        return list(MIXERS)

    def steps(self, mixer: str) -> dict[int, str]:
        """Kept steps of the first router only."""
        return STEPS if mixer == MIXERS[0].name else {}

    def find(self, name: str) -> MixerInfo:
        """One of the two, one at a training step, or an added one."""
        if name in STEPS.values():
            return replace(MIXERS[0], name=name, title=f"{MIXERS[0].title}, step {name[-3:]}")
        for mixer in [*MIXERS, *self.added.values()]:
            if mixer.name == name:
                return mixer
        known = ", ".join(mixer.name for mixer in MIXERS)
        raise MixerError(f"'{name}' is no known router; known are {known}.")

    def add(self, folder: Path, title: str) -> str:
        """The folder is not read."""
        name = f"own/{uuid.uuid4().hex}"
        self.added[name] = replace(MIXERS[0], name=name, title=title)
        return name

    def last_use(self, name: str) -> float:
        """The first one was used last."""
        return -list(self.added).index(name)

    def remove(self, name: str) -> None:
        """Forget an added one."""
        self.added.pop(name, None)

    def status(self) -> ModelStatus:
        """Loading for a while, then ready."""
        if time.monotonic() < self.ready_at:
            return ModelStatus("loading", "The model is loading …")
        return ModelStatus("ready", "Model ready.")

    def stream(self, request: RunRequest, stop: threading.Event) -> Iterator[RoutingTrace]:
        """Prompt first, then one more token each."""
        self.requests.append(request)
        if "TOO-LONG" in request.prompt:
            raise TraceError("The prompt has 4,012 tokens with its template, at most 512 are allowed here.")
        given = {"answer": CHANGED_ANSWER, "seed": 9} if request.interventions else {}
        total = make_trace(request.prompt, **given).tokens.roles.count("generated")
        for written in range(min(total, request.max_new_tokens) + 1):
            if stop.is_set():
                return
            if written == 4 and "PAUSE" in request.prompt:
                stop.wait(120)
                if "LATE" in request.prompt:  # as a model that is in the middle of a token
                    time.sleep(1)
                return
            if written == 3 and "CRASH" in request.prompt:
                raise RuntimeError("an invented fault")
            # The page drops frames that follow each other too fast; the last one before the pause must be shown.
            time.sleep(max(self.seconds, 0.3) if written == 3 and "PAUSE" in request.prompt else self.seconds)
            yield make_trace(request.prompt, written=written, k=request.k, mixer=request.mixer, **given)
