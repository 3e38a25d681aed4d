"""Evaluation of the shipped SAE on activations of its hook, cached once.

The peer decodes with SAELens' stock TopK at each k, as one would without this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch

from benchmarks.session import Session
from benchmarks.timing import extra_memory, interleaved
from hsae_lens import HierarchicalTopKSAE, load_pretrained
from hsae_lens.evaluation import evaluate_activations, explained_variance_curve
from hsae_lens.models.opening import open_model
from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.tokenizing import tokenize
from hsae_lens.objective.budgets import powers_of_two
from hsae_lens.sae.codes import masked_activations

SHIPPED = ("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")
TOKENS = 50_000


def evaluation(run: Session) -> list[dict[str, Any]]:
    """The frontier at 8 budgets, explained variance at all of them, and the memory of both."""
    sae = load_pretrained(*SHIPPED, device=run.device)
    x = activations(sae, run.device)
    largest = sae.cfg.k
    few, every = powers_of_two(largest), list(range(1, largest + 1))

    def frontier(budgets: Sequence[int] = few) -> pd.DataFrame:
        return evaluate_activations(sae, x, budgets, progress=False)

    def curve() -> pd.DataFrame:
        return explained_variance_curve(sae, x, progress=False)

    calls: dict[str, Callable[[], Any]] = {
        "frontier": frontier,
        "frontier, stock": lambda: stock_frontier(sae, x, few),
        "curve": curve,
        "curve, stock": lambda: stock_frontier(sae, x, [largest]),
    }
    check_agree(frontier(), curve(), stock_frontier(sae, x, few))  # and warm up
    times = interleaved(calls, min(3, run.rounds), run.device, warmup=0)
    for name, timing in times.items():
        print(f"{name:20s} {timing.median:7.2f} s ({timing.fastest:.2f}–{timing.slowest:.2f})")
    shape = {"tokens": len(x), "d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae, "k": largest}
    memory = {
        f"{len(budgets)} budgets": extra_memory(lambda b=budgets: frontier(b), run.device)  # type: ignore[misc]
        for budgets in (few, every)
    }
    print(", ".join(f"{name}: {used / 2**20:.0f} MiB" for name, used in memory.items()))
    return [
        {"shape": shape, "what": what, "ours": ours.to_json(), "peer": peer.to_json()}
        for what, ours, peer in (
            ("frontier", times["frontier"], times["frontier, stock"]),
            ("curve", times["curve"], times["curve, stock"]),
        )
    ] + [{"shape": shape, "what": "memory", **memory}]


def activations(sae: HierarchicalTopKSAE, device: str) -> torch.Tensor:
    """``[TOKENS, d_in]`` of CPython's reference."""
    model = open_model("smollm2-135m", device)
    tokens = tokenize(cpython_reference(), model.tokenizer, 128, progress=False)
    enough = TOKENS // 120  # of 128 tokens the first and the special ones are left out
    return masked_activations(sae, model, tokens[:enough])[0][:TOKENS]


@torch.no_grad()
def stock_frontier(
    sae: HierarchicalTopKSAE, x: torch.Tensor, budgets: Sequence[int]
) -> dict[int, float]:
    """Explained variance of SAELens' TopK SAE at each k, and nothing else."""
    variance = (x.double() - x.double().mean(0)).square().sum()
    explained = {}
    for k in budgets:
        stock, error = sae.at_k(k), 0.0
        for batch in x.split(4096):
            here = batch.to(sae.device)
            error += float((stock(here) - here).square().sum())
        explained[k] = 1 - error / float(variance)
    return explained


def check_agree(frontier: pd.DataFrame, curve: pd.DataFrame, stock: dict[int, float]) -> None:
    """All three must give the same explained variance before any is timed."""
    at = frontier.set_index("k")["explained_variance"], curve.set_index("k")["explained_variance"]
    for k, want in stock.items():
        for got in (at[0][k], at[1][k]):
            if abs(got - want) > 1e-4:
                raise SystemExit(f"Explained variance at k={k} differs: {got} and {want}.")
