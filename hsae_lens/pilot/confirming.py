"""The end of a pilot: defaults and recommendation trained longer, judged on text unseen so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hsae_lens._util.atomic_files import replacing_folder
from hsae_lens._util.tables import by_sae
from hsae_lens.comparison.judging import JudgeSAE
from hsae_lens.comparison.material import SAME_KIND
from hsae_lens.comparison.regret import NORMAL, resampling
from hsae_lens.pilot.points import Workbench
from hsae_lens.pilot.search import PilotSettings, Point
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

DEFAULTS, RECOMMENDED = "defaults", "recommended"

SEED = 2  # of neither of the two that settled the noise


@dataclass(frozen=True)
class Confirmed:
    """Held-out frontiers, columns ``sae`` (defaults, recommended), ``text``, ``k``, and figures.

    settings: of the recommended one, else the defaults.  steps: of each training.
    gain: of the mean explained variance over the budgets, of text of the training text's kind;
    None if only the defaults were trained.  interval: half of its 95% interval over documents, and
    what two equal trainings differ by, in quadrature.
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
    points: Mapping[str, Point], bench: Workbench, judge: JudgeSAE, folder: Path, noise: float
) -> Confirmed:
    """Trains what is not in ``folder`` yet, and judges all of it.

    Args:
        points: those called ``defaults`` and, if there is another, ``recommended``.
        noise: by how much the figure of two equal trainings differs.
    """
    judged = {}
    for name, point in points.items():
        place = folder / name / point.name
        if not place.exists():
            with replacing_folder(place) as fresh:
                bench.save_trained(point, fresh)
        sae = HierarchicalTopKSAE.load_from_disk(place, device=bench.device)
        judged[name] = judge(sae, list(bench.budgets))
    frontier = by_sae([of.rows.assign(sae=name) for name, of in judged.items()])
    if RECOMMENDED not in judged:
        return Confirmed(frontier, points[DEFAULTS].settings, points[DEFAULTS].steps)
    errors = {name: of.errors[SAME_KIND].mean(0) for name, of in judged.items()}  # [documents]
    weights, variance = resampling(bench.material.held[SAME_KIND])
    gains = weights @ (errors[DEFAULTS] - errors[RECOMMENDED]) / variance
    both = frontier[frontier["text"] == SAME_KIND].groupby("sae")["explained_variance"].mean()
    interval = math.hypot(NORMAL * float(gains.std()), noise)
    gain = float(both[RECOMMENDED] - both[DEFAULTS])
    return Confirmed(frontier, points[RECOMMENDED].settings, points[DEFAULTS].steps, gain, interval)
