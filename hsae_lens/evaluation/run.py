"""``hsae eval``: SAEs judged on the same tokens, in a folder that ``hsae report`` reads."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from hsae_lens._util.atomic_files import replacing_files, write_json
from hsae_lens._util.columns import stamp
from hsae_lens._util.tables import by_sae, write_csv
from hsae_lens._util.version import __version__
from hsae_lens.evaluation.frontier.adaptive import adaptive_frontier
from hsae_lens.evaluation.frontier.evaluate import evaluate_saes
from hsae_lens.evaluation.frontier.sums import FEWEST_GROUPS
from hsae_lens.evaluation.frontier.token_errors import explained_variance_curve, token_errors
from hsae_lens.evaluation.inputs import EvalConfig, EvalInputs
from hsae_lens.evaluation.latents.walkthrough import token_walkthroughs
from hsae_lens.evaluation.plots import plot_frontier
from hsae_lens.evaluation.stability import contribution_stability, noise_stability
from hsae_lens.evaluation.tasks.behaviour import evaluate_tasks
from hsae_lens.evaluation.tasks.templates import TASKS, make_task
from hsae_lens.models.devices import dtype_name
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.sae.inference import HierarchicalTopKSAE

logger = logging.getLogger(__name__)

EVAL_FILES = ("run.json", "frontier.csv", "frontier.png", "tasks.csv", "curve.csv", "adaptive.csv",
           "stability.csv", "contributions.csv", "examples.json", "probing.csv",
           "interpretation.csv", "absorption.csv")  # fmt: skip


def run_eval(cfg: EvalConfig) -> pd.DataFrame:
    """Evaluates every SAE and, if the first is hierarchical, a random control; writes ``out``.

    Every SAE is judged on the same tokens: the positions and norms that the first one was trained
    on. Text is taken evenly from all of the documents.

    Leaves ``frontier.csv`` (a row per SAE and budget, :func:`evaluate_budgets`' columns),
    ``frontier.png``, ``tasks.csv`` (:func:`evaluate_tasks`), ``run.json`` (how all this was made)
    and, of the first SAE if it is hierarchical, ``curve.csv``, ``adaptive.csv``,
    ``stability.csv``, ``contributions.csv`` and ``examples.json``. They appear together at the end:
    what is refused or interrupted leaves ``out`` as it was, and what an earlier evaluation left
    beside these is set aside (:func:`replacing_files`).

    Raises:
        ValueError: for settings or SAEs that cannot be judged (together), before any work.
        FileNotFoundError: if there is no such SAE or text.
    """
    started = time.perf_counter()
    opened = EvalInputs.by(cfg)
    with replacing_files(cfg.out, EVAL_FILES) as fresh:
        frontier = _frontier(opened, cfg)
        write_csv(frontier, fresh / "frontier.csv")
        title = f"{opened.hook_name} of {opened.model_name}"
        plot_frontier(frontier, fresh / "frontier.png", title)
        if solved := _tasks(opened, cfg):
            keep_table(solved, fresh / "tasks.csv")
        if isinstance(opened.first, HierarchicalTopKSAE):
            _write_order(opened, opened.first, fresh)
            examples = opened.tokens[: cfg.examples, :64]
            write_json(
                token_walkthroughs(opened.first, opened.model, examples), fresh / "examples.json"
            )
        seconds = time.perf_counter() - started
        write_json(_facts(opened, cfg, seconds), fresh / "run.json")
    print(f"Wrote {cfg.out} in {seconds:.0f} s.")
    return frontier


def _frontier(opened: EvalInputs, cfg: EvalConfig) -> pd.DataFrame:
    n_documents, bootstrap = len(opened.documents.unique()), cfg.bootstrap
    if bootstrap and n_documents < FEWEST_GROUPS:
        logger.warning(
            "Left out: standard errors, which are over documents. The text has %d here and they "
            "need %d: give a folder of files, or a row for each document (JSONL, parquet).",
            n_documents,
            FEWEST_GROUPS,
        )
        bootstrap = 0
    print(f"Evaluating {', '.join(opened.saes)} on {opened.tokens.numel():,} tokens.")
    return evaluate_saes(
        opened.saes,
        opened.model,
        opened.tokens,
        opened.budgets,
        bootstrap=bootstrap,
        documents=opened.documents,
        batch_size=cfg.batch_size or None,
    )


def _tasks(opened: EvalInputs, cfg: EvalConfig) -> list[pd.DataFrame]:
    """Every task that can be posed here, for each SAE; the others are said."""
    mask, tables = TokenMask.from_sae(opened.first, opened.model), []
    for name in TASKS if cfg.tasks else ():
        try:
            task = make_task(name, opened.model.tokenizer, cfg.tasks)
            for label, sae in opened.saes.items():
                table = evaluate_tasks(
                    sae,
                    opened.model,
                    [task],
                    opened.budgets,
                    mask=mask,
                    batch_size=cfg.batch_size or None,
                )
                tables.append(table.assign(sae=label))
        except ValueError as error:
            logger.warning("Left out: %s", error)
    return tables


def _write_order(opened: EvalInputs, sae: HierarchicalTopKSAE, folder: Path) -> None:
    """Tables about the order of a hierarchical SAE's latents."""
    x, sequences = opened.activations
    errors = token_errors(sae, x)
    targets = (0.3, 0.2, 0.1)
    write_csv(explained_variance_curve(sae, x, errors=errors), folder / "curve.csv")
    adaptive = adaptive_frontier(sae, x, error_targets=targets, errors=errors)
    write_csv(adaptive, folder / "adaptive.csv")
    write_csv(noise_stability(sae, x), folder / "stability.csv")
    try:
        worth = contribution_stability(sae, x, opened.documents[sequences], errors)
        write_csv(worth, folder / "contributions.csv")
    except ValueError as error:  # too little text for two halves: the rest stands
        logger.warning("Left out: %s", error)


def _facts(opened: EvalInputs, cfg: EvalConfig, seconds: float) -> dict[str, Any]:
    first = opened.first
    used = next(opened.model.parameters()).dtype  # what is added later opens it in the same
    return {
        "model": opened.model_name,
        "hook": opened.hook_name,
        "d_in": first.cfg.d_in,
        "d_sae": first.cfg.d_sae,
        "k": getattr(first.cfg, "k", None),
        "text": cfg.text or "CPython's language reference",
        "tokens": opened.tokens.numel(),
        "hsae_lens": __version__,
        "torch": torch.__version__,
        "seconds": round(seconds),
        "settings": asdict(replace(cfg, dtype=dtype_name(used))),
        "definitions": stamp(
            "frontier", "tasks", "curve", "adaptive", "stability", "contributions"
        ),
    }


def keep_table(tables: Sequence[pd.DataFrame], path: Path) -> pd.DataFrame:
    """Writes one table of all, the SAE's name first."""
    table = by_sae(tables)
    write_csv(table, path)
    return table
