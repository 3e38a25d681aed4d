"""`hsae eval`: what it leaves, and that nothing finished is ever deleted."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import training_sae
from helpers.eval_runs import contents, documents
from sae_lens import Transcoder, TranscoderConfig

from hsae_lens.cli import main
from hsae_lens.evaluation.run_folder import RunFolder
from hsae_lens.models.devices import dtype_name, model_dtype


def test_eval_leaves_tables_and_a_picture(run_folder: Path, sae_folder: Path) -> None:
    frontier = pd.read_csv(run_folder / "frontier.csv")
    stock = str(run_folder.parent / "stock")
    assert list(frontier["sae"].unique()) == [str(sae_folder), stock, "random decoder"]
    assert list(frontier["k"]) == [1, 2, 4, 8, 16, 24] * 3
    assert (frontier["explained_variance_se"] > 0).all()
    ours, other = (frontier[frontier["sae"] == name] for name in (str(sae_folder), stock))
    for column in ("explained_variance", "ce_with_sae", "kl", "l0"):  # the same weights
        assert ours[column].to_numpy() == pytest.approx(other[column].to_numpy(), abs=1e-4)
    assert (run_folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    curve = pd.read_csv(run_folder / "curve.csv")
    assert curve["explained_variance"][8] == pytest.approx(
        ours["explained_variance"][ours["k"] == 8].iloc[0], abs=1e-5
    )
    assert set(pd.read_csv(run_folder / "adaptive.csv")["rule"]) == {"mean", "error"}
    stability = pd.read_csv(run_folder / "stability.csv")
    assert (stability["agreement"] > stability["shuffled"]).all()
    assert pd.read_csv(run_folder / "contributions.csv")["latents"][0] > 10
    facts = json.loads((run_folder / "run.json").read_text())
    assert facts["d_sae"] == 96
    stamped = set(facts["definitions"])
    assert stamped >= {file.stem for file in run_folder.glob("*.csv")}, "every table is stamped"


def test_what_cannot_be_compared_is_said(
    sae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training_sae().save_inference_model(tmp_path / "narrow")
    for command, message in (
        (["eval", sae_folder, tmp_path / "narrow"], "not of one hook, so they cannot be compared"),
        (["eval", sae_folder, "--out", tmp_path], "which model it is for; give one with --model"),
        (["report", tmp_path / "nowhere"], "No saved SAE at"),
    ):
        assert main([str(part) for part in command]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--budgets", "1,64", "mine cannot be judged so: budgets [64] are outside 1..k=24."),
        ("--budgets", "1,x", "got 'x' in '1,x'"),
        ("--budgets", "", "whole numbers with commas, as in 1,8,32; got ''"),
        ("--budgets", "0,4", "mine cannot be judged so: budgets [0] are outside 1..k=24."),
        ("--bootstrap", "-3", "bootstrap must be 0 (none) or 2 or more resamples, got -3."),
        ("--bootstrap", "1", "bootstrap must be 0 (none) or 2 or more resamples, got 1."),
        ("--tokens", "0", "tokens must be 1 or more, got 0."),
        ("--examples", "-1", "examples must be 0 or more, got -1."),
        ("--tasks", "-1", "tasks must be 0 or more, got -1."),
        ("--batch-size", "-1", "batch_size must be 0 or more, got -1."),
        ("--dtype", "float99", "Unknown dtype 'float99'."),
        ("--device", "banana", "Unknown device 'banana'"),
        ("--text", "nowhere.txt", "No text at nowhere.txt."),
        ("--text", "", "text is empty"),
        (
            "--metric",
            "miss",
            "A metric is FILE.py:NAME, as in my_metrics.py:largest_miss; got 'miss'",
        ),
        ("--metric", "nowhere.py:miss", "There is no file nowhere.py for the metric"),
        ("--metric", "nowhere.py:mse", "The metric name 'mse' is taken; choose another."),
    ],
)
def test_a_refused_evaluation_leaves_the_folder_as_it_was(
    flag: str,
    value: str,
    message: str,
    finished: Path,
    sae_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(finished)
    # There is no such model: nothing is opened before everything is checked.
    command = ["eval", str(sae_folder), "--out", str(finished), "--model", "nowhere", flag, value]
    assert main(command) == 1
    assert message in capsys.readouterr().err
    assert contents(finished) == before


def test_an_sae_without_a_hook_is_refused_before_its_model_is_opened(
    sae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training_sae().save_inference_model(tmp_path / "lost")
    command = ["eval", str(tmp_path / "lost"), "--out", str(tmp_path / "run"), "--model", "nowhere"]
    assert main(command) == 1
    assert "lost does not say which hook it is for" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_transcoder_is_refused_before_its_model_is_opened(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished)
    transcoder = Transcoder(TranscoderConfig(32, 96, d_out=32, apply_b_dec_to_input=False))
    transcoder.cfg.metadata.hook_name = "blocks.1.hook_mlp_in"
    transcoder.save_model(tmp_path / "transcoder")
    command = ["eval", str(tmp_path / "transcoder"), "--out", str(finished), "--model", "nowhere"]
    assert main(command) == 1
    assert "transcoder is a transcoder: it writes another activation" in capsys.readouterr().err
    assert contents(finished) == before


@pytest.mark.parametrize("passes", [1, 3, 20])  # while opening, judging, and following examples
def test_an_interrupted_evaluation_leaves_the_folder_as_it_was(
    passes: int, finished: Path, sae_folder: Path, gemma2_folder: Path, tmp_path: Path
) -> None:
    calls = 0

    def interrupt(module: Any, *_: Any) -> None:
        nonlocal calls
        calls += type(module).__name__ == "EmbeddingBridge"
        if calls == passes:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does

    handle = torch.nn.modules.module.register_module_forward_hook(interrupt)
    before = contents(finished)
    text = documents(tmp_path / "text.jsonl", 40)
    command = [
        "eval",
        sae_folder,
        "--model",
        gemma2_folder,
        "--text",
        text,
        "--tokens",
        64,
        "--tasks",
        0,
    ]
    try:
        assert main([*map(str, command), "--out", str(finished)]) == 130
    finally:
        handle.remove()
    assert contents(finished) == before


def test_a_new_evaluation_sets_aside_what_belongs_to_the_former(
    finished: Path, sae_folder: Path, gemma2_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    before = contents(finished)
    text = documents(tmp_path / "text.jsonl", 40)
    command = ["eval", sae_folder, "--model", gemma2_folder, "--text", text, "--tokens", 320]
    command += ["--bootstrap", 0, "--tasks", 0, "--examples", 1, "--budgets", "2,8"]
    assert main([*map(str, command), "--out", str(finished)]) == 0
    assert re.search(
        rf"^Wrote {re.escape(str(finished))} in \d+ s\.$", capsys.readouterr().out, re.M
    )
    after = contents(finished)
    assert set(before) <= {name.removeprefix("earlier-1/") for name in after}
    for name in ("interpretation.csv", "probing.csv", "tasks.csv"):
        assert name not in after
        assert after[f"earlier-1/{name}"] == before[name]
    assert after["judge.jsonl"] == before["judge.jsonl"]
    assert list(pd.read_csv(finished / "frontier.csv")["k"]) == [2, 8] * 2
    # What is added later opens the model in the format that was taken.
    settings = RunFolder(finished).config()
    assert settings.dtype == dtype_name(model_dtype("auto"))
    assert settings.budgets == [2, 8]


def test_few_documents_give_no_standard_errors(
    sae_folder: Path, gemma2_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = documents(tmp_path / "text.jsonl", 9, times=20)
    command = ["eval", sae_folder, "--model", gemma2_folder, "--text", text, "--tasks", 0]
    command += ["--tokens", 640, "--examples", 0, "--budgets", 8, "--out", tmp_path / "run"]
    assert main(list(map(str, command))) == 0
    assert "standard errors, which are over documents. The text has 9 here" in caplog.text
    assert "explained_variance_se" not in pd.read_csv(tmp_path / "run" / "frontier.csv")
