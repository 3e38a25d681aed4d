"""The HierarchicalTopK objective (arXiv 2505.24473) and its kernels, in torch alone."""

from hsae_lens.objective.budgets import ErrorTarget, MeanBudget
from hsae_lens.objective.encode import encode_topk
from hsae_lens.objective.loss import NestedOutput, decode_prefixes, nested_loss, nested_pass
from hsae_lens.objective.ordered_code import OrderedCode
from hsae_lens.objective.refit import refit_values

__all__ = [
    "ErrorTarget",
    "MeanBudget",
    "NestedOutput",
    "OrderedCode",
    "decode_prefixes",
    "encode_topk",
    "nested_loss",
    "nested_pass",
    "refit_values",
]
