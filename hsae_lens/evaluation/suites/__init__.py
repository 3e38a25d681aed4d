"""Benchmarks of other packages, run at every budget: sae-probes and sae-bench."""
