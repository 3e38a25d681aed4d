"""Random configurations of the training runner, on a tiny Gemma-2, and what a good run leaves."""

from __future__ import annotations

import json
import math
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from helpers import tiny
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LoggingConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)

from fuzzing.inputs import Kind, expect
from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKTrainingSAEConfig
from hsae_lens.models.hooks import hook_activations
from hsae_lens.models.opening import open_model
from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.tokenizing import token_dataset, tokenize
from hsae_lens.releases.opening import open_sae
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner

NAN, INF = float("nan"), float("inf")
ARCHITECTURES = {
    "hierarchical_topk": HierarchicalTopKTrainingSAEConfig,
    "topk": TopKTrainingSAEConfig,
    "batchtopk": BatchTopKTrainingSAEConfig,
    "standard": StandardTrainingSAEConfig,
}
HOOKS = {
    "blocks.1.hook_resid_post": 32,
    "blocks.0.hook_resid_pre": 32,
    "blocks.0.hook_mlp_out": 32,
    "blocks.1.hook_attn_out": 32,
    "blocks.0.mlp.hook_post": 64,
    "blocks.0.attn.hook_z": 32,
    "blocks.0.attn.hook_pattern": 32,
    "blocks.7.hook_resid_post": 32,
    "hook_nonsense": 32,
}
"""Hooks and the width that an SAE needs there; the last ones cannot be trained on."""

SAE_VALUES: dict[str, tuple[Any, ...]] = {
    "d_in": (31, 0),
    "d_sae": (64, 96, 33, 8, 1, 0),
    "k": (1, 2, 4, 64, 65, 0, -1, 2.5, True),
    "budgets": ([1, 2, 8], [8], [1, 4], [4, 2], [], [0, 1], [1, 9], [1.0, 8.0]),
    "budget_weights": ("inverse", "square", "nonsense", [1.0] * 8, [1.0], [0.0] * 8, [NAN]),
    "default_budget": (1, 4, 9, 0),
    "aux_loss_coefficient": (0.0, 1.0, -1.0, NAN),
    "rescale_acts_by_decoder_norm": (True, False),
    "use_sparse_activations": (True, False),
    "apply_b_dec_to_input": (True, False),
    "normalize_activations": ("layer_norm", "constant_norm_rescale", "expected_average_only_in",
                              "covariance_whitening", "nonsense"),
    "reshape_activations": ("hook_z",),
    "dtype": ("bfloat16", "float64", "float16", "float99"),
    "kernel": ("scan", "reference", "native", "nonsense"),
    "b_dec_init": ("mean", "nonsense"),
    "decoder_init_norm": (None, 1.0, 0.0, NAN),
}  # fmt: skip
RUNNER_VALUES: dict[str, tuple[Any, ...]] = {
    "context_size": (16, 31, 33, 2, 1, 0, -1),
    "train_batch_size_tokens": (100, 7, 1, 0, -1, 4096),
    "store_batch_size_prompts": (1, 3, 100, 0),
    "n_batches_in_buffer": (1, 2, 4, 0),
    "training_tokens": (1000, 127, 1, 0, -5),
    "n_batches_for_norm_estimate": (1, 0),
    "seqpos_slice": ((1, None), (0, -1), (None, None, 2), (5, 3), (40, None), (0, 0)),
    "exclude_special_tokens": (True, [0, 1], ["x"]),
    "lr": (0.0, -1.0, NAN, INF, 1e30),
    "lr_scheduler_name": ("cosineannealing", "cosineannealingwarmrestarts", "nonsense"),
    "lr_warm_up_steps": (2, 100, -1),
    "lr_decay_steps": (2, 100, -1),
    "n_restart_cycles": (2, 0),
    "dead_feature_window": (1, 2, 0),
    "feature_sampling_window": (2, 0),
    "n_checkpoints": (1, 2, 10, -1),
    "save_final_checkpoint": (True,),
    "autocast": (True,),
    "autocast_lm": (True,),
    "activations_mixing_fraction": (0.0, 1.0, -1.0, 2.0),
    "dtype": ("bfloat16", "float64", "float99"),
    "device": ("banana", "cuda"),
    "adam_beta1": (0.0, 1.0, 2.0),
    "prefetch_llm_batches": (True, 2, -1),
    "prepend_bos": (False,),
    "disable_concat_sequences": (True,),
    "sequence_separator_token": ("eos", None, "nonsense"),
    "hook_head_index": (0, 5),
    "is_dataset_tokenized": (False,),
    "seed": (0, -1),
}
"""Values to put in place of the good ones below, right and wrong."""

SAELENS_WORDS = ("Buffer size", "mix_fraction", "learning rate", "beta parameter", "scheduler")
"""What SAELens and torch call settings in their refusals."""

SAE_BASE = {"d_sae": 64, "k": 8}
RUNNER_BASE: dict[str, Any] = {
    "model_name": "tiny-gemma2",
    "model_from_pretrained_kwargs": {},
    "context_size": 32,
    "training_tokens": 4 * 128,
    "train_batch_size_tokens": 128,
    "store_batch_size_prompts": 8,
    "n_batches_in_buffer": 8,
    "n_batches_for_norm_estimate": 2,
    "lr": 3e-3,
    "verbose": False,
}
DRAWN = "settings.json"
PLAIN: dict[str, Any] = {
    "architecture": "hierarchical_topk",
    "hook_name": "blocks.1.hook_resid_post",
    "sae": {},
    "runner": {},
}


