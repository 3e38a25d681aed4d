"""What ``hsae circuits`` is to do: its settings, and everything they name opened and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from sae_lens import SAE

from hsae_lens.budgets import resolve_budgets
from hsae_lens.circuits.ablation import Replacement
from hsae_lens.circuits.controls import neuron_basis
from hsae_lens.circuits.curve import Errors, check_sizes
from hsae_lens.circuits.sites import sites_of
from hsae_lens.evaluation.downstream import check_able
from hsae_lens.evaluation.judged import Judged
from hsae_lens.evaluation.run import CONTROL, random_control
from hsae_lens.models import activations_at, open_model_of
from hsae_lens.near import near
from hsae_lens.pairs import TokenizedTask, read_pairs, tokenize_pairs
from hsae_lens.sae import HierarchicalTopKSAE, largest_budget
from hsae_lens.saved import open_sae
from hsae_lens.tasks import make_task

OURS, NEURONS = "the SAE", "neurons"
FEWEST = 8  # pairs: with fewer a perfect score could be luck, and half of them find nothing


@dataclass
class CircuitsConfig:
    """What ``hsae circuits`` does; every field is a flag.

    Args:
        sae (list[str]): Folders or RELEASE/SAE_ID, each of another hook: the sites of the circuit.
            At least one.
        beside (list[str]): SAEs of the first one's hook to compare with, a specialist for instance.
        task (str): A task's name, or a CSV, JSONL or parquet file of pairs.
        budgets (str): Comma-separated, ascending.
        pairs (int): Pairs of the task, or at most of the file; half find the circuits, the others
            judge them, and no prompt is in both halves.
        sizes (str): Numbers of nodes to judge circuits of, comma-separated, two at least.
        replace (str): What takes the place of a node: resample, mean or zero.
        errors (str): Error nodes in a circuit: remove, keep, or default (ranked like latents).
        steps (int): Of integrated gradients; 1 is one gradient at the clean prompts.
        controls (bool): Whether to judge a random decoder and the model's own neurons too.
        out (str): Folder for the tables, the pictures and the page.
        model (str | None): What to open. None is what the first SAE says it was trained on.
        device (str): Where to run, "cpu" or "cuda".
    """

    sae: list[str]
    beside: list[str]
    task: str = "agreement"
    budgets: str = "8,32,128"
    pairs: int = 64
    sizes: str = "1,2,4,8,16,32,64,128,256"
    replace: Replacement = "resample"
    errors: Errors = "remove"
    steps: int = 8
    controls: bool = True
    out: str = "runs/circuits"
    model: str | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Plan:
    """Everything a run needs, opened and checked before time is spent.

    dictionaries: SAEs by label, one per site; the circuit's own first, then what they are compared
    with.  budgets: by the same labels.
    """

    model: Any
    accuracy: float
    finding: TokenizedTask
    judging: TokenizedTask
    dictionaries: dict[str, list[SAE[Any]]]
    budgets: dict[str, list[int]]
    sizes: list[int]

    @classmethod
    def of(cls, cfg: CircuitsConfig) -> Plan:
        """Opens what the settings name.

        Raises:
            ValueError: for settings, SAEs, budgets, tasks and pairs that do not fit, or a task that
                the model cannot do.
        """
        sizes = _whole_numbers(cfg.sizes, "sizes")
        check_sizes(sizes)
        if len([size for size in sizes if size > 0]) < 2:
            raise ValueError(f"Two sizes above 0 are needed for a curve, got {sizes}.")
        for value, known in ((cfg.replace, Replacement), (cfg.errors, Errors)):
            if value not in get_args(known):
                raise ValueError(f"Unknown {value!r}.{near(value, get_args(known))}")
        dictionaries = {OURS: [open_sae(name, cfg.device, "float32") for name in cfg.sae]}
        saes, wanted = dictionaries[OURS], _whole_numbers(cfg.budgets, "budgets")
        budgets = {OURS: resolve_budgets(wanted, _largest(saes))}
        for name in cfg.beside:
            dictionaries[name] = [_of_hook(name, saes[0], cfg.device), *saes[1:]]
            budgets[name] = [k for k in wanted if k <= _largest(dictionaries[name])]
            if not budgets[name]:
                raise ValueError(f"{name} has no budget among {wanted}: its k is smaller.")
        model = open_model_of(saes[0], cfg.model, cfg.device)
        saes = dictionaries[OURS] = [site.sae for site in sites_of(saes, model)]
        task = open_task(cfg.task, model.tokenizer, cfg.pairs)
        accuracy = check_able(task, model)
        finding, judging = task.halves()
        print(
            f"{task.name}: the model is right on {accuracy:.0%} of {len(task)} pairs. "
            f"{len(finding)} find the circuits, {len(judging)} others judge them."
        )
        if cfg.controls:
            for label, control in _controls(saes, model, finding).items():
                dictionaries[label], budgets[label] = control, budgets[OURS]
        return cls(model, accuracy, finding, judging, dictionaries, budgets, sizes)


def _whole_numbers(text: str, name: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} are whole numbers with commas, got {text!r}.") from None


def _of_hook(name: str, like: SAE[Any], device: str) -> SAE[Any]:
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
    if n < FEWEST:
        raise ValueError(f"{n} pairs show nothing that guessing could not: {FEWEST} at least.")
    if not Path(name).suffix:
        return make_task(name, tokenizer, n)
    pairs = read_pairs(name)
    return tokenize_pairs(Path(name).stem, pairs, tokenizer, min(n, len(pairs)), FEWEST)


def _controls(saes: list[SAE[Any]], model: Any, task: TokenizedTask) -> dict[str, list[SAE[Any]]]:
    """A random decoder and the model's neurons for each site, if all SAEs are hierarchical."""
    ours = [sae for sae in saes if isinstance(sae, HierarchicalTopKSAE)]
    if len(ours) < len(saes):
        return {}
    random, neurons = [], []
    tokens = torch.cat([task.clean, task.corrupt])
    for sae in ours:
        x = activations_at(model, tokens, [sae.cfg.metadata.hook_name]).popitem()[1].flatten(2)
        seen = x[Judged.by(sae, model)(tokens.to(x.device), x)].float()
        random.append(random_control(sae, seen))
        neurons.append(neuron_basis(sae, seen.mean(0)))
    return {CONTROL: list(random), NEURONS: list(neurons)}


def _largest(saes: Sequence[SAE[Any]]) -> int:
    return min(largest_budget(sae) for sae in saes)
