"""The whole step beside its floor: what the machine can do at best, and what a step needs of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.problems import BareStep, Shape
from benchmarks.session import Session
from benchmarks.timing import interleaved


def limits(run: Session) -> Iterator[dict[str, Any]]:
    """The step beside its floor: what the machine needs for the work no TopK step can leave out.

    Those are the encoder product, choosing K of d_sae, reading K decoder rows per token and adding
    to as many gradient rows (copy bandwidth), and Adam's pass over the parameters.
    """
    return run.each_shape("limits", _limits_at, 2.0)


def whole_step(shape: Shape, device: str) -> Callable[[], Any]:
    """Our trainer's step; without SAELens the same without its bookkeeping."""
    if importlib.util.find_spec("sae_lens") is None:
        return BareStep(shape, device)
    from benchmarks.subjects import step_of, trainer

    return step_of(trainer("ours", shape, device), shape, device)


def _limits_at(run: Session, shape: Shape) -> dict[str, Any]:
    x = torch.randn(shape.tokens, shape.d_in, device=run.device)
    W = torch.randn(shape.d_in, shape.d_sae, device=run.device)
    pre = x @ W
    big = torch.empty(1 << (20 if run.dry else 27), device=run.device)
    out = torch.empty_like(big)
    parameters = [torch.zeros_like(W, requires_grad=True) for _ in range(2)]
    for p in parameters:
        p.grad = torch.ones_like(p)
    adam = torch.optim.Adam(parameters, fused=True)
    times = interleaved(
        {
            "step": whole_step(shape, run.device),
            "product": lambda: x @ W,
            "topk": lambda: pre.topk(shape.k),
            "copy": lambda: out.copy_(big),
            "adam": adam.step,
        },
        run.rounds,
        run.device,
    )
    bandwidth = 2 * big.nbytes / times["copy"].median
    # Forward reads a row, backward reads it and reads and writes a gradient row, for both
    # weight matrices' gradients once; counted as if nothing stayed in a cache.
    traffic = 4 * shape.tokens * shape.k * shape.d_in * 4
    floor = sum(times[n].median for n in ("product", "topk", "adam")) + traffic / bandwidth
    print(f"{shape}: step {times['step'].median:.3f} s, floor {floor:.3f} s")
    operations = 2 * shape.tokens * shape.d_in * shape.d_sae
    return {
        "shape": vars(shape),
        "trainer": importlib.util.find_spec("sae_lens") is not None,
        **{name: timing.to_json() for name, timing in times.items()},
        "flops_per_s": operations / times["product"].median,
        "bytes_per_s": bandwidth,
        "floor": floor,
        "ratio": times["step"].median / floor,
    }
