"""``python -m benchmarks [step loss … circuits]``: measures, writes JSON, prints.

Figures go to ``benchmarks/results/<device>.json``, those of quality (``defaults``) to a file of
their own; ``--readme`` writes the tables of README and docs from them. ``python -m benchmarks gpu``
does everything that ten minutes on a card should (``benchmarks/gpu/``).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

PARTS = {
    "step": "steps",
    "loss": "loss",
    "scaling": "steps",
    "memory": "loss",
    "limits": "limits",
    "end_to_end": "end_to_end",
    "evaluation": "evaluation",
    "circuits": "circuits",
    "spending": "spending",
    "defaults": "defaults",
    "conversion": "conversion",
}
"""Each part's module, imported when it is measured: some need SAELens, some PyTorch alone."""


def main() -> None:
    # Not at the top: a dry run for a GPU sets what Triton reads when it is first imported.
    import torch

    from benchmarks import readme
    from benchmarks.record import RESULTS, store
    from benchmarks.session import CPU_SHAPES, GPU_SHAPES, Session

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to measure (all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each subject")
    parser.add_argument("--flex", type=Path, help="GPU: folder of a copy of the flex_sae kernels")
    parser.add_argument("--readme", action="store_true", help="write the pages' tables and stop")
    args = parser.parse_args()
    shapes = CPU_SHAPES if args.device == "cpu" else GPU_SHAPES
    if args.device != "cpu":
        torch.set_float32_matmul_precision("high")  # TF32, for ours and the peers
    run = Session(args.device, shapes, args.rounds, args.flex)
    file = RESULTS / f"{torch.device(args.device).type}.json"
    files = {name: RESULTS / f"{name}.json" for name in ("defaults", "conversion")}
    if not args.readme:
        for name in args.parts or PARTS:
            print(f"\n== {name} ({args.device})")
            measure = getattr(importlib.import_module(f"benchmarks.{PARTS[name]}"), name)
            store(files.get(name, file), name, args.device, list(measure(run)))
    readme.write(RESULTS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["gpu"]:
        from benchmarks.gpu.command import main as gpu

        sys.exit(gpu(sys.argv[2:]))
    main()
