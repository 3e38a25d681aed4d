"""Quality as a function of the budget, and what the latents mean."""

from hsae_lens.evaluation.frontier import (
    Advice,
    adaptive_frontier,
    advise,
    evaluate_activations,
    evaluate_budgets,
    evaluate_saes,
    explained_variance_curve,
)

__all__ = [
    "Advice",
    "adaptive_frontier",
    "advise",
    "evaluate_activations",
    "evaluate_budgets",
    "evaluate_saes",
    "explained_variance_curve",
]
