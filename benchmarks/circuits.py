"""Attribution of the shipped SAE's latents: every budget at once, beside one run per budget.

The peer runs the model once per budget with the SAE spliced in straight-through and its error as a
leaf, which is how attribution is done with an SAE that has one budget.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.session import Session
from benchmarks.timing import interleaved
from hsae_lens import HierarchicalTopKSAE, attribute_budgets, load_pretrained
from hsae_lens.circuits.attribution import frozen_parameters
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.evaluation.tasks.builtin import make_task
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import run_changed
from hsae_lens.models.opening import open_model

SHIPPED = ("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")
BUDGETS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128]
FEW, MANY = 32, 200  # pairs compared with the peer, and in all


def circuits(run: Session) -> list[dict[str, Any]]:
    """16 budgets against one and against 16 runs; then 200 clean/corrupt pairs."""
    model = open_model("smollm2-135m", run.device, "float32")  # the peer adds its error in it
    sae = load_pretrained(*SHIPPED, device=run.device)
    task = make_task("indirect_object", model.tokenizer, MANY)
    few = task[:FEW]
    check_agree(model, sae, few[:4])

    def ours(pairs: TokenizedTask, budgets: list[int], replace: Replacement = "zero") -> Any:
        return attribute_budgets(model, sae, pairs, budgets, replace=replace, progress=False)

    times = interleaved(
        {
            "16 budgets": lambda: ours(few, BUDGETS),
            "one budget": lambda: ours(few, BUDGETS[-1:]),
            "each alone": lambda: [one_budget(model, sae, few, k) for k in BUDGETS],
            "200 pairs": lambda: ours(task, BUDGETS, "resample"),
        },
        min(3, run.rounds),
        run.device,
        warmup=0,
    )
    for name, timing in times.items():
        print(f"{name:12s} {timing.median:7.2f} s ({timing.fastest:.2f}–{timing.slowest:.2f})")
    shape = {"tokens": few.clean.numel(), "d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae}
    return [
        {
            "shape": {**shape, "k": sae.cfg.k},
            "pairs": (FEW, MANY),
            **{name: timing.to_json() for name, timing in times.items()},
        }
    ]


def one_budget(
    model: HookedModel, sae: HierarchicalTopKSAE, task: TokenizedTask, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents' and the error's attributions at one budget, ``[n, context, d_sae]`` and ``[…]``."""
    hook = sae.cfg.metadata.hook_name
    parts = []
    for start in range(0, len(task), 16):
        batch = task[start : start + 16]
        leaves: list[torch.Tensor] = []

        def splice(x: torch.Tensor, leaves: list[torch.Tensor] = leaves) -> torch.Tensor:
            f = sae.encode(x).detach().requires_grad_()
            decoded = sae.decode(f)
            error = (x - decoded).detach().requires_grad_()
            leaves += [f, error]
            return decoded + error

        with sae.using_budget(k), frozen_parameters(model), torch.enable_grad():
            value = batch.metric(run_changed(model, batch.clean, {hook: splice})).sum()
            gradients = torch.autograd.grad(value, leaves)
        f, error = (leaf.detach() * g for leaf, g in zip(leaves, gradients, strict=True))
        parts.append((f, error.sum(-1)))
    latents, errors = (torch.cat(column) for column in zip(*parts, strict=True))
    return latents, errors


def check_agree(model: HookedModel, sae: HierarchicalTopKSAE, task: TokenizedTask) -> None:
    """Both ways must give the same attributions before anything is timed."""
    found = attribute_budgets(model, sae, task, BUDGETS, replace="zero", progress=False)
    site = found.sites[sae.cfg.metadata.hook_name]
    judged = slice(*sae.cfg.metadata.seqpos_slice)
    for k in (BUDGETS[0], BUDGETS[7], BUDGETS[-1]):
        want = one_budget(model, sae, task, k)[0].cpu()[:, judged]
        off = (site.per_pair(k)[:, judged] - want).abs().max() / want.abs().max()
        if not off < 1e-4:
            raise SystemExit(f"Attributions at k={k} differ by {off:.1e}.")
