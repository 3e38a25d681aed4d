"""HierarchicalTopK sparse autoencoders for SAELens: one SAE, every sparsity budget.

Importing this package registers the architecture ``"hierarchical_topk"`` with SAELens, so that its
runners, ``SAE.load_from_disk`` and ``TrainingSAE.load_from_disk`` know it.
"""

from hsae_lens._version import __version__
from hsae_lens.nested import nested_loss
from hsae_lens.ordered_code import OrderedCode
from hsae_lens.registry import register
from hsae_lens.sae import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from hsae_lens.training import HierarchicalTopKTrainingSAE, HierarchicalTopKTrainingSAEConfig

register()

__all__ = [
    "HierarchicalTopKSAE",
    "HierarchicalTopKSAEConfig",
    "HierarchicalTopKTrainingSAE",
    "HierarchicalTopKTrainingSAEConfig",
    "OrderedCode",
    "__version__",
    "nested_loss",
]
