"""The ``hsae`` command as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from sae_lens import SAE

from hsae_lens.cli import main
from hsae_lens.train_command import load_recipe, parse, recipe_names

HSAE = Path(sys.executable).with_name("hsae")

SMALL = {
    "hook_name": "blocks.1.hook_resid_post",
    "d_in": 32,
    "d_sae": 64,
    "context_size": 32,
    "training_tokens": 1280,
    "train_batch_size_tokens": 128,
    "store_batch_size_prompts": 4,
    "n_batches_in_buffer": 8,
    "n_batches_for_norm_estimate": 2,
    "lr_warm_up_steps": 2,
    "lr_decay_steps": 2,
    "n_checkpoints": 1,
    "device": "cpu",
    "log_to_wandb": "false",
}


def hsae(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    run = subprocess.run([HSAE, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == expect, run.stdout + run.stderr
    return run


Said = tuple[int, str, str]


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command without its process: exit status, output, errors."""

    def run(*arguments: object) -> Said:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # help, and what argparse refuses
            status = int(leaving.code or 0)
        return status, *capsys.readouterr()

    return run


def flags(settings: dict[str, object]) -> list[object]:
    return [part for key, value in settings.items() for part in (f"--{key}", value)]


def test_help_reads_well(says: Callable[..., Said]) -> None:
    overview = hsae("--help").stdout
    assert "one SAE, every sparsity" in overview
    assert "hsae_lens 0." in says("--version")[1]
    for name in ("eval", "probe", "absorb", "interpret", "report", "advise", "circuits", "latents"):
        assert name in overview
        assert "usage: hsae" in says(name, "--help")[1]
    demo = says("demo", "--help")[1]
    for flag in ("--steps", "--layer", "--d-sae", "--k", "--text", "--out"):
        assert flag in demo
    train = says("train", "--help")[1]
    assert "--recipe NAME_or_file.yaml" in train
    assert "gemma-2-2b-layer12" in train
    for flag in ("--budgets", "--budget_weights", "--training_tokens", "--wandb_project"):
        assert flag in train


def test_the_reference_recipe_runs_on_a_tiny_gemma2(
    gemma2_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    assert "gemma-2-2b-layer12" in recipe_names()
    hsae(
        *("train", "--recipe", "gemma-2-2b-layer12"),
        *flags({**SMALL, "k": 8} | {"model_name": gemma2_folder, "dataset_path": text_file}),
        *("--checkpoint_path", tmp_path / "checkpoints", "--output_path", tmp_path / "out"),
    )
    sae = SAE.load_from_disk(tmp_path / "out")
    assert (sae.cfg.architecture(), sae.cfg.k, sae.k) == ("hierarchical_topk", 8, 8)
    assert sae.cfg.metadata.training_architecture_details["b_dec_init"] == "mean"
    assert all(torch.isfinite(p).all() for p in sae.parameters())
    assert list((tmp_path / "checkpoints").rglob("trainer_state.pt"))


def test_the_reference_recipe_is_the_papers_setting() -> None:
    cfg = parse(["--recipe", "gemma-2-2b-layer12"])
    assert (cfg.model_name, cfg.hook_name) == ("google/gemma-2-2b", "blocks.12.hook_resid_post")
    assert (cfg.sae.d_in, cfg.sae.d_sae, cfg.sae.k) == (2304, 65536, 128)
    assert cfg.sae.budgets is None
    assert cfg.sae.budget_weights == "uniform"
    assert cfg.training_tokens == 10**9
    assert "fineweb" in cfg.dataset_path


def test_a_recipe_file_flags_win_and_other_architectures(tmp_path: Path) -> None:
    recipe = {"k": 16, "d_sae": 64, "budgets": [1, 4, 16], "budget_weights": [1, 2, 3], "lr": 1e-3}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe | {"seqpos_slice": [2, 30]}))
    cfg = parse(["--recipe", str(tmp_path / "mine.yaml"), "--lr", "0.5"])
    assert (cfg.sae.k, cfg.sae.budgets, cfg.lr) == (16, [1, 4, 16], 0.5)
    assert cfg.sae.budget_weights == [1, 2, 3]
    assert tuple(cfg.seqpos_slice) == (2, 30)
    assert parse(["--budgets", "all", "-k", "4"]).sae.budgets is None
    assert parse(["--architecture", "topk", "-k", "4"]).sae.architecture() == "topk"
    (tmp_path / "bad.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match="flat mapping"):
        load_recipe(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_train_reads_local_data(
    kind: str, gemma2_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    rows = pd.DataFrame({"text": text_file.read_text().split("\n\n")})
    data = tmp_path / "data"
    data.mkdir()
    path = data / ("rows.parquet" if kind == "parquet" else "rows.jsonl")
    if kind == "parquet":
        rows.to_parquet(path)
    else:
        path.write_text("\n".join(json.dumps(r) for r in rows.to_dict("records")))
    hsae(
        *("train", *flags({**SMALL, "is_dataset_tokenized": "false", "k": 4})),
        *("--model_name", gemma2_folder, "--dataset_path", data if kind == "folder" else path),
        *("--checkpoint_path", tmp_path / "c", "--output_path", tmp_path / "out"),
    )
    assert SAE.load_from_disk(tmp_path / "out").cfg.k == 4


def test_the_demo_leaves_what_it_says(gemma2_folder: Path, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    run = hsae(
        *("demo", "--model", gemma2_folder, "--text", text_file, "--out", out, "--layer", 1),
        *("--steps", 6, "--d-sae", 64, "--k", 8, "--eval-tokens", 1024),
    )
    table = pd.read_csv(out / "frontier.csv")
    assert list(table.columns) == ["sae", "k", "l0", "explained_variance", "mse", "ce_score"]
    assert list(table["k"]) == [1, 2, 4, 8] * 2
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert (
        SAE.load_from_disk(out / "sae").cfg.metadata.training_architecture_details["budgets"]
        is None
    )
    assert SAE.load_from_disk(out / "control").cfg.architecture() == "hierarchical_topk"
    assert not (out / "activations").exists()
    for line in ("hierarchical", "frontier.csv", "frontier.png", "Took"):
        assert line in run.stdout


def test_expected_errors_are_one_line(says: Callable[..., Said]) -> None:
    run = hsae("train", "--recipe", "gemma-2b-layer12", expect=1)
    assert "Did you mean 'gemma-2-2b-layer12'?" in run.stderr
    assert "Traceback" not in run.stderr
    status, _, error = says("train", "--budgets", "2,1")
    assert status == 1
    assert "Did you mean [1, 2]?" in error
    status, _, error = says("demo", "--text", "/no/such/file.txt")
    assert status == 1
    assert error.strip().endswith("No text at /no/such/file.txt.")
    assert says("train", "--nonsense", 1)[0] == 2
    assert says("nonsense")[0] == 2
