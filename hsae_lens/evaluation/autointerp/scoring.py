"""Automatic interpretation by activation rank: can a judge say what a latent stands for?

A latent is explained from examples and the explanation is scored on others (Bills et al. 2023;
detection and fuzzing as in delphi, arXiv 2410.13928). What is new here is the rank: a latent where
it comes first in a token's code and where it comes a hundredth are scored apart.
"""

from __future__ import annotations

import logging
import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from hsae_lens.evaluation.autointerp.excerpts import Excerpt, LatentExamples, one_line
from hsae_lens.evaluation.autointerp.judges import Judge

logger = logging.getLogger(__name__)

EXPLAIN = """\
Below are excerpts of text. In each, the words between << and >> make one neuron of a language
model fire. In one short sentence, say what these words have in common, or what the neuron looks
for.

{examples}

The neuron fires on:"""

DETECT = """\
A neuron of a language model fires on: {explanation}

Below are {n} numbered excerpts. In some of them it fires.

{examples}

Write the numbers of the excerpts in which it fires, separated by commas, or "none".
Nothing else."""

FUZZ = """\
A neuron of a language model fires on: {explanation}

Below are {n} numbered excerpts, each with words between << and >>. In some excerpts the marked
words are the ones it fires on, in others they were marked at random.

{examples}

Write the numbers of the excerpts whose marks are right, separated by commas, or "none".
Nothing else."""


def autointerp_prompts(examples: LatentExamples, explanation: str | None) -> list[str]:
    """The prompt that asks for an explanation, or the two that score one."""
    if explanation is None:
        return [EXPLAIN.format(examples="\n".join(f"- {e.with_mark()}" for e in examples.shown))]
    detect, _ = _quiz(examples, examples.silent)
    fuzz, _ = _quiz(examples, examples.mismarked)
    return [
        DETECT.format(explanation=explanation, n=len(detect), examples=_numbered(detect, False)),
        FUZZ.format(explanation=explanation, n=len(fuzz), examples=_numbered(fuzz, True)),
    ]


def score_latents(
    examples: Sequence[LatentExamples], judge: Judge, progress: bool = True
) -> pd.DataFrame:
    """Asks the judge to explain each latent and scores its explanations.

    Returns:
        A row per latent: ``latent``, ``ranks`` ("1–8"), ``explanation``, ``detection`` and
        ``fuzzing``: balanced accuracies, 0.5 is guessing; ``unanswered``, how many of the latent's
        three questions have no answer in the form asked for: there a score is NaN. (Without an
        explanation, the other two are not asked.)

    Raises:
        JudgeUnavailableError: if the judge cannot be reached. With a ``CachedJudge`` the same call
            goes on where it stopped.
    """
    rows = []
    for latent in tqdm(examples, desc="Judging", disable=not progress):
        explanation = _explanation(judge(autointerp_prompts(latent, None)[0]))
        scores = [math.nan, math.nan]
        if explanation:
            truths = [_quiz(latent, wrong)[1] for wrong in (latent.silent, latent.mismarked)]
            prompts = autointerp_prompts(latent, explanation)
            scores = [
                _balanced_accuracy(judge(p), truth)
                for p, truth in zip(prompts, truths, strict=True)
            ]
        rows.append(
            {
                "latent": latent.latent,
                "ranks": f"{latent.ranks[0]}–{latent.ranks[1]}",
                "explanation": explanation,
                "detection": scores[0],
                "fuzzing": scores[1],
                "unanswered": (not explanation) + sum(map(math.isnan, scores)),
            }
        )
    table = pd.DataFrame(rows)
    if missing := int(table["unanswered"].sum()):
        logger.warning(
            "The judge gave no answer in the form asked for to %d of %d questions; what they "
            "decide is NaN.", missing, 3 * len(table)
        )  # fmt: skip
    return table


def asking_cost(
    examples: Sequence[LatentExamples],
    tokenizer: Any = None,
    known: Callable[[str], str | None] = lambda prompt: None,
) -> dict[str, int]:
    """What :func:`score_latents` would ask, before it is asked: ``prompts`` and about how many
    ``tokens`` in them (with a tokenizer; else four characters each).

    Args:
        known: ``CachedJudge.known``, to leave out what is answered already.
    """
    prompts = []
    for latent in examples:
        ask = autointerp_prompts(latent, None)[0]
        answer = known(ask)
        explanation = "x" * 120 if answer is None else _explanation(answer)
        all_three = (ask, *autointerp_prompts(latent, explanation))
        prompts += [prompt for prompt in all_three if known(prompt) is None]
    count = (lambda p: len(tokenizer(p)["input_ids"])) if tokenizer else (lambda p: len(p) // 4)
    return {"prompts": len(prompts), "tokens": sum(map(count, prompts))}


def _explanation(answer: str) -> str:
    return one_line(answer)[:300]


def _quiz(examples: LatentExamples, wrong: list[Excerpt]) -> tuple[list[Excerpt], list[bool]]:
    """Firing and wrong excerpts in an order that depends on the latent only, and which fire."""
    mixed = [(e, True) for e in examples.firing] + [(e, False) for e in wrong]
    random.Random(examples.latent).shuffle(mixed)
    return [e for e, _ in mixed], [truth for _, truth in mixed]


def _balanced_accuracy(answer: str, truth: list[bool]) -> float:
    """Balanced accuracy of an answer in the form asked for, like "1, 4, 7" or "none"; NaN for any
    other, sentences with numbers in them too."""
    answer = answer.strip().removesuffix(".").strip("\"'").lower()
    if not re.fullmatch(r"none|[0-9]{1,9}(\s*,\s*[0-9]{1,9})*", answer):
        return math.nan
    numbers = [int(n) for n in re.findall("[0-9]+", answer)]
    if any(not 1 <= n <= len(truth) for n in numbers):
        return math.nan
    said = [n + 1 in numbers for n in range(len(truth))]
    hit = [s for s, t in zip(said, truth, strict=True) if t]
    miss = [not s for s, t in zip(said, truth, strict=True) if not t]
    return (sum(hit) / len(hit) + sum(miss) / len(miss)) / 2 if hit and miss else math.nan


def _numbered(excerpts: list[Excerpt], marked: bool) -> str:
    shown = (e.with_mark() if marked else e.plain() for e in excerpts)
    return "\n".join(f"{n}. {text}" for n, text in enumerate(shown, 1))
