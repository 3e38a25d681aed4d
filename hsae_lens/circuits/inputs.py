"""What ``hsae circuits`` works on: everything that its settings name, opened and checked."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from hsae_lens.circuits.config import (
    FEWEST,
    CircuitsConfig,
    budgets_by_rule,
    check_circuit_settings,
    pairs_of_task,
)
from hsae_lens.circuits.sites import sites_of
from hsae_lens.evaluation.checks import budgets_of
from hsae_lens.evaluation.tasks.builtin import make_task
from hsae_lens.evaluation.tasks.evaluate import check_able
from hsae_lens.evaluation.tasks.pairs import TokenizedTask, tokenize_pairs
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.opening import open_model_of
from hsae_lens.models.tokenizing import sample_tokens
from hsae_lens.objective.budgets import Budget, ErrorTarget, MeanBudget
from hsae_lens.releases.opening import open_sae
from hsae_lens.sae.calibration import calibrate
from hsae_lens.sae.codes import check_budget_of, largest_budget, masked_activations
from hsae_lens.sae.controls import RANDOM_DECODER, neuron_basis, random_decoder
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

logger = logging.getLogger(__name__)

OURS, NEURONS = "the SAE", "neurons"

CALIBRATION_TOKENS = 4096  # of CPython's reference, to calibrate controls with


@dataclass(frozen=True)
class CircuitsInputs:
    """Everything a run needs, opened and checked before time is spent.

    model: without SAEs attached.  accuracy: its share of right answers on all pairs of the task.
    finding, held_out: the pairs that circuits are found on, and those that their curves are drawn
    on; no prompt is in both.  dictionaries: a label's SAEs, one per site in the model's order:
    first :data:`OURS`, the circuit's own, then those to compare them with (from the settings'
    ``beside``, :data:`RANDOM_DECODER`, :data:`NEURONS`). With mean budgets and error targets they
    are there again for each rule, under a label that says so.  budgets: the label's, of one rule
    and ascending; those asked for that its SAEs have.
    """

    model: HookedModel
    accuracy: float
    finding: TokenizedTask
    held_out: TokenizedTask
    dictionaries: dict[str, list[SAE[Any]]]
    budgets: dict[str, list[Budget]]


def open_circuit_inputs(cfg: CircuitsConfig) -> CircuitsInputs:
    """Opens what the settings name.

    Raises:
        ValueError: for settings, SAEs, budgets, tasks and pairs that do not fit, or a task that
            the model cannot do.
    """
    check_circuit_settings(cfg)
    asked = budgets_by_rule(cfg)
    saes = [open_sae(name, cfg.device, "float32") for name in cfg.sae]
    for name, sae in zip(cfg.sae, saes, strict=True):
        budgets_of(sae, [*itertools.chain(*asked.values())], name)
    found = _at_each_rule(OURS, saes, asked)
    controls = {label + how for label in (RANDOM_DECODER, NEURONS) for how in asked}
    for name in cfg.beside:
        if name in {*found, *controls}:
            raise ValueError(f"Two SAEs here would be called {name!r}: give another path.")
        beside = [_open_at_same_hook(name, saes[0], cfg.device), *saes[1:]]
        found |= _at_each_rule(name, beside, asked)
        if name not in found:
            raise ValueError(f"{name} has none of the budgets {cfg.budgets}: its k is smaller.")
    model = open_model_of(saes[0], cfg.model, cfg.device, cfg.dtype)
    found = {
        label: ([site.sae for site in sites_of(some, model)], budgets)
        for label, (some, budgets) in found.items()
    }
    task = open_task(cfg.task, model.tokenizer, cfg.pairs)
    accuracy = check_able(task, model)
    finding, held_out = task.halves()
    logger.info("%s: the model is right on %.0f%% of %d pairs. %d find the circuits, %d others "
                "judge them.", task.name, 100 * accuracy, len(task), len(finding),
                len(held_out))  # fmt: skip
    if cfg.controls:
        for label, control in _controls(found[OURS][0], model, finding, len(asked) > 1).items():
            found |= _at_each_rule(label, control, asked)
    dictionaries = {label: some for label, (some, _) in found.items()}
    of_each = {label: budgets for label, (_, budgets) in found.items()}
    return CircuitsInputs(model, accuracy, finding, held_out, dictionaries, of_each)


def _at_each_rule(
    label: str, saes: list[SAE[Any]], asked: dict[str, list[Budget]]
) -> dict[str, tuple[list[SAE[Any]], list[Budget]]]:
    """SAEs with those of each rule's budgets that they have, if any, by label."""
    within = {label + how: _budgets_within(label, saes, wanted) for how, wanted in asked.items()}
    return {name: (saes, budgets) for name, budgets in within.items() if budgets}


