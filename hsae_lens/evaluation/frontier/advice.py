"""Which budget to use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from hsae_lens._util.columns import LABELS, QUALITIES

LEAST_HURT = 0.01  # of the clean cross-entropy, that ablation must add to be worth a share


@dataclass(frozen=True)
class Advice:
    """The smallest budget that keeps a share of a quality, and what it gives up.

    k: the budget.  value: the quality at ``k``.  best: at the largest budget.  beware: why the
    quality means little here, if it does.
    """

    k: int
    of: str
    keep: float
    value: float
    best: float
    largest: int
    beware: str = ""

    def __str__(self) -> str:
        return (
            f"k={self.k} keeps {self.value / self.best:.1%} of the {LABELS[self.of]} at "
            f"k={self.largest}: {self.value:.3f} of {self.best:.3f}."
            f"{self.beware and f' Beware: {self.beware}'}"
        )


def advise(frontier: pd.DataFrame, keep: float = 0.95, of: str = "explained_variance") -> Advice:
    """The smallest of the table's budgets that keeps ``keep`` of the quality at the largest one.

    Args:
        frontier: one row per budget, as :func:`evaluate_budgets` makes it; a finer answer needs
            more budgets in it.
        keep: a share, above 0 and at most 1.
        of: one of :data:`QUALITIES`, "explained_variance" or "ce_score".

    Raises:
        ValueError: for a share outside these bounds, an unknown quality, or one that is not
            positive at the largest budget, so that a share of it means nothing.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be a share above 0 and at most 1, got {keep}.")
    if of not in QUALITIES:
        raise ValueError(f"Cannot advise on {of!r}; known: {', '.join(QUALITIES)}.")
    if of not in frontier:
        raise ValueError(f"The frontier has no column {of!r}: evaluate with cross_entropy=True.")
    if "k" not in frontier:
        raise ValueError("The frontier has no column 'k': give a table of evaluate_budgets.")
    rows = frontier.sort_values("k")
    largest, best = int(rows["k"].iloc[-1]), float(rows[of].iloc[-1])
    if not best > 0:  # NaN too
        raise ValueError(f"The {LABELS[of]} at k={largest} is {best:.3f}: not worth a share.")
    first = rows[rows[of] >= keep * best].iloc[0]
    beware = _beware(rows.iloc[-1]) if of == "ce_score" else ""
    return Advice(int(first["k"]), of, keep, float(first[of]), best, largest, beware)


def _beware(row: pd.Series[Any]) -> str:
    """Says so where ablation hardly hurts: recovered cross-entropy is a share of that hurt."""
    if not {"ce_clean", "ce_ablated"} <= {*row.index}:  # a table that kept fewer columns
        return ""
    clean, ablated = float(row["ce_clean"]), float(row["ce_ablated"])
    if ablated - clean >= LEAST_HURT * clean:
        return ""
    return (
        "with the hook set to zero the model predicts about as well or better "
        f"({ablated:.3f} nats per token, {clean:.3f} as it is), so there is hardly anything to "
        "recover. Go by the explained variance."
    )
