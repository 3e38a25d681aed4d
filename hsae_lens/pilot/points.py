"""Trains and judges the points of a pilot."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hsae_lens.comparison.cells import FIRST
from hsae_lens.comparison.families import train, trainer_config
from hsae_lens.comparison.material import Material
from hsae_lens.evaluation import evaluate_activations
from hsae_lens.pilot.search import Measured, Point
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE
from hsae_lens.sae.training_sae import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)

NOT_TIMED = 3  # steps at the beginning, slower than the others


@dataclass(frozen=True)
class Workbench:
    """What every point is trained and judged on."""

    material: Material
    budgets: Sequence[int]
    batch_size: int
    device: str
    facts: Mapping[str, Any]  # of the metadata: model, hook

    def save_trained(self, point: Point, folder: Path) -> float:
        """Trains a point's SAE and saves it; the median seconds of a step."""
        torch.manual_seed(point.seed)
        cfg = HierarchicalTopKTrainingSAEConfig(
            d_in=self.material.train.shape[1],
            d_sae=point.settings.d_sae,
            k=point.settings.k,
            budget_weights=point.settings.budget_weights,
            aux_loss_coefficient=point.settings.aux_loss_coefficient,
            outlier_factor=None,  # the material has its outliers left out
            device=self.device,
        )
        for name, value in self.facts.items():
            cfg.metadata[name] = value
        if math.isfinite(self.material.max_norm):
            cfg.metadata.max_norm = self.material.max_norm
        trainer = trainer_config(point.steps, self.batch_size, point.settings.lr, self.device)
        batches = _Timed(self.material.batches(self.batch_size, point.seed))
        first = self.material.train[:FIRST].float()
        train(HierarchicalTopKTrainingSAE(cfg), batches, trainer, first).save_inference_model(
            folder
        )
        return batches.median()

    def measured(self, point: Point) -> Measured:
        """Trains a point and judges it on validation tokens; one that cannot be trained is kept
        as that, with why."""
        started, k = time.perf_counter(), point.settings.k
        with tempfile.TemporaryDirectory() as folder:
            try:
                step_seconds = self.save_trained(point, Path(folder))
            except (FloatingPointError, MemoryError, torch.OutOfMemoryError) as error:
                why = str(error).split("\n")[0]
                return Measured(point, {}, math.nan, time.perf_counter() - started, 0.0, why)
            sae = HierarchicalTopKSAE.load_from_disk(folder, device=self.device)
        asked = sorted({*(b for b in self.budgets if b <= k), k})
        x = self.material.validation.float()
        table = evaluate_activations(sae, x, asked, progress=False)
        seconds = time.perf_counter() - started
        explained = dict(zip(table["k"], table["explained_variance"], strict=True))
        shown = {int(b): float(explained[b]) for b in asked if b in self.budgets}
        return Measured(point, shown, float(table["dead"].iloc[-1]), seconds, step_seconds)


class _Timed:
    """Batches, and how long what is done between them takes."""

    def __init__(self, batches: Iterator[torch.Tensor]) -> None:
        self.batches, self.asked = batches, list[float]()

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        self.asked.append(time.perf_counter())
        return next(self.batches)

    def median(self) -> float:
        """Seconds of a step."""
        steps = [b - a for a, b in zip(self.asked, self.asked[1:], strict=False)]
        return statistics.median(steps[NOT_TIMED:] or steps or [0.0])
