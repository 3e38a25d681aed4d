"""What it costs to ask every token: encoding at a mean budget, and the thresholds for it."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.evaluation import SHIPPED, activations
from benchmarks.session import Session
from benchmarks.timing import interleaved
from hsae_lens import MeanBudget, calibrate, load_pretrained

BATCH = 4096
MEAN = MeanBudget(32)
CALIBRATED = 100_000  # tokens


def spending(run: Session) -> list[dict[str, Any]]:
    """Encoding at a mean budget beside K and a stock JumpReLU SAE; calibration, in seconds."""
    sae = load_pretrained(*SHIPPED, device=run.device)
    some = activations(sae, run.device).to(run.device)
    many = some.repeat(-(-CALIBRATED // len(some)), 1)[:CALIBRATED]
    calibrate(sae, some, progress=False)
    stock, x = sae.at_mean_k(MEAN.k), some[:BATCH]

    @torch.no_grad()
    def encode(budget: Any) -> torch.Tensor:
        with sae.using_budget(budget):
            return sae.encode(x)

    @torch.no_grad()
    def encode_stock() -> torch.Tensor:
        return stock.encode(x)

    if not torch.equal(encode(MEAN), encode_stock()):
        raise SystemExit("The stock JumpReLU SAE encodes otherwise.")
    times = interleaved(
        {
            "ours": lambda: encode(MEAN),
            "at K": lambda: encode(sae.cfg.k),
            "stock": encode_stock,
        },
        3 * run.rounds,
        run.device,
    )
    calibrating = interleaved(
        {"calibrate": lambda: calibrate(sae, many, progress=False)}, 3, run.device, warmup=0
    )
    for name, timing in (times | calibrating).items():
        print(f"{name:10s} {timing.median:7.3f} s ({timing.fastest:.3f}–{timing.slowest:.3f})")
    sizes = {"d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae, "k": sae.cfg.k}
    return [
        {
            "shape": {"tokens": BATCH, **sizes},
            "what": "encode",
            **{name: timing.to_json() for name, timing in times.items()},
        },
        {
            "shape": {"tokens": CALIBRATED, **sizes},
            "what": "calibrate",
            "ours": calibrating["calibrate"].to_json(),
        },
    ]
