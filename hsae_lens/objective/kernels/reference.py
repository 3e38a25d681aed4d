"""The definition of correct: the objective as one reads it, differentiated by autograd.

It builds every prefix reconstruction of every token at once, a ``[B, K, d_in]`` tensor, so it is
for tests and for reading. In float64 it is what every other implementation is compared with.
"""

from __future__ import annotations

import torch

from hsae_lens.objective.kernels.interface import (
    Implementation,
    NestedProblem,
    NestedSolution,
    exact_dtype,
)


def prefix_reconstructions(
    values: torch.Tensor, indices: torch.Tensor, W_dec: torch.Tensor, b_dec: torch.Tensor
) -> torch.Tensor:
    """x̂_j = b + Σ_{t≤j} v_t·W[i_t] for j = 1..K, shape ``[B, K, d_in]``."""
    return b_dec + (values.unsqueeze(-1) * W_dec[indices]).cumsum(dim=-2)


def nested_loss(p: NestedProblem) -> torch.Tensor:
    """L = Σ_{j∈J} w_j · Σ_tokens ‖x − x̂_j‖² (a sum over tokens), arXiv 2505.24473 with weights."""
    x_hat = prefix_reconstructions(p.values, p.indices, p.W_dec, p.b_dec)[:, _ranks(p)]
    error = (p.target.unsqueeze(1) - x_hat).pow(2).sum(-1)
    if p.token_weights is not None:
        error = error * p.token_weights.unsqueeze(-1)
    return (error * error.new_tensor(p.weights)).sum()


def _ranks(p: NestedProblem) -> torch.Tensor:
    """The rank, counted from 0, at which each budget ends."""
    return torch.tensor(p.budgets, dtype=torch.int64, device=p.values.device) - 1


def nested(p: NestedProblem, needs_grad: bool) -> NestedSolution:
    with torch.no_grad():
        x_hat = prefix_reconstructions(p.values, p.indices, p.W_dec, p.b_dec)
        r = x_hat[:, _ranks(p)] - p.target.unsqueeze(1)
        error = r.to(exact_dtype(r.device)).pow(2).sum(-1)
        if p.token_weights is not None:
            error = error * p.token_weights.unsqueeze(-1)
        squared_errors, residual = error.sum(0), x_hat[:, -1] - p.target
    if not needs_grad:
        return NestedSolution(squared_errors, residual, None, None, None)
    leaves = [t.detach().requires_grad_() for t in (p.values, p.W_dec, p.b_dec, p.target)]
    values, W_dec, b_dec, target = leaves
    with torch.enable_grad():
        loss = nested_loss(p._replace(values=values, W_dec=W_dec, b_dec=b_dec, target=target))
    d_values, d_W_dec, _, d_target = torch.autograd.grad(loss, leaves)
    return NestedSolution(squared_errors, residual, d_values, d_W_dec, d_target / -2)


def encoder_grad(
    d_pre: torch.Tensor, indices: torch.Tensor, x: torch.Tensor, d_sae: int
) -> torch.Tensor:
    dense = d_pre.new_zeros(d_pre.shape[0], d_sae).scatter_add(1, indices, d_pre)
    return x.T @ dense


IMPLEMENTATION = Implementation(
    name="reference",
    summary="every prefix at once, by autograd: for tests and for reading",
    solve=nested,
    reduce=encoder_grad,
    refuses=lambda device, dtype: None,
)
