"""Language models that explain latents and judge explanations: an endpoint, or a local one.

A judge is anything that maps a prompt to text and has a ``name`` for its answers' cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
import torch
from tenacity import (
    RetryCallState,
    retry,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
)

from hsae_lens._util.unavailable import JudgeUnavailableError
from hsae_lens.models.devices import AUTO, model_device, model_dtype
from hsae_lens.models.fingerprint import model_fingerprint
from hsae_lens.models.opening import local_folder
from hsae_lens.models.smollm2 import SMOLLM2, SMOLLM2_HUB_NAME, smollm2_folder


class Judge(Protocol):
    """Answers prompts, "" where it has no answer. ``name`` must change whenever answers would."""

    name: str

    def __call__(self, prompt: str) -> str: ...


OPENAI = "api.openai.com"

ATTEMPTS = 3

LONGEST_WAIT = 60.0  # seconds that a busy endpoint may ask for

REFUSED = (400, 422)  # what endpoints say to a prompt that they do not take


class _AskAgainError(Exception):
    """The endpoint is busy, or what it sent is no chat answer; it may be asked again.

    wait: how many seconds it asks for.
    """

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


def _seconds_to_next_attempt(state: RetryCallState) -> float:
    """Seconds before the next attempt: what the endpoint asked for, else 0.2, 0.4, …"""
    error = state.outcome.exception() if state.outcome else None
    asked = getattr(error, "wait", None)
    return 0.1 * 2**state.attempt_number if asked is None else asked


class EndpointJudge:
    """Any OpenAI-compatible chat endpoint.

    Where it is busy, does not answer, or answers with nothing, it is asked three times, after the
    wait it asks for (``Retry-After``) if that is a minute or less. A prompt that then has no answer
    (refused, or out of max_tokens) gets "", so that it does not end a run.

    Args:
        model: the model's name there.
        base_url: up to and without ``/chat/completions``.
        api_key: None reads the environment: ``HSAE_JUDGE_API_KEY``, or ``OPENAI_API_KEY`` at
            https://api.openai.com only, so that it goes nowhere else. Local servers need none.
        timeout: seconds for one answer.

    Raises:
        ValueError: if the address is no URL of a web server, or the key no key.
    """

    def __init__(
        self,
        model: str,
        base_url: str = f"https://{OPENAI}/v1",
        api_key: str | None = None,
        timeout: float = 60,
        max_tokens: int = 200,
    ) -> None:
        self.name = f"{base_url} {model} {max_tokens}"
        self.url = _chat_address(base_url)
        self.body: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": max_tokens}
        self.key = (api_key or os.environ.get("HSAE_JUDGE_API_KEY", "")).strip()
        parts = urlsplit(self.url)
        if not self.key and (parts.scheme, parts.hostname) == ("https", OPENAI):
            self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise ValueError("The judge's key (HSAE_JUDGE_API_KEY) has characters that no key has.")
        self.timeout = timeout
        self.has_answered = False

    def __call__(self, prompt: str) -> str:
        try:
            return self._ask(prompt)
        except (requests.RequestException, _AskAgainError) as error:
            raise JudgeUnavailableError(
                f"The judge at {self.url} does not answer: {error}. Check the address, the key "
                "(HSAE_JUDGE_API_KEY) and the model's name; what was answered so far is kept."
            ) from error

    @retry(
        retry=retry_if_exception_type((requests.ConnectionError, requests.Timeout, _AskAgainError))
        | retry_if_result(lambda answer: not answer),
        stop=stop_after_attempt(ATTEMPTS),
        wait=_seconds_to_next_attempt,
        retry_error_callback=lambda state: state.outcome and state.outcome.result(),
    )
    def _ask(self, prompt: str) -> str:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        body = {**self.body, "messages": [{"role": "user", "content": prompt}]}
        answer = requests.post(self.url, json=body, headers=headers, timeout=self.timeout)
        status = f"{answer.status_code} {answer.reason}"
        if answer.status_code == 429 or answer.status_code >= 500:
            wait = _seconds_asked_for(answer.headers.get("Retry-After", ""))
            if wait is not None and wait > LONGEST_WAIT:
                raise JudgeUnavailableError(
                    f"The judge at {self.url} is busy ({status}) and asks to wait {wait:.0f} s. "
                    "Run this again then; what was answered so far is kept."
                )
            raise _AskAgainError(status, wait)
        if answer.status_code in REFUSED and self.has_answered:
            return ""  # this prompt, not the key or the address
        answer.raise_for_status()
        try:
            message = answer.json()["choices"][0]["message"]
            content = message.get("content")
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            if self.has_answered:
                return ""
            raise _AskAgainError(f"it sends what no chat endpoint does ({error!r})") from error
        self.has_answered = True
        return content.strip() if isinstance(content, str) else ""


def _chat_address(base_url: str) -> str:
    """Where to post prompts, as requests will understand it."""
    try:
        url = requests.Request("POST", f"{base_url.rstrip('/')}/chat/completions").prepare().url
        parts = urlsplit(url or "")
        if parts.scheme in ("http", "https") and parts.hostname and not parts.username:
            return parts.geturl()
    except (requests.RequestException, ValueError):
        pass
    raise ValueError(
        f"The judge's address {base_url!r} is no URL of a web server: write it as "
        "https://HOST/v1, or http://localhost:PORT/v1 for one on this machine."
    )


def _seconds_asked_for(retry_after: str) -> float | None:
    """A ``Retry-After`` header, seconds or a date, as seconds from now; None if it is neither."""
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", retry_after.strip()):
        return float(retry_after)
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


class LocalJudge:
    """A Hugging Face chat model on this machine, answering greedily.

    Small ones follow no instructions: a 135M model's scores are those of guessing.
    """

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int = 60) -> None:
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self.name = f"local {model_fingerprint(model, tokenizer)} {max_tokens}"

    @torch.no_grad()
    def __call__(self, prompt: str) -> str:
        chat = [{"role": "user", "content": prompt}]
        tokens = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        answer = self.model.generate(
            **tokens,
            max_new_tokens=self.max_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        new = answer[0, tokens["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True))


def local_judge(name_or_path: str, device: str = "cpu", dtype: str = AUTO) -> LocalJudge:
    """A :class:`LocalJudge` by hub name, local folder, or ``smollm2-135m``.

    Args:
        device, dtype: as :func:`hsae_lens.models.open_model` takes them.

    Raises:
        JudgeUnavailableError: if it cannot be had here, or is no chat model.
        ModelUnavailableError: if the folder is not of a model.
        ValueError: for an unknown dtype or a device that is not here.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: str | Path = local_folder(name_or_path) or name_or_path
    if name_or_path.lower() == SMOLLM2:
        source = smollm2_folder() or SMOLLM2_HUB_NAME
    where = model_device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if tokenizer.chat_template is None:
            raise JudgeUnavailableError(
                f"The judge {name_or_path!r} has no chat template: take a model that is tuned to "
                "follow instructions."
            )
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=model_dtype(dtype, where))
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise JudgeUnavailableError(f"Cannot open the judge {name_or_path!r}: {reason}") from error
    return LocalJudge(model.to(where), tokenizer)


