"""HierarchicalTopK sparse autoencoders for SAELens: one SAE, every sparsity budget.

Importing this package registers the architecture ``"hierarchical_topk"`` and the releases with
SAELens, so that its runners, ``SAE.load_from_disk`` and ``SAE.from_pretrained`` know them.
"""

from hsae_lens._version import __version__
from hsae_lens.nested import nested_loss
from hsae_lens.ordered_code import OrderedCode
from hsae_lens.registry import register
from hsae_lens.releases import load_pretrained, read_tables, register_release
from hsae_lens.sae import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from hsae_lens.training import HierarchicalTopKTrainingSAE, HierarchicalTopKTrainingSAEConfig

register()
read_tables()

__all__ = [
    "HierarchicalTopKSAE",
    "HierarchicalTopKSAEConfig",
    "HierarchicalTopKTrainingSAE",
    "HierarchicalTopKTrainingSAEConfig",
    "OrderedCode",
    "__version__",
    "load_pretrained",
    "nested_loss",
    "register_release",
]
