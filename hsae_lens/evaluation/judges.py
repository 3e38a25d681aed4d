"""Language models that explain latents and judge explanations: an endpoint, or a local one.

A judge is anything that maps a prompt to text and has a ``name`` for its answers' cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

import requests
import torch
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from hsae_lens.models import SMOLLM2, smollm2_folder


class Judge(Protocol):
    """Answers prompts. ``name`` must change whenever its answers would."""

    name: str

    def __call__(self, prompt: str) -> str: ...


OPENAI = "https://api.openai.com"


class _Busy(requests.RequestException):
    """The endpoint asks for patience."""


class JudgeUnavailableError(RuntimeError):
    """The judge cannot be reached or refuses; the message says what to do."""


class EndpointJudge:
    """Any OpenAI-compatible chat endpoint.

    Args:
        model: the model's name there.
        base_url: up to and without ``/chat/completions``.
        api_key: None reads the environment: ``HSAE_JUDGE_API_KEY``, or ``OPENAI_API_KEY`` at
            OpenAI's own address only, so that it goes nowhere else. Local servers need none.
        timeout: seconds for one answer. A judge that is busy, or does not answer, is asked three
            times.
    """

    def __init__(
        self,
        model: str,
        base_url: str = f"{OPENAI}/v1",
        api_key: str | None = None,
        timeout: float = 60,
        max_tokens: int = 200,
    ) -> None:
        self.name = f"{base_url} {model} {max_tokens}"
        self.url = f"{base_url.rstrip('/')}/chat/completions"
        self.body: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": max_tokens}
        self.key = api_key or os.environ.get("HSAE_JUDGE_API_KEY")
        if self.key is None and base_url.startswith(OPENAI):
            self.key = os.environ.get("OPENAI_API_KEY")
        self.timeout = timeout

    def __call__(self, prompt: str) -> str:
        try:
            return self._ask(prompt)
        except requests.RequestException as error:
            raise JudgeUnavailableError(
                f"The judge at {self.url} does not answer: {error}. Check the address, the key "
                "(HSAE_JUDGE_API_KEY) and the model's name; what was answered so far is kept."
            ) from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise JudgeUnavailableError(
                f"{self.url} answered, but not as a chat endpoint does: {error!r}."
            ) from error

    @retry(
        retry=retry_if_exception_type((requests.ConnectionError, requests.Timeout, _Busy)),
        stop=stop_after_attempt(3),
        wait=wait_exponential(multiplier=0.2),
        reraise=True,
    )
    def _ask(self, prompt: str) -> str:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        body = {**self.body, "messages": [{"role": "user", "content": prompt}]}
        answer = requests.post(self.url, json=body, headers=headers, timeout=self.timeout)
        if answer.status_code == 429 or answer.status_code >= 500:
            raise _Busy(f"{answer.status_code} {answer.reason}")
        answer.raise_for_status()
        content = answer.json()["choices"][0]["message"]["content"]
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"the answer is {content!r} (refused, or out of max_tokens)")
        return content


class LocalJudge:
    """A Hugging Face chat model on this machine, answering greedily.

    Small ones follow no instructions: a 135M model's scores are those of guessing.
    """

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int = 60) -> None:
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self.name = f"local {model.config._name_or_path} {max_tokens}"

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


def local_judge(name_or_path: str) -> LocalJudge:
    """A :class:`LocalJudge` by hub name, local folder, or ``smollm2-135m``.

    Raises:
        JudgeUnavailableError: if it cannot be had here.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2_folder() if name_or_path == SMOLLM2 else None
    try:
        source = folder or name_or_path
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        return LocalJudge(model, AutoTokenizer.from_pretrained(source))
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise JudgeUnavailableError(f"Cannot open the judge {name_or_path!r}: {reason}") from error


class CachedJudge:
    """Keeps every answer in a JSON-lines file, so that nothing is asked or paid for twice."""

    def __init__(self, judge: Judge, file: str | Path) -> None:
        self.judge, self.file, self.name = judge, Path(file), judge.name
        self.answers: dict[str, str] = {}
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                try:
                    kept = json.loads(line)
                    self.answers[kept["key"]] = kept["answer"]
                except (json.JSONDecodeError, KeyError):
                    continue  # the line that an interruption cut short
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def known(self, prompt: str) -> str | None:
        """The answer kept for this prompt, if there is one."""
        return self.answers.get(self._key(prompt))

    def __call__(self, prompt: str) -> str:
        key = self._key(prompt)
        if key not in self.answers:
            answer = self.judge(prompt)
            with self.file.open("a") as opened:
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
