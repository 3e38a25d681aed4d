"""Tables of a comparison: every family's frontier, what one SAE gives up, and what each cost.

Definitions are in ``_util/columns.py``, stamped where the tables are shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student

from hsae_lens._util.columns import QUALITIES
from hsae_lens.comparison.cells import CellFolder
from hsae_lens.comparison.families import FAMILIES, TRUNCATED, family
from hsae_lens.comparison.material import HeldOut, Material

MERITS = (*QUALITIES, "mcc", "mcc_used", "f1")
"""Figures that families are compared by: of activations, of the model, of known features."""

MORE = ("precision", "recall", "uniqueness", "dead")

KEYS = ["text", "rule", "k"]

REGRET = ["one", *KEYS, "best", "of_one", "of_best", "regret", "interval", "seeds"]

RESAMPLES = 500  # of documents

CONFIDENCE, NORMAL = 0.95, 1.96

Resampling = tuple[torch.Tensor, torch.Tensor]
"""How often each document counts ``[RESAMPLES, documents]``, and the summed squared distances from
the mean of all activations then ``[RESAMPLES]``."""


def all_rows(cells: Sequence[CellFolder]) -> pd.DataFrame:
    """A row per cell, kind of text, rule and budget; ``cell`` is its place in the list."""
    return pd.concat([c.rows().assign(cell=n) for n, c in enumerate(cells)], ignore_index=True)


def frontier_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, with half the width of their 95% intervals.

    Over seeds and, where the rows have standard errors (of explained variance), documents; of one
    seed over documents only.
    """
    figures = [name for name in ("l0", *MERITS, *MORE) if name in rows]
    groups = rows.groupby(["text", "family", "rule", "k"], sort=False)
    table = groups[figures].mean()
    for name in [name for name in MERITS if name in rows]:
        table[f"{name}_interval"] = groups[name].apply(_seed_half_width)
        if (error := f"{name}_se") in rows:
            half = table[f"{name}_interval"].fillna(0)
            table[f"{name}_interval"] = np.hypot(half, NORMAL * groups[error].mean())
    table.insert(0, "seeds", groups["seed"].nunique())
    return _in_order(table.reset_index())


