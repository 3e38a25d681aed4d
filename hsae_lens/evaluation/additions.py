"""What is added to a run of ``hsae eval`` afterwards: each writes a table that the report shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import pandas as pd

from hsae_lens.evaluation.absorption import absorption
from hsae_lens.evaluation.definitions import stamp_run
from hsae_lens.evaluation.interpretation import LatentExamples, cost, interpret, latent_examples
from hsae_lens.evaluation.judges import CachedJudge, Judge
from hsae_lens.evaluation.latents import describe_latents
from hsae_lens.evaluation.probing import DATASETS, sparse_probing
from hsae_lens.evaluation.run import EvalConfig, Opened, keep_table


def add_probing(run: str | Path, datasets: Sequence[str] = DATASETS) -> pd.DataFrame:
    """Adds ``probing.csv`` (:func:`sparse_probing`, a ``sae`` column first) to a run's folder."""
    run, opened = Path(run), Opened.by(config_of(run))
    tables = [
        sparse_probing(sae, opened.model, run / "probing", datasets, opened.budgets).assign(
            sae=name
        )
        for name, sae in opened.hierarchical().items()
    ]
    return _added(tables, run, "probing")


def add_interpretation(run: str | Path, judge: Judge, per_bin: int = 10) -> pd.DataFrame:
    """Adds ``interpretation.csv`` (:func:`interpret`) to a run's folder.

    The judge's answers are kept in ``judge.jsonl``: an interrupted call goes on from there.
    """
    run, opened = Path(run), Opened.by(config_of(run))
    cached = CachedJudge(judge, run / "judge.jsonl")
    tables = []
    for name, examples in _latent_examples(opened, per_bin).items():
        latents = sorted({example.latent for example in examples})
        facts = describe_latents(opened.hierarchical()[name], opened.model, opened.tokens, latents)
        table = interpret(examples, cached)
        tables.append(table.merge(facts, on="latent").assign(sae=name))
    return _added(tables, Path(run), "interpretation")


def interpretation_cost(run: str | Path, judge: Judge, per_bin: int = 10) -> dict[str, int]:
    """How many ``prompts`` and ``tokens`` :func:`add_interpretation` would send; sends none.

    What this judge has answered already is not counted.
    """
    opened, cached = Opened.by(config_of(run)), CachedJudge(judge, Path(run) / "judge.jsonl")
    examples = _latent_examples(opened, per_bin).values()
    return cost([e for some in examples for e in some], opened.model.tokenizer, cached.known)


def _latent_examples(opened: Opened, per_bin: int) -> dict[str, list[LatentExamples]]:
    return {
        name: latent_examples(sae, opened.model, opened.tokens, per_bin)
        for name, sae in opened.hierarchical().items()
    }


def add_absorption(run: str | Path, words: int = 100) -> pd.DataFrame:
    """Adds ``absorption.csv`` (:func:`absorption`, a ``sae`` column first) to a run's folder."""
    run, opened = Path(run), Opened.by(config_of(run))
    tables = [
        absorption(sae, opened.model, run / "absorption", opened.budgets, words).assign(sae=name)
        for name, sae in opened.hierarchical().items()
    ]
    return _added(tables, run, "absorption")


def _added(tables: Sequence[pd.DataFrame], run: Path, name: str) -> pd.DataFrame:
    table = keep_table(tables, run / f"{name}.csv")
    stamp_run(run, name)
    return table


def config_of(run: str | Path) -> EvalConfig:
    """How a run's folder was made.

    Raises:
        FileNotFoundError: if `hsae eval` did not write it, or did not finish.
        ValueError: if its ``run.json`` is damaged or another version's.
    """
    facts = Path(run) / "run.json"
    if missing := [n for n in (facts.name, "frontier.csv") if not (Path(run) / n).exists()]:
        raise FileNotFoundError(
            f"{run} has no {' and no '.join(missing)}: give a folder that `hsae eval` finished."
        )
    try:
        settings = json.loads(facts.read_text(encoding="utf-8"))["settings"]
        if isinstance(settings["budgets"], str):  # an earlier version's
            settings["budgets"] = [int(k) for k in settings["budgets"].split(",")]
        cfg = EvalConfig(**settings)
        _check_types(cfg)
        return cfg
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{facts} is damaged or of another version ({error}): run `hsae eval` again."
        ) from error


def _check_types(cfg: EvalConfig) -> None:
    """Raises TypeError for a setting that is not of its field's type."""
    for name, hint in get_type_hints(EvalConfig).items():
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        value = getattr(cfg, name)
        if not isinstance(value, tuple(get_origin(kind) or kind for kind in kinds)):
            raise TypeError(f"{name} is {value!r}")
    if not all(isinstance(name, str) for name in cfg.saes):
        raise TypeError(f"saes are {cfg.saes}")
