"""The exact effect of single nodes, one forward pass each: what attribution approximates."""

from __future__ import annotations

import pandas as pd
from tqdm.auto import tqdm

from hsae_lens.circuits.ablation import Ablator, complement
from hsae_lens.objective.budgets import Budget


def patch_nodes(
    ablator: Ablator, nodes: pd.DataFrame, k: Budget, progress: bool = True
) -> pd.DataFrame:
    """metric(model) − metric(model with one node replaced), at budget k, for each node of a table.

    Args:
        nodes: rows of :meth:`Attribution.nodes` (a small set: each costs a pass over the pairs).

    Returns:
        The table with a column ``exact``, the mean over pairs.
    """
    of_model = ablator(k)
    exact = []
    for row in tqdm(range(len(nodes)), "Patching", disable=not progress):
        one = ablator.circuit(nodes.iloc[row : row + 1])
        exact.append(of_model - ablator(k, complement(one)))
    return nodes.assign(exact=exact)
