"""The report of folders as they are found: odd names, stock SAEs, half finished, damaged."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import training_sae

from hsae_lens._util.columns import DEFINITIONS, stamp
from hsae_lens._util.html import table_html
from hsae_lens._util.tables import read_csv
from hsae_lens.cli import main
from hsae_lens.evaluation.page import write_report
from hsae_lens.evaluation.run_folder import stamp_run
from hsae_lens.releases.model_card import store_frontier, write_card
from hsae_lens.sae.controls import RANDOM_DECODER


def frontier(sae: str, **columns: Any) -> pd.DataFrame:
    rows = {"sae": sae, "k": [1, 2, 4], "l0": [1.0, 2.0, 4.0],
            "explained_variance": [0.3, 0.5, 0.6], "ce_score": [0.5, 0.8, 0.9],
            "ce_clean": 3.0, "ce_with_sae": [3.8, 3.3, 3.2], "ce_ablated": 6.0}  # fmt: skip
    return pd.DataFrame(rows | columns)


def make_run(
    folder: Path, sae: str = "mine", others: tuple[str, ...] = (RANDOM_DECODER,), **columns: Any
) -> Path:
    """A folder as `hsae eval` leaves it, by hand."""
    folder.mkdir(parents=True)
    tables = [frontier(name, **columns) for name in (sae, *others)]
    pd.concat(tables).to_csv(folder / "frontier.csv", index=False)
    facts = {"model": "tiny", "hook": "blocks.1.hook_resid_post", "d_in": 32, "d_sae": 96, "k": 4,
             "text": "a text", "tokens": 64, "hsae_lens": "0", "torch": "0", "seconds": 1,
             "settings": {"saes": [sae]}, "definitions": stamp("frontier")}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def with_order(folder: Path) -> Path:
    """What is only there for a hierarchical SAE."""
    curve = pd.DataFrame({"k": range(5), "explained_variance": 0.5, "adds": 0.1})
    curve.to_csv(folder / "curve.csv", index=False)
    example = {
        "tokens": ["a", "</script>", "c"],
        "judged": [False, True, True],
        "explained": [[0.0, 0.1, float("nan"), 0.3, 0.4]] * 3,
        "latents": [[[7, 1.5], [8, 1.0], [9, 0.5], [2, 0.1]]] * 3,
        "budgets": [1, 2, 4],
        "predictions": [[[["x", 0.5]]] * 3] * 4,
    }
    (folder / "examples.json").write_text(json.dumps([example]))
    return folder


def page_of(run: Path) -> str:
    return write_report([run], run / "report.html").read_text()


@pytest.mark.parametrize("name", ["42", "nan", "1e5", "NA", "True", "_x", "$a$", "<b>"])
def test_an_sae_may_have_any_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_order(make_run(tmp_path / "run", name))
    heading = name.replace("<b>", "&lt;b&gt;")
    page = page_of(run)
    assert f"<h1>{heading}</h1>" in page
    assert f"<td>{heading}</td>" in page
    assert list(read_csv(run / "frontier.csv")["sae"].unique()) == [name, RANDOM_DECODER]
    capsys.readouterr()
    assert main(["advise", str(run / "frontier.csv")]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: k=")


def test_names_and_explanations_are_shown_to_the_end() -> None:
    long = "/home/me/" + 30 * "long/" + "layer-12"
    assert long in table_html(pd.DataFrame({"sae": [long]}))


def test_the_page_of_a_stock_sae_says_what_is_true_of_it(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "stock", "stock", others=()))
    assert "a few of 96 latents. It is a stock SAE, trained for one sparsity (k=4);" in page
    assert "every budget k, how many" not in page
    assert "random decoder" not in page.lower()
    assert "Bands are" not in page, "no standard errors were made"
    without_k = make_run(tmp_path / "standard", "standard", others=())
    facts = json.loads((without_k / "run.json").read_text()) | {"k": None}
    (without_k / "run.json").write_text(json.dumps(facts))
    page = page_of(without_k)
    assert "None" not in page
    assert "trained for one sparsity; a budget k cuts" in page
    ours = page_of(with_order(make_run(tmp_path / "ours")))
    assert "One file serves every budget" in ours
    assert "The random decoder has as many latents" in ours


def test_no_advice_where_ablation_does_not_hurt(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", ce_ablated=3.0, ce_score=0.9))
    assert "with the hook set to zero the model predicts about as well" in page
    assert "95% of the recovered cross-entropy" not in page
    assert "What k=" not in page
    assert "95% of the explained variance" in page
    page = page_of(make_run(tmp_path / "bad", explained_variance=-0.3))
    assert "The explained variance at k=4 is -0.300: not worth a share." in page
    assert "recovered cross-entropy" in page


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


def test_other_tables_in_a_folder_are_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "notes.csv").write_text('"')
    assert "In short" in page_of(run)


def test_the_page_says_by_which_definitions_figures_were_made(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    pd.DataFrame({"sae": "mine", "dataset": "spam", "k": [1], "probe_size": 1, "test_auc": 0.7}
                 ).to_csv(run / "probing.csv", index=False)  # fmt: skip
    assert "<b>probing</b>: no version" in page_of(run), "made before there were versions"
    stamp_run(run, "probing")
    assert json.loads((run / "run.json").read_text())["definitions"] == stamp("frontier", "probing")
    page = page_of(run)
    for name in ("frontier", "probing"):
        version, text = DEFINITIONS[name]
        assert f"<b>{name}</b>, version {version}: {text}" in page.replace("&#x27;", "'")
    assert "no version" not in page


@pytest.mark.parametrize("damage", [None, "frontier", {"frontier": 1}, {"frontier": {}}])
def test_a_card_says_by_which_definitions_its_frontier_was_measured(damage: Any) -> None:
    sae = training_sae()
    store_frontier(sae, frontier("mine"), "a text")
    version, text = DEFINITIONS["frontier"]
    card = write_card(sae, "release", "sae")
    assert f"What the figures are (version {version}): {text}" in card
    assert "a text" in card
    sae.cfg.metadata.definitions = damage  # an earlier one's, or somebody else's
    assert f"What the figures are: {text}" in write_card(sae, "release", "sae")


def test_the_explorer_opens_at_a_budget_of_a_small_sae(tmp_path: Path) -> None:
    if not shutil.which("chromedriver"):
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    page = write_report([with_order(make_run(tmp_path / "run"))], tmp_path / "page.html")
    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.get(page.as_uri())
        assert driver.find_element("css selector", ".shown").text == "k = 4"
        assert len(driver.find_elements("css selector", ".bars li")) == 4
    finally:
        driver.quit()
