"""The ``hsae`` command: its help and its errors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command import hsae, says

from hsae_lens import cli
from hsae_lens._util.unavailable import JudgeUnavailableError
from hsae_lens.cli import main


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


def _fails_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(_: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(cli.releases, "_releases", fail)
    return main(["releases"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "Permission denied: /x/y"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (ValueError("one\n  two"), "one two"),
        (ValueError(), "ValueError"),
        (JudgeUnavailableError("401. Check the key."), "401. Check the key."),
        (MemoryError(), "Out of memory; take fewer tokens, latents or a smaller model."),
        (torch.OutOfMemoryError("GPU"), "Out of memory; take fewer tokens, latents"),
    ],
)
def test_errors_of_input_and_machine_are_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert _fails_with(error, monkeypatch) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"hsae: {said}")
    assert printed.count("\n") == 1


def test_memory_that_is_not_there_is_one_line(monkeypatch: Any, capsys: Any) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert _fails_with(caught.value, monkeypatch) == 1
    assert capsys.readouterr().err.startswith("hsae: Out of memory; ")


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), RuntimeError("x"), IndexError()])
def test_bugs_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        _fails_with(error, monkeypatch)


def test_folders_that_may_not_be_written_are_one_line(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    sae = "smollm2-135m-res-htopk/blocks.15.hook_resid_post"
    assert main(["export", sae, "--k", "2", "--out", str(tmp_path / "file" / "x")]) == 1
    assert capsys.readouterr().err.startswith("hsae: Not a directory: ")
