"""How good an SAE is at each budget, on each kind of held-out text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE, JumpReLUSAE
from sae_lens.synthetic import SyntheticModel

from hsae_lens.comparison.material import HeldOut, Material
from hsae_lens.comparison.synthetic import truth_at
from hsae_lens.evaluation.frontier.evaluate import activation_sums, evaluate_saes
from hsae_lens.evaluation.frontier.metrics import TokenMetric
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.objective.budgets import Budget, MeanBudget

BOOTSTRAP = 200  # resamples of documents

OF_THE_TRUTH = ("mcc", "mcc_used", "precision", "recall", "f1", "uniqueness")

OF_THE_MODEL = ("ce_score", "kl", "ce_with_sae", "ce_clean", "ce_ablated")


@dataclass(frozen=True)
class Judged:
    """rows: per kind of text and budget (column ``text``).  errors: by kind ``[rows of that kind,
    documents]``, squared errors summed over tokens and d_in."""

    rows: pd.DataFrame
    errors: dict[str, torch.Tensor]


JudgeSAE = Callable[[SAE[Any], Sequence[Budget]], Judged]


def judge_with(
    material: Material,
    model: HookedModel | None = None,
    synthetic: SyntheticModel | None = None,
    metrics: Mapping[str, TokenMetric] | None = None,
) -> JudgeSAE:
    """Judges on all held-out activations; with a language model, its cross-entropy too, with a
    synthetic one, how well its features are found; with ``metrics`` of the user's own, these."""

    def judge(sae: SAE[Any], budgets: Sequence[Budget]) -> Judged:
        tables, errors = [], {}
        for kind, held in material.held.items():
            table, errors[kind] = _on_activations(sae, held, budgets, metrics)
            if model is not None and len(held.tokens):
                table = table.assign(**_on_the_model(sae, model, held, budgets))
            if synthetic is not None:
                table = table.assign(**_on_the_truth(sae, synthetic, held, budgets))
            tables.append(table.assign(text=kind))
        return Judged(pd.concat(tables, ignore_index=True), errors)

    return judge


def _on_activations(
    sae: SAE[Any],
    held: HeldOut,
    budgets: Sequence[Budget],
    metrics: Mapping[str, TokenMetric] | None,
) -> tuple[pd.DataFrame, torch.Tensor]:
    sums = activation_sums(
        sae, held.activations, budgets, bootstrap=BOOTSTRAP, documents=held.documents,
        metrics=metrics, progress=False,
    )  # fmt: skip
    return sums.table(BOOTSTRAP), sums.sums["square_error"]


def _on_the_model(
    sae: SAE[Any], model: HookedModel, held: HeldOut, budgets: Sequence[Budget]
) -> dict[str, Any]:
    table = evaluate_saes({"": sae}, model, held.tokens, budgets, progress=False)
    return {name: table[name].to_list() for name in OF_THE_MODEL}


def _on_the_truth(
    sae: SAE[Any], synthetic: SyntheticModel, held: HeldOut, budgets: Sequence[Budget]
) -> dict[str, Any]:
    # The synthetic model is on the CPU. A stock SAE with a threshold has one mean budget, whatever
    # its number is called.
    asked = [MeanBudget(1)] if isinstance(sae, JumpReLUSAE) else budgets
    table = truth_at(sae.to("cpu"), synthetic, asked, len(held.activations))
    return {name: table[name].to_list() for name in OF_THE_TRUTH}
