"""Edges of a small circuit: how much of a node's contribution passes through a later node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from hsae_lens.circuits.attribution import Metric, frozen
from hsae_lens.circuits.sites import ERROR, Site, Split, sites_of
from hsae_lens.models import activations_at, input_device, run_changed


def latent_edges(
    model: Any,
    saes: Sequence[SAE[Any]],
    nodes: pd.DataFrame,
    k: int,
    clean: torch.Tensor,
    metric: Metric,
    corrupt: torch.Tensor | None = None,
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """Edges between the nodes of each two consecutive sites at budget k.

    The edge from u to d is (f_u − f_u') · ∂f_d/∂f_u · ∂metric/∂f_d, averaged over pairs, where
    ∂f_d/∂f_u is the Jacobian through the model between the sites (one backward pass per downstream
    node). Over *all* nodes d of the next site, error nodes included, the edges of u add up to what
    :func:`attribute_budgets` gives u: the activation there is the sum of its nodes.

    Args:
        saes: two or more, in the order of their hooks in the model.
        nodes: a small table with ``site``, ``position`` and ``latent`` (-1: the error node), as
            :meth:`Attribution.nodes` gives.
        clean, metric, corrupt: see :func:`attribute_budgets`.

    Returns:
        A row per edge that is not zero, the largest first: ``site``, ``position``, ``latent``,
        ``to_site``, ``to_position``, ``to_latent``, ``effect``.

    Raises:
        ValueError: for fewer than two SAEs, nodes without positions, or a later site that does not
            depend on the one before it.
    """
    sites = sites_of(saes, model)
    if len(sites) < 2:
        raise ValueError("Edges run between sites: give two SAEs or more, in the model's order.")
    if "position" not in nodes:
        raise ValueError("Edges need nodes with positions: attribution.nodes(k).")
    size = batch_size if hasattr(metric, "__getitem__") else len(clean)
    sums: dict[tuple[Any, ...], float] = {}
    for start in tqdm(range(0, len(clean), size), "Edges", disable=not progress):
        rows = slice(start, start + size)
        mine = metric[rows] if hasattr(metric, "__getitem__") else metric
        other = None if corrupt is None else corrupt[rows]
        for key, effect in _edges(model, sites, nodes, k, clean[rows], mine, other):
            sums[key] = sums.get(key, 0.0) + effect / len(clean)
    columns = ["site", "position", "latent", "to_site", "to_position", "to_latent"]
    table = pd.DataFrame([(*key, effect) for key, effect in sums.items() if effect],
                         columns=[*columns, "effect"])  # fmt: skip
    order = table["effect"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def _edges(
    model: Any,
    sites: list[Site],
    nodes: pd.DataFrame,
    k: int,
    clean: torch.Tensor,
    metric: Metric,
    corrupt: torch.Tensor | None,
) -> list[tuple[tuple[Any, ...], float]]:
    """Edges summed over the pairs of one batch, each with its two ends."""
    tokens = clean.to(input_device(model))
    names = [site.hook_name for site in sites]
    replacing = None if corrupt is None else activations_at(model, corrupt, names)
    leaves: dict[str, torch.Tensor] = {}
    seen: dict[str, torch.Tensor] = {}

    def change(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def add_leaf(acts: torch.Tensor) -> torch.Tensor:
            leaves[name] = torch.zeros_like(acts, requires_grad=True)
            seen[name] = acts + leaves[name]
            return seen[name]

        return add_leaf

    found = []
    with torch.enable_grad(), frozen(model):
        value = metric(run_changed(model, tokens, {name: change(name) for name in names}))
        gradients = torch.autograd.grad(
            value.sum(), [leaves[name] for name in names], retain_graph=True
        )
        for n in range(1, len(sites)):
            before, after = sites[n - 1], sites[n]
            counts = before.counts(tokens, seen[before.hook_name])
            removed = _removed(before, seen[before.hook_name].detach(), replacing, k)
            split = after.split(seen[after.hook_name], k)
            toward = gradients[n].flatten(2).to(split.x)
            for _, down in nodes[nodes["site"] == after.hook_name].iterrows():
                through = _worth(after, split, toward, int(down["position"]), int(down["latent"]))
                (back,) = torch.autograd.grad(
                    through, leaves[before.hook_name], retain_graph=True, allow_unused=True
                )
                if back is None:
                    raise ValueError(
                        f"{after.hook_name} does not depend on {before.hook_name}: give the SAEs "
                        "in the order of their hooks in the model."
                    )
                back = back.flatten(2).to(split.x) * counts[..., None].to(split.x)
                for _, up in nodes[nodes["site"] == before.hook_name].iterrows():
                    position, latent = int(up["position"]), int(up["latent"])
                    effect = _passed(before, removed, back, position, latent)
                    there = (after.hook_name, int(down["position"]), int(down["latent"]))
                    found.append(((before.hook_name, position, latent, *there), effect))
    return found


@torch.no_grad()
def _removed(
    site: Site, x: torch.Tensor, replacing: dict[str, torch.Tensor] | None, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What replacing takes away: of latents ``[n, context, d_sae]``, of the error ``[…, d_in]``."""
    clean = site.split(x, k)
    latents = clean.code.to_dense(site.d_sae)
    if replacing is None:
        return latents, clean.rest - clean.bias
    corrupt = site.split(replacing[site.hook_name], k)
    return latents - corrupt.code.to_dense(site.d_sae), clean.rest - corrupt.rest


def _worth(
    site: Site, split: Split, toward: torch.Tensor, position: int, latent: int
) -> torch.Tensor:
    """A node's value times the metric's gradient there, summed over pairs; differentiable."""
    gradient = toward[:, position]
    if latent == ERROR:
        return (split.rest[:, position] * gradient).sum()
    mine = split.code.indices[:, position] == latent
    value = (split.code.values[:, position] * mine).sum(-1)
    return (value * (gradient @ site.sae.W_dec[latent]).detach()).sum()


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
    along = back[:, position] @ site.sae.W_dec[latent]
    return (latents[:, position, latent] * along).sum().item()
