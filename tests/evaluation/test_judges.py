"""Judges: whom the key goes to, and what becomes of a run when answers fail."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from helpers.judge_server import JudgeServer

from hsae_lens._util.unavailable import JudgeUnavailableError, ModelUnavailableError
from hsae_lens.evaluation.autointerp.judges import CachedJudge, EndpointJudge, local_judge


def test_judges_that_fail_are_said(
    judge_server: JudgeServer, monkeypatch: pytest.MonkeyPatch
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


def test_a_local_judge_answers() -> None:
    judge = local_judge("smollm2-135m")
    answer = judge("What is the capital of France? Answer in one word.")
    assert "Paris" in answer


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


def test_a_key_that_is_no_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSAE_JUDGE_API_KEY", "sec\nret")
    with pytest.raises(ValueError, match="characters that no key has") as error:
        EndpointJudge("m", "http://localhost/v1")
    assert "ret" not in str(error.value)


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
