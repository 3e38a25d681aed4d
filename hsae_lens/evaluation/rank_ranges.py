"""Ranks 1–8, 9–32, 33–128 and later: the ranges that dashboards and the judge tell apart."""

from __future__ import annotations

RANK_RANGES = ((1, 8), (9, 32), (33, 128))


def rank_ranges(k: int) -> list[tuple[int, int]]:
    """Ranks 1..k in inclusive ranges: :data:`RANK_RANGES`, and one for all that come after them."""
    after = (RANK_RANGES[-1][1] + 1, k)
    return [(low, min(high, k)) for low, high in (*RANK_RANGES, after) if low <= k]
