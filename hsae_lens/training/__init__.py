"""Training: SAELens' runner with a faster step, recipes, cached activations, the demo."""

from hsae_lens.training.activation_cache import cache_activations
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner
from hsae_lens.training.trainer import HierarchicalTopKTrainer

__all__ = ["HierarchicalTopKTrainer", "HierarchicalTopKTrainingRunner", "cache_activations"]
