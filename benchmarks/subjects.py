"""What is measured of a training step: ours, and SAELens'. Each is a closure over its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sae_lens import LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig

from benchmarks.problems import Shape
from hsae_lens import HierarchicalTopKTrainingSAE, HierarchicalTopKTrainingSAEConfig
from hsae_lens.training.trainer import HierarchicalTopKTrainer


def trainer(kind: str, shape: Shape, device: str, **settings: Any) -> SAETrainer[Any, Any]:
    """A trainer with the same weights for every kind.

    ``saelens``: SAELens' TopK in its trainer. ``saelens tuned``: with the fused Adam and a compiled
    forward pass (and TF32 on a GPU, set by the caller). ``ours``: every budget in our trainer.
    ``ours in saelens``: every budget in SAELens' trainer.
    """
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_in": shape.d_in, "d_sae": shape.d_sae, "k": shape.k}
    sizes["device"] = device
    sae: Any
    if kind.startswith("saelens"):
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(**sizes))
    else:
        settings = {"b_dec_init": "zeros", **settings}  # as SAELens', so that losses are the same
        sae = HierarchicalTopKTrainingSAE(HierarchicalTopKTrainingSAEConfig(**sizes, **settings))
    made: SAETrainer[Any, Any] = SAETrainer(_trainer_config(shape, device), sae, iter(()))
    if kind == "saelens tuned":
        for group in made.optimizer.param_groups:
            group["fused"] = True
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    return HierarchicalTopKTrainer.adopt(made) if kind == "ours" else made


def step_of(made: SAETrainer[Any, Any], shape: Shape, device: str) -> Callable[[], Any]:
    """One training step on a fixed batch: forward, backward, statistics, clipping, Adam."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape.tokens, shape.d_in, generator=generator).to(device)

    def step() -> Any:
        output = made.step(x)
        made.n_training_steps += 1
        return output

    return step


def _trainer_config(shape: Shape, device: str) -> SAETrainerConfig:
    return SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=10**9,
        device=device,
        autocast=False,
        lr=3e-4,
        lr_end=3e-5,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=shape.tokens,
        dead_feature_window=10**6,
        feature_sampling_window=10**6,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=1,
    )
