"""Tables as files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hsae_lens._util.tables import by_sae, read_csv, write_csv


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
