"""`Intervention`: what experts do to a text, tried out while the model reads and writes it.

Nothing is changed in the weights. Where tokens stand is known from what the model is called with and from its cache,
so that a position means the same in one forward pass and in generation token by token.

Shape legend: N tokens (all leading axes flattened), S sites of a group, E experts.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from loramixer.errors import RoutingError
from loramixer.routing import uniform_gates
from loramixer.tuner.runtime import active_runtime
from loramixer.tuner.sites import split_sites

if TYPE_CHECKING:
    from loramixer.tuner.runtime import MixtureRuntime

Kind = Literal["mask", "force", "uniform", "random_mask"]
Part = Literal["all", "prompt", "generated"]


@dataclass(frozen=True)
class Intervention:
    """One change of the routing of some tokens at some sites.

    Attributes:
        kind: ``mask`` takes experts out of the choice, and their weight goes to the others; ``force`` gives all weight
            to one expert; ``uniform`` gives the same weight to all that are present and not masked; ``random_mask`` is
            the control for a mask: as many experts as that takes out at a site, drawn anew for every token and site.
        experts: the masked ones; the forced one; for ``random_mask`` those of the mask that it is the control for;
            none for ``uniform``.
        tokens: first position and one past the last, counted from the start of the text, template included; None as
            the end means to the end, and None altogether all tokens.
        part: of these, only those of the ``prompt`` (template included), only those that are ``generated``, or
            ``all``.
        layers: indices of the layers; None for all.
        projections: names of the projections; None for all.
        seed: of ``random_mask``; one seed masks the same experts in every run and however the text is cut into calls.
    """

    kind: Kind
    experts: tuple[str, ...] = ()
    tokens: tuple[int, int | None] | None = None
    part: Part = "all"
    layers: tuple[int, ...] | None = None
    projections: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.experts, str):
            object.__setattr__(self, "experts", (self.experts,))
        for name in ("experts", "tokens", "layers", "projections"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))

    def to_dict(self) -> dict[str, Any]:
        """For a provenance: what differs from the defaults."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        kept = {item.name: found[item.name] for item in fields(self) if found[item.name] != item.default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


