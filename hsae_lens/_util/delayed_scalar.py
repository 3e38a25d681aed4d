"""Numbers computed on a GPU, read without waiting for it."""

from __future__ import annotations

from collections import deque

import torch

DELAY = 4  # steps; a GPU is seldom further behind the program that feeds it


def delay_on(device: torch.device) -> int:
    """How many steps late a number is read: none where there is nothing to wait for."""
    return DELAY if device.type == "cuda" else 0


class DelayedScalar:
    """Takes one number per step and gives back the one from some steps ago, or 0 before that.

    The delay is fixed rather than "once it has arrived", so that two runs see the same numbers at
    the same steps.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()

    def step(self, number: torch.Tensor) -> float:
        """Takes this step's scalar and returns an earlier one."""
        self._waiting.append(_on_its_way(number.detach()))
        return self._next() if len(self._waiting) > delay_on(number.device) else 0

    def rest(self) -> list[float]:
        """The numbers not given back yet; waits for them."""
        return [self._next() for _ in range(len(self._waiting))]

    def _next(self) -> float:
        number, arrived = self._waiting.popleft()
        if arrived is not None:
            arrived.synchronize()
        return number.item()


def _on_its_way(number: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    if number.device.type != "cuda":
        return number, None
    here = torch.empty((), dtype=number.dtype, device="cpu", pin_memory=True)
    here.copy_(number, non_blocking=True)
    arrived = torch.cuda.Event()
    # The copy is on the stream of the number's device, which need not be the current one.
    arrived.record(torch.cuda.current_stream(number.device))
    return here, arrived
