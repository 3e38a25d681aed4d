"""The inference architecture: SAELens' TopK SAE with an order and a budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from typing_extensions import override

from hsae_lens.budgets import resolve_budgets, whole_number
from hsae_lens.devices import model_device
from hsae_lens.files import check_weights, explaining_bad_files, saved_whole
from hsae_lens.nested import each_prefix
from hsae_lens.ordered_code import OrderedCode

ARCHITECTURE = "hierarchical_topk"
LAYER_NORM_EPS = 1e-5  # SAELens'
DTYPE_OF_X = "dtype_of_x"  # an attribute of what encode returns
NORMS_OF_A_CALL = ("ln_mu", "ln_std", "x_norm_coeff")  # SAELens' names


def check_k(k: int, d_sae: int) -> int:
    """``k`` as a Python int; raises ValueError unless it is a whole number in 1..d_sae."""
    k = whole_number(k, "k")
    if not 1 <= k <= d_sae:
        raise ValueError(f"k must be in 1..d_sae={d_sae}, got {k}.")
    return k


def check_budget(budget: int, k: int, name: str = "budget") -> int:
    """``budget`` as a Python int; raises ValueError unless it is a whole number in 1..k."""
    budget = whole_number(budget, name)
    if not 1 <= budget <= k:
        raise ValueError(f"{name} {budget} is outside 1..{k}, this SAE's trained budgets.")
    return budget


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


class OwnInputSteps(SAE[Any]):
    """SAELens' steps around encode and decode as methods: normalised inputs and joined heads.

    SAELens makes them functions that are bound to the SAE being built. A copy would go on using
    those: leave its norms on the original and take them from there. And nothing could be pickled.
    What a call needs of the one before it (norms, the width of a head) is still kept on the SAE,
    so two threads need an SAE each: a copy, or ``at_k``, which shares the weights.
    """

    d_head: int | None = None

    @override
    def _setup_activation_normalization(self) -> None:
        pass  # the methods below are there already

    def run_time_activation_norm_fn_in(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` normalised over its last axis; its norms are kept for one decode."""
        if self.cfg.normalize_activations == "layer_norm":
            self.ln_mu = x.mean(dim=-1, keepdim=True)
            centred = x - self.ln_mu
            self.ln_std = centred.std(dim=-1, keepdim=True)
            return centred / (self.ln_std + LAYER_NORM_EPS)
        if self.cfg.normalize_activations == "constant_norm_rescale":
            # A token of zeros has no direction (stock SAELens: NaN). It stays zeros, and by an
            # infinite coefficient its reconstruction is zeros too.
            norm, root = x.norm(dim=-1, keepdim=True), self.cfg.d_in**0.5
            zero = norm < root * torch.finfo(x.dtype).tiny
            coefficient = root / norm.masked_fill(zero, 1)
            self.x_norm_coeff = coefficient.masked_fill(zero, torch.inf)
            return x * coefficient
        return x

    def run_time_activation_norm_fn_out(self, x_hat: torch.Tensor) -> torch.Tensor:
        """Undoes the input normalisation of the latest encode, and forgets its norms."""
        restored = self._restoring_norms()(x_hat)
        for name in NORMS_OF_A_CALL:
            self.__dict__.pop(name, None)
        return restored

    def _restoring_norms(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What undoes the input normalisation of the latest encode, for any number of decodes."""
        mode = self.cfg.normalize_activations
        try:
            if mode == "layer_norm":
                mu, std = self.ln_mu, self.ln_std
                return lambda x_hat: x_hat * std + mu
            if mode == "constant_norm_rescale":
                coefficient = self.x_norm_coeff
                return lambda x_hat: x_hat / coefficient
        except AttributeError:
            raise RuntimeError(
                f"normalize_activations={mode!r} needs the norms of the latest encode: there was "
                "none, or a decode has consumed them. Call encode_ordered again first."
            ) from None
        return lambda x_hat: x_hat

    @override
    def turn_on_forward_pass_hook_z_reshaping(self) -> None:
        super().turn_on_forward_pass_hook_z_reshaping()
        del self.reshape_fn_in, self.reshape_fn_out  # the methods below

    @override
    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        super().turn_off_forward_pass_hook_z_reshaping()
        del self.reshape_fn_in, self.reshape_fn_out

    def reshape_fn_in(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., n_heads, d_head]`` to ``[..., d_in]`` for an SAE of hook_z."""
        if not self.hook_z_reshaping_mode:
            return x
        self.d_head = x.shape[-1]
        return x.flatten(-2)

    def reshape_fn_out(self, x_hat: torch.Tensor, d_head: int | None) -> torch.Tensor:
        """``[..., d_in]`` back to ``[..., n_heads, d_head]`` for an SAE of hook_z."""
        if not self.hook_z_reshaping_mode:
            return x_hat
        if d_head is None:
            raise RuntimeError("An SAE of hook_z learns the width of a head from encode: call it.")
        return x_hat.unflatten(-1, (-1, d_head))

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles take: all but the norms of a call that is not finished."""
        return {name: v for name, v in self.__dict__.items() if name not in NORMS_OF_A_CALL}


class HierarchicalTopKSAE(OwnInputSteps, TopKSAE):
    """One SAE that reconstructs from its first k latents for every k up to ``cfg.k``.

    It is a SAELens SAE in every way: ``encode``, ``decode``, ``forward``, hook points, saving and
    loading are SAELens'. What it adds is the *order* of a token's latents and the *budget*, how
    many of them ``encode`` keeps:

    >>> sae.k = 8                          # from now on  # doctest: +SKIP
    >>> with sae.budget(32): ...           # for a while
    >>> stock = sae.at_k(16)               # a stock SAELens TopK SAE on the same weights
    >>> code = sae.encode_ordered(x)       # all cfg.k latents, largest first
    >>> sae.decode_budgets(code, [8, 32])  # [2, ..., d_in]
    """

    cfg: HierarchicalTopKSAEConfig

    def __init__(self, cfg: HierarchicalTopKSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self._budget = cfg.default_budget or cfg.k

    @property
    def k(self) -> int:
        """The budget in use: how many latents ``encode`` keeps per token, in 1..cfg.k."""
        return self._budget

    @k.setter
    def k(self, budget: int) -> None:
        self._budget = check_budget(budget, self.cfg.k)

    @contextmanager
    def budget(self, k: int) -> Iterator[HierarchicalTopKSAE]:
        """Uses budget ``k`` inside the block and restores the former one after it."""
        before = self.k
        self.k = k
        try:
            yield self
        finally:
            self.k = before

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Feature activations ``[..., d_sae]`` of ``x`` ``[..., d_in]``, at most ``k`` non-zero.

        They have the SAE's dtype; :meth:`decode` gives their reconstruction in that of ``x``.
        """
        code = self.encode_ordered(x).prefix(self.k)
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
        """Reconstruction ``[..., d_in]``; it uses every non-zero activation, whatever ``k`` is.

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

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """As SAELens' ``save_model``; the files appear whole or not at all."""
        return saved_whole(super().save_model, path)

    @override
    @classmethod
    def load_from_disk(
        cls, path: str | Path, device: str = "cpu", *args: Any, **kwargs: Any
    ) -> Any:
        """As SAELens' ``load_from_disk``, with the cause and the fix when a file is damaged."""
        device = str(model_device(device))
        with explaining_bad_files(path):
            return super().load_from_disk(path, device, *args, **kwargs)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """What SAELens calls before it takes weights, whichever way they came."""
        check_weights(self, state_dict)

    def _check_width(self, x: torch.Tensor) -> None:
        # Joined heads: their widths multiply to d_in only after reshaping, which checks itself.
        if not self.hook_z_reshaping_mode and x.shape[-1] != self.cfg.d_in:
            raise ValueError(
                f"This SAE reads activations of width d_in={self.cfg.d_in}, got "
                f"{tuple(x.shape)}. Is it attached to another model or hook?"
            )


@contextmanager
def joined_heads(sae: Any) -> Iterator[None]:
    """Inside, an SAE of hook_z reads and gives ``[..., d_in]`` with the heads joined."""
    reshapes = sae.hook_z_reshaping_mode
    if reshapes:
        sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        if reshapes:
            sae.turn_on_forward_pass_hook_z_reshaping()


def largest_budget(sae: Any) -> int:
    """The largest budget that an SAE of any architecture can be cut to: its k, else d_sae."""
    return int(getattr(sae.cfg, "k", sae.cfg.d_sae))


def norms_are_one(W_dec: torch.Tensor) -> bool:
    """Whether all decoder rows have norm 1, up to what storing them in bfloat16 does to it."""
    return bool(((W_dec.float().norm(dim=-1) - 1).abs() < 2e-3).all())


def decoder_target(
    sae: Any, x: torch.Tensor, normed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the decoder must hit before its output is un-normalised, and how errors then count.

    Output = scale · decoded + shift per token, so a squared error in x's units is scale² times the
    squared error against (x − shift) / scale.

    Args:
        x: ``[..., d_in]`` as it came; normed: the same after the SAE's input normalisation, whose
            norms the SAE still holds.

    Returns:
        The target ``[..., d_in]`` and scale² ``[...]``, or None where it is 1.
    """
    mode = sae.cfg.normalize_activations
    if mode == "layer_norm":
        # A constant token has no spread: its error counts nothing, yet its target must be a number.
        spread = torch.where(sae.ln_std > 0, sae.ln_std, 1)
        return (x - sae.ln_mu) / spread, decoder_scale(sae).squeeze(-1) ** 2
    if mode == "constant_norm_rescale":
        return normed, decoder_scale(sae).squeeze(-1) ** 2
    return normed, None


def decoder_scale(sae: Any) -> Any:
    """What un-normalising multiplies the decoder's output with, per token ``[..., 1]``, or 1.0.

    The SAE must still hold the norms of its latest ``encode``.
    """
    mode = sae.cfg.normalize_activations
    if mode == "layer_norm":
        return sae.ln_std
    if mode == "constant_norm_rescale":
        return 1 / sae.x_norm_coeff
    return 1.0
