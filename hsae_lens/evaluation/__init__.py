"""Quality as a function of the budget."""

from hsae_lens.evaluation.adaptive import adaptive_frontier, explained_variance_curve
from hsae_lens.evaluation.advice import Advice, advise
from hsae_lens.evaluation.frontier import evaluate_activations, evaluate_budgets, evaluate_saes

__all__ = [
    "Advice",
    "adaptive_frontier",
    "advise",
    "evaluate_activations",
    "evaluate_budgets",
    "evaluate_saes",
    "explained_variance_curve",
]
