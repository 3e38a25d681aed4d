"""Tables as files, and as one table of several SAEs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    """One table of all, the SAE's name first."""
    table = pd.concat(tables, ignore_index=True)
    return table[["sae", *table.columns.drop("sae")]]
