"""A hierarchical SAE at a budget, in the shapes that other circuit tools take."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from hsae_lens.objective.budgets import Budget
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE
from hsae_lens.sae.normalization import joined_heads, normalization_of


class Dictionary(nn.Module):
    """What feature-circuits (saprmarks) calls a dictionary; see :func:`as_dictionary`."""

    def __init__(self, sae: HierarchicalTopKSAE, k: Budget) -> None:
        super().__init__()
        self.sae, self.k = sae, k
        self.activation_dim, self.dict_size = sae.cfg.d_in, sae.cfg.d_sae

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latents ``[..., dict_size]``, at budget k."""
        with joined_heads(self.sae), self.sae.using_budget(self.k):
            return self.sae.encode(x)

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        """Reconstruction ``[..., activation_dim]`` from any number of active latents; affine."""
        with joined_heads(self.sae):
            return self.sae.decode(f)

    def forward(self, x: torch.Tensor, output_features: bool = False) -> Any:
        """The reconstruction of ``x``, and with ``output_features`` its latents."""
        f = self.encode(x)
        x_hat = self.decode(f)
        return (x_hat, f) if output_features else x_hat


class Featurizer(NamedTuple):
    """The two modules of a MIB featurizer; see :func:`as_featurizer`."""

    featurizer: nn.Module
    inverse_featurizer: nn.Module
    n_features: int


def as_dictionary(sae: HierarchicalTopKSAE, k: Budget) -> Dictionary:
    """The SAE at budget k as a dictionary of feature-circuits / dictionary_learning.

    It has what their attribution and ablation call: ``encode``, ``decode`` (affine, for any number
    of active latents), ``forward(x, output_features=True)``, ``dict_size``, ``activation_dim``.
    Weights are shared.

    Raises:
        ValueError: if k is outside the trained budgets, or asks every token and the SAE is not
            calibrated, or the SAE normalises its inputs, so that ``decode`` would depend on the
            latest ``encode``.
    """
    _check(sae, k)
    return Dictionary(sae, k)


def as_featurizer(sae: HierarchicalTopKSAE, k: Budget) -> Featurizer:
    """The SAE at budget k as a featurizer of MIB's causal-variable track.

    ``Featurizer(*as_featurizer(sae, k)[:2], n_features=sae.cfg.d_sae)`` builds theirs:
    ``featurizer(x)`` gives (features, error), ``inverse_featurizer(features, error)`` gives x back.

    Raises:
        ValueError: as :func:`as_dictionary`.
    """
    dictionary = as_dictionary(sae, k)
    return Featurizer(_Featurize(dictionary), _Unfeaturize(dictionary), sae.cfg.d_sae)


class _Featurize(nn.Module):
    def __init__(self, dictionary: Dictionary) -> None:
        super().__init__()
        self.dictionary = dictionary

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ours = x.to(self.dictionary.sae.dtype)
        x_hat, f = self.dictionary(ours, output_features=True)
        return f.to(x.dtype), (ours - x_hat).to(x.dtype)


class _Unfeaturize(nn.Module):
    def __init__(self, dictionary: Dictionary) -> None:
        super().__init__()
        self.dictionary = dictionary

    def forward(self, features: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        x_hat = self.dictionary.decode(features.to(self.dictionary.sae.dtype))
        return x_hat.to(features.dtype) + error


def _check(sae: HierarchicalTopKSAE, k: Budget) -> None:
    sae.check_budget(k)
    if normalization_of(sae).kept:
        raise ValueError(
            f"This SAE's normalize_activations is {sae.cfg.normalize_activations!r}: its decoder "
            "needs the norms of the latest input, and these tools decode on their own."
        )
