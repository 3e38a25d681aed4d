"""Random runs and damaged inputs: the short version of ``make fuzz``, and what it stands on."""

from __future__ import annotations

import fuzz
import pytest
from fuzz import ANSWER, FAILED, KINDS, LINE

GOOD = [(name, n) for name, kind in KINDS.items() for n in range(len(kind.specimens))]


@pytest.mark.parametrize(("name", "n"), GOOD)
def test_what_is_not_damaged_is_understood(name: str, n: int) -> None:
    outcome = fuzz.try_case(name, n, damage=False)
    assert outcome.verdict == ANSWER, outcome


@pytest.mark.parametrize("name", fuzz.INPUTS)
def test_damaged_inputs(name: str) -> None:
    outcomes = [fuzz.try_case(*case) for case in fuzz.share_out(200) if case[0] == name]
    assert not any(o.verdict == FAILED for o in outcomes), fuzz.summary(outcomes)
    assert {o.verdict for o in outcomes} == {ANSWER, LINE}, fuzz.summary(outcomes)


def test_random_runs() -> None:
    outcomes = [fuzz.try_case("runs", n) for n in range(10)]
    assert not any(o.verdict == FAILED for o in outcomes), fuzz.summary(outcomes)
