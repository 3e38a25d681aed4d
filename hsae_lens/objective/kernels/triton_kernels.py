"""The GPU implementation: Triton kernels for any K, d_in and batch. Imported only when chosen.

Written from the algebra in ``interface.py``. **Not run on a GPU yet**: the reasoning about speed
below is reasoning. Every kernel is tested against the float64 reference through Triton's
interpreter (``TRITON_INTERPRET=1``) and compiled for sm_80 and sm_90.
"""

from __future__ import annotations

import functools
import os

import torch
import triton
import triton.language as tl

from hsae_lens.objective.kernels.interface import NestedProblem, NestedSolution

COLUMNS = 512  # of d_in per program: d_in 2304 wastes a tenth of the last block
RANKS = 4  # read together, so that several gathers are in flight
ROWS = 16  # of a latent's segment added per step
# 8 warps need 64 registers per thread or fewer and spill none: 32 warps on an H100's SM to hide the
# gathers' latency. 4 warps need 128 and spill: 16 on an SM. (tests/compile_for_gpus.py)
WARPS = 8
WORKSPACE_BYTES = 512 << 20  # for suffix sums, when d_W_dec is reduced by sorting
FEW_BUDGETS = 8  # up to here storing every distinct suffix sum beats atomics


@triton.jit
def _nested_kernel(
    values, indices, W_dec, b_dec, target, rank_weights, rank_slots, token_weights,
    errors, residual, d_values, d_W_dec, suffix, suffixes,
    first_token, n_tokens, K, d_in, n_slots,
    GRAD: tl.constexpr, STORE: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """One token, one block of columns: the scan over ranks forwards, then backwards.

    The residual and the suffix sum stay in registers. Each decoder row is read twice, K rows of
    2 kB apart in time, so the second read mostly comes from L2; nothing of size K·d_in is written
    unless STORE asks for the distinct suffix sums. Errors and d_values are this block's share,
    summed by the caller in a fixed order: no atomics but those into d_W_dec.
    """
    row = tl.program_id(0)  # within this launch; outputs below are indexed by token
    token = (first_token + row).to(tl.int64)
    block = tl.program_id(1).to(tl.int64)
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d_in
    at = token * d_in + columns
    x = tl.load(target + at, mask=inside, other=0).to(tl.float32)
    r = tl.load(b_dec + columns, mask=inside, other=0).to(tl.float32) - x
    share = (block * n_tokens + token) * K
    weight = tl.load(token_weights + token)

    for first in range(0, K, RANKS):
        ranks = first + tl.arange(0, RANKS)
        real = ranks < K
        v = tl.load(values + token * K + ranks, mask=real, other=0).to(tl.float32)
        i = tl.load(indices + token * K + ranks, mask=real, other=0)
        both = real[:, None] & inside[None, :]
        W = tl.load(W_dec + i[:, None] * d_in + columns[None, :], mask=both, other=0)
        steps = v[:, None] * W.to(tl.float32)
        prefixes = tl.where(inside[None, :], r[None, :] + tl.cumsum(steps, 0), 0.0)
        tl.store(errors + share + ranks, weight * tl.sum(prefixes * prefixes, 1), mask=real)
        r += tl.sum(steps, 0)
    tl.store(residual + at, r, mask=inside)

    if GRAD:
        s = tl.zeros([COLUMNS], tl.float32)
        n_groups = (K + RANKS - 1) // RANKS
        for group in range(n_groups):
            ranks = (n_groups - 1 - group) * RANKS + tl.arange(0, RANKS)
            real = ranks < K
            v = tl.load(values + token * K + ranks, mask=real, other=0).to(tl.float32)
            i = tl.load(indices + token * K + ranks, mask=real, other=0)
            w = weight * tl.load(rank_weights + ranks, mask=real, other=0)
            both = real[:, None] & inside[None, :]
            to_rows = i[:, None] * d_in + columns[None, :]
            W = tl.load(W_dec + to_rows, mask=both, other=0).to(tl.float32)
            steps = v[:, None] * W
            r -= tl.sum(steps, 0)
            weighted = w[:, None] * (r[None, :] + tl.cumsum(steps, 0))
            sums = s[None, :] + tl.cumsum(weighted, 0, reverse=True)
            s += tl.sum(weighted, 0)
            tl.store(d_values + share + ranks, 2 * tl.sum(W * sums, 1), mask=real)
            if STORE:
                # Ranks up to a budget share one suffix sum: it is kept at the budget's own rank.
                slot = tl.load(rank_slots + ranks, mask=real, other=-1).to(tl.int64)
                to_slots = (row.to(tl.int64) * n_slots + slot)[:, None] * d_in + columns[None, :]
                tl.store(suffixes + to_slots, sums, mask=both & (slot[:, None] >= 0))
            else:
                tl.atomic_add(d_W_dec + to_rows, 2 * v[:, None] * sums, mask=both, sem="relaxed")
        tl.store(suffix + at, s, mask=inside)


@triton.jit
def _segment_sum_kernel(
    out, entries, offsets, coefficients, row_of_entry, rows, d_in,
    ADD: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One latent, one block of columns: out[latent] = Σ over its entries of coefficient · row.

    Entries are sorted by latent, so a latent is a contiguous segment and its sum is taken in token
    order by one program: no atomics, the same bits every time. ROWS rows are loaded per step, so
    that a latent every token uses is a loop of B/ROWS wide loads, not B narrow ones.
    """
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d_in
    start = tl.load(offsets + latent)
    end = tl.load(offsets + latent + 1)
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(start, end, ROWS):
        n = first + tl.arange(0, ROWS)
        real = n < end
        entry = tl.load(entries + n, mask=real, other=0)
        c = tl.load(coefficients + entry, mask=real, other=0).to(tl.float32)
        row = tl.load(row_of_entry + entry, mask=real, other=0).to(tl.int64)
        both = real[:, None] & inside[None, :]
        x = tl.load(rows + row[:, None] * d_in + columns[None, :], mask=both, other=0)
        total += tl.sum(c[:, None] * x.to(tl.float32), 0)
    if ADD:  # latents without an entry keep what they have, unread
        used = columns < tl.where(end > start, d_in, 0)
        total += tl.load(out + latent * d_in + columns, mask=used, other=0)
        tl.store(out + latent * d_in + columns, total, mask=used)
    else:
        tl.store(out + latent * d_in + columns, total, mask=inside)


def nested(p: NestedProblem, needs_grad: bool) -> NestedSolution:
    n_tokens, k = p.values.shape
    d_sae, d_in = p.W_dec.shape
    device, blocks = p.values.device, triton.cdiv(d_in, COLUMNS)
    tables = _rank_tables(tuple(p.budgets), tuple(p.weights), k, device)
    budget_ranks, rank_weights, rank_slots, slots = tables
    token_weights = p.token_weights
    if token_weights is None:
        token_weights = torch.ones(n_tokens, dtype=torch.float32, device=device)

    def wide(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=device)

    errors, residual = wide(blocks, n_tokens, k), wide(n_tokens, d_in)
    store = needs_grad and (deterministic() or len(p.budgets) <= FEW_BUDGETS)
    nothing = residual  # an argument that a specialisation of the kernel never touches
    d_values = wide(blocks, n_tokens, k) if needs_grad else nothing
    suffix = wide(n_tokens, d_in) if needs_grad else nothing
    d_W_dec = wide(d_sae, d_in).zero_() if needs_grad else nothing
    chunk, suffixes = n_tokens, nothing
    if store:
        chunk = max(1, min(n_tokens, WORKSPACE_BYTES // (4 * len(p.budgets) * d_in)))
        suffixes = wide(chunk, len(p.budgets), d_in)
    for first in range(0, n_tokens, chunk):
        count = min(chunk, n_tokens - first)
        _nested_kernel[(count, blocks)](
            p.values, p.indices, p.W_dec, p.b_dec, p.target, rank_weights, rank_slots,
            token_weights, errors, residual, d_values, d_W_dec, suffix, suffixes,
            first, n_tokens, k, d_in, len(p.budgets),
            GRAD=needs_grad, STORE=store, COLUMNS=COLUMNS, RANKS=RANKS, num_warps=WARPS,
        )  # fmt: skip
        if store:
            here = slice(first, first + count)
            row_of_entry = torch.arange(count, device=device)[:, None] * len(p.budgets) + slots
            _segment_sum(
                d_W_dec, p.indices[here], 2 * p.values[here].float(), row_of_entry, suffixes, True
            )
    squared_errors = errors[..., budget_ranks].sum((0, 1), dtype=torch.float64)
    if not needs_grad:
        return NestedSolution(squared_errors, residual, None, None, None)
    return NestedSolution(
        squared_errors,
        residual,
        d_values.sum(0).to(p.values.dtype),
        d_W_dec.to(p.W_dec.dtype),
        suffix,
    )


@functools.lru_cache(maxsize=64)
def _rank_tables(
    budgets: tuple[int, ...], weights: tuple[float, ...], k: int, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """What the kernels look up by rank; kept, because making it waits for the device.

    Returns budget_ranks ``[|J|]`` (j − 1), rank_weights ``[K]`` (0 where no budget ends),
    rank_slots ``[K]`` (the budget ending at a rank, or −1) and slots ``[K]`` (the first budget that
    includes a rank, under which its suffix sum is kept).
    """
    with torch.device("cpu"):
        ranks = torch.tensor(budgets, dtype=torch.int64) - 1
        rank_weights = torch.zeros(k, dtype=torch.float32)
        rank_weights[ranks] = torch.tensor(weights, dtype=torch.float32)
        rank_slots = torch.full((k,), -1, dtype=torch.int64)
        rank_slots[ranks] = torch.arange(len(budgets))
        slots = torch.searchsorted(ranks, torch.arange(k))
    return tuple(table.to(device) for table in (ranks, rank_weights, rank_slots, slots))


def encoder_grad(
    d_pre: torch.Tensor, indices: torch.Tensor, x: torch.Tensor, d_sae: int
) -> torch.Tensor:
    out = torch.empty(d_sae, x.shape[1], dtype=torch.float32, device=x.device)
    tokens = torch.arange(len(x), device=x.device)[:, None].expand_as(indices)
    _segment_sum(out, indices, d_pre, tokens, x, False)
    return out.T.to(x.dtype).contiguous()


def _segment_sum(
    out: torch.Tensor,
    indices: torch.Tensor,
    coefficients: torch.Tensor,
    row_of_entry: torch.Tensor,
    rows: torch.Tensor,
    add: bool,
) -> None:
    """out[indices[e]] (+)= coefficients[e] · rows[row_of_entry[e]], deterministic, no host sync."""
    d_sae, d_in = out.shape
    latents, entries = indices.reshape(-1).to(torch.int32).sort(stable=True)
    bounds = torch.arange(d_sae + 1, device=out.device, dtype=torch.int32)
    offsets = torch.searchsorted(latents, bounds)
    _segment_sum_kernel[(d_sae, triton.cdiv(d_in, COLUMNS))](
        out, entries, offsets, coefficients, row_of_entry.contiguous(), rows, d_in,
        ADD=add, COLUMNS=COLUMNS, ROWS=ROWS, num_warps=WARPS,
    )  # fmt: skip


def deterministic() -> bool:
    """Whether the same input must give the same bits (torch's switch, or HSAE_DETERMINISTIC=1)."""
    return (
        torch.are_deterministic_algorithms_enabled() or os.environ.get("HSAE_DETERMINISTIC") == "1"
    )