class ActingInterventions:
    """Interventions on one mixture while they act."""

    def __init__(
        self, interventions: Sequence[Intervention], runtime: MixtureRuntime, prompt_tokens: int | None
    ) -> None:
        self.interventions = tuple(interventions)
        self.prompt_tokens = prompt_tokens
        self._start = self._step = 0
        self._streams = runtime.streams
        places = split_sites(runtime.sites)
        self._sites = [_sites_of(each, places) for each in self.interventions]
        self._experts = [
            torch.tensor([name in each.experts for name in runtime.experts]) for each in self.interventions
        ]
        self._draws = {
            (index, site): _Draws(each.seed, site, len(runtime.experts))
            for index, (each, sites) in enumerate(zip(self.interventions, self._sites, strict=True))
            if each.kind == "random_mask"
            for site in sites
        }
        for each in self.interventions:
            _check(each, runtime, prompt_tokens)

    @property
    def by_position(self) -> bool:
        """Whether it matters where in its text a token stands."""
        return any(map(_depends_on_position, self.interventions))

    def begin(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before the backbone runs: note how many tokens it was given before these, and how many these are."""
        inputs = {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs}
        given = next((inputs[name] for name in _TOKENS if inputs.get(name) is not None), None)
        cache = next(
            (inputs[name] for name in ("past_key_values", "cache_params") if inputs.get(name) is not None), None
        )
        self._start = 0 if cache is None else self._tokens_in(cache)
        self._step = 1 if given is None else int(given.shape[1])

    def _tokens_in(self, cache: Any) -> int:
        with suppress(ValueError, AttributeError, NotImplementedError):
            return int(cache.get_seq_length())
        # The state of a state-space model has no length; when there is one, this call goes on where the last ended.
        with suppress(ValueError, AttributeError, NotImplementedError):
            return self._start + self._step if cache.has_previous_state() else 0
        raise RoutingError(
            f"{type(cache).__name__} does not say how many tokens it holds, so interventions cannot be placed; "
            "generate with use_cache=False."
        )

    def apply(
        self, logits_NSE: torch.Tensor, sites: Sequence[int], leading: torch.Size, training: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """Masks, and what takes the place of the gates.

        Args:
            logits_NSE: router logits, minus infinity where an expert is absent.
            sites: indices of the S sites.
            leading: axes that N stands for, ``[B, T]`` as a rule.
            training: whether the sites are in training mode.

        Returns:
            The logits with masks; and None or ``(rows, weights)``, bool ``[N, S, 1]`` and ``[N, S, E]``: the gates of
            these rows are the weights.

        Raises:
            RoutingError: the model trains, or tokens do not come in rows.
        """
        if training:
            raise RoutingError("Interventions are for reading and writing, and this model trains; call model.eval().")
        present_NSE = logits_NSE != -torch.inf
        positions = self._positions(len(logits_NSE), sites, leading)
        device = logits_NSE.device
        replaced: tuple[torch.Tensor, torch.Tensor] | None = None
        for index, each in enumerate(self.interventions):
            hit_S = np.array([site in self._sites[index] for site in sites])
            hit_N = _hit(each, positions, self.prompt_tokens)
            if not hit_S.any() or not hit_N.any():
                continue
            rows_NS = torch.from_numpy(hit_N[:, None] & hit_S[None, :]).to(device)
            chosen_E = self._experts[index].to(device)
            if each.kind == "mask":
                logits_NSE = logits_NSE.masked_fill(rows_NS.unsqueeze(-1) & chosen_E, -torch.inf)
            elif each.kind == "random_mask":
                drawn_NSE = self._drawn(index, sites, positions, logits_NSE != -torch.inf, chosen_E)
                logits_NSE = logits_NSE.masked_fill(rows_NS.unsqueeze(-1) & drawn_NSE, -torch.inf)
        for index, each in enumerate(self.interventions):
            if each.kind not in ("force", "uniform"):
                continue
            hit_S = np.array([site in self._sites[index] for site in sites])
            rows_NS1 = torch.from_numpy(_hit(each, positions, self.prompt_tokens)[:, None] & hit_S[None, :])
            rows_NS1 = rows_NS1.to(device).unsqueeze(-1)
            if each.kind == "uniform":
                weights_NSE = uniform_gates(logits_NSE)
            else:
                weights_NSE = (self._experts[index].to(device) & present_NSE).to(logits_NSE.dtype)
            if replaced is not None:
                weights_NSE = torch.where(rows_NS1, weights_NSE, replaced[1])
                rows_NS1 = rows_NS1 | replaced[0]
            replaced = rows_NS1, weights_NSE
        return logits_NSE, replaced

    def _positions(self, count: int, sites: Sequence[int], leading: torch.Size) -> np.ndarray:
        """Position in its text of each of N tokens."""
        start = 0 if self._streams[sites[0]] == "encoder" else self._start
        length = leading[-1] if len(leading) > 1 else self._step  # some layers flatten rows and tokens
        if not length or count % length:
            raise RoutingError(
                "Some of these sites see part of the tokens only, so interventions cannot be placed there; choose "
                "other projections."
            )
        return start + np.arange(count) % length

    def _drawn(
        self,
        index: int,
        sites: Sequence[int],
        positions: np.ndarray,
        present_NSE: torch.Tensor,
        chosen_E: torch.Tensor,
    ) -> torch.Tensor:
        """bool ``[N, S, E]``: as many of the present experts as the mask takes out, drawn by site and position."""
        columns = []
        for place, site in enumerate(sites):
            present_NE = present_NSE[:, place]
            if (index, site) not in self._draws:
                columns.append(torch.zeros_like(present_NE))
                continue
            drawn_NE = torch.from_numpy(self._draws[index, site](positions)).to(present_NE.device)
            rank_NE = drawn_NE.masked_fill(~present_NE, torch.inf).argsort(dim=-1).argsort(dim=-1)
            count_N1 = (present_NE & chosen_E).sum(dim=-1, keepdim=True)
            columns.append((rank_NE < count_N1) & present_NE)
        return torch.stack(columns, dim=1)


class _Draws:
    """Random numbers by position ``[N, E]``, the same in whatever order they are asked for."""

    def __init__(self, seed: int, site: int, experts: int) -> None:
        self._random = np.random.default_rng([seed, site])
        self._drawn = np.zeros((0, experts), np.float32)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        if (lacking := int(positions.max()) + 1 - len(self._drawn)) > 0:
            self._drawn = np.concatenate(
                [self._drawn, self._random.random((lacking, self._drawn.shape[1]), np.float32)]
            )
        return self._drawn[positions]


_TOKENS = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")


def _hit(intervention: Intervention, positions: np.ndarray, prompt_tokens: int | None) -> np.ndarray:
    """bool ``[N]``: the tokens that it is for."""
    start, end = intervention.tokens or (0, None)
    hit = (positions >= start) & (True if end is None else positions < end)
    if intervention.part != "all":
        hit &= (positions < prompt_tokens) == (intervention.part == "prompt")
    return hit


def _sites_of(intervention: Intervention, places: Sequence[tuple[int, str, str]]) -> frozenset[int]:
    """Indices of the sites that it is for."""
    layers, projections = intervention.layers, intervention.projections
    found = frozenset(
        index
        for index, (layer, projection, _) in enumerate(places)
        if (layers is None or layer in layers) and (projections is None or projection in projections)
    )
    if not found:
        raise RoutingError(
            f"The intervention is for layers {_listed(layers)} and projections {_listed(projections)}, where nothing "
            f"is routed; there are layers {places[0][0]} to {places[-1][0]} and projections "
            f"{', '.join(dict.fromkeys(projection for _, projection, _ in places))}."
        )
    return found


def _listed(values: Sequence[Any] | None) -> str:
    return "all" if values is None else ", ".join(map(str, values)) or "none"


def _check(intervention: Intervention, runtime: MixtureRuntime, prompt_tokens: int | None) -> None:
    """Raise a RoutingError unless an intervention can act on this mixture."""
    kind, experts = intervention.kind, intervention.experts
    if kind not in get_args(Kind):
        raise RoutingError(f"The intervention is '{kind}'; it can be {', '.join(get_args(Kind))}.")
    for name in experts:
        runtime.index_of(name)
    needed = {"uniform": "no expert", "force": "one expert", "mask": "experts", "random_mask": "experts"}[kind]
    fits = {"no expert": not experts, "one expert": len(experts) == 1, "experts": len(experts) > 0}[needed]
    if not fits:
        raise RoutingError(f"'{kind}' takes {needed}, here are {len(experts)}.")
    if kind in ("mask", "random_mask") and set(experts) >= set(runtime.experts):
        raise RoutingError(f"All experts ({', '.join(runtime.experts)}) would be masked; leave at least one.")
    start, end = intervention.tokens or (0, None)
    if start < 0 or (end is not None and end <= start):
        raise RoutingError(f"The tokens {start} to {end} are none; give a first position and one past the last.")
    if intervention.part not in get_args(Part):
        raise RoutingError(f"The part is '{intervention.part}'; it can be {', '.join(get_args(Part))}.")
    if intervention.part != "all" and prompt_tokens is None:
        raise RoutingError(f"part='{intervention.part}' needs the length of the prompt; give prompt_tokens.")
    if _depends_on_position(intervention) and set(runtime.streams) != {"tokens"}:
        raise RoutingError(
            "The encoder and the decoder of this backbone see different tokens, so an intervention cannot be limited "
            "to some; give layers or projections."
        )


def _depends_on_position(intervention: Intervention) -> bool:
    limited = intervention.tokens is not None or intervention.part != "all"
    return limited or intervention.kind == "random_mask"


@contextmanager
def intervene(model: Any, interventions: Sequence[Intervention], prompt_tokens: int | None = None) -> Iterator[None]:
    """Let interventions act while the block runs, whatever runs in it: forward passes, ``generate``, a trace.

    Masks act first, then whatever fixes gates, in the order given; where two of these meet, the later one counts. A
    forced expert gets its weight although a mask takes it out; where it is absent from a site, nothing is added there.
    Positions count the columns of the input, so texts of a batch should have no padding on their left.

    Args:
        model: a model with a mixture, in evaluation mode.
        interventions: what is done.
        prompt_tokens: length of the prompt with its template, needed where an intervention names a part.

    Raises:
        RoutingError: an intervention that cannot act on this mixture, or others that act already.
    """
    runtime = active_runtime(model)
    if runtime.intervening is not None:
        raise RoutingError("Interventions are acting on this mixture already; end them before starting others.")
    acting = ActingInterventions(interventions, runtime, prompt_tokens)
    backbone = model.get_base_model()
    handle = backbone.register_forward_pre_hook(acting.begin, with_kwargs=True)
    runtime.intervening = acting
    try:
        yield
    finally:
        runtime.intervening = None
        handle.remove()
