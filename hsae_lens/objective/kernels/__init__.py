"""Implementations of the objective, and the one place that chooses between them.

``HSAE_KERNEL=<name>`` in the environment, or the config field ``kernel``, forces one; otherwise
the fastest that runs on the tensors' device and dtype is taken, if it passes a trial there at its
first use. The choice is logged once, a failed trial loudly.

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
from hsae_lens.objective.kernels import bags, native, reference, scan, triton
from hsae_lens.objective.kernels.interface import (
    Implementation,
    NestedProblem,
    NestedSolution,
    deterministic,
)
from hsae_lens.objective.kernels.launches import Launch
from hsae_lens.objective.kernels.probe import Probe, trial_width, try_out

__all__ = ["IMPLEMENTATIONS", "Implementation", "NestedProblem", "NestedSolution", "check_name",
           "explain", "forget", "select"]  # fmt: skip

logger = logging.getLogger(__name__)

IMPLEMENTATIONS: dict[str, Implementation] = {
    module.IMPLEMENTATION.name: module.IMPLEMENTATION
    for module in (native, triton, bags, scan, reference)
}
"""By name, the fastest first."""
KERNELS = ("auto", *IMPLEMENTATIONS)


def check_name(kernel: str, asked: str = "") -> None:
    """Raises ValueError unless it is "auto" or a kernel's name; ``asked`` says where it stood."""
    if kernel not in KERNELS:
        raise ValueError(f"Unknown kernel {kernel!r}{asked}.{did_you_mean(kernel, KERNELS)}")


_broken: dict[tuple[Implementation, torch.device], str] = {}


@functools.cache
def _choose(
    kernel: str,
    asked: str,
    device: torch.device,
    dtype: torch.dtype,
    d_in: int,
    k: int,
    exact: bool,
) -> tuple[Implementation, str]:
    if kernel != "auto":
        check_name(kernel, asked)
        chosen = IMPLEMENTATIONS[kernel]
        if reason := chosen.refuses(device, dtype):
            raise ValueError(f"The kernel {kernel!r} was asked for{asked}, but it {reason}.")
        found = _tried(chosen, device, dtype, d_in, k, exact)
        if found and found.failure:
            raise RuntimeError(
                f"The kernel {kernel!r} was asked for{asked}, but on {device} it {found}."
            )
        return chosen, _because(f"it was asked for{asked}", found)
    passed_over: list[str] = []
    for chosen in IMPLEMENTATIONS.values():
        found = None
        reason = chosen.refuses(device, dtype) or _broken.get((chosen, device))
        if not reason and device.type in chosen.slow_on:
            reason = f"is slower than the next on {device.type}"
        if not reason:
            found = _tried(chosen, device, dtype, d_in, k, exact)
            if found and found.failure:
                reason = _refuse(chosen, device, found)
        if not reason:
            why = _because("; ".join(passed_over) or "it is the fastest", found)
            _announce(chosen.name, device, why)
            return chosen, why
        passed_over.append(f"{chosen.name} {reason}")
    raise ValueError(f"No kernel runs on {device} with {dtype}: {'; '.join(passed_over)}.")


@functools.cache
def _announce(name: str, device: torch.device, why: str) -> None:
    logger.info("hsae_lens uses the %r kernel on %s: %s.", name, device, why)


def _tried(
    chosen: Implementation, device: torch.device, dtype: torch.dtype, d_in: int, k: int, exact: bool
) -> Probe | None:
    """What the trial of it found, once in a process for a class of shapes; None for yardsticks."""
    if chosen.name in ("scan", "reference"):
        return None
    launch = chosen.launch(device, dtype, d_in, k) if chosen.launch else None
    return _trial(chosen, device, dtype, trial_width(d_in, launch), launch, exact)


@functools.cache
def _trial(
    chosen: Implementation,
    device: torch.device,
    dtype: torch.dtype,
    d_in: int,
    launch: Launch | None,
    exact: bool,
) -> Probe:
    """``exact``: in deterministic mode, in which other code runs; a mode of its own to try."""
    return try_out(chosen, device, dtype, d_in, launch)


def forget() -> None:
    """Forgets what was chosen and tried: it is tried anew, with what the table of launches has."""
    for remembered in (_choose, _trial, _announce):
        remembered.cache_clear()
    _broken.clear()


def _refuse(chosen: Implementation, device: torch.device, found: Probe) -> str:
    """From now on it is not chosen on this device, whatever the shape and dtype."""
    reason = _broken[chosen, device] = str(found)
    _choose.cache_clear()
    logger.warning(
        "The kernel %r is not used on %s: it %s. A slower one is taken; please report this.",
        chosen.name, device, reason,
    )  # fmt: skip
    return reason


def _because(why: str, found: Probe | None) -> str:
    return f"{why}; {found}" if found else why


def _requested(kernel: str) -> tuple[str, str]:
    """The name asked for, and where if not by the caller.

    A forced config field wins over the environment, which wins over automatic choice.
    """
    named = os.environ.get("HSAE_KERNEL", "").strip()
    if kernel != "auto" or not named:
        return kernel, ""
    return named, " in the environment (HSAE_KERNEL)"


def select(
    kernel: str, device: torch.device, dtype: torch.dtype, d_in: int, k: int
) -> Implementation:
    """The implementation to use. Before its first use on a device it is tried (``probe.py``).

    Args:
        kernel: a name from :data:`IMPLEMENTATIONS`, or ``"auto"``.
        d_in, k: the shape, which decides how kernels are launched.

    Raises:
        ValueError: for an unknown name, or one that cannot run there (the message says why).
        RuntimeError: for one that was asked for by name and failed when it was tried.
    """
    return _choose(*_requested(kernel), device, dtype, d_in, k, deterministic())[0]


def explain(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    kernel: str = "auto",
    d_in: int = 768,
    k: int = 32,
) -> str:
    """Says which implementation such tensors get, why, and what its trial found and took.

    Raises:
        ValueError: for an unknown name or a device that is not here.
        RuntimeError: for one that was asked for by name and failed when it was tried.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no CUDA device here, so no kernel runs on one.")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    chosen, why = _choose(*_requested(kernel), device, dtype, d_in, k, deterministic())
    name = str(dtype).removeprefix("torch.")
    return f"{chosen.name} ({chosen.summary}) for {name} on {device}: {why}."
