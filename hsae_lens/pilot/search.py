"""Which settings to try next, and which to keep: no training here, a function measures a point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hsae_lens.objective.budgets import SCHEDULES

SHORTER = 4  # times as many steps in the trainings that tell how the best rate falls

USUALLY_FALLS = -0.5  # the power, where it was not measured (SmolLM2, LOG.md)

CLOSE_RATES = 1.5  # nearer ones are not told apart

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
    seconds in all, and the median seconds of a training step. failed: why it could not be trained,
    if it could not."""

    point: Point
    explained: dict[int, float]
    dead: float
    seconds: float
    step_seconds: float
    failed: str = ""

    def merit(self, budgets: Sequence[int] | None = None) -> float:
        """The mean of the explained variance at ``budgets``, or at all it was judged at; of a
        failed point, and one that explains no number, less than of any other."""
        values = [self.explained[k] for k in budgets or self.explained] if not self.failed else []
        mean = sum(values) / len(values) if values else -math.inf
        return mean if math.isfinite(mean) else -math.inf


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
    """What a search saw.

    best: the best settings, for trainings of ``steps``.  noise: by how much the merit of two equal
    trainings differs.  optimum: the learning rate where a parabola through the best three, over the
    rate's logarithm, is highest; the default where no other is better beyond the noise.  falls: the
    power of the number of steps with which the best rate falls, from trainings a quarter as long;
    None without time for these.  points: all, in order.  prices: of them, those of another width or
    K.  out_of_time: what was left out.
    """

    default: PilotSettings
    best: PilotSettings
    steps: int
    noise: float
    optimum: float
    falls: float | None = None
    points: list[Measured] = field(default_factory=list)
    prices: list[tuple[Axis, Measured]] = field(default_factory=list)
    out_of_time: list[str] = field(default_factory=list)

    def lr_for(self, steps: int) -> float:
        """The best learning rate of a training of other length, by that power; two digits."""
        power = USUALLY_FALLS if self.falls is None else self.falls
        return float(f"{self.optimum * (steps / self.steps) ** power:.2g}")

    def settings_for(self, steps: int) -> PilotSettings:
        """The best settings with the rate for so many steps.

        The default's rate where that was the best one, or where the other is near it.
        """
        lr = self.lr_for(steps)
        near = 1 / CLOSE_RATES < lr / self.default.lr < CLOSE_RATES
        stays = near or self.best.lr == self.default.lr
        return replace(self.best, lr=self.default.lr if stays else lr)

    def settings_of_long(self, steps: int, confirmed: PilotSettings) -> PilotSettings:
        """Those for a long training, once ``confirmed`` beat the defaults in a shorter one.

        The rate is extrapolated no further than to those that were tried: between the default's and
        the confirmed one.
        """
        low, high = sorted((self.default.lr, confirmed.lr))
        return replace(confirmed, lr=min(max(self.lr_for(steps), low), high))

    def changed(self, to: PilotSettings) -> dict[str, tuple[Any, Any]]:
        """The settings that differ from the defaults: from what, to what."""
        return {
            name: (before, getattr(to, name))
            for name, before in vars(self.default).items()
            if getattr(to, name) != before
        }


def axes_around(default: PilotSettings, smallest_budget: int = 1) -> list[Axis]:
    """What is tried, in this order."""
    rates = [float(f"{default.lr * 2.0**n:.3g}") for n in range(-3, 4)]
    rates[3] = default.lr
    coefficients = sorted({0.0, 1 / 32, 1 / 4, 1.0, 4.0, default.aux_loss_coefficient})
    widths = [n for n in (default.d_sae // 2, default.d_sae, 2 * default.d_sae) if n >= default.k]
    sizes = (default.k // 2, default.k, 2 * default.k)
    return [
        Axis("lr", [rate for rate in rates if rate < 1]),
        Axis("budget_weights", FROM_LARGE_TO_SMALL),
        Axis("aux_loss_coefficient", coefficients),
        Axis("d_sae", widths, settled=False),
        Axis("k", [n for n in sizes if smallest_budget <= n <= default.d_sae], settled=False),
    ]


def search(
    default: PilotSettings, steps: int, measure: Measure, smallest_budget: int = 1
) -> Findings:
    """Tries neighbours on each axis, and further ones while they get better.

    Better is by more than two seeds of the defaults differ in their mean explained variance, and by
    a thousandth. What is best on one axis stays while the next is tried; width and K are then
    measured beside the best, and stay. What was better by chance is found out by
    :func:`~hsae_lens.pilot.confirming.confirm`.

    Raises:
        ValueError: if there is no time for two points, or the defaults cannot be trained.
    """
    first, again = (measure(Point(default, steps, seed)) for seed in (0, 1))
    if first is None or again is None:
        raise ValueError("The time that is left is too short for two points: give more (minutes).")
    if why := first.failed or again.failed:
        raise ValueError(f"The default settings cannot be trained here: {why}")
    noise = max(LEAST_GAIN, abs(first.merit() - again.merit()))
    found = Findings(default, default, steps, noise, default.lr, points=[first, again])
    best = first
    for axis in axes_around(default, smallest_budget):
        if not axis.settled:
            found.prices += [(axis, m) for m in _neighbours(axis, best, found, measure)]
            continue
        best = _climb(axis, best, found, measure)
        if axis.name == "lr":
            found.best = best.point.settings
            _find_how_rates_fall(axis, best, found, measure)
    found.best = best.point.settings
    return found


def _climb(axis: Axis, best: Measured, found: Findings, measure: Measure) -> Measured:
    candidates = []
    for direction in (1, -1):
        here, index = best, axis.values.index(getattr(best.point.settings, axis.name))
        while 0 <= (index := index + direction) < len(axis.values):
            tried = _try(axis, axis.values[index], best, found, measure)
            if tried is None or tried.merit() <= here.merit() + found.noise:
                break
            here = tried
        candidates.append(here)
    return max(candidates, key=Measured.merit)


def _find_how_rates_fall(axis: Axis, best: Measured, found: Findings, measure: Measure) -> None:
    """The best rate here and in trainings a quarter as long; that it grows is noise."""
    here = _peak(found.points)
    found.optimum = here if best.point.settings.lr != found.default.lr else found.default.lr
    brief = measure(replace(best.point, steps=max(1, found.steps // SHORTER)))
    if brief is None:
        return
    n = len(found.points)
    found.points.append(brief)
    _climb(axis, brief, found, measure)
    power = math.log2(here / _peak(found.points[n:])) / math.log2(SHORTER)
    found.falls = min(0.0, max(-1.0, power))


def _peak(points: Sequence[Measured]) -> float:
    """The learning rate where a parabola through the best point and its neighbours is highest."""
    merits = {
        point.point.settings.lr: point.merit()
        for point in points
        if not (point.point.seed or point.failed)
    }
    rates = sorted(merits)
    at = max(range(len(rates)), key=lambda n: merits[rates[n]])
    if not 0 < at < len(rates) - 1 or not all(map(math.isfinite, merits.values())):
        return rates[at]
    (x0, y0), (x1, y1), (x2, y2) = ((math.log2(r), merits[r]) for r in rates[at - 1 : at + 2])
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    vertex = (x0 + x1) / 2 - left / (2 * curvature) if curvature < 0 else x1
    return float(2.0 ** min(max(vertex, x0), x2))


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
