"""The architecture: for inference and for training, its files, and controls to compare it with."""

from hsae_lens.sae.calibration import Calibration, calibrate
from hsae_lens.sae.codes import masked_activations
from hsae_lens.sae.controls import neuron_basis, random_decoder
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from hsae_lens.sae.training_sae import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)

__all__ = [
    "Calibration",
    "HierarchicalTopKSAE",
    "HierarchicalTopKSAEConfig",
    "HierarchicalTopKTrainingSAE",
    "HierarchicalTopKTrainingSAEConfig",
    "calibrate",
    "masked_activations",
    "neuron_basis",
    "random_decoder",
]
