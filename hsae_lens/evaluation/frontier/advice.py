"""Which budget to use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hsae_lens._util.columns import LABELS, QUALITIES
from hsae_lens._util.tables import RULE_NAMES, rows_by_rule, rules_of, whole

LEAST_HURT = 0.01  # of the clean cross-entropy, that ablation must add to be worth a share


@dataclass(frozen=True)
class Advice:
    """The smallest budget that keeps a share of a quality, and what it gives up.

    k: the budget: of each token, on average, or (of an error target) at most.  value: the quality
    at it.  best: at the largest budget.  largest: what that was asked for, k or share.  beware: why
    the quality means little here, if it does.  rule: how it is spent.  target: what was asked for
    in its row, k or share.  l0: latents that it used on average, NaN where the table does not say.
    """

    k: float
    of: str
    keep: float
    value: float
    best: float
    largest: float
    beware: str = ""
    rule: str = "fixed"
    target: float = math.nan
    l0: float = math.nan

    def __str__(self) -> str:
        kept = f"keeps {self.value / self.best:.1%} of the {LABELS[self.of]} at"
        if self.rule == "mean":
            line = f"a mean budget of {self.k:g} {kept} one of {self.largest:g}"
        elif self.rule == "error":
            used = "" if math.isnan(self.l0) else f" (L0 {self.l0:.0f})"
            line = f"an error target of {self.target:g}{used} {kept} one of {self.largest:g}"
        else:
            line = f"k={self.k} {kept} k={self.largest}"
        beware = f" Beware: {self.beware}" if self.beware else ""
        return f"{line}: {self.value:.3f} of {self.best:.3f}.{beware}"


def advise(
    frontier: pd.DataFrame,
    keep: float = 0.95,
    of: str = "explained_variance",
    rule: str = "fixed",
) -> Advice:
    """The smallest of the table's budgets that keeps ``keep`` of the quality at the largest one.

    Args:
        frontier: one row per budget, as :func:`evaluate_budgets` makes it; a finer answer needs
            more budgets in it.
        keep: a share, above 0 and at most 1.
        of: one of :data:`QUALITIES`, "explained_variance" or "ce_score".
        rule: of the budgets to choose from: "fixed", "mean" or "error".

    Raises:
        ValueError: for a share outside these bounds, an unknown quality or rule, one that the table
            has no budgets of, or a quality that is not positive at the largest budget, so that a
            share of it means nothing.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be a share above 0 and at most 1, got {keep}.")
    if of not in QUALITIES:
        raise ValueError(f"Cannot advise on {of!r}; known: {', '.join(QUALITIES)}.")
    if of not in frontier:
        raise ValueError(f"The frontier has no column {of!r}: evaluate with cross_entropy=True.")
    if "k" not in frontier:
        raise ValueError("The frontier has no column 'k': give a table of evaluate_budgets.")
    rows = _ascending(frontier, rule)
    (largest, name), best = _asked(rows.iloc[-1], rule), float(rows[of].iloc[-1])
    if not best > 0:  # NaN too
        raise ValueError(f"The {LABELS[of]} at {name} is {best:.3f}: not worth a share.")
    first = rows[rows[of] >= keep * best].iloc[0]
    beware = _beware(rows.iloc[-1]) if of == "ce_score" else ""
    return Advice(
        whole(first["k"]),
        of,
        keep,
        float(first[of]),
        best,
        largest,
        beware,
        rule,
        _asked(first, rule)[0],
        float(first.get("l0", math.nan)),
    )


def _ascending(frontier: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The rows of a rule, smallest budget first."""
    if rule not in RULE_NAMES:
        raise ValueError(f"Unknown rule {rule!r}; known: {', '.join(RULE_NAMES)}.")
    rows = rows_by_rule(frontier, rule)
    if rows.empty:
        raise ValueError(f"The frontier has no {rule} budgets; it has {_rules_in(frontier)}.")
    if rule != "error":
        return rows.sort_values("k")
    if "target" not in rows:
        raise ValueError("The frontier has no column 'target': give a table of evaluate_budgets.")
    return rows.sort_values("target", ascending=False)  # the smaller, the more latents it takes


def _rules_in(frontier: pd.DataFrame) -> str:
    return ", ".join(rules_of(frontier).unique()) or "no rows"


def _asked(row: pd.Series[Any], rule: str) -> tuple[float, str]:
    """What a row's budget was asked for, and what it is called."""
    names = {"fixed": "k=", "mean": "a mean budget of ", "error": "an error target of "}
    asked = whole(row["target" if rule == "error" else "k"])
    return asked, f"{names[rule]}{asked}"


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
