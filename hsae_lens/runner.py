"""SAELens' training runner with a faster step and checkpoints that survive an interruption."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sae_lens import LanguageModelSAETrainingRunner, SAETrainer, TrainingSAE, logger
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training._interruption import InterruptedException
from sae_lens.util import get_special_token_ids
from tqdm.auto import tqdm
from typing_extensions import override

from hsae_lens.lagged import LAG, Lagged, lag_on
from hsae_lens.models import hook_activations
from hsae_lens.training import HierarchicalTopKTrainingSAE

SEQUENCES_PER_SHARD = 1024  # shuffled together when activations are cached
MAX_GRAD_NORM = 1.0  # SAELens' trainer clips at this norm and has no setting for it


class HierarchicalTopKTrainer(SAETrainer[Any, Any]):
    """SAELens' trainer with one training step written for sparse codes.

    Statistics, schedules, logging, checkpoints and evaluation are SAELens'. The step counts firings
    from the code instead of a [batch, d_sae] tensor, uses the fused Adam, and clips gradients
    inside it instead of in a pass of its own.
    """

    stop_requested = False
    bad_steps: Lagged

    @classmethod
    def adopt(cls, trainer: SAETrainer[Any, Any]) -> HierarchicalTopKTrainer:
        """The same trainer, with this class's step: both objects share one state.

        SAELens' runner builds its trainer itself and keeps reading from it afterwards.
        """
        adopted = cls.__new__(cls)
        adopted.__dict__ = trainer.__dict__
        adopted.bad_steps = Lagged()
        adopted.sae.checks_activations = lag_on(adopted.sae.device) == 0
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
    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        if self.stop_requested:
            raise InterruptedException()
        return super().step(batch)

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
            self._stop_if(self.bad_steps.step(~finite))
        return output

    def _stop_if(self, bad: float) -> None:
        """On a GPU, where the step itself passes over non-finite activations without asking."""
        if bad:
            raise FloatingPointError(
                f"At most {LAG} steps before step {self.n_training_steps}, activations or the loss "
                "were NaN or infinite. Such steps do not change the weights, and checkpoints are "
                "intact. Look at the model's dtype (float16 overflows) and the data."
            )

    @torch.no_grad()
    def _count_firings(self, feature_acts: torch.Tensor) -> None:
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

    def _clipped_optimizer_step(self, finite: torch.Tensor | None = None) -> None:
        """Adam with clipped gradients; it leaves the weights alone where ``finite`` is False."""
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


class HierarchicalTopKTrainingRunner(LanguageModelSAETrainingRunner):
    """SAELens' language model runner, faster, and safe to interrupt.

    Takes the same arguments. On SIGINT or SIGTERM the step in progress is finished and a whole
    checkpoint (weights, optimizer, schedules, statistics, dataset position) is written to
    ``checkpoint_path``; ``resume_from_checkpoint`` goes on from there. A second signal stops at
    once. Other architectures run through SAELens' own step.
    """

    @override
    def run_trainer_with_interruption_handling(
        self, trainer: SAETrainer[Any, Any]
    ) -> TrainingSAE[Any]:
        if not isinstance(trainer.sae, HierarchicalTopKTrainingSAE):
            return super().run_trainer_with_interruption_handling(trainer)
        fast = HierarchicalTopKTrainer.adopt(trainer)

        def request_stop(*_: Any) -> None:
            if fast.stop_requested:
                raise InterruptedException()
            fast.stop_requested = True

        former = {s: signal.signal(s, request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            return fast.fit()
        except InterruptedException:
            if self.cfg.checkpoint_path is not None:
                fast.save_checkpoint(checkpoint_name=str(fast.n_training_samples))
                logger.warning(
                    f"Interrupted. Go on with resume_from_checkpoint="
                    f"{self.cfg.checkpoint_path}/{fast.n_training_samples}"
                )
            raise
        finally:
            for s, handler in former.items():
                signal.signal(s, handler)


@torch.no_grad()
def cache_activations(
    model: Any,
    tokens: torch.Tensor,
    hook_name: str,
    folder: str | Path,
    *,
    seqpos_slice: tuple[int | None, ...] = (None,),
    batch_size: int = 32,
    seed: int = 0,
) -> Path:
    """Runs the model once and keeps a hook's activations where SAELens' runner reads them.

    For training several SAEs, or several epochs, on the same activations: pass the folder as
    ``cached_activations_path`` with ``use_cached_activations=True``. SAELens'
    ``CacheActivationsRunner`` does this for models it can open itself; here special tokens and
    positions outside ``seqpos_slice`` are left out and the rest is shuffled, so a row of the cache
    is a bag of tokens, not a sequence.

    Args:
        model: a hooked model.
        tokens: ``[n_sequences, context_size]``.
        hook_name: a TransformerLens hook.
        folder: replaced if it exists.
        seqpos_slice: positions of a sequence to keep, as in SAELens' runner.
        batch_size: sequences per forward pass.

    Returns:
        The folder: rows of ``{hook_name: float32 [context_size, d_in], token_ids}``.

    Raises:
        ValueError: if the model has no such hook.
    """
    folder, generator = Path(folder), torch.Generator().manual_seed(seed)
    special = torch.tensor(get_special_token_ids(model.tokenizer))
    context_size = tokens.shape[1]
    order = torch.randperm(len(tokens), generator=generator)
    shards: list[datasets.Dataset] = []
    with tqdm(total=tokens.numel(), desc=f"Caching {hook_name}", unit="tok") as bar:
        for group in tokens[order].split(SEQUENCES_PER_SHARD):
            kept_acts, kept_ids = [], []
            for batch in group.split(batch_size):
                acts = hook_activations(model, batch, hook_name).flatten(2)
                positions = torch.zeros(context_size, dtype=torch.bool)
                positions[slice(*seqpos_slice)] = True
                keep = positions & ~torch.isin(batch, special)
                kept_acts.append(acts.cpu()[keep].float())
                kept_ids.append(batch[keep])
                bar.update(batch.numel())
            acts, ids = torch.cat(kept_acts), torch.cat(kept_ids)
            n_rows = len(ids) // context_size
            shuffled = torch.randperm(len(ids), generator=generator)[: n_rows * context_size]
            shuffled = shuffled.view(n_rows, context_size)
            shards.append(_activation_rows(hook_name, acts[shuffled], ids[shuffled]))
    shutil.rmtree(folder, ignore_errors=True)
    datasets.concatenate_datasets(shards).save_to_disk(str(folder))
    return folder


def _activation_rows(hook_name: str, acts: torch.Tensor, ids: torch.Tensor) -> datasets.Dataset:
    features = datasets.Features(
        {
            hook_name: datasets.Array2D(shape=acts.shape[1:], dtype="float32"),
            "token_ids": datasets.List(datasets.Value("int32"), length=ids.shape[1]),
        }
    )
    rows = {hook_name: list(acts.numpy()), "token_ids": ids.numpy().astype(np.int32)}
    return datasets.Dataset.from_dict(rows, features=features)
