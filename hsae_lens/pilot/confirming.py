"""The end of a pilot: defaults and recommendation trained anew, judged on text unseen so far."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import t as student

from hsae_lens._util.atomic_files import replacing_folder
from hsae_lens._util.tables import by_sae
from hsae_lens.comparison.judging import Judged
from hsae_lens.comparison.material import SAME_KIND
from hsae_lens.comparison.regret import CONFIDENCE, NORMAL, resampling
from hsae_lens.pilot.points import Workbench
from hsae_lens.pilot.search import PilotSettings, Point
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

DEFAULTS, RECOMMENDED = "defaults", "recommended"

SEEDS = (2, 3)  # neither of the two of the search


@dataclass(frozen=True)
class Confirmed:
    """Held-out frontiers, means over seeds: columns ``sae`` (defaults, recommended), ``text``,
    ``k``, and figures.

    settings: of the recommended one, else the defaults.  steps: of each training.  gain: of the
    mean explained variance over the budgets, of text of the training text's kind; None if only the
    defaults were trained.  interval: half of its 95% interval, over documents and trainings.
    """

    frontier: pd.DataFrame
    settings: PilotSettings
    steps: int
    gain: float | None = None
    interval: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the recommendation is better than the defaults beyond its interval."""
        return self.gain is not None and self.interval is not None and self.gain > self.interval

    def of(self, sae: str, text: str = SAME_KIND) -> pd.DataFrame:
        rows = self.frontier
        return rows[(rows["sae"] == sae) & (rows["text"] == text)]


def confirm(
    points: Mapping[str, Point],
    bench: Workbench,
    judge: Callable[[HierarchicalTopKSAE], Judged],
    folder: Path,
    earlier: tuple[float, float],
) -> Confirmed:
    """Trains what is not in ``folder`` yet, each with two seeds, and judges all of it.

    Args:
        points: those called ``defaults`` and, if there is another, ``recommended``; without one,
            the defaults are trained once.
        earlier: the merits of two equal trainings of before, a further sign of how far such differ.
    """
    seeds = SEEDS if RECOMMENDED in points else SEEDS[:1]
    judged = {
        name: [judge(_trained(replace(point, seed=seed), bench, folder / name)) for seed in seeds]
        for name, point in points.items()
    }
    frontier = by_sae([_mean(of).assign(sae=name) for name, of in judged.items()])
    default, steps = points[DEFAULTS].settings, points[DEFAULTS].steps
    if RECOMMENDED not in points:
        return Confirmed(frontier, default, steps)
    errors = {  # [documents]
        name: torch.stack([each.errors[SAME_KIND].mean(0) for each in of]).mean(0)
        for name, of in judged.items()
    }
    weights, variance = resampling(bench.material.held[SAME_KIND])
    of_documents = (weights @ (errors[DEFAULTS] - errors[RECOMMENDED]) / variance).std()
    merits = {name: [_merit(each) for each in of] for name, of in judged.items()}
    interval = math.hypot(NORMAL * float(of_documents), _half_width([*merits.values(), earlier]))
    gain = statistics.mean(merits[RECOMMENDED]) - statistics.mean(merits[DEFAULTS])
    return Confirmed(frontier, points[RECOMMENDED].settings, steps, gain, interval)


def _trained(point: Point, bench: Workbench, folder: Path) -> HierarchicalTopKSAE:
    place = folder / point.name
    if not place.exists():
        with replacing_folder(place) as fresh:
            bench.save_trained(point, fresh)
    return HierarchicalTopKSAE.load_from_disk(place, device=bench.device)


def _mean(judged: Sequence[Judged]) -> pd.DataFrame:
    """The rows, their figures means over seeds."""
    rows = pd.concat([each.rows for each in judged], ignore_index=True)
    return rows.groupby(["text", "k"], sort=False).mean(numeric_only=True).reset_index()


def _merit(judged: Judged) -> float:
    rows = judged.rows
    return float(rows.loc[rows["text"] == SAME_KIND, "explained_variance"].mean())


def _half_width(pairs: Sequence[Sequence[float]]) -> float:
    """Of the 95% interval of the difference of two means over two trainings each, by Student's t.

    Args:
        pairs: merits of equal trainings; all pairs tell of the one spread that they share.
    """
    spread = math.sqrt(statistics.mean((a - b) ** 2 / 2 for a, b in pairs))
    return float(student.ppf((1 + CONFIDENCE) / 2, len(pairs))) * spread
