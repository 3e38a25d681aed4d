"""``python -m benchmarks [step loss … circuits]``: measures, writes JSON, prints.

Figures go to ``benchmarks/results/<device>.json``; ``--readme`` writes the tables of
README and docs from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import readme
from benchmarks.circuits import circuits
from benchmarks.end_to_end import end_to_end
from benchmarks.evaluation import evaluation
from benchmarks.spending import spending
from benchmarks.subjects import LossProblem, Shape, cumulative_sum_loss, step_of, trainer
from benchmarks.timing import extra_memory, interleaved, machine
from hsae_lens.objective import kernels

RESULTS = Path(__file__).parent / "results"
CPU_SHAPES = [Shape(1024, 576, 4608, 64), Shape(4096, 640, 16384, 128)]
GPU_SHAPES = [Shape(b, 2304, 65536, k) for b in (4096, 8192) for k in (32, 64, 128)]
AWKWARD = (Shape(1025, 577, 4608, 50), Shape(1024, 576, 4608, 48))


def main() -> None:
    parts: dict[str, Callable[[argparse.Namespace], Any]] = {
        "step": step,
        "loss": loss,
        "scaling": scaling,
        "memory": memory,
        "limits": limits,
        "end_to_end": end_to_end,
        "evaluation": evaluation,
        "circuits": circuits,
        "spending": spending,
    }
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="what to measure (all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each subject")
    parser.add_argument("--flex", type=Path, help="GPU: folder of a copy of the flex_sae kernels")
    parser.add_argument("--readme", action="store_true", help="write the pages' tables and stop")
    args = parser.parse_args()
    file = RESULTS / f"{torch.device(args.device).type}.json"
    if not args.readme:
        for name in args.parts or parts:
            print(f"\n== {name} ({args.device})")
            _store(
                file,
                name,
                {
                    "machine": machine(args.device),
                    "kernel": kernels.explain(args.device),
                    "rows": parts[name](args),
                },
            )
    readme.write(RESULTS)


def step(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A whole training step: ours over every budget, SAELens' TopK for one k."""
    if args.device != "cpu":
        torch.set_float32_matmul_precision("high")  # TF32 for all of them
    rows = []
    for shape in _shapes(args):
        calls = {
            kind: step_of(trainer(kind, shape, args.device), shape, args.device)
            for kind in ("ours", "saelens", "saelens tuned", "ours in saelens")
        }
        only_k = trainer("ours", shape, args.device, budgets=[shape.k])
        calls["ours, J={K}"] = step_of(only_k, shape, args.device)
        _check_losses(shape, args.device)
        times = interleaved(calls, args.rounds, args.device)
        rows.append(_row(shape, times, base="ours"))
    return rows


def _check_losses(shape: Shape, device: str) -> None:
    """J={K} through our step must be SAELens' own loss before anything is timed."""
    ours = trainer("ours", shape, device, budgets=[shape.k])
    stock = trainer("saelens", shape, device)
    got = step_of(ours, shape, device)().loss.item()
    want = step_of(stock, shape, device)().loss.item()
    if abs(got - want) > 1e-3 * abs(want):
        raise SystemExit(f"The losses differ at {shape}: {got} and {want}.")


