"""The sum over experts at one site, as two matrix products or, with many experts, with the chosen rows only.

Shape legend: N tokens, D in features, F out features, E experts, K chosen experts per token, R rows of all experts.

    y_NF += ((x_ND A_RDᵀ) * g_NE[expert of row] * s_R) B_RF

Both forms are exact; they differ in what they read. The dense one reads every expert once, whatever the gates; the
sparse one reads K experts per token, so its cost does not grow with E.
"""

from __future__ import annotations

import warnings

import torch

from loramixer.tuner.layout import SiteLayout

# PyTorch says once that sparse matrices are in beta; what is used of them here is tested.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

SPARSE_CALL = 30.0
SPARSE_PAIR = 0.035
ROW_FETCH = 0.15
DENSE_PAIR = 0.0115
"""Microseconds for 1,152 features (D + F) in float32 on two cores, fitted to `python benchmarks/scaling.py`: a sparse
call; a row for a token in the sparse form; fetching a row from memory; a row for a token in the dense form. Only their
ratios matter."""


def sparse_is_cheaper(tokens: int, rows: int, chosen_rows: int, features: int) -> bool:
    """Whether the sparse form is expected to take less time on a CPU.

    Args:
        tokens: N.
        rows: R, of all experts.
        chosen_rows: rows that one token uses: K × rank.
        features: D + F.
    """
    if chosen_rows >= rows:
        return False
    width = features / 1152
    pairs = tokens * chosen_rows
    sparse = SPARSE_CALL + width * (pairs * SPARSE_PAIR + min(rows, pairs) * ROW_FETCH)
    return sparse < width * rows * (ROW_FETCH + tokens * DENSE_PAIR)


def block_grams(B_RF: torch.Tensor, layout: SiteLayout) -> torch.Tensor | list[torch.Tensor]:
    """B_eᵀB_e of every expert in float32: ``[E, r, r]`` where all ranks are equal, else a list of ``[r_e, r_e]``."""
    B_RF = B_RF.float()
    if layout.uniform is not None:
        B_ErF = B_RF.view(len(layout.ranks), layout.uniform[0], -1)
        return torch.bmm(B_ErF, B_ErF.transpose(1, 2))
    return [B_rF @ B_rF.t() for B_rF in B_RF.split(list(layout.ranks))]


def expert_norms(
    x_ND: torch.Tensor, A_RD: torch.Tensor, grams: torch.Tensor | list[torch.Tensor], layout: SiteLayout
) -> torch.Tensor:
    """‖s_e B_e A_e x‖₂ of every expert without its output, since ‖B z‖² = zᵀ (BᵀB) z. In float32.

    Args:
        x_ND: input.
        A_RD: all experts' A.
        grams: :func:`block_grams` of their B.
        layout: whose rows are whose.

    Returns:
        ``[N, E]``; 0 for an absent expert.
    """
    h_NR = torch.mm(x_ND.float(), A_RD.float().t())
    if isinstance(grams, torch.Tensor):
        h_ENr = h_NR.view(len(h_NR), *grams.shape[:2]).transpose(0, 1)
        squares_NE = (torch.bmm(h_ENr, grams) * h_ENr).sum(dim=-1).t()
    else:
        parts = zip(h_NR.split(list(layout.ranks), dim=-1), grams, strict=True)
        squares_NE = torch.stack([((h_Nr @ gram) * h_Nr).sum(dim=-1) for h_Nr, gram in parts], dim=-1)
    # Rounding can leave a square just below 0.
    return squares_NE.clamp_min(0.0).sqrt() * torch.tensor(layout.scalings, device=h_NR.device)


