"""The figures of a circuit: how faithful, how complete, over all its sizes, and across budgets.

They are shares of what is measured on the model's logits, a
:data:`hsae_lens.evaluation.tasks.metrics.LogitMetric`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from hsae_lens.circuits.attribution import Attribution
from hsae_lens.circuits.sites import ERROR
from hsae_lens.objective.budgets import ErrorTarget


class LogitMeans(NamedTuple):
    """The logit metric's means: m(C), of everything but C, m(M) of the model, m(∅) of nothing."""

    circuit: float
    complement: float
    model: float
    empty: float

    def share(self, value: float) -> float:
        """How far ``value`` is on the way from nothing (0) to the model (1)."""
        return (value - self.empty) / (self.model - self.empty)


CIRCUIT_METRICS: dict[str, Callable[[LogitMeans], float]] = {
    "faithfulness": lambda m: m.share(m.circuit),
    "completeness": lambda m: m.share(m.complement),
}
"""A circuit's figures by the name of their column in :func:`circuit_curve`'s table (Marks et al.,
arXiv 2403.19647). Each has a label and a definition in ``_util/columns.py``."""


def areas(curve: pd.DataFrame) -> pd.DataFrame:
    """Each budget's mean height over log₂(number of nodes), by trapezoids.

    All are taken over the sizes that the table holds, from the smallest to the largest, so that
    budgets and SAEs compare; one with no more nodes keeps its last value. 1 in faithfulness would
    be the whole behaviour in one node.

    Returns:
        Columns ``k`` (``rule`` and ``target``), those of :data:`CIRCUIT_METRICS`, and ``sae`` first
        if the table has it. NaN for a budget without any node.

    Raises:
        ValueError: if the table holds fewer than two sizes.
    """
    sized = curve[curve["nodes"] > 0]
    x = np.log2(np.sort(sized["nodes"].unique()))
    if len(x) < 2:
        raise ValueError("An area needs circuits of at least two sizes.")
    by = [name for name in ("sae", "k", "rule", "target") if name in curve]
    rows = []
    for name, everything in curve.groupby(by, sort=False):
        mine = everything[everything["nodes"] > 0]
        row = dict(zip(by, name, strict=True))
        for of in CIRCUIT_METRICS:
            height = np.interp(x, np.log2(mine["nodes"]), mine[of]) if len(mine) else x * np.nan
            row[of] = float(np.trapezoid(height, x)) / (x[-1] - x[0])
        rows.append(row)
    return pd.DataFrame(rows)


def nesting(
    attribution: Attribution, share: float = 0.01, by_position: bool = True
) -> pd.DataFrame:
    """How much of each budget's circuit is in each larger budget's.

    A budget's circuit is here the latents whose contribution is at least ``share`` of everything
    that latents and errors contribute together, which is the same at every budget. By position, on
    one prompt without a corrupt one, the circuits are nested exactly; over many prompts a latent
    may come at different ranks.

    Returns:
        A row per pair of budgets of one rule: ``k`` (with budgets that are not fixed also ``rule``
        and ``target``), ``larger`` (its number; of error targets the smaller share, which takes
        more latents), ``latents`` (in the smaller's circuit) and ``shared``, the share of them that
        the larger one's contains (NaN if there are none).
    """
    found = {}
    for k in attribution.budgets:
        nodes = attribution.nodes(k, by_position)
        least = share * abs(nodes["effect"].sum())
        nodes = nodes[(nodes["latent"] != ERROR) & (nodes["effect"].abs() >= least)]
        found[k] = set(nodes.drop(columns="effect").itertuples(index=False, name=None))
    named, rows = attribution.budget_rows(), []
    for pair in itertools.combinations(found, 2):
        if type(pair[0]) is not type(pair[1]):
            continue
        k, larger = reversed(pair) if isinstance(pair[0], ErrorTarget) else pair
        shared = len(found[k] & found[larger]) / len(found[k]) if found[k] else np.nan
        number = named[larger].get("target", larger)
        rows.append({**named[k], "larger": number, "latents": len(found[k]), "shared": shared})
    return pd.DataFrame(rows)
