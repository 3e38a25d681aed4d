"""What the command's flags mean, in the same words for every command."""

from __future__ import annotations

import pytest

from hsae_lens.cli.flags import budgets_from


def test_budgets_are_whole_numbers_in_order(caplog: pytest.LogCaptureFixture) -> None:
    assert budgets_from("1, 8,32") == [1, 8, 32]
    assert not caplog.records
    assert budgets_from("8,4,8") == [4, 8]
    assert "Took the budgets 8,4,8 as 4,8." in caplog.text


@pytest.mark.parametrize("text", ["1,x", "", "1,,2", "0,4", "-3", "1.5", "²", "9" * 5000])
def test_what_is_no_budget_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="^Budgets are whole numbers of at least 1 with commas"):
        budgets_from(text)
