"""Which settings a pilot tries and takes, on frontiers that are made up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from hsae_lens.pilot.search import Findings, Measured, PilotSettings, Point, search

DEFAULT = PilotSettings(lr=1e-3, budget_weights="uniform", aux_loss_coefficient=1.0, d_sae=64, k=8)
NOISE = 0.004


def measuring(
    merit: Callable[..., float], at_most: int = 1000
) -> tuple[list[Point], Callable[[Point], Measured | None]]:
    """Points as they are asked for, and a measure of them; the second seed differs by the noise."""
    asked: list[Point] = []

    def measure(point: Point) -> Measured | None:
        if len(asked) == at_most:
            return None
        asked.append(point)
        value = merit(point.settings, point.steps) + NOISE * point.seed
        explained = {k: value for k in (1, 2, 4, 8) if k <= point.settings.k}
        return Measured(point, explained, 0.0, 1.0, 0.01)

    return asked, measure


def off_by(best: float, falls: float = 0.0) -> Callable[[PilotSettings, int], float]:
    """A learning rate that is best at ``best`` after 100 steps, all else without effect."""

    def merit(s: PilotSettings, steps: int) -> float:
        return 0.5 - 0.02 * math.log2(s.lr / (best * (steps / 100) ** falls)) ** 2

    return merit


def test_it_walks_on_while_a_setting_gets_better() -> None:
    asked, measure = measuring(off_by(4e-3))
    found = search(DEFAULT, 100, measure)
    assert found.best.lr == 4e-3
    assert found.changed(found.best) == {"lr": (1e-3, 4e-3)}
    rates = [point.settings.lr for point in asked if point.seed == 0][:5]
    assert rates == [1e-3, 2e-3, 4e-3, 8e-3, 5e-4]


def test_what_is_within_the_noise_is_not_taken() -> None:
    _, measure = measuring(lambda s, steps: 0.5 + 0.9 * NOISE * (s.budget_weights == "linear"))
    found = search(DEFAULT, 100, measure)
    assert found.best == found.default
    _, measure = measuring(lambda s, steps: 0.5 + 1.1 * NOISE * (s.budget_weights == "linear"))
    found = search(DEFAULT, 100, measure)
    assert found.changed(found.best) == {"budget_weights": ("uniform", "linear")}


def test_a_later_axis_is_tried_at_the_best_so_far() -> None:
    asked, measure = measuring(off_by(2e-3))
    search(DEFAULT, 100, measure)
    assert {p.settings.lr for p in asked if p.settings.budget_weights != "uniform"} == {2e-3}


def test_width_and_k_are_priced_and_stay() -> None:
    _, measure = measuring(lambda s, steps: 0.5 + s.d_sae / 1000 - s.k / 1000)
    found = search(DEFAULT, 100, measure)
    assert not found.changed(found.best)
    values = [(axis.name, getattr(m.point.settings, axis.name)) for axis, m in found.prices]
    assert values == [("d_sae", 32), ("d_sae", 128), ("k", 4), ("k", 16)]


def test_what_there_was_no_time_for_is_said() -> None:
    _, measure = measuring(off_by(1e-3), at_most=4)
    found = search(DEFAULT, 100, measure)
    assert len(found.points) == 4
    assert found.falls is None
    assert found.out_of_time[0] == "budget_weights inverse_sqrt"
    _, measure = measuring(off_by(1e-3), at_most=1)
    with pytest.raises(ValueError, match="too short for two points"):
        search(DEFAULT, 100, measure)


def test_an_axis_ends_where_it_cannot_go_on() -> None:
    tiny = PilotSettings(0.5, "inverse", 0.0, d_sae=1, k=1)
    _, measure = measuring(lambda s, steps: s.lr + s.aux_loss_coefficient)
    found = search(tiny, 100, measure)
    assert found.best.lr == 0.5, "1 is no learning rate"
    assert found.best.aux_loss_coefficient == 4.0


@pytest.mark.parametrize("falls", [0.0, -0.25, -0.5])
def test_how_the_best_rate_falls_is_measured(falls: float) -> None:
    _, measure = measuring(off_by(2.6e-3, falls))
    found = search(DEFAULT, 100, measure)
    assert found.optimum == pytest.approx(2.6e-3, rel=0.02)
    assert found.falls == pytest.approx(falls, abs=0.02)
    assert found.lr_for(1600) == pytest.approx(2.6e-3 * 16**falls, rel=0.1)


def test_a_rate_that_grows_with_steps_is_noise() -> None:
    _, measure = measuring(off_by(1e-3, 0.5))
    assert search(DEFAULT, 100, measure).falls == 0


def test_the_fall_is_seen_where_the_default_is_best_too() -> None:
    _, measure = measuring(off_by(1.3e-3))
    found = search(DEFAULT, 100, measure)
    assert found.best == DEFAULT
    assert found.falls == pytest.approx(0, abs=0.02)
    assert found.settings_for(400) == DEFAULT, "nothing else was better"


def found_with(optimum: float, falls: float | None = -0.5) -> Findings:
    best = replace(DEFAULT, lr=optimum)
    return Findings(DEFAULT, best, 100, NOISE, optimum, falls)


def test_a_long_training_gets_no_rate_that_was_not_tried() -> None:
    found = found_with(optimum=4e-3)
    higher = found.settings_for(200)
    assert higher.lr == pytest.approx(2.8e-3)
    assert found.settings_of_long(400, higher).lr == pytest.approx(2e-3)
    assert found.settings_of_long(100_000, higher).lr == DEFAULT.lr
    found = found_with(optimum=0.5e-3)
    lower = found.settings_for(200)
    assert lower.lr == pytest.approx(0.35e-3)
    assert found.settings_of_long(100_000, lower).lr == lower.lr
    assert found_with(optimum=1.2e-3).settings_for(100) == DEFAULT, "near it"
    assert found_with(1e-3, falls=None).lr_for(400) == pytest.approx(0.5e-3)


def test_what_cannot_be_trained_is_passed_over() -> None:
    _, measured = measuring(off_by(2e-3))

    def measure(point: Point) -> Measured | None:
        fails = point.settings.lr > 2e-3 or point.settings.d_sae > 64
        good = measured(point)
        assert good is not None
        return replace(good, explained={}, failed="out of memory") if fails else good

    found = search(DEFAULT, 100, measure)
    assert found.best.lr == 2e-3
    assert [m.failed for axis, m in found.prices if axis.name == "d_sae"] == ["", "out of memory"]
    with pytest.raises(ValueError, match="default settings cannot be trained here: no room"):
        search(DEFAULT, 100, lambda p: Measured(p, {}, 0.0, 1.0, 0.0, failed="no room"))


def test_a_merit_that_is_no_number_is_no_gain() -> None:
    _, measure = measuring(lambda s, steps: math.nan if s.lr != 1e-3 else 0.5)
    assert search(DEFAULT, 100, measure).best == DEFAULT


def test_no_k_is_tried_below_every_budget_that_counts() -> None:
    asked, measure = measuring(off_by(1e-3))
    search(DEFAULT, 100, measure, smallest_budget=8)
    assert {point.settings.k for point in asked} == {8, 16}