def cost_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What a family takes to serve every budget: SAEs, training steps, seconds, mean over seeds.

    ``needed``: SAEs for all budgets that any specialist was trained for, and ``seconds_in_all``.
    """
    cells = rows[rows["family"] != TRUNCATED].drop_duplicates(["family", "seed", "trained_for"])
    per_seed = cells.groupby(["family", "seed"], sort=False).agg(
        saes=("trained_for", "nunique"), steps=("steps", "sum"), seconds=("seconds", "sum")
    )
    table = per_seed.groupby("family", sort=False).mean().reset_index()
    every = cells.loc[cells["family"].map(_is_specialist), "trained_for"].nunique()
    needed = [every if family(name).specialist else 1 for name in table["family"]]
    table = table.assign(needed=needed, seconds_in_all=table["seconds"] / table["saes"] * needed)
    return _in_order(table)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """By family, as :data:`FAMILIES` has them, then text as it came, rule and budget."""
    places = {"family": table["family"].map([*FAMILIES, TRUNCATED].index)}
    if "text" in table:
        places["text"] = table["text"].map([*table["text"].unique()].index)
    keys = ["family", *(name for name in KEYS if name in table)]
    return table.loc[table.assign(**places).sort_values(keys).index].reset_index(drop=True)


@dataclass(frozen=True)
class _Pair:
    """A specialist's row and the one SAE's rows of the same seed, text and rule."""

    specialist: pd.Series
    ours: pd.DataFrame

    def between(self) -> tuple[int, int, float]:
        """Which of our rows enclose the specialist's l0, and how far it is from one to the other.

        Along the logarithm of l0; where it is outside, the line of the nearest two is prolonged.
        """
        own = np.log2(self.ours["l0"].to_numpy())
        asked = np.log2(self.specialist["l0"])
        right = int(np.clip(np.searchsorted(own, asked), 1, len(own) - 1))
        return right - 1, right, float((asked - own[right - 1]) / (own[right] - own[right - 1]))


def regret_table(
    cells: Sequence[CellFolder], material: Material, of: str = "explained_variance"
) -> pd.DataFrame:
    """How much better the best specialist of the same spending rule is than one SAE for all.

    For each family of which one SAE serves every budget (no control), at each kind of text, rule
    and budget: the specialists trained for it (the best of their families by their mean over
    seeds), minus the one SAE at as many latents; on average over seeds, pair by pair.

    Returns:
        Columns ``one`` (that family), ``text, rule, k, best`` (the specialists' family),
        ``of_one`` and ``of_best`` (the figures), ``regret``, ``interval`` (half the width of its
        95% interval, over seeds and, for explained variance, documents; of one seed over documents
        only), ``seeds``.
    """
    rows = all_rows(cells)
    specialists = rows[rows["family"].map(_is_specialist) & (rows["k"] == rows["trained_for"])]
    texts = pd.Categorical(specialists["text"], rows["text"].unique())  # in this order
    specialists = specialists.assign(text=texts)
    documents = {kind: resampling(held) for kind, held in material.held.items()}
    table = []
    for one in [name for name in FAMILIES if _is_one_for_all(name)]:
        for key, mine in specialists.groupby(KEYS, observed=True):
            means = mine.groupby("family")[of].mean().dropna()
            mine = mine[mine["family"] == means.idxmax()] if len(means) else mine[:0]
            pairs = list(_pairs(mine, rows[rows["family"] == one]))
            if pairs:
                regret = _regret(pairs, cells, documents[str(key[0])], of)
                table.append({"one": one, **dict(zip(KEYS, key, strict=True)), **regret})
    return pd.DataFrame(table, columns=REGRET)


def _regret(
    pairs: Sequence[_Pair], cells: Sequence[CellFolder], documents: Resampling, of: str
) -> dict[str, Any]:
    """The figures of a row from the pairs of all seeds."""
    theirs = np.array([pair.specialist[of] for pair in pairs])
    ours = np.array([_interpolated(pair, of) for pair in pairs])
    half = _seed_half_width(theirs - ours)
    if of == "explained_variance":
        of_documents = _document_half_width(pairs, cells, documents)
        half = of_documents if np.isnan(half) else float(np.hypot(half, of_documents))
    return {
        "best": pairs[0].specialist["family"],
        "of_one": ours.mean(),
        "of_best": theirs.mean(),
        "regret": (theirs - ours).mean(),
        "interval": half,
        "seeds": len(pairs),
    }


def _is_one_for_all(name: str) -> bool:
    return not (family(name).specialist or family(name).control)


def _is_specialist(name: str) -> bool:
    return name != TRUNCATED and family(name).specialist


def _pairs(specialists: pd.DataFrame, ours: pd.DataFrame) -> Iterator[_Pair]:
    """Those of the same seed: they saw the same batches in the same order."""
    for _, row in specialists.iterrows():
        same = (ours["seed"] == row["seed"]) & (ours["text"] == row["text"])
        mine = ours[same & (ours["rule"] == row["rule"])].sort_values("l0")
        if row["rule"] == "fixed":
            mine = mine[mine["k"] == row["k"]]
            comparable = len(mine) > 0
        else:  # by the logarithm of l0, on a line of two
            mine = mine[mine["l0"] > 0].drop_duplicates("l0")
            comparable = len(mine) > 1 and row["l0"] > 0
        if comparable:
            yield _Pair(row, mine)


def _interpolated(pair: _Pair, of: str) -> float:
    values = pair.ours[of].to_numpy()
    if len(values) == 1:
        return float(values[0])
    left, right, part = pair.between()
    return float(values[left] + part * (values[right] - values[left]))


def _seed_half_width(values: pd.Series[float] | np.ndarray) -> float:
    """Half the width of the 95% interval of a mean over seeds, by Student's t."""
    n = len(values)
    if n < 2:
        return float("nan")
    return float(student.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def _document_half_width(
    pairs: Sequence[_Pair], cells: Sequence[CellFolder], documents: Resampling
) -> float:
    """The same of the mean regret over the seeds that there are, if documents are drawn again."""
    weights, variance = documents
    # A regret is minus the difference of squared errors over the variance.
    differences = torch.stack([_difference(pair, cells) for pair in pairs]).mean(0)
    regrets = -(weights @ differences) / variance
    return float(NORMAL * regrets.std())


def _difference(pair: _Pair, cells: Sequence[CellFolder]) -> torch.Tensor:
    text = pair.specialist["text"]
    theirs = cells[pair.specialist["cell"]].errors()[text][pair.specialist["place"]]
    errors = cells[pair.ours["cell"].iloc[0]].errors()[text][pair.ours["place"].to_list()]
    if len(errors) == 1:
        return theirs - errors[0]
    left, right, part = pair.between()
    return theirs - (errors[left] + part * (errors[right] - errors[left]))


def resampling(held: HeldOut) -> Resampling:
    """Documents drawn with replacement, for intervals of differences of explained variance."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(held.n_documents, (RESAMPLES, held.n_documents), generator=generator)
    weights = torch.zeros(drawn.shape, dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
    x = held.activations.double()
    distances = torch.zeros(held.n_documents, dtype=torch.float64)
    distances.index_add_(0, held.documents, (x - x.mean(0)).square().sum(-1))
    return weights, weights @ distances
