"""``hsae eval``: SAEs judged on the same tokens, in a folder that ``hsae report`` reads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
import torch
from sae_lens.constants import SAE_WEIGHTS_FILENAME

from hsae_lens._util.atomic_files import replacing_files, write_json
from hsae_lens._util.columns import stamp
from hsae_lens._util.tables import by_sae
from hsae_lens._util.version import __version__
from hsae_lens.evaluation.config import EvalConfig
from hsae_lens.evaluation.frontier.adaptive import adaptive_frontier
from hsae_lens.evaluation.frontier.errors import explained_variance_curve
from hsae_lens.evaluation.frontier.evaluate import evaluate_saes
from hsae_lens.evaluation.frontier.metrics import FEWEST_GROUPS
from hsae_lens.evaluation.inputs import EvalInputs, open_inputs
from hsae_lens.evaluation.latents.walkthrough import token_walkthroughs
from hsae_lens.evaluation.plots import plot_frontier
from hsae_lens.evaluation.run_folder import TABLES, RunFolder
from hsae_lens.evaluation.stability import contribution_stability, noise_stability
from hsae_lens.evaluation.tasks.builtin import TASKS, make_task
from hsae_lens.evaluation.tasks.evaluate import evaluate_tasks
from hsae_lens.models.devices import dtype_name
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.releases.opening import folder_of
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

logger = logging.getLogger(__name__)

ERROR_TARGETS = (0.3, 0.2, 0.1)  # unexplained shares, for budgets that differ from token to token


def run_eval(cfg: EvalConfig) -> pd.DataFrame:
    """Evaluates every SAE and, if the first is hierarchical, a random control; writes ``out``.

    Every SAE is judged on the same tokens: the positions and norms that the first one was trained
    on. Text is taken evenly from all of the documents.

    Leaves what :data:`STEPS` and, of a hierarchical SAE, :data:`STEPS_OF_THE_ORDER` make,
    ``frontier.png`` and ``run.json`` (how all this was made) in a
    :class:`RunFolder`. They appear together at the end: what is refused or interrupted leaves
    ``out`` as it was, and what an earlier evaluation left beside these is set aside
    (:func:`replacing_files`).

    Returns:
        The frontier: a row per SAE and budget, :func:`evaluate_budgets`' columns.

    Raises:
        ValueError: for settings or SAEs that cannot be judged (together), before any work.
        FileNotFoundError: if there is no such SAE or text.
    """
    started = time.perf_counter()
    opened = open_inputs(cfg)
    logger.info("Evaluating %s on %s tokens.", ", ".join(opened.saes), f"{opened.tokens.numel():,}")
    with replacing_files(cfg.out, RunFolder(cfg.out).owned) as fresh:
        run = RunFolder(fresh)
        made = {name: make(opened) for name, make in STEPS.items()}
        if (sae := opened.hierarchical().get(opened.about)) is not None:
            made |= {name: make(opened, sae) for name, make in STEPS_OF_THE_ORDER.items()}
        for name, content in made.items():
            if content is not None:
                run.write(name, content)
        plot_frontier(made["frontier"], run.picture, f"{opened.hook_name} of {opened.model_name}")
        write_json(_facts(opened, time.perf_counter() - started), run.facts)
    return made["frontier"]


def _frontier(opened: EvalInputs) -> pd.DataFrame:
    n_documents, bootstrap = len(opened.documents.unique()), opened.cfg.bootstrap
    if bootstrap and n_documents < FEWEST_GROUPS:
        logger.warning(
            "Left out: standard errors, which are over documents. The text has %d here and they "
            "need %d: give a folder of files, or a row for each document (JSONL, parquet).",
            n_documents,
            FEWEST_GROUPS,
        )
        bootstrap = 0
    return evaluate_saes(
        opened.saes,
        opened.model,
        opened.tokens,
        opened.budgets,
        bootstrap=bootstrap,
        documents=opened.documents,
        metrics=opened.metrics,
        batch_size=opened.cfg.batch_size or None,
    )


def _tasks(opened: EvalInputs) -> pd.DataFrame | None:
    """Every task that can be posed here, for each SAE; the others are said."""
    cfg, mask, tables = opened.cfg, TokenMask.from_sae(opened.first, opened.model), []
    for name in TASKS if cfg.tasks else ():
        try:
            task = make_task(name, opened.model.tokenizer, cfg.tasks)
            for label, sae in opened.saes.items():
                table = evaluate_tasks(
                    sae,
                    opened.model,
                    [task],
                    opened.budgets[label],
                    mask=mask,
                    batch_size=cfg.batch_size or None,
                )
                tables.append(table.assign(sae=label))
        except ValueError as error:
            logger.warning("Left out: %s", error)
    return by_sae(tables) if tables else None


def _curve(opened: EvalInputs, sae: HierarchicalTopKSAE) -> pd.DataFrame:
    return explained_variance_curve(sae, opened.activations, errors=opened.errors)


def _adaptive(opened: EvalInputs, sae: HierarchicalTopKSAE) -> pd.DataFrame:
    return adaptive_frontier(
        sae, opened.activations, error_targets=ERROR_TARGETS, errors=opened.errors
    )


def _stability(opened: EvalInputs, sae: HierarchicalTopKSAE) -> pd.DataFrame:
    return noise_stability(sae, opened.activations)


def _contributions(opened: EvalInputs, sae: HierarchicalTopKSAE) -> pd.DataFrame | None:
    documents = opened.documents[opened.sequences]
    try:
        return contribution_stability(sae, opened.activations, documents, opened.errors)
    except ValueError as error:  # too little text for two halves: the rest stands
        logger.warning("Left out: %s", error)
        return None


def _examples(opened: EvalInputs, sae: HierarchicalTopKSAE) -> list[dict[str, Any]]:
    tokens = opened.tokens[: opened.cfg.examples, :64]
    return token_walkthroughs(sae, opened.model, tokens)


STEPS: Mapping[str, Callable[[EvalInputs], Any]] = {
    "frontier": _frontier,
    "tasks": _tasks,
}
"""What makes each table of any SAEs, or None where it cannot be, in the order in which they run."""

STEPS_OF_THE_ORDER: Mapping[str, Callable[[EvalInputs, HierarchicalTopKSAE], Any]] = {
    "curve": _curve,
    "adaptive": _adaptive,
    "stability": _stability,
    "contributions": _contributions,
    "examples": _examples,
}
"""What is about the order of the first SAE's latents, if it is hierarchical and they have one."""


