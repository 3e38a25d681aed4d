"""Every implementation against float64, on this card: outputs, gradients, bits, and waits.

It runs in a process of its own. A kernel that reads or writes astray ends all use of the card in
its process, and may end the process; the parts that follow must not suffer from it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from benchmarks.problems import LossProblem, Shape
from benchmarks.session import Session
from hsae_lens.objective import encode_topk, nested_loss
from hsae_lens.objective.kernels import IMPLEMENTATIONS, Implementation, NestedProblem, reference
from hsae_lens.objective.kernels.probe import TOLERANCE, in_short, relative_error
from hsae_lens.objective.kernels.trial_problems import KINDS, SHAPES, cast, trial_problem

DTYPES = (torch.float32, torch.bfloat16)
SMALL = ("K = d_sae", "one column")  # for the interpreter
STEP = Shape(256, 576, 4608, 64)
LONGEST = 240  # seconds the process may take: a kernel may never end


def check(run: Session) -> list[dict[str, Any]]:
    """A row for each implementation and dtype: cases, the worst of them, and what failed.

    Inputs are new in every run (the seed is in the row), and fresh memory is filled with NaN, so
    that what a kernel leaves unwritten shows. What failed is not used by the parts that follow.
    """
    device = torch.device(run.device)
    waiting = [
        (name, _named(dtype))
        for name, implementation in IMPLEMENTATIONS.items()
        for dtype in DTYPES
        if name != "reference" and not implementation.refuses(device, dtype)
    ]
    seed, rows = int.from_bytes(os.urandom(3)), []
    while waiting and run.has_time(f"check of {waiting[0][0]} in {waiting[0][1]}"):
        found, end = _in_a_process(run, seed, waiting)
        rows += found
        waiting = waiting[len(found) :]
        if end and waiting:  # during the next one
            rows.append(_row(*waiting.pop(0), seed, 0, 0.0, [f"the check {end}"]))
    run.refused |= {row["kernel"] for row in rows if row["failed"]}
    return rows


def _in_a_process(
    run: Session, seed: int, pairs: list[tuple[str, str]]
) -> tuple[list[dict[str, Any]], str]:
    """Rows of the pairs that a process came to, and how it ended if too early."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.touch()
        task = {"file": str(file), "device": run.device, "dry": run.dry, "seed": seed,
                "pairs": pairs}  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.gpu.check", json.dumps(task)]
        sys.stdout.flush()
        end = ""
        try:
            status = subprocess.run(command, timeout=LONGEST).returncode
            if status:
                end = f"ended its process with status {status}; its last words are above"
        except subprocess.TimeoutExpired:
            end = f"did not end within {LONGEST} s"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    return rows, end


def main(task: dict[str, Any]) -> None:
    """The process: a line of the file for each pair of implementation and dtype."""
    device = torch.device(task["device"])
    for name, dtype in task["pairs"]:
        kernel = IMPLEMENTATIONS[name]
        row = _checked(kernel, device, getattr(torch, dtype), task["seed"], task["dry"])
        with Path(task["file"]).open("a") as file:
            file.write(json.dumps(row) + "\n")
        torch.ones(1, device=device).item()  # raises where the card is lost


def _row(
    kernel: str, dtype: str, seed: int, cases: int, worst: float, failed: list[str]
) -> dict[str, Any]:
    verdict = f"{len(failed)} FAILED" if failed else "ok"
    print(f"{kernel:10s} {dtype:9s} {cases:3d} cases, worst {worst:.0e}: {verdict}")
    for line in failed:
        print(f"  {line}", flush=True)
    allowed = TOLERANCE[getattr(torch, dtype)]
    return {"kernel": kernel, "dtype": dtype, "seed": seed, "cases": cases, "worst": worst,
            "allowed": allowed, "failed": failed}  # fmt: skip


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """What failed, a line each."""
    return [f"{row['kernel']} {row['dtype']}: {line}" for row in rows for line in row["failed"]]


def _checked(
    kernel: Implementation, device: torch.device, dtype: torch.dtype, seed: int, dry: bool
) -> dict[str, Any]:
    worst, failed, cases = 0.0, [], 0
    for title, case in _cases(kernel, device, dtype, seed, dry):
        cases += 1
        try:
            error, what = case()
        except Exception as cause:  # a failed case, not the end of the check
            failed.append(f"{title}: {in_short(cause)}")
            continue
        worst = max(worst, error)
        if not error <= TOLERANCE[dtype]:
            failed.append(f"{title}: {what} is off by {error:.1e}")
    return _row(kernel.name, _named(dtype), seed, cases, worst, failed)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


