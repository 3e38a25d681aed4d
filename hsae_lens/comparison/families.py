"""The families that are compared: how an SAE is made for a budget, and trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    SAETrainer,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.types import DataProvider

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens.comparison.trained_controls import (
    FrozenDecoderSAE,
    FrozenEncoderSAE,
    SoftFrozenDecoderSAE,
)
from hsae_lens.sae.training_sae import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)
from hsae_lens.training.trainer import HierarchicalTopKTrainer


@dataclass(frozen=True)
class Shape:
    """What all SAEs of a comparison have in common. ``budgets``: ascending; the last one is K."""

    d_in: int
    d_sae: int
    budgets: tuple[int, ...]
    device: str = "cpu"

    @property
    def k(self) -> int:
        return self.budgets[-1]

    @property
    def common(self) -> dict[str, Any]:
        return {"d_in": self.d_in, "d_sae": self.d_sae, "device": self.device}


@dataclass(frozen=True)
class Family:
    """Some way to have an SAE at every budget.

    about: for people, in a line.  config: the training configuration for a shape and, of
    specialists, a budget.  specialist: whether it takes an SAE for each budget, or one for all.
    control: the class of one that stands there to show what learning less brings, else None.
    """

    about: str
    config: Callable[[Shape, int], Any]
    specialist: bool = False
    control: type[HierarchicalTopKTrainingSAE] | None = None

    def build(self, shape: Shape, budget: int) -> TrainingSAE[Any]:
        """A fresh training SAE, drawn with PyTorch's present random state."""
        cfg = self.config(shape, budget)
        made = self.control or get_sae_training_class(cfg.architecture())[0]
        return made(cfg)


def _ours(shape: Shape, k: int, **others: Any) -> HierarchicalTopKTrainingSAEConfig:
    # The material has its outliers left out already: for SAELens' classes too, which keep all.
    return HierarchicalTopKTrainingSAEConfig(**shape.common, k=k, outlier_factor=None, **others)


def _hierarchical(
    shape: Shape, _: int, weights: str = "uniform"
) -> HierarchicalTopKTrainingSAEConfig:
    return _ours(shape, shape.k, budget_weights=weights)


def _headroom(shape: Shape, _: int, weights: str = "uniform") -> HierarchicalTopKTrainingSAEConfig:
    return _ours(shape, min(shape.k * 3 // 2, shape.d_sae), budget_weights=weights)


def _topk(shape: Shape, budget: int) -> HierarchicalTopKTrainingSAEConfig:
    return _ours(shape, budget, budgets=[budget])


def _topk_saelens(shape: Shape, budget: int) -> TopKTrainingSAEConfig:
    # Sparse activations have no gradient on a CPU there.
    return TopKTrainingSAEConfig(**shape.common, k=budget, use_sparse_activations=False)


def _batchtopk(shape: Shape, budget: int) -> BatchTopKTrainingSAEConfig:
    return BatchTopKTrainingSAEConfig(**shape.common, k=budget, use_sparse_activations=False)


def _matryoshka(shape: Shape, budget: int) -> MatryoshkaBatchTopKTrainingSAEConfig:
    if shape.d_sae < 16:
        raise ValueError(f"matryoshka needs a d_sae of 16 or more, got {shape.d_sae}.")
    widths = [shape.d_sae // 16, shape.d_sae // 4, shape.d_sae]
    return MatryoshkaBatchTopKTrainingSAEConfig(
        **shape.common, k=budget, use_sparse_activations=False, matryoshka_widths=widths
    )


def _multi_topk(shape: Shape, _: int) -> HierarchicalTopKTrainingSAEConfig:
    few = max(1, shape.k // 4)
    weights = [8.0, 1.0] if few < shape.k else [1.0]
    return _ours(shape, shape.k, budgets=sorted({few, shape.k}), budget_weights=weights)


FAMILIES: dict[str, Family] = {
    "hierarchical": Family("one SAE, every budget in its loss", _hierarchical),
    "hierarchical-inverse": Family(
        "the same, budget j weighed by 1/j: small budgets first",
        partial(_hierarchical, weights="inverse"),
    ),
    "hierarchical-headroom": Family(
        "one SAE, every budget up to 1.5 K in its loss, used up to K", _headroom
    ),
    "hierarchical-square": Family(
        "up to 1.5 K too, budget j weighed by its square: large budgets first",
        partial(_headroom, weights="square"),
    ),
    "topk": Family("TopK trained for each budget alone: J = {k}", _topk, specialist=True),
    "topk-saelens": Family("the same by SAELens' class and step", _topk_saelens, specialist=True),
    "batchtopk": Family(
        "SAELens' BatchTopK for each budget, threshold set on training tokens",
        _batchtopk,
        specialist=True,
    ),
    "matryoshka": Family(
        "SAELens' Matryoshka BatchTopK for each budget, widths d_sae/16, /4, /1",
        _matryoshka,
        specialist=True,
    ),
    "multi-topk": Family(
        "one SAE, loss at K/4 and an eighth of it at K (Gao et al., arXiv 2406.04093)", _multi_topk
    ),
    "frozen-decoder": Family("decoder stays random", _hierarchical, control=FrozenDecoderSAE),
    "soft-frozen-decoder": Family(
        "decoder stays within cosine 0.8 of random", _hierarchical, control=SoftFrozenDecoderSAE
    ),
    "frozen-encoder": Family("encoder stays random", _hierarchical, control=FrozenEncoderSAE),
}
"""By the name in tables and flags. To compare another family, add an entry."""

CUT, TRUNCATED = "topk", "truncated"  # its specialist for K, cut to its largest at each budget


def family(name: str) -> Family:
    """A family by name.

    Raises:
        ValueError: if there is none (the nearest are said).
    """
    if name not in FAMILIES:
        raise ValueError(f"Unknown family {name!r}.{did_you_mean(name, FAMILIES)}")
    return FAMILIES[name]


def trained_for(name: str, budgets: Sequence[int]) -> list[int]:
    """The budgets for which a family needs an SAE each; K alone where one serves all."""
    return list(budgets) if family(name).specialist else [budgets[-1]]


WARM_UP, DECAY = 20, 5  # a 20th of the steps up, the last fifth down

DEAD_AFTER = 5  # a latent that was silent for a fifth of the steps is dead; SAELens' 1000 at most


def trainer_config(steps: int, batch_size: int, lr: float, device: str) -> SAETrainerConfig:
    """The optimizer and the schedule that all SAEs of a comparison or a pilot have."""
    return SAETrainerConfig(
        total_training_samples=steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=lr,
        lr_end=lr / 10,
        lr_warm_up_steps=steps // WARM_UP,
        lr_decay_steps=steps // DECAY,
        dead_feature_window=min(1000, max(1, steps // DEAD_AFTER)),
        device=device,
    )


def train(
    sae: TrainingSAE[Any], data: DataProvider, cfg: SAETrainerConfig, first: torch.Tensor
) -> TrainingSAE[Any]:
    """Trains with SAELens' trainer, ours with the step of :class:`HierarchicalTopKTrainer`.

    Args:
        data: gives batches ``[batch, d_in]``.
        first: ``[n, d_in]``: every family starts with its mean as b_dec, which Adam would else have
            to walk to.
    """
    with torch.no_grad():
        sae.b_dec.copy_(first.mean(0))
    trainer: SAETrainer[Any, Any] = SAETrainer(cfg, sae, data)
    if isinstance(sae, HierarchicalTopKTrainingSAE):
        trainer = HierarchicalTopKTrainer.adopt(trainer)
    return trainer.fit()
