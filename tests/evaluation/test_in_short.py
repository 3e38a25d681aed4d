"""The report's first screen: what it says in plain words, and that it fits a screen."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.eval_runs import frontier, make_run, with_order

from hsae_lens._util.columns import QUALITIES
from hsae_lens.evaluation.in_short import what_one_saves
from hsae_lens.evaluation.kept import (
    how_to_read,
    kept_table,
    percent,
    plain_number,
    worth_a_share,
)
from hsae_lens.evaluation.report import write_report
from hsae_lens.sae.controls import RANDOM_DECODER

GROWING = {
    "k": [1, 2, 4, 8, 16, 32],
    "l0": [1, 2, 4, 8, 16, 32],
    "explained_variance": [0.3, 0.5, 0.65, 0.7, 0.77, 0.8],
    "ce_score": [0.5, 0.8, 0.9, 0.95, 0.97, 0.991],
    "ce_with_sae": [3.8, 3.3, 3.2, 3.1, 3.05, 3.01],
}


def first_screen(run: Path) -> str:
    page = write_report([run], run / "report.html").read_text()
    return unescape(page.split("<h2>Quality at every budget")[0])


def add_facts(run: Path, **facts: Any) -> Path:
    known = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(known | facts))
    return run


def test_budgets_are_the_smallest_that_keep_shares_by_each_measure() -> None:
    rows = frontier("mine", **GROWING)
    table = kept_table(rows, QUALITIES)
    assert table.iloc[:, 0].tolist() == ["k=2", "k=4", "k=8", "k=16", "k=32"]
    assert table.iloc[0].tolist() == ["k=2", "50%\n62% of k=32", "80%\n81% of k=32"]
    assert table.iloc[-1].tolist() == ["k=32", "80%", "99.1%"]
    said = how_to_read(rows, QUALITIES)
    assert "keep 80% and 95% of what k=32 does by either measure, and k=32." in said
    by_one = kept_table(rows, ["explained_variance"])
    assert by_one.iloc[:, 0].tolist() == ["k=4", "k=16", "k=32"]
    assert "keep 80%, 90%, 95% and 99% of what" in how_to_read(rows, ["explained_variance"])


def test_without_anything_worth_a_share_three_budgets_stand_there() -> None:
    rows = frontier("mine", **GROWING | {"explained_variance": -0.3, "ce_score": -1.0})
    advices, refused = worth_a_share(rows)
    assert not advices
    assert len(refused) == 2
    assert kept_table(rows, advices).to_numpy().tolist() == [
        ["k=1", "-30%"], ["k=8", "-30%"], ["k=32", "-30%"],
    ]  # fmt: skip


def test_what_is_saved_is_runs_files_and_megabytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **GROWING)
    assert (
        "One training run and one file for every budget; an SAE for each of the 5 above takes 5 "
        "runs and 5 files." in first_screen(run)
    )
    add_facts(run, bytes=10_627_512, training_time="74 minutes on 2 threads.")
    screen = first_screen(run)
    assert "one file (11 MB) for every budget" in screen
    assert "5 runs and 5 files, 53 MB. Its training took 74 minutes on 2 threads.</li>" in screen
    assert what_one_saves(1, 2_500_000_000) == (
        "One training run and one file (2.5 GB) for every budget."
    )


def test_what_is_given_up_and_uncertain(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **GROWING)
    screen = first_screen(run)
    assert (
        "At k=8 the model’s error at the next token (cross-entropy) goes from 3.00 to 3.10 "
        "nats; with zeros at this point it is 6.00." in screen
    )
    assert "<code>hsae compare</code> measures it." in screen
    assert (
        "Judged on 64 tokens (a text); another kind of text may come out otherwise. There are "
        "no standard errors (too few documents, or none asked for). What single latents mean is "
        "not checked here." in screen
    )
    add_facts(run, documents=12)
    tables = [
        frontier(
            sae, **GROWING, tokens=61, explained_variance_se=[0.01] * 5 + [0.02], ce_score_se=0.004
        )
        for sae in ("mine", RANDOM_DECODER)
    ]
    pd.concat(tables).to_csv(run / "frontier.csv", index=False)
    scored = {"sae": "mine", "ranks": "1–8", "latent": 3, "explanation": "x", "fuzzing": 0.5}
    pd.DataFrame([scored | {"detection": 0.7}]).to_csv(run / "interpretation.csv", index=False)
    screen = first_screen(run)
    assert "Judged on 61 tokens of 12 documents (a text)" in screen
    assert "are at most 4.0 points (activations) and 0.8 points (predictions)." in screen
    assert "What 1 latents mean was asked of a language model, see below." in screen


def test_a_run_of_an_earlier_version_has_a_first_screen(tmp_path: Path) -> None:
    run = with_order(make_run(tmp_path / "run"))
    screen = first_screen(run)
    assert not {"None", "nan"} & set(re.findall(r"\w+", screen.split("In short")[1]))
    for name, wrong in (("bytes", "11"), ("documents", None), ("metrics", {"miss": 3}),
                        ("metrics", {"sae": "x"}), ("training_time", 3)):  # fmt: skip
        with pytest.raises(ValueError, match="run.json is damaged .*Run `hsae eval`"):
            first_screen(add_facts(make_run(tmp_path / f"{name}-{wrong}"), **{name: wrong}))
    assert "miss" not in first_screen(add_facts(run, metrics={"miss": "of no column"}))


def test_which_budget_is_said_once_where_both_measures_agree(tmp_path: Path) -> None:
    said = "The smallest judged that keeps 95% of what k=32 does is "
    screen = first_screen(make_run(tmp_path / "apart", **GROWING))
    assert f"{said}k=16 by the activations and k=8 by the predictions." in screen
    both = GROWING | {"ce_score": GROWING["explained_variance"]}
    screen = first_screen(make_run(tmp_path / "alike", **both))
    assert f"{said}k=16 by either measure." in screen


def test_numbers_are_plain() -> None:
    shares = (0.5, 0.984, 0.985, 0.9905, 1.0, 1.02, -0.3, float("nan"))
    assert [*map(percent, shares)] == [
        "50%", "98%", "98.5%", "99.1%", "100%", "102%", "-30%", "–",
    ]  # fmt: skip
    sizes = (15.93, 0.00012, 1234.5, -98765.0, float("inf"))
    assert [*map(plain_number, sizes)] == ["15.9", "0.00012", "1,234", "-98,765", "–"]
