"""The learning rate that ``hsae train`` takes where none is given."""

from __future__ import annotations

SMALLEST_LR, LARGEST_LR = 2e-4, 3e-3


def suggested_lr(d_sae: int, batch_size: int) -> float:
    """2e-3 · √(4608 / d_sae) · (batch_size / 1024)^¼, within 2e-4 and 3e-3.

    1/√d_sae is Gao et al.'s (arXiv 2406.04093) for TopK; the rest was read off short runs on one
    model (SmolLM2-135M block 15, 300 steps, K=64; LOG.md). The best rate there, for the mean of
    the explained variance at k=8, 32, 64, was 2.5e-3 and 3.4e-3 with 1152 latents and batches of
    256 and 1024, 2.1e-3 and 2.7e-3 with 4608: it grew as the batch's fourth root and fell by less
    than 1/√d_sae. What is suggested is mostly lower, as longer runs want less. Batches above 1024
    and widths above 4608 are extrapolated.

    Args:
        d_sae: number of latents. batch_size: tokens of a step.

    Raises:
        ValueError: if one of them is less than 1.
    """
    if min(d_sae, batch_size) < 1:
        raise ValueError(
            f"d_sae and batch_size must be at least 1, got {d_sae} and {batch_size}: no learning "
            "rate can be suggested. Set --d_sae and --train_batch_size_tokens."
        )
    lr = 2e-3 * (4608 / d_sae) ** 0.5 * (batch_size / 1024) ** 0.25
    return float(f"{min(max(lr, SMALLEST_LR), LARGEST_LR):.2g}")
