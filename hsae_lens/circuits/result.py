"""What ``hsae circuits`` found: tables, and what they are about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from hsae_lens.circuits.attribution import Attribution
from hsae_lens.circuits.sites import model_order
from hsae_lens.evaluation.tasks.pairs import TokenizedTask

SHARE = 0.01  # a node is shown if it contributes at least this much of everything


@dataclass(frozen=True)
class CircuitsResult:
    """What a run found, for its page: tables, and what they are about."""

    facts: dict[str, Any]
    nodes: pd.DataFrame
    curve: pd.DataFrame
    areas: pd.DataFrame
    nesting: pd.DataFrame
    edges: pd.DataFrame | None
    latents: pd.DataFrame


def shown_nodes(
    attribution: Attribution, task: TokenizedTask, tokenizer: Any, share: float = SHARE
) -> pd.DataFrame:
    """At each budget the nodes that contribute ``share`` of everything or more, or the most.

    Sites are in the model's order, the largest contribution of each first.

    Returns:
        Columns ``k``, ``site``, ``position``, ``token`` (of the first pair), ``latent`` (-1: the
        error node), ``effect``, ``share`` (of everything) and ``first_k``, the smallest budget at
        which the node is shown.
    """
    tables, texts = [], token_texts(task, tokenizer)
    for k in attribution.budgets:
        nodes = attribution.nodes(k)
        nodes = nodes.assign(k=k, share=nodes["effect"] / nodes["effect"].sum())
        shown = nodes[(nodes["share"].abs() >= share) | (nodes.index == 0)]
        tables.append(shown.sort_values("site", key=lambda s: s.map(model_order), kind="stable"))
    table = pd.concat(tables, ignore_index=True)
    node = ["site", "position", "latent"]
    table["first_k"] = table.groupby(node)["k"].transform("min")
    table["token"] = [texts[position] for position in table["position"]]
    return table[["k", "site", "position", "token", "latent", "effect", "share", "first_k"]]


def token_texts(task: TokenizedTask, tokenizer: Any) -> list[str]:
    """The first pair's tokens; where its prompts differ, "clean/corrupt"."""
    clean, corrupt = (
        [tokenizer.decode([i]) for i in row[0].tolist()] for row in (task.clean, task.corrupt)
    )
    return [a if a == b else f"{a}/{b.strip()}" for a, b in zip(clean, corrupt, strict=True)]
