"""What is measured on the model's logits, and prompts in batches with their part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

LogitMetric = Callable[[torch.Tensor], torch.Tensor]
"""Logits ``[n, context, d_vocab]`` to one number per sequence ``[n]``.

One that can be sliced like a tensor (:class:`hsae_lens.evaluation.tasks.LogitDiff`) lets its
prompts go through the model in batches; with any other, all go at once.
"""


@dataclass(frozen=True)
class Batch:
    """Some of the prompts: which rows, their tokens ``[b, context]``, and the metric of these."""

    rows: slice
    clean: torch.Tensor
    corrupt: torch.Tensor | None
    metric: LogitMetric


def batches(
    clean: torch.Tensor, metric: LogitMetric, corrupt: torch.Tensor | None, size: int
) -> Iterator[Batch]:
    """The prompts ``size`` at a time.

    Raises:
        ValueError: if the prompts are not tokens of one shape, or ``size`` is not positive.
    """
    if not isinstance(clean, torch.Tensor) or clean.ndim != 2 or not len(clean):
        shape = tuple(clean.shape) if isinstance(clean, torch.Tensor) else type(clean).__name__
        raise ValueError(f"clean must be tokens [n, context], got {shape}.")
    if corrupt is not None and corrupt.shape != clean.shape:
        raise ValueError(
            f"clean {tuple(clean.shape)} and corrupt {tuple(corrupt.shape)} must be of one shape: "
            "a position of one is replaced by the same position of the other."
        )
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}.")
    slices = hasattr(metric, "__getitem__")
    step = size if slices else len(clean)
    for start in range(0, len(clean), step):
        rows = slice(start, start + step)
        yield Batch(
            rows,
            clean[rows],
            None if corrupt is None else corrupt[rows],
            metric[rows] if slices else metric,  # type: ignore[index]
        )


def measured(metric: LogitMetric, logits: torch.Tensor) -> torch.Tensor:
    """The metric of logits, ``[n]``.

    Raises:
        ValueError: if it is of another shape.
    """
    value = metric(logits)
    if value.shape != (len(logits),):
        raise ValueError(
            f"The metric must give one number per sequence, [{len(logits)}], got "
            f"{tuple(value.shape)}. Leave the mean over sequences out."
        )
    return value
