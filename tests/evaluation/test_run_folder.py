"""Folders of `hsae eval` as they are found: of an earlier version, half finished, damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.eval_runs import make_run, with_order

from hsae_lens._util.columns import DEFINITIONS
from hsae_lens.cli import main
from hsae_lens.evaluation.run import STEPS, STEPS_OF_THE_ORDER
from hsae_lens.evaluation.run_folder import RUN_FACTS, TABLES, RunFolder


def test_runs_of_an_earlier_version_can_be_added_to(run_folder: Path, tmp_path: Path) -> None:
    facts = json.loads((run_folder / "run.json").read_text())
    facts["settings"] |= {"budgets": "1,8"}
    del facts["settings"]["batch_size"]
    (tmp_path / "frontier.csv").write_text("")
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert RunFolder(tmp_path).config().budgets == [1, 8]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run.json", None, "has no run.json.* Run `hsae eval` into it again"),
        ("run.json", "{", "run.json is damaged .*Run `hsae eval`"),
        ("run.json", "[]", "run.json is damaged .*Run `hsae eval`"),
        ("run.json", '{"model": "m"}', "run.json is damaged .*lacks hook.*Run `hsae eval`"),
        ("frontier.csv", None, "has no frontier.csv.* Run `hsae eval` into it again"),
        ("frontier.csv", "", "frontier.csv is no table .*Run `hsae eval`"),
        ("frontier.csv", "sae,k,explained_variance\n", "frontier.csv has no rows.*Run `hsae eval`"),
        ("frontier.csv", "sae,k\na,1\n", "frontier.csv lacks explained_variance.*Run `hsae eval`"),
        ("frontier.csv", "sae,k,explained_variance\na,one,x\n",
         "frontier.csv has words for numbers in k.*Run `hsae eval`"),
        ("frontier.csv", "sae,k,explained_variance\na,1e300,0.5\n",
         "frontier.csv has numbers that cannot be.*Run `hsae eval`"),
        ("frontier.csv", "sae,k,rule,target,explained_variance\na,1,median,1,0.5\n",
         "frontier.csv has a rule that is none of fixed, mean, error.*Run `hsae eval`"),
        ("frontier.csv", "sae,k,rule,target,explained_variance\na,1,,1,0.5\n",
         "frontier.csv has a rule that is none of fixed, mean, error.*Run `hsae eval`"),
        ("frontier.csv", "sae,k,rule,explained_variance\na,1,mean,0.5\n",
         "frontier.csv lacks target.*Run `hsae eval`"),
        ("frontier.csv", "sae,k,rule,target,explained_variance\na,1,mean,,0.5\n",
         "frontier.csv has numbers that cannot be.*Run `hsae eval`"),
        ("frontier.csv", "sae,k,rule,target,l0,explained_variance\na,1,mean,1,-2,0.5\n",
         "frontier.csv has numbers that cannot be.*Run `hsae eval`"),
        ("probing.csv", "sae,dataset,k,rule,target,probe_size,test_auc\na,d,1,x,1,1,0.5\n",
         "probing.csv has a rule that is none of .*Run `hsae probe "),
        ("absorption.csv", "sae,absorption,letters,probe_accuracy,k,rule,target\na,0,24,1,1,x,1\n",
         "absorption.csv has a rule that is none of .*Run `hsae absorb "),
        ("frontier.csv", "sae,k,rule,target,explained_variance\na,8.5,fixed,8.5,0.5\n",
         "frontier.csv has a fixed budget k that is no whole number.*Run `hsae eval`"),
        ("frontier.csv", "sae,k,explained_variance\na,8.5,0.5\n",
         "frontier.csv has a fixed budget k that is no whole number.*Run `hsae eval`"),
        ("curve.csv", "k\n1\n", "curve.csv lacks adds.*Run `hsae eval`"),
        ("probing.csv", "sae,k\na,1\n", "probing.csv lacks dataset.*Run `hsae probe "),
        ("probing.csv", "sae,dataset,k,probe_size,test_auc\na,d,1,,0.5\n",
         "probing.csv has numbers that cannot be.*Run `hsae probe "),
        ("absorption.csv", '"', "absorption.csv is no table .*Run `hsae absorb "),
        ("interpretation.csv", "sae\na\n", "interpretation.csv lacks .*Run `hsae interpret "),
        ("examples.json", "[{}]", "examples.json is damaged .*Run `hsae eval`"),
        ("examples.json", b"\xff\xfe", "examples.json is damaged .*Run `hsae eval`"),
        ("examples.json", "[" * 20_000, "examples.json is damaged .*Run `hsae eval`"),
    ],
)  # fmt: skip
def test_a_half_finished_or_damaged_folder_is_said_with_the_file_and_the_mend(
    name: str, content: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, run = make_run(tmp_path / "whole"), with_order(make_run(tmp_path / "run"))
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "report.html"
    out.write_text("an earlier report")
    assert main(["report", str(whole), str(run), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert re.search(says, error), error
    assert str(run) in error
    assert error.count("\n") == 1
    assert out.read_text() == "an earlier report"


@pytest.mark.parametrize(
    "mean",
    [
        None,
        [],
        {},
        {"lengths": [[1] * 4] * 3},
        {"lengths": [[1] * 4] * 2, "predictions": []},
        {"lengths": [[1] * 4] * 2 + [[1]], "predictions": []},
        {"lengths": [[5, 1, 1, 1]] * 3, "predictions": []},
        {"lengths": [[-1, 1, 1, 1]] * 3, "predictions": []},
        {"lengths": [["1"] * 4] * 3, "predictions": []},
        {"lengths": [[1] * 4] * 3, "predictions": None},
    ],
)
def test_what_examples_say_of_mean_budgets_must_fit(mean: Any, tmp_path: Path) -> None:
    run = with_order(make_run(tmp_path / "run"))
    (example,) = json.loads((run / "examples.json").read_text())
    fits = {"lengths": [[0, 1, 2, 4]] * 3, "predictions": [[[["x", 0.5]]] * 3] * 3}
    (run / "examples.json").write_text(json.dumps([example | {"mean": fits}]))
    assert RunFolder(run).read().examples
    (run / "examples.json").write_text(json.dumps([example | {"mean": mean}]))
    with pytest.raises(ValueError, match="examples.json is damaged .an example's mean budgets"):
        RunFolder(run).read()


def test_settings_of_a_run_with_mean_budgets_come_back(
    mean_run: tuple[Path, Any], run_folder: Path, tmp_path: Path
) -> None:
    cfg = RunFolder(mean_run[0]).config()
    assert (cfg.mean_budgets, cfg.error_targets) == ([2, 8.5, 16], [0.3, 0.9])
    facts = json.loads((run_folder / "run.json").read_text())
    for name in ("mean_budgets", "error_targets"):
        del facts["settings"][name]  # before there were any
    (tmp_path / "frontier.csv").write_text("")
    (tmp_path / "run.json").write_text(json.dumps(facts))
    cfg = RunFolder(tmp_path).config()
    assert (cfg.mean_budgets, cfg.error_targets) == ([], [])
    for name in ("budgets", "mean_budgets", "error_targets"):
        for damaged in (["8"], [True], [None], [[8]]):
            wrong = facts | {"settings": facts["settings"] | {name: damaged}}
            (tmp_path / "run.json").write_text(json.dumps(wrong))
            with pytest.raises(ValueError, match=f"damaged or of another version .{name} has"):
                RunFolder(tmp_path).config()


@pytest.mark.parametrize("name", RUN_FACTS)
def test_every_fact_of_a_run_is_needed(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    del facts[name]
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=f"run.json is damaged .*lacks {name}"):
        RunFolder(run).read()


def test_what_is_no_run_is_said_so_by_whoever_reads_it(tmp_path: Path) -> None:
    for read in (RunFolder(tmp_path).read, RunFolder(tmp_path).config):
        with pytest.raises(FileNotFoundError, match="has no run.json and no frontier.csv, so"):
            read()


def test_a_run_s_files_have_one_list() -> None:
    of_eval = {name for name, table in TABLES.items() if table.command == "eval"}
    assert {*STEPS, *STEPS_OF_THE_ORDER} == {*of_eval, "examples"}
    assert set(TABLES) == set(DEFINITIONS) - {"circuits", "comparison"}, (
        "every table has definitions"
    )
