"""Quality as a function of the budget, what the latents mean, and whether their order does."""

from hsae_lens.evaluation.config import EvalConfig
from hsae_lens.evaluation.frontier.adaptive import adaptive_frontier
from hsae_lens.evaluation.frontier.advice import Advice, advise
from hsae_lens.evaluation.frontier.errors import explained_variance_curve, token_errors
from hsae_lens.evaluation.frontier.evaluate import (
    evaluate_activations,
    evaluate_budgets,
    evaluate_saes,
)
from hsae_lens.evaluation.report import write_report
from hsae_lens.evaluation.run import run_eval
from hsae_lens.evaluation.stability import (
    contribution_stability,
    noise_stability,
    paraphrase_stability,
    seed_stability,
)

__all__ = [
    "Advice",
    "EvalConfig",
    "adaptive_frontier",
    "advise",
    "contribution_stability",
    "evaluate_activations",
    "evaluate_budgets",
    "evaluate_saes",
    "explained_variance_curve",
    "noise_stability",
    "paraphrase_stability",
    "run_eval",
    "seed_stability",
    "token_errors",
    "write_report",
]
