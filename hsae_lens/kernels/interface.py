"""What every implementation of the objective computes, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch


class NestedProblem(NamedTuple):
    """One nested reconstruction problem over B tokens. Everything is contiguous and on one device.

    values: ``[B, K]``, descending activations v (already divided by the decoder norm if need be).
    indices: int64 ``[B, K]``, latents i.
    W_dec: ``[d_sae, d_in]``.  b_dec: ``[d_in]``.  target: ``[B, d_in]``, x.
    budgets: ascending; the last one is K.
    weights: one per budget, w.
    token_weights: ``[B]`` factors on each token's squared error, or None for 1.
    """

    values: torch.Tensor
    indices: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    target: torch.Tensor
    budgets: list[int]
    weights: list[float]
    token_weights: torch.Tensor | None


class NestedSolution(NamedTuple):
    """Sums over tokens, not means: the caller divides by B.

    With r_j = x̂_j − x and s_t = Σ_{j≥t, j∈J} w_j r_j (times the token weight):

    squared_errors: float64 ``[len(budgets)]``, Σ_tokens ‖r_j‖².
    residual: ``[B, d_in]``, r_K.
    d_values: ``[B, K]``, 2⟨W[i_t], s_t⟩.
    d_W_dec: ``[d_sae, d_in]``, Σ 2 v_t s_t added to row i_t.
    suffix: ``[B, d_in]``, s_1. The gradient of b_dec is 2 Σ_tokens s_1, that of x is −2 s_1.

    The last three are None when gradients were not asked for.
    """

    squared_errors: torch.Tensor
    residual: torch.Tensor
    d_values: torch.Tensor | None
    d_W_dec: torch.Tensor | None
    suffix: torch.Tensor | None


@dataclass(frozen=True)
class Implementation:
    """One way to compute the two sparse reductions of a training step.

    nested: solves a :class:`NestedProblem`; the bool says whether gradients are wanted.
    encoder_grad: ``(d_pre [B, K], indices [B, K], x [B, d_in], d_sae) -> [d_in, d_sae]``, the
        gradient of W_enc: Σ_tokens d_pre_t · x added to column i_t.
    refuses: why it cannot run on this device and dtype, or None if it can.
    """

    name: str
    summary: str
    nested: Callable[[NestedProblem, bool], NestedSolution]
    encoder_grad: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
    refuses: Callable[[torch.device, torch.dtype], str | None]
