"""The nested loss alone, forward and backward: time and memory beside the peers'."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.problems import LossProblem, Shape, cumulative_sum_loss
from benchmarks.session import Session
from benchmarks.timing import extra_memory, interleaved, row_of
from hsae_lens.objective.kernels.probe import relative_error


def loss(run: Session) -> Iterator[dict[str, Any]]:
    """The nested loss alone, forward and backward, against the cumulative sum."""
    peers = {"naive": cumulative_sum_loss, "naive compiled": torch.compile(cumulative_sum_loss)}
    flex = None
    if run.flex:
        with run.trying("flex_sae"):
            flex = _flex_loss(run.flex)

    def at(run: Session, shape: Shape) -> dict[str, Any]:
        problem = LossProblem(shape, run.device)
        calls: dict[str, Callable[[], Any]] = {"ours": problem.ours}
        calls["ours, 8 budgets"] = lambda: problem.ours(spread(shape.k, 8))
        if run.device == "cpu" and not run.dry:
            calls["ours, plain PyTorch"] = lambda: problem.ours(kernel="scan")
        else:
            calls["ours, J={K}"] = lambda: problem.ours([shape.k])
            for kernel in ("bags", "scan"):
                if kernel not in run.refused:
                    calls[kernel] = partial(problem.ours, kernel=kernel)
        for name, peer in peers.items():
            calls[name] = partial(problem.naive, peer)
        if flex:  # it also divides by d_in
            calls["flex_sae"] = lambda: problem.naive(lambda *given: flex(*given) * shape.d_in)
        calls = run.fitting(calls, str(shape))
        calls = agreeing(run, calls, str(shape), skip=("ours, 8 budgets", "ours, J={K}"))
        slow = shape.tokens * shape.k * shape.d_in > 10**8 and run.device == "cpu"
        times = interleaved(calls, 3 if slow else run.rounds, run.device, warmup=1)
        return row_of(shape, times, base="ours")

    return run.each_shape("loss", at, 2.0)


def memory(run: Session) -> Iterator[dict[str, Any]]:
    """Extra memory of the loss, forward and backward."""
    start = run.shapes[-1] if run.device == "cpu" else run.shapes[0]
    for k in (4, 16) if run.dry else (32, 128):
        shape = Shape(start.tokens // 2, start.d_in, start.d_sae, k)
        problem = LossProblem(shape, run.device)
        problem.ours()
        ours = extra_memory(problem.ours, run.device)
        naive = extra_memory(lambda p=problem: p.naive(cumulative_sum_loss), run.device)  # type: ignore[misc]
        print(f"{shape}: ours {ours / 2**20:.0f} MiB, naive {naive / 2**20:.0f} MiB")
        yield {"shape": vars(shape), "ours": ours, "naive": naive}


def deterministic(run: Session) -> Iterator[dict[str, Any]]:
    """The loss where the same input must give the same bits, beside the loss where it need not."""
    return run.each_shape("deterministic loss", _deterministic_at, 1.0)


def _deterministic_at(run: Session, shape: Shape) -> dict[str, Any]:
    problem = LossProblem(shape, run.device)

    def asked() -> Any:
        with mock.patch.dict(os.environ, HSAE_DETERMINISTIC="1"):
            return problem.ours()

    times = interleaved({"ours": problem.ours, "deterministic": asked}, run.rounds, run.device)
    return row_of(shape, times, base="ours")


def spread(k: int, n: int) -> list[int]:
    """About n budgets, evenly from K/n to K."""
    return sorted({max(1, k * (i + 1) // n) for i in range(n)})


def agreeing(
    run: Session, calls: dict[str, Callable[[], Any]], where: str, skip: tuple[str, ...]
) -> dict[str, Callable[[], Any]]:
    """Those whose loss and gradients are ours, compared before any is timed; and the skipped."""
    want, found = calls["ours"](), {}
    for name, call in calls.items():
        with run.trying(f"{name} at {where}"):
            for n, (a, b) in enumerate([] if name in skip else zip(call(), want, strict=True)):
                if not (error := relative_error(a, b)) < 1e-3:
                    raise SystemExit(f"{name} disagrees in output {n}: relative error {error:.1e}.")
            found[name] = call
    return found


def _flex_loss(folder: Path) -> Callable[..., torch.Tensor]:
    """The authors' hierarchical kernel from a copy the user obtained, e.g. …/torch-ext."""
    sys.path.insert(0, str(folder))
    kernel = importlib.import_module("flex_sae").triton_hierarchical_sae_loss

    def flex(values: Any, indices: Any, W_dec: Any, b_dec: Any, target: Any) -> torch.Tensor:
        return kernel(indices, W_dec, values, b_dec, target)

    return flex
