"""The ``hsae`` command: its help and its errors."""

from __future__ import annotations

import pytest
from helpers.command import hsae, says


def test_help_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    overview = hsae("--help").stdout
    assert "one SAE, every sparsity" in overview
    assert "hsae_lens 0." in says(capsys, "--version")[1]
    for name in ("eval", "probe", "absorb", "interpret", "report", "advise", "circuits", "latents"):
        assert name in overview
        assert "usage: hsae" in says(capsys, name, "--help")[1]
    demo = says(capsys, "demo", "--help")[1]
    for flag in ("--steps", "--layer", "--d-sae", "--k", "--text", "--out"):
        assert flag in demo
    train = says(capsys, "train", "--help")[1]
    assert "--recipe NAME_or_file.yaml" in train
    assert "gemma-2-2b-layer12" in train
    for flag in ("--budgets", "--budget_weights", "--training_tokens", "--wandb_project"):
        assert flag in train


def test_expected_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run = hsae("train", "--recipe", "gemma-2b-layer12", expect=1)
    assert "Did you mean 'gemma-2-2b-layer12'?" in run.stderr
    assert "Traceback" not in run.stderr
    status, _, error = says(capsys, "train", "--budgets", "2,1")
    assert status == 1
    assert "Did you mean [1, 2]?" in error
    status, _, error = says(capsys, "demo", "--text", "/no/such/file.txt")
    assert status == 1
    assert error.strip().endswith("No text at /no/such/file.txt.")
    status, _, error = says(capsys, "train", "--d_sea=1")
    assert status == 1
    assert error.startswith("hsae: unrecognized arguments: --d_sea=1. Did you mean 'd_sae' or")
    assert error.count("\n") == 1
    assert says(capsys, "train", "--b_dec_init", "ones")[0] == 1
    status, _, error = says(capsys, "train", "--recipe")
    assert (status, error) == (1, "hsae: argument --recipe: expected one argument\n")
    status, _, error = says(capsys, "nonsense")
    assert status == 1
    assert error.count("\n") == 1
    assert "invalid choice: 'nonsense'" in error
