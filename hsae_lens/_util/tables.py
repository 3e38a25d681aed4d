"""Tables as files, and as one table of several SAEs."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hsae_lens._util.atomic_files import replacing_file


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """A table as CSV, whole or not at all."""
    with replacing_file(path) as fresh:
        table.to_csv(fresh, index=False)


TEXT_COLUMNS = {"sae", "text", "task", "dataset", "rule", "site", "token", "ranks", "explanation",
         "fires_on", "promotes"}  # fmt: skip
"""Columns of text, whatever it looks like: an SAE may be in a folder ``42`` or ``nan``."""


def read_csv(path: str | Path) -> pd.DataFrame:
    """A table as :func:`write_csv` wrote it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged, or no table.
    """
    try:
        columns = pd.read_csv(path, nrows=0).columns
        return pd.read_csv(
            path,
            dtype={name: str for name in columns if name in TEXT_COLUMNS},
            keep_default_na=False,
            na_values={name: ["", "nan"] for name in columns if name not in TEXT_COLUMNS},
        )
    except ValueError as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is no table ({reason}).") from error


def by_sae(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table of all, the SAE's name first.

    Where some have ``rule`` and ``target``, all do: the others' budgets are fixed.
    """
    if any("rule" in table for table in tables):
        tables = [with_rules(table) for table in tables]
    table = pd.concat(tables, ignore_index=True)
    return table[["sae", *table.columns.drop("sae")]]


def with_rules(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``rule`` and ``target`` after ``k``: fixed, where it does not say."""
    if "rule" in table:
        return table
    columns = [*table.columns]
    after = columns.index("k") + 1
    table = table.assign(rule="fixed", target=table["k"])
    return table[[*columns[:after], "rule", "target", *columns[after:]]]


def whole(number: Any) -> Any:
    """A whole number as int: beside 2.5 a table holds 8.0. Anything else as it is."""
    real = isinstance(number, numbers.Real) and not isinstance(number, bool)
    return int(number) if real and float(number).is_integer() else number


RULE_NAMES = {"fixed": "", "mean": ", on average", "error": ", by error"}
"""How budgets are spent: of each token, on average, until an error; and what a name gets for it."""


def rules_of(table: pd.DataFrame) -> pd.Series[str]:
    """The rule of each row; "fixed" where the table does not say."""
    if "rule" not in table:
        return pd.Series("fixed", index=table.index, dtype=object)
    return table["rule"].where(table["rule"].isin(list(RULE_NAMES)), "fixed")


def rows_by_rule(table: pd.DataFrame, rule: str = "fixed") -> pd.DataFrame:
    """The rows whose budgets are spent by one rule."""
    return table[rules_of(table) == rule]


def with_rule_in_name(table: pd.DataFrame, column: str = "sae") -> pd.DataFrame:
    """The table as series: ``column`` says the rule too, "NAME, on average", if it is not fixed."""
    if "rule" not in table:
        return table
    return table.assign(**{column: table[column].astype(str) + rules_of(table).map(RULE_NAMES)})


def shown_columns(table: pd.DataFrame, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Those of the columns that the table has, or all; what was asked for as it was written."""
    if columns is not None:
        table = table[[column for column in columns if column in table]]
    if "rule" not in table:
        return table
    asked = [column for column in ("k", "target") if column in table]
    return table.assign(**{name: table[name].map("{:g}".format) for name in asked})
