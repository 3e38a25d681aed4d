"""The architecture: for inference and for training, its files, and controls to compare it with."""

from hsae_lens.sae.controls import neuron_basis, random_decoder
from hsae_lens.sae.inference import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from hsae_lens.sae.training import HierarchicalTopKTrainingSAE, HierarchicalTopKTrainingSAEConfig

__all__ = [
    "HierarchicalTopKSAE",
    "HierarchicalTopKSAEConfig",
    "HierarchicalTopKTrainingSAE",
    "HierarchicalTopKTrainingSAEConfig",
    "neuron_basis",
    "random_decoder",
]
