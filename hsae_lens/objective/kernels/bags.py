"""The objective in plain PyTorch for CUDA without Triton: a slice of columns at a time.

Loss and d_values are sums over slices of d_in, and d_W_dec's columns are independent of each other.
So for one slice after the other every token's residuals ``[|J|, B, width]`` are made at once: the
rows between two budgets are gathered, weighted and added by ``embedding_bag`` in one pass, running
sums over budgets give residuals and suffix sums, and ``embedding_bag`` over entries sorted by
latent is the segment sum. A slice is as wide as the work space allows, so memory does not grow with
K. There are no atomics, and no waiting for the device.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator

import torch
from torch.nn.functional import embedding_bag

from hsae_lens.objective.kernels.interface import (
    Implementation,
    NestedProblem,
    NestedSolution,
    deterministic,
    exact_dtype,
)
from hsae_lens.objective.kernels.segments import encoder_grad, segment_sums, segments_of

WORKSPACE_BYTES = 256 << 20  # of one slice's residuals


def nested(p: NestedProblem, needs_grad: bool) -> NestedSolution:
    dtype = torch.promote_types(p.W_dec.dtype, torch.float32)
    (n_tokens, k), (d_sae, d_in) = p.values.shape, p.W_dec.shape
    device, n_budgets = p.values.device, len(p.budgets)
    sizes, before, slots = _tables(tuple(p.budgets), k, device)
    values, tokens = p.values.to(dtype), torch.arange(n_tokens, device=device)
    offsets = (before * n_tokens + sizes * tokens).reshape(-1)
    latents, steps = _by_bag(p.indices, p.budgets), _by_bag(values, p.budgets)
    errors = torch.zeros(n_budgets, n_tokens, dtype=exact_dtype(device), device=device)
    residual = torch.empty(n_tokens, d_in, dtype=dtype, device=device)
    if needs_grad:
        scale = torch.full_like(values[:, :1], 2)
        if p.token_weights is not None:
            scale *= p.token_weights[:, None]
        row_of_entry = slots * n_tokens + tokens[:, None]
        segments = segments_of(p.indices, d_sae)
        rows_by_latent, by_latent = segments.take(row_of_entry), segments.take(scale * values)
        d_values = torch.zeros_like(values)
        d_W_dec = torch.empty(d_sae, d_in, dtype=p.W_dec.dtype, device=device)
        suffix = torch.empty_like(residual)
    for columns in _slices(d_in, n_budgets * n_tokens):
        W = p.W_dec[:, columns].to(dtype).contiguous()
        r = embedding_bag(latents, W, offsets, mode="sum", per_sample_weights=steps)
        r = r.view(n_budgets, n_tokens, -1)
        r[0] += p.b_dec[columns] - p.target[:, columns].to(dtype)
        _running_sums_(r)
        residual[:, columns] = r[-1]
        errors += torch.linalg.vector_norm(r, dim=-1).to(errors.dtype).square()
        if not needs_grad:
            continue
        s = _suffix_sums_(r, p.weights)
        rows = s.view(n_budgets * n_tokens, -1)
        d_values += _dots(rows, W, p.indices, row_of_entry)
        d_W_dec[:, columns] = segment_sums(rows, rows_by_latent, by_latent, segments)
        suffix[:, columns] = s[0] * (scale / 2)
    if p.token_weights is not None:
        errors *= p.token_weights
    if not needs_grad:
        return NestedSolution(errors.sum(1), residual, None, None, None)
    d_values = (scale * d_values).to(p.values.dtype)
    return NestedSolution(errors.sum(1), residual, d_values, d_W_dec, suffix)


def _by_bag(x: torch.Tensor, budgets: list[int]) -> torch.Tensor:
    """``[B, K]`` flat: the ranks up to the first budget of every token, those up to the next, …"""
    pieces = [x[:, low:high] for low, high in itertools.pairwise([0, *budgets])]
    return torch.cat([piece.reshape(-1) for piece in pieces])


def _slices(d_in: int, n_rows: int) -> Iterator[slice]:
    width = max(16, WORKSPACE_BYTES // (4 * max(n_rows, 1)) // 16 * 16)
    return (slice(start, min(start + width, d_in)) for start in range(0, d_in, width))


def _running_sums_(x: torch.Tensor) -> torch.Tensor:
    """Sums over the first axis up to each place, in place."""
    if not deterministic():
        return x.cumsum_(0)
    for n in range(1, len(x)):  # PyTorch calls its own on CUDA not deterministic
        x[n] += x[n - 1]
    return x


def _suffix_sums_(r: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """Σ weight · r over the first axis from each place on, in place."""
    r[-1] *= weights[-1]
    for n in reversed(range(len(r) - 1)):
        torch.add(r[n + 1], r[n], alpha=weights[n], out=r[n])
    return r


def _dots(
    rows: torch.Tensor, W: torch.Tensor, indices: torch.Tensor, row_of_entry: torch.Tensor
) -> torch.Tensor:
    """⟨W[index], rows[row_of_entry]⟩ for each place of the code: ``[B, K]``.

    It is the gradient of embedding_bag's weights, which gathers and multiplies in one pass, asked
    for by its name: through autograd it would need a bag per place.
    """
    flat, bags = indices.reshape(-1), row_of_entry.reshape(-1)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows, W, flat, bags[:1], bags, mode=0
    ).view_as(indices)


@functools.lru_cache(maxsize=64)
def _tables(budgets: tuple[int, ...], k: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """A token's entries in each bag and in those before it ``[|J|, 1]``; a rank's bag ``[K]``.

    Kept, because copying to a GPU waits for it.
    """
    before = [0, *budgets[:-1]]
    sizes = [end - start for start, end in zip(before, budgets, strict=True)]
    slots = [bisect.bisect_left(budgets, rank + 1) for rank in range(k)]
    sizes_, before_, slots_ = (
        torch.tensor(numbers, dtype=torch.int64, device="cpu").to(device)
        for numbers in (sizes, before, slots)
    )
    return sizes_[:, None], before_[:, None], slots_


def _refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type not in ("cuda", "cpu"):
        return f"is for CUDA and the CPU, not for {device.type}, where embedding_bag is young"
    return None if dtype.is_floating_point else f"{dtype} is not a floating point type"


IMPLEMENTATION = Implementation(
    name="bags",
    summary="embedding bags over slices of columns, in plain PyTorch",
    solve=nested,
    reduce=encoder_grad,
    refuses=_refuses,
    slow_on=("cpu",),
)
