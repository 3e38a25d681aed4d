"""Runs a model with the nodes outside a circuit replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import torch
from sae_lens import SAE

from hsae_lens.circuits.attribution import Metric
from hsae_lens.circuits.sites import ERROR, Site, sites_of
from hsae_lens.models import activations_at, input_device, run_changed

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
    """Measures a metric with nodes replaced, on pairs whose replacements it has seen once.

    A site's output becomes Σ over all nodes of the node's own value in the circuit and its
    replacement outside; nodes are taken from the activation as it is in that run, so a circuit over
    several sites feels its own upstream. With everything replaced by "resample" or "mean" the
    output is the replacing activation itself, at every budget and for every SAE: faithfulness is
    measured on one scale.

    Args:
        replace: "resample" takes a node's value in the pair's corrupt prompt, "mean" its mean over
            all clean and corrupt prompts at that position, "zero" zero.

    Raises:
        ValueError: if "resample" or "mean" lacks corrupt prompts of the clean ones' shape, or for
            what :func:`sites_of` refuses.
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
        if replace != "zero" and (corrupt is None or corrupt.shape != clean.shape):
            raise ValueError(
                f"replace={replace!r} needs corrupt prompts of the clean ones' shape, "
                f"{tuple(clean.shape)}. Give them, or replace='zero'."
            )
        self.model, self.sites = model, sites_of(saes, model)
        self.clean, self.metric = clean, metric
        self.replace = replace
        self.batch_size = batch_size if hasattr(metric, "__getitem__") else len(clean)
        # Seen once: what the sites hold on the replacing prompts, [n, context, d_in].
        self._corrupt = {} if corrupt is None or replace == "zero" else self._seen(corrupt)
        self._clean = self._seen(clean) if replace == "mean" else {}

    def __call__(self, k: int, circuit: Circuit | None = None) -> float:
        """The metric's mean with only the circuit's nodes left, at budget k; None: the model's."""
        return self.per_pair(k, circuit).mean().item()

    @torch.no_grad()
    def per_pair(self, k: int, circuit: Circuit | None = None) -> torch.Tensor:
        """:meth:`__call__` for each pair, ``[n]``."""
        means = self._means(k) if circuit is not None and self.replace == "mean" else {}
        values = []
        for rows in self._batches():
            tokens = self.clean[rows].to(input_device(self.model))
            changes = {
                site.hook_name: self._change(
                    site, circuit[site.hook_name], k, tokens, rows, means.get(site.hook_name)
                )
                for site in self.sites
                if circuit is not None
            }
            metric = self.metric[rows] if hasattr(self.metric, "__getitem__") else self.metric
            values.append(metric(run_changed(self.model, tokens, changes)))
        return torch.cat(values)

    def nothing(self) -> Circuit:
        """The empty circuit: every node replaced."""
        context = self.clean.shape[1]
        return {
            site.hook_name: Nodes(
                torch.zeros(context, site.d_sae, dtype=torch.bool),
                torch.zeros(context, dtype=torch.bool),
            )
            for site in self.sites
        }

    def of(self, nodes: pd.DataFrame) -> Circuit:
        """The circuit of a table's rows: ``site``, ``latent`` (-1: the error), and ``position``.

        Without a ``position`` column a node stands for all positions.
        """
        circuit = self.nothing()
        for name, rows in nodes.groupby("site"):
            latents = torch.tensor(rows["latent"].to_numpy())
            everywhere = slice(None)
            where = torch.tensor(rows["position"].to_numpy()) if "position" in rows else None
            is_error = latents == ERROR
            mine = circuit[str(name)]
            if where is None:
                mine.latents[everywhere, latents[~is_error]] = True
                mine.error[everywhere] = bool(is_error.any())
            else:
                mine.latents[where[~is_error], latents[~is_error]] = True
                mine.error[where[is_error]] = True
        return circuit

    def _change(
        self,
        site: Site,
        nodes: Nodes,
        k: int,
        tokens: torch.Tensor,
        rows: slice,
        mean: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        device = site.sae.device
        inside, error_inside = nodes.latents.to(device), nodes.error.to(device)[..., None]

        def change(acts: torch.Tensor) -> torch.Tensor:
            split = site.split(acts, k)
            own = split.code.to_dense(site.d_sae)
            if self.replace == "zero":
                other, rest = torch.zeros_like(own), split.bias
            elif mean is not None:
                other, rest = mean
            else:
                corrupt = site.split(self._corrupt[site.hook_name][rows], k)
                other = corrupt.code.to_dense(site.d_sae)
                rest = corrupt.rest
            new = torch.where(inside, own, other) @ site.sae.W_dec
            new = new + torch.where(error_inside, split.rest, rest)
            counts = site.counts(tokens, acts).to(device)[..., None]
            new = torch.where(counts, new, split.x)
            return new.to(acts.device, acts.dtype).reshape(acts.shape)

        return change

    @torch.no_grad()
    def _means(self, k: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Per site, latents ``[context, d_sae]`` and what they leave ``[context, d_in]``: means."""
        means = {}
        for site in self.sites:
            both = torch.cat([self._clean[site.hook_name], self._corrupt[site.hook_name]])
            splits = [site.split(x, k) for x in both.split(self.batch_size)]
            latents = torch.stack([s.code.to_dense(site.d_sae).sum(0) for s in splits]).sum(0)
            rest = torch.stack([s.rest.sum(0) for s in splits]).sum(0)
            means[site.hook_name] = (latents / len(both), rest / len(both))
        return means

    def _seen(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        names = [site.hook_name for site in self.sites]
        parts = [activations_at(self.model, tokens[rows], names) for rows in self._batches()]
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def _batches(self) -> Iterator[slice]:
        for start in range(0, len(self.clean), self.batch_size):
            yield slice(start, start + self.batch_size)
