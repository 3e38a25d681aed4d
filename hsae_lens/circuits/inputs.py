"""What ``hsae circuits`` is to do: its settings, and everything they name opened and checked."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from sae_lens import SAE

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens.circuits.curve import ErrorNodes, check_circuit_sizes
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.circuits.sites import sites_of
from hsae_lens.evaluation.tasks.builtin import make_task, task_name
from hsae_lens.evaluation.tasks.evaluate import check_able
from hsae_lens.evaluation.tasks.pairs import Pair, TokenizedTask, read_pairs, tokenize_pairs
from hsae_lens.models.devices import model_device, model_dtype
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import activations_at
from hsae_lens.models.opening import open_model_of
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.objective.budgets import resolve_budgets
from hsae_lens.releases.opening import open_sae
from hsae_lens.sae.codes import largest_budget
from hsae_lens.sae.controls import RANDOM_DECODER, neuron_basis, random_decoder
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

logger = logging.getLogger(__name__)

OURS, NEURONS = "the SAE", "neurons"

FEWEST = 8  # pairs: with fewer a perfect score could be luck, and half of them find nothing


@dataclass
class CircuitsConfig:
    """What ``hsae circuits`` does; every field is a flag."""

    sae: list[str]
    """A folder with a saved SAE, or RELEASE/SAE_ID; again for a further site. Each is of another
    hook."""
    beside: list[str] = field(default_factory=list)
    """An SAE of the first one's hook to compare with, a specialist for instance; again for more."""
    task: str = "agreement"
    """A task's name, or a CSV, JSONL or parquet file of pairs."""
    budgets: list[int] = field(default_factory=lambda: [8, 32, 128])
    """The budgets to find circuits at, ascending."""
    pairs: int = 64
    """Pairs of the task, or at most of the file; half find the circuits, the others judge them, and
    no prompt is in both halves."""
    sizes: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 128, 256])
    """Numbers of nodes to judge circuits of, ascending, two above 0 at least."""
    replace: Replacement = "resample"
    """What takes the place of a node: resample, mean or zero."""
    errors: ErrorNodes = "remove"
    """Error nodes in a circuit: remove, keep, or default (ranked like latents)."""
    steps: int = 8
    """Of integrated gradients; 1 is one gradient at the clean prompts."""
    controls: bool = True
    """Whether to judge a random decoder and the model's own neurons too."""
    out: str = "runs/circuits"
    """Folder for the tables, the pictures and the page."""
    model: str | None = None
    """What to open: a hub name, a local folder, or smollm2-135m. None is what the first SAE says it
    was trained on."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1 or mps."""
    dtype: str = "auto"
    """Of the language model: float32, bfloat16, float16, or auto, which is bfloat16 where that is
    faster than float32."""


@dataclass(frozen=True)
class CircuitsPlan:
    """Everything a run needs, opened and checked before time is spent.

    finding, held_out: the pairs that find the circuits, and those that judge them.
    dictionaries: SAEs by label, one per site; the circuit's own first, then what they are compared
    with.  budgets: by the same labels.
    """

    model: HookedModel
    accuracy: float
    finding: TokenizedTask
    held_out: TokenizedTask
    dictionaries: dict[str, list[SAE[Any]]]
    budgets: dict[str, list[int]]


def open_plan(cfg: CircuitsConfig) -> CircuitsPlan:
    """Opens what the settings name.

    Raises:
        ValueError: for settings, SAEs, budgets, tasks and pairs that do not fit, or a task that
            the model cannot do.
    """
    check_circuit_settings(cfg)
    wanted = cfg.budgets
    saes = [_open_with_budgets(name, wanted, cfg.device) for name in cfg.sae]
    dictionaries, budgets = {OURS: saes}, {OURS: wanted}
    for name in cfg.beside:
        if name in (*dictionaries, RANDOM_DECODER, NEURONS):
            raise ValueError(f"Two SAEs here would be called {name!r}: give another path.")
        dictionaries[name] = [_open_at_same_hook(name, saes[0], cfg.device), *saes[1:]]
        budgets[name] = _budgets_within(name, dictionaries[name], wanted)
        if not budgets[name]:
            raise ValueError(f"{name} has none of the budgets {wanted}: its k is smaller.")
    model = open_model_of(saes[0], cfg.model, cfg.device, cfg.dtype)
    saes = dictionaries[OURS] = [site.sae for site in sites_of(saes, model)]
    task = open_task(cfg.task, model.tokenizer, cfg.pairs)
    accuracy = check_able(task, model)
    finding, held_out = task.halves()
    logger.info("%s: the model is right on %.0f%% of %d pairs. %d find the circuits, %d others "
                "judge them.", task.name, 100 * accuracy, len(task), len(finding),
                len(held_out))  # fmt: skip
    for label, control in _controls(saes, model, finding).items() if cfg.controls else ():
        if within := _budgets_within(label, control, wanted):
            dictionaries[label], budgets[label] = control, within
    return CircuitsPlan(model, accuracy, finding, held_out, dictionaries, budgets)


