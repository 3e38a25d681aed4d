"""The files of a run of ``hsae eval``: where each is, which command makes it, what it must hold."""

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
from hsae_lens._util.tables import (
    RULE_NAMES,
    TEXT_COLUMNS,
    by_sae,
    read_csv,
    rows_by_rule,
    write_csv,
)
from hsae_lens.evaluation.config import EvalConfig
from hsae_lens.sae.controls import RANDOM_DECODER


@dataclass(frozen=True)
class RunTable:
    """A table of a run. command: of ``hsae``, that makes it.  needed: what the page reads of it."""

    command: str
    needed: tuple[str, ...]


TABLES = {
    "frontier": RunTable("eval", ("sae", "k", "explained_variance")),
    "tasks": RunTable("eval", ("sae", "task", "k", "accuracy", "model_accuracy", "logit_diff",
                               "retention", "logit_retention")),
    "curve": RunTable("eval", ("k", "adds")),
    "adaptive": RunTable("eval", ("rule", "l0", "explained_variance", "fixed")),
    "stability": RunTable("eval", ("k", "agreement", "shuffled")),
    "contributions": RunTable("eval", ("latents", "rank_correlation", "shuffled")),
    "probing": RunTable("probe", ("sae", "dataset", "k", "probe_size", "test_auc")),
    "interpretation": RunTable("interpret", ("sae", "ranks", "latent", "detection", "fuzzing")),
    "absorption": RunTable("absorb", ("sae", "absorption", "letters", "probe_accuracy")),
}  # fmt: skip
"""The tables of a run by name; each is in ``NAME.csv``."""

RUN_FACTS: Mapping[str, Any] = {
    "model": str, "hook": str, "d_in": int, "d_sae": int, "k": int | None, "text": str,
    "tokens": int, "hsae_lens": str, "torch": str, "seconds": int | float, "settings": dict,
}  # fmt: skip
"""What ``run.json`` must say; ``definitions`` may be in it too."""

LATER_FACTS: Mapping[str, Any] = {
    "documents": int, "metrics": dict, "bytes": int | None, "training_time": str | None,
}  # fmt: skip
"""What ``run.json`` says since a version: of the text, of metrics of one's own their labels by
column, of the first SAE how large its file is, and how long its training took in its own words."""

EXAMPLE_PARTS = ("tokens", "judged", "explained", "latents", "budgets", "predictions")

LARGEST = 2**40  # nobody has as many latents or budgets


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
    def own_metrics(self) -> dict[str, str]:
        """The labels of the frontier's columns that are metrics of the user's own."""
        labels = self.facts.get("metrics", {})
        return {name: label for name, label in labels.items() if name in self.frontier}

    @property
    def hierarchical(self) -> bool:
        """Whether that SAE is: a control is made for such, and only for such."""
        return RANDOM_DECODER in set(self.frontier["sae"])


