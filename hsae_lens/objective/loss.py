"""The HierarchicalTopK objective and the reconstructions it scores."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from hsae_lens.objective import kernels
from hsae_lens.objective.budgets import resolve_budgets, resolve_weights
from hsae_lens.objective.differentiable_once import differentiable_once
from hsae_lens.objective.kernels import Implementation, NestedProblem, NestedSolution
from hsae_lens.objective.ordered_code import OrderedCode


class NestedOutput(NamedTuple):
    """The loss with what the same pass found out on the way.

    loss: scalar, differentiable.
    mse: float64 (float32 on mps) ``[len(budgets)]``, mean over tokens of ‖x − x̂_j‖² (summed over
        d_in), detached.
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
        weights: w, a name of :data:`hsae_lens.objective.budgets.SCHEDULES` or a number per budget,
            normalised to sum 1; None for uniform.
        kernel: forces an implementation (see :func:`hsae_lens.objective.kernels.explain`).

    Returns:
        A scalar, differentiable once in the code's values, W_dec, b_dec and target. It is computed
        in W_dec's dtype, whatever autocast and the default dtype are.

    Raises:
        IndexError: for a latent outside 0..d_sae-1.
        ValueError: for budgets, weights, shapes, dtypes or devices that do not fit together.
    """
    return nested_pass(code, W_dec, b_dec, target, budgets, weights, kernel=kernel).loss


@torch.compiler.disable  # kernels run as they are: tracing their loops takes half a minute
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

    ``token_weights`` ``[...]`` multiplies each token's squared error, in loss and ``mse``; it has
    no gradient.
    """
    _check_shapes(code, W_dec, b_dec, target, token_weights)
    resolved = resolve_budgets(budgets, code.k)
    resolved_weights = resolve_weights(weights, resolved)
    code = code.prefix(resolved[-1])
    implementation = kernels.select(kernel, W_dec.device, W_dec.dtype, W_dec.shape[1], code.k)
    problem = NestedProblem(
        code.values.reshape(-1, code.k).to(W_dec.dtype),
        code.indices.reshape(-1, code.k),
        W_dec,
        b_dec,
        target.reshape(-1, target.shape[-1]).to(W_dec.dtype),
        resolved,
        resolved_weights,
        None if token_weights is None else token_weights.detach().reshape(-1),
    )
    # Asked here: inside the function gradients are always off, and needs_input_grad does not know
    # whether they were on.
    needs_grad = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (problem.values, W_dec, b_dec, problem.target)
    )
    loss, mse, residual = _NestedLoss.apply(implementation, needs_grad, *problem)
    reconstruction = (residual + problem.target.detach()).reshape(target.shape)
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
    """A problem's fields, after how to solve it, to (loss, mse, residual)."""

    @staticmethod
    def forward(
        ctx: Any, implementation: Implementation, needs_grad: bool, *fields: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        problem = NestedProblem(*fields)
        solution = _solve(implementation, problem, needs_grad)
        # One pass finds loss and gradients; they wait here for the first backward.
        ctx.solution = solution if needs_grad else None
        # For a second one, and for autograd to notice if they were changed in place by then.
        ctx.save_for_backward(*(f if isinstance(f, torch.Tensor) else None for f in fields))
        ctx.implementation = implementation
        ctx.budgets, ctx.weights = problem.budgets, problem.weights
        mse = solution.squared_errors / max(len(problem.values), 1)
        loss = (mse * _on_device(tuple(problem.weights), mse.device, mse.dtype)).sum()
        residual = solution.residual.to(problem.target.dtype)
        ctx.mark_non_differentiable(mse, residual)
        dtype = torch.promote_types(problem.W_dec.dtype, torch.float32)
        return loss.to(dtype), mse, residual

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_loss: torch.Tensor, *_: torch.Tensor) -> tuple[Any, ...]:
        # The gradients are given away, so a second backward (retain_graph) solves again.
        solution = ctx.solution or _solve_again(ctx)
        ctx.solution = None
        _, _, values, _, W_dec, b_dec, target, *_ = ctx.needs_input_grad
        suffix = solution.suffix
        assert suffix is not None  # gradients were asked for
        return (
            None,
            None,
            _scaled(solution.d_values, d_loss) if values else None,
            None,
            _scaled(solution.d_W_dec, d_loss) if W_dec else None,
            _scaled(2 * suffix.sum(0), d_loss) if b_dec else None,
            _scaled(-2 * suffix, d_loss) if target else None,
            None,
            None,
            None,
        )


def _solve_again(ctx: Any) -> NestedSolution:
    problem = NestedProblem(*ctx.saved_tensors)._replace(budgets=ctx.budgets, weights=ctx.weights)
    return _solve(ctx.implementation, problem, True)


def _solve(
    implementation: Implementation, problem: NestedProblem, needs_grad: bool
) -> NestedSolution:
    """The solution with gradients of the mean over tokens."""
    n_tokens = max(len(problem.values), 1)
    problem = problem._replace(weights=[w / n_tokens for w in problem.weights])
    with torch.autocast(problem.values.device.type, enabled=False), torch.no_grad():
        return implementation.nested(problem, needs_grad)


@functools.lru_cache(maxsize=64)
def _on_device(
    weights: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    # Kept, because copying to a GPU waits for it.
    return torch.tensor(weights, dtype=dtype, device=device)


def _scaled(gradient: Any, d_loss: torch.Tensor) -> torch.Tensor:
    if d_loss.device.type == "cpu" and d_loss.item() == 1:
        return gradient  # the usual case: no pass over a large tensor
    return gradient.mul_(d_loss.to(gradient.dtype))


def _check_shapes(
    code: OrderedCode,
    W_dec: torch.Tensor,
    b_dec: torch.Tensor,
    target: torch.Tensor,
    token_weights: torch.Tensor | None,
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
    if token_weights is not None and (
        token_weights.shape != target.shape[:-1] or token_weights.device != target.device
    ):
        raise ValueError(
            f"token_weights must be one per token, {tuple(target.shape[:-1])} on {target.device}, "
            f"got {tuple(token_weights.shape)} on {token_weights.device}."
        )
