"""The HierarchicalTopK objective and the reconstructions it scores."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from hsae_lens import kernels
from hsae_lens.budgets import resolve_budgets, resolve_weights
from hsae_lens.kernels import Implementation, NestedProblem, NestedSolution
from hsae_lens.ordered_code import OrderedCode


class NestedOutput(NamedTuple):
    """The loss with what the same pass found out on the way.

    loss: scalar, differentiable.
    mse: float64 ``[len(budgets)]``, mean over tokens of ‖x − x̂_j‖² (summed over d_in), detached.
    reconstruction: ``[..., d_in]``, x̂ at the largest budget, detached.
    """

    loss: torch.Tensor
    mse: torch.Tensor
    reconstruction: torch.Tensor


def nested_loss(
    code: OrderedCode,
    W_dec: torch.Tensor,
    b_dec: torch.Tensor,
    target: torch.Tensor,
    budgets: Sequence[int] | None = None,
    weights: str | Sequence[float] | None = None,
    *,
    kernel: str = "auto",
) -> torch.Tensor:
    """The HierarchicalTopK loss (arXiv 2505.24473) of an ordered code.

    With x̂_j = b_dec + Σ_{t≤j} v_t·W_dec[i_t], the loss is
    Σ_{j∈J} w_j · mean over tokens of ‖x − x̂_j‖², where the norm *sums* over d_in: SAELens'
    convention, so J={K} is exactly its TopK ``mse_loss``. (The paper's kernels divide by d_in.)

    Args:
        code: values and indices ``[..., K]``. Values multiply decoder rows as they are: with
            ``rescale_acts_by_decoder_norm`` divide them by the decoder norm first.
        W_dec: ``[d_sae, d_in]``.
        b_dec: ``[d_in]``.
        target: the activations x, ``[..., d_in]``.
        budgets: J, ascending within 1..K; None for every budget.
        weights: w, a name ("uniform", "inverse", "inverse_sqrt") or a number per budget,
            normalised to sum 1; None for uniform.
        kernel: forces an implementation (see :func:`hsae_lens.kernels.explain`).

    Returns:
        A scalar, differentiable once in the code's values, W_dec, b_dec and target.

    Raises:
        ValueError: for budgets, weights, shapes, dtypes or devices that do not fit together.
    """
    return nested_pass(code, W_dec, b_dec, target, budgets, weights, kernel=kernel).loss


def nested_pass(
    code: OrderedCode,
    W_dec: torch.Tensor,
    b_dec: torch.Tensor,
    target: torch.Tensor,
    budgets: Sequence[int] | None = None,
    weights: str | Sequence[float] | None = None,
    *,
    token_weights: torch.Tensor | None = None,
    kernel: str = "auto",
) -> NestedOutput:
    """:func:`nested_loss` with the error at each budget and the last reconstruction.

    ``token_weights`` ``[...]`` multiplies each token's squared error, in loss and ``mse``.
    """
    _check_shapes(code, W_dec, b_dec, target)
    resolved = resolve_budgets(budgets, code.k)
    resolved_weights = resolve_weights(weights, resolved)
    code = code.prefix(resolved[-1])
    implementation = kernels.select(kernel, W_dec.device, W_dec.dtype)
    values = code.values.reshape(-1, code.k).to(W_dec.dtype).contiguous()
    flat_target = target.reshape(-1, target.shape[-1]).to(W_dec.dtype).contiguous()
    problem = NestedProblem(
        values.detach(),
        code.indices.reshape(-1, code.k).contiguous(),
        W_dec.detach().contiguous(),
        b_dec.detach().contiguous(),
        flat_target.detach(),
        resolved,
        resolved_weights,
        None if token_weights is None else token_weights.detach().reshape(-1),
    )
    loss, mse, residual = _NestedLoss.apply(
        values, W_dec, b_dec, flat_target, problem, implementation
    )
    reconstruction = (residual + problem.target).reshape(target.shape)
    return NestedOutput(loss, mse, reconstruction)


def decode_prefixes(
    code: OrderedCode, W_dec: torch.Tensor, b_dec: torch.Tensor, budgets: Sequence[int]
) -> torch.Tensor:
    """x̂ at each budget: ``[len(budgets), ..., d_in]``, differentiable, without a [K, d_in] tensor.

    Raises:
        ValueError: if the budgets are not ascending within 1..K.
    """
    return torch.stack(list(each_prefix(code, W_dec, b_dec, resolve_budgets(budgets, code.k))))


def each_prefix(
    code: OrderedCode, W_dec: torch.Tensor, b_dec: torch.Tensor, budgets: Iterable[int]
) -> Iterator[torch.Tensor]:
    """Yields x̂ ``[..., d_in]`` at each of the ascending budgets; at 0 it is the bias.

    Each latent is decoded once, and no two reconstructions are held at a time.
    """
    values = code.values.reshape(-1, code.k)
    indices = code.indices.reshape(-1, code.k)
    x_hat, start = b_dec.expand(len(values), -1), 0
    for j in budgets:
        if j > start:
            x_hat = x_hat + torch.nn.functional.embedding_bag(
                indices[:, start:j],
                W_dec,
                per_sample_weights=values[:, start:j].to(W_dec.dtype),
                mode="sum",
            )
        yield x_hat.reshape(*code.values.shape[:-1], W_dec.shape[1])
        start = j


class _NestedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        W_dec: torch.Tensor,
        b_dec: torch.Tensor,
        target: torch.Tensor,
        problem: NestedProblem,
        implementation: Implementation,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.problem, ctx.implementation = problem, implementation
        needs_grad = any(ctx.needs_input_grad[:4])
        solution = _solve(ctx, needs_grad)
        # One pass finds loss and gradients; they wait here for the first backward.
        ctx.solution = solution if needs_grad else None
        mse = solution.squared_errors / max(values.shape[0], 1)
        loss = (mse * _on_device(tuple(problem.weights), mse.device)).sum()
        residual = solution.residual.to(target.dtype)
        ctx.mark_non_differentiable(mse, residual)
        return loss.to(torch.promote_types(W_dec.dtype, torch.float32)), mse, residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: torch.Tensor, *_: torch.Tensor) -> tuple[Any, ...]:
        # The gradients are given away, so a second backward (retain_graph) solves again.
        solution: NestedSolution = ctx.solution or _solve(ctx, True)
        ctx.solution = None
        suffix = solution.suffix
        assert suffix is not None  # gradients were asked for
        needed = ctx.needs_input_grad
        return (
            _scaled(solution.d_values, d_loss) if needed[0] else None,
            _scaled(solution.d_W_dec, d_loss) if needed[1] else None,
            _scaled(2 * suffix.sum(0), d_loss).to(ctx.problem.b_dec.dtype) if needed[2] else None,
            _scaled(-2 * suffix, d_loss).to(ctx.problem.target.dtype) if needed[3] else None,
            None,
            None,
        )


def _solve(ctx: Any, needs_grad: bool) -> NestedSolution:
    """The solution with gradients of the mean over tokens."""
    problem: NestedProblem = ctx.problem
    n_tokens = max(problem.values.shape[0], 1)
    problem = problem._replace(weights=[w / n_tokens for w in problem.weights])
    with torch.autocast(problem.values.device.type, enabled=False), torch.no_grad():
        return ctx.implementation.nested(problem, needs_grad)


@functools.lru_cache(maxsize=64)
def _on_device(weights: tuple[float, ...], device: torch.device) -> torch.Tensor:
    # Kept, because copying to a GPU waits for it.
    return torch.tensor(weights, dtype=torch.float64, device=device)


def _scaled(gradient: Any, d_loss: torch.Tensor) -> torch.Tensor:
    if d_loss.device.type == "cpu" and d_loss.item() == 1:
        return gradient  # the usual case: no pass over a large tensor
    return gradient.mul_(d_loss.to(gradient.dtype))


def _check_shapes(
    code: OrderedCode, W_dec: torch.Tensor, b_dec: torch.Tensor, target: torch.Tensor
) -> None:
    if W_dec.ndim != 2:
        raise ValueError(f"W_dec must be [d_sae, d_in], got shape {tuple(W_dec.shape)}.")
    d_sae, d_in = W_dec.shape
    if b_dec.shape != (d_in,):
        raise ValueError(f"b_dec must be [d_in]=[{d_in}] like W_dec, got {tuple(b_dec.shape)}.")
    if target.shape != (*code.values.shape[:-1], d_in):
        raise ValueError(
            f"target must be {(*code.values.shape[:-1], d_in)} to match the code "
            f"{tuple(code.values.shape)} and d_in={d_in}, got {tuple(target.shape)}."
        )
    if code.k > d_sae:
        raise ValueError(f"The code holds {code.k} latents but W_dec has only {d_sae} rows.")
    devices = {t.device for t in (code.values, code.indices, W_dec, b_dec, target)}
    if len(devices) > 1:
        raise ValueError(f"code, W_dec, b_dec and target are on different devices: {devices}.")
    if not W_dec.is_floating_point() or b_dec.dtype != W_dec.dtype:
        raise ValueError(f"W_dec and b_dec must share one floating dtype, got {W_dec.dtype} and "
                         f"{b_dec.dtype}.")  # fmt: skip
