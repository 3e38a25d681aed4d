"""The prompts of a question about a model: clean, corrupt, and what is measured on their logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hsae_lens.evaluation.tasks.metrics import LogitMetric
from hsae_lens.evaluation.tasks.pairs import TokenizedTask


@dataclass(frozen=True)
class Prompts:
    """Prompts, what is measured on them, and what their activations may be replaced by.

    clean: int64 ``[n, context]``.  metric: of the clean prompts' logits.  corrupt: prompts of the
    same shape to take replacements from, position by position.

    Raises:
        ValueError: if the prompts are not tokens of one shape.
    """

    clean: torch.Tensor
    metric: LogitMetric
    corrupt: torch.Tensor | None = None

    def __post_init__(self) -> None:
        clean, corrupt = self.clean, self.corrupt
        if not isinstance(clean, torch.Tensor) or clean.ndim != 2 or not len(clean):
            shape = tuple(clean.shape) if isinstance(clean, torch.Tensor) else type(clean).__name__
            raise ValueError(f"clean must be tokens [n, context], got {shape}.")
        if corrupt is not None and corrupt.shape != clean.shape:
            raise ValueError(
                f"clean {tuple(clean.shape)} and corrupt {tuple(corrupt.shape)} must be of one "
                "shape: a position of one is replaced by the same position of the other."
            )

    def __len__(self) -> int:
        return len(self.clean)

    def batches(self, size: int) -> Iterator[Batch]:
        """The prompts ``size`` at a time, or all at once if the metric cannot be sliced.

        Raises:
            ValueError: if ``size`` is not positive.
        """
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, got {size}.")
        slices = hasattr(self.metric, "__getitem__")
        step = size if slices else len(self)
        for start in range(0, len(self), step):
            rows = slice(start, start + step)
            metric = self.metric[rows] if slices else self.metric  # type: ignore[index]
            corrupt = None if self.corrupt is None else self.corrupt[rows]
            yield Batch(rows, Prompts(self.clean[rows], metric, corrupt))

    def measure(self, logits: torch.Tensor) -> torch.Tensor:
        """The metric of the clean prompts' logits, ``[n]``.

        Raises:
            ValueError: if it is of another shape.
        """
        value = self.metric(logits)
        if value.shape != (len(logits),):
            raise ValueError(
                f"The metric must give one number per sequence, [{len(logits)}], got "
                f"{tuple(value.shape)}. Leave the mean over sequences out."
            )
        return value


@dataclass(frozen=True)
class Batch:
    """Some of the prompts, and which rows of all they are."""

    rows: slice
    prompts: Prompts


def as_prompts(prompts: Prompts | TokenizedTask) -> Prompts:
    """A task's prompts, or one's own as they are.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(prompts, Prompts):
        return prompts
    if isinstance(prompts, TokenizedTask):
        return Prompts(prompts.clean, prompts.metric, prompts.corrupt)
    raise TypeError(
        f"prompts must be a task, or Prompts(clean, metric, corrupt), got {type(prompts).__name__}."
    )