class CachedJudge:
    """Keeps every answer in a JSON-lines file, so that nothing is asked or paid for twice.

    No answer ("") is not kept: the next run asks again.
    """

    def __init__(self, judge: Judge, file: str | Path) -> None:
        self.judge, self.file, self.name = judge, Path(file), judge.name
        self.answers: dict[str, str] = {}
        lines = self.file.read_bytes().splitlines() if self.file.exists() else []
        for line in lines:
            try:
                kept = json.loads(line)
                if kept["answer"].strip():
                    self.answers[kept["key"]] = kept["answer"]
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # the line that an interruption cut short

    def known(self, prompt: str) -> str | None:
        """The answer kept for this prompt, if there is one."""
        return self.answers.get(self._key(prompt))

    def __call__(self, prompt: str) -> str:
        key = self._key(prompt)
        if key not in self.answers:
            answer = self.judge(prompt)
            if not answer.strip():
                return ""
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as opened:
                opened.write("\n" * self._cut_short() + json.dumps({"key": key, "answer": answer}))
                opened.write("\n")
            self.answers[key] = answer
        return self.answers[key]

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(f"{self.name}\0{prompt}".encode()).hexdigest()[:24]

    def _cut_short(self) -> bool:
        """Whether the file ends in the middle of a line."""
        content = self.file.read_bytes()[-1:] if self.file.exists() else b""
        return content not in (b"", b"\n")
