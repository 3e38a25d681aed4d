"""The inference architecture: SAELens' TopK SAE with an order and a budget."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from sae_lens import TopKSAE, TopKSAEConfig
from typing_extensions import override

from hsae_lens.objective.budgets import check_budget, check_k, resolve_budgets, whole_number
from hsae_lens.objective.loss import each_prefix
from hsae_lens.objective.ordered_code import OrderedCode
from hsae_lens.sae.normalization import OwnInputSteps, joined_heads
from hsae_lens.sae.saved_files import CheckedFiles

ARCHITECTURE = "hierarchical_topk"

DTYPE_OF_X = "dtype_of_x"  # an attribute of what encode returns


@dataclass
class HierarchicalTopKSAEConfig(TopKSAEConfig):
    """Configuration of a HierarchicalTopK SAE for inference.

    Args:
        k (int): The largest budget: how many latents an ordered code holds per token.
        default_budget (int | None): The budget ``encode`` uses when the SAE is loaded, in 1..k.
            None means k.
        rescale_acts_by_decoder_norm (bool): As in SAELens' TopK: latents are chosen and reported
            as pre-activation times decoder norm. False for SAEs saved from training, whose
            decoder norms are folded to 1.
        d_in (int): Width of the activations. Inherited from SAEConfig.
        d_sae (int): Number of latents. Inherited from SAEConfig.
        dtype (str): Type of the parameters. Inherited from SAEConfig.
        device (str): Where the parameters are. Inherited from SAEConfig.
        apply_b_dec_to_input (bool): Whether b_dec is subtracted from the input. Inherited.
        normalize_activations (str): Input normalisation. Inherited from SAEConfig.
        reshape_activations (str): "hook_z" joins attention heads. Inherited from SAEConfig.
        metadata (SAEMetadata): Model, hook and training facts. Inherited from SAEConfig.
    """

    default_budget: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self)

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE


def check_sizes(cfg: Any) -> None:
    """Makes a config's widths, k and default_budget Python ints: a config is saved as JSON.

    Raises:
        ValueError: if one is no whole number, or they do not fit together.
    """
    cfg.d_in, cfg.d_sae = whole_number(cfg.d_in, "d_in"), whole_number(cfg.d_sae, "d_sae")
    cfg.k = check_k(cfg.k, cfg.d_sae)
    if cfg.default_budget is not None:
        cfg.default_budget = check_budget(cfg.default_budget, cfg.k, "default_budget")


class HierarchicalTopKSAE(OwnInputSteps, CheckedFiles, TopKSAE):
    """One SAE that reconstructs from its first k latents for every k up to ``cfg.k``.

    It is a SAELens SAE in every way: ``encode``, ``decode``, ``forward``, hook points, saving and
    loading are SAELens'. What it adds is the *order* of a token's latents and the *budget*, how
    many of them ``encode`` keeps:

    >>> sae.budget = 8                     # from now on  # doctest: +SKIP
    >>> with sae.using_budget(32): ...     # for a while
    >>> stock = sae.at_k(16)               # a stock SAELens TopK SAE on the same weights
    >>> code = sae.encode_ordered(x)       # all cfg.k latents, largest first
    >>> sae.decode_budgets(code, [8, 32])  # [2, ..., d_in]
    """

    cfg: HierarchicalTopKSAEConfig

    def __init__(self, cfg: HierarchicalTopKSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self._budget = cfg.default_budget or cfg.k

    @property
    def budget(self) -> int:
        """The budget in use: how many latents ``encode`` keeps per token, in 1..cfg.k."""
        return self._budget

    @budget.setter
    def budget(self, budget: int) -> None:
        self._budget = check_budget(budget, self.cfg.k)

    def _set_k(self, _: int) -> NoReturn:
        raise AttributeError("Set sae.budget; sae.cfg.k is the largest budget, and stays.")

    k = property(fset=_set_k)  # else sae.k = 8 would pass, as to any module, and do nothing

    @contextmanager
    def using_budget(self, budget: int) -> Iterator[HierarchicalTopKSAE]:
        """Uses this budget inside the block and restores the former one after it."""
        before = self.budget
        self.budget = budget
        try:
            yield self
        finally:
            self.budget = before

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Feature activations ``[..., d_sae]`` of ``x`` ``[..., d_in]``, up to ``budget`` non-zero.

        They have the SAE's dtype; :meth:`decode` gives their reconstruction in that of ``x``.
        """
        code = self.encode_ordered(x).prefix(self.budget)
        acts = self.hook_sae_acts_post(code.to_dense(self.cfg.d_sae))
        if x.dtype != self.dtype and x.is_floating_point():
            # SAELens' hooked models pass encode's result to decode, and decode's into the model as
            # it is: most layers raise where that is of another dtype. The result says which dtype
            # is wanted; kept on the SAE, it would outlast the call. A view, because a hook may have
            # returned a tensor that is used elsewhere.
            acts = acts.view_as(acts)
            setattr(acts, DTYPE_OF_X, x.dtype)
        return acts

    def encode_ordered(self, x: torch.Tensor) -> OrderedCode:
        """All ``cfg.k`` latents of each token, largest activation first, whatever the budget is.

        Values are what ``encode`` reports (with ``rescale_acts_by_decoder_norm``: pre-activation
        times decoder norm). Runs the hooks up to ``hook_sae_acts_pre``.

        Raises:
            ValueError: if the last axis of ``x`` is not d_in.
        """
        self._check_width(x)
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        if self.cfg.rescale_acts_by_decoder_norm:
            hidden_pre = hidden_pre * self.W_dec.norm(dim=-1)
        return OrderedCode.from_pre_activations(hidden_pre, self.cfg.k)

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """Reconstruction ``[..., d_in]`` from every non-zero activation, whatever the budget is.

        What ``encode`` returned is decoded to the dtype of its ``x``, any other tensor to the
        SAE's.
        """
        if feature_acts.shape[-1] != self.cfg.d_sae:
            raise ValueError(
                f"decode needs feature activations of width d_sae={self.cfg.d_sae}, got "
                f"{tuple(feature_acts.shape)}. For an OrderedCode use decode_budgets, or "
                "code.to_dense(d_sae)."
            )
        x_hat = super().decode(feature_acts)
        return x_hat.to(getattr(feature_acts, DTYPE_OF_X, x_hat.dtype))

    def decode_budgets(self, code: OrderedCode, budgets: Sequence[int]) -> torch.Tensor:
        """Reconstructions from the first j latents for each budget j: ``[n, ..., d_in]``.

        Decodes without hooks, each latent once. With ``normalize_activations`` "layer_norm" or
        "constant_norm_rescale" the code must come from this SAE's latest ``encode``: the norms it
        removed are put back.

        Raises:
            ValueError: if the budgets are not ascending within 1..code.k.
            RuntimeError: if normalised activations have no encode to take their norms from.
        """
        return torch.stack(list(self.each_budget(code, resolve_budgets(budgets, code.k))))

    def encode_joined(self, x: torch.Tensor) -> OrderedCode:
        """:meth:`encode_ordered` of activations ``[..., d_in]`` whose heads are joined already."""
        with joined_heads(self):
            return self.encode_ordered(x.to(self.device, self.dtype))

    def each_budget(self, code: OrderedCode, budgets: Iterable[int]) -> Iterator[torch.Tensor]:
        """:meth:`decode_budgets` one budget at a time; budget 0 gives the bias alone."""
        if self.cfg.rescale_acts_by_decoder_norm:
            norms = self.W_dec.norm(dim=-1)
            code = OrderedCode(code.values / norms[code.indices], code.indices)
        # Looked up now: another encode may come before the reconstructions are asked for.
        restored, d_head = self._restoring_norms(), self.d_head
        prefixes = each_prefix(code, self.W_dec, self.b_dec, budgets)
        return (self.reshape_fn_out(restored(x_hat), d_head) for x_hat in prefixes)

    def at_k(self, k: int) -> TopKSAE:
        """A stock SAELens TopK SAE at budget ``k`` on the same weights.

        Parameters are shared, not copied; hook points, config and metadata are its own. It saves,
        loads and runs without this package. As all of SAELens' it does not fit a model of another
        dtype, and gives NaN for a token of zeros under "constant_norm_rescale".
        """
        cfg = TopKSAEConfig(
            k=check_budget(k, self.cfg.k),
            rescale_acts_by_decoder_norm=self.cfg.rescale_acts_by_decoder_norm,
            d_in=self.cfg.d_in,
            d_sae=self.cfg.d_sae,
            dtype=self.cfg.dtype,
            device="meta",  # the weights it would draw are never used
            apply_b_dec_to_input=self.cfg.apply_b_dec_to_input,
            normalize_activations=self.cfg.normalize_activations,
            reshape_activations=self.cfg.reshape_activations,
            metadata=copy.deepcopy(self.cfg.metadata),
        )
        view = TopKSAE(cfg)
        view.W_enc, view.W_dec, view.b_enc, view.b_dec = (
            self.W_enc,
            self.W_dec,
            self.b_enc,
            self.b_dec,
        )
        cfg.device, view.device = self.cfg.device, self.device
        if self.cfg.reshape_activations == "hook_z" and not self.hook_z_reshaping_mode:
            view.turn_off_forward_pass_hook_z_reshaping()
        return view

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Scales decoder rows to norm 1 and the encoder to match; outputs do not change.

        Raises:
            NotImplementedError: without ``rescale_acts_by_decoder_norm`` and with norms other than
                1: folding would change which latents are largest.
        """
        if self.cfg.rescale_acts_by_decoder_norm:
            super().fold_W_dec_norm()
        elif not norms_are_one(self.W_dec):
            raise NotImplementedError(
                "fold_W_dec_norm would change the order of the latents: this SAE was trained with "
                "rescale_acts_by_decoder_norm=False and its decoder norms are not 1."
            )

    def _check_width(self, x: torch.Tensor) -> None:
        # Joined heads: their widths multiply to d_in only after reshaping, which checks itself.
        if not self.hook_z_reshaping_mode and x.shape[-1] != self.cfg.d_in:
            raise ValueError(
                f"This SAE reads activations of width d_in={self.cfg.d_in}, got "
                f"{tuple(x.shape)}. Is it attached to another model or hook?"
            )


def norms_are_one(W_dec: torch.Tensor) -> bool:
    """Whether all decoder rows have norm 1, up to what storing them in bfloat16 does to it."""
    return bool(((W_dec.float().norm(dim=-1) - 1).abs() < 2e-3).all())
