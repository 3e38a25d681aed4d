"""SAELens' training runner with a faster step and checkpoints that survive an interruption."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
import torch
from sae_lens import (
    LanguageModelSAETrainingRunner,
    SAETrainer,
    TrainingSAE,
    logger,
)
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training._interruption import InterruptedException
from sae_lens.util import get_special_token_ids
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tqdm.auto import tqdm
from typing_extensions import override

from hsae_lens.files import is_finite, replacing_files, replacing_folder
from hsae_lens.lagged import LAG, Lagged, lag_on
from hsae_lens.models import hook_activations
from hsae_lens.run_settings import check_hook, check_settings
from hsae_lens.training import HierarchicalTopKTrainingSAE

SEQUENCES_PER_SHARD = 1024  # shuffled together when activations are cached
MAX_GRAD_NORM = 1.0  # SAELens' trainer clips at this norm and has no setting for it
CHECKPOINT = (
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
)
"""The files that a run goes on from."""
CACHE = "hsae_activations.json"  # marks a data set that cache_activations wrote
CACHE_FILES = (CACHE, "dataset_info.json", "state.json")  # and *.arrow


class InterruptibleTrainer(SAETrainer[Any, Any]):
    """SAELens' trainer with checkpoints that are whole, and stops that leave no half-done step.

    A stop may be asked for at any moment. While batches are waited for (for a step or for the
    estimate of their norm) it comes at once; a step, with its logs and its checkpoint, is finished
    before.
    """

    stop_requested = False
    between_steps = True  # the weights, the statistics and the counts agree

    @classmethod
    def adopt(cls, trainer: SAETrainer[Any, Any]) -> Self:
        """The same trainer, with this class's methods: both objects share one state.

        SAELens' runner builds its trainer itself and keeps reading from it afterwards.
        """
        adopted = cls.__new__(cls)
        adopted.__dict__ = trainer.__dict__
        return adopted

    def request_stop(self, *_: Any) -> None:
        """Stops between steps, or at the second request at once.

        Raises:
            InterruptedException: if that is now.
        """
        if self.between_steps or self.stop_requested:
            raise InterruptedException()
        self.stop_requested = True

    @override
    def maybe_reset_sparsity(self) -> dict[str, Any]:
        """Where SAELens' loop begins: the last step is done, the next batch not there yet."""
        self._between_steps()  # before the reset: a run that goes on does it then
        log = super().maybe_reset_sparsity()
        self._between_steps()
        return log

    def _between_steps(self) -> None:
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
        _check_finite(self.sae.state_dict())
        base = self.cfg.checkpoint_path if base_path is None else base_path
        if base is None:  # SAELens only uploads it
            return super().save_checkpoint(checkpoint_name, None, wandb_aliases)
        with replacing_folder(Path(base) / checkpoint_name) as fresh:
            super().save_checkpoint(checkpoint_name, fresh.parent, wandb_aliases)


def _check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """The last step's loss is looked at when it is made, the weights it leads to only here."""
    for name, tensor in weights.items():
        if not is_finite(tensor):
            raise FloatingPointError(
                f"{name} became NaN or infinite in training and was not saved. Earlier checkpoints "
                "are intact; go on from one with a smaller lr."
            )


def missing_from_checkpoint(folder: str | Path) -> list[str]:
    """The files a run cannot go on without that a folder lacks, or that are cut short."""
    return [name for name in CHECKPOINT if not _is_whole(Path(folder) / name)]


def _is_whole(file: Path) -> bool:
    if file.suffix == ".pt":
        return zipfile.is_zipfile(file)  # torch.save writes the directory of its archive last
    if file.suffix == ".safetensors":
        with contextlib.suppress(SafetensorError, OSError), safe_open(file, "pt"):
            return True
        return False
    with contextlib.suppress(ValueError, OSError):
        json.loads(file.read_bytes())
        return True
    return False


class HierarchicalTopKTrainer(InterruptibleTrainer):
    """SAELens' trainer with one training step written for sparse codes.

    Statistics, schedules, logging, checkpoints and evaluation are SAELens'. The step counts firings
    from the code instead of a [batch, d_sae] tensor, uses the fused Adam, and clips gradients
    inside it instead of in a pass of its own.
    """

    bad_steps: Lagged

    @override
    @classmethod
    def adopt(cls, trainer: SAETrainer[Any, Any]) -> Self:
        adopted = super().adopt(trainer)
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
    """SAELens' language model runner, faster, and safe to interrupt or kill.

    Takes the same arguments. On SIGINT or SIGTERM the step in progress is finished and a whole
    checkpoint (weights, optimizer, schedules, statistics, dataset position) is written to
    ``checkpoint_path``; ``resume_from_checkpoint`` goes on from there. Before the first step there
    is nothing to save. A second signal stops at once, within a step and within a save, and writes
    nothing; earlier checkpoints stay. In a thread other than the main one Python handles no
    signals. Killed at any moment, the folders in ``checkpoint_path`` are whole, and a new
    ``output_path`` appears whole. Other architectures run through SAELens' own step.

    Raises:
        ValueError: before anything is collected, if a setting cannot be (:mod:`run_settings`), the
            checkpoint to go on from is not whole, or the model has no such hook or another width
            there.
        FloatingPointError: before weights that are NaN or infinite are saved.
    """

    def __init__(self, cfg: Any, *args: Any, **kwargs: Any) -> None:
        check_settings(cfg)
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
        ours = isinstance(trainer.sae, HierarchicalTopKTrainingSAE)
        adopted = (HierarchicalTopKTrainer if ours else InterruptibleTrainer).adopt(trainer)
        with _on_signals(adopted.request_stop):
            try:
                return adopted.fit()
            except InterruptedException:
                self._save_interrupted(adopted)
                raise

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
            _check_finite(load_file(fresh / SAE_WEIGHTS_FILENAME))


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
        folder: replaced if this function wrote it, once the new one is complete.
        seqpos_slice: positions of a sequence to keep, as in SAELens' runner.
        batch_size: sequences per forward pass.

    Returns:
        The folder: rows of ``{hook_name: float32 [context_size, d_in], token_ids}``.

    Raises:
        ValueError: if the model has no such hook, or the folder holds anything else.
    """
    folder, generator = Path(folder), torch.Generator().manual_seed(seed)
    _refuse_others(folder)
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
    with replacing_folder(folder) as fresh:
        datasets.concatenate_datasets(shards).save_to_disk(str(fresh))
        (fresh / CACHE).write_text(json.dumps({"hook_name": hook_name, "seed": seed}))
    return folder


def _refuse_others(folder: Path) -> None:
    if folder.is_mount():
        raise ValueError(f"{folder} is a mount point and cannot be replaced: give a folder in it.")
    if not folder.exists():
        return
    names = [file.name for file in folder.iterdir()]
    others = [n for n in names if n not in CACHE_FILES and not n.endswith(".arrow")]
    if others or (names and CACHE not in names):
        raise ValueError(
            f"{folder} holds files that cache_activations did not write ("
            f"{', '.join(sorted(others or names)[:3])}): give another folder, or move them."
        )


def _activation_rows(hook_name: str, acts: torch.Tensor, ids: torch.Tensor) -> datasets.Dataset:
    features = datasets.Features(
        {
            hook_name: datasets.Array2D(shape=acts.shape[1:], dtype="float32"),
            "token_ids": datasets.List(datasets.Value("int32"), length=ids.shape[1]),
        }
    )
    rows = {hook_name: list(acts.numpy()), "token_ids": ids.numpy().astype(np.int32)}
    return datasets.Dataset.from_dict(rows, features=features)
