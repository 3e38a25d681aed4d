"""The trial that an implementation must pass where it is used for the first time.

A driver, a compiler or a card that nobody tried is found out by a problem of a few tokens, before
it trains an SAE: loss and every gradient are compared with those of the plain scan in PyTorch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from hsae_lens.objective.kernels import scan
from hsae_lens.objective.kernels.interface import Implementation, NestedProblem, exact_dtype
from hsae_lens.objective.kernels.launches import Launch
from hsae_lens.objective.kernels.trial_problems import TrialShape, cast, trial_problem

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}
"""Relative error, in norm, that an implementation may have against the reference in float64."""


class Probe(NamedTuple):
    """What a trial found: how long it took, the largest relative error, and why it failed."""

    seconds: float
    error: float
    failure: str | None

    def __str__(self) -> str:
        if self.failure:
            return f"{self.failure} (tried in {1e3 * self.seconds:.0f} ms)"
        return f"tried in {1e3 * self.seconds:.0f} ms, within {self.error:.0e} of the plain scan"


class LostDeviceError(RuntimeError):
    """A kernel left the device in a state in which nothing runs on it any more."""


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """‖got − want‖ / ‖want‖ in float64, on got's device; infinite where a number is not finite."""
    exact = exact_dtype(got.device)
    got, want = got.detach().to(exact), want.detach().to(got.device, exact)
    error = ((got - want).norm() / want.norm().clamp(min=1e-30)).item()
    return error if math.isfinite(error) else math.inf


def trial_width(d_in: int, launch: Launch | None) -> int:
    """The d_in of the trial for a d_in: no multiple of a block, but one of 16 if that is.

    Triton compiles other programs for multiples of 16 and for 1.
    """
    if launch is None:
        return 64 + 13
    block = max(launch.columns, launch.segment_columns)
    return 1 if d_in == 1 else block + (16 if d_in % 16 == 0 else 13)


def try_out(
    implementation: Implementation,
    device: torch.device,
    dtype: torch.dtype,
    d_in: int,
    launch: Launch | None,
) -> Probe:
    """Tries an implementation where it is to run; what it raises there is a failure, too.

    Args:
        d_in: of the trial (:func:`trial_width`).
        launch: how it will be launched, None where there is no choice. Of the two ways to W_dec's
            gradient both are tried.

    Raises:
        LostDeviceError: if after it not even the plain scan runs.
        RuntimeError: while a CUDA graph is captured, which forbids waiting for the device.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "A CUDA graph is being captured, and the kernel has not been tried on this device. "
            "Run one step before capturing."
        )
    started, largest, failure = time.perf_counter(), 0.0, None
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        for p in _problems(device, dtype, d_in):
            tried = implementation
            if launch and implementation.launched:
                few = p.values.shape[1] if len(p.budgets) < p.values.shape[1] else 0
                tried = implementation.launched(launch._replace(few_budgets=few))
            error, failure = _compare(tried, p)
            largest = max(largest, error)
            if failure:
                break
    return Probe(time.perf_counter() - started, largest, failure)


def _compare(implementation: Implementation, p: NestedProblem) -> tuple[float, str | None]:
    """The largest error against the scan, and what failed."""
    want = _outputs(scan.IMPLEMENTATION, p)
    try:
        got = _outputs(implementation, p)
        errors = {name: relative_error(got[name], want[name]) for name in want}
    except (MemoryError, torch.OutOfMemoryError):
        raise  # not its fault
    except Exception as error:
        _check_alive(implementation, p, error)
        return 0.0, f"failed with {in_short(error)}"
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] <= 2 * TOLERANCE.get(p.W_dec.dtype, 2e-2):  # the scan rounds, too
        return errors[worst], None
    return errors[worst], f"gave a wrong {worst} (off by {errors[worst]:.0e} of the plain scan's)"


def _problems(device: torch.device, dtype: torch.dtype, d_in: int) -> Iterator[NestedProblem]:
    """K that fits no block, ties, zeros, few latents for many tokens; few budgets and many."""
    for shape in (TrialShape(13, 5, d_in, 11, [2, 5]), TrialShape(5, 21, d_in, 23)):
        problem = trial_problem(shape, "ties", weighted_tokens=shape.budgets is not None)
        yield cast(problem, dtype, device)


def _outputs(implementation: Implementation, p: NestedProblem) -> dict[str, torch.Tensor]:
    """The loss and every gradient by name; the loss also as it is without gradients."""
    with_gradients = implementation.nested(p, True)._asdict()
    alone = implementation.nested(p, False)
    d_W_enc = implementation.encoder_grad(p.values, p.indices, p.target, p.W_dec.shape[0])
    return {
        **with_gradients,
        "loss without gradients": alone.squared_errors,
        "residual without gradients": alone.residual,
        "d_W_enc": d_W_enc,
    }


def _check_alive(implementation: Implementation, p: NestedProblem, error: Exception) -> None:
    try:
        _outputs(scan.IMPLEMENTATION, p)["d_W_enc"].cpu()
    except Exception as second:
        raise LostDeviceError(
            f"The kernel {implementation.name!r} failed on {p.values.device} and left it unusable: "
            f"{in_short(error)}. Start again with HSAE_KERNEL=scan in the environment."
        ) from second


def in_short(error: BaseException) -> str:
    """An error in the line that says most: a compiler's comes last, after what it was given."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines[-1] if lines else 'no message')[:300]}"
