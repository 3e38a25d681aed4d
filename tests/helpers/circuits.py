"""Dictionaries that fit a small model, and attribution by its definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooks import activations_at, run_changed

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
BUDGETS = [1, 3, 8]
CONTEXT = 9  # tokens of a prompt
PAIRS = 12  # in the file of pairs


def dictionary(model: Any, hook: str, tokens: torch.Tensor, **settings: Any) -> HierarchicalTopKSAE:
    """Random directions with an encoder that makes them a fair fit, float64."""
    x = activations_at(model, tokens, [hook])[hook].flatten(2)[:, 1:].reshape(-1, 32)
    settings = {"rescale_acts_by_decoder_norm": True, **settings}
    cfg = HierarchicalTopKSAEConfig(d_in=32, d_sae=48, k=8, dtype="float64", **settings)
    cfg.metadata.hook_name = hook
    sae = HierarchicalTopKSAE(cfg)
    generator = torch.Generator().manual_seed(len(hook))
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(48, 32, generator=generator, dtype=torch.float64) / 32**0.5)
        sae.W_enc.copy_(0.2 * sae.W_dec.T)
        if settings.get("normalize_activations") != "layer_norm":
            sae.b_dec.copy_(x.mean(0))
    return sae


def slow_attribution(
    model: Any, saes: Sequence[Any], task: TokenizedTask, k: int, replace: Replacement
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """One budget's attributions by definition: straight-through SAEs, latents and error leaves."""
    leaves: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def splice(sae: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(x: torch.Tensor) -> torch.Tensor:
            y = x.detach().flatten(2)
            f = sae.encode(y).detach().requires_grad_()
            decoded = sae.decode(f)
            e = (y - decoded).detach().requires_grad_()
            leaves[sae.cfg.metadata.hook_name] = (f, e)
            return (decoded + e).reshape(x.shape) + (x - x.detach())

        return change

    for sae in saes:
        sae.budget = k
    changes = {sae.cfg.metadata.hook_name: splice(sae) for sae in saes}
    task.metric(run_changed(model, task.clean, changes)).sum().backward()
    found = {}
    with torch.no_grad():
        for sae in saes:
            name = sae.cfg.metadata.hook_name
            f, e = leaves[name]
            prompts = {"resample": [task.corrupt], "mean": [task.clean, task.corrupt], "zero": []}
            f_other, e_other = torch.zeros_like(f), torch.zeros_like(e)
            if prompts[replace]:
                other = activations_at(model, torch.cat(prompts[replace]), [name])[name].flatten(2)
                f_other, e_other = sae.encode(other), other - sae.decode(sae.encode(other))
            if replace == "mean":
                f_other, e_other = f_other.mean(0), e_other.mean(0)
            assert f.grad is not None
            assert e.grad is not None
            latents, error = (f - f_other) * f.grad, ((e - e_other) * e.grad).sum(-1)
            latents[:, 0], error[:, 0] = 0, 0  # BOS is not judged
            found[name] = (latents, error)
    for sae in saes:
        sae.budget = sae.cfg.k
    return found


def save_small(folder: Path, hook: str = HOOKS[1], stock: bool = False) -> str:
    """A dictionary with budgets above its width, of an activation around zero.

    A stock one's latents are not looked up in CPython's reference, which takes seconds.
    """
    cfg = HierarchicalTopKSAEConfig(
        d_in=32, d_sae=96, k=40, rescale_acts_by_decoder_norm=False, apply_b_dec_to_input=False
    )
    cfg.metadata.hook_name, cfg.metadata.context_size = hook, 32
    sae = HierarchicalTopKSAE(cfg)
    with torch.no_grad():
        rows = torch.randn(96, 32, generator=torch.Generator().manual_seed(0))
        sae.W_dec.copy_(rows / rows.norm(dim=-1, keepdim=True))
        sae.W_enc.copy_(0.3 * sae.W_dec.T)
    (sae.at_k(40) if stock else sae).save_model(folder)
    return str(folder)
