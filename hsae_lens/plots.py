"""Tables in, pictures out; computes nothing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from hsae_lens.files import replacing

# Colour-blind safe (Okabe–Ito), in the order curves are drawn.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


def plot_frontier(table: pd.DataFrame, path: str | Path, title: str) -> Path:
    """Explained variance and recovered cross-entropy against the budget, one curve per SAE.

    Args:
        table: columns ``sae``, ``k``, ``explained_variance`` and ``ce_score``.
        path: the PNG to write, whole or not at all.
    """
    path = Path(path)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=12)
    panels = {"explained_variance": "Explained variance", "ce_score": "Cross-entropy recovered"}
    for axes, (column, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for colour, (name, rows) in zip(COLOURS, table.groupby("sae", sort=False), strict=False):
            axes.plot(rows["k"], rows[column], marker="o", color=colour, label=name)
        axes.set_xscale("log", base=2)
        budgets = sorted(table["k"].unique())
        axes.set_xticks(budgets, [str(k) for k in budgets])
        axes.set_xlabel("Budget k: latents used per token")
        axes.set_ylabel(label)
        axes.set_ylim(min(0.0, table[column].min()), 1.03)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", frameon=False)
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=150)
    return path
