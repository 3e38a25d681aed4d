"""What takes a node's place: one rule for attribution, which predicts, and ablation, which tests.

Were they to differ, circuits would be found for one question and tested for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from hsae_lens.circuits.prompts import Batch, Prompts
from hsae_lens.circuits.sites import Site, Split
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import activations_at
from hsae_lens.objective.budgets import Budget
from hsae_lens.objective.ordered_code import OrderedCode

Replacement = Literal["resample", "mean", "zero"]
"""A node's value in the pair's corrupt prompt; its mean over all clean and corrupt prompts at that
position; zero."""


def resolve_replacement(replace: Replacement | None, prompts: Prompts) -> Replacement:
    """What replaces nodes: as asked, else "resample" with corrupt prompts and "zero" without.

    Raises:
        ValueError: for an unknown name, or one that lacks its corrupt prompts.
    """
    if replace is None:
        return "zero" if prompts.corrupt is None else "resample"
    if replace not in get_args(Replacement):
        raise ValueError(f"replace must be one of {get_args(Replacement)}, got {replace!r}.")
    if replace != "zero" and prompts.corrupt is None:
        raise ValueError(f"replace={replace!r} needs corrupt prompts. Or take replace='zero'.")
    return replace


@dataclass(frozen=True)
class Substitutes:
    """What takes the place of one site's nodes in some pairs, at some budgets.

    x: the activation with every node replaced, ``[b or 1, context, d_in]``; the same at every
    budget, so that what latents do not replace the error node does.  code: the latents that come
    in, ``[b, context, R]``, and lengths: how many of them do at each budget,
    ``[len(budgets), b, context]``; None if these are not a pair's own.  means: the latents that
    come in for all pairs alike, ``[len(budgets), context, d_sae]``, or None. Without either no
    latent comes in.
    """

    x: torch.Tensor
    code: OrderedCode | None = None
    lengths: torch.Tensor | None = None
    means: torch.Tensor | None = None

    def lost(self, own: Split) -> torch.Tensor:
        """How much each latent of a split loses, both at one budget: ``[b, context, d_sae]``."""
        if self.code is not None:
            return own.latents - self.code.to_dense(own.d_sae)
        return own.latents if self.means is None else own.latents - self.means[-1]


class Replacer:
    """Gives what takes the place of sites' nodes; sees the prompts that it needs once.

    Args:
        batches: all the pairs.
    """

    def __init__(
        self,
        model: HookedModel,
        sites: Sequence[Site],
        batches: Sequence[Batch],
        replace: Replacement,
    ) -> None:
        self.replace = replace
        prompts = [] if replace == "zero" else [batch.prompts.corrupt for batch in batches]
        if replace == "mean":
            prompts += [batch.prompts.clean for batch in batches]
        names = [site.hook_name for site in sites]
        seen = [activations_at(model, part, names) for part in prompts if part is not None]
        self._seen = {name: torch.cat([part[name] for part in seen]) for name in names if seen}
        self._mean_x: dict[str, torch.Tensor] = {}
        self._means: dict[str, tuple[list[Budget], torch.Tensor]] = {}
        for name, x in self._seen.items() if replace == "mean" else ():
            wide = torch.promote_types(x.dtype, torch.float32)
            self._mean_x[name] = x.flatten(2).mean(0, keepdim=True, dtype=wide)

    def activation(self, site: Site, own: Split, rows: slice) -> torch.Tensor:
        """The activation with every node replaced, ``[b or 1, context, d_in]``, at any budget.

        Args:
            own: the activations of these rows that nodes are replaced in.
        """
        if self.replace == "zero":
            return own.bias
        if self.replace == "mean":
            return self._mean_x[site.hook_name].to(own.x)
        return self._seen[site.hook_name][rows].flatten(2).to(own.x)

    def substitutes(
        self,
        site: Site,
        own: Split,
        rows: slice,
        budgets: list[Budget],
        keep: torch.Tensor | None = None,
    ) -> Substitutes:
        """What takes the nodes' place in some pairs; see :meth:`activation`.

        Args:
            keep: at which of their positions nodes are replaced, ``[b, context]``; None for all.
        """
        x = self.activation(site, own, rows)
        if self.replace == "resample":
            other, lengths = site.split_budgets(self._seen[site.hook_name][rows], budgets, keep)
            return Substitutes(x, other.code, lengths)
        return Substitutes(x, means=self.means(site, budgets))

    def means(self, site: Site, budgets: list[Budget]) -> torch.Tensor | None:
        """What :func:`mean_latents` gives if means replace; the latest budgets' are kept."""
        if self.replace != "mean":
            return None
        name = site.hook_name
        if name not in self._means or self._means[name][0] != budgets:
            self._means[name] = (budgets, mean_latents(site, self._seen[name], budgets))
        return self._means[name][1]


@torch.no_grad()
def mean_latents(
    site: Site, x: torch.Tensor, budgets: Sequence[Budget], batch_size: int = 16
) -> torch.Tensor:
    """Each latent's mean over prompts, at every budget from one encoding of them.

    A fixed budget's mean is the next smaller one's and what the ranks between the two add.

    Args:
        x: activations ``[m, context, ...]``.  budgets: fixed ones first, ascending.

    Returns:
        ``[len(budgets), context, d_sae]``, however many prompts there are.
    """
    total = site.W_dec.new_zeros(len(budgets), x.shape[1], site.d_sae)
    for some in x.split(batch_size):
        split, lengths = site.split_budgets(some, budgets)
        after = 0
        for n, budget in enumerate(budgets):
            code = split.code.prefixes(lengths[n])
            if isinstance(budget, int):
                code = OrderedCode(code.values[..., after:], code.indices[..., after:])
                after = budget
            total[n] += code.to_dense(site.d_sae).sum(0)
    total[: sum(isinstance(budget, int) for budget in budgets)].cumsum_(0)
    return total.div_(len(x))
