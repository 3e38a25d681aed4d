"""``hsae circuits``: a task's circuit at every budget, in a folder of tables and pictures."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from hsae_lens._util.atomic_files import replacing_files, write_json
from hsae_lens._util.columns import stamp
from hsae_lens._util.tables import by_sae, write_csv
from hsae_lens._util.version import __version__
from hsae_lens.circuits.attribution import Attribution, attribute_budgets
from hsae_lens.circuits.config import CircuitsConfig
from hsae_lens.circuits.curve import check_area, circuit_curve
from hsae_lens.circuits.edges import latent_edges
from hsae_lens.circuits.inputs import OURS, CircuitsInputs, open_circuit_inputs
from hsae_lens.circuits.metrics import areas, nesting
from hsae_lens.circuits.page import write_circuits
from hsae_lens.circuits.plots import plot_circuit, plot_curves
from hsae_lens.circuits.result import SHARE, CircuitsResult, shown_nodes, token_texts
from hsae_lens.circuits.sites import ERROR
from hsae_lens.evaluation.latents.describe import describe_latents
from hsae_lens.models.devices import dtype_name
from hsae_lens.models.opening import model_name_of
from hsae_lens.models.tokenizing import sample_tokens
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

logger = logging.getLogger(__name__)

CIRCUIT_TABLES = ("nodes", "curve", "areas", "nesting", "edges", "latents")
"""Those of a :class:`CircuitsResult`, each a CSV of its name."""

DRAWINGS: dict[str, Callable[[CircuitsResult, Path], Any]] = {
    "curve.png": lambda result, path: plot_curves(result.curve, path),
    "graph.png": lambda result, path: plot_circuit(
        result.nodes, result.facts["tokens"], result.facts["answer"], path, result.edges
    ),
    "circuits.html": write_circuits,
}
"""What draws each picture and the page."""

CIRCUIT_FILES = (*(f"{table}.csv" for table in CIRCUIT_TABLES), "run.json", *DRAWINGS)
"""Everything that a run may leave in its folder."""


def find_circuits(cfg: CircuitsConfig) -> CircuitsResult:
    """Finds a task's circuits at every budget, draws their curves, writes both to ``cfg.out``.

    Leaves ``nodes.csv`` (a row per budget and node that contributes a hundredth of everything or
    more), ``curve.csv`` (:func:`circuit_curve`, an ``sae`` column first), ``areas.csv``,
    ``nesting.csv``, ``latents.csv`` (what the latents fire on and promote), ``edges.csv`` with
    several sites, ``run.json``, ``curve.png``, ``graph.png`` and ``circuits.html``. Mean budgets
    and error targets are further curves, under labels of their own; nodes, nesting and edges are of
    the fixed budgets. All replace an earlier run's at the end: what is refused or interrupted
    leaves the folder as it was.

    Raises:
        ValueError: if the model cannot do the task, before time is spent on it, for SAEs, budgets,
            tasks and pairs that do not fit, or at the end if something could not be drawn: the
            tables are there then.
    """
    started = time.perf_counter()
    inputs = open_circuit_inputs(cfg)
    attributions = _attributions(inputs, cfg)
    ours = attributions[OURS]
    # The curves take most of the time: what else could fail comes before them.
    check_area(list(attributions.values()), cfg.sizes, cfg.errors)
    nodes = shown_nodes(ours, inputs.finding, inputs.model.tokenizer)
    edges = _edges(inputs, nodes, ours)
    latents = _described(inputs, nodes)
    curve = _held_out_curves(inputs, attributions, cfg)
    facts = _facts(inputs, cfg, time.perf_counter() - started)
    result = CircuitsResult(facts, nodes, curve, areas(curve), nesting(ours, SHARE), edges, latents)
    _write(result, Path(cfg.out))
    return result


def _attributions(inputs: CircuitsInputs, cfg: CircuitsConfig) -> dict[str, Attribution]:
    """By label, contributions on the pairs that circuits are found on."""
    attributions: dict[str, Attribution] = {}
    for label, saes in inputs.dictionaries.items():
        if label in attributions:
            continue
        logger.info("Attributing to %s.", label)
        # One pass serves all the labels that the same SAEs have, one for each rule of budgets.
        labels = [other for other, some in inputs.dictionaries.items() if some == saes]
        budgets = [budget for other in labels for budget in inputs.budgets[other]]
        found = attribute_budgets(
            inputs.model, saes, inputs.finding, budgets, replace=cfg.replace, steps=cfg.steps
        )
        attributions |= {
            other: dataclasses.replace(found, budgets=inputs.budgets[other]) for other in labels
        }
    return attributions


def _held_out_curves(
    inputs: CircuitsInputs, attributions: dict[str, Attribution], cfg: CircuitsConfig
) -> pd.DataFrame:
    """:func:`circuit_curve` of each label on the held-out pairs, in one table."""
    curves = []
    for label, saes in inputs.dictionaries.items():
        logger.info("Circuits of %s.", label)
        curve = circuit_curve(
            inputs.model,
            saes,
            attributions[label],
            inputs.held_out,
            sizes=cfg.sizes,
            replace=cfg.replace,
            errors=cfg.errors,
        )
        curves.append(curve.assign(sae=label))
    return by_sae(curves)


def _edges(
    inputs: CircuitsInputs, nodes: pd.DataFrame, attribution: Attribution
) -> pd.DataFrame | None:
    """Edges of the smallest budget's circuit, small enough to draw; None for a single site."""
    saes, k = inputs.dictionaries[OURS], attribution.budgets[0]
    if len(saes) < 2:
        return None
    mine = nodes[nodes["k"] == k]
    return latent_edges(inputs.model, saes, mine, k, inputs.finding, replace=attribution.replace)


