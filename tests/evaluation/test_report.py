"""The page of `hsae report`: what it says of which run, and that it works in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.eval_runs import make_run, with_order

from hsae_lens._util.columns import DEFINITIONS, stamp
from hsae_lens._util.tables import read_csv
from hsae_lens.cli import main
from hsae_lens.evaluation.report import write_report
from hsae_lens.evaluation.run_folder import RunFolder
from hsae_lens.sae.controls import RANDOM_DECODER


@pytest.fixture(scope="module")
def page(run_folder: Path) -> Path:
    return write_report([run_folder], run_folder / "report.html")


@pytest.fixture
def browser() -> Iterator[Any]:
    if not shutil.which("chromedriver"):
        assert not os.environ.get("CI"), "CI installs chromium and chromium-driver"
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def page_of(run: Path) -> str:
    return write_report([run], run / "report.html").read_text()


def move_slider(browser: Any, steps: int) -> None:
    browser.execute_script(
        "const s = document.querySelector('.slider'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'))",
        steps,
    )


def test_the_page_has_a_section_for_each_table(page: Path) -> None:
    headings = re.findall("<h2>(.*?)</h2>", page.read_text())
    assert headings == [
        "In short",
        "Quality at every budget",
        "Behaviours that survive",
        "Follow a token latent by latent",
        "What each latent is worth",
        "Different budgets for different tokens",
        "How these figures were made",
    ]


def test_the_page_shows_what_was_added_later(run_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    rows = [
        {
            "sae": sae,
            "dataset": "<i>spam</i>",
            "k": k,
            "probe_size": size,
            "test_auc": 0.5 + k / 100,
        }
        for sae in ("mine", "random decoder")
        for k in (1, 8)
        for size in (1, 8)
    ]
    pd.DataFrame(rows).to_csv(run / "probing.csv", index=False)
    scored = {"sae": "mine", "ranks": "1–8", "latent": 3, "explanation": "<b>", "fuzzing": 0.5}
    pd.DataFrame([scored | {"detection": score} for score in (0.7, None)]).to_csv(
        run / "interpretation.csv", index=False
    )
    absorbed = {"sae": "mine", "k": 8, "absorption": 0.125, "letters": 24, "probe_accuracy": 0.83}
    pd.DataFrame([absorbed]).to_csv(run / "absorption.csv", index=False)
    page = write_report([run], tmp_path / "page.html").read_text()
    assert "names the letter of 83% of held-out words, and 24 of 26" in page
    assert "<td>0.125</td>" in page
    assert "too few to speak of absorption" not in page
    pd.DataFrame([absorbed | {"absorption": None}]).to_csv(run / "absorption.csv", index=False)
    assert "too few to speak of" in write_report([run], tmp_path / "page.html").read_text()
    assert "Labels that few latents hold" in page
    assert "Test AUC of probes on 8 latents" in page
    assert "Can a judge say what latents stand for?" in page
    assert "<td>0.700</td>" in page
    assert "<td>1</td>" in page, "how many have no answer"
    assert "<i>spam" not in page
    assert "<b></td>" not in page
    (run / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no run.json, so `hsae eval` did not"):
        write_report([run], tmp_path / "page.html")


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


def test_the_page_of_a_stock_sae_says_what_is_true_of_it(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "stock", "stock", others=()))
    assert "96 latents." in page
    assert "This is a stock SAE, trained for one sparsity (k=4); at another budget" in page
    assert "serves every k" not in page
    assert "What one SAE saves" not in page
    assert "hsae compare" not in page
    assert "random decoder" not in page.lower()
    assert "Bands are" not in page, "no standard errors were made"
    without_k = make_run(tmp_path / "standard", "standard", others=())
    facts = json.loads((without_k / "run.json").read_text()) | {"k": None}
    (without_k / "run.json").write_text(json.dumps(facts))
    page = page_of(without_k)
    assert "None" not in page
    assert "trained for one sparsity; at another budget each" in page
    ours = page_of(with_order(make_run(tmp_path / "ours")))
    assert "this one serves every k up to 4 from one file" in ours
    assert "The random decoder has as many latents" in ours


def test_no_advice_where_ablation_does_not_hurt(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", ce_ablated=3.0, ce_score=0.9))
    assert "with the hook set to zero the model predicts about as well" in page
    first = page.split("</ul>")[0]
    assert "by the predictions" not in first
    assert "Predictions kept" not in first
    assert "predictions kept" not in first
    assert "goes from 3.00 to 3.20 nats; with zeros at this point it is 3.00." in first
    assert "keeps 95% of what k=4 does is k=4 by the activations." in first
    page = page_of(make_run(tmp_path / "bad", explained_variance=-0.3))
    assert "The explained variance at k=4 is -0.300: not worth a share." in page
    assert "keeps 95% of what k=4 does is k=4 by the predictions." in page


def test_other_tables_in_a_folder_are_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "notes.csv").write_text('"')
    assert "In short" in page_of(run)


def test_the_page_says_by_which_definitions_figures_were_made(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    table = pd.DataFrame({"dataset": "spam", "k": [1], "probe_size": 1, "test_auc": 0.7})
    table.assign(sae="mine").to_csv(run / "probing.csv", index=False)
    assert "<b>probing</b>: no version" in page_of(run), "made before there were versions"
    RunFolder(run).add("probing", {"mine": table})
    assert json.loads((run / "run.json").read_text())["definitions"] == stamp("frontier", "probing")
    page = page_of(run)
    for name in ("frontier", "probing"):
        version, text = DEFINITIONS[name]
        assert f"<b>{name}</b>, version {version}: {text}" in page.replace("&#x27;", "'")
    assert "no version" not in page


def test_the_page_works_in_a_browser(browser: Any, page: Path, run_folder: Path) -> None:
    browser.get(page.as_uri())
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    asked = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert asked == [page.as_uri()], "the page fetches nothing"

    find, move = partial(browser.find_elements, "css selector"), partial(move_slider, browser)

    examples = json.loads((run_folder / "examples.json").read_text())
    tokens = find(".tokens button")
    assert [t.get_attribute("textContent") for t in tokens[:5]] == [
        t.replace("\n", "⏎") for t in examples[0]["tokens"][:5]
    ]
    assert "k = 8" in find(".shown")[0].text
    move(3)
    assert "k = 3" in find(".shown")[0].text
    assert len(find(".bars li")) == 3
    find(".tokens button")[7].click()
    latents = [row.text.split()[1] for row in find(".bars li")]
    assert latents == [f"#{latent}" for latent, _ in examples[0]["latents"][7][:3]]
    share = max(0, examples[0]["explained"][7][3])
    shown = find(".detail h3")[0].text
    assert f"{100 * share:.{1 if share < 0.1 else 0}f}% of its activation explained" in shown
    move(10**6)
    assert "k = 24" in find(".shown")[0].text
    assert not find(".modes button, .tokens small"), "the SAE is not calibrated"
    find(".texts button")[1].click()
    assert find(".texts button")[1].get_attribute("aria-pressed") == "true"
    first = find(".tokens button")[3].get_attribute("textContent")
    assert first == examples[1]["tokens"][3].replace("\n", "⏎")

    for width in (1366, 412):
        browser.set_window_size(width, 900)
        overflow = "return document.documentElement.scrollWidth - window.innerWidth"
        assert browser.execute_script(overflow) <= 0, f"nothing sticks out at {width} pixels"


def test_the_first_screen_fits_a_screen(browser: Any, tmp_path: Path) -> None:
    ks = [1, 2, 4, 8, 16, 32]
    growing = {"k": ks, "l0": ks, "explained_variance": [0.3, 0.5, 0.65, 0.7, 0.77, 0.8],
               "ce_score": [0.5, 0.8, 0.9, 0.95, 0.97, 0.991], "ce_with_sae": 3.2, "miss": 12.3,
               "explained_variance_se": 0.01, "ce_score_se": 0.01, "miss_se": 0.1}  # fmt: skip
    run = make_run(tmp_path / "run", "a-release/blocks.15.hook_resid_post", **growing)
    facts = json.loads((run / "run.json").read_text())
    facts |= {"documents": 40, "bytes": 10_627_512, "metrics": {"miss": "Largest error of one"}}
    (run / "run.json").write_text(json.dumps(facts))
    page = write_report([run], tmp_path / "page.html")
    for width, height in ((1280, 1000), (390, 844)):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(page.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        beyond, table, points = browser.execute_script(
            "const e = document.querySelector('.kept .scroll'), below = (x) => "
            "x.getBoundingClientRect().bottom; return [e.scrollWidth - e.clientWidth, below(e), "
            "below(document.querySelector('.kept ul'))]"
        )
        assert beyond <= 0, "no column is cut off"
        assert (points if width > 500 else table) <= height, "it is on the first screen"
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_slider_spends_on_average_where_the_sae_is_calibrated(
    browser: Any, mean_run: tuple[Path, Any], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(mean_run[0], tmp_path / "run"))
    examples = json.loads((run / "examples.json").read_text())
    for example in examples:  # random weights explain nothing, and say the same at every budget
        example["explained"] = [
            [round(j / len(shares), 3) for j in range(len(shares))]
            for shares in example["explained"]
        ]
        example["mean"]["predictions"] = [
            [[[f"mean {k}", 0.5]]] * len(example["tokens"]) for k in example["budgets"]
        ]
    (run / "examples.json").write_text(json.dumps(examples))
    example, other, *_ = examples
    browser.get(write_report([run], tmp_path / "page.html").as_uri())

    find, move = partial(browser.find_elements, "css selector"), partial(move_slider, browser)

    def said_of(number: int, share: float) -> str:
        some = f"{number} latent{'' if number == 1 else 's'}"
        shown = max(0, share)
        return f": {some}, {100 * shown:.{1 if shown < 0.1 else 0}f}% of its activation explained"

    same, average = find(".modes button")
    assert (same.text, average.text) == ("each token the same", "on average")
    assert same.get_attribute("aria-pressed") == "true"
    move(9)
    plain = [token.get_attribute("textContent") for token in find(".tokens button")]
    assert not find(".tokens small")
    average.click()
    assert find(".modes button")[1].get_attribute("aria-pressed") == "true"
    assert find(".shown")[0].text == "9 on average"
    lengths = [of_token[8] for of_token in example["mean"]["lengths"]]
    tokens = [token.get_attribute("textContent") for token in find(".tokens button")]
    assert tokens == [
        text + (str(number) if judged else "")
        for text, number, judged in zip(plain, lengths, example["judged"], strict=True)
    ], "each judged token shows its own number"
    hungrier = lengths.index(max(lengths))
    assert lengths[hungrier] > 9
    for chosen in (example["judged"].index(True), hungrier):
        find(".tokens button")[chosen].click()
        assert len(find(".bars li")) == min(32, lengths[chosen])
        share = example["explained"][chosen][lengths[chosen]]
        assert find(".detail h3")[0].text.endswith(said_of(lengths[chosen], share))
    opacity = float(
        find(".tokens button")[hungrier]
        .value_of_css_property("background-color")
        .split(",")[-1][:-1]
    )
    assert opacity == pytest.approx(0.6 * share, abs=0.005)
    said = find(".detail table tr")[0].text
    assert said == "8 on average mean 8 50%", "the largest mean budget that the model was run at"
    move(0)
    assert {small.text for small in find(".tokens small")} == {"0"}
    move(10**6)
    assert find(".shown")[0].text == "24 on average"
    numbers = [of_token[-1] for of_token in other["mean"]["lengths"]]
    find(".texts button")[1].click()
    hungriest = max(range(len(numbers)), key=numbers.__getitem__)
    assert numbers[hungriest] > 24
    find(".tokens button")[hungriest].click()
    share = other["explained"][hungriest][numbers[hungriest]]
    assert find(".detail h3")[0].text.endswith(said_of(numbers[hungriest], share))
    left = other["judged"].index(False)
    find(".tokens button")[left].click()
    assert find(".detail h3")[0].text.endswith(": left as it is")
    for width in (1366, 412):
        browser.set_window_size(width, 900)
        overflow = "return document.documentElement.scrollWidth - window.innerWidth"
        assert browser.execute_script(overflow) <= 0, f"nothing sticks out at {width} pixels"
    find(".modes button")[0].click()
    assert find(".shown")[0].text == "k = 24"
    assert not find(".tokens small")
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def test_the_explorer_opens_at_a_budget_of_a_small_sae(browser: Any, tmp_path: Path) -> None:
    page = write_report([with_order(make_run(tmp_path / "run"))], tmp_path / "page.html")
    browser.get(page.as_uri())
    assert browser.find_element("css selector", ".shown").text == "k = 4"
    assert len(browser.find_elements("css selector", ".bars li")) == 4
