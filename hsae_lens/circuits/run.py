"""``hsae circuits``: a task's circuit at every budget, in a folder of tables and pictures."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE

from hsae_lens._version import __version__
from hsae_lens.circuits.attribution import Attribution, attribute_budgets
from hsae_lens.circuits.curve import areas, circuit_curve, nesting
from hsae_lens.circuits.edges import latent_edges
from hsae_lens.circuits.plan import OURS, CircuitsConfig, Plan
from hsae_lens.circuits.plots import plot_circuit, plot_curves
from hsae_lens.circuits.sites import ERROR
from hsae_lens.evaluation.latents import describe_latents
from hsae_lens.evaluation.run import by_sae
from hsae_lens.files import write_csv, write_json
from hsae_lens.models import model_name_of
from hsae_lens.pairs import TokenizedTask
from hsae_lens.sae import HierarchicalTopKSAE
from hsae_lens.text import sample_tokens

SHARE = 0.01  # a node is shown if it contributes at least this much of everything
OUTPUTS = ("nodes.csv", "curve.csv", "areas.csv", "nesting.csv", "edges.csv", "latents.csv",
           "run.json", "curve.png", "graph.png", "circuits.html")  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a run found, for its page: tables, and what they are about."""

    facts: dict[str, Any]
    nodes: pd.DataFrame
    curve: pd.DataFrame
    areas: pd.DataFrame
    nesting: pd.DataFrame
    edges: pd.DataFrame | None
    latents: pd.DataFrame


def find_circuits(cfg: CircuitsConfig) -> Found:
    """Finds and judges a task's circuits at every budget and writes them to ``cfg.out``.

    Leaves ``nodes.csv`` (a row per budget and node that contributes a hundredth of everything or
    more), ``curve.csv`` (:func:`circuit_curve`, an ``sae`` column first), ``areas.csv``,
    ``nesting.csv``, ``latents.csv`` (what the latents fire on and promote), ``edges.csv`` with
    several sites, ``curve.png``, ``graph.png`` and ``run.json``.

    Raises:
        ValueError: if the model cannot do the task, before time is spent on it, or for SAEs,
            budgets, tasks and pairs that do not fit.
    """
    started = time.perf_counter()
    plan = Plan.of(cfg)
    model, finding, judging = plan.model, plan.finding, plan.judging
    found, curves = {}, []
    for label, mine in plan.dictionaries.items():
        print(f"Circuits of {label}.")
        found[label] = attribute_budgets(
            model,
            mine,
            finding.clean,
            finding.metric,
            plan.budgets[label],
            finding.corrupt,
            steps=cfg.steps,
        )
        curve = circuit_curve(
            model,
            mine,
            found[label],
            judging.clean,
            judging.metric,
            judging.corrupt,
            sizes=plan.sizes,
            replace=cfg.replace,
            errors=cfg.errors,
        )
        curves.append(curve.assign(sae=label))
    curve, saes = by_sae(curves), plan.dictionaries[OURS]
    nodes = shown_nodes(found[OURS], finding, model.tokenizer)
    facts = {
        "task": finding.name,
        "model": cfg.model or model_name_of(saes[0]),
        "accuracy": plan.accuracy,
        "finding": len(finding),
        "judging": len(judging),
        "tokens": token_texts(finding, model.tokenizer),
        "answer": [
            model.tokenizer.decode([int(word[0])]) for word in (finding.right, finding.wrong)
        ],
        "settings": asdict(cfg),
        "hsae_lens": __version__,
        "torch": torch.__version__,
    }
    result = Found(
        facts,
        nodes,
        curve,
        areas(curve),
        nesting(found[OURS], SHARE),
        _edges(model, saes, nodes, found[OURS].budgets[0], finding),
        _described(saes, model, nodes),
    )
    facts["seconds"] = round(time.perf_counter() - started)
    _write(result, Path(cfg.out))
    return result


def shown_nodes(
    attribution: Attribution, task: TokenizedTask, tokenizer: Any, share: float = SHARE
) -> pd.DataFrame:
    """At each budget the nodes that contribute ``share`` of everything or more.

    Returns:
        Columns ``k``, ``site``, ``position``, ``token`` (of the first pair), ``latent`` (-1: the
        error node), ``effect``, ``share`` (of everything) and ``first_k``, the smallest budget at
        which the node is shown.
    """
    tables, texts = [], token_texts(task, tokenizer)
    for k in attribution.budgets:
        nodes = attribution.nodes(k)
        nodes = nodes.assign(k=k, share=nodes["effect"] / nodes["effect"].sum())
        tables.append(nodes[nodes["share"].abs() >= share])
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


def _edges(
    model: Any, saes: list[SAE[Any]], nodes: pd.DataFrame, k: int, task: TokenizedTask
) -> pd.DataFrame | None:
    """Edges of the smallest budget's circuit, which is small enough to draw."""
    if len(saes) < 2:
        return None
    return latent_edges(
        model, saes, nodes[nodes["k"] == k], k, task.clean, task.metric, task.corrupt
    )


def _described(saes: list[SAE[Any]], model: Any, nodes: pd.DataFrame) -> pd.DataFrame:
    """What each shown latent fires on in CPython's reference, and which tokens it promotes."""
    tables = []
    for sae in saes:
        name = sae.cfg.metadata.hook_name
        latents = nodes.loc[(nodes["site"] == name) & (nodes["latent"] != ERROR), "latent"]
        if isinstance(sae, HierarchicalTopKSAE):
            context = sae.cfg.metadata.context_size
            tokens, _ = sample_tokens(None, model.tokenizer, context, 4096)
            table = describe_latents(sae, model, tokens, latents.unique().tolist())
            tables.append(table.assign(site=name))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _write(found: Found, out: Path) -> None:
    for name in OUTPUTS:  # of an earlier run: a folder must not mix them
        (out / name).unlink(missing_ok=True)
    for name in ("nodes", "curve", "areas", "nesting", "edges", "latents"):
        table = getattr(found, name)
        if table is not None:
            write_csv(table, out / f"{name}.csv")
    write_json(found.facts, out / "run.json")
    plot_curves(found.curve, out / "curve.png")
    words = found.facts["tokens"], found.facts["answer"]
    plot_circuit(found.nodes, *words, out / "graph.png", found.edges)
