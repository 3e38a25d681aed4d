"""Judges at an endpoint: whom the key goes to, and what becomes of a run when answers fail."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from helpers import training_sae
from helpers.judge_server import JudgeServer
from sae_lens import SAE

from hsae_lens._util.unavailable import JudgeUnavailableError, ModelUnavailableError
from hsae_lens.cli import main
from hsae_lens.evaluation.autointerp.excerpts import Excerpt, LatentExamples, latent_examples
from hsae_lens.evaluation.autointerp.judges import CachedJudge, EndpointJudge, local_judge
from hsae_lens.evaluation.autointerp.scoring import _score, score_latents


def example(latent: int) -> LatentExamples:
    def excerpts(kind: str) -> list[Excerpt]:
        return [Excerpt(f"{kind} {latent} ", f"word{n}", " after") for n in range(2)]

    return LatentExamples(
        latent, (1, 8), excerpts("shown"), excerpts("firing"), excerpts("silent"), excerpts("other")
    )


EXAMPLES = [example(latent) for latent in range(3)]


@pytest.mark.parametrize(
    ("url", "goes"),
    [
        ("https://api.openai.com/v1", True),
        ("https://API.OpenAI.com/v1/", True),
        ("https://api.openai.com:443/v1", True),
        ("https://api.openai.com.example.org/v1", False),
        ("https://api.openai.community/v1", False),
        ("https://example.org/api.openai.com/v1", False),
        ("http://api.openai.com/v1", False),
        ("http://localhost:8000/v1", False),
    ],
)
def test_openai_s_key_goes_to_openai_only(
    url: str, goes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HSAE_JUDGE_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", " for OpenAI only\n")
    assert EndpointJudge("m", url).key == ("for OpenAI only" if goes else "")
    monkeypatch.setenv("HSAE_JUDGE_API_KEY", "")
    assert EndpointJudge("m", url).key == ("for OpenAI only" if goes else "")
    monkeypatch.setenv("HSAE_JUDGE_API_KEY", "asked for")
    assert EndpointJudge("m", url).key == "asked for"


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


def test_a_key_that_is_no_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSAE_JUDGE_API_KEY", "sec\nret")
    with pytest.raises(ValueError, match="characters that no key has") as error:
        EndpointJudge("m", "http://localhost/v1")
    assert "ret" not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("1, 2", 1.0),
        (" 1,2.\n", 1.0),
        ("1", 0.75),
        ("none", 0.5),
        ('"None".', 0.5),
        ("3,4", 0.0),
        ("7", None),
        ("?", None),
        ("", None),
        ("1. 2.", None),
        ("1 2", None),
        ("1, 2 and 3; not in 4", None),
        ("Excerpts 1, 2", None),
        ("None of these but 1", None),
        ("1-2", None),
        ("-1, 2", None),
        ("1" * 5000, None),
    ],
)
def test_only_the_form_asked_for_is_scored(answer: str, score: float | None) -> None:
    got = _score(answer, [True, True, False, False])
    assert got == score if score is not None else got != got


@pytest.mark.parametrize("nothing", [None, "", "  \n", ["parts"]])
def test_a_prompt_without_an_answer_is_counted_and_asked_again_by_the_next_run(
    nothing: Any, judge_server: JudgeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judge_server.answer = lambda prompt: nothing if "shown 1" in prompt else "1, 2"
    file = tmp_path / "judge.jsonl"
    table = score_latents(EXAMPLES, CachedJudge(EndpointJudge("m", judge_server.url), file), False)
    assert table["unanswered"].tolist() == [0, 3, 0]
    assert table["detection"].isna().tolist() == [False, True, False]
    assert len(judge_server.prompts) == 3 + 3 + 3, "the middle one three times, then not quizzed"
    assert "no answer in the form asked for to 3 of 9 questions" in caplog.text
    judge_server.answer, judge_server.prompts = lambda prompt: "1, 2", []
    again = CachedJudge(EndpointJudge("m", judge_server.url), file)
    assert score_latents(EXAMPLES, again, False)["unanswered"].sum() == 0
    assert len(judge_server.prompts) == 3, "only what had no answer"


def test_an_empty_answer_kept_by_an_earlier_version_does_not_stay(
    judge_server: JudgeServer, tmp_path: Path
) -> None:
    file = tmp_path / "judge.jsonl"
    judge = CachedJudge(EndpointJudge("m", judge_server.url), file)
    assert judge("x") == "1"
    (line,) = file.read_text().splitlines()
    file.write_text(json.dumps(json.loads(line) | {"answer": " "}) + "\n7\n\xe9[]\n{")
    again = CachedJudge(EndpointJudge("m", judge_server.url), file)
    assert again.known("x") is None
    assert again("x") == "1"
    assert CachedJudge(EndpointJudge("m", judge_server.url), file).known("x") == "1"


def test_prose_is_counted_and_not_scored(judge_server: JudgeServer) -> None:
    judge_server.answer = lambda prompt: "1, 2 and 3; not in 4"
    table = score_latents(EXAMPLES, EndpointJudge("m", judge_server.url), False)
    assert table["unanswered"].tolist() == [2, 2, 2]
    assert table[["detection", "fuzzing"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (200, b'{"choices": []}'), (400, b"content filter")]
)
def test_one_prompt_that_an_endpoint_does_not_take_does_not_end_a_run(
    status: int, body: bytes, judge_server: JudgeServer
) -> None:
    judge = EndpointJudge("m", judge_server.url)
    judge_server.status, judge_server.body = status, body
    with pytest.raises(JudgeUnavailableError, match="does not answer: .*Check the address"):
        judge("an endpoint that never answered")
    judge_server.status, judge_server.body = 200, None
    assert judge("x") == "1"
    judge_server.status, judge_server.body, judge_server.prompts = status, body, []
    assert judge("y") == ""
    assert len(judge_server.prompts) == 3


def http_date(**later: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(**later), usegmt=True)


def test_a_busy_judge_is_given_the_time_it_asks_for(judge_server: JudgeServer) -> None:
    judge = EndpointJudge("m", judge_server.url)
    judge_server.status = 429
    for soon in (lambda: "0.5", lambda: http_date(seconds=1.9)):
        judge_server.headers, judge_server.prompts = {"Retry-After": soon()}, []
        started = time.monotonic()
        with pytest.raises(JudgeUnavailableError, match="429"):
            judge("x")
        assert time.monotonic() - started > 0.85
        assert len(judge_server.prompts) == 3
    for wait in ("3600", http_date(hours=1)):
        judge_server.headers, judge_server.prompts = {"Retry-After": wait}, []
        with pytest.raises(JudgeUnavailableError, match=r"asks to wait 3\d\d\d s. Run this again"):
            judge("x")
        assert len(judge_server.prompts) == 1
    judge_server.headers, judge_server.prompts = {"Retry-After": "soon"}, []
    with pytest.raises(JudgeUnavailableError, match="429"):
        judge("x")
    assert len(judge_server.prompts) == 3


@pytest.mark.parametrize("latents", ["0", "-1"])
def test_no_latents_are_not_all_latents(
    latents: str, tiny_gemma2: Any, tiny_tokens: Any, tmp_path: Path
) -> None:
    training_sae(d_in=32).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    with pytest.raises(ValueError, match=f"Give 1 or more latents .*--latents.* got {latents}"):
        latent_examples(sae, tiny_gemma2, tiny_tokens, per_bin=int(latents))


def test_asking_what_it_costs_makes_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "mistyped"
    assert main(["interpret", str(where), "--judge", "m", "--url", "http://localhost/v1"]) == 1
    assert "has no run.json" in capsys.readouterr().err
    assert not where.exists()


def test_a_local_judge_that_cannot_be_one_is_said(gemma2_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(JudgeUnavailableError, match="has no chat template: take a model"):
        local_judge(str(gemma2_folder))
    with pytest.raises(ModelUnavailableError, match="has no config.json"):
        local_judge(str(tmp_path))
    with pytest.raises(ValueError, match="Unknown device 'banana'"):
        local_judge(str(gemma2_folder), device="banana")


def test_a_local_judge_s_answers_are_its_own_weights(gemma2_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gemma2_folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    names = []
    for scale in (1.0, 1.0, 1.1):
        model = AutoModelForCausalLM.from_pretrained(gemma2_folder)
        model.get_input_embeddings().weight.data *= scale
        for part in (model, tokenizer):
            part.save_pretrained(tmp_path / "judge")
        judge = local_judge(str(tmp_path / "judge"))
        assert isinstance(judge("Say something."), str)
        names.append(judge.name)
    assert names[0] == names[1] != names[2]
