"""The fine-tuning: our runner, with a trainer that looks at the frontier and stops in time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAETrainer, TrainingSAE
from sae_lens.saes.sae import TrainStepOutput
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from hsae_lens.conversion.reordering import settle
from hsae_lens.evaluation import evaluate_activations
from hsae_lens.objective.budgets import powers_of_two, resolve_weights
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner
from hsae_lens.training.trainer import HierarchicalTopKTrainer, InterruptibleTrainer

logger = logging.getLogger(__name__)

LOOKS = 10  # at the frontier in a run, more in one of fewer than 20 steps

SETTLED = 5e-4  # of explained variance, from one look to the next: it no longer moves

RISES_OVER, ENDS_OVER = 20, 5  # a twentieth of the steps; a fifth of those until it settled


def learning_rate_settings(steps: int, lr: float) -> dict[str, Any]:
    """SAELens' settings of a rate that rises quickly and then falls to 0 until the last step.

    One that stays high and falls at the end loses twice as much at the source's own k (LOG.md).
    """
    rises = steps // RISES_OVER
    return {"lr": lr, "lr_end": 0.0, "lr_warm_up_steps": rises, "lr_decay_steps": steps - rises}


class SettlingTrainer(HierarchicalTopKTrainer):
    """Our trainer, which brings the learning rate to 0 and ends once the frontier has settled."""

    validation: torch.Tensor  # [n, d_in]
    seen: list[tuple[int, list[float]]]  # step, explained variance at 1, 2, 4, … K

    @override
    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        total = self.cfg.total_training_samples // self.cfg.train_batch_size_samples
        ending = self.n_training_steps > total - total // ENDS_OVER
        if self.n_training_steps % max(1, total // LOOKS) == 0 and not ending:
            self.look(total)
        return super().step(batch)

    def look(self, total: int) -> None:
        """Measures the frontier, and ends soon if it has settled."""
        budgets = powers_of_two(self.sae.cfg.k)
        table = evaluate_activations(self.sae, self.validation, budgets, progress=False)
        frontier = table["explained_variance"].to_list()
        self.seen.append((self.n_training_steps, frontier))
        shown = " ".join(f"{value:.3f}" for value in frontier)
        logger.info(f"Step {self.n_training_steps}: explained variance {shown} at k=1, 2, 4, …")
        if len(self.seen) > 1:
            weights = resolve_weights(self.sae.cfg.budget_weights, budgets)
            before, now = (
                sum(w * value for w, value in zip(weights, values, strict=True))
                for _, values in self.seen[-2:]
            )
            if now - before < SETTLED:
                self.end_after(max(1, self.n_training_steps // ENDS_OVER), total)

    def end_after(self, steps: int, total: int) -> None:
        """Brings the learning rate to 0 in so many steps, or those that are left, and ends then."""
        steps = min(steps, total - self.n_training_steps)
        logger.info(f"The frontier no longer moves: the last {steps} steps of {total} planned.")
        batch = self.cfg.train_batch_size_samples
        self.cfg.total_training_samples = (self.n_training_steps + steps) * batch
        (group,) = self.optimizer.param_groups
        now = group["lr"] / group["initial_lr"]
        self.lr_scheduler = LambdaLR(self.optimizer, lambda n: now * max(0, 1 - n / steps))


class ConversionRunner(HierarchicalTopKTrainingRunner):
    """Our runner on an SAE that was taken over (``override_sae``).

    ``validation``: activations ``[n, d_in]`` to look at the frontier on; ``trainer``: what trained,
    with what it has ``seen``.
    """

    trainer: SettlingTrainer

    def __init__(self, cfg: Any, validation: torch.Tensor, **overrides: Any) -> None:
        super().__init__(cfg, **overrides)
        self.validation = validation

    @override
    def adopted(self, trainer: SAETrainer[Any, Any]) -> InterruptibleTrainer:
        self.trainer = SettlingTrainer.adopt(trainer)
        self.trainer.validation, self.trainer.seen = self.validation, []
        return self.trainer

    @override
    def _save_interrupted(self, trainer: InterruptibleTrainer) -> None:
        logger.warning("Interrupted: nothing of this conversion is kept.")

    @override
    def save_final_sae(
        self,
        sae: TrainingSAE[Any],
        output_path: str | Path,
        log_feature_sparsity: torch.Tensor | None = None,
    ) -> None:
        settle(sae)
        super().save_final_sae(sae, str(output_path), log_feature_sparsity)
