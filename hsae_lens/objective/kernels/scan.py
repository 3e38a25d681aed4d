"""The objective as one scan over ranks, in plain PyTorch: any device, any floating dtype.

x̂_j differs from x̂_{j-1} by one decoder row per token, so a running residual of shape
``[B, d_in]`` is all the state there is: memory does not grow with K. The backward pass walks the
ranks the other way, taking each row off the residual again while the suffix sum s_t grows.
Low-precision inputs accumulate in float32.
"""

from __future__ import annotations

import torch

from hsae_lens.objective.kernels.interface import (
    Implementation,
    NestedProblem,
    NestedSolution,
    exact_dtype,
)


def nested(p: NestedProblem, needs_grad: bool) -> NestedSolution:
    dtype = torch.promote_types(p.W_dec.dtype, torch.float32)
    values, target = p.values.to(dtype), p.target.to(dtype)
    residual = p.b_dec.to(dtype) - target
    exact = exact_dtype(values.device)
    squared_errors = torch.zeros(len(p.budgets), dtype=exact, device=values.device)
    slot = {j: n for n, j in enumerate(p.budgets)}

    def row(t: int) -> torch.Tensor:
        return p.W_dec.index_select(0, p.indices[:, t]).to(dtype)

    for t in range(values.shape[1]):
        residual.addcmul_(values[:, t, None], row(t))
        if t + 1 in slot:
            error = residual.square().sum(-1)
            if p.token_weights is not None:
                error *= p.token_weights
            squared_errors[slot[t + 1]] = error.sum(dtype=exact)
    if not needs_grad:
        return NestedSolution(squared_errors, residual, None, None, None)

    r, suffix = residual.clone(), torch.zeros_like(residual)
    d_values = torch.empty_like(values)
    d_W_dec = torch.zeros(p.W_dec.shape, dtype=dtype, device=values.device)
    for t in reversed(range(values.shape[1])):
        if t + 1 in slot:
            weight: float | torch.Tensor = p.weights[slot[t + 1]]
            if p.token_weights is not None:
                weight = (weight * p.token_weights).unsqueeze(-1)
            suffix += weight * r
        W_t, v_t = row(t), values[:, t, None]
        d_values[:, t] = 2 * (W_t * suffix).sum(-1)
        d_W_dec.index_add_(0, p.indices[:, t], 2 * v_t * suffix)
        r.addcmul_(v_t, W_t, value=-1)
    return NestedSolution(
        squared_errors, residual, d_values.to(p.values.dtype), d_W_dec.to(p.W_dec.dtype), suffix
    )


def encoder_grad(
    d_pre: torch.Tensor, indices: torch.Tensor, x: torch.Tensor, d_sae: int
) -> torch.Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    out = torch.zeros(d_sae, x.shape[1], dtype=dtype, device=x.device)
    wide = x.to(dtype)
    for t in range(indices.shape[1]):
        out.index_add_(0, indices[:, t], d_pre[:, t, None].to(dtype) * wide)
    return out.T.to(x.dtype).contiguous()


IMPLEMENTATION = Implementation(
    name="scan",
    summary="a scan over ranks in plain PyTorch, memory independent of K",
    solve=nested,
    reduce=encoder_grad,
    refuses=lambda device, dtype: (
        None if dtype.is_floating_point else f"{dtype} is not a floating point type"
    ),
)
