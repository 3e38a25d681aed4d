"""Benchmarks of others at every budget: sae-probes and SAEBench's first letters."""

from hsae_lens.evaluation.suites.absorption import feature_absorption
from hsae_lens.evaluation.suites.probing import sparse_probing

__all__ = ["feature_absorption", "sparse_probing"]
