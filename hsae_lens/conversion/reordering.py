"""Training that only re-orders: a gain and a bias for each latent, directions as they were."""

from __future__ import annotations

import torch
from torch.nn.utils import parametrize

from hsae_lens.sae.training_sae import HierarchicalTopKTrainingSAE


class _Gain(torch.nn.Module):
    """``W_enc`` [d_in, d_sae] as its start times a factor for each latent, e to the parameter:
    above 0, so that no direction turns round."""

    start: torch.Tensor

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone())

    def forward(self, log_gain: torch.Tensor) -> torch.Tensor:
        return self.start * log_gain.exp()

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(weight[0])


class _Shift(torch.nn.Module):
    """``b_enc`` [d_sae] as its start plus a step in units of a typical activation."""

    start: torch.Tensor

    def __init__(self, start: torch.Tensor, unit: float) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone())
        self.unit = unit

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        return self.start + self.unit * steps

    def right_inverse(self, bias: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(bias)


@torch.no_grad()
def train_only_gains_and_biases(
    sae: HierarchicalTopKTrainingSAE, activations: torch.Tensor
) -> None:
    """Leaves a training SAE nothing to learn but the encoder's gains and biases.

    Both are counted so that one learning rate fits them in any SAE: gains in factors, biases in
    units of the mean activation (of those above 0, within k) on ``activations`` ``[n, d_in]``. End
    with :func:`settle`.
    """
    acts = sae.encode(activations.to(sae.device, sae.dtype))
    active = acts[acts > 0]
    unit = float(active.mean()) if len(active) else 1.0
    sae.W_dec.requires_grad_(False)
    sae.b_dec.requires_grad_(False)
    parametrize.register_parametrization(sae, "W_enc", _Gain(sae.W_enc))
    parametrize.register_parametrization(sae, "b_enc", _Shift(sae.b_enc, unit))


def settle(sae: HierarchicalTopKTrainingSAE) -> None:
    """Makes weights of what :func:`train_only_gains_and_biases` arranged, if it did."""
    for name in ("W_enc", "b_enc"):
        if parametrize.is_parametrized(sae, name):
            parametrize.remove_parametrizations(sae, name)
