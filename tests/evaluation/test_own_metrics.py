"""Metrics of one's own: `hsae eval --metric FILE.py:NAME`, its column, its page, its errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_sae
from helpers.command import says
from helpers.eval_runs import documents
from sae_lens import SAE

from hsae_lens._util.tables import read_csv
from hsae_lens.evaluation import EvalConfig, evaluate_activations, run_eval, write_report
from hsae_lens.evaluation.frontier.own_metrics import open_metrics, try_metrics
from hsae_lens.evaluation.run_folder import RunFolder

METRICS = '''
from __future__ import annotations

from dataclasses import dataclass

import torch

@dataclass
class Scale:
    by: float = 2.0

def largest_miss(x, x_hat):
    """Largest error of <one> number.

    More of it.
    """
    return (x - x_hat).abs().amax(-1)

def doubled(x, x_hat):
    return Scale().by * (x - x_hat).abs().amax(-1)

def _hidden(x, x_hat):
    return x[:, 0]

NUMBER = 3
'''


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    file = tmp_path / "my-metrics.py"
    file.write_text(METRICS)
    return file


@pytest.fixture(scope="module")
def own_run(gemma2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two metrics from a file that is gone afterwards."""
    base = tmp_path_factory.mktemp("own")
    training_sae(d_in=32, d_sae=512, k=24).save_inference_model(base / "sae")
    sae = SAE.load_from_disk(base / "sae")
    sae.cfg.metadata.hook_name, sae.cfg.metadata.context_size = "blocks.0.hook_resid_post", 32
    sae.save_model(base / "sae")
    file = base / "my-metrics.py"
    file.write_text(METRICS)
    cfg = EvalConfig([str(base / "sae")], str(base / "run"), model=str(gemma2_folder), tokens=4096,
                     budgets=[2, 8, 24], metrics=[f"{file}:largest_miss", f"{file}:doubled"],
                     bootstrap=20, tasks=0, examples=0)  # fmt: skip
    run_eval(cfg)
    file.unlink()
    return base / "run"


def test_a_metric_is_a_column_with_its_error(own_run: Path) -> None:
    table = read_csv(own_run / "frontier.csv")
    assert (table["largest_miss"] > 0).all()
    assert table["doubled"].to_numpy() == pytest.approx(2 * table["largest_miss"].to_numpy())
    assert table["doubled_se"].to_numpy() == pytest.approx(2 * table["largest_miss_se"].to_numpy())
    facts = json.loads((own_run / "run.json").read_text())
    assert facts["metrics"] == {
        "largest_miss": "Largest error of <one> number",
        "doubled": "doubled",
    }


def test_a_metric_stands_on_the_page_beside_explained_variance(own_run: Path) -> None:
    page = write_report([own_run], own_run / "report.html").read_text()
    table = read_csv(own_run / "frontier.csv").set_index("k")["largest_miss"]
    first = page.split("<table>")[1].split("</table>")[0]
    assert "<th>Largest error of &lt;one&gt; number<small>largest_miss</small></th>" in first
    assert "<th>doubled</th>" in first
    assert f"<td>{table.loc[24].iloc[0]:.3g}</td>" in first
    assert "(largest_miss)" in page.split("Two standard errors")[1].split("</li>")[0]
    quality = page.split("Quality at every budget</h2>")[1].split("<h2>")[0]
    assert "Largest error of &lt;one&gt; number (largest_miss)</th>" in quality
    assert quality.count("<svg") == 4
    assert "largest_miss is of the user’s own, " in page.split("How these figures were made")[1]


def test_a_run_is_read_and_added_to_without_the_file(own_run: Path, capsys: Any) -> None:
    assert RunFolder(own_run).config().metrics[0].endswith("my-metrics.py:largest_miss")
    ask = ["interpret", own_run, "--judge", "m", "--url", "http://localhost/v1", "--latents", 1]
    status, printed, error = says(capsys, *ask)
    assert status == 0, error
    assert "Ask with --yes" in printed


