"""The frontier: quality as a function of the budget."""

from hsae_lens.evaluation.frontier.adaptive import adaptive_frontier
from hsae_lens.evaluation.frontier.advice import Advice, advise
from hsae_lens.evaluation.frontier.evaluate import (
    evaluate_activations,
    evaluate_budgets,
    evaluate_saes,
)
from hsae_lens.evaluation.frontier.token_errors import explained_variance_curve, token_errors

__all__ = [
    "Advice",
    "adaptive_frontier",
    "advise",
    "evaluate_activations",
    "evaluate_budgets",
    "evaluate_saes",
    "explained_variance_curve",
    "token_errors",
]
