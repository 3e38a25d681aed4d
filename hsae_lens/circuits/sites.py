"""A site: one hook of the model with an SAE, whose activation is a sum of latents and a rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name

from hsae_lens.evaluation.checks import check_autoencoder
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import check_bare
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.objective.budgets import Budget
from hsae_lens.objective.ordered_code import OrderedCode
from hsae_lens.sae.codes import check_budget_of, decode_first, largest_budget, ordered_code
from hsae_lens.sae.normalization import decoder_scale, joined_heads

ERROR = -1
"""Stands for the error node where a latent's number is asked."""

PLACES_OF_A_BLOCK = (
    "hook_resid_pre", "hook_attn_in", "ln1.", "attn.hook_q", "attn.hook_k", "attn.hook_v",
    "attn.hook_z", "attn.", "hook_attn_out", "hook_resid_mid", "hook_mlp_in", "ln2.",
    "mlp.hook_pre", "mlp.hook_post", "mlp.", "hook_mlp_out", "hook_resid_post",
)  # fmt: skip
"""What TransformerLens calls the places of one block, in the order in which they are computed."""


@dataclass(frozen=True)
class Split:
    """An activation as x = Σ_t values_t · W_dec[latents_t] + rest, in x's own units.

    Everything is float32, or float64 if the SAE is.

    x: ``[batch, context, d_in]``, heads joined.  code: ``[batch, context, R]``, what each token
    uses and then zeros; values scaled so that they multiply the rows of ``W_dec`` as they are.
    bias: what the SAE decodes from no latents, ``[batch, context, d_in]``.  W_dec:
    ``[d_sae, d_in]``.
    """

    x: torch.Tensor
    code: OrderedCode
    bias: torch.Tensor
    W_dec: torch.Tensor

    @property
    def d_sae(self) -> int:
        return len(self.W_dec)

    @cached_property
    def latents(self) -> torch.Tensor:
        """The code with a place for every latent, ``[batch, context, d_sae]``."""
        return self.code.to_dense(self.d_sae)

    @cached_property
    def rest(self) -> torch.Tensor:
        """What the latents leave, bias and error, ``[batch, context, d_in]``."""
        return self.x - self.latents @ self.W_dec


