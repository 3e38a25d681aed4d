"""How a pilot spends its time box: what to collect, and how many steps a point gets."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from hsae_lens.comparison.material import VALIDATION
from hsae_lens.pilot.config import PilotConfig
from hsae_lens.pilot.look import Look
from hsae_lens.pilot.search import Measured, PilotSettings

COLLECTING = 0.2  # of the time, at most

POINTS = 15  # of the length of the defaults', that a search usually takes

LONGER = 2  # times as many steps at the end

FEWEST_STEPS, MOST_STEPS = 60, 2000

EPOCHS = 8  # at most, over what is collected

MARGIN = 0.9  # steps are planned for this share of what is left

OF_A_PASS = 0.4  # the model up to the hook is about so much of a pass with its logits, on a CPU


class TimeBox:
    """How much is left of it; what commands before this one spent is spent."""

    def __init__(self, seconds: float, spent: float = 0.0) -> None:
        self.seconds, self.begun = seconds, time.perf_counter() - spent

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

    def needed_at_the_end(self, steps: int) -> float:
        return 2 * steps * self.step_seconds + self.judge_seconds

    def longest_at_the_end(self, left: float) -> int:
        """Steps that fit for each of two SAEs at the end: twice a point's, or fewer."""
        fit = int(MARGIN * (left - self.judge_seconds) / (2 * self.step_seconds))
        return max(FEWEST_STEPS, min(LONGER * self.steps, fit))


def plan_pilot(cfg: PilotConfig, look: Look, step_seconds: float, box: TimeBox) -> PilotPlan:
    """Shares out what is left of the time.

    Raises:
        ValueError: if it is too short for two points and the end; says what would do.
    """
    rate, left = look.tokens_per_second, box.left()
    judged = VALIDATION + 2 * cfg.eval_tokens
    train_tokens = min(cfg.train_tokens, max(0, int(COLLECTING * left * rate) - judged))
    train_tokens = max(train_tokens, FEWEST_STEPS * cfg.batch_size // EPOCHS)
    passes = 2 * 2 * (len(cfg.judged_budgets) + 2)  # SAEs, kinds of text
    judge_seconds = passes * cfg.ce_tokens / (rate * OF_A_PASS)
    collecting = (train_tokens + judged) / rate
    for_points = MARGIN * (left - collecting - judge_seconds)
    steps = int(for_points / ((POINTS + 2 * LONGER) * step_seconds))
    steps = min(steps, MOST_STEPS, EPOCHS * train_tokens // (LONGER * cfg.batch_size))
    plan = PilotPlan(train_tokens, max(steps, FEWEST_STEPS), step_seconds, judge_seconds)
    shortest = 2 * FEWEST_STEPS * step_seconds + plan.needed_at_the_end(FEWEST_STEPS)
    if shortest > for_points:
        minutes = math.ceil((box.spent() + (shortest / MARGIN + collecting + judge_seconds)) / 6)
        raise ValueError(
            f"{cfg.minutes:g} minutes are too short for two points of {FEWEST_STEPS} steps: give "
            f"{minutes / 10:g} or more (minutes), or fewer latents, or smaller batches."
        )
    return plan


def relative_cost(settings: PilotSettings, default: PilotSettings) -> float:
    """How much longer a step takes than the defaults', at most."""
    return max(1.0, settings.d_sae / default.d_sae, settings.k / default.k)


def updated_step_seconds(points: list[Measured], default: PilotSettings) -> float:
    """Of a step with the defaults, all that a point takes included, by the slowest so far."""
    return max(
        point.seconds / point.point.steps / relative_cost(point.point.settings, default)
        for point in points
    )
