"""``hsae eval``, ``hsae advise`` and ``hsae report``, and the page in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import training_sae
from sae_lens import SAE, Transcoder, TranscoderConfig

from hsae_lens.cli import main
from hsae_lens.evaluation.extend_run import add_autointerp
from hsae_lens.evaluation.page import write_report
from hsae_lens.evaluation.run_folder import run_config
from hsae_lens.models.devices import dtype_name, model_dtype
from hsae_lens.sae.controls import random_decoder


@pytest.fixture(scope="module")
def sae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saes") / "mine"
    training_sae(d_in=32, k=24).save_inference_model(folder)
    sae = SAE.load_from_disk(folder)
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    sae.cfg.metadata.context_size = 32
    sae.save_model(folder)
    return folder


def documents(file: Path, n: int, times: int = 1) -> Path:
    rows = [{"text": times * f"Document {n} says </script> and {n * n}."} for n in range(n)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def run_folder(
    sae_folder: Path, gemma2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    base = tmp_path_factory.mktemp("eval")
    SAE.load_from_disk(sae_folder).at_k(24).save_model(base / "stock")
    text = documents(base / "text.jsonl", 400)
    command = ["eval", sae_folder, base / "stock", "--model", gemma2_folder, "--text", text]
    command += ["--tokens", "1024", "--bootstrap", "20", "--tasks", "4", "--out", base / "run"]
    assert main(list(map(str, command))) == 0
    return base / "run"


@pytest.fixture(scope="module")
def page(run_folder: Path) -> Path:
    return write_report([run_folder], run_folder / "report.html")


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


def test_advice_from_a_table_and_from_an_sae(
    run_folder: Path, sae_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frontier = pd.read_csv(run_folder / "frontier.csv")
    frontier["explained_variance"] += 1  # random weights explain nothing
    frontier.to_csv(run_folder.parent / "better.csv", index=False)
    assert main(["advise", str(run_folder.parent / "better.csv"), "--keep", "0.5"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 2, "not on the control"
    assert re.search(r"mine: k=\d+ keeps .*% of the explained variance at k=24", said)
    assert main(["advise", str(sae_folder)]) == 1
    assert "has no saved frontier. Run `hsae eval" in capsys.readouterr().err
    shipped = "smollm2-135m-res-htopk/blocks.15.hook_resid_post"
    assert main(["advise", shipped, "--of", "ce_score"]) == 0
    assert "of the recovered cross-entropy at k=128" in capsys.readouterr().out


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


# --- nothing finished is ever deleted ---


@pytest.fixture
def finished(run_folder: Path, tmp_path: Path) -> Path:
    """An evaluation to which a judge's answers and tables were added."""
    folder = tmp_path / "finished"
    shutil.copytree(run_folder, folder)
    for name in ("judge.jsonl", "interpretation.csv", "probing.csv"):
        (folder / name).write_text("paid for")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--budgets", "1,64", "mine cannot be judged so: budgets [64] are outside 1..k=24."),
        ("--budgets", "1,x", "got 'x' in '1,x'"),
        ("--budgets", "", "Budgets are whole numbers of at least 1"),
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
    finished: Path, sae_folder: Path, gemma2_folder: Path, tmp_path: Path
) -> None:
    before = contents(finished)
    text = documents(tmp_path / "text.jsonl", 40)
    command = ["eval", sae_folder, "--model", gemma2_folder, "--text", text, "--tokens", 320]
    command += ["--bootstrap", 0, "--tasks", 0, "--examples", 1, "--budgets", "2,8"]
    assert main([*map(str, command), "--out", str(finished)]) == 0
    after = contents(finished)
    assert set(before) <= {name.removeprefix("earlier-1/") for name in after}
    for name in ("interpretation.csv", "probing.csv", "tasks.csv"):
        assert name not in after
        assert after[f"earlier-1/{name}"] == before[name]
    assert after["judge.jsonl"] == before["judge.jsonl"]
    assert list(pd.read_csv(finished / "frontier.csv")["k"]) == [2, 8] * 2
    # What is added later opens the model in the format that was taken.
    settings = run_config(finished)
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
    wrong = [{"flavour": 1}, {"tokens": "8"}, {"saes": "mine"}, {"saes": [3]}, {"budgets": 8}]
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


def test_runs_of_an_earlier_version_can_be_added_to(run_folder: Path, tmp_path: Path) -> None:
    facts = json.loads((run_folder / "run.json").read_text())
    facts["settings"] |= {"budgets": "1,8"}
    del facts["settings"]["batch_size"]
    (tmp_path / "frontier.csv").write_text("")
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert run_config(tmp_path).budgets == [1, 8]


@pytest.mark.parametrize("mode", ["none", "layer_norm", "constant_norm_rescale"])
@torch.no_grad()
def test_the_random_control_is_scaled_to_do_its_best(mode: str, tmp_path: Path) -> None:
    training_sae(d_in=32, k=24, normalize_activations=mode).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    lengths = torch.linspace(0.3, 3, 300)[:, None]  # tokens of unequal norm
    noise = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    x = lengths * (sae.b_dec + noise)
    control = random_decoder(sae, x)
    torch.testing.assert_close(control.W_dec.norm(dim=-1), torch.ones(96))

    def error(gain: float) -> float:
        control.W_enc.data *= gain
        stack = control.decode_budgets(control.encode_ordered(x), list(range(1, 25)))
        control.W_enc.data /= gain
        return float((stack - x).square().sum())

    best = error(1.0)
    assert best < error(0.9)
    assert best < error(1.1)


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
    judged = {"sae": "mine", "ranks": "1–8", "latent": 3, "explanation": "<b>", "fuzzing": 0.5}
    pd.DataFrame([judged | {"detection": score} for score in (0.7, None)]).to_csv(
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

    def find(selector: str) -> list[Any]:
        return browser.find_elements("css selector", selector)

    def move(steps: int) -> None:
        browser.execute_script(
            "const s = document.querySelector('.slider'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'))",
            steps,
        )

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
    find(".texts button")[1].click()
    assert find(".texts button")[1].get_attribute("aria-pressed") == "true"
    first = find(".tokens button")[3].get_attribute("textContent")
    assert first == examples[1]["tokens"][3].replace("\n", "⏎")

    for width in (1366, 412):
        browser.set_window_size(width, 900)
        overflow = "return document.documentElement.scrollWidth - window.innerWidth"
        assert browser.execute_script(overflow) <= 0, f"nothing sticks out at {width} pixels"
