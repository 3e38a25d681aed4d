"""Dictionaries to compare an SAE's circuits with."""

from __future__ import annotations

import copy

import torch

from hsae_lens.sae import HierarchicalTopKSAE


@torch.no_grad()
def neuron_basis(sae: HierarchicalTopKSAE, centre: torch.Tensor) -> HierarchicalTopKSAE:
    """The model's own coordinates as a dictionary: latents 2i and 2i+1 are ±coordinate i.

    A budget keeps the coordinates that are furthest from ``centre`` (``[d_in]``, a mean
    activation); at k = d_in nothing is lost.
    """
    d_in = sae.cfg.d_in
    cfg = sae.cfg.to_dict()
    cfg |= {"d_sae": 2 * d_in, "k": d_in, "default_budget": None, "normalize_activations": "none"}
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
