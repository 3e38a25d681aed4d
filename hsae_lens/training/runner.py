"""SAELens' training runner with our trainers: faster, and safe to interrupt or kill."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAETrainingRunner, SAETrainer, TrainingSAE, logger
from sae_lens.constants import (
    SAE_WEIGHTS_FILENAME,
)
from safetensors.torch import load_file
from typing_extensions import override

from hsae_lens._util.atomic_files import replacing_files, replacing_folder
from hsae_lens._util.private_names import InterruptedException
from hsae_lens.sae.training_sae import HierarchicalTopKTrainingSAE
from hsae_lens.training.checkpoints import check_finite, missing_from_checkpoint
from hsae_lens.training.checks import check_hook, check_runner_settings
from hsae_lens.training.positions import say_outlier_positions
from hsae_lens.training.trainer import HierarchicalTopKTrainer, InterruptibleTrainer


class HierarchicalTopKTrainingRunner(LanguageModelSAETrainingRunner):
    """SAELens' language model runner, faster, and safe to interrupt or kill.

    Takes the same arguments. On SIGINT or SIGTERM the step in progress is finished and a whole
    checkpoint (weights, optimizer, schedules, statistics, dataset position) is written to
    ``checkpoint_path``; ``resume_from_checkpoint`` goes on from there. Before the first step there
    is nothing to save. A second signal stops at once, within a step and within a save, and writes
    nothing; earlier checkpoints stay. In a thread other than the main one Python handles no
    signals. Killed at any moment, the folders in ``checkpoint_path`` are whole, and a new
    ``output_path`` appears whole. Other architectures run through SAELens' own step.

    Raises:
        ValueError: before anything is collected, if a setting cannot be
            (:mod:`hsae_lens.training.checks`), the checkpoint to go on from is not whole, or the
            model has no such hook or another width there.
        FloatingPointError: before weights that are NaN or infinite are saved.
    """

    def __init__(self, cfg: Any, *args: Any, **kwargs: Any) -> None:
        check_runner_settings(cfg)
        resumed = cfg.resume_from_checkpoint
        missing = missing_from_checkpoint(resumed) if resumed is not None else []
        if missing:
            raise ValueError(
                f"{resumed} is no whole checkpoint: {', '.join(missing)} missing or cut short. Go "
                "on from another."
            )
        super().__init__(cfg, *args, **kwargs)

    @override
    def _compile_llm_if_needed(self) -> None:
        # Here SAELens has the model, but neither the data nor a compiled forward pass yet.
        if self.cfg.model_class_name == "HookedTransformer" and not self.cfg.use_cached_activations:
            check_hook(self.model, self.cfg)
        super()._compile_llm_if_needed()

    @override
    def run_trainer_with_interruption_handling(
        self, trainer: SAETrainer[Any, Any]
    ) -> TrainingSAE[Any]:
        adopted, ours = self.adopted(trainer), _is_ours(trainer.sae)
        self._go_on_in_cache(trainer.n_training_samples)
        with _on_signals(adopted.request_stop):
            try:
                if ours and not trainer.n_training_steps:
                    self._say_outlier_positions(trainer.sae.cfg.outlier_factor)
                return adopted.fit()
            except Exception as error:
                # Raised within a library that calls back into Python, it comes out as its error.
                if not (adopted.stopped or isinstance(error, InterruptedException)):
                    raise
                self._save_interrupted(adopted)
                raise InterruptedException() from error

    def adopted(self, trainer: SAETrainer[Any, Any]) -> InterruptibleTrainer:
        """The trainer that SAELens built, with our methods."""
        return (HierarchicalTopKTrainer if _is_ours(trainer.sae) else InterruptibleTrainer).adopt(
            trainer
        )

    def _go_on_in_cache(self, n_seen: int) -> None:
        """SAELens, resumed, reads cached activations from their first row; here behind those seen.

        But for those that its buffer held.
        """
        store = self.activations_store
        if n_seen and store.cached_activation_dataset is not None:
            at_once = store.store_batch_size_prompts
            n_batches = max(1, len(store.cached_activation_dataset) // at_once)
            seen = n_seen // (at_once * store.context_size)
            store.current_row_idx = seen % n_batches * at_once

    def _say_outlier_positions(self, factor: float | None) -> None:
        # Cached activations have no order left; what is prefetched is another thread's.
        if factor and not (self.cfg.use_cached_activations or self.cfg.prefetch_llm_batches):
            say_outlier_positions(self.activations_store, factor)

    def _save_interrupted(self, trainer: InterruptibleTrainer) -> None:
        if not trainer.between_steps:
            logger.warning("Interrupted within a step: not saved. Earlier checkpoints are intact.")
        elif self.cfg.checkpoint_path is not None and trainer.n_training_steps:
            trainer.save_checkpoint(checkpoint_name=str(trainer.n_training_samples))
            logger.warning(
                f"Interrupted. Go on with resume_from_checkpoint="
                f"{self.cfg.checkpoint_path}/{trainer.n_training_samples}"
            )

    @override
    def save_final_sae(
        self,
        sae: TrainingSAE[Any],
        output_path: str,
        log_feature_sparsity: torch.Tensor | None = None,
    ) -> None:
        """As SAELens' ``save_final_sae``; a killed run leaves no folder that looks finished.

        Raises:
            FloatingPointError: if the weights are not finite.
        """
        saved = replacing_files if Path(output_path).exists() else replacing_folder
        with saved(output_path) as fresh:
            super().save_final_sae(sae, str(fresh), log_feature_sparsity)
            # What was written: norms are folded into it, where finite weights may overflow.
            check_finite(load_file(fresh / SAE_WEIGHTS_FILENAME))


def _is_ours(sae: TrainingSAE[Any]) -> bool:
    return isinstance(sae, HierarchicalTopKTrainingSAE)


@contextlib.contextmanager
def _on_signals(handler: Callable[..., None]) -> Iterator[None]:
    """SIGINT and SIGTERM go to ``handler``; only the main thread can ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, its in former.items():
            signal.signal(s, its)
