"""Which settings to try next, and which to keep: no training here, a function measures a point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hsae_lens.objective.budgets import SCHEDULES

LEAST_GAIN = 0.001  # of explained variance: less is not worth another setting, whatever the noise

FROM_LARGE_TO_SMALL = ("square", "linear", "uniform", "inverse_sqrt", "inverse")
"""The named weightings in the order of what they favour: large budgets first."""

assert set(FROM_LARGE_TO_SMALL) == set(SCHEDULES)


@dataclass(frozen=True)
class PilotSettings:
    """What a pilot varies; the names are those of the training config."""

    lr: float
    budget_weights: str
    aux_loss_coefficient: float
    d_sae: int
    k: int


@dataclass(frozen=True)
class Point:
    """Settings to train with, for so many steps, and the seed of weights and order."""

    settings: PilotSettings
    steps: int
    seed: int = 0

    @property
    def name(self) -> str:
        s = self.settings
        return (
            f"lr{s.lr:g}-{s.budget_weights}-aux{s.aux_loss_coefficient:g}-{s.d_sae}latents-k{s.k}-"
            f"{self.steps}steps-seed{self.seed}"
        )


@dataclass(frozen=True)
class Measured:
    """What came of a point: explained variance by budget, share of dead latents within its K,
    seconds in all, and the median seconds of a training step."""

    point: Point
    explained: dict[int, float]
    dead: float
    seconds: float
    step_seconds: float

    def merit(self, budgets: Sequence[int] | None = None) -> float:
        """The mean of the explained variance at ``budgets``, or at all it was judged at."""
        values = [self.explained[k] for k in budgets or self.explained]
        return sum(values) / len(values)


Measure = Callable[[Point], Measured | None]
"""Trains and judges a point; None where the time that is left is too short for it."""


@dataclass(frozen=True)
class Axis:
    """A setting and its values in order. Those that cost nothing are settled; the others are for
    somebody to decide who knows the price."""

    name: str
    values: Sequence[Any]
    settled: bool = True


@dataclass
class Findings:
    """What a search saw: every point in order, the noise, the settings that it would take."""

    default: PilotSettings
    best: PilotSettings
    noise: float
    points: list[Measured] = field(default_factory=list)
    prices: list[tuple[Axis, Measured]] = field(default_factory=list)
    out_of_time: list[str] = field(default_factory=list)

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """The settings that differ from the defaults: from what, to what."""
        return {
            name: (before, getattr(self.best, name))
            for name, before in vars(self.default).items()
            if getattr(self.best, name) != before
        }


def axes_around(default: PilotSettings) -> list[Axis]:
    """What is tried, in this order."""
    rates = [float(f"{default.lr * 2.0**n:.3g}") for n in range(-3, 4)]
    rates[3] = default.lr
    coefficients = sorted({0.0, 1 / 32, 1 / 4, 1.0, 4.0, default.aux_loss_coefficient})
    widths = [n for n in (default.d_sae // 2, default.d_sae, 2 * default.d_sae) if n >= default.k]
    sizes = [n for n in (default.k // 2, default.k, 2 * default.k) if 1 <= n <= default.d_sae]
    return [
        Axis("lr", [rate for rate in rates if rate < 1]),
        Axis("budget_weights", FROM_LARGE_TO_SMALL),
        Axis("aux_loss_coefficient", coefficients),
        Axis("d_sae", widths, settled=False),
        Axis("k", sizes, settled=False),
    ]


def search(default: PilotSettings, steps: int, measure: Measure) -> Findings:
    """Tries neighbours on each axis, and further ones while they get better.

    Another value is taken if its mean explained variance is better than that of the best so far by
    more than two seeds of the defaults differ, and by a thousandth. So a gain on one axis counts
    before the next is tried; width and K are then measured beside the best, and stay.

    Raises:
        ValueError: if there is no time for two points.
    """
    first, again = (measure(Point(default, steps, seed)) for seed in (0, 1))
    if first is None or again is None:
        raise ValueError("The time that is left is too short for two points: give more (minutes).")
    noise = max(LEAST_GAIN, abs(first.merit() - again.merit()))
    found = Findings(default, default, noise, [first, again])
    best = first
    for axis in axes_around(default):
        if axis.settled:
            best = _climb(axis, best, found, measure)
        else:
            found.prices += [(axis, m) for m in _neighbours(axis, best, found, measure)]
    found.best = best.point.settings
    return found


def _climb(axis: Axis, best: Measured, found: Findings, measure: Measure) -> Measured:
    candidates = []
    for direction in (1, -1):
        here, index = best, axis.values.index(getattr(best.point.settings, axis.name))
        while 0 <= (index := index + direction) < len(axis.values):
            tried = _try(axis, axis.values[index], best, found, measure)
            if tried is None or tried.merit() <= here.merit():
                break
            here = tried
        candidates.append(here)
    winner = max(candidates, key=Measured.merit)
    return winner if winner.merit() > best.merit() + found.noise else best


def _neighbours(axis: Axis, best: Measured, found: Findings, measure: Measure) -> list[Measured]:
    own = getattr(best.point.settings, axis.name)
    tried = [_try(axis, value, best, found, measure) for value in axis.values if value != own]
    return [measured for measured in tried if measured is not None]


def _try(
    axis: Axis, value: Any, best: Measured, found: Findings, measure: Measure
) -> Measured | None:
    settings = replace(best.point.settings, **{axis.name: value})
    measured = measure(replace(best.point, settings=settings))
    if measured is None:
        found.out_of_time.append(f"{axis.name} {value}")
    else:
        found.points.append(measured)
    return measured