def _described(inputs: CircuitsInputs, nodes: pd.DataFrame) -> pd.DataFrame:
    """What each shown latent fires on in CPython's reference, and which tokens it promotes."""
    tables, model = [], inputs.model
    for sae in inputs.dictionaries[OURS]:
        name = sae.cfg.metadata.hook_name
        latents = nodes.loc[(nodes["site"] == name) & (nodes["latent"] != ERROR), "latent"]
        if isinstance(sae, HierarchicalTopKSAE):
            context = sae.cfg.metadata.context_size
            tokens, _ = sample_tokens(None, model.tokenizer, context, 4096)
            table = describe_latents(sae, model, tokens, latents.unique().tolist())
            tables.append(table.assign(site=name))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _facts(inputs: CircuitsInputs, cfg: CircuitsConfig, seconds: float) -> dict[str, Any]:
    """What ``run.json`` says: what the tables are about, and how they were made."""
    finding, tokenizer = inputs.finding, inputs.model.tokenizer
    return {
        "task": finding.name,
        "model": cfg.model or model_name_of(inputs.dictionaries[OURS][0]),
        "dtype": dtype_name(next(inputs.model.parameters()).dtype),
        "accuracy": inputs.accuracy,
        "finding": len(finding),
        "judging": len(inputs.held_out),
        "tokens": token_texts(finding, tokenizer),
        "answer": [tokenizer.decode([int(word[0])]) for word in (finding.right, finding.wrong)],
        "settings": dataclasses.asdict(cfg),
        "definitions": stamp("circuits"),
        "hsae_lens": __version__,
        "torch": torch.__version__,
        "seconds": round(seconds),
    }


def _write(result: CircuitsResult, out: Path) -> None:
    """Tables, pictures and the page, all at once in the place of an earlier run's.

    Raises:
        ValueError: after that, if a picture or the page could not be drawn.
    """
    with replacing_files(out, CIRCUIT_FILES) as fresh:
        for name in CIRCUIT_TABLES:
            table = getattr(result, name)
            if table is not None:
                write_csv(table, fresh / f"{name}.csv")
        write_json(result.facts, fresh / "run.json")
        failed = _draw(result, fresh)
    if failed:
        raise ValueError(f"The tables are in {out}, but could not be drawn: {'; '.join(failed)}.")


def _draw(result: CircuitsResult, out: Path) -> list[str]:
    """Draws what it can; returns which files are missing, and why."""
    failed = []
    for name, draw in DRAWINGS.items():
        try:
            draw(result, out / name)
        except Exception as error:  # whatever it is, the tables took the time and must not be lost
            reason = " ".join(str(error).split())
            failed.append(f"{name} ({type(error).__name__}: {reason})")
    return failed
