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
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from hsae_lens.evaluation.judged import Judged
from hsae_lens.evaluation.judges import Judge
from hsae_lens.models import hook_activations
from hsae_lens.sae import HierarchicalTopKSAE

logger = logging.getLogger(__name__)

NAN = float("nan")
RANKS = ((1, 8), (9, 32), (33, 128))
BEFORE, AFTER = 16, 8  # tokens of context around an activation
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


@dataclass(frozen=True)
class Excerpt:
    """A stretch of text with one token marked: the one the latent fired on, or another."""

    before: str
    marked: str
    after: str

    def plain(self) -> str:
        return _one_line(self.before + self.marked + self.after)

    def with_mark(self) -> str:
        return _one_line(f"{self.before}<<{self.marked}>>{self.after}")


@dataclass(frozen=True)
class LatentExamples:
    """What a judge is shown about a latent at some ranks.

    shown: excerpts to explain it from.  firing, silent: excerpts to score the explanation on.
    mismarked: the firing ones with another token marked.
    """

    latent: int
    ranks: tuple[int, int]
    shown: list[Excerpt]
    firing: list[Excerpt]
    silent: list[Excerpt]
    mismarked: list[Excerpt]


@torch.no_grad()
def latent_examples(
    sae: HierarchicalTopKSAE,
    model: Any,
    tokens: torch.Tensor,
    per_bin: int = 10,
    ranks: Sequence[tuple[int, int]] = RANKS,
    n_shown: int = 8,
    n_scored: int = 5,
    seed: int = 0,
    batch_size: int = 16,
) -> list[LatentExamples]:
    """Latents drawn from each range of ranks, with excerpts in which they have such a rank.

    A latent is drawn with the probability with which it stands at those ranks, among those that do
    so in enough of these sequences. Excerpts are drawn over all its activations there, not its
    largest ones only, at most one from a sequence.

    Args:
        tokens: int64 ``[n_sequences, context_size]``.
        per_bin: latents for each range of ranks (fewer, if the texts hold no more).
        ranks: inclusive ranges within 1..K; those beyond K are left out.
        n_shown, n_scored: excerpts to explain from, and of each kind to score on.

    Raises:
        ValueError: if the texts hold no latent with enough activations, or none is asked for.
    """
    if min(per_bin, n_shown, n_scored) < 1:
        raise ValueError(
            f"Give 1 or more latents for each range of ranks (--latents), got {per_bin}, and 1 or "
            f"more excerpts to show and to score on, got {n_shown} and {n_scored}."
        )
    rng = random.Random(seed)
    judged = Judged.by(sae, model)
    indices, keep = [], []
    for batch in tqdm(tokens.split(batch_size), "Latents"):
        acts = hook_activations(model, batch, sae.cfg.metadata.hook_name).flatten(2)
        code = sae.encode_joined(acts)
        indices.append(torch.where(code.values > 0, code.indices, -1).cpu())
        keep.append(judged(batch, acts.cpu()))
    latents, kept = torch.cat(indices), torch.cat(keep)
    texts = [[model.tokenizer.decode([t]) for t in row] for row in tokens.tolist()]
    found: list[LatentExamples] = []
    for low, high in ranks:
        if low > sae.cfg.k:
            continue
        here = latents[kept][:, low - 1 : high]
        counts = torch.bincount(here[here >= 0], minlength=sae.cfg.d_sae)
        often = (counts >= n_shown + n_scored).nonzero().flatten().tolist()
        wanted = len(found) + per_bin
        for latent in _in_weighted_order(rng, often, counts[often].tolist()):
            fires = (latents == latent).any(-1)  # at whatever rank
            ranked = (latents[..., low - 1 : high] == latent).any(-1) & kept
            examples = _examples(rng, texts, fires, ranked, n_shown, n_scored)
            if examples is not None:
                found.append(LatentExamples(latent, (low, min(high, sae.cfg.k)), *examples))
            if len(found) == wanted:
                break
    if not found:
        raise ValueError(
            f"No latent is active in {n_shown + n_scored} of {len(tokens)} sequences: give more "
            "text."
        )
    return found


def _examples(
    rng: random.Random,
    texts: list[list[str]],
    fires: torch.Tensor,
    ranked: torch.Tensor,
    n_shown: int,
    n_scored: int,
) -> tuple[list[Excerpt], list[Excerpt], list[Excerpt], list[Excerpt]] | None:
    """Shown, firing, silent and mismarked excerpts, or None if these texts hold too few.

    No sequence gives two excerpts, so that none is scored that the judge has seen; silent ones hold
    no token that the latent fires on, and no such token is mismarked.
    """
    rows = ranked.any(1).nonzero().flatten().tolist()
    rng.shuffle(rows)
    places = [(row, rng.choice(ranked[row].nonzero().flatten().tolist())) for row in rows]
    shown = places[:n_shown]
    scored: list[tuple[int, int]] = []
    mismarked: list[Excerpt] = []
    for row, at in places[n_shown:]:
        window = range(max(0, at - BEFORE), min(len(texts[row]), at + 1 + AFTER))
        others = [n for n in window if not fires[row, n]]
        if others and len(scored) < n_scored:
            scored.append((row, at))
            mismarked.append(_excerpt(texts, row, rng.choice(others), window))
    silent: list[Excerpt] = []
    rest = sorted(set(range(len(texts))) - {row for row, _ in (*shown, *scored)})
    for row in rng.sample(rest, len(rest)):
        at = rng.randrange(BEFORE, max(BEFORE + 1, len(texts[row]) - AFTER))
        window = range(max(0, at - BEFORE), min(len(texts[row]), at + 1 + AFTER))
        if at < len(texts[row]) and not fires[row, window.start : window.stop].any():
            silent.append(_excerpt(texts, row, at))
    if len(shown) < n_shown or len(scored) < n_scored or len(silent) < n_scored:
        return None
    return (
        [_excerpt(texts, *place) for place in shown],
        [_excerpt(texts, *place) for place in scored],
        silent[:n_scored],
        mismarked,
    )


