"""What is measured: our step and loss, and the peers'. Each subject is a closure over its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig

from hsae_lens import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
    OrderedCode,
    nested_loss,
)
from hsae_lens.training.trainer import HierarchicalTopKTrainer


@dataclass(frozen=True)
class Shape:
    """One size of problem: tokens per step, widths, and the largest budget."""

    tokens: int
    d_in: int
    d_sae: int
    k: int

    def __str__(self) -> str:
        return f"B={self.tokens} d_in={self.d_in} d_sae={self.d_sae} K={self.k}"


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


class LossProblem:
    """A code with its decoder and target, for timing the loss alone, forward and backward."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator).to(device, dtype)

        x = normal(shape.tokens, shape.d_in)
        self.W_dec = (normal(shape.d_sae, shape.d_in) / shape.d_in**0.5).requires_grad_()
        self.b_dec = normal(shape.d_in).requires_grad_()
        # A real encoder's skew: the same latents serve many tokens.
        code = OrderedCode.from_pre_activations(x @ self.W_dec.detach().T, shape.k)
        self.values, self.indices = code.values.requires_grad_(), code.indices
        self.target = x

    def leaves(self) -> list[torch.Tensor]:
        return [self.values, self.W_dec, self.b_dec]

    def ours(self, budgets: list[int] | None = None, kernel: str = "auto") -> list[torch.Tensor]:
        code = OrderedCode(self.values, self.indices)
        loss = nested_loss(code, self.W_dec, self.b_dec, self.target, budgets, kernel=kernel)
        return [loss, *torch.autograd.grad(loss, self.leaves())]

    def naive(self, loss_of: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        loss = loss_of(self.values, self.indices, self.W_dec, self.b_dec, self.target)
        return [loss, *torch.autograd.grad(loss, self.leaves())]


def cumulative_sum_loss(
    values: torch.Tensor,
    indices: torch.Tensor,
    W_dec: torch.Tensor,
    b_dec: torch.Tensor,
    target: torch.Tensor,
) -> torch.Tensor:
    """The objective as one would first write it: every prefix of every token in one tensor."""
    prefixes = b_dec + (values.unsqueeze(-1) * W_dec[indices]).cumsum(1)
    return (prefixes - target.unsqueeze(1)).pow(2).sum(-1).mean()
