"""SAELens' steps around encode and decode: normalised inputs and joined heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sae_lens import SAE
from typing_extensions import override

LAYER_NORM_EPS = 1e-5  # SAELens'


class Normalization:
    """One mode of ``normalize_activations``; this one does nothing to a token.

    A mode that does scales and shifts each token on its own, so un-normalising needs the token's
    norms: a call keeps them on the SAE, under SAELens' names. Output = scale · decoded + shift, so
    a squared error in the units of ``x`` is scale² times the one against (x − shift) / scale.

    kept: the attributes with a call's norms, ``[..., 1]`` each.
    folded_at_the_end: whether it has one scaling for all tokens, which SAELens folds into the
        weights when training ends; until then a trainer applies it, not the SAE.
    """

    kept: tuple[str, ...] = ()

    def __init__(self, folded_at_the_end: bool = False) -> None:
        self.folded_at_the_end = folded_at_the_end

    def normalize(self, sae: Any, x: torch.Tensor) -> torch.Tensor:
        """``x`` ``[..., d_in]`` normalised; keeps its norms on the SAE."""
        return x

    def restoring(self, sae: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        """What takes decoded tokens ``[..., d_in]`` to the units of the latest ``x``."""
        return lambda x_hat: x_hat

    def scale(self, sae: Any) -> Any:
        """What that multiplies a decoded token with: ``[..., 1]``, or 1.0."""
        return 1.0

    def target(self, sae: Any, x: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        """(x − shift) / scale, what the decoder must hit."""
        return normed


class LayerNorm(Normalization):
    """Mean 0 and standard deviation 1, as in a layer norm."""

    kept = ("ln_mu", "ln_std")

    def normalize(self, sae: Any, x: torch.Tensor) -> torch.Tensor:
        sae.ln_mu = x.mean(dim=-1, keepdim=True)
        centred = x - sae.ln_mu
        sae.ln_std = centred.std(dim=-1, keepdim=True)
        return centred / (sae.ln_std + LAYER_NORM_EPS)

    def restoring(self, sae: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        mu, std = sae.ln_mu, sae.ln_std
        return lambda x_hat: x_hat * std + mu

    def scale(self, sae: Any) -> Any:
        return sae.ln_std

    def target(self, sae: Any, x: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        # Not ``normed``, which is divided by std + eps. And a constant token has no spread: its
        # error counts nothing, yet its target must be a number.
        return (x - sae.ln_mu) / torch.where(sae.ln_std > 0, sae.ln_std, 1)


class ConstantNorm(Normalization):
    """Norm √d_in."""

    kept = ("x_norm_coeff",)

    def normalize(self, sae: Any, x: torch.Tensor) -> torch.Tensor:
        # A token of zeros has no direction (stock SAELens: NaN). It stays zeros, and by an
        # infinite coefficient its reconstruction is zeros too.
        norm, root = x.norm(dim=-1, keepdim=True), sae.cfg.d_in**0.5
        zero = norm < root * torch.finfo(x.dtype).tiny
        coefficient = root / norm.masked_fill(zero, 1)
        sae.x_norm_coeff = coefficient.masked_fill(zero, torch.inf)
        return x * coefficient

    def restoring(self, sae: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        coefficient = sae.x_norm_coeff
        return lambda x_hat: x_hat / coefficient

    def scale(self, sae: Any) -> Any:
        return 1 / sae.x_norm_coeff


NORMALIZATIONS: dict[str, Normalization] = {
    "none": Normalization(),
    "layer_norm": LayerNorm(),
    "constant_norm_rescale": ConstantNorm(),
    "expected_average_only_in": Normalization(folded_at_the_end=True),
    "covariance_whitening": Normalization(folded_at_the_end=True),
}
"""By SAELens' names for them."""

NORMS_OF_A_CALL = [name for mode in NORMALIZATIONS.values() for name in mode.kept]


def normalization_of(sae: Any) -> Normalization:
    """How an SAE, ours or any of SAELens', normalises its inputs."""
    return NORMALIZATIONS[sae.cfg.normalize_activations]


def decoder_scale(sae: Any) -> Any:
    """What un-normalising multiplies the decoder's output with, per token ``[..., 1]``, or 1.0.

    The SAE must still hold the norms of its latest ``encode``.
    """
    return normalization_of(sae).scale(sae)


def decoder_target(
    sae: Any, x: torch.Tensor, normed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the decoder must hit before its output is un-normalised, and how errors then count.

    Args:
        x: ``[..., d_in]`` as it came; normed: the same after the SAE's input normalisation, whose
            norms the SAE still holds.

    Returns:
        The target ``[..., d_in]`` and scale² ``[...]``, or None where it is 1.
    """
    mode = normalization_of(sae)
    squared = mode.scale(sae).squeeze(-1) ** 2 if mode.kept else None
    return mode.target(sae, x, normed), squared


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
        return normalization_of(self).normalize(self, x)

    def run_time_activation_norm_fn_out(self, x_hat: torch.Tensor) -> torch.Tensor:
        """Undoes the input normalisation of the latest encode, and forgets its norms."""
        restored = self._restoring_norms()(x_hat)
        for name in NORMS_OF_A_CALL:
            self.__dict__.pop(name, None)
        return restored

    def _restoring_norms(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What undoes the input normalisation of the latest encode, for any number of decodes."""
        try:
            return normalization_of(self).restoring(self)
        except AttributeError:
            raise RuntimeError(
                f"normalize_activations={self.cfg.normalize_activations!r} needs the norms of the "
                "latest encode: there was none, or a decode has consumed them. Call encode_ordered "
                "again first."
            ) from None

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
