"""The GPU implementation: Triton kernels for any K, d_in and batch. Imported only when chosen.

Written from the algebra in ``interface.py``. **Not run on a GPU yet**: the reasoning about speed
below is reasoning. Every kernel is tested against the float64 reference through Triton's
interpreter (``TRITON_INTERPRET=1``) and compiled for sm_80 and sm_90.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from hsae_lens.objective.kernels.interface import NestedProblem, NestedSolution, deterministic
from hsae_lens.objective.kernels.launches import Launch
from hsae_lens.objective.kernels.segments import Segments, segments_again, segments_of

WORKSPACE_BYTES = 512 << 20  # for stored suffix sums; or those of one block, if they are more
# Compiled once for all of their values, so that what was tried at first use is what runs. Not among
# them is what says where a row begins: multiples of 16 are read in wide loads. (Where d_in is none,
# and stored suffix sums need several slices, their widths are: a program that was not tried.)
ANY_VALUE = ["block", "first_block", "K", "n_slots"]


@triton.jit(do_not_specialize=ANY_VALUE)
def _nested_kernel(
    values, indices, W_dec, b_dec, target, rank_weights, rank_slots, token_weights,
    errors, residual, d_values, d_W_dec, suffix, suffixes,
    block, first_block, K, d_in, stride, n_slots,
    GRAD: tl.constexpr, STORE: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """One token, one block of columns: the scan over ranks forwards, then backwards.

    Blocks are launched one after the other, so that a block's columns of W_dec are read from memory
    once and then from L2, if it is narrow enough to stay there, and so that errors and d_values,
    which are sums over blocks, can be added to without atomics, in the same order every time. The
    residual and the suffix sum stay in registers. Nothing of size K·d_in is written unless STORE
    asks for the distinct suffix sums, ``[B, |J|, stride]``, of some blocks.
    """
    token = tl.program_id(0).to(tl.int64)
    columns = block.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d_in
    at = token * d_in + columns
    x = tl.load(target + at, mask=inside, other=0).to(tl.float32)
    r = tl.load(b_dec + columns, mask=inside, other=0).to(tl.float32) - x
    weight = tl.load(token_weights + token)
    known = tl.where(block > 0, K, 0)  # ranks that an earlier block has added to

    for first in range(0, K, RANKS):
        ranks = first + tl.arange(0, RANKS)
        real = ranks < K
        here = token * K + ranks
        v = tl.load(values + here, mask=real, other=0).to(tl.float32)
        i = tl.load(indices + here, mask=real, other=0)
        both = real[:, None] & inside[None, :]
        W = tl.load(W_dec + i[:, None] * d_in + columns[None, :], mask=both, other=0)
        steps = v[:, None] * W.to(tl.float32)
        prefixes = tl.where(inside[None, :], r[None, :] + tl.cumsum(steps, 0), 0.0)
        so_far = tl.load(errors + here, mask=ranks < known, other=0)
        tl.store(errors + here, so_far + weight * tl.sum(prefixes * prefixes, 1), mask=real)
        r += tl.sum(steps, 0)
    tl.store(residual + at, r, mask=inside)

    if GRAD:
        s = tl.zeros([COLUMNS], tl.float32)
        n_groups = (K + RANKS - 1) // RANKS
        for group in range(n_groups):
            ranks = (n_groups - 1 - group) * RANKS + tl.arange(0, RANKS)
            real = ranks < K
            here = token * K + ranks
            v = tl.load(values + here, mask=real, other=0).to(tl.float32)
            i = tl.load(indices + here, mask=real, other=0)
            w = weight * tl.load(rank_weights + ranks, mask=real, other=0)
            both = real[:, None] & inside[None, :]
            to_rows = i[:, None] * d_in + columns[None, :]
            W = tl.load(W_dec + to_rows, mask=both, other=0).to(tl.float32)
            steps = v[:, None] * W
            r -= tl.sum(steps, 0)
            weighted = w[:, None] * (r[None, :] + tl.cumsum(steps, 0))
            sums = s[None, :] + tl.cumsum(weighted, 0, reverse=True)
            s += tl.sum(weighted, 0)
            so_far = tl.load(d_values + here, mask=ranks < known, other=0)
            tl.store(d_values + here, so_far + 2 * tl.sum(W * sums, 1), mask=real)
            if STORE:
                # Ranks up to a budget share one suffix sum: it is kept at the budget's own rank.
                slot = tl.load(rank_slots + ranks, mask=real, other=-1).to(tl.int64)
                to_slots = (token * n_slots + slot)[:, None] * stride + (
                    columns - first_block.to(tl.int64) * COLUMNS
                )[None, :]
                tl.store(suffixes + to_slots, sums, mask=both & (slot[:, None] >= 0))
            else:
                tl.atomic_add(d_W_dec + to_rows, 2 * v[:, None] * sums, mask=both, sem="relaxed")
        tl.store(suffix + at, s, mask=inside)


@triton.jit
def _segment_sum_kernel(
    out, entries, offsets, coefficients, row_of_entry, rows, d_in, stride, width, first_column,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One latent, one block of columns: out[latent] = Σ over its entries of coefficient · row.

    Entries are sorted by latent, so a latent is a contiguous segment and its sum is taken in token
    order by one program: no atomics, the same bits every time. ROWS rows are loaded per step, so
    that a latent every token uses is a loop of B/ROWS wide loads, not B narrow ones. The first
    ``width`` of a row's ``stride`` numbers go to columns ``first_column`` onwards of ``out``.
    """
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
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
        x = tl.load(rows + row[:, None] * stride + columns[None, :], mask=both, other=0)
        total += tl.sum(c[:, None] * x.to(tl.float32), 0)
    tl.store(out + latent * d_in + first_column + columns, total, mask=inside)


