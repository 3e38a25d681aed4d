"""A whole training step: beside SAELens', and as sizes grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.problems import Shape
from benchmarks.session import Session
from benchmarks.subjects import step_of, trainer
from benchmarks.timing import interleaved, row_of

AWKWARD = (Shape(1025, 577, 4608, 50), Shape(1024, 576, 4608, 48))


def step(run: Session) -> Iterator[dict[str, Any]]:
    """A whole training step: ours over every budget, SAELens' TopK for one k."""
    return run.each_shape("step", _step_at, 5.0)


def _step_at(run: Session, shape: Shape) -> dict[str, Any]:
    _check_losses(shape, run.device)
    calls = {
        kind: step_of(trainer(kind, shape, run.device), shape, run.device)
        for kind in ("ours", "saelens", "saelens tuned", "ours in saelens")
    }
    only_k = trainer("ours", shape, run.device, budgets=[shape.k])
    calls["ours, J={K}"] = step_of(only_k, shape, run.device)
    calls = run.fitting(calls, str(shape))
    return row_of(shape, interleaved(calls, run.rounds, run.device), base="ours")


def _check_losses(shape: Shape, device: str) -> None:
    """J={K} through our step must be SAELens' own loss before anything is timed."""
    ours = trainer("ours", shape, device, budgets=[shape.k])
    stock = trainer("saelens", shape, device)
    got = step_of(ours, shape, device)().loss.item()
    want = step_of(stock, shape, device)().loss.item()
    if abs(got - want) > 1e-3 * abs(want):
        raise SystemExit(f"The losses differ at {shape}: {got} and {want}.")


def scaling(run: Session) -> list[dict[str, Any]]:
    """How our step's cost grows with K, d_sae and batch, and on awkward shapes."""
    start = run.shapes[0]
    shapes = [
        *(Shape(start.tokens, start.d_in, start.d_sae, k) for k in (16, 32, 64, 128)),
        *(Shape(start.tokens, start.d_in, start.d_sae * f // 2, start.k) for f in (1, 4)),
        *(Shape(start.tokens * f // 2, start.d_in, start.d_sae, start.k) for f in (1, 4)),
        *AWKWARD,
    ]
    calls = {str(s): step_of(trainer("ours", s, run.device), s, run.device) for s in shapes}
    times = interleaved(calls, run.rounds, run.device)
    for name, timing in times.items():
        print(f"{name:45s} {1e3 * timing.median:9.1f} ms")
    awkward, round_ = (times[str(s)].median / (s.tokens * s.d_in) for s in AWKWARD)
    print(f"awkward shape per element ÷ round: {awkward / round_:.2f}")
    return [
        {"shape": vars(s), "step": times[str(s)].to_json(), "awkward": s == AWKWARD[0]}
        for s in shapes
    ]
