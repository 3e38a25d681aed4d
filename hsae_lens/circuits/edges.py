"""Edges of a small circuit: how much of a node's contribution passes through a later node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from hsae_lens.circuits.attribution import frozen_parameters, run_with_leaves, sort_by_effect
from hsae_lens.circuits.prompts import Batch, Prompts, as_prompts
from hsae_lens.circuits.replacement import Replacement, Replacer, resolve_replacement
from hsae_lens.circuits.sites import ERROR, Site, Split, check_nodes, sites_of
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.objective.budgets import Budget


def latent_edges(
    model: HookedModel,
    saes: Sequence[SAE[Any]],
    nodes: pd.DataFrame,
    k: Budget,
    prompts: Prompts | TokenizedTask,
    *,
    replace: Replacement | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """Edges between the nodes of each two consecutive sites at budget k.

    The edge from u to d is (f_u − f_u') · ∂f_d/∂f_u · ∂metric/∂f_d, averaged over pairs, where
    ∂f_d/∂f_u is the Jacobian through the model between the sites (one backward pass per downstream
    node). Between two sites of the residual stream, whatever u contributes passes the second: over
    *all* of its nodes, error nodes included, the edges of u then add up to what
    :func:`attribute_budgets` (with one step) gives u. At other sites paths go past it.

    Args:
        saes: two or more.
        nodes: a small table with ``site``, ``position`` and ``latent`` (-1: the error node), as
            :meth:`Attribution.nodes` gives; a node counts once, however often its row is there.
        prompts, replace: see :func:`attribute_budgets`.

    Returns:
        A row per edge that is not zero, the largest first: ``site``, ``position``, ``latent``,
        ``to_site``, ``to_position``, ``to_latent``, ``effect``.

    Raises:
        ValueError: for fewer than two SAEs, a budget that they lack, nodes without positions or
            that are not here, or a later site that does not depend on the one before it.
    """
    sites = sites_of(saes, model)
    if len(sites) < 2:
        raise ValueError("Edges run between sites: give two SAEs or more.")
    if "position" not in nodes:
        raise ValueError("Edges need nodes with positions: attribution.nodes(k).")
    for site in sites:
        site.check_budget(k)
    nodes = nodes.drop_duplicates(["site", "position", "latent"])
    prompts = as_prompts(prompts)
    check_nodes(nodes, sites, prompts.clean.shape[1])
    batches = list(prompts.batches(batch_size))
    replacer = Replacer(model, sites, batches, resolve_replacement(replace, prompts))
    sums: dict[tuple[Any, ...], float] = {}
    for batch in tqdm(batches, "Edges", disable=not progress):
        for key, effect in _edges(model, sites, nodes, k, batch, replacer):
            sums[key] = sums.get(key, 0.0) + effect / len(prompts)
    columns = ["site", "position", "latent", "to_site", "to_position", "to_latent"]
    table = pd.DataFrame([(*key, effect) for key, effect in sums.items() if effect],
                         columns=[*columns, "effect"])  # fmt: skip
    return sort_by_effect(table)


def _edges(
    model: HookedModel,
    sites: list[Site],
    nodes: pd.DataFrame,
    k: Budget,
    batch: Batch,
    replacer: Replacer,
) -> list[tuple[tuple[Any, ...], float]]:
    """Edges summed over the pairs of one batch, each with its two ends."""
    names = [site.hook_name for site in sites]
    found = []
    with torch.enable_grad(), frozen_parameters(model):
        value, seen, leaves = run_with_leaves(model, names, batch.prompts, {})
        gradients = torch.autograd.grad(value.sum(), leaves, retain_graph=True)
        for n in range(1, len(sites)):
            before, after = sites[n - 1], sites[n]
            counts = before.counts(batch.prompts.clean, seen[n - 1])
            removed = _removed(before, seen[n - 1].detach(), replacer, k, batch)
            split = after.split(seen[n], k)
            gradient = gradients[n].flatten(2).to(split.x)
            for _, down in nodes[nodes["site"] == after.hook_name].iterrows():
                through = _worth(after, split, gradient, int(down["position"]), int(down["latent"]))
                (back,) = torch.autograd.grad(
                    through, leaves[n - 1], retain_graph=True, allow_unused=True
                )
                if back is None:
                    raise ValueError(
                        f"{after.hook_name} does not depend on {before.hook_name}: edges run from "
                        "earlier to later hooks."
                    )
                back = back.flatten(2).to(removed[1]) * counts[..., None]
                for _, up in nodes[nodes["site"] == before.hook_name].iterrows():
                    position, latent = int(up["position"]), int(up["latent"])
                    effect = _passed(before, removed, back, position, latent)
                    there = (after.hook_name, int(down["position"]), int(down["latent"]))
                    found.append(((before.hook_name, position, latent, *there), effect))
    return found


@torch.no_grad()
def _removed(
    site: Site, x: torch.Tensor, replacer: Replacer, k: Budget, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """What replacing takes away: of latents ``[n, context, d_sae]``, of the error ``[…, d_in]``."""
    own = site.split(x, k)
    substitutes = replacer.substitutes(site, own, batch.rows, [k])
    lost = substitutes.lost(own)
    return lost, own.x - substitutes.x - lost @ site.W_dec


def _worth(
    site: Site, split: Split, gradient: torch.Tensor, position: int, latent: int
) -> torch.Tensor:
    """A node's value times the metric's gradient there, summed over pairs; differentiable."""
    gradient = gradient[:, position]
    if latent == ERROR:
        return (split.rest[:, position] * gradient).sum()
    mine = split.code.indices[:, position] == latent
    value = (split.code.values[:, position] * mine).sum(-1)
    return (value * (gradient @ site.W_dec[latent]).detach()).sum()


def _passed(
    site: Site,
    removed: tuple[torch.Tensor, torch.Tensor],
    back: torch.Tensor,
    position: int,
    latent: int,
) -> float:
    latents, errors = removed
    if latent == ERROR:
        return (errors[:, position] * back[:, position]).sum().item()
    along = back[:, position] @ site.W_dec[latent]
    return (latents[:, position, latent] * along).sum().item()
