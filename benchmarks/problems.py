"""What is measured of the objective alone: a problem of a size, and the loss written naively.

Needs PyTorch and the objective's rooms, so that it works on a bare machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hsae_lens.objective import OrderedCode, encode_topk, nested_loss


@dataclass(frozen=True)
class Shape:
    """One size of problem: tokens per step, widths, and the largest budget."""

    tokens: int
    d_in: int
    d_sae: int
    k: int

    def __str__(self) -> str:
        return f"B={self.tokens} d_in={self.d_in} d_sae={self.d_sae} K={self.k}"


class LossProblem:
    """A code with its decoder and target, for timing the loss alone, forward and backward."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator, device=device).to(dtype)

        x = normal(shape.tokens, shape.d_in)
        self.W_dec = (normal(shape.d_sae, shape.d_in) / shape.d_in**0.5).requires_grad_()
        self.b_dec = normal(shape.d_in).requires_grad_()
        # A real encoder's skew: the same latents serve many tokens.
        code = OrderedCode.from_pre_activations(x @ self.W_dec.detach().T, shape.k)
        self.values, self.indices = code.values.requires_grad_(), code.indices
        self.target = x

    def leaves(self) -> list[torch.Tensor]:
        return [self.values, self.W_dec, self.b_dec]

    def ours(self, budgets: list[int] | None = None, kernel: str = "auto") -> list[torch.Tensor]:
        code = OrderedCode(self.values, self.indices)
        loss = nested_loss(code, self.W_dec, self.b_dec, self.target, budgets, kernel=kernel)
        return [loss, *torch.autograd.grad(loss, self.leaves())]

    def naive(self, loss_of: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        loss = loss_of(self.values, self.indices, self.W_dec, self.b_dec, self.target)
        return [loss, *torch.autograd.grad(loss, self.leaves())]


class BareStep:
    """A training step at every budget as our trainer does it, without SAELens' bookkeeping.

    That is, without its statistics of firings and its checks of what is finite.
    """

    def __init__(self, shape: Shape, device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator, device=device)

        W_dec = torch.nn.functional.normalize(normal(shape.d_sae, shape.d_in))
        biases = torch.zeros(shape.d_sae, device=device), torch.zeros(shape.d_in, device=device)
        weights = [W_dec.T.contiguous(), biases[0], W_dec, biases[1]]
        self.weights = [weight.requires_grad_() for weight in weights]
        self.adam = torch.optim.Adam(self.weights, lr=3e-4, fused=True)
        self.x, self.k = normal(shape.tokens, shape.d_in), shape.k

    def __call__(self) -> torch.Tensor:
        """Encoder, loss, backward, clipping within the fused Adam; the loss."""
        W_enc, b_enc, W_dec, b_dec = self.weights
        norms = W_dec.detach().norm(dim=-1)
        code = encode_topk(self.x, W_enc, b_enc, b_dec, self.k, selection_scale=norms)
        loss = nested_loss(code, W_dec, b_dec, self.x)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([w.grad for w in self.weights if w.grad is not None])
        self.adam.grad_scale = norm.clamp(min=1.0)  # type: ignore[attr-defined]
        self.adam.found_inf = torch.zeros_like(norm)  # type: ignore[attr-defined]
        self.adam.step()
        self.adam.zero_grad()
        return loss.detach()


def cumulative_sum_loss(
    values: torch.Tensor,
    indices: torch.Tensor,
    W_dec: torch.Tensor,
    b_dec: torch.Tensor,
    target: torch.Tensor,
) -> torch.Tensor:
    """The objective as one would first write it: every prefix of every token in one tensor."""
    prefixes = b_dec + (values.unsqueeze(-1) * W_dec[indices]).cumsum(1)
    return (prefixes - target.unsqueeze(1)).pow(2).sum(-1).mean()
