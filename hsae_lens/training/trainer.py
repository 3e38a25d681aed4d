"""SAELens' trainer with whole checkpoints and stops between steps, and with a faster step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from sae_lens import SAETrainer, logger
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from typing_extensions import override

from hsae_lens._util.atomic_files import replacing_folder
from hsae_lens._util.delayed_scalar import DELAY, DelayedScalar, delay_on
from hsae_lens._util.private_names import InterruptedException
from hsae_lens.sae.training_sae import HierarchicalTopKTrainingSAE
from hsae_lens.training.checkpoints import check_finite

MAX_GRAD_NORM = 1.0  # SAELens' trainer clips at this norm and has no setting for it


class InterruptibleTrainer(SAETrainer[Any, Any]):
    """SAELens' trainer with checkpoints that are whole, and stops that leave no half-done step.

    A stop may be asked for at any moment. While batches are waited for (for a step or for the
    estimate of their norm) it comes at once; a step, with its logs and its checkpoint, is finished
    before.
    """

    stop_requested = False
    stopped = False  # an interruption was raised; what comes out may be another error
    between_steps = True  # weights, statistics and counts agree: they may be saved

    @classmethod
    def adopt(cls, trainer: SAETrainer[Any, Any]) -> Self:
        """The same trainer, with this class's methods: both objects share one state.

        SAELens' runner builds its trainer itself and keeps reading from it afterwards.
        """
        adopted = cls.__new__(cls)
        adopted.__dict__ = trainer.__dict__
        return adopted

    def request_stop(self, *_: Any) -> None:
        """Stops between steps, or at the second request at once. A handler of signals.

        Raises:
            InterruptedException: if that is now.
        """
        if self.between_steps or self.stop_requested:
            self.stopped = True
            raise InterruptedException()
        self.stop_requested = True

    @override
    def maybe_reset_sparsity(self) -> dict[str, Any]:
        """Where SAELens' loop begins: the last step is done, the next batch not there yet."""
        self._stop_if_requested()  # before the reset: a run that goes on does it then
        log = super().maybe_reset_sparsity()
        self._stop_if_requested()
        return log

    def _stop_if_requested(self) -> None:
        self.between_steps = True
        if self.stop_requested:
            raise InterruptedException()

    @override
    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        self.between_steps = False
        return super().step(batch)

    @override
    def full_sparsity_window_log(self) -> dict[str, Any]:
        """Where SAELens' loop ends: folding the norm into the weights must not be cut short."""
        self.between_steps = False
        return super().full_sparsity_window_log()

    @override
    def save_checkpoint(
        self,
        checkpoint_name: str,
        base_path: Path | str | None = None,
        wandb_aliases: list[str] | None = None,
    ) -> None:
        """As SAELens' ``save_checkpoint``; the folder is there whole or not at all.

        SAELens writes weights, optimizer, statistics and position one after the other.

        Raises:
            FloatingPointError: if the weights are not finite.
        """
        check_finite(self.sae.state_dict())
        base = self.cfg.checkpoint_path if base_path is None else base_path
        if base is None:  # SAELens only uploads it
            return super().save_checkpoint(checkpoint_name, None, wandb_aliases)
        with replacing_folder(Path(base) / checkpoint_name) as fresh:
            super().save_checkpoint(checkpoint_name, fresh.parent, wandb_aliases)


class HierarchicalTopKTrainer(InterruptibleTrainer):
    """SAELens' trainer with a training step written for sparse codes.

    Statistics, schedules, logging and evaluation are SAELens'. The step counts firings from the
    code instead of a [batch, d_sae] tensor, uses the fused Adam, and clips gradients inside it
    instead of in a pass of its own. On a GPU it never waits to learn whether activations and loss
    are finite: where they are not, Adam leaves the weights alone, and the run stops some steps
    later.
    """

    bad_steps: DelayedScalar  # whether a step's activations or loss were not finite, on a GPU

    @override
    @classmethod
    def adopt(cls, trainer: SAETrainer[Any, Any]) -> Self:
        adopted = super().adopt(trainer)
        adopted.bad_steps = DelayedScalar()
        adopted.sae.checks_activations = delay_on(adopted.sae.device) == 0
        return adopted

    @override
    def fit(self) -> Any:
        trained = super().fit()
        if any(self.bad_steps.rest()):
            logger.warning(
                "Activations or the loss of the last steps were NaN or infinite; they were skipped."
            )
        return trained

    @override
    def _train_step(
        self, sae: HierarchicalTopKTrainingSAE, sae_in: torch.Tensor
    ) -> TrainStepOutput:
        sae.train()
        finite = torch.isfinite(sae_in).all() if not sae.checks_activations else None
        with self.autocast_if_enabled:
            output = sae.training_forward_pass(
                TrainStepInput(
                    sae_in=sae_in,
                    dead_neuron_mask=self.dead_neurons,
                    coefficients=self.get_coefficients(),
                    n_training_steps=self.n_training_steps,
                    is_logging_step=self._is_logging_step(),
                )
            )
        if finite is not None:
            finite &= torch.isfinite(output.loss)
        self._count_firings(output.feature_acts)
        output.loss.backward()
        self._clipped_optimizer_step(finite)
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        if finite is not None:
            self._check_earlier_step(~finite)
        return output

    def _check_earlier_step(self, bad: torch.Tensor) -> None:
        if self.bad_steps.step(bad):
            raise FloatingPointError(
                f"At most {DELAY} steps before step {self.n_training_steps}, activations or the "
                "loss were NaN or infinite. Such steps do not change the weights, and "
                "checkpoints are intact. Look at the model's dtype (float16 overflows) and the "
                "data."
            )

    @torch.no_grad()
    def _count_firings(self, feature_acts: torch.Tensor) -> None:
        """SAELens' statistics of each latent; activations ``[batch, d_sae]``, sparse or not."""
        if feature_acts.is_sparse:
            latents, values = feature_acts._indices()[-1], feature_acts._values()
            fired = torch.zeros_like(self.act_freq_scores)
            fired.index_add_(0, latents, (values > 0).to(fired.dtype))
        else:
            fired = (feature_acts > 0).sum(0).to(self.act_freq_scores.dtype)
        self.n_forward_passes_since_fired += 1
        self.n_forward_passes_since_fired.masked_fill_(fired > 0, 0)
        self.act_freq_scores += fired
        self.n_frac_active_samples += self.cfg.train_batch_size_samples

    def _clipped_optimizer_step(self, finite: torch.Tensor | None) -> None:
        """Adam with clipped gradients; weights stay as they are where ``finite`` (0-d) is False."""
        for group in self.optimizer.param_groups:  # here, because loading a checkpoint resets it
            group["fused"], group["foreach"] = True, False
        gradients = [p.grad for p in self.sae.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # The fused Adam divides gradients by grad_scale while it reads them: clip_grad_norm_'s
        # factor, without a pass over the gradients.
        scale = ((norm + 1e-6) / MAX_GRAD_NORM).clamp(min=1.0).float()
        self.optimizer.grad_scale = scale
        self.optimizer.found_inf = torch.zeros_like(scale) if finite is None else (~finite).float()
        self.optimizer.step()
        self.optimizer.zero_grad()
