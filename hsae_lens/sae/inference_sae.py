"""The inference architecture: SAELens' TopK SAE with an order and a budget."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
from typing_extensions import override

from hsae_lens.objective.budgets import (
    Budget,
    ErrorTarget,
    MeanBudget,
    check_budget,
    check_k,
    check_spending,
    resolve_budgets,
    whole_number,
)
from hsae_lens.objective.loss import each_prefix
from hsae_lens.objective.ordered_code import OrderedCode
from hsae_lens.objective.refit import refit_values
from hsae_lens.sae.calibration import CalibratedSAE, check_calibration
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
        calibration (dict | None): What mean budgets and error targets need
            (:class:`hsae_lens.sae.calibration.Calibration`); None of an SAE without.
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
    calibration: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget_fields(self)

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE


def check_budget_fields(cfg: Any) -> None:
    """Makes a config's widths, k and default_budget Python ints: a config is saved as JSON.

    Raises:
        ValueError: if one is no whole number, they do not fit together, or the calibration is
            damaged.
    """
    cfg.d_in, cfg.d_sae = whole_number(cfg.d_in, "d_in"), whole_number(cfg.d_sae, "d_sae")
    cfg.k = check_k(cfg.k, cfg.d_sae)
    if cfg.default_budget is not None:
        cfg.default_budget = check_budget(cfg.default_budget, cfg.k, "default_budget")
    if cfg.calibration is not None:
        check_calibration(cfg.calibration, cfg.k)


class HierarchicalTopKSAE(CalibratedSAE, OwnInputSteps, CheckedFiles, TopKSAE):
    """One SAE that reconstructs from its first k latents for every k up to ``cfg.k``.

    It is a SAELens SAE in every way: ``encode``, ``decode``, ``forward``, hook points, saving and
    loading are SAELens'. What it adds is the *order* of a token's latents and the *budget*, how
    many of them ``encode`` keeps:

    >>> sae.budget = 8                     # from now on  # doctest: +SKIP
    >>> with sae.using_budget(32): ...     # for a while
    >>> sae.budget = MeanBudget(32)        # 32 on average: each token what exceeds one threshold
    >>> sae.budget = ErrorTarget(0.2)      # each token until a fifth is unexplained
    >>> stock = sae.at_k(16)               # a stock SAELens TopK SAE on the same weights
    >>> stock = sae.at_mean_k(16)          # a stock JumpReLU SAE that uses 16 on average
    >>> code = sae.encode_ordered(x)       # all cfg.k latents, largest first
    >>> sae.decode_budgets(code, [8, 32])  # [2, ..., d_in]
    """

    cfg: HierarchicalTopKSAEConfig

    def __init__(self, cfg: HierarchicalTopKSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self._budget: Budget = cfg.default_budget or cfg.k

    @property
    def budget(self) -> Budget:
        """The budget in use, of which ``encode`` keeps a token's latents: how many, in 1..cfg.k;
        or a :class:`MeanBudget` or :class:`ErrorTarget`, which ask each token.
        """
        return self._budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        self._budget = self.check_budget(budget)

    def check_budget(self, budget: Budget) -> Budget:
        """The budget, if this SAE has it.

        Raises:
            ValueError: if it is outside 1..cfg.k, or asks every token and the SAE is not calibrated
                for that.
        """
        if isinstance(budget, MeanBudget | ErrorTarget):
            _ = self.calibration
        return check_spending(budget, self.cfg.k)

    def _set_k(self, _: int) -> NoReturn:
        raise AttributeError("Set sae.budget; sae.cfg.k is the largest budget, and stays.")

    k = property(fset=_set_k)  # else sae.k = 8 would pass, as to any module, and do nothing

    @contextmanager
    def using_budget(self, budget: Budget) -> Iterator[HierarchicalTopKSAE]:
        """Uses this budget inside the block and restores the former one after it."""
        before = self.budget
        self.budget = budget
        try:
            yield self
        finally:
            self.budget = before

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Feature activations ``[..., d_sae]`` of ``x`` ``[..., d_in]``; zero outside the budget.

        They have the SAE's dtype; :meth:`decode` gives their reconstruction in that of ``x``.
        """
        acts = self.hook_sae_acts_post(self._acts_at(x, self.budget))
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
        return OrderedCode.from_pre_activations(self._scaled_pre(x), self.cfg.k)

    def encode_at(self, x: torch.Tensor, budget: Budget) -> OrderedCode:
        """The latents that each token uses at a budget, in order; shorter codes end in zeros.

        Of a mean budget all that exceed its threshold, which may be more than cfg.k.

        Raises:
            ValueError: if the last axis of ``x`` is not d_in, or as :meth:`check_budget`.
        """
        code, lengths = self.encode_budgets(x, [budget])
        return code.prefixes(lengths[0])

    def encode_budgets(
        self, x: torch.Tensor, budgets: Sequence[Budget], keep: torch.Tensor | None = None
    ) -> tuple[OrderedCode, torch.Tensor]:
        """One code for several budgets, and how many of its latents tokens use at each.

        Args:
            keep: bool ``[...]``, which tokens matter. The others use nothing at mean budgets:
                an outlier may exceed the threshold with most latents, and makes the code as long.

        Returns:
            A code ``[..., K]``, where K is cfg.k or what the hungriest token uses, if that is
            more; and the numbers ``[len(budgets), ...]``, int64: whatever the rule, what a token
            uses is a prefix of its code.

        Raises:
            ValueError: if there are no budgets, or as :meth:`check_budget`.
        """
        if not budgets:
            raise ValueError("There are no budgets: name some.")
        budgets = [self.check_budget(budget) for budget in budgets]
        acts = self._scaled_pre(x)
        matters = torch.ones((), dtype=torch.bool) if keep is None else keep
        above = {
            budget: (acts > self._threshold(budget)).sum(-1) * matters.to(acts.device)
            for budget in budgets
            if isinstance(budget, MeanBudget)
        }
        longest = max([self.cfg.k, *(int(n.max()) for n in above.values() if n.numel())])
        code = OrderedCode.from_pre_activations(acts, self.cfg.k)
        if longest > self.cfg.k:
            # Sorted apart, so that the first cfg.k are those of any other call, ties included.
            others = acts.scatter(-1, code.indices, -torch.inf)
            code = code.followed_by(OrderedCode.from_pre_activations(others, longest - self.cfg.k))
        return code, torch.stack([self._lengths(code, x, b, above) for b in budgets])

    def _lengths(
        self,
        code: OrderedCode,
        x: torch.Tensor,
        budget: Budget,
        above: dict[MeanBudget, torch.Tensor],
    ) -> torch.Tensor:
        """How many latents tokens use at a budget ``[...]``; ``above``: what exceeds thresholds."""
        if isinstance(budget, MeanBudget):
            return above[budget]
        if isinstance(budget, ErrorTarget):
            return self._until(code, x, budget)
        return torch.full(code.values.shape[:-1], budget, device=code.values.device)

    def _acts_at(self, x: torch.Tensor, budget: Budget) -> torch.Tensor:
        """What ``encode`` reports, before its hook."""
        if isinstance(budget, MeanBudget):  # no sort
            acts = self._scaled_pre(x)
            return acts * (acts > self._threshold(budget))
        if isinstance(budget, ErrorTarget):
            return self.encode_at(x, budget).to_dense(self.cfg.d_sae)
        return self.encode_ordered(x).prefix(budget).to_dense(self.cfg.d_sae)

    @override
    def _scaled_pre(self, x: torch.Tensor) -> torch.Tensor:
        self._check_width(x)
        return super()._scaled_pre(x)

    def _threshold(self, budget: MeanBudget) -> torch.Tensor:
        # In the SAE's dtype, as a stock JumpReLU SAE would hold it.
        threshold = self.calibration.threshold(budget)
        return torch.full((), threshold, dtype=self.dtype, device=self.device)

    @torch.no_grad()
    def _until(self, code: OrderedCode, x: torch.Tensor, target: ErrorTarget) -> torch.Tensor:
        """The fewest of a token's first cfg.k latents that meet the target, else all: ``[...]``."""
        enough = target.share * self.calibration.variance
        lengths = torch.full(code.values.shape[:-1], self.cfg.k, device=code.values.device)
        x = x.to(self.device, torch.promote_types(x.dtype, torch.float32))
        for j, x_hat in enumerate(self.each_budget(code, range(self.cfg.k))):
            error = (x_hat.to(x.dtype) - x).flatten(lengths.ndim).square().sum(-1)
            lengths = torch.where(error <= enough, lengths.clamp(max=j), lengths)
        return lengths

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

    def refit(self, x: torch.Tensor) -> OrderedCode:
        """The latents that tokens use at the present budget, their values refitted to ``x``.

        By least squares (:func:`refit_values`), so that ``decode(code.to_dense(d_sae))`` comes as
        near to ``x`` as these latents can. Values are in the units of ``encode``, and may be
        negative: it tells how much is lost by reading values off instead of fitting them.

        Raises:
            ValueError: if activations are normalised one by one, or whitened.
        """
        if self.cfg.normalize_activations not in ("none", "expected_average_only_in"):
            raise ValueError(
                "Values are refitted to activations as they come; this SAE normalises them "
                f"({self.cfg.normalize_activations})."
            )
        code, W_dec = self.encode_at(x, self.budget), self.W_dec.detach()
        if self.cfg.rescale_acts_by_decoder_norm:
            W_dec = W_dec / W_dec.norm(dim=-1, keepdim=True)
        joined = x.flatten(code.values.ndim - 1).to(self.device, self.dtype)  # heads, if any
        return OrderedCode(refit_values(code, W_dec, joined - self.b_dec.detach()), code.indices)

    def at_k(self, k: int) -> TopKSAE:
        """A stock SAELens TopK SAE at budget ``k`` on the same weights.

        Parameters are shared, not copied; hook points, config and metadata are its own. It saves,
        loads and runs without this package. As all of SAELens' it does not fit a model of another
        dtype, and gives NaN for a token of zeros under "constant_norm_rescale".
        """
        k = check_budget(k, self.cfg.k)
        rescale = self.cfg.rescale_acts_by_decoder_norm
        return self._stock(TopKSAE, TopKSAEConfig, k=k, rescale_acts_by_decoder_norm=rescale)

    def at_mean_k(self, k: float) -> JumpReLUSAE:
        """A stock SAELens JumpReLU SAE that uses ``k`` latents on average, on the same weights.

        As :meth:`at_k`; its thresholds, one for each latent, are its own. What it reports is what
        ``encode`` does at ``MeanBudget(k)``, bit for bit; with ``rescale_acts_by_decoder_norm``,
        which JumpReLU SAEs lack, activations are not multiplied by the decoder norm, and rounding
        may decide otherwise about latents at the threshold (in bfloat16 a few in a thousand).

        Raises:
            ValueError: if ``k`` is outside 1..cfg.k, or the SAE is not calibrated.
        """
        threshold = self._threshold(MeanBudget(k)).expand(self.cfg.d_sae)
        if self.cfg.rescale_acts_by_decoder_norm:
            threshold = threshold / self.W_dec.detach().norm(dim=-1)
        view = self._stock(JumpReLUSAE, JumpReLUSAEConfig)
        view.threshold = torch.nn.Parameter(threshold.clone())
        return view

    def _stock(self, kind: Any, config: Any, **own: Any) -> Any:
        """An SAE of SAELens' own class that shares the weights; ``own`` are its config's fields."""
        cfg = config(
            **own,
            d_in=self.cfg.d_in,
            d_sae=self.cfg.d_sae,
            dtype=self.cfg.dtype,
            device="meta",  # the weights it would draw are never used
            apply_b_dec_to_input=self.cfg.apply_b_dec_to_input,
            normalize_activations=self.cfg.normalize_activations,
            reshape_activations=self.cfg.reshape_activations,
            metadata=copy.deepcopy(self.cfg.metadata),
        )
        view = kind(cfg)
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