Case = Callable[[], tuple[float, str]]


def _cases(
    kernel: Implementation, device: torch.device, dtype: torch.dtype, seed: int, dry: bool
) -> Iterator[tuple[str, Case]]:
    for shape in SMALL if dry else SHAPES:
        for kind in KINDS[::3] if dry else KINDS:
            p = cast(trial_problem(SHAPES[shape], kind, shape == "odd", seed), dtype, device)
            yield f"{shape}, {kind}", lambda p=p: _against_reference(kernel, p)  # type: ignore[misc]
    many_per_latent = SHAPES["K = d_sae" if dry else "crowded latents"]
    crowded = cast(trial_problem(many_per_latent, seed=seed), dtype, device)
    yield "same input, same bits", lambda: _same_bits(kernel, crowded)
    if device.type == "cuda":
        yield "no waiting for the device", lambda: _no_waits(kernel, dtype)
        yield "captured in a CUDA graph", lambda: _captured(kernel, dtype)


def _against_reference(kernel: Implementation, p: NestedProblem) -> tuple[float, str]:
    exact = cast(p, torch.float64, p.values.device)
    d_sae = len(p.W_dec)
    want = reference.nested(exact, True)._asdict()
    want["d_W_enc"] = reference.encoder_grad(exact.values, exact.indices, exact.target, d_sae)
    with _poisoned():
        got = kernel.nested(p, True)._asdict()
        got["d_W_enc"] = kernel.encoder_grad(p.values, p.indices, p.target, d_sae)
        alone = kernel.nested(p, False)
    errors = {name: relative_error(got[name], want[name]) for name in want}
    for name in ("squared_errors", "residual"):
        errors[f"{name} without gradients"] = relative_error(getattr(alone, name), want[name])
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], worst


@contextmanager
def _poisoned() -> Iterator[None]:
    def filled(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return made

    with (
        mock.patch.object(torch, "empty", filled(torch.empty)),
        mock.patch.object(torch, "empty_like", filled(torch.empty_like)),
    ):
        yield


def _same_bits(kernel: Implementation, p: NestedProblem) -> tuple[float, str]:
    if kernel.name == "scan" and p.values.is_cuda:
        return 0.0, ""  # adds atomically unless torch's own switch forbids it; promises nothing

    def outputs() -> dict[str, torch.Tensor]:
        fresh = p.indices.clone()  # sorted anew: the sort of known latents is kept
        found = kernel.nested(p._replace(indices=fresh), True)._asdict()
        return {**found, "d_W_enc": kernel.encoder_grad(p.values, fresh, p.target, len(p.W_dec))}

    with mock.patch.dict(os.environ, HSAE_DETERMINISTIC="1"):
        first, *others = (outputs() for _ in range(3))
    for name, tensor in first.items():
        if not all(torch.equal(tensor, other[name]) for other in others):
            return torch.inf, f"{name} differs between runs; it"
    return 0.0, ""


def _no_waits(kernel: Implementation, dtype: torch.dtype) -> tuple[float, str]:
    """Encoder and loss, forward and backward."""
    step = _step(kernel.name, "cuda", dtype)
    step()  # compiles, and makes what is kept
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0.0, ""


def _step(kernel: str, device: str, dtype: torch.dtype) -> Callable[[], Any]:
    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=device, dtype=dtype)

    x, scale = normal(STEP.tokens, STEP.d_in), normal(STEP.d_sae).abs() + 1
    sizes = ((STEP.d_in, STEP.d_sae), (STEP.d_sae,), (STEP.d_sae, STEP.d_in), (STEP.d_in,))
    leaves = [normal(*size).requires_grad_() for size in sizes]
    W_enc, b_enc, W_dec, b_dec = leaves

    def step() -> Any:
        code = encode_topk(x, W_enc, b_enc, b_dec, STEP.k, selection_scale=scale, kernel=kernel)
        return torch.autograd.grad(nested_loss(code, W_dec, b_dec, x, kernel=kernel), leaves)

    return step


def _captured(kernel: Implementation, dtype: torch.dtype) -> tuple[float, str]:
    """Loss and gradients replayed from a graph, as they are without one."""
    problem = LossProblem(STEP, "cuda", dtype)
    want = problem.ours(kernel=kernel.name)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = problem.ours(kernel=kernel.name)
    graph.replay()
    return max(relative_error(a, b) for a, b in zip(got, want, strict=True)), "what it replays"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
