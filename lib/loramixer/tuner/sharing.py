"""`InputGroup`: sites that read the same input, such as q, k and v, and so share its cast, router product and gates.

Which sites these are is known by name, for the names that Transformers uses; sites with other names share nothing and
are as exact. Should a site read another tensor all the same, it leaves the group when that shows, together with those
that were not called yet.

Shape legend: N tokens (all leading axes flattened), D in features, S sites of the group, E experts, K chosen experts.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from loramixer.tuner.mixing import sparse_is_cheaper
from loramixer.tuner.sites import CROSS_ATTENTION

if TYPE_CHECKING:
    from loramixer.tuner.layer import LoraMixerLayer
    from loramixer.tuner.runtime import MixtureRuntime


SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
    ("wi_0", "wi_1"),
)
"""Projections of one module that read one tensor; of three the first is the query."""


def input_of(site: str) -> str:
    """A name for the input of a site; sites with the same one read the same tensor.

    Args:
        site: module name, such as ``model.layers.0.self_attn.q_proj``.
    """
    parent, _, projection = site.rpartition(".")
    for index, names in enumerate(SAME_INPUT):
        if projection in names and not (projection == names[0] and CROSS_ATTENTION.search(parent)):
            return f"{parent}#{index}"
    return site


@dataclass(slots=True)
class Routed:
    """One input, and which experts its tokens go to, at every site of a group.

    Attributes:
        x_ND: the input in the type of the experts.
        logits_NSE: router logits, float32; minus infinity for experts that are absent or masked.
        gates_NSE: gates, or None where the chosen experts are all that is needed.
        chosen_NSK: ``(weights, experts)`` where these are all that is needed, else None.
        p_NSE: probabilities in training, else None.
        free: whether results may be overwritten: no gradients, no autocast.
    """

    x_ND: torch.Tensor
    logits_NSE: torch.Tensor
    gates_NSE: torch.Tensor | None
    chosen_NSK: tuple[torch.Tensor, torch.Tensor] | None
    p_NSE: torch.Tensor | None
    free: bool


class InputGroup:
    """Sites of one adapter that read one input and gate by the same rule."""

    def __init__(self, adapter_name: str, runtime: MixtureRuntime, rule: int | None) -> None:
        self.adapter_name = adapter_name
        self.runtime = runtime
        self.rule = rule
        self.members: list[LoraMixerLayer] = []
        self._is_sparse: dict[tuple[int, int, torch.device, torch.dtype], bool] = {}
        self._is_lean: bool | None = None
        self._waiting: set[int] = set()
        self._source: weakref.ref[torch.Tensor] | None = None
        self._version: int | None = None
        self._routed: Routed | None = None

    def join(self, layer: LoraMixerLayer) -> None:
        """Take a site in."""
        layer.places[self.adapter_name] = (self, len(self.members))
        self.members.append(layer)
        self._is_lean = None

    def route_lean(self, position: int, x: torch.Tensor) -> tuple[Routed, int] | None:
        """:meth:`route` for the common case of inference, with as little as possible around the products.

        At one token, what Python does around the products takes as long as they do; here are none of the questions
        that only training, masks, half precision or unequal experts ask. None where :meth:`route` is needed.
        Gradients must be off.
        """
        runtime = self.runtime
        if runtime.recorded is not None or runtime.masked is not None or runtime.intervening is not None:
            return None
        settings, members, name = runtime.inference, self.members, self.adapter_name
        if self._is_lean is None:
            if any([name in layer.awaiting_weights for layer in members]):
                return None  # not decided yet: the general way looks at the weights once
            self._is_lean = self.rule is None and all(layer.layouts[name].uniform is not None for layer in members)
        if not self._is_lean:
            return None
        if position in self._waiting:
            routed = self._routed
            if routed is None or routed.gates_NSE is None or not self._is_source(x):
                return None
            self._hand_over(position)
            return routed, position
        if (
            settings.mode not in ("top_k", "soft")
            or x.dtype is not members[0].matrices(name)[0].dtype
            or x.dtype is not torch.float32
            or torch.is_autocast_enabled(x.device.type)
            or torch.compiler.is_compiling()
        ):
            return None
        x_ND = x.reshape(-1, x.shape[-1])
        if settings.mode == "top_k" and self._sparse(members, x_ND, settings.k):
            return None
        logits_NSE = F.linear(x_ND, self._router_weight(members)).view(x_ND.shape[0], len(members), -1)
        routed = Routed(x_ND, logits_NSE, settings(logits_NSE), None, None, True)
        if len(members) > 1:
            self._keep(position, x, routed)
        return routed, position

    def route(self, position: int, x: torch.Tensor) -> tuple[Routed, int]:
        """Route the input of a site, or take what another site of the group found for the same tensor.

        Args:
            position: of the site among the members.
            x: ``[..., D]``.

        Returns:
            What was routed, and the index of the site in its S axis.
        """
        if len(self.members) == 1 or torch.compiler.is_compiling():
            return self._compute(self.members[position : position + 1], x), 0
        if position in self._waiting and self._routed is not None and self._source is not None:
            if self._is_source(x):
                routed = self._routed
                self._hand_over(position)
                return routed, position
            if (source := self._source()) is not None and source is not x:
                group, position = self._split(position)
                return group.route(position, x)
        routed = self._compute(self.members, x)
        self._keep(position, x, routed)
        return routed, position

    def _keep(self, position: int, x: torch.Tensor, routed: Routed) -> None:
        """Keep what was found for ``x`` until all other sites have taken it."""
        self._waiting = set(range(len(self.members)))
        self._waiting.remove(position)
        self._source, self._version, self._routed = weakref.ref(x), _version(x), routed

    def _is_source(self, x: torch.Tensor) -> bool:
        """Whether what is kept was found for this tensor, unchanged since."""
        return self._source is not None and self._source() is x and self._version == _version(x)

    def _hand_over(self, position: int) -> None:
        """Note that a site has taken what is kept; nothing is kept for nobody."""
        self._waiting.remove(position)
        if not self._waiting:
            self._source = self._routed = None

    def _router_weight(self, layers: list[LoraMixerLayer]) -> torch.Tensor:
        """``[S·E, D]``: the routers of the sites on top of each other."""
        weights = [layer.router_weight(self.adapter_name) for layer in layers]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def _split(self, position: int) -> tuple[InputGroup, int]:
        """Move the sites that were not called yet into a group of their own; returns the new place of one of them."""
        other = InputGroup(self.adapter_name, self.runtime, self.rule)
        members, waiting, moved = self.members, self._waiting, self.members[position]
        self.members, self._waiting, self._source, self._routed = [], set(), None, None
        for index, member in enumerate(members):
            (other if index in waiting else self).join(member)
        return moved.places[self.adapter_name]

    def _compute(self, layers: list[LoraMixerLayer], x: torch.Tensor) -> Routed:
        name, runtime, first = self.adapter_name, self.runtime, layers[0]
        x_any = x.reshape(-1, x.shape[-1])
        autocast = torch.is_autocast_enabled(x.device.type)
        logits_NM = _router_product(x_any, self._router_weight(layers), autocast)
        logits_NSE = logits_NM.view(x_any.shape[0], len(layers), -1)
        if any([layer.has_absent[name] for layer in layers]):
            absent_SE = torch.stack([layer.lora_mixer_absent[name] for layer in layers])
            logits_NSE = logits_NSE.masked_fill(absent_SE, -torch.inf)
        x_ND = x_any.to(first.matrices(name)[0].dtype)
        settings = runtime.settings(self.rule, first.training)
        without_gradient = not torch.is_grad_enabled()
        few = without_gradient and settings.mode == "top_k" and self._sparse(layers, x_ND, settings.k)
        sites: list[int] = []
        if runtime.intervening is not None:
            few, sites = False, [layer.sites[name] for layer in layers]
        routed = runtime.route(logits_NSE, settings, x.shape[:-1], first.training, few, sites)
        return Routed(x_ND, *routed, without_gradient and not autocast)

    def _sparse(self, layers: list[LoraMixerLayer], x_ND: torch.Tensor, k: int) -> bool:
        """Whether the sparse form can be used and is cheaper."""
        key = (x_ND.shape[0], k, x_ND.device, x_ND.dtype)
        if key not in self._is_sparse:
            if len(self._is_sparse) > 1000:  # prompts of very many lengths
                self._is_sparse.clear()
            self._is_sparse[key] = self._decide(layers, x_ND, k)
        return self._is_sparse[key]

    def _decide(self, layers: list[LoraMixerLayer], x_ND: torch.Tensor, k: int) -> bool:
        layouts = [layer.layouts[self.adapter_name] for layer in layers]
        if any(layout.uniform is None for layout in layouts):
            return False
        if len(x_ND) > 1 and (x_ND.device.type != "cpu" or x_ND.dtype != torch.float32):
            return False  # the sampled product is fast there only
        if len(x_ND) > 1 and torch.compiler.is_compiling():
            return False  # it would break the graph
        forced = self.runtime.config.mixing
        if forced != "auto":
            return forced == "sparse"
        features = layers[0].in_features + sum(layer.out_features for layer in layers) // len(layers)
        return sparse_is_cheaper(len(x_ND), layouts[0].rows, k * layouts[0].ranks[0], features)


def _router_product(x: torch.Tensor, weight: torch.Tensor, autocast: bool) -> torch.Tensor:
    """Logits ``[N, M]`` in float32, under autocast and in whole models of half precision too.

    A small error changes who is chosen.
    """
    if autocast:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), weight.float())
    return F.linear(x.float(), weight.float())


def _version(x: torch.Tensor) -> int | None:
    """Counts changes in place; tensors of inference mode have none."""
    return None if x.is_inference() else x._version
