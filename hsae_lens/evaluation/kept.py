"""Which budget keeps how much, in plain words: rows of a frontier in, a small table out.

``rows`` are those of one SAE whose budgets are fixed, the smallest first.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import pandas as pd

from hsae_lens._util.columns import LABELS, QUALITIES
from hsae_lens.evaluation.frontier.advice import Advice, advise

MOST = 0.95  # of what the largest budget does: what advice is about
SHARES = {0: (), 1: (0.8, 0.9, MOST, 0.99), 2: (0.8, MOST)}
"""The shares whose smallest budgets are shown, by how many qualities: five rows at most."""

HEADINGS = {"explained_variance": "Activations explained", "ce_score": "Predictions kept"}


def worth_a_share(rows: pd.DataFrame) -> tuple[dict[str, Advice], list[str]]:
    """The advice by each quality, and why there is none by the others."""
    advices, refused = {}, []
    for of in (of for of in QUALITIES if of in rows):
        try:
            advice = advise(rows, MOST, of)
        except ValueError as error:
            refused.append(str(error))
            continue
        if advice.beware:
            refused.append(f"No advice by the {LABELS[of]}: {advice.beware}")
        else:
            advices[of] = advice
    return advices, refused


def kept_table(
    rows: pd.DataFrame, by: Collection[str], own: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Which budget keeps how much, in words: a few budgets, chosen by :data:`SHARES`.

    Three of them, the smallest, a middle one and the largest, where nothing is worth a share.

    Args:
        by: the qualities that are worth a share, :func:`worth_a_share`.
        own: labels of the columns that are metrics of the user's own.
    """
    ks = {advise(rows, share, of).k for of in by for share in SHARES[len(by)]}
    ks |= {rows["k"].iloc[n] for n in ((-1,) if by else (0, len(rows) // 2, -1)) if len(rows)}
    shown, last = rows[rows["k"].isin(ks)], rows.iloc[-1:]
    table = {"Budget\nlatents per token": [f"k={k:g}" for k in shown["k"]]}
    for of in shown_qualities(by):
        best = last[["k", of]].iloc[0] if of in by else None
        table[f"{HEADINGS[of]}\n{LABELS[of]}"] = [_kept(value, best) for value in shown[of]]
    for name, label in (own or {}).items():
        table[_own_heading(name, label)] = [plain_number(value) for value in shown[name]]
    return pd.DataFrame(table)


def how_to_read(
    rows: pd.DataFrame, by: Collection[str], own: Mapping[str, str] | None = None
) -> str:
    """How the rows of :func:`kept_table` were chosen, and what its columns are."""
    text = ""
    if by:
        largest = f"k={rows['k'].iloc[-1]:g}"
        shares = listed([f"{share:.0%}" for share in SHARES[len(by)]])
        either = " by either measure" if len(by) > 1 else ""
        text = (
            f"Rows: the smallest budgets judged that keep {shares} of what {largest} does{either}, "
            f"and {largest}. "
        )
    text += "Explained: the share of the activations’ variance that is in the rewriting."
    if "ce_score" in by:
        text += " Kept: 100% is the model itself, 0% the model with zeros at this point."
    if own:
        text += f" {listed(own.values())}: of the user’s own, a mean over tokens."
    return text


def plain_number(value: float) -> str:
    """Three digits, and no power of ten where a number of this size is usually written out."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def percent(share: float) -> str:
    """Whole percents, and tenths near 100%."""
    if not math.isfinite(share):
        return "–"
    return f"{share:.1%}" if 0.985 <= share < 1 else f"{share:.0%}"


def shown_qualities(by: Collection[str]) -> list[str]:
    """The qualities whose figures mean something: the variance always, the others if worth it."""
    return [of for of in QUALITIES if of in by or of == "explained_variance"]


def listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _kept(value: float, best: pd.Series[float] | None) -> str:
    if best is None or value >= (most := best.iloc[1]):
        return percent(value)
    return f"{percent(value)}\n{percent(value / most)} of k={best['k']:g}"


def _own_heading(name: str, label: str) -> str:
    return f"{label}\n{name}" if label.replace(" ", "_") != name else label
