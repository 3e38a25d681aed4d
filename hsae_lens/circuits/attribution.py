"""What each latent contributes to a metric, at every budget from one backward pass.

With a straight-through SAE whose error is a node of its own, the site's output is x itself, so the
gradient g = ∂metric/∂x is the model's own and depends neither on the budget nor on the other sites.
Latent i then contributes (f_i − f_i') ⟨W_dec[i], g⟩ to first order, f' being what replaces it, and
the error node the rest of ⟨x − x', g⟩, x' being the activation with every node replaced. What a
budget, of whatever rule, uses of f and f' is a prefix of their ordered codes, so one backward pass
serves every budget. (Attribution of latents and error nodes: Marks et al., arXiv 2403.19647; the
sign here is that of a contribution, metric(clean) − metric(replaced).)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE
from torch.nn.functional import pad
from tqdm.auto import tqdm

from hsae_lens.circuits.prompts import Batch, Prompts, as_prompts
from hsae_lens.circuits.replacement import Replacement, Replacer, resolve_replacement
from hsae_lens.circuits.sites import ERROR, Site, sites_of
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import run_changed
from hsae_lens.objective.budgets import Budget, budget_rows, powers_of_two, resolve_spending
from hsae_lens.objective.ordered_code import OrderedCode


@dataclass(frozen=True)
class MeanTerms:
    """Terms of the means that replace every pair's latents, active in its own prompts or not.

    Made when asked for, not held: there is one for each pair and latent.

    latents: ``[len(budgets), context, d_sae]``.  gradients: the metric's, ``[n, context, d_in]``.
    W_dec: ``[d_sae, d_in]``.
    """

    latents: torch.Tensor
    gradients: torch.Tensor
    W_dec: torch.Tensor

    def terms(self, n: int, gradients: torch.Tensor) -> torch.Tensor:
        """What the latents contribute at the n-th budget, ``[..., context, d_sae]``."""
        return (-self.latents[n] * (gradients.to(self.W_dec) @ self.W_dec.T)).cpu()


@dataclass(frozen=True)
class SiteAttribution:
    """One site's contributions, pair by pair. Positions outside the circuit contribute 0.

    terms: ``[n, context, S, R]``, what a token's latents contribute in the order of its code; where
    corrupt prompts are resampled S is 2, and their latents' terms (negated) the second.  latents:
    int64, same shape.  lengths: int64 ``[len(budgets), n, context, S]``, how many of these a budget
    uses.  errors: ``[len(budgets), n, context]``.  means: what comes in for every pair alike, where
    means replace nodes.
    """

    hook_name: str
    d_sae: int
    budgets: list[Budget]
    terms: torch.Tensor
    latents: torch.Tensor
    lengths: torch.Tensor
    errors: torch.Tensor
    means: MeanTerms | None = None

    def per_pair(self, k: Budget) -> torch.Tensor:
        """Each latent's contribution at budget k: ``[n, context, d_sae]``."""
        n = self._number(k)
        terms, latents = self._used(n)
        dense = terms.new_zeros(*terms.shape[:2], self.d_sae)
        dense.scatter_add_(-1, latents, terms)
        return dense if self.means is None else dense + self.means.terms(n, self.means.gradients)

    def mean(self, k: Budget) -> torch.Tensor:
        """:meth:`per_pair`, averaged over pairs without holding them: ``[context, d_sae]``."""
        n = self._number(k)
        terms, latents = self._used(n)
        pairs, context = terms.shape[:2]
        place = torch.arange(context)[None, :, None] * self.d_sae + latents
        total = terms.new_zeros(context * self.d_sae)
        total.index_add_(0, place.flatten(), terms.flatten())
        mean = total.reshape(context, self.d_sae) / pairs
        if self.means is None:
            return mean
        return mean + self.means.terms(n, self.means.gradients.mean(0))

    def error(self, k: Budget) -> torch.Tensor:
        """What the error node contributes at budget k, averaged over pairs: ``[context]``."""
        return self.errors[self._number(k)].mean(0)

    def _used(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The terms that the n-th budget uses, and of which latents: ``[n, context, …]``."""
        used = OrderedCode(self.terms, self.latents).prefixes(self.lengths[n])
        return used.values.flatten(-2), used.indices.flatten(-2)

    def _number(self, k: Budget) -> int:
        if k not in self.budgets:
            raise ValueError(f"Budget {k} was not asked for, only {self.budgets}.")
        return self.budgets.index(k)


@dataclass(frozen=True)
class Attribution:
    """Contributions to a metric, by site.

    sites: by hook name, in the model's order.  budgets: fixed ones first, those of a rule
    ascending.  metric: ``[n]``, its value on the clean prompts.  replace: what takes a node's
    place.  largest: the largest fixed budget that its SAEs have.
    """

    sites: dict[str, SiteAttribution]
    budgets: list[Budget]
    metric: torch.Tensor
    replace: Replacement
    largest: int

    def budget_rows(self) -> dict[Budget, dict[str, Any]]:
        """How its budgets stand in tables: see :func:`hsae_lens.objective.budgets.budget_rows`."""
        return dict(zip(self.budgets, budget_rows(self.budgets, self.largest), strict=True))

    def nodes(self, k: Budget, by_position: bool = True) -> pd.DataFrame:
        """Every node that contributes at budget k, largest contribution (of either sign) first.

        Returns:
            Columns ``site``, ``position`` (if ``by_position``), ``latent`` (-1: the error node) and
            ``effect``, averaged over pairs; without positions, summed over them.
        """
        tables = []
        for name, site in self.sites.items():
            effects = torch.cat([site.error(k)[:, None], site.mean(k)], 1)
            if not by_position:
                effects = effects.sum(0, keepdim=True)
            position, column = effects.nonzero(as_tuple=True)
            columns = {"site": name, "position": position, "latent": column + ERROR}
            tables.append(pd.DataFrame({**columns, "effect": effects[position, column]}))
        table = sort_by_effect(pd.concat(tables, ignore_index=True))
        return table if by_position else table.drop(columns="position")


def sort_by_effect(table: pd.DataFrame) -> pd.DataFrame:
    """Rows with the largest ``effect`` first, of either sign."""
    return table.sort_values("effect", key=abs, ascending=False, kind="stable", ignore_index=True)


def attribute_budgets(
    model: HookedModel,
    saes: SAE[Any] | Sequence[SAE[Any]],
    prompts: Prompts | TokenizedTask,
    budgets: Sequence[Budget] | None = None,
    *,
    replace: Replacement | None = None,
    steps: int = 1,
    batch_size: int = 16,
    progress: bool = True,
) -> Attribution:
    """What latents and error nodes contribute to a metric, at every budget and site.

    Costs one forward and backward pass, whatever the number of budgets, and a forward pass up to
    the last site for the prompts that replacements are taken from.

    Args:
        saes: SAELens SAEs with linear decoders, each of a hook of its own. Hierarchical ones have
            every budget; a stock one is cut to its k largest.
        prompts: a task, which brings its corrupt prompts, or :class:`Prompts` with a metric of your
            own; ``batch_size`` at a time if the metric can be sliced like a tensor, else all at
            once. Where an SAE normalises its input, latents are compared in the activation's units,
            each prompt's by its own norm.
        budgets: ascending within 1..K; None for 1, 2, 4, … K. :class:`MeanBudget` and
            :class:`ErrorTarget` may be among them, of hierarchical SAEs that are calibrated.
        replace: what takes a node's place, as in :class:`Ablator`: "resample" its value in the
            pair's corrupt prompt (activation patching), "mean" its mean over all clean and corrupt
            prompts at that position, "zero" zero. None is "resample" with corrupt prompts (so for
            every task) and "zero" without.
        steps: 1 for the gradient at the clean prompts; more for integrated gradients between what
            replaces and the clean activation, one site at a time (midpoint rule). The path does not
            depend on the budget either.

    Raises:
        ValueError: for bad budgets or steps, an unknown hook, an SAE of another width or model,
            prompts without a position that the SAE was trained on, or a metric whose result is not
            ``[n]`` or has no gradient.
        RuntimeError: inside ``torch.inference_mode``, which forbids gradients.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("Attribution needs gradients: call it outside torch.inference_mode.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    sites = sites_of(saes, model)
    largest = min(site.largest for site in sites)
    resolved = _budgets(budgets, sites, largest)
    prompts = as_prompts(prompts)
    replace = resolve_replacement(replace, prompts)
    parts, values = [], []
    batches = list(prompts.batches(batch_size))
    replacer = Replacer(model, sites, batches, replace)
    for batch in tqdm(batches, "Attributing", disable=not progress):
        value, gradients = _gradients(model, sites, batch, replacer, steps)
        values.append(value)
        parts.append(
            [
                _contributions(site, batch, *gradients[n], replacer, resolved)
                for n, site in enumerate(sites)
            ]
        )
    joined = {
        site.hook_name: _joined(
            site, resolved, [part[n] for part in parts], replacer.means(site, resolved)
        )
        for n, site in enumerate(sites)
    }
    return Attribution(joined, resolved, torch.cat(values), replace, largest)


def _budgets(budgets: Sequence[Budget] | None, sites: list[Site], largest: int) -> list[Budget]:
    if budgets is not None:
        resolved = resolve_spending(budgets, largest)
        for site in sites:
            for budget in resolved:
                site.check_budget(budget)
        return resolved
    if not all(hasattr(site.sae.cfg, "k") for site in sites):
        raise ValueError("An SAE without a k of its own needs budgets: budgets=[8, 32, 128].")
    return list(powers_of_two(largest))


def _gradients(
    model: HookedModel,
    sites: list[Site],
    batch: Batch,
    replacer: Replacer,
    steps: int,
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The metric ``[n]``, and each site's activations with the metric's gradient there."""
    value, found = _gradient_at(model, sites, batch)
    if steps == 1:
        return value, found
    averaged = []
    for site, (x, _) in zip(sites, found, strict=True):
        counts = site.counts(batch.prompts.clean, x)[..., None].to(x.device)
        end = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))
        with torch.no_grad():
            start = replacer.activation(site, site.split(x, 1), batch.rows)
        way = torch.where(counts, end - start.to(end), torch.zeros_like(end))
        total = torch.zeros_like(end)
        for step in range(steps):
            between = end - (1 - (step + 0.5) / steps) * way
            at = {site.hook_name: between.to(x.dtype).reshape(x.shape)}
            total += _gradient_at(model, [site], batch, at)[1][0][1].flatten(2)
        averaged.append((x, total / steps))
    return value, averaged


def _gradient_at(
    model: HookedModel, sites: list[Site], batch: Batch, at: dict[str, torch.Tensor] | None = None
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The metric ``[n]`` and, per site, activations with the metric's gradient there.

    Args:
        at: activations to set at some hooks instead of the model's own.
    """
    names = [site.hook_name for site in sites]
    with torch.enable_grad(), frozen_parameters(model):
        value, seen, leaves = run_with_leaves(model, names, batch.prompts, at or {})
        gradients = torch.autograd.grad(value.sum(), leaves)
    found = zip(seen, gradients, strict=True)
    return value.detach(), [(acts.detach(), gradient) for acts, gradient in found]


def run_with_leaves(
    model: HookedModel, names: Sequence[str], prompts: Prompts, at: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """The metric ``[n]`` with a zero added at each hook, to take gradients there.

    Returns:
        The metric; per hook, the activations that went on, and the zero that was added to them. All
        are parts of the graph, if the caller has gradients enabled.

    Raises:
        ValueError: if the metric has no gradient.
    """
    seen: dict[str, torch.Tensor] = {}
    leaves: dict[str, torch.Tensor] = {}

    def change(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def add_leaf(acts: torch.Tensor) -> torch.Tensor:
            acts = at.get(name, acts)
            leaves[name] = torch.zeros_like(acts, requires_grad=True)
            seen[name] = acts + leaves[name]
            return seen[name]

        return add_leaf

    logits = run_changed(model, prompts.clean, {name: change(name) for name in names})
    value = prompts.measure(logits)
    if not value.requires_grad:
        raise ValueError(
            "The metric's result has no gradient: compute it from the logits with torch, "
            "without .item(), .detach() or no_grad."
        )
    return value, [seen[name] for name in names], [leaves[name] for name in names]


@contextmanager
def frozen_parameters(model: HookedModel) -> Iterator[None]:
    """Inside, no parameter needs a gradient: nothing before the first site is kept for backward."""
    needing = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in needing:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in needing:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class _Part:
    """A batch's share of a :class:`SiteAttribution`: the same names; and the metric's gradient."""

    terms: torch.Tensor
    latents: torch.Tensor
    lengths: torch.Tensor
    errors: torch.Tensor
    gradient: torch.Tensor


@torch.no_grad()
def _contributions(
    site: Site,
    batch: Batch,
    x: torch.Tensor,
    gradient: torch.Tensor,
    replacer: Replacer,
    budgets: list[Budget],
) -> _Part:
    counts = site.counts(batch.prompts.clean, x)
    own, lengths = site.split_budgets(x, budgets, counts)
    site.check_fit(own, counts)
    substitutes = replacer.substitutes(site, own, batch.rows, budgets, counts)
    gradient = gradient.flatten(2).to(own.x) * counts[..., None]
    toward = gradient @ site.W_dec.T  # ⟨W_dec[i], g⟩ of every latent
    sides, used = [_terms(own.code, toward)], [lengths]
    if substitutes.code is not None and substitutes.lengths is not None:
        other = _terms(substitutes.code, toward)
        sides.append(OrderedCode(-other.values, other.indices))
        used.append(substitutes.lengths)
    terms = torch.stack(_same_width([side.values for side in sides]), -2)
    latents = torch.stack(_same_width([side.indices for side in sides]), -2)
    lengths = torch.stack(used, -1)
    by_latents = torch.stack([_summed(OrderedCode(terms, latents), some) for some in lengths])
    if substitutes.means is not None:
        by_latents -= torch.einsum("kpf,npf->knp", substitutes.means, toward)
    # The error node contributes what a budget's latents do not.
    errors = ((own.x - substitutes.x) * gradient).sum(-1) - by_latents
    return _Part(*(part.cpu() for part in (terms, latents, lengths, errors, gradient)))


def _terms(code: OrderedCode, toward: torch.Tensor) -> OrderedCode:
    """What each latent of a code contributes, in the code's order."""
    return OrderedCode(code.values * toward.gather(-1, code.indices), code.indices)


def _summed(terms: OrderedCode, lengths: torch.Tensor) -> torch.Tensor:
    """Terms ``[..., S, R]`` summed up to lengths ``[..., S]``: ``[...]``."""
    # Rank by rank, as ever: a plain sum would change fixed budgets' figures in their last digit.
    return terms.prefixes(lengths).values.sum(-2).cumsum(-1)[..., -1]


def _same_width(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors ``[..., R]`` with zeros up to the widest."""
    widest = max(part.shape[-1] for part in parts)
    return [pad(part, (0, widest - part.shape[-1])) for part in parts]


def _joined(
    site: Site, budgets: list[Budget], parts: list[_Part], means: torch.Tensor | None
) -> SiteAttribution:
    gradients = torch.cat([part.gradient for part in parts])
    return SiteAttribution(
        site.hook_name,
        site.d_sae,
        budgets,
        torch.cat(_same_width([part.terms for part in parts])),
        torch.cat(_same_width([part.latents for part in parts])),
        torch.cat([part.lengths for part in parts], 1),
        torch.cat([part.errors for part in parts], 1),
        None if means is None else MeanTerms(means, gradients, site.W_dec),
    )