def nested(p: NestedProblem, needs_grad: bool, launch: Launch) -> NestedSolution:
    n_tokens, k = p.values.shape
    d_sae, d_in = p.W_dec.shape
    device, blocks = p.values.device, triton.cdiv(d_in, launch.columns)
    tables = _rank_tables(tuple(p.budgets), tuple(p.weights), k, device)
    budget_ranks, rank_weights, rank_slots, slots = tables
    token_weights = p.token_weights
    if token_weights is None:
        token_weights = torch.ones(n_tokens, dtype=torch.float32, device=device)

    def wide(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=device)

    errors, residual = wide(n_tokens, k), wide(n_tokens, d_in)
    store = needs_grad and (deterministic() or len(p.budgets) <= launch.few_budgets)
    nothing = residual  # an argument that a specialisation of the kernel never touches
    d_values = wide(n_tokens, k) if needs_grad else nothing
    suffix = wide(n_tokens, d_in) if needs_grad else nothing
    d_W_dec = wide(d_sae, d_in) if needs_grad else nothing
    at_once, width, suffixes = blocks, d_in, nothing
    if store:
        block_bytes = 4 * n_tokens * len(p.budgets) * launch.columns
        at_once = min(blocks, max(1, WORKSPACE_BYTES // max(block_bytes, 1)))
        width = min(d_in, at_once * launch.columns)
        suffixes = wide(n_tokens, len(p.budgets), width)
        first_of_token = torch.arange(n_tokens, device=device)[:, None] * len(p.budgets)
        row_of_entry, coefficients = first_of_token + slots, 2 * p.values.float()
        segments = segments_of(p.indices, d_sae)
    elif needs_grad:
        d_W_dec.zero_()
    for first in range(0, blocks, at_once):
        for block in range(first, min(first + at_once, blocks)):
            _nested_kernel[(n_tokens,)](
                p.values, p.indices, p.W_dec, p.b_dec, p.target, rank_weights, rank_slots,
                token_weights, errors, residual, d_values, d_W_dec, suffix, suffixes,
                block, first, k, d_in, width, len(p.budgets),
                GRAD=needs_grad, STORE=store, COLUMNS=launch.columns, RANKS=launch.ranks,
                num_warps=launch.warps, num_stages=launch.stages,
            )  # fmt: skip
        if store:
            _segment_sum(d_W_dec, first * launch.columns, segments, coefficients, row_of_entry,
                         suffixes, launch)  # fmt: skip
    squared_errors = errors[:, budget_ranks].sum(0, dtype=torch.float64)
    if not needs_grad:
        return NestedSolution(squared_errors, residual, None, None, None)
    return NestedSolution(
        squared_errors,
        residual,
        d_values.to(p.values.dtype),
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
    d_pre: torch.Tensor, indices: torch.Tensor, x: torch.Tensor, d_sae: int, launch: Launch
) -> torch.Tensor:
    out = torch.empty(d_sae, x.shape[1], dtype=torch.float32, device=x.device)
    tokens = torch.arange(len(x), device=x.device)[:, None].expand_as(indices).contiguous()
    _segment_sum(out, 0, segments_again(indices, d_sae), d_pre, tokens, x, launch)
    return out.T.to(x.dtype).contiguous()


def _segment_sum(
    out: torch.Tensor,
    first_column: int,
    segments: Segments,
    coefficients: torch.Tensor,
    row_of_entry: torch.Tensor,
    rows: torch.Tensor,
    launch: Launch,
) -> None:
    """out[latent, first_column:] = Σ coefficient · row over its entries; as wide as the rows."""
    d_sae, d_in = out.shape
    width = min(rows.shape[-1], d_in - first_column)
    _segment_sum_kernel[(d_sae, triton.cdiv(width, launch.segment_columns))](
        out, segments.entries, segments.offsets, coefficients, row_of_entry, rows, d_in,
        rows.shape[-1], width, first_column, COLUMNS=launch.segment_columns, ROWS=launch.rows,
        num_warps=launch.segment_warps, num_stages=launch.segment_stages,
    )  # fmt: skip
