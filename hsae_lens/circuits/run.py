"""``hsae circuits``: a task's circuit at every budget, in a folder of tables and pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from sae_lens import SAE

from hsae_lens._version import __version__
from hsae_lens.budgets import resolve_budgets
from hsae_lens.circuits.ablation import Replacement
from hsae_lens.circuits.attribution import Attribution, attribute_budgets
from hsae_lens.circuits.controls import neuron_basis
from hsae_lens.circuits.curve import Errors, areas, check_sizes, circuit_curve, nesting
from hsae_lens.circuits.edges import latent_edges
from hsae_lens.circuits.plots import plot_circuit, plot_curves
from hsae_lens.circuits.sites import ERROR, sites_of
from hsae_lens.evaluation.downstream import check_able
from hsae_lens.evaluation.judged import Judged
from hsae_lens.evaluation.latents import describe_latents
from hsae_lens.evaluation.run import CONTROL, by_sae, random_control
from hsae_lens.files import write_csv, write_json
from hsae_lens.models import activations_at, model_name_of, open_model_of
from hsae_lens.near import near
from hsae_lens.pairs import TokenizedTask, read_pairs, tokenize_pairs
from hsae_lens.sae import HierarchicalTopKSAE
from hsae_lens.saved import open_sae
from hsae_lens.tasks import make_task
from hsae_lens.text import sample_tokens

OURS, NEURONS = "the SAE", "neurons"
FEWEST = 8  # pairs: with fewer a perfect score could be luck, and half of them find nothing
SHARE = 0.01  # a node is shown if it contributes at least this much of everything
OUTPUTS = ("nodes.csv", "curve.csv", "areas.csv", "nesting.csv", "edges.csv", "latents.csv",
           "run.json", "curve.png", "graph.png", "circuits.html")  # fmt: skip


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
class Found:
    """What a run found, for its page: tables, and what they are about."""

    facts: dict[str, Any]
    nodes: pd.DataFrame
    curve: pd.DataFrame
    areas: pd.DataFrame
    nesting: pd.DataFrame
    edges: pd.DataFrame | None
    latents: pd.DataFrame


def find_circuits(cfg: CircuitsConfig) -> Found:
    """Finds and judges a task's circuits at every budget and writes them to ``cfg.out``.

    Leaves ``nodes.csv`` (a row per budget and node that contributes a hundredth of everything or
    more), ``curve.csv`` (:func:`circuit_curve`, an ``sae`` column first), ``areas.csv``,
    ``nesting.csv``, ``latents.csv`` (what the latents fire on and promote), ``edges.csv`` with
    several sites, ``curve.png``, ``graph.png`` and ``run.json``.

    Raises:
        ValueError: if the model cannot do the task, before time is spent on it, or for SAEs,
            budgets, tasks and pairs that do not fit.
    """
    started = time.perf_counter()
    plan = _Plan.of(cfg)
    model, finding, judging = plan.model, plan.finding, plan.judging
    found, curves = {}, []
    for label, mine in plan.dictionaries.items():
        print(f"Circuits of {label}.")
        found[label] = attribute_budgets(
            model,
            mine,
            finding.clean,
            finding.metric,
            plan.budgets[label],
            finding.corrupt,
            steps=cfg.steps,
        )
        curve = circuit_curve(
            model,
            mine,
            found[label],
            judging.clean,
            judging.metric,
            judging.corrupt,
            sizes=plan.sizes,
            replace=cfg.replace,
            errors=cfg.errors,
        )
        curves.append(curve.assign(sae=label))
    curve, saes = by_sae(curves), plan.dictionaries[OURS]
    nodes = shown_nodes(found[OURS], finding, model.tokenizer)
    facts = {
        "task": finding.name,
        "model": cfg.model or model_name_of(saes[0]),
        "accuracy": plan.accuracy,
        "finding": len(finding),
        "judging": len(judging),
        "tokens": token_texts(finding, model.tokenizer),
        "answer": [
            model.tokenizer.decode([int(word[0])]) for word in (finding.right, finding.wrong)
        ],
        "settings": asdict(cfg),
        "hsae_lens": __version__,
        "torch": torch.__version__,
    }
    result = Found(
        facts,
        nodes,
        curve,
        areas(curve),
        nesting(found[OURS], SHARE),
        _edges(model, saes, nodes, found[OURS].budgets[0], finding),
        _described(saes, model, nodes),
    )
    facts["seconds"] = round(time.perf_counter() - started)
    _write(result, Path(cfg.out))
    return result


@dataclass(frozen=True)
class _Plan:
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
    def of(cls, cfg: CircuitsConfig) -> _Plan:
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


def shown_nodes(
    attribution: Attribution, task: TokenizedTask, tokenizer: Any, share: float = SHARE
) -> pd.DataFrame:
    """At each budget the nodes that contribute ``share`` of everything or more.

    Returns:
        Columns ``k``, ``site``, ``position``, ``token`` (of the first pair), ``latent`` (-1: the
        error node), ``effect``, ``share`` (of everything) and ``first_k``, the smallest budget at
        which the node is shown.
    """
    tables, texts = [], token_texts(task, tokenizer)
    for k in attribution.budgets:
        nodes = attribution.nodes(k)
        nodes = nodes.assign(k=k, share=nodes["effect"] / nodes["effect"].sum())
        tables.append(nodes[nodes["share"].abs() >= share])
    table = pd.concat(tables, ignore_index=True)
    node = ["site", "position", "latent"]
    table["first_k"] = table.groupby(node)["k"].transform("min")
    table["token"] = [texts[position] for position in table["position"]]
    return table[["k", "site", "position", "token", "latent", "effect", "share", "first_k"]]


def token_texts(task: TokenizedTask, tokenizer: Any) -> list[str]:
    """The first pair's tokens; where its prompts differ, "clean/corrupt"."""
    clean, corrupt = (
        [tokenizer.decode([i]) for i in row[0].tolist()] for row in (task.clean, task.corrupt)
    )
    return [a if a == b else f"{a}/{b.strip()}" for a, b in zip(clean, corrupt, strict=True)]


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
    return min(int(getattr(sae.cfg, "k", sae.cfg.d_sae)) for sae in saes)


