"""Dictionaries that have learnt nothing, to compare an SAE with."""

from __future__ import annotations

import copy

import torch

from hsae_lens.sae.inference_sae import HierarchicalTopKSAE
from hsae_lens.sae.normalization import joined_heads

RANDOM_DECODER = "random decoder"


@torch.no_grad()
def random_decoder(sae: HierarchicalTopKSAE, activations: torch.Tensor) -> HierarchicalTopKSAE:
    """The same SAE with random decoder directions, which its encoder reads off.

    Directions have norm 1; the encoder's gain is fitted to the activations ``[n, d_in]``, one
    number that serves all budgets best. What it scores, a dictionary of this size scores without
    having learnt anything.
    """
    control = HierarchicalTopKSAE.from_dict({**sae.cfg.to_dict(), "calibration": None})
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(sae.cfg.d_sae, sae.cfg.d_in, generator=generator)
    directions /= directions.norm(dim=-1, keepdim=True)
    control.W_dec.copy_(directions)
    control.W_enc.copy_(directions.T)
    control.b_enc.zero_()
    control.b_dec.copy_(sae.b_dec)
    if not sae.cfg.apply_b_dec_to_input:
        control.b_enc.copy_(-sae.b_dec @ control.W_enc)
    x = activations.to(sae.device, sae.dtype)
    wanted = got = 0.0
    code = control.encode_joined(x)
    with joined_heads(control):
        reconstructions = control.each_budget(code, range(sae.cfg.k + 1))
        without = next(reconstructions)  # the gain scales what latents add to it, normalised or not
        for x_hat in reconstructions:
            step = x_hat - without
            wanted += float((step * (x - without)).sum())
            got += float(step.square().sum())
    control.W_enc.mul_(wanted / got)
    control.b_enc.mul_(wanted / got)
    return control


@torch.no_grad()
def neuron_basis(sae: HierarchicalTopKSAE, centre: torch.Tensor) -> HierarchicalTopKSAE:
    """The model's own coordinates as a dictionary: latents 2i and 2i+1 are ±coordinate i.

    A budget keeps the coordinates that are furthest from ``centre`` (``[d_in]``, a mean
    activation); at k = d_in nothing is lost.
    """
    d_in = sae.cfg.d_in
    cfg = sae.cfg.to_dict()
    cfg |= {"d_sae": 2 * d_in, "k": d_in, "default_budget": None, "normalize_activations": "none"}
    cfg["calibration"] = None
    basis = HierarchicalTopKSAE.from_dict(cfg)
    basis.cfg.metadata = copy.deepcopy(sae.cfg.metadata)
    both = torch.stack([torch.eye(d_in), -torch.eye(d_in)], 1).reshape(2 * d_in, d_in)
    basis.W_dec.copy_(both)
    basis.W_enc.copy_(both.T)
    basis.b_dec.copy_(centre)
    basis.b_enc.copy_(-centre.to(basis.b_enc) @ basis.W_enc)
    if basis.cfg.apply_b_dec_to_input:
        basis.b_enc.zero_()
    return basis
