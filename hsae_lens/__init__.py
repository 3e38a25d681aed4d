"""HierarchicalTopK sparse autoencoders for SAELens: one SAE, every sparsity budget.

Importing this package registers the architecture ``"hierarchical_topk"`` and the releases with
SAELens, so that its runners, ``SAE.load_from_disk`` and ``SAE.from_pretrained`` know them. Where
SAELens is not installed, :mod:`hsae_lens.objective` works by itself.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hsae_lens._util.version import __version__
from hsae_lens.objective.budgets import ErrorTarget, MeanBudget
from hsae_lens.objective.loss import nested_loss
from hsae_lens.objective.ordered_code import OrderedCode

_HAS_SAELENS = find_spec("sae_lens") is not None

if _HAS_SAELENS:
    from hsae_lens.releases.directory import read_tables, register_release
    from hsae_lens.releases.opening import load_pretrained
    from hsae_lens.sae.calibration import calibrate
    from hsae_lens.sae.inference_sae import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
    from hsae_lens.sae.registry import register
    from hsae_lens.sae.training_sae import (
        HierarchicalTopKTrainingSAE,
        HierarchicalTopKTrainingSAEConfig,
    )

    register()
    read_tables()

if TYPE_CHECKING:
    from hsae_lens.circuits import attribute_budgets
    from hsae_lens.evaluation import evaluate_budgets


def __getattr__(name: str) -> Any:
    if name in __all__ and not _HAS_SAELENS:
        raise ImportError(f"hsae_lens.{name} needs SAELens: pip install 'sae-lens>=6.54,<7'.")
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
