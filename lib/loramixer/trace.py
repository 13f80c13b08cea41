"""`RoutingTrace`: every gate of every token at every site, captured while a model reads and writes.

This is the only place where model code meets view code: capturing needs torch, everything that a trace can do
afterwards needs numpy and pandas only.

Shapes: S sites (layer × projection), T tokens, E experts.
"""

from __future__ import annotations

import inspect
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from loramixer.data import EncodedPrompt, encode_prompt
from loramixer.errors import TraceError
from loramixer.modes import evaluation_mode

if TYPE_CHECKING:
    import pandas as pd

    from loramixer.comparison import Comparison
    from loramixer.tuner.intervening import Intervention

Role = Literal["template", "prompt", "generated"]
Side = Literal["encoder", "decoder"]

MAX_FILE_MEGABYTES = 256.0
"""Largest trace file that is read unless the caller allows more: four times a trace of 224 sites × 2,048 tokens × 8
experts with contributions, in units of 10⁶ bytes."""

INTERVENTION_FIELDS = ("kind", "experts", "tokens", "part", "layers", "projections", "seed")
"""What a provenance says of an intervention: the fields of :class:`loramixer.Intervention`, which needs torch."""

MAX_PROMPT_TOKENS = 1024
"""Longest prompt, in tokens with its template, that is traced unless the caller allows more."""


@dataclass(frozen=True)
class Site:
    """One place where a router decides.

    Attributes:
        layer: index of the block, from 0.
        projection: name of the projection inside the block, such as ``q_proj``.
        module: full module name in the backbone.
    """

    layer: int
    projection: str
    module: str


@dataclass(frozen=True)
class TraceTokens:
    """The tokens of a trace.

    Attributes:
        text: the whole text, template, prompt and answer.
        ids: int64 ``[T]``.
        spans: int64 ``[T, 2]``, character span of each token in ``text``; tokens that share a span are parts of one
            character that the tokenizer split into bytes.
        roles: for each token ``template``, ``prompt`` or ``generated``.
        special: bool ``[T]``, whether the tokenizer calls it special.
    """

    text: str
    ids: np.ndarray
    spans: np.ndarray
    roles: tuple[Role, ...]
    special: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> str:
        """The text of one token."""
        start, end = self.spans[position]
        return self.text[start:end]


