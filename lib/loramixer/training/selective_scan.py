"""Mamba's selective scan without an automatic graph: the same numbers, several times faster where no kernel is.

Without the CUDA kernels Transformers scans in a Python loop, and autograd then remembers every step of it. Here the
loop runs over contiguous slices in place, remembers the states only, and the gradient is written by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

SCAN = "mamba_selective_scan"
"""Name under which Transformers' modeling files look for their scan."""


class _Scan(torch.autograd.Function):
    """y_t = C_t · h_t with h_t = exp(Δ_t A) h_{t−1} + (Δ_t u_t) B_t, and h_0 = 0.

    T: tokens, R: rows, N: states, D: channels. Inputs: Δ and Δu ``[T, R, D]``, A ``[N, D]``, B and C ``[T, R, N]``.
    Outputs: y ``[T, R, D]`` and the last h ``[R, N, D]``, which carries no gradient. Channels come last since they are
    many, so that every product runs along memory.
    """

    @staticmethod
    def forward(
        ctx: Any, delta: torch.Tensor, driven: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, rows, channels = delta.shape
        states = delta.new_empty(tokens, rows, len(A), channels)
        y = torch.empty_like(delta)
        kept = torch.empty_like(states[0])
        for t in range(tokens):
            state = states[t]
            torch.mul(driven[t].unsqueeze(1), B[t].unsqueeze(2), out=state)
            if t:
                torch.mul(delta[t].unsqueeze(1), A, out=kept)
                state.addcmul_(kept.exp_(), states[t - 1])
            torch.bmm(C[t].unsqueeze(1), state, out=y[t].unsqueeze(1))
        ctx.save_for_backward(delta, driven, A, B, C, states)
        last = states[-1].clone()
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        delta, driven, A, B, C, states = ctx.saved_tensors
        dy = gradients[0].contiguous()
        d_delta, d_driven = torch.zeros_like(delta), torch.empty_like(driven)
        d_B, d_C = torch.empty_like(B), torch.empty_like(C)
        d_A, d_state = torch.zeros_like(states[0]), torch.zeros_like(states[0])
        kept, of_exponent = torch.empty_like(d_state), torch.empty_like(d_state)
        for t in range(len(delta) - 1, -1, -1):
            d_state.addcmul_(dy[t].unsqueeze(1), C[t].unsqueeze(2))
            torch.bmm(states[t], dy[t].unsqueeze(2), out=d_C[t].unsqueeze(2))
            torch.bmm(B[t].unsqueeze(1), d_state, out=d_driven[t].unsqueeze(1))
            torch.bmm(d_state, driven[t].unsqueeze(2), out=d_B[t].unsqueeze(2))
            if t == 0:
                break
            torch.mul(delta[t].unsqueeze(1), A, out=kept)
            d_state.mul_(kept.exp_())  # what reaches the state before
            torch.mul(d_state, states[t - 1], out=of_exponent)
            if ctx.needs_input_grad[2]:
                d_A.addcmul_(of_exponent, delta[t].unsqueeze(1))
            torch.sum(of_exponent.mul_(A), dim=1, out=d_delta[t])
        return d_delta, d_driven, d_A.sum(0), d_B, d_C


def selective_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """What Transformers' ``mamba_selective_scan`` computes, with its arguments, in float32.

    Args:
        hidden_states: u ``[rows, channels, tokens]``.
        dt: Δ before its bias and softplus, of the same shape.
        A: ``[channels, states]``, negative.
        B: ``[rows, states, tokens]``.
        C: ``[rows, states, tokens]``.
        D: ``[channels]``, the part of u that is added to the output.
        z: ``[rows, channels, tokens]``, gates the output with its SiLU.
        delta_bias: ``[channels]``.
        delta_softplus: whether Δ passes a softplus.
        return_last_state: whether to return the last state as well.

    Returns:
        y ``[rows, channels, tokens]``, and the last state ``[rows, channels, states]`` where it is asked for.
    """
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    if delta_softplus:
        dt = F.softplus(dt)
    delta, inputs = (part.permute(2, 0, 1).float().contiguous() for part in (dt, hidden_states))
    B, C = (part.permute(2, 0, 1).float().contiguous() for part in (B, C))
    scanned, last = _Scan.apply(delta, delta * inputs, A.float().T.contiguous(), B, C)
    y = scanned.permute(1, 2, 0).to(hidden_states.dtype)
    if D is not None:
        y = y + hidden_states * D[None, :, None]
    if z is not None:
        y = y * F.silu(z)
    return (y, last.transpose(1, 2).to(hidden_states.dtype)) if return_last_state else y


@contextmanager
def scan_by_hand(model: nn.Module) -> Iterator[bool]:
    """Let the state-space mixers of a model use :func:`selective_scan` while the block runs; yields whether any does.

    Only on a CPU: elsewhere the kernels are faster, and nobody has measured this one.
    """
    files = {sys.modules[type(module).__module__] for module in model.modules()}
    former: dict[Any, Callable[..., Any]] = {}
    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        former = {file: getattr(file, SCAN) for file in files if hasattr(file, SCAN)}
    for file in former:
        setattr(file, SCAN, selective_scan)
    try:
        yield bool(former)
    finally:
        for file, function in former.items():
            setattr(file, SCAN, function)