def _budgets_within(label: str, saes: list[SAE[Any]], wanted: list[Budget]) -> list[Budget]:
    """The budgets asked for, of one rule, that SAEs have; logs those they lack."""
    largest = min(largest_budget(sae) for sae in saes)
    lacking = [budget for budget in wanted if _size(budget) > largest]
    if lacking:
        listed = ", ".join(map(str, lacking))
        logger.warning("Left out: %s at the budgets [%s], above its %d.", label, listed, largest)
    within = [budget for budget in wanted if budget not in lacking]
    try:
        for sae, budget in itertools.product(saes, within):
            check_budget_of(sae, budget)
    except ValueError as error:  # a stock SAE, or one that is not calibrated
        logger.warning("Left out: %s at %s. %s", label, ", ".join(map(str, within)), error)
        return []
    return within


def _size(budget: Budget) -> float:
    """How many latents a token uses at a budget, as far as it says."""
    if isinstance(budget, ErrorTarget):
        return 0
    return budget.k if isinstance(budget, MeanBudget) else budget


def _open_at_same_hook(name: str, like: SAE[Any], device: str) -> SAE[Any]:
    """An SAE to compare with another of the same hook."""
    sae = open_sae(name, device, "float32")
    if sae.cfg.metadata.hook_name != like.cfg.metadata.hook_name:
        raise ValueError(
            f"{name} is of {sae.cfg.metadata.hook_name}, not of {like.cfg.metadata.hook_name}."
        )
    return sae


def open_task(name: str, tokenizer: Any, n: int) -> TokenizedTask:
    """``n`` pairs of a named task, or up to ``n`` pairs of a file that are of one length.

    Raises:
        ValueError: for fewer than :data:`FEWEST` pairs, and for what :func:`make_task` and
            :func:`tokenize_pairs` refuse.
    """
    pairs = pairs_of_task(name, n)
    if pairs is None:
        return make_task(name, tokenizer, n)
    return tokenize_pairs(Path(name).stem, pairs, tokenizer, min(n, len(pairs)), FEWEST)


def _controls(
    saes: list[SAE[Any]], model: HookedModel, task: TokenizedTask, calibrated: bool
) -> dict[str, list[SAE[Any]]]:
    """A random decoder and the model's neurons for each site, if all SAEs are hierarchical.

    The activations of ``task`` set the random decoder's gain and the neurons' centre. Thresholds of
    mean budgets, if asked for, are of text, as the SAEs' own: a task's tokens are few and alike.
    """
    ours = [sae for sae in saes if isinstance(sae, HierarchicalTopKSAE)]
    if len(ours) < len(saes):
        logger.warning("No controls: they are made from hierarchical SAEs.")
        return {}
    random, neurons = [], []
    tokens = torch.cat([task.clean, task.corrupt])
    for sae in ours:
        seen, _ = masked_activations(sae, model, tokens)
        random.append(random_decoder(sae, seen))
        neurons.append(neuron_basis(sae, seen.mean(0)))
        if calibrated:
            context = sae.cfg.metadata.context_size
            text, _ = sample_tokens(None, model.tokenizer, context, CALIBRATION_TOKENS)
            seen, _ = masked_activations(sae, model, text)
            for control in (random[-1], neurons[-1]):
                calibrate(control, seen, progress=False)
    return {RANDOM_DECODER: list(random), NEURONS: list(neurons)}
