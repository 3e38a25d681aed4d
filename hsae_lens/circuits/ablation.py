"""Runs a model with the nodes outside a circuit replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import torch
from sae_lens import SAE

from hsae_lens.circuits.metric import Batch, Metric, batches, measured
from hsae_lens.circuits.sites import ERROR, Site, sites_of
from hsae_lens.models import activations_at, run_changed

Replacement = Literal["resample", "mean", "zero"]


@dataclass(frozen=True)
class Nodes:
    """Which nodes of a site are in a circuit: the latents and the error, by position.

    latents: bool ``[context, d_sae]``.  error: bool ``[context]``.
    """

    latents: torch.Tensor
    error: torch.Tensor

    def complement(self) -> Nodes:
        return Nodes(~self.latents, ~self.error)


Circuit = Mapping[str, Nodes]
"""Nodes by hook name."""


class Ablator:
    """Measures a metric with nodes replaced, on prompts whose activations it has seen once.

    A site's output becomes Σ over all nodes of the node's own value in the circuit and its
    replacement outside; nodes are taken from the activation as it is in that run, so a circuit over
    several sites feels its own upstream. With everything replaced by "resample" or "mean" the
    output is the replacing activation itself, at every budget and for every SAE: faithfulness is
    measured on one scale. Which positions are replaced at all is settled by the clean prompts.

    Args:
        replace: "resample" takes a node's value in the pair's corrupt prompt, "mean" its mean over
            all clean and corrupt prompts at that position, "zero" zero.

    Raises:
        ValueError: if "resample" or "mean" lacks corrupt prompts, or for what :func:`sites_of` and
            :func:`batches` refuse.
    """

    def __init__(
        self,
        model: Any,
        saes: SAE[Any] | Sequence[SAE[Any]],
        clean: torch.Tensor,
        metric: Metric,
        corrupt: torch.Tensor | None = None,
        replace: Replacement = "resample",
        batch_size: int = 16,
    ) -> None:
        if replace not in get_args(Replacement):
            raise ValueError(f"replace must be one of {get_args(Replacement)}, got {replace!r}.")
        if replace != "zero" and corrupt is None:
            raise ValueError(f"replace={replace!r} needs corrupt prompts. Or take replace='zero'.")
        self.model, self.sites, self.replace = model, sites_of(saes, model), replace
        self.context = clean.shape[1]
        self._batches = list(batches(clean, metric, corrupt, batch_size))
        self._clean = self._seen([batch.clean for batch in self._batches])
        others = [batch.corrupt for batch in self._batches if batch.corrupt is not None]
        self._corrupt = self._seen(others) if replace != "zero" else {}
        self._counts = {
            site.hook_name: site.counts(clean, self._clean[site.hook_name]) for site in self.sites
        }
        self._replacing: tuple[int, dict[str, tuple[torch.Tensor, torch.Tensor]]] = (0, {})

    def __call__(self, k: int, circuit: Circuit | None = None) -> float:
        """The metric's mean with only the circuit's nodes left, at budget k; None: the model's."""
        return self.per_pair(k, circuit).double().mean().item()

    @torch.no_grad()
    def per_pair(self, k: int, circuit: Circuit | None = None) -> torch.Tensor:
        """:meth:`__call__` for each pair, ``[n]``.

        Raises:
            ValueError: if an SAE has no budget k.
        """
        for site in self.sites:
            if not 1 <= k <= site.largest:
                raise ValueError(f"Budget {k} is outside 1..{site.largest} of {site.hook_name}.")
        values = []
        for batch in self._batches:
            changes = {
                site.hook_name: self._change(site, circuit[site.hook_name], k, batch)
                for site in self.sites
                if circuit is not None
            }
            values.append(measured(batch.metric, run_changed(self.model, batch.clean, changes)))
        return torch.cat(values)

    def nothing(self) -> Circuit:
        """The empty circuit: every node replaced."""
        return {
            site.hook_name: Nodes(
                torch.zeros(self.context, site.d_sae, dtype=torch.bool),
                torch.zeros(self.context, dtype=torch.bool),
            )
            for site in self.sites
        }

    def of(self, nodes: pd.DataFrame) -> Circuit:
        """The circuit of a table's rows: ``site``, ``latent`` (-1: the error), and ``position``.

        Without a ``position`` column a node stands for all positions.

        Raises:
            ValueError: for sites, positions or latents that are not here.
        """
        circuit = self.nothing()
        everywhere = torch.arange(self.context)
        for row in nodes.to_dict("records"):
            name, latent = row["site"], int(row["latent"])
            position = int(row["position"]) if "position" in row else None
            if name not in circuit or not ERROR <= latent < circuit[name].latents.shape[1]:
                raise ValueError(f"No latent {latent} at {name!r}; sites: {', '.join(circuit)}.")
            if position is not None and not 0 <= position < self.context:
                raise ValueError(f"Position {position} is outside these prompts' {self.context}.")
            where = everywhere if position is None else torch.tensor([position])
            if latent == ERROR:
                circuit[name].error[where] = True
            else:
                circuit[name].latents[where, latent] = True
        return circuit

    def _change(
        self, site: Site, nodes: Nodes, k: int, batch: Batch
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        device = site.sae.device
        inside, error_inside = nodes.latents.to(device), nodes.error.to(device)[..., None]
        counts = self._counts[site.hook_name][batch.rows][..., None]

        def change(acts: torch.Tensor) -> torch.Tensor:
            split = site.split(acts, k)
            own = split.code.to_dense(site.d_sae)
            other, rest = self._instead(site, k, batch)
            if other is None:
                other, rest = torch.zeros_like(own), split.bias
            new = torch.where(inside, own, other) @ site.W_dec
            new = new + torch.where(error_inside, split.rest, rest)
            new = torch.where(counts, new, split.x)
            return new.to(acts.device, acts.dtype).reshape(acts.shape)

        return change

    def _instead(self, site: Site, k: int, batch: Batch) -> tuple[Any, Any]:
        """What replaces latents ``[..., context, d_sae]`` and rest ``[..., d_in]``; None: zero."""
        if self.replace == "resample":
            corrupt = site.split(self._corrupt[site.hook_name][batch.rows], k)
            return corrupt.code.to_dense(site.d_sae), corrupt.rest
        if self.replace == "mean":
            if self._replacing[0] != k:  # the same for every batch and circuit
                self._replacing = (k, {s.hook_name: self._mean(s, k) for s in self.sites})
            return self._replacing[1][site.hook_name]
        return None, None

    def _mean(self, site: Site, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents ``[context, d_sae]`` and rest ``[context, d_in]``, over all the prompts."""
        everything = [*self._clean[site.hook_name], *self._corrupt[site.hook_name]]
        latents = rest = torch.zeros((), device=site.sae.device)
        for x in torch.stack(everything).split(16):
            split = site.split(x, k)
            latents = latents + split.code.to_dense(site.d_sae).sum(0)
            rest = rest + split.rest.sum(0)
        return latents / len(everything), rest / len(everything)

    def _seen(self, prompts: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        names = [site.hook_name for site in self.sites]
        parts = [activations_at(self.model, tokens, names) for tokens in prompts]
        return {name: torch.cat([part[name] for part in parts]) for name in names}
