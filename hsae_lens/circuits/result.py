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
        which the node is shown. With budgets that are not fixed ``rule`` and ``target`` follow
        ``k``, and ``first_target`` ends a row: the smallest of its rule, of error targets the
        largest.
    """
    tables, texts, named = [], token_texts(task, tokenizer), attribution.budget_rows()
    for k in attribution.budgets:
        nodes = attribution.nodes(k)
        nodes = nodes.assign(**named[k], share=nodes["effect"] / nodes["effect"].sum())
        shown = nodes[(nodes["share"].abs() >= share) | (nodes.index == 0)]
        tables.append(shown.sort_values("site", key=lambda s: s.map(model_order), kind="stable"))
    table = pd.concat(tables, ignore_index=True)
    budget = list(named[attribution.budgets[0]])
    of_one_rule = table.groupby([*budget[1:2], "site", "position", "latent"])
    table["first_k"] = of_one_rule["k"].transform("min")
    table["token"] = [texts[position] for position in table["position"]]
    columns = [*budget, "site", "position", "token", "latent", "effect", "share", "first_k"]
    if "rule" in budget:
        smallest, largest = (of_one_rule["target"].transform(which) for which in ("min", "max"))
        table["first_target"] = smallest.where(table["rule"] != "error", largest)
        columns.append("first_target")
    return table[columns]


def token_texts(task: TokenizedTask, tokenizer: Any) -> list[str]:
    """The first pair's tokens; where its prompts differ, "clean/corrupt"."""
    clean, corrupt = (
        [tokenizer.decode([i]) for i in row[0].tolist()] for row in (task.clean, task.corrupt)
    )
    return [a if a == b else f"{a}/{b.strip()}" for a, b in zip(clean, corrupt, strict=True)]
