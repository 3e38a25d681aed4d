"""A decorator for backward passes, which refuses to be differentiated a second time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def differentiable_once(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Decorates the ``backward`` of an autograd function that has no second derivative.

    It runs without a graph and without autocast, in the dtypes of what it was given. Where a graph
    is wanted (``create_graph=True``) its gradients raise when they are differentiated. torch's
    ``once_differentiable`` lets them pass as constants unless the *incoming* gradient is
    differentiated, and so loses the terms through the saved tensors without a word.
    """

    @functools.wraps(backward)
    def numbers_only(ctx: Any, *incoming: torch.Tensor) -> tuple[Any, ...]:
        with torch.no_grad(), torch.autocast(incoming[0].device.type, enabled=False):
            gradients = backward(ctx, *incoming)
        if not torch.is_grad_enabled():
            return gradients
        return tuple(g if g is None else _Refusal.apply(g.requires_grad_()) for g in gradients)

    return numbers_only


class _Refusal(torch.autograd.Function):
    """Passes a gradient on, and raises when somebody differentiates it."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> None:
        raise RuntimeError(
            "The nested loss and encode_topk have no second derivative: their gradients are "
            "computed without a graph. For one, write the loss with code.to_dense(d_sae) @ W_dec, "
            "which autograd follows."
        )
