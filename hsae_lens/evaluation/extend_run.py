"""What is added to a run of ``hsae eval`` afterwards: each writes a table that the report shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hsae_lens.evaluation.autointerp.excerpts import LatentExamples, latent_examples
from hsae_lens.evaluation.autointerp.judges import CachedJudge, Judge
from hsae_lens.evaluation.autointerp.scoring import asking_cost, score_latents
from hsae_lens.evaluation.inputs import EvalInputs
from hsae_lens.evaluation.latents.describe import describe_latents
from hsae_lens.evaluation.run import keep_table
from hsae_lens.evaluation.run_folder import run_config, stamp_run
from hsae_lens.evaluation.suites.absorption import absorption
from hsae_lens.evaluation.suites.probing import DATASETS, sparse_probing


def add_probing(run: str | Path, datasets: Sequence[str] = DATASETS) -> pd.DataFrame:
    """Adds ``probing.csv`` (:func:`sparse_probing`, a ``sae`` column first) to a run's folder."""
    run, opened = Path(run), EvalInputs.by(run_config(run))
    tables = [
        sparse_probing(sae, opened.model, run / "probing", datasets, opened.budgets).assign(
            sae=name
        )
        for name, sae in opened.hierarchical().items()
    ]
    return _added(tables, run, "probing")


def add_autointerp(run: str | Path, judge: Judge, per_bin: int = 10) -> pd.DataFrame:
    """Adds ``interpretation.csv`` (:func:`interpret`) to a run's folder.

    The judge's answers are kept in ``judge.jsonl``: an interrupted call goes on from there.
    """
    run, opened = Path(run), EvalInputs.by(run_config(run))
    cached = CachedJudge(judge, run / "judge.jsonl")
    tables = []
    for name, examples in _latent_examples(opened, per_bin).items():
        latents = sorted({example.latent for example in examples})
        facts = describe_latents(opened.hierarchical()[name], opened.model, opened.tokens, latents)
        table = score_latents(examples, cached)
        tables.append(table.merge(facts, on="latent").assign(sae=name))
    return _added(tables, Path(run), "interpretation")


def autointerp_cost(run: str | Path, judge: Judge, per_bin: int = 10) -> dict[str, int]:
    """How many ``prompts`` and ``tokens`` :func:`add_interpretation` would send; sends none.

    What this judge has answered already is not counted.
    """
    opened, cached = EvalInputs.by(run_config(run)), CachedJudge(judge, Path(run) / "judge.jsonl")
    examples = _latent_examples(opened, per_bin).values()
    return asking_cost([e for some in examples for e in some], opened.model.tokenizer, cached.known)


def _latent_examples(opened: EvalInputs, per_bin: int) -> dict[str, list[LatentExamples]]:
    return {
        name: latent_examples(sae, opened.model, opened.tokens, per_bin)
        for name, sae in opened.hierarchical().items()
    }


def add_absorption(run: str | Path, words: int = 100) -> pd.DataFrame:
    """Adds ``absorption.csv`` (:func:`absorption`, a ``sae`` column first) to a run's folder."""
    run, opened = Path(run), EvalInputs.by(run_config(run))
    tables = [
        absorption(sae, opened.model, run / "absorption", opened.budgets, words).assign(sae=name)
        for name, sae in opened.hierarchical().items()
    ]
    return _added(tables, run, "absorption")


def _added(tables: Sequence[pd.DataFrame], run: Path, name: str) -> pd.DataFrame:
    table = keep_table(tables, run / f"{name}.csv")
    stamp_run(run, name)
    return table