def check_circuit_settings(cfg: CircuitsConfig) -> None:
    """Raises ValueError for what can be seen to be wrong before anything is opened."""
    if not cfg.sae:
        raise ValueError("Circuits need an SAE: sae is empty.")
    if min(cfg.budgets, default=0) < 1:
        raise ValueError(f"Budgets are whole numbers of at least 1, got {cfg.budgets}.")
    resolve_budgets(cfg.budgets, max(cfg.budgets))
    check_circuit_sizes(cfg.sizes)
    if len([size for size in cfg.sizes if size > 0]) < 2:
        raise ValueError(f"A curve needs two sizes above 0, got {cfg.sizes}.")
    for name, known in (("replace", Replacement), ("errors", ErrorNodes)):
        value = getattr(cfg, name)
        if value not in get_args(known):
            raise ValueError(f"Unknown {name} {value!r}.{did_you_mean(value, get_args(known))}")
    if cfg.steps < 1:
        raise ValueError(f"Integrated gradients need 1 step at least, got {cfg.steps}.")
    model_device(cfg.device)
    model_dtype(cfg.dtype, cfg.device)
    _pairs_of(cfg.task, cfg.pairs)
    _check_writable(Path(cfg.out))


def _check_writable(out: Path) -> None:
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".writing-"):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write to {out}: {error.strerror} ({there}).") from error


def _open_with_budgets(name: str, wanted: list[int], device: str) -> SAE[Any]:
    sae = open_sae(name, device, "float32")
    largest = largest_budget(sae)
    if above := [k for k in wanted if k > largest]:
        raise ValueError(f"The budgets {above} are outside 1..k={largest} of {name}.")
    return sae


def _budgets_within(label: str, saes: Sequence[SAE[Any]], wanted: list[int]) -> list[int]:
    """The budgets that SAEs to compare with have too; says which they lack."""
    largest = min(largest_budget(sae) for sae in saes)
    if lacking := [k for k in wanted if k > largest]:
        logger.warning("Left out: %s at the budgets %s, above its %d.", label, lacking, largest)
    return [k for k in wanted if k <= largest]


def _open_at_same_hook(name: str, like: SAE[Any], device: str) -> SAE[Any]:
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
    pairs = _pairs_of(name, n)
    if pairs is None:
        return make_task(name, tokenizer, n)
    return tokenize_pairs(Path(name).stem, pairs, tokenizer, min(n, len(pairs)), FEWEST)


def _pairs_of(name: str, n: int) -> list[Pair] | None:
    """The pairs of a file, None for a task that has a name."""
    if n < FEWEST:
        raise ValueError(f"{n} pairs show nothing that guessing could not: {FEWEST} at least.")
    if not Path(name).suffix:
        task_name(name)
        return None
    pairs = read_pairs(name)
    if len(pairs) < FEWEST:
        raise ValueError(
            f"{name} has {len(pairs)} pair{'s' if len(pairs) > 1 else ''}, {FEWEST} are needed: "
            "half of them find the circuits, the others judge them."
        )
    return pairs


def _controls(
    saes: list[SAE[Any]], model: HookedModel, task: TokenizedTask
) -> dict[str, list[SAE[Any]]]:
    """A random decoder and the model's neurons for each site, if all SAEs are hierarchical."""
    ours = [sae for sae in saes if isinstance(sae, HierarchicalTopKSAE)]
    if len(ours) < len(saes):
        logger.warning("No controls: they are made from hierarchical SAEs.")
        return {}
    random, neurons = [], []
    tokens = torch.cat([task.clean, task.corrupt])
    for sae in ours:
        x = activations_at(model, tokens, [sae.cfg.metadata.hook_name]).popitem()[1].flatten(2)
        seen = x[TokenMask.from_sae(sae, model)(tokens.to(x.device), x)].float()
        random.append(random_decoder(sae, seen))
        neurons.append(neuron_basis(sae, seen.mean(0)))
    return {RANDOM_DECODER: list(random), NEURONS: list(neurons)}
