"""Implementations of the objective, and the one place that chooses between them.

``HSAE_KERNEL=<name>`` in the environment, or the config field ``kernel``, forces one; otherwise
the fastest that runs on the tensors' device and dtype is taken. The choice is logged once.

To add one, write a module beside these with an ``IMPLEMENTATION`` (:class:`Implementation` says
what it computes and what is checked before it; ``reference`` computes it by the definition) and
put the module into :data:`IMPLEMENTATIONS`. ``tests/objective/test_kernels.py`` then holds it to
the reference, output by output and gradient by gradient, and ``python -m benchmarks`` times it.
"""

from __future__ import annotations

import functools
import logging
import os

import torch

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens.objective.kernels import native, reference, scan, triton
from hsae_lens.objective.kernels.interface import Implementation, NestedProblem, NestedSolution

__all__ = ["IMPLEMENTATIONS", "Implementation", "NestedProblem", "NestedSolution", "check_name",
           "explain", "select"]  # fmt: skip

logger = logging.getLogger(__name__)

IMPLEMENTATIONS: dict[str, Implementation] = {
    module.IMPLEMENTATION.name: module.IMPLEMENTATION
    for module in (native, triton, scan, reference)
}
"""By name, the fastest first."""
KERNELS = ("auto", *IMPLEMENTATIONS)


def check_name(kernel: str, asked: str = "") -> None:
    """Raises ValueError unless it is "auto" or a kernel's name; ``asked`` says where it stood."""
    if kernel not in KERNELS:
        raise ValueError(f"Unknown kernel {kernel!r}{asked}.{did_you_mean(kernel, KERNELS)}")


@functools.cache
def _choose(
    kernel: str, asked: str, device: torch.device, dtype: torch.dtype
) -> tuple[Implementation, str]:
    if kernel != "auto":
        check_name(kernel, asked)
        chosen = IMPLEMENTATIONS[kernel]
        if reason := chosen.refuses(device, dtype):
            raise ValueError(f"The kernel {kernel!r} was asked for{asked}, but it {reason}.")
        return chosen, f"it was asked for{asked}"
    passed_over: list[str] = []
    for chosen in IMPLEMENTATIONS.values():
        reason = chosen.refuses(device, dtype)
        if reason is None:
            why = "; ".join(passed_over) or "it is the fastest"
            logger.info("hsae_lens uses the %r kernel on %s: %s.", chosen.name, device, why)
            return chosen, why
        passed_over.append(f"{chosen.name} {reason}")
    raise ValueError(f"No kernel runs on {device} with {dtype}: {'; '.join(passed_over)}.")


def _requested(kernel: str) -> tuple[str, str]:
    """The name asked for, and where if not by the caller.

    A forced config field wins over the environment, which wins over automatic choice.
    """
    named = os.environ.get("HSAE_KERNEL", "").strip()
    if kernel != "auto" or not named:
        return kernel, ""
    return named, " in the environment (HSAE_KERNEL)"


def select(kernel: str, device: torch.device, dtype: torch.dtype) -> Implementation:
    """The implementation to use.

    Args:
        kernel: a name from :data:`IMPLEMENTATIONS`, or ``"auto"``.

    Raises:
        ValueError: for an unknown name, or one that cannot run there (the message says why).
    """
    return _choose(*_requested(kernel), torch.device(device.type), dtype)[0]


def explain(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, kernel: str = "auto"
) -> str:
    """Says which implementation these tensors get, and why."""
    chosen, why = _choose(*_requested(kernel), torch.device(torch.device(device).type), dtype)
    name = str(dtype).removeprefix("torch.")
    return f"{chosen.name} ({chosen.summary}) for {name} on {device}: {why}."
