"""Tables as files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hsae_lens._util.tables import (
    by_sae,
    read_csv,
    rows_by_rule,
    rules_of,
    shown_columns,
    with_rule_in_name,
    write_csv,
)


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    """A text that looks like a number stays a text, and a gap a gap."""
    table = pd.DataFrame({"sae": ["042", "nan", ""], "k": [1, 2, 4], "ce": [0.5, None, 1.0]})
    write_csv(table, tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read_csv(tmp_path / "table.csv"), table, check_dtype=False)
    (tmp_path / "table.csv").write_text('a,b\n1,"2\n')
    with pytest.raises(ValueError, match=r"table.csv is no table \("):
        read_csv(tmp_path / "table.csv")


def test_one_table_of_several_saes_names_them_first() -> None:
    table = by_sae([pd.DataFrame({"k": [1], "sae": name}) for name in "ab"])
    assert table.columns.tolist() == ["sae", "k"]
    assert table["sae"].tolist() == ["a", "b"]


def test_of_tables_beside_one_with_rules_all_budgets_are_fixed() -> None:
    mixed = pd.DataFrame({"sae": "a", "k": [4, 8], "rule": ["fixed", "error"], "target": [4, 0.5]})
    stock = pd.DataFrame({"sae": "b", "k": [4], "l0": 4.0})
    table = by_sae([mixed, stock])
    assert table.columns.tolist() == ["sae", "k", "rule", "target", "l0"]
    assert table["rule"].tolist() == ["fixed", "error", "fixed"]
    assert table["target"].tolist() == [4, 0.5, 4]
    assert "rule" not in by_sae([stock, stock])


def test_rows_by_rule_are_series_of_their_own() -> None:
    table = pd.DataFrame({"sae": "a", "k": [1, 2, 8.5, 4]})
    assert rules_of(table).tolist() == ["fixed"] * 4, "a table without rules"
    assert with_rule_in_name(table) is table
    pd.testing.assert_frame_equal(rows_by_rule(table), table)
    table["rule"] = ["fixed", None, "mean", "error"]  # None: others' rows put beside
    assert with_rule_in_name(table)["sae"].tolist() == ["a", "a", "a, on average", "a, by error"]
    assert rows_by_rule(table)["k"].tolist() == [1, 2]
    assert rows_by_rule(table, "mean")["k"].tolist() == [8.5]


def test_what_was_asked_for_is_shown_as_it_was_written() -> None:
    table = pd.DataFrame({"k": [8.0, 8.5], "rule": "mean", "target": [8.0, 0.05], "l0": [8.0, 8.1]})
    shown = shown_columns(table, ["k", "sae", "target", "rule", "l0"])
    assert shown.columns.tolist() == ["k", "target", "rule", "l0"]
    assert (shown["k"].tolist(), shown["target"].tolist()) == (["8", "8.5"], ["8", "0.05"])
    assert shown["l0"].tolist() == [8.0, 8.1]
    fixed = table.drop(columns=["rule", "target"])
    pd.testing.assert_frame_equal(shown_columns(fixed), fixed)