def _edges(
    model: Any, saes: list[SAE[Any]], nodes: pd.DataFrame, k: int, task: TokenizedTask
) -> pd.DataFrame | None:
    """Edges of the smallest budget's circuit, which is small enough to draw."""
    if len(saes) < 2:
        return None
    return latent_edges(
        model, saes, nodes[nodes["k"] == k], k, task.clean, task.metric, task.corrupt
    )


def _described(saes: list[SAE[Any]], model: Any, nodes: pd.DataFrame) -> pd.DataFrame:
    """What each shown latent fires on in CPython's reference, and which tokens it promotes."""
    tables = []
    for sae in saes:
        name = sae.cfg.metadata.hook_name
        latents = nodes.loc[(nodes["site"] == name) & (nodes["latent"] != ERROR), "latent"]
        if isinstance(sae, HierarchicalTopKSAE):
            context = sae.cfg.metadata.context_size or 128
            tokens, _ = sample_tokens(None, model.tokenizer, context, 4096)
            table = describe_latents(sae, model, tokens, latents.unique().tolist())
            tables.append(table.assign(site=name))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _write(found: Found, out: Path) -> None:
    for name in OUTPUTS:  # of an earlier run: a folder must not mix them
        (out / name).unlink(missing_ok=True)
    for name in ("nodes", "curve", "areas", "nesting", "edges", "latents"):
        table = getattr(found, name)
        if table is not None:
            write_csv(table, out / f"{name}.csv")
    write_json(found.facts, out / "run.json")
    plot_curves(found.curve, out / "curve.png")
    words = found.facts["tokens"], found.facts["answer"]
    plot_circuit(found.nodes, *words, out / "graph.png", found.edges)
