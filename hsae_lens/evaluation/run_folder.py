"""Reads folders of ``hsae eval``, and says which file of a half-finished or damaged one is bad."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd

from hsae_lens._util.atomic_files import write_json
from hsae_lens._util.columns import stamp
from hsae_lens._util.tables import TEXT_COLUMNS, read_csv
from hsae_lens.evaluation.inputs import EvalConfig
from hsae_lens.sae.controls import RANDOM_DECODER

RUN_FACTS: Mapping[str, Any] = {
    "model": str, "hook": str, "d_in": int, "d_sae": int, "k": int | None, "text": str,
    "tokens": int, "hsae_lens": str, "torch": str, "seconds": int | float, "settings": dict,
}  # fmt: skip
"""What ``run.json`` must say; ``definitions`` may be in it too."""

LARGEST = 2**40  # nobody has as many latents or budgets

EXAMPLE = ("tokens", "judged", "explained", "latents", "budgets", "predictions")

TABLES = {
    "frontier": ("eval", ["sae", "k", "explained_variance"]),
    "tasks": ("eval", ["sae", "task", "k", "accuracy", "model_accuracy", "logit_diff", "retention",
                       "logit_retention"]),
    "curve": ("eval", ["k", "adds"]),
    "adaptive": ("eval", ["rule", "l0", "explained_variance", "fixed"]),
    "stability": ("eval", ["k", "agreement", "shuffled"]),
    "contributions": ("eval", ["latents", "rank_correlation", "shuffled"]),
    "probing": ("probe", ["sae", "dataset", "k", "probe_size", "test_auc"]),
    "interpretation": ("interpret", ["sae", "ranks", "latent", "detection", "fuzzing"]),
    "absorption": ("absorb", ["sae", "absorption", "letters", "probe_accuracy"]),
}  # fmt: skip
"""Tables that the page shows: the command that makes each, and the columns that the page reads."""


@dataclass(frozen=True)
class EvalRun:
    """What ``hsae eval`` left in a folder: its frontier and whatever other tables it wrote."""

    facts: dict[str, Any]
    frontier: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    examples: list[dict[str, Any]] | None

    @property
    def about(self) -> str:
        """The SAE that the page is about: the first one evaluated."""
        return str(self.frontier["sae"].iloc[0])

    @property
    def hierarchical(self) -> bool:
        """Whether that SAE is: a control is made for such, and only for such."""
        return RANDOM_DECODER in set(self.frontier["sae"])


def is_run(folder: str | Path) -> bool:
    """Whether ``hsae eval`` wrote this folder, all of it or not."""
    return any((Path(folder) / name).exists() for name in ("run.json", "frontier.csv"))


def read_run(folder: str | Path) -> EvalRun:
    """Reads a folder of ``hsae eval``.

    Raises:
        FileNotFoundError: if it is not one, or did not get finished.
        ValueError: if a file in it is damaged; which one, and the command that makes it again.
    """
    folder = Path(folder)
    for name in ("run.json", "frontier.csv"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder} has no {name}, so `hsae eval` did not write it or not finish it. Run "
                "`hsae eval` into it again."
            )
    tables = {
        name: _table(folder / f"{name}.csv", *about)
        for name, about in TABLES.items()
        if (folder / f"{name}.csv").exists()
    }
    examples = folder / "examples.json"
    return EvalRun(
        _facts(folder / "run.json"),
        tables["frontier"],
        tables,
        _examples(examples) if examples.exists() else None,
    )


def _table(file: Path, command: str, needed: list[str]) -> pd.DataFrame:
    try:
        table = read_csv(file)
    except ValueError as error:
        raise ValueError(f"{error} {_mend(file, command)}") from error
    if missing := [column for column in needed if column not in table]:
        raise _bad(file, f"lacks {', '.join(missing)}", command)
    if table.empty:
        raise _bad(file, "has no rows", command)
    numbers = table[[column for column in table if column not in TEXT_COLUMNS]]
    if words := [str(column) for column in numbers if table[column].dtype.kind not in "iufb"]:
        raise _bad(file, f"has words for numbers in {', '.join(words)}", command)
    along = [c for c in ("k", "l0", "probe_size") if c in needed]  # what figures are drawn along
    within = table[along].ge(0) & table[along].lt(LARGEST)
    if np.isinf(numbers).any(axis=None) or not within.all(axis=None):
        raise _bad(file, "has numbers that cannot be", command)
    if "adds" in needed and not (table["k"] > 0).any():
        raise _bad(file, "has no k above 0", command)
    return table


def _facts(file: Path) -> dict[str, Any]:
    facts = _json(file)
    if not isinstance(facts, dict):
        raise _bad(file, "is damaged (it is no table of facts)", "eval")
    wrong = [name for name, kind in RUN_FACTS.items() if not isinstance(facts.get(name), kind)]
    if wrong:
        raise _bad(file, f"is damaged (it lacks {', '.join(wrong)}, or says it wrongly)", "eval")
    stamped = facts.get("definitions", {})
    if not isinstance(stamped, dict) or not all(
        isinstance(entry, dict) and {"version", "definition"} <= set(entry)
        for entry in stamped.values()
    ):
        raise _bad(file, "is damaged (its definitions)", "eval")
    return facts


def _examples(file: Path) -> list[dict[str, Any]]:
    examples = _json(file)
    if not isinstance(examples, list) or not all(
        isinstance(example, dict)
        and all(isinstance(example.get(part), list) and example[part] for part in EXAMPLE)
        for example in examples
    ):
        raise _bad(file, "is damaged (it is no list of examples)", "eval")
    return examples


def _json(file: Path) -> Any:
    """What a file says; null for numbers that JSON and the browser do not have."""
    try:
        return json.loads(
            file.read_text(encoding="utf-8"),
            parse_constant=lambda name: None,
            parse_float=lambda digits: x if math.isfinite(x := float(digits)) else None,
        )
    except (ValueError, RecursionError) as error:
        raise _bad(file, f"is damaged ({error})", "eval") from error


def _bad(file: Path, why: str, command: str) -> ValueError:
    return ValueError(f"{file} {why}. {_mend(file, command)}")


def _mend(file: Path, command: str) -> str:
    if command == "eval":
        return f"Run `hsae eval` into {file.parent} again."
    return f"Run `hsae {command} {file.parent}` again, or take the file out of the folder."


def run_config(run: str | Path) -> EvalConfig:
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


def stamp_run(run: str | Path, name: str) -> None:
    """Adds a table's definitions to the ``run.json`` beside it."""
    file = Path(run) / "run.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    facts["definitions"] = facts.get("definitions", {}) | stamp(name)
    write_json(facts, file)