@dataclass(frozen=True)
class Site:
    """A hook with its SAE, and the rule for which positions belong to the circuit at all.

    The other positions (special tokens, and what the SAE was not trained on) are left as the model
    has them.
    """

    sae: SAE[Any]
    mask: TokenMask

    @property
    def hook_name(self) -> str:
        return str(self.sae.cfg.metadata.hook_name)

    @property
    def d_sae(self) -> int:
        return int(self.sae.cfg.d_sae)

    @property
    def largest(self) -> int:
        """The largest fixed budget that its SAE can be asked for."""
        return largest_budget(self.sae)

    @cached_property
    def W_dec(self) -> torch.Tensor:
        """The decoder ``[d_sae, d_in]``, detached and in no less than float32."""
        return _wide(self.sae.W_dec.detach())

    def split(self, x: torch.Tensor, k: Budget) -> Split:
        """Activations ``[batch, context, ...]`` taken apart into a budget's latents and the rest.

        Gradients flow through the latents' values.

        Raises:
            ValueError: if the SAE is of another width, or has no such budget.
            FloatingPointError: if ``x`` is not finite.
        """
        return self.split_budgets(x, [k])[0]

    def split_budgets(
        self, x: torch.Tensor, budgets: Sequence[Budget], keep: torch.Tensor | None = None
    ) -> tuple[Split, torch.Tensor]:
        """:meth:`split` for several budgets at once: each token's latents at the largest of them.

        Args:
            keep: which tokens matter, ``[batch, context]``; None for all. See
                :meth:`HierarchicalTopKSAE.encode_budgets`.

        Returns:
            The split, and how many of its code's latents each budget uses,
            ``[len(budgets), batch, context]``.
        """
        x = x.flatten(2).to(self.sae.device)
        if x.shape[-1] != self.sae.cfg.d_in:
            raise ValueError(
                f"The SAE of {self.hook_name} reads width d_in={self.sae.cfg.d_in}, but the model "
                f"has {x.shape[-1]} there. Is the SAE of another model or hook?"
            )
        for budget in budgets:
            self.check_budget(budget)
        if not torch.isfinite(x).all():
            raise FloatingPointError(f"The model's activations at {self.hook_name} are not finite.")
        with joined_heads(self.sae):
            code, lengths = ordered_code(self.sae, x.to(self.sae.dtype), budgets, keep)
            code = code.prefixes(lengths.amax(0))
            scale = decoder_scale(self.sae)
            bias = _wide(decode_first(self.sae, code, 0))
        values = _wide(code.values * scale) / self._norms[code.indices]
        code = OrderedCode(values, code.indices)
        return Split(x.to(values.dtype), code, bias, self.W_dec), lengths

    def check_budget(self, k: Budget) -> None:
        """Raises ValueError unless the SAE has this budget."""
        try:
            check_budget_of(self.sae, k)
        except ValueError as error:
            raise ValueError(f"The SAE of {self.hook_name}: {error}") from None

    def counts(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Which positions ``[batch, context]`` belong to the circuit, by the clean prompts.

        Raises:
            ValueError: if none does.
        """
        counts = self.mask(tokens.to(x.device), x.flatten(2))
        if not counts.any():
            raise ValueError(
                f"No position of these prompts is one that the SAE of {self.hook_name} was trained "
                f"on: {self.mask.positions} of a sequence, norms up to {self.mask.max_norm:g}."
            )
        return counts.to(self.sae.device)

    def check_fit(self, split: Split, counts: torch.Tensor) -> None:
        """Raises ValueError if the latents explain less of the activations than none would."""
        off, away = split.rest - split.bias, split.x - split.bias
        if off[counts].square().sum() > away[counts].square().sum():
            raise ValueError(
                f"With its latents the SAE of {self.hook_name} is further from the activations "
                "than its bias alone. Is it of another model or hook?"
            )

    @cached_property
    def _norms(self) -> torch.Tensor:
        if getattr(self.sae.cfg, "rescale_acts_by_decoder_norm", False):
            return self.W_dec.norm(dim=-1)
        return self.W_dec.new_ones(self.d_sae)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sites_of(saes: SAE[Any] | Sequence[SAE[Any]], model: HookedModel) -> list[Site]:
    """A site for each SAE, in the model's order.

    Raises:
        ValueError: if there is none, two share a hook, one has no hook name, reads one hook and
            writes another (a transcoder), has its error term on, or SAEs are attached to the model.
    """
    saes = list(saes) if isinstance(saes, Sequence) else [saes]
    hooks = [sae.cfg.metadata.hook_name for sae in saes]
    if not saes or None in hooks or len(set(hooks)) < len(hooks):
        raise ValueError(
            f"Circuits need SAEs of different hooks, each with cfg.metadata.hook_name; got {hooks}."
        )
    for sae in saes:
        check_autoencoder(sae, f"The SAE of {sae.cfg.metadata.hook_name}")
    check_bare(model)
    saes.sort(key=lambda sae: model_order(sae.cfg.metadata.hook_name))
    return [Site(sae, TokenMask.from_sae(sae, model)) for sae in saes]


def model_order(hook_name: str) -> tuple[int, int]:
    """Sorts hooks as the model computes them: by block, and there by :data:`PLACES_OF_A_BLOCK`."""
    stop = extract_stop_at_layer_from_tlens_hook_name(hook_name)
    if stop is None:  # before the blocks (embeddings) or after them (the last norm, logits)
        return (0 if "embed" in hook_name and "unembed" not in hook_name else 10**6), 0
    places = [n for n, place in enumerate(PLACES_OF_A_BLOCK) if place in hook_name]
    return stop, places[0] if places else len(PLACES_OF_A_BLOCK)


def check_nodes(nodes: pd.DataFrame, sites: Sequence[Site], context: int) -> None:
    """Raises ValueError if a row's ``site``, ``latent`` or ``position`` (if any) is not here."""
    widths = {site.hook_name: site.d_sae for site in sites}
    for row in nodes.to_dict("records"):
        name, latent, position = row["site"], row["latent"], row.get("position", 0)
        if name not in widths or not ERROR <= latent < widths[name]:
            raise ValueError(f"No latent {latent} at {name!r}; sites: {', '.join(widths)}.")
        if not 0 <= position < context:
            raise ValueError(f"Position {position} is outside these prompts' {context}.")