class RunFolder:
    """A folder of ``hsae eval``, to write, read and add to.

    path: where it is.  facts: how the run was made.  picture: of the frontier.  examples: texts to
    follow latent by latent.  answers: of a judge, which stay when the tables are made anew.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.facts = self.path / "run.json"
        self.picture = self.path / "frontier.png"
        self.examples = self.path / "examples.json"
        self.answers = self.path / "judge.jsonl"

    def table(self, name: str) -> Path:
        """Where a table of :data:`TABLES` is."""
        return self.path / f"{name}.csv"

    def work(self, name: str) -> Path:
        """The folder where the making of a table keeps its work, to go on if interrupted."""
        return self.path / name

    @property
    def owned(self) -> list[str]:
        """Names of the files that belong to one run, and not to the next in the same folder."""
        files = (self.facts, self.picture, self.examples, *map(self.table, TABLES))
        return [file.name for file in files]

    def write(self, name: str, content: Any) -> None:
        """Writes a table, or the ``examples``, a list of them."""
        if name == "examples":
            write_json(content, self.examples)
        else:
            write_csv(content, self.table(name))

    def add(self, name: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """Writes one table of the SAEs' and stamps its definitions in ``run.json``.

        Args:
            tables: by the name of the SAE, which comes first in the table.
        """
        table = by_sae([one.assign(sae=sae) for sae, one in tables.items()])
        self.write(name, table)
        facts = json.loads(self.facts.read_text(encoding="utf-8"))
        facts["definitions"] = facts.get("definitions", {}) | stamp(name)
        write_json(facts, self.facts)
        return table

    def is_run(self) -> bool:
        """Whether ``hsae eval`` wrote this folder, all of it or not."""
        return self.facts.exists() or self.table("frontier").exists()

    def read(self) -> EvalRun:
        """All that is in the folder.

        Raises:
            FileNotFoundError: if it is not one of ``hsae eval``, or did not get finished.
            ValueError: if a file in it is damaged; which one, and the command that makes it again.
        """
        self._check_finished()
        tables = {
            name: _read_table(self.table(name), about)
            for name, about in TABLES.items()
            if self.table(name).exists()
        }
        examples = _read_examples(self.examples) if self.examples.exists() else None
        return EvalRun(_read_facts(self.facts), tables["frontier"], tables, examples)

    def config(self) -> EvalConfig:
        """How the run was made.

        Raises:
            FileNotFoundError: if `hsae eval` did not write the folder, or did not finish.
            ValueError: if its ``run.json`` is damaged or another version's.
        """
        self._check_finished()
        try:
            settings = json.loads(self.facts.read_text(encoding="utf-8"))["settings"]
            if isinstance(settings["budgets"], str):  # an earlier version's
                settings["budgets"] = [int(k) for k in settings["budgets"].split(",")]
            cfg = EvalConfig(**settings)
            _check_types(cfg)
            return cfg
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.facts} is damaged or of another version ({error}): run `hsae eval` again."
            ) from error

    def _check_finished(self) -> None:
        """Raises FileNotFoundError if a file that every run has is not there."""
        every = self.facts, self.table("frontier")
        if missing := [file.name for file in every if not file.exists()]:
            raise FileNotFoundError(
                f"{self.path} has no {' and no '.join(missing)}, so `hsae eval` did not write it "
                "or did not finish. Run `hsae eval` into it again, or give another folder."
            )


def _read_table(file: Path, about: RunTable) -> pd.DataFrame:
    command, needed = about.command, about.needed
    try:
        table = read_csv(file)
    except ValueError as error:
        raise ValueError(f"{error} {_how_to_mend(file, command)}") from error
    if missing := [column for column in needed if column not in table]:
        raise _damaged(file, f"lacks {', '.join(missing)}", command)
    if table.empty:
        raise _damaged(file, "has no rows", command)
    numbers = table[[column for column in table if column not in TEXT_COLUMNS]]
    if words := [str(column) for column in numbers if table[column].dtype.kind not in "iufb"]:
        raise _damaged(file, f"has words for numbers in {', '.join(words)}", command)
    # What figures are drawn along.
    along: list[str] = [column for column in ("k", "l0", "probe_size") if column in needed]
    if "rule" in table and "sae" in needed:  # budgets of several rules
        if "target" not in table:
            raise _damaged(file, "lacks target", command)
        if not table["rule"].isin(list(RULE_NAMES)).all():
            raise _damaged(file, f"has a rule that is none of {', '.join(RULE_NAMES)}", command)
        along += [column for column in ("target", "l0") if column in table]
    within = table[along].ge(0) & table[along].lt(LARGEST)
    if "k" in needed and (rows_by_rule(table)["k"] % 1 != 0).any():
        raise _damaged(file, "has a fixed budget k that is no whole number", command)
    if np.isinf(numbers).any(axis=None) or not within.all(axis=None):
        raise _damaged(file, "has numbers that cannot be", command)
    if "adds" in needed and not (table["k"] > 0).any():
        raise _damaged(file, "has no k above 0", command)
    return table


def _read_facts(file: Path) -> dict[str, Any]:
    facts = _read_json(file)
    if not isinstance(facts, dict):
        raise _damaged(file, "is damaged (it is no table of facts)")
    wrong = [n for n, kind in RUN_FACTS.items() if n not in facts or not isinstance(facts[n], kind)]
    wrong += [n for n, kind in LATER_FACTS.items() if n in facts and not isinstance(facts[n], kind)]
    if wrong:
        raise _damaged(file, f"is damaged (it lacks {', '.join(wrong)}, or says it wrongly)")
    labels = facts.get("metrics", {})
    if not all(isinstance(label, str) for label in labels.values()) or {*labels} & TEXT_COLUMNS:
        raise _damaged(file, "is damaged (its metrics)")
    stamped = facts.get("definitions", {})
    if not isinstance(stamped, dict) or not all(
        isinstance(entry, dict) and {"version", "definition"} <= set(entry)
        for entry in stamped.values()
    ):
        raise _damaged(file, "is damaged (its definitions)")
    return facts


def _read_examples(file: Path) -> list[dict[str, Any]]:
    examples = _read_json(file)
    if not isinstance(examples, list) or not all(
        isinstance(example, dict)
        and all(isinstance(example.get(part), list) and example[part] for part in EXAMPLE_PARTS)
        for example in examples
    ):
        raise _damaged(file, "is damaged (it is no list of examples)")
    if not all(_has_lengths(example) for example in examples if "mean" in example):
        raise _damaged(file, "is damaged (an example's mean budgets)")
    return examples


def _has_lengths(example: dict[str, Any]) -> bool:
    """Whether what an example says of mean budgets fits what it says of its tokens."""
    try:
        lengths, explained = example["mean"]["lengths"], example["explained"]
        return (
            isinstance(example["mean"]["predictions"], list)
            and len({len(of_token) for of_token in lengths}) == 1
            and all(
                type(n) is int and 0 <= n < len(shares)
                for of_token, shares in zip(lengths, explained, strict=True)
                for n in of_token
            )
        )
    except (TypeError, KeyError, ValueError):
        return False


def _read_json(file: Path) -> Any:
    """What a file says; null for numbers that JSON and the browser do not have."""
    try:
        return json.loads(
            file.read_text(encoding="utf-8"),
            parse_constant=lambda name: None,
            parse_float=lambda digits: x if math.isfinite(x := float(digits)) else None,
        )
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"is damaged ({error})") from error


def _damaged(file: Path, why: str, command: str = "eval") -> ValueError:
    return ValueError(f"{file} {why}. {_how_to_mend(file, command)}")


def _how_to_mend(file: Path, command: str) -> str:
    if command == "eval":
        return f"Run `hsae eval` into {file.parent} again."
    return f"Run `hsae {command} {file.parent}` again, or take the file out of the folder."


def _check_types(cfg: EvalConfig) -> None:
    """Raises TypeError for a setting that is not of its field's type."""
    for name, hint in get_type_hints(EvalConfig).items():
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        value = getattr(cfg, name)
        if not isinstance(value, tuple(get_origin(kind) or kind for kind in kinds)):
            raise TypeError(f"{name} is {value!r}")
    for name in ("saes", "metrics"):
        if not all(isinstance(one, str) for one in getattr(cfg, name)):
            raise TypeError(f"{name} are {getattr(cfg, name)}")
    for name in ("budgets", "mean_budgets", "error_targets"):
        for number in getattr(cfg, name) or []:
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise TypeError(f"{name} has {number!r}")
