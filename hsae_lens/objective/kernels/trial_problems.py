"""Problems that kernels get wrong first: for the trial at first use, tests, and a card's check."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from hsae_lens.objective.kernels.interface import NestedProblem

KINDS = ("plain", "all negative", "ties", "zipf")


class TrialShape(NamedTuple):
    """Tokens, K, widths, and the budgets (None: all)."""

    tokens: int
    k: int
    d_in: int
    d_sae: int
    budgets: list[int] | None = None


SHAPES = {
    "odd": TrialShape(7, 50, 577, 300),
    "one token": TrialShape(1, 8, 64, 200),
    "K = d_sae": TrialShape(5, 16, 20, 16),
    "K = 1": TrialShape(9, 1, 33, 40),
    "sparse budgets": TrialShape(24, 20, 130, 300, [1, 3, 4, 20]),
    "only K": TrialShape(24, 20, 128, 300, [20]),
    "crowded latents": TrialShape(30, 12, 65, 14, [2, 12]),
    "one column": TrialShape(10, 4, 1, 12),
}


def trial_problem(
    shape: TrialShape, kind: str = "plain", weighted_tokens: bool = False, seed: int = 0
) -> NestedProblem:
    """A problem in float64 on the CPU, the same for the same seed; torch's own is left alone.

    Args:
        kind: what the code is like: "plain", "all negative" (every value is 0), "ties", or "zipf"
            (the same latents serve most tokens).
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator, device="cpu")

    pre = normal(shape.tokens, shape.d_sae)
    if kind == "all negative":
        pre = -pre.abs()
    elif kind == "ties":
        pre = pre.mul(2).round()
    elif kind == "zipf":
        ranks = torch.arange(1, shape.d_sae + 1, dtype=torch.float64, device="cpu")
        pre = pre + 4 / ranks
    values, indices = pre.topk(shape.k)
    budgets = shape.budgets or list(range(1, shape.k + 1))
    weights = [float(j) for j in range(1, len(budgets) + 1)]
    return NestedProblem(
        values.relu(),
        indices,
        normal(shape.d_sae, shape.d_in) / shape.d_in**0.5,
        normal(shape.d_in),
        normal(shape.tokens, shape.d_in),
        budgets,
        [weight / sum(weights) for weight in weights],
        normal(shape.tokens).abs() if weighted_tokens else None,
    )


def cast(p: NestedProblem, dtype: torch.dtype, device: torch.device) -> NestedProblem:
    """The problem in a dtype and on a device; token weights in at least float32."""
    wide = torch.promote_types(dtype, torch.float32)
    dtypes = {"indices": torch.int64, "token_weights": wide}
    changed: dict[str, Any] = {
        name: value.to(device, dtypes.get(name, dtype))
        for name, value in p._asdict().items()
        if isinstance(value, torch.Tensor)
    }
    return p._replace(**changed)
