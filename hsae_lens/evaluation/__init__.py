"""Quality as a function of the budget."""

from hsae_lens.evaluation.frontier import evaluate_activations, evaluate_budgets

__all__ = ["evaluate_activations", "evaluate_budgets"]
