"""Dictionaries that fit a small model, and attribution by its definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from helpers.variants import inference_variant
from hsae_lens import (
    ErrorTarget,
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    MeanBudget,
    calibrate,
)
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooks import activations_at, run_changed
from hsae_lens.objective.budgets import Budget
from hsae_lens.sae.normalization import decoder_scale, joined_heads

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
BUDGETS = [1, 3, 8]
BY_TOKEN: list[Budget] = [MeanBudget(2), MeanBudget(6.5), ErrorTarget(0.5), ErrorTarget(0.8)]
"""Budgets that ask every token; calibrate the SAEs first."""
CONTEXT = 9  # tokens of a prompt
PAIRS = 12  # in the file of pairs
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.04}
"""How far a figure may be off in an SAE of that dtype, as a share of the largest."""


def dictionary(model: Any, hook: str, tokens: torch.Tensor) -> HierarchicalTopKSAE:
    """Random directions with an encoder that makes them a fair fit, float64."""
    x = activations_at(model, tokens, [hook])[hook].flatten(2)[:, 1:].reshape(-1, 32)
    cfg = HierarchicalTopKSAEConfig(
        d_in=32, d_sae=48, k=8, dtype="float64", rescale_acts_by_decoder_norm=True
    )
    cfg.metadata.hook_name = hook
    sae = HierarchicalTopKSAE(cfg)
    generator = torch.Generator().manual_seed(len(hook))
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(48, 32, generator=generator, dtype=torch.float64) / 32**0.5)
        sae.W_enc.copy_(0.2 * sae.W_dec.T)
        sae.b_dec.copy_(x.mean(0))
    return sae


def variant_on_model(variant: str) -> HierarchicalTopKSAE:
    """An SAE of one of the VARIANTS at a hook of the model's second block."""
    return inference_variant(
        variant, "blocks.1.attn.hook_z" if "heads" in variant else HOOKS[1], d_in=32
    )


def calibrated(model: Any, *saes: HierarchicalTopKSAE) -> list[HierarchicalTopKSAE]:
    """The SAEs themselves, with thresholds for their mean budgets from random tokens."""
    tokens = torch.randint(3, 300, (80, CONTEXT), generator=torch.Generator().manual_seed(7))
    for sae in saes:
        hook = str(sae.cfg.metadata.hook_name)
        x = activations_at(model, tokens, [hook])[hook].flatten(2)[:, 1:]
        calibrate(sae, x.flatten(0, 1), progress=False)
    return list(saes)


def assert_close(got: torch.Tensor, want: torch.Tensor, sae: Any) -> None:
    """Up to what the SAE's dtype rounds."""
    far = CLOSE[sae.dtype] * want.abs().max().item()
    torch.testing.assert_close(got.to(want), want, rtol=0, atol=far)


def scale_and_bias(sae: Any, x: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """What its latents for ``x`` are multiplied by to be in ``x``'s units, and what none decode to.

    x: heads joined, in the SAE's dtype.
    """
    with joined_heads(sae):
        acts, scale = sae.encode(x), decoder_scale(sae)
        return scale, sae.decode(torch.zeros_like(acts))


def slow_attribution(
    model: Any, saes: Sequence[Any], task: TokenizedTask, k: Budget, replace: Replacement
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """One budget's attributions by definition: straight-through SAEs, latents and error leaves."""
    leaves: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def splice(sae: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(x: torch.Tensor) -> torch.Tensor:
            y = x.detach().flatten(2)
            with joined_heads(sae):
                f = sae.encode(y.to(sae.dtype)).detach().requires_grad_()
                decoded = sae.decode(f).to(y)
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
            assert f.grad is not None
            assert e.grad is not None
            prompts = {"resample": task.corrupt, "mean": torch.cat([task.clean, task.corrupt])}
            clean, other = (
                activations_at(model, tokens, [name])[name].flatten(2)
                for tokens in (task.clean, prompts.get(replace, task.clean))
            )
            scale, bias = scale_and_bias(sae, clean.to(sae.dtype))
            f_other, rest_other = torch.zeros_like(f), bias.to(clean)
            if replace in prompts:
                f_other, rest_other = _latents_and_rest(sae, other)
            if replace == "mean":
                f_other, rest_other = f_other.mean(0), rest_other.mean(0)
            # In the activation's units, and what comes in has norms of its own.
            latents = (f * scale - f_other) * f.grad / scale
            error = ((e + bias - rest_other) * e.grad).sum(-1)
            latents[:, 0], error[:, 0] = 0, 0  # BOS does not count
            found[name] = (latents, error)
    for sae in saes:
        sae.budget = sae.cfg.k
    return found


def _latents_and_rest(sae: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents in the units of ``x``, and what they leave of it: bias and error."""
    y = x.to(sae.dtype)
    scale, bias = scale_and_bias(sae, y)
    with joined_heads(sae):
        f = sae.encode(y)
        return f * scale, x - sae.decode(f).to(x) + bias.to(x)


def save_small(folder: Path, hook: str = HOOKS[1], stock: bool = False, model: Any = None) -> str:
    """A dictionary with budgets above its width, of an activation around zero.

    A stock one's latents are not looked up in CPython's reference, which takes seconds. With a
    model it is calibrated.
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
    if model is not None:
        calibrated(model, sae)
    (sae.at_k(40) if stock else sae).save_model(folder)
    return str(folder)