def interpretation_prompts(examples: LatentExamples, explanation: str | None) -> list[str]:
    """The prompt that asks for an explanation, or the two that score one."""
    if explanation is None:
        return [EXPLAIN.format(examples="\n".join(f"- {e.with_mark()}" for e in examples.shown))]
    detect, _ = _quiz(examples, examples.silent)
    fuzz, _ = _quiz(examples, examples.mismarked)
    return [
        DETECT.format(explanation=explanation, n=len(detect), examples=_numbered(detect, False)),
        FUZZ.format(explanation=explanation, n=len(fuzz), examples=_numbered(fuzz, True)),
    ]


def interpret(
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
        explanation = _explanation(judge(interpretation_prompts(latent, None)[0]))
        scores = [NAN, NAN]
        if explanation:
            truths = [_quiz(latent, wrong)[1] for wrong in (latent.silent, latent.mismarked)]
            prompts = interpretation_prompts(latent, explanation)
            scores = [_score(judge(p), truth) for p, truth in zip(prompts, truths, strict=True)]
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


def cost(
    examples: Sequence[LatentExamples],
    tokenizer: Any = None,
    known: Callable[[str], str | None] = lambda prompt: None,
) -> dict[str, int]:
    """What :func:`interpret` would ask, before it is asked: ``prompts`` and about how many
    ``tokens`` in them (with a tokenizer; else four characters each).

    Args:
        known: ``CachedJudge.known``, to leave out what is answered already.
    """
    prompts = []
    for latent in examples:
        ask = interpretation_prompts(latent, None)[0]
        answer = known(ask)
        explanation = "x" * 120 if answer is None else _explanation(answer)
        all_three = (ask, *interpretation_prompts(latent, explanation))
        prompts += [prompt for prompt in all_three if known(prompt) is None]
    count = (lambda p: len(tokenizer(p)["input_ids"])) if tokenizer else (lambda p: len(p) // 4)
    return {"prompts": len(prompts), "tokens": sum(map(count, prompts))}


def _explanation(answer: str) -> str:
    return _one_line(answer)[:300]


def _quiz(examples: LatentExamples, wrong: list[Excerpt]) -> tuple[list[Excerpt], list[bool]]:
    """Firing and wrong excerpts in an order that depends on the latent only, and which fire."""
    mixed = [(e, True) for e in examples.firing] + [(e, False) for e in wrong]
    random.Random(examples.latent).shuffle(mixed)
    return [e for e, _ in mixed], [truth for _, truth in mixed]


def _score(answer: str, truth: list[bool]) -> float:
    """Balanced accuracy of an answer in the form asked for, like "1, 4, 7" or "none"; NaN for any
    other, sentences with numbers in them too."""
    answer = answer.strip().removesuffix(".").strip("\"'").lower()
    if not re.fullmatch(r"none|[0-9]{1,9}(\s*,\s*[0-9]{1,9})*", answer):
        return NAN
    numbers = [int(n) for n in re.findall("[0-9]+", answer)]
    if any(not 1 <= n <= len(truth) for n in numbers):
        return NAN
    said = [n + 1 in numbers for n in range(len(truth))]
    hit = [s for s, t in zip(said, truth, strict=True) if t]
    miss = [not s for s, t in zip(said, truth, strict=True) if not t]
    return (sum(hit) / len(hit) + sum(miss) / len(miss)) / 2 if hit and miss else NAN


def _in_weighted_order(rng: random.Random, items: list[int], weights: list[float]) -> list[int]:
    """The items in a random order in which heavy ones tend to come first."""
    pairs = zip(items, weights, strict=True)
    keyed = [(rng.random() ** (1 / weight), item) for item, weight in pairs]
    return [item for _, item in sorted(keyed, reverse=True)]


def _excerpt(texts: list[list[str]], row: int, at: int, window: range | None = None) -> Excerpt:
    """The text around a token, or a given window of it, with that token marked."""
    words = texts[row]
    window = window or range(max(0, at - BEFORE), min(len(words), at + 1 + AFTER))
    before, after = words[window.start : at], words[at + 1 : window.stop]
    return Excerpt("".join(before), words[at], "".join(after))


def _numbered(excerpts: list[Excerpt], marked: bool) -> str:
    shown = (e.with_mark() if marked else e.plain() for e in excerpts)
    return "\n".join(f"{n}. {text}" for n, text in enumerate(shown, 1))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
