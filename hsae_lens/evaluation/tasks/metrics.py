"""What is measured on a model's logits: of a task, and of a circuit that is to explain it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

LogitMetric = Callable[[torch.Tensor], torch.Tensor]
"""Logits ``[n, context, d_vocab]`` to one number per sequence ``[n]``.

One that can be sliced like a tensor (:class:`LogitDiff`) lets its
prompts go through the model in batches; with any other, all go at once.
"""


@dataclass(frozen=True)
class LogitDiff:
    """The metric of a task: right minus wrong logit at the last position.

    ``metric(logits [n, context, d_vocab])`` gives ``[n]``; ``metric[rows]`` is that of some pairs,
    so that pairs can go through the model in batches.

    right, wrong: int64 ``[n]``.
    """

    right: torch.Tensor
    wrong: torch.Tensor

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if len(logits) != len(self.right):
            raise ValueError(f"{len(self.right)} answers for the logits of {len(logits)} prompts.")
        # Not in bfloat16, which knows logits around 20 to an eighth.
        last = logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32))
        right, wrong = (
            last.gather(1, answer.to(last.device)[:, None]).squeeze(1)
            for answer in (self.right, self.wrong)
        )
        return right - wrong

    def __getitem__(self, rows: slice) -> LogitDiff:
        return LogitDiff(self.right[rows], self.wrong[rows])
