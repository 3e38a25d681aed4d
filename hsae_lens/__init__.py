"""HierarchicalTopK sparse autoencoders for SAELens: one SAE, every sparsity budget.

Importing this package registers the architecture ``"hierarchical_topk"`` and the releases with
SAELens, so that its runners, ``SAE.load_from_disk`` and ``SAE.from_pretrained`` know them.
"""

from typing import TYPE_CHECKING, Any

from hsae_lens._util.version import __version__
from hsae_lens.objective.budgets import ErrorTarget, MeanBudget
from hsae_lens.objective.loss import nested_loss
from hsae_lens.objective.ordered_code import OrderedCode
from hsae_lens.releases.directory import read_tables, register_release
from hsae_lens.releases.opening import load_pretrained
from hsae_lens.sae.calibration import calibrate
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from hsae_lens.sae.registry import register
from hsae_lens.sae.training_sae import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)

if TYPE_CHECKING:
    from hsae_lens.circuits import attribute_budgets
    from hsae_lens.evaluation import evaluate_budgets

register()
read_tables()


def __getattr__(name: str) -> Any:
    # Imported when first used: training and loading need neither.
    if name == "evaluate_budgets":
        from hsae_lens.evaluation import evaluate_budgets

        return evaluate_budgets
    if name == "attribute_budgets":
        from hsae_lens.circuits import attribute_budgets

        return attribute_budgets
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ErrorTarget",
    "HierarchicalTopKSAE",
    "HierarchicalTopKSAEConfig",
    "HierarchicalTopKTrainingSAE",
    "HierarchicalTopKTrainingSAEConfig",
    "MeanBudget",
    "OrderedCode",
    "__version__",
    "attribute_budgets",
    "calibrate",
    "evaluate_budgets",
    "load_pretrained",
    "nested_loss",
    "register_release",
]
