"""What `hsae circuits` refuses before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hsae_lens.circuits.inputs import open_task
from hsae_lens.cli import main
from hsae_lens.releases.opening import open_sae

SHIPPED = "smollm2-135m-res-htopk/blocks.15.hook_resid_post"


WRONG = {
    "--task agrement": "Did you mean 'agreement'",
    "--task none.csv": "No pairs at none.csv",
    "--pairs -1": "-1 pairs show nothing",
    "--budgets 1,x": "--budgets: whole numbers with commas, as in 1,8,32; got 'x' in '1,x'",
    "--budgets 0,4": "Budgets are whole numbers of at least 1, got [0, 4]",
    "--budgets 8,41": "{sae} cannot be judged so: budgets [41] are outside 1..k=40",
    "--mean-budgets 8,x": "--mean-budgets: numbers with commas, as in 1,8.5,32; got 'x' in '8,x'",
    "--mean-budgets 0,4": "A mean budget must be a number above 0, got 0",
    "--mean-budgets 8": "{sae} cannot be judged so: This SAE has no thresholds for mean budgets",
    "--mean-budgets 41": "{sae} cannot be judged so: A mean budget of 41 is outside 1..40",
    "--error-targets 0": "An error target must be a number above 0, got 0",
    "--error-targets 0.2": "{sae} cannot be judged so: This SAE has no thresholds",
    "--mean-budgets 8 --sae {stock}": "{stock} cannot be judged so: A 'topk' SAE is cut to a fixed",
    "--sizes 1": "two sizes above 0, got [1]",
    "--sizes few": "--sizes: whole numbers with commas",
    "--sizes 1,-4": "--sizes: whole numbers with commas",
    "--steps 0": "1 step at least, got 0",
    "--replace resampl": "Did you mean 'resample'",
    "--errors all": "Known: default, keep, remove",
    "--dtype float99": "Unknown dtype 'float99'",
    "--device banana": "Unknown device 'banana'",
    "--dtype float32 --device cuda:99": "The device 'cuda:99' was asked for",
    "--beside {sae} --beside {sae}": "Two SAEs here would be called",
    "--beside {other}": "is of blocks.0.hook_resid_post, not of blocks.1",
}


def test_a_mistake_is_one_line_before_any_work(
    small_sae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no model at all: who gets as far as opening it has not looked at the flags."""
    sae = open_sae(small_sae)
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    sae.save_model(tmp_path / "other")
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    sae.at_k(40).save_model(tmp_path / "stock")
    names = {"sae": small_sae, "other": tmp_path / "other", "stock": tmp_path / "stock"}
    out = tmp_path / "out"
    for flags, message in WRONG.items():
        arguments = ["circuits", "--model", str(tmp_path), "--budgets", "8"]
        if "--sae" not in flags:
            arguments += ["--sae", small_sae]
        arguments += ["--out", str(out), *flags.format(**names).split(" ")]
        assert main(arguments) == 1, flags
        error = capsys.readouterr().err.strip().split("\n")
        assert message.format(**names) in error[-1], flags
        assert len([line for line in error if line.startswith("hsae:")]) == 1
    assert not out.exists()
    out.write_text("a file")
    assert main(["circuits", "--sae", small_sae, "--out", str(out)]) == 1
    assert f"Cannot write to {out}: Not a directory" in capsys.readouterr().err
    assert out.read_text() == "a file"
    if Path("/proc").is_dir():  # where nobody makes a folder
        assert main(["circuits", "--sae", small_sae, "--out", "/proc/none/out"]) == 1
        assert "Cannot write to /proc/none/out" in capsys.readouterr().err


def test_a_pair_too_few_is_said_with_the_reason(
    tiny_gemma2: Any, tmp_path: Path, pairs_file: Path
) -> None:
    pairs = pd.read_csv(pairs_file)
    few = tmp_path / "few.csv"
    pairs.head(1).to_csv(few, index=False)
    with pytest.raises(ValueError, match=r"few.csv has 1 pair, 8 are needed: half of them"):
        open_task(str(few), tiny_gemma2.tokenizer, 64)
    pairs.assign(wrong=" antidisestablishmentarianism").to_csv(few, index=False)
    with pytest.raises(ValueError, match="several tokens in this tokenizer"):
        open_task(str(few), tiny_gemma2.tokenizer, 64)


def test_a_task_that_the_model_guesses_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "greater-than", "--pairs", "8", "--dtype", "float32"]
    assert main(["circuits", "--sae", SHIPPED, *arguments]) == 1
    assert "guessing might do too" in capsys.readouterr().err
