"""Tells SAELens about the architecture."""

from __future__ import annotations

from sae_lens.registry import (
    SAE_CLASS_REGISTRY,
    SAE_TRAINING_CLASS_REGISTRY,
    register_sae_class,
    register_sae_training_class,
)

from hsae_lens.sae.inference_sae import ARCHITECTURE, HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from hsae_lens.sae.training_sae import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)


def register() -> None:
    """Registers ``"hierarchical_topk"`` for inference and training; calling it again is harmless.

    After a reload in a notebook the classes are new objects of the same name and take the old
    ones' place. A class of another package under this name is left alone and reported.

    Raises:
        ValueError: if another package has registered ``"hierarchical_topk"``.
    """
    inference = (HierarchicalTopKSAE, HierarchicalTopKSAEConfig)
    training = (HierarchicalTopKTrainingSAE, HierarchicalTopKTrainingSAEConfig)
    for registry, classes in (
        (SAE_CLASS_REGISTRY, inference),
        (SAE_TRAINING_CLASS_REGISTRY, training),
    ):
        known = registry.get(ARCHITECTURE)
        if known and known[0].__module__ != classes[0].__module__:
            raise ValueError(
                f"{known[0].__module__} has already registered the architecture {ARCHITECTURE!r}."
            )
        registry.pop(ARCHITECTURE, None)
    # Inference first: a training config looks its inference class up.
    register_sae_class(ARCHITECTURE, *inference)
    register_sae_training_class(ARCHITECTURE, *training)