@dataclass(frozen=True)
class RoutingTrace:
    """What every router decided for every token.

    Attributes:
        tokens: the tokens, in order.
        sites: the routed sites, in the order of the model.
        experts: expert names; index E of the arrays.
        logits: float32 ``[S, T, E]``, router outputs; minus infinity where an expert is absent from a site.
        gates: float32 ``[S, T, E]``, the weights that multiplied the experts; rows sum to 1, or are all 0 where no
            expert is present, masked ones aside, or the site was switched off.
        provenance: what produced the trace: backbone and revision, hashes of experts and router, gate mode, k, seed,
            dtype, library versions.
        contributions: float32 ``[S, T, E]``, ‖g_e s_e B_e A_e x‖₂: the length of what each expert added to the output
            of the projection; None where it was not recorded.
        base_norms: float32 ``[S, T]``, ‖W x‖₂: the length of the frozen projection's output, without its bias;
            recorded together with the contributions.

    Raises:
        TraceError: arrays of unequal shape, a site that was not captured, or gates whose rows do not sum to 1.
    """

    tokens: TraceTokens
    sites: tuple[Site, ...]
    experts: tuple[str, ...]
    logits: np.ndarray
    gates: np.ndarray
    provenance: dict[str, Any] = field(default_factory=dict)
    contributions: np.ndarray | None = None
    base_norms: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = (len(self.sites), len(self.tokens), len(self.experts))
        for name in ("logits", "gates", *(["contributions"] if self.contributions is not None else [])):
            if (found := getattr(self, name).shape) != shape:
                raise TraceError(
                    f"The trace's {name} have shape {found}, expected sites × tokens × experts = {shape}."
                )
        if (self.contributions is None) != (self.base_norms is None):
            raise TraceError("The trace has contributions or base_norms alone; they are recorded together.")
        if self.base_norms is not None and self.base_norms.shape != shape[:2]:
            raise TraceError(
                f"The trace's base_norms have shape {self.base_norms.shape}, expected sites × tokens = {shape[:2]}."
            )
        if self.provenance.get("aggregation") == "max":
            return  # the largest gates of a group need not sum to anything
        sums = self.gates.sum(axis=-1)
        if self.provenance.get("renormalize", True):
            faulty = ~(np.abs(sums - 1) < 1e-3)
        else:
            faulty = ~((sums > 0) & (sums < 1 + 1e-3))
        # Without experts there is nothing to weigh: all masked, or a gate that leaves sites out.
        partial = self.provenance.get("site_gates") or self.provenance.get("interventions")
        partial = partial or self.provenance.get("gate") in ("off", "domain")
        faulty &= ~((sums == 0) & (bool(partial) | np.isneginf(self.logits).all(axis=-1)))
        if faulty.any():
            site, token = np.argwhere(faulty)[0]
            raise TraceError(
                f"The gates of {self.sites[site].module} at token {token} sum to {sums[site, token]:.4f}, not to 1; "
                "the trace was not captured from a whole forward pass."
            )

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of the routed projections, in the order of the model."""
        return tuple(dict.fromkeys(site.projection for site in self.sites))

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the routed layers."""
        return tuple(sorted({site.layer for site in self.sites}))

    @property
    def contribution_shares(self) -> np.ndarray | None:
        """float32 ``[S, T, E]``: ‖g_e s_e B_e A_e x‖ over ‖W x‖, the experts' lengths in units of the base output.

        They need not sum to 1: experts can point in different directions. NaN where the base output is 0.
        """
        if self.contributions is None or self.base_norms is None:
            return None
        base = self.base_norms[..., None]
        return np.divide(self.contributions, base, out=np.full_like(self.contributions, np.nan), where=base > 0)

    def select(
        self,
        *,
        layers: Sequence[int] | None = None,
        projections: Sequence[str] | None = None,
        roles: Sequence[Role] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boolean masks ``(sites [S], tokens [T])`` of a part of the trace; None means all."""
        site_mask = np.array(
            [
                (layers is None or site.layer in layers) and (projections is None or site.projection in projections)
                for site in self.sites
            ]
        )
        token_mask = np.array([roles is None or role in roles for role in self.tokens.roles])
        return site_mask, token_mask

    def __sub__(self, other: RoutingTrace) -> Comparison:
        """How this trace differs from another: :func:`loramixer.comparison.compare`, with the other one as A."""
        from loramixer.comparison import compare

        return compare(other, self)

    def to_frame(self) -> pd.DataFrame:
        """A tidy table with one row per site, token and expert.

        Columns: ``token`` (position), ``text``, ``role``, ``layer``, ``projection``, ``expert``, ``logit``, ``gate``;
        and, where they were recorded, ``contribution`` and ``contribution_share``.
        """
        import pandas as pd

        sites, tokens, experts = (len(self.sites), len(self.tokens), len(self.experts))
        site_index, token_index, expert_index = np.indices((sites, tokens, experts)).reshape(3, -1)
        token_texts = np.array([self.tokens[position] for position in range(tokens)], dtype=object)
        frame = pd.DataFrame(
            {
                "token": token_index,
                "text": token_texts[token_index],
                "role": np.array(self.tokens.roles, dtype=object)[token_index],
                "layer": np.array([site.layer for site in self.sites])[site_index],
                "projection": np.array([site.projection for site in self.sites], dtype=object)[site_index],
                "expert": np.array(self.experts, dtype=object)[expert_index],
                "logit": self.logits.reshape(-1),
                "gate": self.gates.reshape(-1),
            }
        )
        if self.contributions is not None and (shares := self.contribution_shares) is not None:
            frame["contribution"] = self.contributions.reshape(-1)
            frame["contribution_share"] = shares.reshape(-1)
        return frame

    def save(self, path: str | Path) -> Path:
        """Write the trace as one compressed ``.npz`` file (arrays and a JSON header; nothing is pickled)."""
        from loramixer.trace_file import write_trace

        return write_trace(self, Path(path))

    @classmethod
    def load(cls, source: str | Path | bytes | BinaryIO, *, max_megabytes: float = MAX_FILE_MEGABYTES) -> RoutingTrace:
        """Read a trace written by :meth:`save`, from a file that may come from anybody.

        Args:
            source: a path, the content of a file, or an open file.
            max_megabytes: most that the arrays may take in memory, and the file on disk, in units of 10⁶ bytes.

        Raises:
            TraceError: no such file, a file that is no whole trace of this format, or one that is larger than allowed.
        """
        from loramixer.trace_file import read_trace

        return read_trace(source, max_megabytes)


def trace(
    model: Any,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = 0,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = True,
    max_prompt_tokens: int = MAX_PROMPT_TOKENS,
    side: Side | None = None,
    contributions: bool = False,
    interventions: Sequence[Intervention] = (),
) -> RoutingTrace:
    """Run a prompt through a mixture and record every router, for the prompt and for what the model writes.

    Args:
        model: a PEFT model that holds a LoRA-Mixer mixture.
        tokenizer: its fast tokenizer.
        prompt: plain text; the chat template is added unless ``chat`` is false.
        max_new_tokens: how much the model writes; 0 records the prompt only.
        temperature: 0 decodes greedily, above 0 samples.
        seed: of the sampling.
        chat: whether the prompt goes through the tokenizer's chat template.
        max_prompt_tokens: longest prompt that is accepted.
        side: for an encoder–decoder, and only there: ``encoder`` records the prompt at the sites that see it (the
            encoder's, and the keys and values of cross-attention), ``decoder`` records what is written at the others.
        contributions: whether to record how much each expert adds to the output, which costs a product per site.
        interventions: what is done to the routing meanwhile, such as masking an expert; see
            :class:`loramixer.Intervention`. The provenance says so.

    Raises:
        TraceError: an empty or too long prompt, a site that was not captured, or a side that does not fit the model.
    """
    (last,) = deque(
        stream_trace(
            model,
            tokenizer,
            prompt,
            max_new_tokens,
            temperature=temperature,
            seed=seed,
            chat=chat,
            max_prompt_tokens=max_prompt_tokens,
            side=side,
            contributions=contributions,
            interventions=interventions,
        ),
        maxlen=1,
    )
    return last


def stream_trace(
    model: Any,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = 0,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = True,
    max_prompt_tokens: int = MAX_PROMPT_TOKENS,
    side: Side | None = None,
    stop: threading.Event | None = None,
    contributions: bool = False,
    interventions: Sequence[Intervention] = (),
) -> Iterator[RoutingTrace]:
    """Like :func:`trace`, but yields the growing trace: after the prompt, then after every token that was routed.

    One side of an encoder–decoder is read after the whole answer is there, so it comes in one piece.

    The model runs in a thread of its own through the ordinary ``generate``, so any decoding that it supports works.
    Setting ``stop``, or leaving the loop, ends generation after the current token; what was yielded stays valid. The
    event is only read, so that it tells afterwards whether the run was stopped.
    """
    if side is not None or _streams(model) != {"tokens"}:
        _check_side(model, side)
        # Without a chat template the special tokens of the tokenizer are what ends the encoder's text.
        chat = chat and bool(getattr(tokenizer, "chat_template", None))
    encoded = _checked_prompt(tokenizer, prompt, chat, max_prompt_tokens)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "temperature": temperature}
    if not chat and getattr(tokenizer, "chat_template", None):
        settings["chat"] = False
    if interventions:
        settings["interventions"] = [each.to_dict() for each in interventions]
    acting = _acting(model, interventions, len(encoded.ids))
    if side is not None:
        with acting:
            found = _trace_side(model, tokenizer, encoded, settings, side, contributions)
        yield found
        return
    # Its own: the caller's event says that somebody pressed Stop, and may serve several runs.
    ended = threading.Event()
    events = (ended,) if stop is None else (ended, stop)
    steps: queue.Queue[_Step | BaseException | None] = queue.Queue()
    worker = threading.Thread(
        target=_generate,
        args=(model, tokenizer, encoded, settings, contributions, acting, events, steps),
        daemon=True,
    )
    # Described first: beside the first forward pass, it would take the interpreter from it at every layer.
    assembly = _Assembly(model, tokenizer, encoded, settings)
    worker.start()
    try:
        while (step := steps.get()) is not None:
            if isinstance(step, BaseException):
                raise step
            yield assembly.add(step)
    finally:
        ended.set()
        worker.join()


@dataclass(frozen=True)
class _Step:
    """Newly routed tokens: their ids, and arrays ``[S, t, …]`` by their names in a trace."""

    ids: list[int]
    arrays: dict[str, np.ndarray]


def _checked_prompt(tokenizer: Any, prompt: str, chat: bool, max_prompt_tokens: int) -> EncodedPrompt:
    if not prompt.strip():
        raise TraceError("The prompt is empty; type a question or an instruction.")
    encoded = encode_prompt(tokenizer, prompt, chat)
    if len(encoded.ids) > max_prompt_tokens:
        raise TraceError(
            f"The prompt has {len(encoded.ids):,} tokens with its template, at most {max_prompt_tokens:,} are allowed "
            "here; shorten it."
        )
    return encoded


def _generate(
    model: Any,
    tokenizer: Any,
    encoded: EncodedPrompt,
    settings: dict[str, Any],
    contributions: bool,
    acting: AbstractContextManager[None],
    events: Sequence[threading.Event],
    steps: queue.Queue[_Step | BaseException | None],
) -> None:
    """Thread body: feeds ``steps`` with what was routed, ends it with None or with the exception that was raised.

    Generation ends after the token at which one of the ``events`` is set.
    """
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    from loramixer.tuner.runtime import capture_routing

    class Listener(StoppingCriteria):
        known = 0
        """How many tokens were handed over."""

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            # Only tokens that went through the model have a routing; the newest one has not yet.
            new = input_ids[0, self.known : -1].tolist()
            # A backbone without a cache reads the whole text at every step.
            arrays = {name: array[:, -len(new) :] for name, array in capture.take_arrays().items()}
            self.known += len(new)
            steps.put(_Step(new, arrays))
            is_over = any(event.is_set() for event in events)
            return torch.full((len(input_ids),), is_over, dtype=torch.bool, device=input_ids.device)

    try:
        device = next(model.parameters()).device
        input_ids = torch.tensor([encoded.ids], device=device)
        mask = torch.ones_like(input_ids)
        with (
            evaluation_mode(model),
            acting,
            torch.inference_mode(),
            _sampling_seed(settings),
            capture_routing(model, contributions) as capture,
        ):
            if settings["max_new_tokens"] == 0:
                model(input_ids=input_ids, attention_mask=mask)
                steps.put(_Step(encoded.ids, capture.take_arrays()))
            else:
                output = model.generate(
                    input_ids=input_ids,
                    attention_mask=mask,
                    max_new_tokens=settings["max_new_tokens"],
                    pad_token_id=tokenizer.pad_token_id
                    if tokenizer.pad_token_id is not None
                    else tokenizer.eos_token_id,
                    stopping_criteria=StoppingCriteriaList([Listener()]),
                    return_dict_in_generate=True,
                    use_cache=True,  # those who train with gradient checkpointing turn it off
                    **_sampling(settings["temperature"]),
                )
                last = output.sequences[:, -1:]
                cache = getattr(output, "past_key_values", None)
                takes_cache = "past_key_values" in inspect.signature(model.get_base_model().forward).parameters
                if cache is not None and takes_cache:
                    model(input_ids=last, past_key_values=cache, use_cache=True)
                else:  # Mamba calls it otherwise and would ignore it: read the whole text once more
                    model(input_ids=output.sequences, use_cache=False)
                newest = {name: array[:, -1:] for name, array in capture.take_arrays().items()}
                steps.put(_Step(last[0].tolist(), newest))
        steps.put(None)
    except BaseException as error:  # handed to the thread that reads the stream
        steps.put(error)


def _acting(model: Any, interventions: Sequence[Intervention], prompt_tokens: int) -> AbstractContextManager[None]:
    from loramixer.tuner.intervening import intervene

    return intervene(model, interventions, prompt_tokens) if interventions else nullcontext()


def _sampling(temperature: float) -> dict[str, Any]:
    """How `generate` decodes: greedily at temperature 0."""
    return {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}


@contextmanager
def _sampling_seed(settings: dict[str, Any]) -> Iterator[None]:
    """Draw by the seed while the block samples; what the caller draws afterwards does not change by it."""
    import torch

    if not settings["temperature"] > 0:
        yield
        return
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(settings["seed"])
        yield


def _streams(model: Any) -> set[str]:
    from loramixer.tuner.runtime import active_runtime

    return set(active_runtime(model).streams)


def _check_side(model: Any, side: str | None) -> None:
    """Raise a TraceError unless the model has this side, or has none and None is given."""
    sides = sorted(_streams(model) - {"unknown"})
    if side in sides and side != "tokens":
        return
    if "tokens" in sides:
        raise TraceError(f"The side is '{side}', but this backbone is no encoder–decoder; leave it out.")
    raise TraceError(
        f"The side is {side!r}, but the encoder and the decoder of this backbone see different tokens; trace them one "
        f"by one with {' or '.join(f'side={name!r}' for name in sides)}."
    )


def _trace_side(
    model: Any,
    tokenizer: Any,
    encoded: EncodedPrompt,
    settings: dict[str, Any],
    side: Side,
    contributions: bool,
) -> RoutingTrace:
    """Let an encoder–decoder write, then read prompt and answer in one pass and keep what one side routed."""
    import torch

    from loramixer.tuner.runtime import arrays_of, capture_routing

    input_ids = torch.tensor([encoded.ids], device=next(model.parameters()).device)
    mask = torch.ones_like(input_ids)
    with evaluation_mode(model), torch.inference_mode(), _sampling_seed(settings):
        max_new_tokens = settings["max_new_tokens"]
        # One token at least, which brings the token that the decoder starts from.
        limits = {"max_new_tokens": max(max_new_tokens, 1), "pad_token_id": tokenizer.pad_token_id}
        written = model.generate(
            input_ids=input_ids, attention_mask=mask, **limits, **_sampling(settings["temperature"])
        )
        written = written[:, : max_new_tokens + 1]
        with capture_routing(model, contributions) as capture:
            model(input_ids=input_ids, attention_mask=mask, decoder_input_ids=written, use_cache=False)
            routing = capture.take_streams()[side]
    if side == "decoder":
        start = tokenizer.decode(written[0, :1])
        encoded = EncodedPrompt(start, (0, 0), written[0, :1].tolist(), [(0, len(start))])
    assembly = _Assembly(model, tokenizer, encoded, {**settings, "side": side})
    assembly.sites = tuple(assembly.sites[site] for site in routing.sites)
    if rules := assembly.provenance["site_rules"]:
        assembly.provenance["site_rules"] = [rules[site] for site in routing.sites]
    ids = written[0].tolist() if side == "decoder" else encoded.ids
    return assembly.add(_Step(ids, arrays_of(routing)))


class _Assembly:
    """Builds the growing trace out of steps."""

    generated_role: Role = "generated"

    def __init__(self, model: Any, tokenizer: Any, encoded: EncodedPrompt, settings: dict[str, Any]) -> None:
        from loramixer.tuner.runtime import describe_mixture

        self.tokenizer = tokenizer
        self.encoded = encoded
        self.ids: list[int] = []
        self.parts: list[dict[str, np.ndarray]] = []
        description = describe_mixture(model)
        self.sites: tuple[Site, ...] = tuple(Site(*site) for site in description.pop("sites"))
        self.experts: tuple[str, ...] = tuple(description.pop("experts"))
        self.provenance: dict[str, Any] = {**description, **settings}
        self.prompt_roles: tuple[Role, ...] = tuple("prompt" if own else "template" for own in encoded.is_own())
        self.special_ids = set(tokenizer.all_special_ids)
        self.answer = _Answer(tokenizer)

    def add(self, step: _Step) -> RoutingTrace:
        self.ids += step.ids
        self.parts.append(step.arrays)
        return RoutingTrace(
            tokens=self._tokens(),
            sites=self.sites,
            experts=self.experts,
            provenance=self.provenance,
            **{name: np.concatenate([part[name] for part in self.parts], axis=1) for name in step.arrays},
        )

    def _tokens(self) -> TraceTokens:
        prompt_length = len(self.encoded.ids)
        written = self.ids[prompt_length:]
        answer, answer_spans = self.answer.read(written)
        offset = len(self.encoded.text)
        spans = [*self.encoded.offsets, *((start + offset, end + offset) for start, end in answer_spans)]
        return TraceTokens(
            text=self.encoded.text + answer,
            ids=np.array(self.ids, dtype=np.int64),
            spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
            roles=(*self.prompt_roles, *(self.generated_role for _ in written)),
            special=np.array([token in self.special_ids for token in self.ids]),
        )


class _Answer:
    """Text of the generated tokens and the character span of each; bytes of one split character share its span.

    What is known of an answer that grows is not decoded again: each token costs one decoding, not one for each token
    before it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self.spans: list[tuple[int, int]] = []

    def read(self, ids: list[int]) -> tuple[str, list[tuple[int, int]]]:
        """Text and spans of an answer that begins with the tokens of the last call."""
        text, spans, waiting = self.text, list(self.spans), 0
        for count in range(len(spans) + 1, len(ids) + 1):
            decoded = self.tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            waiting += 1
            is_open = decoded.endswith("\N{REPLACEMENT CHARACTER}")
            if is_open and count < len(ids):
                continue  # the character is not complete yet
            spans += [(len(text), len(decoded))] * waiting
            text, waiting = decoded, 0
            if not is_open:
                self.text, self.spans = text, list(spans)
        return text, spans
