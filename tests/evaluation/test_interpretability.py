"""Explanations, judges and probes; the judge that costs money is a server on this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import training_sae
from helpers.judge_server import JudgeServer
from sae_lens import SAE

from hsae_lens import HierarchicalTopKSAE, load_pretrained
from hsae_lens._util.unavailable import JudgeUnavailableError
from hsae_lens.cli import main
from hsae_lens.evaluation.autointerp.excerpts import Excerpt, LatentExamples, latent_examples
from hsae_lens.evaluation.autointerp.judges import CachedJudge, EndpointJudge, local_judge
from hsae_lens.evaluation.autointerp.scoring import asking_cost, score_latents
from hsae_lens.evaluation.fingerprints import fingerprint
from hsae_lens.evaluation.latents.describe import describe_latents
from hsae_lens.evaluation.page import write_report
from hsae_lens.evaluation.suites.probing import sparse_probing
from hsae_lens.models.hooks import hook_activations
from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.tokens import tokenize

SHIPPED = ("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")


@pytest.fixture(scope="module")
def sae() -> HierarchicalTopKSAE:
    return load_pretrained(*SHIPPED)


@pytest.fixture(scope="module")
def tokens(smollm: Any) -> torch.Tensor:
    return tokenize(cpython_reference(), smollm.tokenizer, 128, progress=False)[:40]


@pytest.fixture(scope="module")
def examples(sae: Any, smollm: Any, tokens: torch.Tensor) -> list[LatentExamples]:
    return latent_examples(sae, smollm, tokens, per_bin=3)


def test_latents_described_without_a_judge(sae: Any, smollm: Any, tokens: torch.Tensor) -> None:
    few = tokens[:6]
    table = describe_latents(sae, smollm, few, n_words=3).set_index("latent")
    acts = hook_activations(smollm, few, SHIPPED[1])
    special = torch.isin(few, torch.tensor(smollm.tokenizer.all_special_ids))
    keep = (acts.norm(dim=-1) <= sae.cfg.metadata.max_norm) & ~special
    keep[:, :4] = False
    code, words = sae.encode(acts)[keep], few[keep]
    assert set(table.index) == set((code > 0).any(0).nonzero().flatten().tolist())
    for latent in table.index[::500]:
        fires = code[:, latent] > 0
        row = table.loc[latent]
        assert row["density"] == pytest.approx(fires.double().mean().item())
        assert row["activation"] == pytest.approx(code[fires, latent].mean().item(), rel=1e-4)
        times = words[fires].unique(return_counts=True)[1]
        assert row["token_share"] == pytest.approx((times.max() / fires.sum()).item())
        assert len(row["promotes"]) == 3
    nobody = next(i for i in range(sae.cfg.d_sae) if i not in table.index)
    assert describe_latents(sae, smollm, few, [nobody])["density"][0] == 0


def test_excerpts_are_what_they_are_said_to_be(
    examples: list[LatentExamples], sae: Any, smollm: Any, tokens: torch.Tensor
) -> None:
    assert {e.ranks for e in examples} == {(1, 8), (9, 32), (33, 128)}
    acts = hook_activations(smollm, tokens, SHIPPED[1])
    code = sae.encode_ordered(acts)
    words = [[smollm.tokenizer.decode([t]) for t in row] for row in tokens.tolist()]

    def places(excerpt: Excerpt) -> list[tuple[int, int]]:
        whole = excerpt.before + excerpt.marked + excerpt.after
        return [
            (row, at)
            for row, texts in enumerate(words)
            if whole in "".join(texts)
            for at, word in enumerate(texts)
            if word == excerpt.marked and "".join(texts[:at]).endswith(excerpt.before)
        ]

    for latent in examples[::3]:
        low, high = latent.ranks
        for excerpt in latent.firing + latent.shown:
            ranks = [
                (code.indices[row, at] == latent.latent).nonzero().flatten().tolist()
                for row, at in places(excerpt)
            ]
            assert any(r and low <= r[0] + 1 <= high for r in ranks), excerpt
        for excerpt in latent.silent:
            fires = [(code.indices[row, at] == latent.latent).any() for row, at in places(excerpt)]
            assert not all(fires)
        for right, wrong in zip(latent.firing, latent.mismarked, strict=True):
            assert right.plain() == wrong.plain()
            assert right.with_mark() != wrong.with_mark()


def test_a_judge_that_knows_scores_one_and_a_guesser_one_half(
    examples: list[LatentExamples], judge_server: JudgeServer
) -> None:
    by_explanation = {f"it is {e.latent} {e.ranks}": e for e in examples}

    def knows(prompt: str) -> str:
        for explanation, latent in by_explanation.items():
            if explanation not in prompt:
                continue
            lines = re.findall(r"^(\d+)\. (.*)$", prompt, re.MULTILINE)
            marked = "<<" in lines[0][1]
            right = {e.with_mark() if marked else e.plain() for e in latent.firing}
            return ", ".join(n for n, text in lines if text in right) or "none"
        shown = prompt.split("\n- ")[1].split("\n")[0]
        return next(
            f"it is {e.latent} {e.ranks}" for e in examples if e.shown[0].with_mark() == shown
        )

    judge_server.answer = knows
    table = score_latents(examples, EndpointJudge("m", judge_server.url), progress=False)
    assert list(table["latent"]) == [e.latent for e in examples]
    assert (table["detection"] > 0.85).all()  # an excerpt may stand twice in the text
    assert (table["fuzzing"] > 0.85).all()
    asked = asking_cost(examples)
    assert asked["prompts"] == len(judge_server.prompts) == 3 * len(examples)
    assert asked["tokens"] == pytest.approx(sum(map(len, judge_server.prompts)) / 4, rel=0.1)

    judge_server.answer = lambda prompt: ", ".join(map(str, range(1, 11)))
    table = score_latents(examples, EndpointJudge("m", judge_server.url), progress=False)
    assert (table["detection"] == 0.5).all()
    judge_server.answer = lambda prompt: "I would rather not say."
    table = score_latents(examples, EndpointJudge("m", judge_server.url), progress=False)
    assert table["detection"].isna().all()
    assert table["fuzzing"].isna().all()


def test_answers_are_kept_and_an_interrupted_run_goes_on(
    examples: list[LatentExamples], judge_server: JudgeServer, tmp_path: Path
) -> None:
    judge = CachedJudge(EndpointJudge("m", judge_server.url), tmp_path / "judge.jsonl")
    want = score_latents(examples[:2], judge, progress=False)
    assert len(judge_server.prompts) == 6
    file = tmp_path / "judge.jsonl"
    file.write_text(file.read_text()[:-20])  # cut off while the last answer was written
    again = CachedJudge(EndpointJudge("m", judge_server.url), file)
    assert asking_cost(examples[:2], known=again.known)["prompts"] == 1
    assert asking_cost(examples[:3], known=again.known)["prompts"] == 4
    assert score_latents(examples[:2], again, progress=False).equals(want)
    assert len(judge_server.prompts) == 7
    third = CachedJudge(EndpointJudge("m", judge_server.url), file)
    score_latents(examples[:2], third, progress=False)
    assert len(judge_server.prompts) == 7
    score_latents(
        examples[:1], CachedJudge(EndpointJudge("another", judge_server.url), file), False
    )
    assert len(judge_server.prompts) == 10, "another judge's answers are its own"


def test_judges_that_fail_are_said(
    judge_server: JudgeServer, monkeypatch: pytest.MonkeyPatch, examples: list[LatentExamples]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "for OpenAI only")
    EndpointJudge("m", judge_server.url)("x")
    monkeypatch.setenv("HSAE_JUDGE_API_KEY", "secret")
    EndpointJudge("m", judge_server.url)("x")
    assert judge_server.keys == [None, "Bearer secret"]
    judge_server.status = 401
    with pytest.raises(JudgeUnavailableError, match=r"401.*Check the address, the key"):
        EndpointJudge("m", judge_server.url)("x")
    with pytest.raises(JudgeUnavailableError, match="does not answer"):
        EndpointJudge("m", "http://127.0.0.1:9/v1", timeout=1)("x")
    judge_server.status, judge_server.prompts = 503, []
    with pytest.raises(JudgeUnavailableError, match="503"):
        EndpointJudge("m", judge_server.url)("x")
    assert len(judge_server.prompts) == 3, "a busy judge is asked again"
    judge_server.status = 200
    with pytest.raises(JudgeUnavailableError, match="Cannot open the judge '/no/such'"):
        local_judge("/no/such")


def test_a_local_judge_answers(examples: list[LatentExamples]) -> None:
    judge = local_judge("smollm2-135m")
    answer = judge("What is the capital of France? Answer in one word.")
    assert "Paris" in answer


def test_probing_at_every_budget(sae: Any, smollm: Any, tmp_path: Path) -> None:
    pytest.importorskip("sae_probes")
    settings: dict[str, Any] = {"budgets": [1, 64], "probe_sizes": (1, 8), "progress": False}
    dataset = "119_us_state_TX"  # the smallest
    table = sparse_probing(sae, smollm, tmp_path, [dataset], **settings)
    assert table[["k", "probe_size"]].to_numpy().tolist() == [[1, 1], [1, 8], [64, 1], [64, 8]]
    assert table["test_auc"].between(0, 1).all()
    assert 0.6 < table["model_auc"].iloc[0] <= 1
    expected = (table["test_auc"] - 0.5) / (table["model_auc"] - 0.5)
    assert table["retention"].tolist() == pytest.approx(expected.tolist())
    files = sorted(tmp_path.rglob("*.json"))
    stamps = [file.stat().st_mtime_ns for file in files]
    again = sparse_probing(sae, smollm, tmp_path, [dataset], **settings)
    assert again.equals(table)
    assert stamps == [file.stat().st_mtime_ns for file in files], "nothing is done twice"
    assert sae.budget == sae.cfg.k
    fewer = sparse_probing(sae, smollm, tmp_path, [dataset], **(settings | {"probe_sizes": (8,)}))
    assert fewer["test_auc"].tolist() == table["test_auc"][1::2].tolist()
    with pytest.raises(ValueError, match="no data set '96_spam'.* Did you mean '96_spam_is'"):
        sparse_probing(sae, smollm, tmp_path, ["96_spam"])
    other = SAE.from_dict(sae.cfg.to_dict())
    assert fingerprint(other) != fingerprint(sae)


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
    assert "\n0 prompts, about 0 tokens." in capsys.readouterr().out
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