def add_dense(
    y_NF: torch.Tensor,
    x_ND: torch.Tensor,
    A_RD: torch.Tensor,
    B_RF: torch.Tensor,
    gates_NE: torch.Tensor,
    layout: SiteLayout,
    row_tables: tuple[torch.Tensor, torch.Tensor] | None,
    in_place: bool,
) -> torch.Tensor:
    """``y`` plus the gated experts, all rows of them.

    Args:
        y_NF: output of the base layer, any floating-point type.
        x_ND: input in the type of A and B.
        A_RD: all experts' A.
        B_RF: all experts' B, transposed.
        gates_NE: gates in any floating-point type.
        layout: whose rows are whose.
        row_tables: `expert_of_row` and `scaling_of_row`; needed unless the layout is uniform.
        in_place: whether ``y`` may be overwritten; without gradients only.
    """
    h_NR = torch.mm(x_ND, A_RD.t())
    if gates_NE.dtype != h_NR.dtype:
        gates_NE = gates_NE.to(h_NR.dtype)
    if layout.uniform is not None:
        rank, scaling = layout.uniform
        h_NEr = h_NR.view(-1, len(layout.ranks), rank)
        gate_NE1 = gates_NE.unsqueeze(-1)
        if in_place:
            h_NEr.mul_(gate_NE1)
        else:
            h_NR = (h_NEr * gate_NE1).view(h_NR.shape)
    else:
        assert row_tables is not None
        expert_of_row, scaling_of_row = row_tables
        h_NR = h_NR * (gates_NE.index_select(-1, expert_of_row) * scaling_of_row.to(h_NR.dtype))
        scaling = 1.0
    if y_NF.dtype != h_NR.dtype:
        return y_NF + (scaling * torch.mm(h_NR, B_RF)).to(y_NF.dtype)
    if in_place:
        return y_NF.addmm_(h_NR, B_RF, alpha=scaling)
    return torch.addmm(y_NF, h_NR, B_RF, alpha=scaling)


def add_sparse(
    y_NF: torch.Tensor,
    x_ND: torch.Tensor,
    A_RD: torch.Tensor,
    B_RF: torch.Tensor,
    weights_NK: torch.Tensor,
    chosen_NK: torch.Tensor,
    layout: SiteLayout,
) -> torch.Tensor:
    """``y`` plus the chosen experts, reading their rows only. Without gradients; ranks and scalings must be uniform.

    One token gathers its rows. Several use a sampled product (entries of x Aᵀ at chosen rows) and a weighted sum of
    rows, neither of which copies a row.

    Args:
        y_NF: output of the base layer.
        x_ND: input in the type of A and B.
        A_RD: all experts' A.
        B_RF: all experts' B, transposed.
        weights_NK: weights of the chosen experts.
        chosen_NK: int64, which they are.
        layout: whose rows are whose.
    """
    assert layout.uniform is not None
    rank, scaling = layout.uniform
    tokens, count = chosen_NK.shape
    weights_NK = weights_NK.to(x_ND.dtype) * scaling
    if tokens == 1:
        A_cD = A_RD.view(-1, rank, A_RD.shape[1]).index_select(0, chosen_NK[0]).flatten(0, 1)
        B_cF = B_RF.view(-1, rank, B_RF.shape[1]).index_select(0, chosen_NK[0]).flatten(0, 1)
        h_1c = torch.mm(x_ND, A_cD.t()).view(count, rank) * weights_NK.view(count, 1)
        delta_NF = torch.mm(h_1c.view(1, -1), B_cF)
    else:
        per_token = count * rank
        rows = (chosen_NK.unsqueeze(-1) * rank + torch.arange(rank, device=chosen_NK.device)).flatten()
        starts = torch.arange(0, (tokens + 1) * per_token, per_token, device=rows.device)
        pattern = torch.sparse_csr_tensor(
            starts, rows, x_ND.new_zeros(len(rows)), (tokens, A_RD.shape[0]), check_invariants=False
        )
        h = torch.sparse.sampled_addmm(pattern, x_ND, A_RD.t(), beta=0.0).values()
        h = (h.view(tokens, count, rank) * weights_NK.unsqueeze(-1)).flatten()
        delta_NF = torch.nn.functional.embedding_bag(rows, B_RF, starts[:-1], mode="sum", per_sample_weights=h)
    return y_NF + delta_NF.to(y_NF.dtype)
