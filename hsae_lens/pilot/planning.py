"""How a pilot spends its time box: what to collect, and how many steps a point gets."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from hsae_lens.comparison.material import VALIDATION
from hsae_lens.pilot.config import PilotConfig
from hsae_lens.pilot.look import Look
from hsae_lens.pilot.search import Measured, PilotSettings, Point

COLLECTING = 0.2  # of the time, at most

POINTS = 15  # of the length of the defaults', that a search usually takes

AT_THE_END = 4  # trainings, at least as long as a point

LONGER = 2  # times as many steps at most there

FEWEST_STEPS, MOST_STEPS = 60, 2000

EPOCHS = 8  # at most, over what is collected

MARGIN = 0.9  # steps are planned for this share of what is left


class TimeBox:
    """How much is left of it; what commands before this one spent is spent."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.begun = seconds, time.perf_counter()

    def add(self, spent: float) -> None:
        self.begun -= spent

    def spent(self) -> float:
        return time.perf_counter() - self.begun

    def left(self) -> float:
        return self.seconds - self.spent()


@dataclass(frozen=True)
class PilotPlan:
    """train_tokens: to collect.  steps: of a point.  step_seconds: with the defaults.
    judge_seconds: for the SAEs at the end."""

    train_tokens: int
    steps: int
    step_seconds: float
    judge_seconds: float

    def within(self, n_tokens: int, batch_size: int) -> PilotPlan:
        """The plan for as much text as there is.

        Raises:
            ValueError: if that is too little to train on.
        """
        most = EPOCHS * n_tokens // batch_size
        if most < FEWEST_STEPS:
            raise ValueError(
                f"The text gave {n_tokens:,} tokens to train on: {FEWEST_STEPS} steps of "
                f"{batch_size:,} would see each more than {EPOCHS} times. Give more text "
                "(or train_tokens), or smaller batches (batch_size)."
            )
        return replace(self, steps=min(self.steps, most))


class Costs:
    """What training takes here, from the points so far: at the beginning, of each step."""

    def __init__(self, plan: PilotPlan, default: PilotSettings) -> None:
        self.plan, self.default = plan, default
        self.per_point, self.per_step = 0.0, plan.step_seconds
        self.seen = False

    def learn(self, measured: Measured) -> None:
        if measured.failed:
            return
        steps = measured.point.steps
        per_step = measured.step_seconds / self._relative(measured.point)
        self.per_step = max(self.per_step, per_step) if self.seen else per_step
        self.per_point = max(self.per_point, measured.seconds - steps * measured.step_seconds)
        self.seen = True

    def of(self, point: Point) -> float:
        """Seconds, at most."""
        return self.per_point + point.steps * self.per_step * self._relative(point)

    def at_the_end(self) -> float:
        """Seconds that the shortest end takes."""
        each = self.per_point + self.plan.steps * self.per_step
        return AT_THE_END * each + self.plan.judge_seconds

    def longest_at_the_end(self, left: float) -> int:
        """Steps that fit for each training at the end: as many as a point's, up to twice."""
        each = MARGIN * (left - self.plan.judge_seconds) / AT_THE_END - self.per_point
        fit = int(each / self.per_step) if self.per_step else LONGER * self.plan.steps
        return max(self.plan.steps, min(LONGER * self.plan.steps, fit))

    def _relative(self, point: Point) -> float:
        """How much longer a step takes than with the defaults, at most."""
        s = point.settings
        return max(1.0, s.d_sae / self.default.d_sae, s.k / self.default.k)


def plan_pilot(cfg: PilotConfig, look: Look, step_seconds: float, box: TimeBox) -> PilotPlan:
    """Shares out what is left of the time.

    Raises:
        ValueError: if it is too short for two points and the end; says what would do.
    """
    rate, left = look.tokens_per_second, box.left()
    judged = VALIDATION + 2 * cfg.eval_tokens
    fewest = FEWEST_STEPS * cfg.batch_size // EPOCHS + 1
    affordable = max(fewest, int(COLLECTING * left * rate) - judged)
    train_tokens = min(cfg.train_tokens, affordable)
    passes = AT_THE_END * (2 * len(cfg.judged_budgets) + 4)  # two kinds of text, clean and ablated
    judge_seconds = passes * cfg.ce_tokens / look.logits_per_second
    collecting = (train_tokens + judged) / rate
    for_points = MARGIN * (left - collecting - judge_seconds)
    shortest = (2 + AT_THE_END) * FEWEST_STEPS * step_seconds
    if shortest > for_points:
        need = shortest / MARGIN + judge_seconds + (fewest + judged) / rate
        minutes = math.ceil((box.spent() + need / (1 - COLLECTING)) / 6) / 10
        raise ValueError(
            f"{cfg.minutes:g} minutes are too short for two points of {FEWEST_STEPS} steps: give "
            f"{minutes:g} or more (minutes), or fewer latents, or smaller batches."
        )
    steps = int(for_points / ((POINTS + AT_THE_END) * step_seconds))
    steps = max(FEWEST_STEPS, min(steps, MOST_STEPS))
    return PilotPlan(train_tokens, steps, step_seconds, judge_seconds)
