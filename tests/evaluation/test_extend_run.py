"""`hsae probe`, `hsae absorb` and `hsae interpret` on a finished evaluation."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers import training_sae
from helpers.eval_runs import contents
from helpers.judge_server import JudgeServer
from sae_lens import SAE

from hsae_lens.cli import main
from hsae_lens.evaluation.extend_run import add_autointerp
from hsae_lens.evaluation.report import write_report


@pytest.mark.parametrize("command", ["probe", "absorb", "interpret", "report"])
def test_half_a_run_is_not_added_to(
    command: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--local", "smollm2-135m"] if command == "interpret" else []
    half, missing = tmp_path / "half", tmp_path / "missing"
    half.mkdir()
    shutil.copy(run_folder / "run.json", half)
    for folder, message in ((half, "no .*frontier.csv"), (missing, "no run.json|No saved SAE")):
        before = sorted(tmp_path.rglob("*"))
        assert main([command, str(folder), *flags]) == 1
        assert re.search(f"{folder}.*{message}|{message}.*{folder}", capsys.readouterr().err)
        assert sorted(tmp_path.rglob("*")) == before
    if command == "report":
        return
    shutil.copy(run_folder / "frontier.csv", half)
    settings = json.loads((run_folder / "run.json").read_text())["settings"]
    wrong = [{"flavour": 1}, {"tokens": "8"}, {"saes": "mine"}, {"saes": [3]}, {"budgets": 8},
             {"metrics": [3]}]  # fmt: skip
    mistyped = [json.dumps({"settings": settings | change}) for change in wrong]
    for damaged in ("{", "{}", "[]", '{"settings": null}', *mistyped):
        (half / "run.json").write_text(damaged)
        assert main([command, str(half), *flags]) == 1
        assert "run.json is damaged or of another version" in capsys.readouterr().err


def test_an_interrupted_judge_leaves_the_former_table(finished: Path) -> None:
    class Tired:
        name = "tired"

        def __call__(self, prompt: str) -> str:
            raise KeyboardInterrupt

    before = contents(finished)
    with pytest.raises(KeyboardInterrupt):
        add_autointerp(finished, Tired(), per_bin=1)
    assert contents(finished) == before


def test_asking_what_it_costs_makes_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "mistyped"
    assert main(["interpret", str(where), "--judge", "m", "--url", "http://localhost/v1"]) == 1
    assert "has no run.json" in capsys.readouterr().err
    assert not where.exists()


@pytest.mark.parametrize(
    "url",
    ["localhost:8000/v1", "api.openai.com/v1", "/v1", "", "ftp://example.org/v1", "https:///v1",
     "http://host:port/v1", "http://[::1/v1", "https://api.openai.com@example.org/v1"],
)  # fmt: skip
def test_an_address_that_is_no_url_is_said_before_anything_is_done(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["interpret", str(tmp_path), "--judge", "m", "--url", url]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"hsae: The judge's address {url!r} is no URL")
    assert error.count("\n") == 1


def test_the_commands_add_to_a_run_and_the_report_shows_it(
    gemma2_folder: Path,
    tmp_path: Path,
    judge_server: JudgeServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, sae = str(tmp_path / "run"), str(tmp_path / "sae")
    training_sae(d_in=32, d_sae=512, k=40).save_inference_model(sae)
    saved = SAE.load_from_disk(sae)
    saved.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    saved.cfg.metadata.context_size = 32
    saved.save_model(sae)
    fast = ["--tokens", "4096", "--tasks", "0", "--bootstrap", "0", "--examples", "0",
            "--budgets", "8", "--dtype", "float32", "--model", str(gemma2_folder)]  # fmt: skip
    assert main(["eval", sae, "--out", run, *fast]) == 0
    ask = ["interpret", run, "--judge", "m", "--url", judge_server.url, "--latents", "2"]
    assert main(ask) == 0
    assert re.search(r"36 prompts, about [\d,]+ tokens. Ask with --yes.", capsys.readouterr().out)
    assert not judge_server.prompts
    assert main([*ask, "--yes"]) == 0
    assert len(judge_server.prompts) == 36
    assert main(ask) == 0
    assert "0 prompts, about 0 tokens." in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "run" / "interpretation.csv")
    assert set(table["sae"]) == {sae, "random decoder"}
    assert {"density", "rank", "enrichment", "token_share", "promotes"} <= set(table.columns)
    assert set(table["ranks"]) == {"1–8", "9–32", "33–40"}
    assert (table["unanswered"] == 0).all()
    stamped = json.loads((tmp_path / "run" / "run.json").read_text())["definitions"]
    assert {"frontier", "interpretation"} <= set(stamped)
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "Can a judge say what latents stand for?" in page
    assert main(["interpret", run]) == 1
    assert "Name a judge" in capsys.readouterr().err
    assert main(["probe", str(tmp_path)]) == 1
    assert "has no run.json" in capsys.readouterr().err
