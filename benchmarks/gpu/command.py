"""The command: parts in order of importance, each with its share of the time, one JSON."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import tempfile
import time
from pathlib import Path
from typing import Any

PARTS = {
    "check": ("gpu.check", 1.0),
    "tune": ("gpu.tune", 2.0),
    "loss": ("loss", 1.5),
    "step": ("steps", 1.5),
    "deterministic": ("loss", 0.5),
    "memory": ("loss", 0.3),
    "selection": ("gpu.tune", 0.3),
    "limits": ("limits", 0.8),
    "profile": ("gpu.profiling", 0.6),
    "gemma": ("gpu.gemma", 1.0),
}
"""Each part's module under ``benchmarks``, and its share; the next ones get what it leaves over."""
NEED_SAELENS = ("step", "gemma")


def main(arguments: list[str]) -> int:
    """Runs it; 0 if nothing failed."""
    args = _parser().parse_args(arguments)
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        if importlib.util.find_spec("triton"):
            os.environ["HSAE_KERNEL"] = "triton"  # in every part, as on a card
    from benchmarks import readme
    from benchmarks.record import RESULTS, store

    run = _session(args)
    out = args.out or (
        Path(tempfile.mkdtemp()) / "dry-run.json" if args.dry_run else RESULTS / "cuda.json"
    )
    out = out.resolve()
    if args.dry_run and out.parent == RESULTS:
        raise SystemExit(f"--out: figures of a dry run mean nothing, and do not go to {RESULTS}.")
    seconds = 60 * args.minutes
    started = time.monotonic()
    names = _possible(args.parts or list(PARTS), run)
    for name in names:
        print(f"\n== {name} ({time.monotonic() - started:.0f} s of {seconds:.0f} s)", flush=True)
        run.deadline = _deadline(name, names, started + seconds)
        rows = _measured(name, run, out)
        if rows:
            store(out, name, run.device, rows, run.dry)
    summary = {"minutes": args.minutes, "seconds": round(time.monotonic() - started, 1),
               "left_out": run.left_out, "failed": run.failed}  # fmt: skip
    store(out, "gpu", run.device, [summary], run.dry)
    _tell(summary, out)
    if not run.failed and out.parent == RESULTS:
        readme.write(RESULTS)
    return 1 if run.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to do (all)")
    parser.add_argument("--minutes", type=float, default=8, help="when to stop beginning things")
    parser.add_argument("--out", type=Path, help="JSON file (benchmarks/results/cuda.json)")
    parser.add_argument("--flex", type=Path, help="folder of a copy of the flex_sae kernels")
    parser.add_argument(
        "--dry-run", action="store_true", help="everything at small sizes, without a GPU"
    )
    return parser


def _session(args: argparse.Namespace) -> Any:
    import torch

    from benchmarks.problems import Shape
    from benchmarks.session import GPU_SHAPES, Session

    if args.flex and not (args.flex / "flex_sae").is_dir():
        raise SystemExit(f"--flex: {args.flex} has no folder flex_sae in it.")
    if args.dry_run:
        torch.compiler.set_stance("force_eager")  # nothing is learnt from compiling here
        tiny = [Shape(6, 48, 32, 4)]
        return Session("cpu", tiny, rounds=2, flex=args.flex, dry=True, goes_on=True)
    if not torch.cuda.is_available():
        raise SystemExit(
            "There is no CUDA device here. --dry-run goes through everything at small sizes."
        )
    torch.set_float32_matmul_precision("high")  # TF32, for ours and the peers
    return Session("cuda", GPU_SHAPES, flex=args.flex, goes_on=True)


def _deadline(name: str, names: list[str], end: float) -> float:
    """When the part must begin nothing more: its share of what is left for it and those after."""
    rest = [PARTS[n][1] for n in names[names.index(name) :]]
    now = time.monotonic()
    return now + max(end - now, 0) * rest[0] / sum(rest)


def _possible(names: list[str], run: Any) -> list[str]:
    """Those whose peers are installed."""
    if importlib.util.find_spec("sae_lens") is None:
        for name in set(names) & set(NEED_SAELENS):
            run.leave_out(name, "it needs SAELens (pip install -e .)")
    return [name for name in names if name not in run.left_out]


def _measured(name: str, run: Any, out: Path) -> list[dict[str, Any]]:
    """A part's rows, those before a failure too; the next parts are measured all the same."""
    rows: list[dict[str, Any]] = []
    if not run.has_time(name):
        return rows
    with run.trying(name):
        measure = getattr(importlib.import_module(f"benchmarks.{PARTS[name][0]}"), name)
        beside = [out.with_name("launches.json")] if name == "tune" and run.dry else []
        for row in measure(run, *beside):
            rows.append(row)
    if name == "check":
        _judge(run, rows)
    return rows


def _judge(run: Any, rows: list[dict[str, Any]]) -> None:
    """Notes what failed its check; the parts that follow use the fastest that passed."""
    from benchmarks.gpu.check import failures
    from hsae_lens.objective.kernels import IMPLEMENTATIONS

    for line in failures(rows):
        run.fail(line)
    if run.refused:
        passed = [row["kernel"] for row in rows if row["kernel"] not in run.refused]
        os.environ["HSAE_KERNEL"] = min(
            passed, key=list(IMPLEMENTATIONS).index, default="reference"
        )


def _tell(summary: dict[str, Any], out: Path) -> None:
    print(f"\nTook {summary['seconds']} s. Figures: {out}")
    for what, why in summary["left_out"].items():
        print(f"left out: {what}: {why}")
    for line in summary["failed"]:
        print(f"FAILED: {line}")