def test_the_command_takes_several_and_prints_them(
    metrics: Path, sae_folder: Path, gemma2_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    text = documents(tmp_path / "text.jsonl", 40)
    command = ["eval", sae_folder, "--model", gemma2_folder, "--text", text, "--tokens", 128]
    command += ["--tasks", 0, "--bootstrap", 0, "--examples", 0, "--budgets", "2,8"]
    given = ["--metric", f"{metrics}:largest_miss", "--metric", f"{metrics}:doubled"]
    status, printed, error = says(capsys, *command, *given, "--out", tmp_path / "run")
    assert status == 0, error
    assert "largest_miss  doubled" in printed


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def miss(x, x_hat): return x", "must give one number per token, [16], got [16, 32]"),
        ("def miss(x, x_hat): return x[:, 0].squeeze()", "per token, [1], got []"),
        ("def miss(x, x_hat): return 3.0", "must give one number per token, [16], got float"),
        ("def miss(x): return x", "fails on 16 random activations of width 32: TypeError: miss()"),
        ("def miss(x, x_hat): return (x - x_hat)[:, 99]", "width 32: IndexError: index 99"),
        ("def miss(x, x_hat): return x[:, 0] / 0", "is NaN or infinite for 16 of 16 tokens"),
        ("def miss(x, x_hat): return x.sub_(x_hat).norm(dim=-1)", "changes the activations"),
        (
            "def mist(x, x_hat): return x",
            "has no function 'miss'. Did you mean 'mist'? Known: mist.",
        ),
        ("miss = 3", "has no function 'miss'. Known: ."),
        ("def miss(", "which has a metric, cannot be run: SyntaxError:"),
        ("import nowhere_at_all", "cannot be run: ModuleNotFoundError: No module named 'nowhere"),
    ],
)
def test_a_metric_that_cannot_be_is_said_before_the_model_is_opened(
    code: str, said: str, sae_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "mine.py").write_text(code)
    modules = set(sys.modules)
    command = ["eval", sae_folder, "--model", "nowhere", "--metric", f"{tmp_path / 'mine.py'}:miss"]
    status, _, error = says(capsys, *command, "--out", tmp_path / "run")
    assert (status, error.count("\n")) == (1, 1)
    assert said in error
    assert not (tmp_path / "run").exists()
    if "cannot be run" in said:
        assert not [name for name in set(sys.modules) - modules if "own_metrics_mine" in name]


def test_names_of_metrics_are_columns(metrics: Path) -> None:
    for given, said in (
        ([f"{metrics}:doubled"] * 2, "Two metrics are called 'doubled'"),
        ([f"{metrics}:text"], "'text' is taken"),
        ([f"{metrics}:ce_score_se"], "'ce_score_se' is taken"),
        ([f"{metrics}:miss", f"{metrics}:miss_se"], "'miss_se' is taken"),
        (
            [f"{metrics}:largest-miss"],
            "has no function 'largest-miss'. Did you mean 'largest_miss'",
        ),
        ([f"{metrics}:NUMBER"], "has no function 'NUMBER'"),
        ([f"{metrics}:"], "has no function ''. Known: largest_miss, doubled."),
    ):
        with pytest.raises(ValueError, match="^[^\n]*$") as raised:
            open_metrics(given)
        assert said in str(raised.value)


def test_labels_are_short_and_of_the_function_itself(tmp_path: Path) -> None:
    file = tmp_path / "labels.py"
    file.write_text(
        "from functools import partial\n"
        f"def long(x, x_hat):\n    '{'word ' * 40}'\n    return x[:, 0]\n"
        "half_as_much = partial(long)\n"
        "def first_number(x, x_hat):\n    ''\n    return x[:, 0]\n"
    )
    names = ("long", "half_as_much", "first_number")
    opened = open_metrics([f"{file}:{name}" for name in names])
    assert len(opened["long"].label) <= 60
    assert opened["long"].label.endswith("word …")
    assert opened["half_as_much"].label == "half as much"
    assert opened["first_number"].label == "first number"
    try_metrics(opened, 8)


def test_a_metric_that_is_nan_only_on_real_activations_is_said(
    sae_folder: Path, tmp_path: Path
) -> None:
    sae = SAE.load_from_disk(sae_folder)
    x = torch.randn(40, 32)
    x[3] = 0
    metrics = {"share": lambda x, x_hat: x_hat.norm(dim=-1) / x.norm(dim=-1)}
    with pytest.raises(ValueError, match="'share' is NaN or infinite for 1 of 40 tokens"):
        evaluate_activations(sae, x, [8], metrics=metrics, progress=False)
    table = evaluate_activations(sae, x[4:], [8], metrics=metrics, progress=False)
    assert table["share"].notna().all()
