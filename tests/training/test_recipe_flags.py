"""Recipes: what they may say, and what wins over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command import SMALL, as_flags, hsae
from sae_lens import SAE

from hsae_lens.training.command import parse_train_flags
from hsae_lens.training.recipe_flags import load_recipe, recipe_names


def config(arguments: Sequence[str]) -> Any:
    return parse_train_flags(arguments)[0]


def recipe(folder: Path, text: str) -> list[str]:
    (folder / "mine.yaml").write_text(text)
    return ["--recipe", str(folder / "mine.yaml")]


def test_the_reference_recipe_runs_on_a_tiny_gemma2(
    gemma2_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    assert "gemma-2-2b-layer12" in recipe_names()
    hsae(
        *("train", "--recipe", "gemma-2-2b-layer12"),
        *as_flags({**SMALL, "k": 8} | {"model_name": gemma2_folder, "dataset_path": text_file}),
        *("--checkpoint_path", tmp_path / "checkpoints", "--output_path", tmp_path / "out"),
    )
    sae = SAE.load_from_disk(tmp_path / "out")
    assert (sae.cfg.architecture(), sae.cfg.k, sae.budget) == ("hierarchical_topk", 8, 8)
    assert sae.cfg.metadata.training_architecture_details["b_dec_init"] == "mean"
    assert all(torch.isfinite(p).all() for p in sae.parameters())
    assert list((tmp_path / "checkpoints").rglob("trainer_state.pt"))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_in_the_package_is_read(name: str) -> None:
    assert config(["--recipe", name, "--verbose", "false"]).hook_name


def test_the_reference_recipe_is_the_papers_setting() -> None:
    cfg = config(["--recipe", "gemma-2-2b-layer12"])
    assert (cfg.model_name, cfg.hook_name) == ("google/gemma-2-2b", "blocks.12.hook_resid_post")
    assert (cfg.sae.d_in, cfg.sae.d_sae, cfg.sae.k) == (2304, 65536, 128)
    assert cfg.sae.budgets is None
    assert cfg.sae.budget_weights == "uniform"
    assert cfg.training_tokens == 10**9
    assert "fineweb" in cfg.dataset_path


def test_a_recipe_file_flags_win_and_other_architectures(tmp_path: Path) -> None:
    mine = recipe(tmp_path, "k: 16\nd_sae: 64\nbudgets: [1, 4, 16]\nbudget_weights: [1, 2e-1, 3]")
    cfg = config([*mine, "--lr", "0.5"])
    assert (cfg.sae.k, cfg.sae.budgets, cfg.lr) == (16, [1, 4, 16], 0.5)
    assert cfg.sae.budget_weights == [1, 0.2, 3]
    assert config([*mine, "--budgets", "1,2,16"]).sae.budgets == [1, 2, 16]
    assert config(["--budgets", "all", "-k", "4"]).sae.budgets is None
    assert config(["--architecture", "topk", "-k", "4"]).sae.architecture() == "topk"
    topk = recipe(tmp_path, "architecture: topk\nk: 4")
    assert config(topk).sae.architecture() == "topk"
    assert config([*topk, "--architecture=batchtopk"]).sae.architecture() == "batchtopk"
    for text in ("- 1\n- 2\n", "{}\n", "null\n"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match="flat mapping"):
            load_recipe(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("line", "of", "value"),
    [
        ("output_path: null", "cfg.output_path", None),
        ("checkpoint_path: ~", "cfg.checkpoint_path", None),
        ("checkpoint_path:", "cfg.checkpoint_path", None),
        ("decoder_init_norm: null", "cfg.sae.decoder_init_norm", None),
        ("sequence_separator_token: null", "cfg.sequence_separator_token", None),
        ("budgets: null", "cfg.sae.budgets", None),
        ("lr_end: null\nlr: 1.0", "cfg.lr_end", 0.1),  # what SAELens makes of None
        ("output_path: 'null'", "cfg.output_path", "null"),
        ("seqpos_slice: [2, 30]", "cfg.seqpos_slice", (2, 30)),
        ("seqpos_slice: [2, null]", "cfg.seqpos_slice", (2, None)),
        ("seqpos_slice: [4, -2, 2]", "cfg.seqpos_slice", (4, -2, 2)),
        ("exclude_special_tokens: [0, 2]", "cfg.exclude_special_tokens", [0, 2]),
        ("exclude_special_tokens: true", "cfg.exclude_special_tokens", True),
        ("streaming: false", "cfg.streaming", False),
        ("streaming: no", "cfg.streaming", False),
        ("lr: 1e-3", "cfg.lr", 1e-3),
        ("adam_beta1: .5", "cfg.adam_beta1", 0.5),
        ("training_tokens: 1e9", "cfg.training_tokens", 10**9),
        ("training_tokens: 1.5e3", "cfg.training_tokens", 1500),
        ("training_tokens: 1_000", "cfg.training_tokens", 1000),
        ("hook_head_index: 3", "cfg.hook_head_index", 3),
        ("prefetch_llm_batches: 2", "cfg.prefetch_llm_batches", 2),
        ("run_name: 2026-01-02", "cfg.logger.run_name", "2026-01-02"),
        ("run_name: 12:30", "cfg.logger.run_name", "12:30"),
        ("run_name: no", "cfg.logger.run_name", "no"),
        ("run_name: -x", "cfg.logger.run_name", "-x"),
        ("wandb_id: 0123", "cfg.logger.wandb_id", "0123"),
        ("model_kwargs: {a: 1, b: [x, ~]}", "cfg.model_kwargs", {"a": 1, "b": ["x", None]}),
        ("dtype: bfloat16", "cfg.dtype", "bfloat16"),
        ("sae.dtype: bfloat16", "cfg.sae.dtype", "bfloat16"),
    ],
)  # fmt: skip
def test_a_recipe_says_every_kind_of_value(
    line: str, of: str, value: object, tmp_path: Path
) -> None:
    cfg = config([*recipe(tmp_path, line), "--verbose", "false"])
    assert eval(of, {"cfg": cfg}) == value
    assert type(eval(of, {"cfg": cfg})) is type(value)


def test_the_command_line_wins_over_a_recipes_null_and_lists(tmp_path: Path) -> None:
    mine = recipe(tmp_path, "output_path: null\nseqpos_slice: [2, null]\nmodel_dtype: float16")
    cfg = config([*mine, "--output_path", "x", "--seqpos_slice", "3", "30"])
    assert (cfg.output_path, tuple(cfg.seqpos_slice)) == ("x", (3, 30))
    assert config([*mine, "--seqpos_slice=3"]).seqpos_slice == (3,)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("d_sea: 64", "key 'd_sea' is no flag. Did you mean 'd_sae'"),
        ("logger: {log_to_wandb: true}", "key 'logger' is no flag"),
        ("lr: {peak: 1}", "lr is a mapping"),
        ("lr: [1, 2]", "lr is .* it takes one value"),
        ("budgets: [1, null]", "budgets is .* no such list"),
        ("seqpos_slice: [2, x]", "seqpos_slice is .* whole numbers"),
        ("seqpos_slice: [2, 30, 0]", "step|slice"),
        ("d_sae: null", "d_sae is null, which it cannot be: leave the key out"),
        ("training_tokens: 1.5", "--training_tokens: invalid int value: '1.5'"),
        ("streaming: maybe", "--streaming.*Boolean value expected.*'maybe'"),
        ("architecture: [topk]", "Unknown architecture .'topk'.. Did you mean 'topk'"),
        ("architecture: topq", "Unknown architecture 'topq'. Did you mean 'topk'"),
        ("feature_sampling_window: 0", "--feature_sampling_window and .* must be at least 1"),
        ("context_size: 1" + 308 * "0", "no count huge"),
        ("a: b: c", "mine.yaml cannot be read as YAML: mapping values are not allowed"),
        ("lr: 1\nlr: 2", "mine.yaml cannot be read as YAML: 'lr' is there twice, again in line 2"),
        ("a: " + "[" * 20_000, "mine.yaml cannot be read as YAML: "),
    ],
)
def test_a_wrong_recipe_is_one_line(line: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why) as said:
        config(recipe(tmp_path, line))
    assert "\n" not in str(said.value)
