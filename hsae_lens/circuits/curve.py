"""How faithful and how complete circuits of growing size are, at each budget."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, get_args

import pandas as pd
import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from hsae_lens.circuits.ablation import Ablator, Nodes, complement
from hsae_lens.circuits.attribution import Attribution
from hsae_lens.circuits.metrics import CIRCUIT_METRICS, LogitMeans
from hsae_lens.circuits.prompts import Prompts
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.circuits.sites import ERROR, sites_of
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.objective.budgets import Budget

logger = logging.getLogger(__name__)

ErrorNodes = Literal["default", "keep", "remove"]

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def circuit_curve(
    model: HookedModel,
    saes: SAE[Any] | Sequence[SAE[Any]],
    attribution: Attribution,
    prompts: Prompts | TokenizedTask,
    *,
    sizes: Sequence[int] = SIZES,
    replace: Replacement | None = None,
    errors: ErrorNodes = "remove",
    by_position: bool = True,
    batch_size: int = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """Faithfulness and completeness against the number of nodes, for each budget attributed.

    The circuit of size s is the s nodes with the largest contributions of either sign. With m the
    metric's mean, ∅ everything replaced and M the model itself (Marks et al., arXiv 2403.19647):
    faithfulness = (m(C) − m(∅)) / (m(M) − m(∅)), completeness the same of everything but C. A
    circuit explains the behaviour if the first is near 1 and the second near 0.

    Args:
        attribution: of the same SAEs, best made on other pairs than these prompts.
        prompts: the pairs to measure on; see :func:`attribute_budgets`.
        sizes: numbers of nodes; those beyond what contributes are cut to it, and the log says so.
        replace: see :class:`Ablator`; None is what the attribution was made for. ∅ does not depend
            on the budget, except with "zero" on SAEs of different biases.
        errors: which error nodes are in a circuit: "remove" none, so that only latents can explain;
            "keep" all; "default" lets them compete with latents, and a dictionary that has learnt
            nothing then scores well: its error node is the activation itself.
        by_position: nodes are latents at positions; False joins a latent's positions.

    Returns:
        A row per budget and size: ``k`` (with budgets that are not fixed also ``rule`` and
        ``target``, as in :func:`evaluate_budgets`), ``nodes``, ``faithfulness``, ``completeness``,
        ``metric_circuit``, ``metric_complement``, ``metric_model``, ``metric_empty``.

    Raises:
        ValueError: if replacing everything does not change the metric (nothing to explain), or for
            what :class:`Ablator` refuses.
    """
    if errors not in get_args(ErrorNodes):
        raise ValueError(f"errors must be one of {get_args(ErrorNodes)}, got {errors!r}.")
    check_circuit_sizes(sizes)
    replace = replace or attribution.replace
    for site in sites_of(saes, model):  # before the Ablator runs the model
        for k in attribution.budgets:
            site.check_budget(k)
    ablator = Ablator(model, saes, prompts, replace, batch_size)
    _check_fits(attribution, ablator, by_position)
    of_model, of_nothing = _model_and_nothing(ablator, attribution.budgets[-1])
    ranked = _ranked(attribution, errors, by_position)
    short = [
        f"{len(nodes)} at {f'k={k}' if isinstance(k, int) else k}"
        for k, nodes in ranked.items()
        if len(nodes) < sizes[-1]
    ]
    if short:
        logger.warning("Only so many nodes contribute, %s: larger circuits are cut to them.",
                       ", ".join(short))  # fmt: skip
    named = attribution.budget_rows()
    plan = [(k, size) for k in ranked for size in _cut(sizes, len(ranked[k]))]
    rows = []
    for k, size in tqdm(plan, "Circuits", disable=not progress):
        circuit = ablator.circuit(ranked[k].head(size))
        if errors == "keep":
            circuit = {name: Nodes(nodes.latents, torch.ones_like(nodes.error))
                       for name, nodes in circuit.items()}  # fmt: skip
        inside, outside = ablator(k, circuit), ablator(k, complement(circuit))
        means = LogitMeans(inside, outside, of_model, of_nothing)
        rows.append(
            {
                **named[k],
                "nodes": size,
                **{name: figure(means) for name, figure in CIRCUIT_METRICS.items()},
                **{f"metric_{of}": mean for of, mean in means._asdict().items()},
            }
        )
    return pd.DataFrame(rows)


def _model_and_nothing(ablator: Ablator, k: Budget) -> tuple[float, float]:
    """m(M) and m(∅)."""
    of_model, of_nothing = ablator(k), ablator(k, ablator.empty_circuit())
    if abs(of_model - of_nothing) < 1e-3 * max(abs(of_model), abs(of_nothing)):
        raise ValueError(
            f"Replacing everything leaves the metric at {of_nothing:.3g} of {of_model:.3g}: there "
            "is nothing at these sites to explain."
        )
    return of_model, of_nothing


def check_circuit_sizes(sizes: Sequence[int]) -> None:
    """Raises ValueError unless sizes ascend from 0 or more."""
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 0:
        raise ValueError(
            f"sizes must be ascending, not negative and without repeats, got {list(sizes)}."
        )


def check_area(
    attributions: Sequence[Attribution], sizes: Sequence[int], errors: ErrorNodes = "remove"
) -> None:
    """Raises ValueError if so few nodes contribute that :func:`areas` would have no two sizes."""
    most = [len(nodes) for one in attributions for nodes in _ranked(one, errors).values()]
    if len({size for n in most for size in _cut(sizes, n)} - {0}) < 2:
        raise ValueError(
            f"A curve needs circuits of two sizes above 0. {max(most)} nodes contribute, and the "
            f"sizes asked for are {list(sizes)}."
        )


def _ranked(
    attribution: Attribution, errors: ErrorNodes, by_position: bool = True
) -> dict[Budget, pd.DataFrame]:
    """Each budget's nodes, the first to be put into a circuit first."""
    ranked = {k: attribution.nodes(k, by_position) for k in attribution.budgets}
    if errors == "default":
        return ranked
    return {k: nodes[nodes["latent"] != ERROR] for k, nodes in ranked.items()}


def _cut(sizes: Sequence[int], most: int) -> list[int]:
    return sorted({min(size, most) for size in sizes})


def _check_fits(attribution: Attribution, ablator: Ablator, by_position: bool) -> None:
    ours = {(site.hook_name, site.d_sae) for site in ablator.sites}
    theirs = {(name, site.d_sae) for name, site in attribution.sites.items()}
    if ours != theirs:
        raise ValueError(f"The attribution is of {sorted(theirs)} (hook, latents), the SAEs of "
                         f"{sorted(ours)}.")  # fmt: skip
    contexts = {site.terms.shape[1] for site in attribution.sites.values()}
    if by_position and contexts != {ablator.context}:
        raise ValueError(
            f"Nodes at positions need prompts of one length: attributed on {contexts.pop()} "
            f"tokens, judged on {ablator.context}. Or take by_position=False."
        )
