"""`hsae eval` with mean budgets and error targets: tables, pages, and what it refuses."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from helpers.command import says
from helpers.eval_runs import documents, make_run, mixed_frontier, run_with_rules, with_order

from hsae_lens._util.tables import read_csv
from hsae_lens.evaluation.config import EvalConfig
from hsae_lens.evaluation.frontier.adaptive import beside_fixed
from hsae_lens.evaluation.inputs import open_inputs
from hsae_lens.evaluation.report import write_report
from hsae_lens.objective.budgets import ErrorTarget, MeanBudget
from hsae_lens.sae.controls import RANDOM_DECODER

DATASET = "119_us_state_TX"  # the smallest

Run = tuple[Path, CompletedProcess[str]]


def page_of(run: Path) -> str:
    return write_report([run], run.parent / "report.html").read_text()


def cells(html: str) -> list[list[str]]:
    """The rows of the tables in it."""
    rows = re.findall("<tr>(.*?)</tr>", html, re.S)
    return [found for row in rows if (found := re.findall("<td>(.*?)</td>", row))]


def test_the_command_judges_an_sae_at_budgets_of_every_rule(
    mean_run: Run, calibrated_folder: Path
) -> None:
    folder, said = mean_run
    names = [str(calibrated_folder), str(folder.parent / "stock"), RANDOM_DECODER]
    for name, first in (("frontier", "sae k rule target"), ("tasks", "sae task k rule target")):
        table = read_csv(folder / f"{name}.csv")
        assert table.columns.tolist()[: len(first.split())] == first.split()
        rows = table if name == "frontier" else table[table["task"] == table["task"].iloc[0]]
        asked = {
            sae: list(zip(r["rule"], r["target"], strict=True)) for sae, r in rows.groupby("sae")
        }
        fixed = [("fixed", k) for k in (1, 2, 4, 8, 16, 24)]
        others = [("mean", 2), ("mean", 8.5), ("mean", 16), ("error", 0.3), ("error", 0.9)]
        assert asked == {
            names[0]: fixed + others, names[1]: fixed, names[2]: fixed + others,
        }, "a stock SAE is judged at fixed budgets"  # fmt: skip
    frontier = read_csv(folder / "frontier.csv").set_index(["sae", "rule", "target"])
    for sae in (names[0], names[2]):  # the control is calibrated too
        assert frontier["l0"][sae, "mean", 8.5] == pytest.approx(8.5, rel=0.15)
    assert frontier["k"][names[0], "error", 0.3] == 24
    assert f"Left out: mean budgets and error targets of {names[1]}, a stock SAE." in said.stderr
    printed = {tuple(line.split()[1:4]) for line in said.stdout.splitlines() if line.split()}
    assert {("k", "rule", "target"), ("8", "fixed", "8"), ("8.5", "mean", "8.5"),
            ("24", "error", "0.3")} <= printed  # fmt: skip
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_them_has_no_rules(run_folder: Path) -> None:
    assert "rule" not in read_csv(run_folder / "frontier.csv")
    assert "rule" not in read_csv(run_folder / "tasks.csv")
    page = page_of(run_folder)
    assert ", on average" not in page
    assert "Broken lines" not in page
    assert "own thresholds" not in page


@pytest.mark.parametrize("flag", ["--mean-budgets", "--error-targets"])
def test_an_sae_without_thresholds_is_refused_before_its_model_is_opened(
    flag: str, sae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", sae_folder, "--model", "nowhere", flag, 0.5 if "error" in flag else 2]
    status, _, error = says(capsys, *command, "--out", tmp_path / "run")
    assert status == 1
    assert "cannot be judged so: This SAE has no thresholds for mean budgets" in error
    assert "hsae_lens.calibrate(sae, activations), or `hsae calibrate PATH`." in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--mean-budgets", "25", "A mean budget of 25 is outside 1..24"),
        ("--mean-budgets", "0.5", "A mean budget of 0.5 is outside 1..24"),
        ("--mean-budgets", "0", "A mean budget must be a number above 0"),
        ("--error-targets", "0,0.5", "An error target must be a number above 0"),
        ("--error-targets", "x", "got 'x' in 'x'"),
    ],
)
def test_budgets_that_cannot_be_are_refused_before_the_model_is_opened(
    flag: str,
    value: str,
    message: str,
    calibrated_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["eval", calibrated_folder, "--model", "nowhere", flag, value]
    status, _, error = says(capsys, *command, "--out", tmp_path / "run")
    assert (status, message in error) == (1, True), error
    assert not (tmp_path / "run").exists()


def test_the_control_has_thresholds_of_its_own(
    calibrated_folder: Path,
    gemma2_folder: Path,
    mean_run: Run,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stock = str(mean_run[0].parent / "stock")
    settings: dict[str, Any] = {"model": str(gemma2_folder), "tokens": 2048,
                                "text": str(documents(tmp_path / "text.jsonl", 400))}  # fmt: skip
    cfg = EvalConfig([str(calibrated_folder), stock], mean_budgets=[4], error_targets=[0.5],
                     budgets=[8], **settings)  # fmt: skip
    with caplog.at_level(logging.WARNING):
        opened = open_inputs(cfg)
    assert caplog.text.count("Left out: mean budgets and error targets of") == 1
    mine, control = opened.first, opened.saes[RANDOM_DECODER]
    assert control.calibration.thresholds != mine.calibration.thresholds
    every = [8, MeanBudget(4), ErrorTarget(0.5)]
    assert opened.budgets == {opened.about: every, stock: [8], RANDOM_DECODER: every}
    with control.using_budget(MeanBudget(4)):
        used = (control.encode(opened.activations) != 0).sum(-1).float().mean().item()
    assert used == pytest.approx(4, rel=0.1)
    cfg.mean_budgets, cfg.error_targets = [], []
    assert open_inputs(cfg).saes[RANDOM_DECODER].cfg.calibration is None


def test_a_fixed_budget_of_as_many_latents_is_interpolated() -> None:
    table = mixed_frontier("mine", l0=[1, 2, 4, 2, 2**1.5])
    beside = beside_fixed(table).set_index("rule")
    assert beside["fixed explained_variance"]["mean"] == 0.5
    assert beside["fixed ce_score"]["error"] == pytest.approx(0.85), "half way between 2 and 4"
    outside = beside_fixed(mixed_frontier("mine", l0=[1, 2, 4, 0.9, 4.1]))
    assert outside["fixed ce_score"].isna().all(), "nothing is made up outside the table"
    assert beside_fixed(table.drop(columns="l0"))["fixed ce_score"].isna().all()
    assert beside_fixed(table.drop(columns=["rule", "target"])).empty


def test_the_report_of_a_run_with_every_rule(tmp_path: Path) -> None:
    run = with_order(make_run(tmp_path / "run"))
    before = page_of(run)
    page = page_of(run_with_rules(run))
    for line in before.split("<h1>")[1].split("</ul>")[0].split("<li>"):
        if "<b>Beside others.</b>" not in line:
            assert line in page, "advice and costs are of fixed budgets, as they were"
    assert (
        "2 latents per token on average (here 2.0), more for hard tokens, give 55.0% explained and "
        "87.0% of predictions kept; as many for each token give 50.0% and 80.0%."
    ) in page
    assert (
        "this SAE 60% and 90%, random decoder (has learnt nothing) 60% and 90%, stock 60%" in page
    )
    for label in ("mine, on average", "mine, by error", "random decoder, on average"):
        assert label in page
    assert "stock, on average" not in page
    assert "Broken lines are budgets on average and dotted ones error targets, at the" in page
    section = page.split("Different budgets for different tokens</h2>")[1].split("<h2>")[0]
    assert "With the SAE’s own thresholds, which were calibrated before this run" in section
    assert "taken from the judged text itself" not in section, "there is no such table"
    assert "mean latents per token (l0)" in section
    shown = [row[:4] for row in cells(section)]
    assert shown == [["mean", "2", "2.000", "0.550"], ["error", "0.3", "3.500", "0.580"]]
    quality = page.split("Quality at every budget</h2>")[1].split("<h2>")[0]
    assert "asked for (target)" in quality
    assert [row[3] for row in cells(quality)][:5] == ["1", "2", "4", "2", "0.3"]


def test_no_gain_is_said_where_no_fixed_budget_is_as_large(tmp_path: Path) -> None:
    run = run_with_rules(make_run(tmp_path / "run"), l0=[1, 2, 4, 9, 8])
    assert "Budgets on average" not in page_of(run)
    run = run_with_rules(make_run(tmp_path / "bad"), explained_variance=-0.3, ce_score=-1.0)
    assert "2 latents per token on average" in page_of(run), "without advice the middle is taken"
    table = read_csv(run / "frontier.csv").drop(columns="l0")
    table.to_csv(run / "frontier.csv", index=False)
    page = page_of(run)
    assert "Broken lines are budgets on average." in page
    assert "by error" not in page.split("<h2>Different")[0].split("</svg>")[0]


def test_the_report_of_the_small_run_tells_both_kinds_of_thresholds(mean_run: Run) -> None:
    page = page_of(mean_run[0])
    section = page.split("Different budgets for different tokens</h2>")[1].split("<h2>")[0]
    own, of_text = section.split("taken from the judged text itself")
    assert "calibrated before this run" in own
    frontier = read_csv(mean_run[0] / "frontier.csv")
    mine = frontier[(frontier["sae"] == frontier["sae"][0]) & (frontier["rule"] != "fixed")]
    assert [row[1] for row in cells(own)] == ["2", "8.5", "16", "0.3", "0.9"]
    assert [row[2] for row in cells(own)] == [f"{l0:.3f}" for l0 in mine["l0"]]
    assert "one threshold for all tokens" in of_text
    settings = page.split("Settings: <code>")[1].split("</code>")[0]
    assert "mean_budgets&quot;: [2, 8.5, 16]" in settings


def test_examples_say_how_many_latents_each_token_takes(mean_run: Run) -> None:
    examples = json.loads((mean_run[0] / "examples.json").read_text())
    counts = [n for e in examples for of_token in e["mean"]["lengths"] for n in of_token[-1:]]
    assert max(counts) > 24, "a mean budget has no cap"
    assert len(set(counts)) > 5


def test_probing_of_a_run_is_at_its_budgets_of_every_rule(
    calibrated_folder: Path,
    gemma2_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sae_probes")
    text, run = documents(tmp_path / "text.jsonl", 400), tmp_path / "run"
    command = ["eval", calibrated_folder, "--model", gemma2_folder, "--text", text, "--out", run]
    command += ["--tokens", 1024, "--bootstrap", 0, "--tasks", 0, "--examples", 0, "--budgets", 8]
    assert says(capsys, *command, "--mean-budgets", 8, "--error-targets", 0.5)[0] == 0
    status, printed, error = says(capsys, "probe", run, "--datasets", DATASET)
    assert status == 0, error
    table = read_csv(run / "probing.csv")
    asked = table[["sae", "k", "rule", "target"]].drop_duplicates().to_numpy().tolist()
    each = [[8, "fixed", 8], [8, "mean", 8], [24, "error", 0.5]]
    assert asked == [
        [sae, *row] for sae in (str(calibrated_folder), RANDOM_DECODER) for row in each
    ]
    shown = [line.split()[-5:-3] for line in printed.splitlines()]
    assert [row for row in shown if "mean" in row] == [["mean", "8"]] * 2
    assert [row for row in shown if "error" in row] == [["error", "0.5"]] * 2
    page = page_of(run)
    assert "calibrated, on average" in page.split("Labels that few latents hold</h2>")[1]
