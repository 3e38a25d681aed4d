"""Runs a model with the nodes outside a circuit replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE

from hsae_lens.circuits.prompts import Batch, Prompts, as_prompts
from hsae_lens.circuits.replacement import Replacement, Replacer, resolve_replacement
from hsae_lens.circuits.sites import ERROR, Site, check_nodes, sites_of
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import activations_at, run_changed
from hsae_lens.objective.budgets import Budget


@dataclass(frozen=True)
class Nodes:
    """Which nodes of a site are in a circuit: the latents and the error, by position.

    latents: bool ``[context, d_sae]``.  error: bool ``[context]``.
    """

    latents: torch.Tensor
    error: torch.Tensor


Circuit = Mapping[str, Nodes]
"""Nodes by hook name."""


def complement(circuit: Circuit) -> Circuit:
    """Everything but the circuit's nodes."""
    return {name: Nodes(~nodes.latents, ~nodes.error) for name, nodes in circuit.items()}


class Ablator:
    """Measures a metric with nodes replaced, on prompts whose activations it has seen once.

    A site's output becomes Σ over all nodes of the node's own value in the circuit and its
    replacement outside; nodes are taken from the activation as it is in that run, so a circuit over
    several sites feels its own upstream. With everything replaced by "resample" or "mean" the
    output is the replacing activation itself, at every budget and for every SAE: faithfulness is
    measured on one scale. Which positions are replaced at all is settled by the clean prompts.

    Args:
        prompts: a task, or :class:`Prompts` with a metric of your own.
        replace: "resample" takes a node's value in the pair's corrupt prompt, "mean" its mean over
            all clean and corrupt prompts at that position, "zero" zero.

    Raises:
        ValueError: if "resample" or "mean" lacks corrupt prompts, or for what :func:`sites_of`
            refuses.
    """

    def __init__(
        self,
        model: HookedModel,
        saes: SAE[Any] | Sequence[SAE[Any]],
        prompts: Prompts | TokenizedTask,
        replace: Replacement = "resample",
        batch_size: int = 16,
    ) -> None:
        prompts = as_prompts(prompts)
        self.replace = resolve_replacement(replace, prompts)
        self.model, self.sites = model, sites_of(saes, model)
        self.context = prompts.clean.shape[1]
        self._batches = list(prompts.batches(batch_size))
        self._replacer = Replacer(model, self.sites, self._batches, self.replace)
        self._counts = self._counted(prompts.clean)

    def __call__(self, k: Budget, circuit: Circuit | None = None) -> float:
        """The metric's mean with only the circuit's nodes left, at budget k; None: the model's."""
        return self.per_pair(k, circuit).double().mean().item()

    @torch.no_grad()
    def per_pair(self, k: Budget, circuit: Circuit | None = None) -> torch.Tensor:
        """:meth:`__call__` for each pair, ``[n]``.

        Raises:
            ValueError: if an SAE has no budget k.
        """
        for site in self.sites:
            site.check_budget(k)
        values = []
        for batch in self._batches:
            changes = {
                site.hook_name: self._change(site, circuit[site.hook_name], k, batch)
                for site in self.sites
                if circuit is not None
            }
            logits = run_changed(self.model, batch.prompts.clean, changes)
            values.append(batch.prompts.measure(logits))
        return torch.cat(values)

    def empty_circuit(self) -> Circuit:
        """The circuit without a node: every one is replaced."""
        return {
            site.hook_name: Nodes(
                torch.zeros(self.context, site.d_sae, dtype=torch.bool),
                torch.zeros(self.context, dtype=torch.bool),
            )
            for site in self.sites
        }

    def circuit(self, nodes: pd.DataFrame) -> Circuit:
        """The circuit of a table's rows: ``site``, ``latent`` (-1: the error), and ``position``.

        Without a ``position`` column a node stands for all positions.

        Raises:
            ValueError: for sites, positions or latents that are not here.
        """
        check_nodes(nodes, self.sites, self.context)
        circuit = self.empty_circuit()
        for row in nodes.to_dict("records"):
            where = int(row["position"]) if "position" in row else slice(None)
            if row["latent"] == ERROR:
                circuit[row["site"]].error[where] = True
            else:
                circuit[row["site"]].latents[where, int(row["latent"])] = True
        return circuit

    def _change(
        self, site: Site, nodes: Nodes, k: Budget, batch: Batch
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        device = site.sae.device
        inside, error_inside = nodes.latents.to(device), nodes.error.to(device)[..., None]
        counts = self._counts[site.hook_name][batch.rows][..., None]

        def change(acts: torch.Tensor) -> torch.Tensor:
            own = site.split(acts, k)
            substitutes = self._replacer.substitutes(site, own, batch.rows, [k])
            # With its error a position keeps all but what the latents outside lose; without, it is
            # the replacing activation and gets back what the latents inside would lose.
            kept = inside.to(own.x.dtype) - error_inside.to(own.x.dtype)
            new = torch.where(error_inside, own.x, substitutes.x)
            new = new + (kept * substitutes.lost(own)) @ site.W_dec
            new = torch.where(counts, new, own.x)
            return new.to(acts.device, acts.dtype).reshape(acts.shape)

        return change

    def _counted(self, clean: torch.Tensor) -> dict[str, torch.Tensor]:
        """By site, which positions ``[n, context]`` are replaced at all."""
        names = [site.hook_name for site in self.sites]
        seen = [activations_at(self.model, batch.prompts.clean, names) for batch in self._batches]
        return {
            site.hook_name: site.counts(clean, torch.cat([part[site.hook_name] for part in seen]))
            for site in self.sites
        }