def _facts(opened: EvalInputs, seconds: float) -> dict[str, Any]:
    first, cfg = opened.first, opened.cfg
    used = next(opened.model.parameters()).dtype  # what is added later opens it in the same
    time_said = first.cfg.metadata.training_time
    return {
        "model": opened.model_name,
        "hook": opened.hook_name,
        "d_in": first.cfg.d_in,
        "d_sae": first.cfg.d_sae,
        "k": getattr(first.cfg, "k", None),
        "text": cfg.text or "CPython's language reference",
        "tokens": opened.tokens.numel(),
        "documents": len(opened.documents.unique()),
        "metrics": {name: metric.label for name, metric in opened.metrics.items()},
        "bytes": _bytes_of(opened.about),
        "training_time": time_said if isinstance(time_said, str) else None,
        "hsae_lens": __version__,
        "torch": torch.__version__,
        "seconds": round(seconds),
        "settings": asdict(replace(cfg, dtype=dtype_name(used))),
        "definitions": stamp(*(name for name, table in TABLES.items() if table.command == "eval")),
    }


def _bytes_of(sae: str) -> int | None:
    """How large the file of its weights is, where that is on this machine."""
    folder = folder_of(sae)
    file = folder / SAE_WEIGHTS_FILENAME if folder else None
    return file.stat().st_size if file and file.is_file() else None
