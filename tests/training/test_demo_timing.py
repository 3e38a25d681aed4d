"""How much text the demo reads on machines of different speed."""

from __future__ import annotations

import pytest

from hsae_lens.training.demo_timing import LEAST_SHARE, DemoPlan, Speed, plan_demo

FAST = Speed(collect=1 / 2500, predict=1 / 1500, step=0.08)


def planned(speed: Speed, seconds: float = 400) -> DemoPlan:
    return plan_demo(speed, 100_000, 4096, steps=1600, passes=16, seconds=seconds)


def test_a_fast_machine_reads_everything() -> None:
    made = planned(FAST)
    assert (made.train_tokens, made.eval_tokens) == (100_000, 4096)
    assert made.seconds < 400


def test_a_slower_machine_reads_less_of_both_parts_and_keeps_its_word() -> None:
    made = planned(Speed(collect=1 / 900, predict=1 / 400, step=0.1))
    assert made.seconds == pytest.approx(400)
    assert LEAST_SHARE < made.train_tokens / 100_000 < 1
    assert made.eval_tokens / 4096 == pytest.approx(made.train_tokens / 100_000, abs=1e-3)
    assert made.training == pytest.approx(1.15 * 1600 * 0.1)  # the steps are not cut


def test_a_very_slow_machine_is_told_how_long_it_takes() -> None:
    made = planned(Speed(collect=1 / 100, predict=1 / 50, step=0.5))
    assert made.train_tokens == LEAST_SHARE * 100_000
    assert made.seconds > 400
    assert str(made).startswith(f"About {round(made.seconds / 60)} min from here: ")


def test_no_time_left_still_gives_a_plan() -> None:
    assert planned(FAST, seconds=-10).train_tokens == LEAST_SHARE * 100_000
