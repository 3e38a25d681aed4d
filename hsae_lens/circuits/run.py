"""``hsae circuits``: a task's circuit at every budget, in a folder of tables and pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE

from hsae_lens._util.atomic_files import replacing_files, write_json
from hsae_lens._util.columns import stamp
from hsae_lens._util.tables import by_sae, write_csv
from hsae_lens._util.version import __version__
from hsae_lens.circuits.attribution import Attribution, attribute_budgets
from hsae_lens.circuits.curve import areas, check_area, circuit_curve, nesting
from hsae_lens.circuits.edges import latent_edges
from hsae_lens.circuits.plan import OURS, CircuitsConfig, CircuitsPlan
from hsae_lens.circuits.plots import plot_circuit, plot_curves
from hsae_lens.circuits.sites import ERROR, model_order
from hsae_lens.evaluation.latents.describe import describe_latents
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.devices import dtype_name
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.opening import model_name_of
from hsae_lens.models.tokens import sample_tokens
from hsae_lens.sae.inference import HierarchicalTopKSAE

SHARE = 0.01  # a node is shown if it contributes at least this much of everything

CIRCUIT_FILES = ("nodes.csv", "curve.csv", "areas.csv", "nesting.csv", "edges.csv", "latents.csv",
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


Page = Callable[[Found, Path], Any]
"""Writes a run's page to a path, as :func:`hsae_lens.circuits.page.write_circuits` does."""


def find_circuits(cfg: CircuitsConfig, page: Page | None = None) -> Found:
    """Finds and judges a task's circuits at every budget and writes them to ``cfg.out``.

    Leaves ``nodes.csv`` (a row per budget and node that contributes a hundredth of everything or
    more), ``curve.csv`` (:func:`circuit_curve`, an ``sae`` column first), ``areas.csv``,
    ``nesting.csv``, ``latents.csv`` (what the latents fire on and promote), ``edges.csv`` with
    several sites, ``curve.png``, ``graph.png``, ``run.json`` and, with ``page``,
    ``circuits.html``. They replace an earlier run's at the end: what is refused or interrupted
    leaves the folder as it was.

    Raises:
        ValueError: if the model cannot do the task, before time is spent on it, for SAEs, budgets,
            tasks and pairs that do not fit, or at the end if something could not be drawn: the
            tables are there then.
    """
    started = time.perf_counter()
    plan = CircuitsPlan.of(cfg)
    model, finding, saes = plan.model, plan.finding, plan.dictionaries[OURS]
    found = {}
    for label, mine in plan.dictionaries.items():
        print(f"Attributing to {label}.")
        found[label] = attribute_budgets(
            model,
            mine,
            finding.clean,
            finding.metric,
            plan.budgets[label],
            finding.corrupt,
            replace=cfg.replace,
            steps=cfg.steps,
        )
    # The judging takes most of the time: what else could fail comes before it.
    check_area(list(found.values()), cfg.sizes, cfg.errors)
    nodes = shown_nodes(found[OURS], finding, model.tokenizer)
    edges = _edges(plan, nodes, found[OURS])
    latents = _described(saes, model, nodes)
    curve = _judged(plan, found, cfg)
    facts = {
        "task": finding.name,
        "model": cfg.model or model_name_of(saes[0]),
        "dtype": dtype_name(next(model.parameters()).dtype),
        "accuracy": plan.accuracy,
        "finding": len(finding),
        "judging": len(plan.judging),
        "tokens": token_texts(finding, model.tokenizer),
        "answer": [
            model.tokenizer.decode([int(word[0])]) for word in (finding.right, finding.wrong)
        ],
        "settings": asdict(cfg),
        "definitions": stamp("circuits"),
        "hsae_lens": __version__,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started),
    }
    shared = nesting(found[OURS], SHARE)
    result = Found(facts, nodes, curve, areas(curve), shared, edges, latents)
    _write(result, Path(cfg.out), page)
    return result


def _judged(plan: CircuitsPlan, found: dict[str, Attribution], cfg: CircuitsConfig) -> pd.DataFrame:
    """:func:`circuit_curve` of each SAE on the pairs that have not found its circuits."""
    judging, curves = plan.judging, []
    for label, mine in plan.dictionaries.items():
        print(f"Circuits of {label}.")
        curve = circuit_curve(
            plan.model,
            mine,
            found[label],
            judging.clean,
            judging.metric,
            judging.corrupt,
            sizes=cfg.sizes,
            replace=cfg.replace,
            errors=cfg.errors,
        )
        curves.append(curve.assign(sae=label))
    return by_sae(curves)


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


def _edges(
    plan: CircuitsPlan, nodes: pd.DataFrame, attribution: Attribution
) -> pd.DataFrame | None:
    """Edges of the smallest budget's circuit, which is small enough to draw."""
    saes, task, k = plan.dictionaries[OURS], plan.finding, attribution.budgets[0]
    if len(saes) < 2:
        return None
    return latent_edges(
        plan.model,
        saes,
        nodes[nodes["k"] == k],
        k,
        task.clean,
        task.metric,
        task.corrupt,
        replace=attribution.replace,
    )


def _described(saes: list[SAE[Any]], model: HookedModel, nodes: pd.DataFrame) -> pd.DataFrame:
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


def _write(found: Found, out: Path, page: Page | None) -> None:
    """Tables, pictures and the page, all at once in the place of an earlier run's.

    Raises:
        ValueError: after that, if a picture or the page could not be drawn.
    """
    with replacing_files(out, CIRCUIT_FILES) as fresh:
        for name in ("nodes", "curve", "areas", "nesting", "edges", "latents"):
            table = getattr(found, name)
            if table is not None:
                write_csv(table, fresh / f"{name}.csv")
        write_json(found.facts, fresh / "run.json")
        failed = _draw(found, fresh, page)
    if failed:
        raise ValueError(f"The tables are in {out}, but could not be drawn: {'; '.join(failed)}.")


def _draw(found: Found, out: Path, page: Page | None) -> list[str]:
    """Draws what it can; which files are missing, and why."""
    words = found.facts["tokens"], found.facts["answer"]
    drawings: dict[str, Callable[[Path], Any]] = {
        "curve.png": lambda path: plot_curves(found.curve, path),
        "graph.png": lambda path: plot_circuit(found.nodes, *words, path, found.edges),
    }
    if page is not None:
        drawings["circuits.html"] = lambda path: page(found, path)
    failed = []
    for name, draw in drawings.items():
        try:
            draw(out / name)
        except Exception as error:  # whatever it is, the tables took the time and must not be lost
            reason = " ".join(str(error).split())
            failed.append(f"{name} ({type(error).__name__}: {reason})")
    return failed
