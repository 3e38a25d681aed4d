"""Random runs and damaged inputs: the short version of ``make fuzz``, and what it stands on."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzz
import pytest
from fuzz import ANSWER, FAILED, KINDS, LINE

from fuzzing.inputs import Kind, expect

GOOD = [(name, n) for name, kind in KINDS.items() for n in range(len(kind.specimens))]


@pytest.mark.parametrize(("name", "n"), GOOD)
def test_what_is_not_damaged_is_understood(name: str, n: int) -> None:
    outcome = fuzz.try_case(name, n, damage=False)
    assert outcome.verdict == ANSWER, outcome


@pytest.mark.parametrize("name", fuzz.INPUTS)
def test_damaged_inputs(name: str) -> None:
    outcomes = [fuzz.try_case(*case) for case in fuzz.share_out(150) if case[0] == name]
    assert not any(outcome.verdict == FAILED for outcome in outcomes), fuzz.summary(outcomes)


def test_random_runs() -> None:
    outcomes = [fuzz.try_case("runs", n) for n in range(10)]
    assert not any(outcome.verdict == FAILED for outcome in outcomes), fuzz.summary(outcomes)


def _read(folder: Path, scratch: Path) -> str:
    return (folder / "number.txt").read_text()


def _refuse(folder: Path, scratch: Path) -> None:
    raise ValueError(f"{folder / 'number.txt'} holds no number.")


def _refuse_in_no_words(folder: Path, scratch: Path) -> None:
    raise ValueError("invalid literal")


def _refuse_at_length(folder: Path, scratch: Path) -> None:
    raise ValueError("x" * 1000 + f"{folder} holds no number but " + "x" * 1000)


def _refuse_too_late(folder: Path, scratch: Path) -> None:
    (scratch / "half.txt").touch()
    _refuse(folder, scratch)


def _fall_over(folder: Path, scratch: Path) -> None:
    raise KeyError("number")


def _hang(folder: Path, scratch: Path) -> None:
    time.sleep(5)


def _change(folder: Path, scratch: Path) -> str:
    (folder / "number.txt").write_text("2")
    return "1"


@pytest.mark.parametrize(
    ("door", "verdict", "said"),
    [
        (_read, ANSWER, ""),
        (_refuse, LINE, "…/given/number.txt holds no number."),
        (_refuse_in_no_words, FAILED, "without naming file or setting"),
        (_refuse_at_length, FAILED, "without naming file or setting"),  # it is cut
        (_refuse_too_late, FAILED, "and left half.txt"),
        (_fall_over, FAILED, "KeyError: 'number' (test_fuzz.py"),
        (_hang, FAILED, "took more than"),
        (_change, FAILED, "a given file was changed"),
        (lambda folder, scratch: "2", FAILED, "the answer is not right: AssertionError: it is 2"),
    ],
)
def test_each_way_to_fail_is_seen(
    door: Any, verdict: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = Kind(
        specimens=(lambda folder: (folder / "number.txt").write_text("1"),),
        change=lambda rng, folder: "nothing",
        door=_read,
        check=lambda folder, answer: expect(answer == "1", f"it is {answer}"),
        seconds=0.2,
    )
    monkeypatch.setitem(fuzz.KINDS, "number", replace(number, door=door))
    outcome = fuzz.try_case("number", 0)
    assert outcome.verdict == verdict
    assert said in outcome.said


def test_a_seed_tells_the_whole_story() -> None:
    for name in ("weights", "pairs", "releases"):
        assert fuzz.try_case(name, 3) == fuzz.try_case(name, 3)
    changes = {fuzz.try_case("weights", n, seed).change for n in (0, 1) for seed in (0, 1)}
    assert len(changes) == 4
