"""What is added to a run of ``hsae eval`` afterwards: each writes a table that the report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from hsae_lens.evaluation.autointerp.excerpts import LatentExamples, latent_examples
from hsae_lens.evaluation.autointerp.judges import CachedJudge, Judge
from hsae_lens.evaluation.autointerp.scoring import asking_cost, score_latents
from hsae_lens.evaluation.inputs import EvalInputs, open_inputs
from hsae_lens.evaluation.latents.describe import describe_latents
from hsae_lens.evaluation.run_folder import RunFolder
from hsae_lens.evaluation.suites.absorption import feature_absorption
from hsae_lens.evaluation.suites.probing import DATASETS, sparse_probing


def add_probing(folder: str | Path, datasets: Sequence[str] = DATASETS) -> pd.DataFrame:
    """Adds ``probing.csv`` (:func:`sparse_probing`, a ``sae`` column first) to a run's folder."""
    run = RunFolder(folder)
    opened = _opened(run)
    model, work = opened.model, run.work("probing")
    tables = {
        name: sparse_probing(sae, model, work, datasets, opened.budgets[name])
        for name, sae in opened.hierarchical().items()
    }
    return run.add("probing", tables)


def add_absorption(folder: str | Path, words: int = 100) -> pd.DataFrame:
    """Adds ``absorption.csv`` (:func:`feature_absorption`, a ``sae`` column first) to a run."""
    run = RunFolder(folder)
    opened = _opened(run)
    model, work = opened.model, run.work("absorption")
    tables = {
        name: feature_absorption(sae, model, work, opened.budgets[name], words)
        for name, sae in opened.hierarchical().items()
    }
    return run.add("absorption", tables)


def add_autointerp(folder: str | Path, judge: Judge, per_bin: int = 10) -> pd.DataFrame:
    """Adds ``interpretation.csv`` (:func:`score_latents`, :func:`describe_latents`) to a run.

    The judge's answers are kept in ``judge.jsonl``: an interrupted call goes on from there.
    """
    run = RunFolder(folder)
    opened, cached = _opened(run), CachedJudge(judge, run.answers)
    tables = {}
    for name, examples in _latent_examples(opened, per_bin).items():
        latents = sorted({example.latent for example in examples})
        facts = describe_latents(opened.hierarchical()[name], opened.model, opened.tokens, latents)
        tables[name] = score_latents(examples, cached).merge(facts, on="latent")
    return run.add("interpretation", tables)


def autointerp_cost(folder: str | Path, judge: Judge, per_bin: int = 10) -> dict[str, int]:
    """How many ``prompts`` and ``tokens`` :func:`add_autointerp` would send; sends none.

    What this judge has answered already is not counted.
    """
    run = RunFolder(folder)
    opened, cached = _opened(run), CachedJudge(judge, run.answers)
    examples = _latent_examples(opened, per_bin).values()
    return asking_cost([e for some in examples for e in some], opened.model.tokenizer, cached.known)


def _opened(run: RunFolder) -> EvalInputs:
    """What the run worked on, but its own metrics: nothing of theirs is added."""
    return open_inputs(replace(run.config(), metrics=[]))


def _latent_examples(opened: EvalInputs, per_bin: int) -> dict[str, list[LatentExamples]]:
    return {
        name: latent_examples(sae, opened.model, opened.tokens, per_bin)
        for name, sae in opened.hierarchical().items()
    }
