"""Which launch is fastest on this card, by shape: the winners go into the kernels' table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.loss import spread
from benchmarks.problems import LossProblem, Shape
from benchmarks.session import Session
from benchmarks.timing import interleaved
from hsae_lens.objective import kernels
from hsae_lens.objective.budgets import resolve_weights
from hsae_lens.objective.encode import CHUNK_BYTES_ON_CUDA, topk_in_two_stages
from hsae_lens.objective.kernels import NestedProblem, triton
from hsae_lens.objective.kernels.launches import DEFAULT, TABLE, Launch, card_of, record
from hsae_lens.objective.kernels.probe import TOLERANCE, in_short, relative_error

NESTED = {"columns": (32, 64, 128, 256, 512), "ranks": (2, 4, 8, 16), "warps": (1, 2, 4, 8),
          "stages": (1, 2, 3)}  # fmt: skip
SEGMENT = {"segment_columns": (64, 128, 256, 512), "rows": (8, 16, 32), "segment_warps": (2, 4, 8),
           "segment_stages": (1, 2, 3)}  # fmt: skip
GROUPS, DRY_GROUPS = (16, 32, 64), (4, 8)
DRY = {"columns": (32, 64), "segment_columns": (32, 64)}
SMALLEST_GAIN = 0.02  # a field is changed for a gain of two hundredths, not for noise
Call = Callable[[], Any]


def tune(run: Session, table: Path = TABLE) -> Iterator[dict[str, Any]]:
    """Field by field, for each K and dtype at the largest batch; the middle K first.

    A candidate must agree with the default launch before it is timed.
    """
    if reason := triton.IMPLEMENTATION.refuses(torch.device(run.device), torch.float32):
        run.leave_out("tuning of launches", f"Triton {reason}")
        return
    if "triton" in run.refused:
        run.leave_out("tuning of launches", "Triton's kernels failed their check")
        return
    largest = max(shape.tokens for shape in run.shapes)
    shapes = [shape for shape in run.shapes if shape.tokens == largest]
    shapes.sort(key=lambda shape: abs(shape.k - 64))
    for shape, dtype in itertools.product(shapes, triton.DTYPES):
        what = f"launches for {shape} in {dtype}"
        if run.has_time(what, 5.0):
            with run.trying(what):
                yield _tuned(run, shape, dtype, table)


def _tuned(run: Session, shape: Shape, dtype: torch.dtype, table: Path) -> dict[str, Any]:
    p = _problem(shape, run.device, dtype)
    best, seconds = DEFAULT, {}
    for part, fields in (("nested", NESTED), ("encoder_grad", SEGMENT)):
        fields = {n: v for n, v in DRY.items() if n in fields} if run.dry else fields
        best, seconds[part] = _best_of(run, p, part, best, fields)
    best = best._replace(few_budgets=_few_budgets(run, p, best))
    best = best._replace(selection_group=_selection(run, shape, dtype))
    if any(seconds.values()):
        record(card_of(torch.device(run.device)), dtype, shape.d_in, shape.k, best, table)
        kernels.forget()  # what was chosen for the shape was launched otherwise
    name = str(dtype).removeprefix("torch.")
    print(f"{shape} {name}: {best}")
    return {"shape": vars(shape), "dtype": name, "launch": best._asdict(), "seconds": seconds}


def _problem(shape: Shape, device: str, dtype: torch.dtype) -> NestedProblem:
    drawn = LossProblem(shape, device, dtype)
    budgets = list(range(1, shape.k + 1))
    return NestedProblem(
        drawn.values.detach(),
        drawn.indices,
        drawn.W_dec.detach(),
        drawn.b_dec.detach(),
        drawn.target,
        budgets,
        resolve_weights(None, budgets),
        None,
    )


def _call(p: NestedProblem, part: str, launch: Launch) -> Call:
    kernel = triton.launched(launch)
    if part == "nested":
        return lambda: kernel.nested(p, True)
    return lambda: kernel.encoder_grad(p.values, p.indices, p.target, len(p.W_dec))


def _best_of(
    run: Session, p: NestedProblem, part: str, best: Launch, fields: dict[str, tuple[int, ...]]
) -> tuple[Launch, dict[str, float]]:
    """The best launch, changed one field after the other, and seconds by what was tried."""
    want = _call(p, part, best)()
    seconds: dict[str, float] = {}
    for field, values in fields.items():
        before = best
        for value in values:
            candidate = before._replace(**{field: value})
            title = f"{part}, {field}={value}"
            if value == getattr(before, field) or _spills(candidate) or not run.has_time(title):
                continue
            call = _call(p, part, candidate)
            if why := _disagreement(call, want, p.W_dec.dtype):
                run.leave_out(title, why)
                continue
            times = interleaved(
                {"best": _call(p, part, best), title: call}, 3 if run.dry else 5, run.device, 1
            )
            seconds[title] = times[title].median
            if times[title].median < (1 - SMALLEST_GAIN) * times["best"].median:
                best = candidate
    return best, seconds


def _spills(launch: Launch) -> bool:
    """Whether a thread would hold more numbers of a tile than it has registers for."""
    tiles = (launch.columns * launch.ranks / launch.warps,
             launch.segment_columns * launch.rows / launch.segment_warps)  # fmt: skip
    return max(tiles) > 64 * 32


def _disagreement(call: Call, want: Any, dtype: torch.dtype) -> str | None:
    """Why a candidate cannot be taken; None where it computes what the default does."""
    try:
        got = call()
        pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
        error = max(relative_error(a, b) for a, b in pairs)
    except Exception as cause:  # too many registers, too much shared memory, …
        return in_short(cause)
    return None if error <= 2 * TOLERANCE[dtype] else f"it is off by {error:.0e}"


def _few_budgets(run: Session, p: NestedProblem, launch: Launch) -> int:
    """The most budgets at which storing their suffix sums is no slower than atomics."""
    few = None
    for n in (1, 4) if run.dry else (1, 4, 8, 16, 32, 64, 128):
        budgets = spread(p.values.shape[1], n)
        if len(budgets) < n or not run.has_time(f"atomics at {n} budgets"):
            break
        some = p._replace(budgets=budgets, weights=resolve_weights(None, budgets))
        calls = {way: _call(some, "nested", launch._replace(few_budgets=most))
                 for way, most in (("stored", n), ("atomics", 0))}  # fmt: skip
        times = interleaved(calls, 3 if run.dry else 5, run.device, 1)
        if times["stored"].median > times["atomics"].median:
            return few or 0
        few = n
    return launch.few_budgets if few is None else few


def _selection(run: Session, shape: Shape, dtype: torch.dtype) -> int:
    """The group of the two-stage selection that beats ``torch.topk``; 0 if none does."""
    if not run.has_time(f"selection for {shape} in {dtype}"):
        return DEFAULT.selection_group
    times = selection_times(run, shape, dtype)
    fastest = min(times, key=lambda name: times[name].median)
    gain = 1 - times[fastest].median / times["topk"].median
    return int(fastest.split()[-1]) if gain > SMALLEST_GAIN else 0


def selection_times(run: Session, shape: Shape, dtype: torch.dtype) -> dict[str, Any]:
    """Choosing K of d_sae from one chunk of pre-activations, each way."""
    size = torch.empty((), dtype=dtype).element_size()
    rows = min(shape.tokens, max(1, CHUNK_BYTES_ON_CUDA // (shape.d_sae * size)))
    pre = torch.randn(rows, shape.d_sae, device=run.device, dtype=dtype)
    calls: dict[str, Call] = {"topk": lambda: pre.topk(shape.k)}
    want = calls["topk"]()[0]
    for group in DRY_GROUPS if run.dry else GROUPS:
        if shape.d_sae // group >= shape.k:
            call: Call = partial(topk_in_two_stages, pre, shape.k, group)
            if not torch.equal(call()[0], want):
                raise ValueError(f"Choosing in groups of {group} gives other values than topk.")
            calls[f"in groups of {group}"] = call
    return interleaved(calls, run.rounds, run.device)


def selection(run: Session) -> Iterator[dict[str, Any]]:
    """A row for each K: choosing by ``torch.topk``, and in two stages."""
    for shape in {shape.k: shape for shape in run.shapes}.values():
        if run.has_time(f"selection at {shape}"):
            times = selection_times(run, shape, torch.float32)
            ways = ", ".join(f"{n} {1e3 * t.median:.2f} ms" for n, t in times.items())
            print(f"{shape}: {ways}")
            yield {"shape": vars(shape), **{n: t.to_json() for n, t in times.items()}}
