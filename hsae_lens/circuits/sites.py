"""A site: one hook of the model with an SAE, whose activation is a sum of latents and an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE

from hsae_lens.evaluation.judged import Judged
from hsae_lens.ordered_code import OrderedCode
from hsae_lens.sae import HierarchicalTopKSAE, decoder_scale, joined_heads

ERROR = -1
"""Stands for the error node where a latent's number is asked."""


@dataclass(frozen=True)
class Split:
    """An activation as x = Σ_t values_t · W_dec[latents_t] + rest, in x's own units.

    x: ``[batch, context, d_in]``, heads joined.  code: ``[batch, context, k]``, values scaled so
    that they multiply the rows of ``W_dec`` as they are.  rest: what the latents leave, bias and
    error, ``[batch, context, d_in]``.  bias: what the SAE decodes from no latents, same shape.
    """

    x: torch.Tensor
    code: OrderedCode
    rest: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Site:
    """A hook with its SAE, and the rule for which positions belong to the circuit at all.

    The other positions (special tokens, and what the SAE was not trained on) are left as the model
    has them.
    """

    sae: SAE[Any]
    judged: Judged

    @property
    def hook_name(self) -> str:
        return str(self.sae.cfg.metadata.hook_name)

    @property
    def d_sae(self) -> int:
        return int(self.sae.cfg.d_sae)

    @property
    def largest(self) -> int:
        """The largest budget that its SAE can be asked for."""
        return int(getattr(self.sae.cfg, "k", self.d_sae))

    def split(self, x: torch.Tensor, k: int) -> Split:
        """Activations ``[batch, context, ...]`` taken apart into k latents and the rest.

        Gradients flow through the latents' values.

        Raises:
            ValueError: if the SAE is of another width.
            FloatingPointError: if ``x`` is not finite.
        """
        x = x.flatten(2).to(self.sae.device, self.sae.dtype)
        if x.shape[-1] != self.sae.cfg.d_in:
            raise ValueError(
                f"The SAE of {self.hook_name} reads width d_in={self.sae.cfg.d_in}, but the model "
                f"has {x.shape[-1]} there. Is the SAE of another model or hook?"
            )
        if not torch.isfinite(x).all():
            raise FloatingPointError(f"The model's activations at {self.hook_name} are not finite.")
        with joined_heads(self.sae):
            code = self._code(x, k)
            scale = decoder_scale(self.sae)
            bias = self._bias(code)
        code = OrderedCode(code.values * scale / self._norms()[code.indices], code.indices)
        return Split(x, code, x - self.decode(code), bias)

    def decode(self, code: OrderedCode) -> torch.Tensor:
        """Σ_t values_t · W_dec[latents_t] of a split's code."""
        return code.to_dense(self.d_sae) @ self.sae.W_dec

    def counts(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Which positions ``[batch, context]`` belong to the circuit."""
        return self.judged(tokens.to(x.device), x.flatten(2))

    def check_fit(self, split: Split, counts: torch.Tensor) -> None:
        """Raises ValueError if the latents explain less of the activations than none would."""
        off, away = split.rest - split.bias, split.x - split.bias
        if off[counts].square().sum() > away[counts].square().sum():
            raise ValueError(
                f"With its latents the SAE of {self.hook_name} is further from the activations "
                "than its bias alone. Is it of another model or hook?"
            )

    def _code(self, x: torch.Tensor, k: int) -> OrderedCode:
        if isinstance(self.sae, HierarchicalTopKSAE):
            return self.sae.encode_ordered(x).prefix(k)
        return OrderedCode.from_pre_activations(self.sae.encode(x), k)

    def _bias(self, code: OrderedCode) -> torch.Tensor:
        if isinstance(self.sae, HierarchicalTopKSAE):
            return next(self.sae.each_budget(code, [0]))
        return self.sae.decode(code.values.new_zeros(*code.values.shape[:-1], self.d_sae))

    def _norms(self) -> torch.Tensor:
        if getattr(self.sae.cfg, "rescale_acts_by_decoder_norm", False):
            return self.sae.W_dec.norm(dim=-1)
        return self.sae.W_dec.new_ones(self.d_sae)


def sites_of(saes: SAE[Any] | Sequence[SAE[Any]], model: Any) -> list[Site]:
    """A site for each SAE.

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
        if hasattr(sae.cfg, "d_out"):
            raise ValueError(f"The SAE of {sae.cfg.metadata.hook_name} is a transcoder.")
        if sae.use_error_term:
            raise ValueError("Turn use_error_term off: the error node is handled here.")
    if attached := list(getattr(model, "acts_to_saes", {})):
        raise ValueError(f"SAEs are attached to the model at {attached}: model.reset_saes() first.")
    return [Site(sae, Judged.by(sae, model)) for sae in saes]