def _plain(folder: Path) -> None:
    (folder / DRAWN).write_text(json.dumps(PLAIN))


def _choose(rng: random.Random, folder: Path) -> str:
    """Draws a configuration: its hook, its architecture and up to five other settings."""
    hook = rng.choice([*HOOKS, *[next(iter(HOOKS))] * 9])
    architecture = rng.choice([*ARCHITECTURES, *["hierarchical_topk"] * 9])
    drawn: dict[str, Any] = {
        "architecture": architecture,
        "hook_name": hook,
        "sae": {},
        "runner": {},
    }
    if hook.endswith("hook_z") and rng.random() < 0.8:
        drawn["sae"]["reshape_activations"] = "hook_z"
    known = ARCHITECTURES[architecture].__dataclass_fields__
    choices = [("sae", name) for name in SAE_VALUES if name in known]
    choices += [("runner", name) for name in RUNNER_VALUES]
    for part, name in rng.sample(choices, rng.randint(0, 5)):
        values = SAE_VALUES if part == "sae" else RUNNER_VALUES
        drawn[part][name] = rng.choice(values[name])
    (folder / DRAWN).write_text(json.dumps(drawn))
    return json.dumps(drawn)


def _config(drawn: dict[str, Any], scratch: Path) -> Any:
    kind = ARCHITECTURES[drawn["architecture"]]
    base = {"d_in": HOOKS[drawn["hook_name"]], **SAE_BASE}
    known = {n: v for n, v in base.items() if n in kind.__dataclass_fields__}
    runner = {**RUNNER_BASE, **drawn["runner"]}
    if "seqpos_slice" in runner:
        runner["seqpos_slice"] = tuple(runner["seqpos_slice"])
    return LanguageModelSAERunnerConfig(
        sae=kind(**{**known, **drawn["sae"]}),
        hook_name=drawn["hook_name"],
        checkpoint_path=str(scratch / "checkpoints"),
        output_path=str(scratch / "sae"),
        logger=LoggingConfig(log_to_wandb=False),
        **runner,
    )


@cache
def _model() -> Any:
    with TemporaryDirectory() as folder:
        return open_model(tiny.write_gemma2(Path(folder)), dtype="float32")


@cache
def _dataset() -> Any:
    return token_dataset(tokenize(cpython_reference()[:10], _model().tokenizer, 32, progress=False))


def _train(folder: Path, scratch: Path) -> Path:
    cfg = _config(json.loads((folder / DRAWN).read_text()), scratch)
    runner = HierarchicalTopKTrainingRunner(
        cfg, override_dataset=_dataset(), override_model=_model()
    )
    start = runner.sae.W_enc.detach().clone()
    try:
        runner.run()
    except ValueError as error:
        if not torch.equal(start.nan_to_num(), runner.sae.W_enc.detach().nan_to_num()):
            raise AssertionError(f"refused only after training: {error}") from error
        raise
    return scratch / "sae"


@torch.no_grad()
def _check(folder: Path, saved: Path) -> None:
    drawn = json.loads((folder / DRAWN).read_text())
    asked, runner = {**SAE_BASE, **drawn["sae"]}, {**RUNNER_BASE, **drawn["runner"]}
    sae: SAE[Any] = open_sae(saved, dtype="float32")
    for name, weights in sae.named_parameters():
        expect(bool(weights.isfinite().all()), f"{name} is not finite")
    expect(runner["training_tokens"] > 0, "a run without a step was taken")
    tokens = torch.tensor(_dataset()[:4]["tokens"])
    acts = hook_activations(_model(), tokens, drawn["hook_name"]).float()
    output = sae(acts)
    x, x_hat = acts.flatten(0, 1).flatten(1), output.flatten(0, 1).flatten(1)
    unexplained = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    expect(math.isfinite(float(unexplained)), "its explained variance is not finite")
    if drawn["architecture"] != "hierarchical_topk":
        return
    expect(isinstance(sae, HierarchicalTopKSAE), "it is of another architecture")
    k = asked["k"]
    expect(type(sae.cfg.k) is int and sae.cfg.k == k, f"k is {sae.cfg.k}, not {k}")
    budget = asked.get("default_budget", k)
    expect(sae.budget == budget, f"the budget is {sae.budget}, not {budget}")
    with sae.using_budget(k):
        whole = sae(acts)
    prefix = sae.decode_budgets(sae.encode_ordered(acts), [k])[-1]
    expect(torch.allclose(prefix, whole, rtol=1e-4, atol=1e-4), "the prefix at K is not forward's")


RUNS: dict[str, Kind] = {
    "runs": Kind(
        (_plain,),
        _choose,
        _train,
        _check,
        ("hook", "activations", *SAELENS_WORDS, *SAE_VALUES, *RUNNER_VALUES),
        seconds=60,
    )
}
"""The kind whose input is a configuration."""
