"""What every kernel is given and gives back: NestedProblem, NestedSolution, Implementation."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from hsae_lens.objective.budgets import resolve_budgets
from hsae_lens.objective.kernels.launches import Launch

WITHOUT_FLOAT64 = ("mps",)


def exact_dtype(device: torch.device) -> torch.dtype:
    """What sums over tokens are kept in: float64, float32 on a device that has no such thing."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def deterministic() -> bool:
    """Whether the same input must give the same bits (torch's switch, or HSAE_DETERMINISTIC=1)."""
    return (
        torch.are_deterministic_algorithms_enabled() or os.environ.get("HSAE_DETERMINISTIC") == "1"
    )


class NestedProblem(NamedTuple):
    """One nested reconstruction problem over B tokens.

    values, W_dec, b_dec and target share a dtype, and everything is on one device.
    :meth:`Implementation.nested` checks this and makes every tensor contiguous.

    values: ``[B, K]``, descending activations v (already divided by the decoder norm if need be).
    indices: int64 ``[B, K]``, latents i.
    W_dec: ``[d_sae, d_in]``.  b_dec: ``[d_in]``.  target: ``[B, d_in]``, x.
    budgets: ascending; the last one is K.
    weights: one per budget, w.
    token_weights: ``[B]`` factors on each token's squared error, or None for 1; they reach an
        implementation in at least float32.
    """

    values: torch.Tensor
    indices: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    target: torch.Tensor
    budgets: list[int]
    weights: list[float]
    token_weights: torch.Tensor | None


class NestedSolution(NamedTuple):
    """Sums over tokens, not means: the caller divides by B.

    With r_j = x̂_j − x and s_t = Σ_{j≥t, j∈J} w_j r_j (times the token weight):

    squared_errors: :func:`exact_dtype` ``[len(budgets)]``, Σ_tokens ‖r_j‖².
    residual: ``[B, d_in]``, r_K.
    d_values: ``[B, K]``, 2⟨W[i_t], s_t⟩.
    d_W_dec: ``[d_sae, d_in]``, Σ 2 v_t s_t added to row i_t.
    suffix: ``[B, d_in]``, s_1. The gradient of b_dec is 2 Σ_tokens s_1, that of x is −2 s_1.

    The last three are None when gradients were not asked for.
    """

    squared_errors: torch.Tensor
    residual: torch.Tensor
    d_values: torch.Tensor | None
    d_W_dec: torch.Tensor | None
    suffix: torch.Tensor | None


@dataclass(frozen=True)
class Implementation:
    """One way to compute the two sparse reductions of a training step.

    C and Triton see addresses, not tensors, so this is the one place where a problem is checked:
    what reaches ``solve`` and ``reduce`` is contiguous, has the shapes and dtypes it should, and
    names latents that exist.

    solve: what :meth:`nested` calls.  reduce: what :meth:`encoder_grad` calls.
    refuses: why it cannot run on this device and dtype, or None if it can.
    slow_on: devices (types) on which the next one is faster, so that it must be asked for.
    launch: where blocks can be chosen, how a shape is launched: of (device, dtype, d_in, K).
    launched: the same implementation, launched in one way always.
    """

    name: str
    summary: str
    solve: Callable[[NestedProblem, bool], NestedSolution]
    reduce: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
    refuses: Callable[[torch.device, torch.dtype], str | None]
    slow_on: tuple[str, ...] = ()
    launch: Callable[[torch.device, torch.dtype, int, int], Launch] | None = None
    launched: Callable[[Launch], Implementation] | None = None

    def nested(self, p: NestedProblem, needs_grad: bool) -> NestedSolution:
        """Solves a problem, with gradients if they are wanted.

        Raises:
            IndexError: for a latent outside 0..d_sae-1 (on CUDA: the device stops, see
                :func:`_check_latents`).
            ValueError: for shapes, dtypes or devices that do not fit together.
        """
        tokens, k = p.values.shape
        d_sae, d_in = p.W_dec.shape
        like = p.W_dec
        self._check_dtype(like)
        if resolve_budgets(p.budgets, k)[-1] != k or len(p.weights) != len(p.budgets):
            raise ValueError(
                f"A problem needs budgets that end at K={k} and a weight for each, got "
                f"{p.budgets} and {p.weights}."
            )
        _check_latents(p.indices, d_sae)
        weights = p.token_weights
        if weights is not None:
            wide = torch.promote_types(like.dtype, torch.float32)
            weights = _fitted("token_weights", weights.to(wide), (tokens,), like, wide)
        return self.solve(
            p._replace(
                values=_fitted("values", p.values, (tokens, k), like),
                indices=_fitted("indices", p.indices, (tokens, k), like, torch.int64),
                W_dec=like.contiguous(),
                b_dec=_fitted("b_dec", p.b_dec, (d_in,), like),
                target=_fitted("target", p.target, (tokens, d_in), like),
                token_weights=weights,
            ),
            needs_grad,
        )

    def encoder_grad(
        self, d_pre: torch.Tensor, indices: torch.Tensor, x: torch.Tensor, d_sae: int
    ) -> torch.Tensor:
        """The gradient of W_enc ``[d_in, d_sae]``: Σ_tokens d_pre_t · x added to column i_t.

        Args:
            d_pre: ``[B, K]``.  indices: int64 ``[B, K]``.  x: ``[B, d_in]``, in d_pre's dtype.

        Raises:
            IndexError, ValueError: as :meth:`nested`.
        """
        tokens, k = d_pre.shape
        self._check_dtype(d_pre)
        _check_latents(indices, d_sae)
        return self.reduce(
            d_pre.contiguous(),
            _fitted("indices", indices, (tokens, k), d_pre, torch.int64),
            _fitted("x", x, (tokens, x.shape[-1]), d_pre),
            d_sae,
        )

    def _check_dtype(self, tensor: torch.Tensor) -> None:
        if reason := self.refuses(tensor.device, tensor.dtype):
            raise ValueError(f"The kernel {self.name!r} {reason}.")


def _fitted(
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    like: torch.Tensor,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The tensor, contiguous, if it has this shape, like's device and the dtype (or like's)."""
    dtype = dtype or like.dtype
    if (tensor.shape, tensor.dtype, tensor.device) != (shape, dtype, like.device):
        raise ValueError(
            f"{name} must be {shape} of {dtype} on {like.device}, got {tuple(tensor.shape)} of "
            f"{tensor.dtype} on {tensor.device}."
        )
    return tensor.contiguous()


def _check_latents(indices: torch.Tensor, d_sae: int) -> None:
    """Raises IndexError unless all latents are in 0..d_sae-1; on CUDA without waiting for it.

    There the check is a kernel ahead of those that would read and write astray. As with PyTorch's
    own indexing, the device stops and the error appears at the next call that waits for it.
    """
    if not indices.numel():
        return
    low, high = indices.min(), indices.max()
    if indices.device.type == "cuda":
        torch._assert_async((low >= 0) & (high < d_sae), f"a latent is outside 0..{d_sae - 1}")
    elif low < 0 or high >= d_sae:
        raise IndexError(
            f"The code has latents {int(low)}..{int(high)}, outside 0..{d_sae - 1}, the rows of "
            "W_dec (columns of W_enc)."
        )
