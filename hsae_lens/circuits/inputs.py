"""What ``hsae circuits`` works on: everything that its settings name, opened and checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from hsae_lens.circuits.config import FEWEST, CircuitsConfig, check_circuit_settings, pairs_of_task
from hsae_lens.circuits.sites import sites_of
from hsae_lens.evaluation.checks import budgets_of
from hsae_lens.evaluation.tasks.builtin import make_task
from hsae_lens.evaluation.tasks.evaluate import check_able
from hsae_lens.evaluation.tasks.pairs import TokenizedTask, tokenize_pairs
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.opening import open_model_of
from hsae_lens.releases.opening import open_sae
from hsae_lens.sae.codes import largest_budget, masked_activations
from hsae_lens.sae.controls import RANDOM_DECODER, neuron_basis, random_decoder
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

logger = logging.getLogger(__name__)

OURS, NEURONS = "the SAE", "neurons"


@dataclass(frozen=True)
class CircuitsInputs:
    """Everything a run needs, opened and checked before time is spent.

    model: without SAEs attached.  accuracy: its share of right answers on all pairs of the task.
    finding, held_out: the pairs that circuits are found on, and those that their curves are drawn
    on; no prompt is in both.  dictionaries: a label's SAEs, one per site in the model's order:
    first :data:`OURS`, the circuit's own, then those to compare them with (from the settings'
    ``beside``, :data:`RANDOM_DECODER`, :data:`NEURONS`).  budgets: the label's, ascending; those
    asked for that its SAEs have.
    """

    model: HookedModel
    accuracy: float
    finding: TokenizedTask
    held_out: TokenizedTask
    dictionaries: dict[str, list[SAE[Any]]]
    budgets: dict[str, list[int]]


def open_circuit_inputs(cfg: CircuitsConfig) -> CircuitsInputs:
    """Opens what the settings name.

    Raises:
        ValueError: for settings, SAEs, budgets, tasks and pairs that do not fit, or a task that
            the model cannot do.
    """
    check_circuit_settings(cfg)
    saes = [open_sae(name, cfg.device, "float32") for name in cfg.sae]
    for name, sae in zip(cfg.sae, saes, strict=True):
        budgets_of(sae, cfg.budgets, name)
    dictionaries, budgets = {OURS: saes}, {OURS: cfg.budgets}
    for name in cfg.beside:
        if name in (*dictionaries, RANDOM_DECODER, NEURONS):
            raise ValueError(f"Two SAEs here would be called {name!r}: give another path.")
        dictionaries[name] = [_open_at_same_hook(name, saes[0], cfg.device), *saes[1:]]
        budgets[name] = _budgets_within(name, dictionaries[name], cfg.budgets)
        if not budgets[name]:
            raise ValueError(f"{name} has none of the budgets {cfg.budgets}: its k is smaller.")
    model = open_model_of(saes[0], cfg.model, cfg.device, cfg.dtype)
    for label, some in dictionaries.items():
        dictionaries[label] = [site.sae for site in sites_of(some, model)]
    task = open_task(cfg.task, model.tokenizer, cfg.pairs)
    accuracy = check_able(task, model)
    finding, held_out = task.halves()
    logger.info("%s: the model is right on %.0f%% of %d pairs. %d find the circuits, %d others "
                "judge them.", task.name, 100 * accuracy, len(task), len(finding),
                len(held_out))  # fmt: skip
    controls = _controls(dictionaries[OURS], model, finding) if cfg.controls else {}
    for label, control in controls.items():
        if within := _budgets_within(label, control, cfg.budgets):
            dictionaries[label], budgets[label] = control, within
    return CircuitsInputs(model, accuracy, finding, held_out, dictionaries, budgets)


def _budgets_within(label: str, saes: Sequence[SAE[Any]], wanted: list[int]) -> list[int]:
    """The budgets asked for that SAEs to compare with have; logs those they lack."""
    largest = min(largest_budget(sae) for sae in saes)
    if lacking := [k for k in wanted if k > largest]:
        logger.warning("Left out: %s at the budgets %s, above its %d.", label, lacking, largest)
    return [k for k in wanted if k <= largest]


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
    saes: list[SAE[Any]], model: HookedModel, task: TokenizedTask
) -> dict[str, list[SAE[Any]]]:
    """A random decoder and the model's neurons for each site, if all SAEs are hierarchical.

    The activations of ``task`` set the random decoder's gain and the neurons' centre.
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
    return {RANDOM_DECODER: list(random), NEURONS: list(neurons)}