def loss(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The nested loss alone, forward and backward, against the cumulative sum."""
    compiled = torch.compile(cumulative_sum_loss)
    flex = _flex_loss(args.flex) if args.flex else None
    rows = []
    for shape in _shapes(args):
        problem = LossProblem(shape, args.device)
        calls: dict[str, Callable[[], Any]] = {"ours": problem.ours}
        calls["ours, 8 budgets"] = lambda p=problem, s=shape: p.ours(_spread(s.k, 8))  # type: ignore[misc]
        if args.device == "cpu":
            calls["ours, plain PyTorch"] = lambda p=problem: p.ours(kernel="scan")  # type: ignore[misc]
        calls["naive"] = lambda p=problem: p.naive(cumulative_sum_loss)  # type: ignore[misc]
        calls["naive compiled"] = lambda p=problem: p.naive(compiled)  # type: ignore[misc]
        if flex:
            calls["flex_sae"] = lambda p=problem, s=shape: p.naive(  # type: ignore[misc]
                lambda *tensors: flex(*tensors) * s.d_in  # it also divides by d_in
            )
        _check_agree(calls, skip=("ours, 8 budgets",))
        slow = shape.tokens * shape.k * shape.d_in > 10**8 and args.device == "cpu"
        times = interleaved(calls, 3 if slow else args.rounds, args.device, warmup=1)
        rows.append(_row(shape, times, base="ours"))
    return rows


def scaling(args: argparse.Namespace) -> list[dict[str, Any]]:
    """How our step's cost grows with K, d_sae and batch, and on awkward shapes."""
    start = CPU_SHAPES[0] if args.device == "cpu" else GPU_SHAPES[1]
    shapes = [
        *(Shape(start.tokens, start.d_in, start.d_sae, k) for k in (16, 32, 64, 128)),
        *(Shape(start.tokens, start.d_in, start.d_sae * f // 2, start.k) for f in (1, 4)),
        *(Shape(start.tokens * f // 2, start.d_in, start.d_sae, start.k) for f in (1, 4)),
        *AWKWARD,
    ]
    calls = {str(s): step_of(trainer("ours", s, args.device), s, args.device) for s in shapes}
    times = interleaved(calls, args.rounds, args.device)
    for name, timing in times.items():
        print(f"{name:45s} {1e3 * timing.median:9.1f} ms")
    awkward, round_ = (times[str(s)].median / (s.tokens * s.d_in) for s in AWKWARD)
    print(f"awkward shape per element ÷ round: {awkward / round_:.2f}")
    return [
        {"shape": vars(s), "step": times[str(s)].to_json(), "awkward": s == AWKWARD[0]}
        for s in shapes
    ]


def memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Extra memory of the loss, forward and backward."""
    start = CPU_SHAPES[1] if args.device == "cpu" else GPU_SHAPES[0]
    rows = []
    for k in (32, 128):
        shape = Shape(start.tokens // 2, start.d_in, start.d_sae, k)
        problem = LossProblem(shape, args.device)
        problem.ours()
        ours = extra_memory(problem.ours, args.device)
        naive = extra_memory(lambda p=problem: p.naive(cumulative_sum_loss), args.device)  # type: ignore[misc]
        print(f"{shape}: ours {ours / 2**20:.0f} MiB, naive {naive / 2**20:.0f} MiB")
        rows.append({"shape": vars(shape), "ours": ours, "naive": naive})
    return rows


def limits(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The step beside its floor: what the machine needs for the work no TopK step can leave out.

    Those are the encoder product, choosing K of d_sae, reading K decoder rows per token and adding
    to as many gradient rows (copy bandwidth), and Adam's pass over the parameters.
    """
    rows = []
    for shape in _shapes(args):
        x = torch.randn(shape.tokens, shape.d_in, device=args.device)
        W = torch.randn(shape.d_in, shape.d_sae, device=args.device)
        pre = x @ W
        big = torch.empty(1 << 27, device=args.device)
        out = torch.empty_like(big)
        parameters = [torch.zeros_like(W, requires_grad=True) for _ in range(2)]
        for p in parameters:
            p.grad = torch.ones_like(p)
        adam = torch.optim.Adam(parameters, fused=True)
        times = interleaved(
            {
                "step": step_of(trainer("ours", shape, args.device), shape, args.device),
                "product": lambda x=x, W=W: x @ W,  # type: ignore[misc]
                "topk": lambda pre=pre, k=shape.k: pre.topk(k),  # type: ignore[misc]
                "copy": lambda big=big, out=out: out.copy_(big),  # type: ignore[misc]
                "adam": adam.step,
            },
            args.rounds,
            args.device,
        )
        bandwidth = 2 * big.nbytes / times["copy"].median
        # Forward reads a row, backward reads it and reads and writes a gradient row, for both
        # weight matrices' gradients once; counted as if nothing stayed in a cache.
        traffic = 4 * shape.tokens * shape.k * shape.d_in * 4
        floor = sum(times[n].median for n in ("product", "topk", "adam")) + traffic / bandwidth
        print(f"{shape}: step {times['step'].median:.3f} s, floor {floor:.3f} s")
        rows.append(
            {
                "shape": vars(shape),
                **{name: timing.to_json() for name, timing in times.items()},
                "flops_per_s": 2
                * shape.tokens
                * shape.d_in
                * shape.d_sae
                / times["product"].median,
                "bytes_per_s": bandwidth,
                "floor": floor,
                "ratio": times["step"].median / floor,
            }
        )
    return rows


def _shapes(args: argparse.Namespace) -> list[Shape]:
    return CPU_SHAPES if args.device == "cpu" else GPU_SHAPES


def _spread(k: int, n: int) -> list[int]:
    return sorted({max(1, k * (i + 1) // n) for i in range(n)})


def _check_agree(calls: dict[str, Callable[[], Any]], skip: tuple[str, ...]) -> None:
    """Loss and gradients of every subject must agree before any is timed."""
    want = calls["ours"]()
    for name, call in calls.items():
        if name in skip:
            continue
        for n, (a, b) in enumerate(zip(call(), want, strict=True)):
            error = ((a - b).norm() / b.norm()).item()
            if not error < 1e-3:
                raise SystemExit(f"{name} disagrees in output {n}: relative error {error:.1e}.")


def _flex_loss(folder: Path) -> Callable[..., torch.Tensor]:
    """The authors' hierarchical kernel from a copy the user obtained, e.g. …/torch-ext."""
    import importlib
    import sys

    sys.path.insert(0, str(folder))
    kernel = importlib.import_module("flex_sae").triton_hierarchical_sae_loss

    def flex(values: Any, indices: Any, W_dec: Any, b_dec: Any, target: Any) -> torch.Tensor:
        return kernel(indices, W_dec, values, b_dec, target)

    return flex


def _row(shape: Shape, times: dict[str, Any], base: str) -> dict[str, Any]:
    print(shape)
    for name, t in times.items():
        spread = f"({1e3 * t.fastest:.1f}–{1e3 * t.slowest:.1f})"
        ratio = t.median / times[base].median
        print(f"  {name:20s} {1e3 * t.median:9.1f} ms {spread:20s} {ratio:5.2f}x ours")
    return {"shape": vars(shape), **{name: t.to_json() for name, t in times.items()}}


def _store(file: Path, part: str, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    everything = json.loads(file.read_text()) if file.exists() else {}
    everything[part] = result
    file.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
