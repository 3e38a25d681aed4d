"""Excerpts in which a latent fires at some ranks, and in which it does not."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hsae_lens.evaluation.rank_ranges import RANK_RANGES
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.sae.codes import each_code
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

BEFORE, AFTER = 16, 8  # tokens of context around an activation


@dataclass(frozen=True)
class Excerpt:
    """A stretch of text with one token marked: the one the latent fired on, or another."""

    before: str
    marked: str
    after: str

    def plain(self) -> str:
        return one_line(self.before + self.marked + self.after)

    def with_mark(self) -> str:
        return one_line(f"{self.before}<<{self.marked}>>{self.after}")


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
    model: HookedModel,
    tokens: torch.Tensor,
    per_bin: int = 10,
    ranks: Sequence[tuple[int, int]] = RANK_RANGES,
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
    indices, keep = [], []
    for batch in each_code(sae, model, tokens, batch_size, "Latents"):
        indices.append(torch.where(batch.code.values > 0, batch.code.indices, -1).cpu())
        keep.append(batch.keep)
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
            examples = _draw_excerpts(rng, texts, fires, ranked, n_shown, n_scored)
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


def _draw_excerpts(
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
            mismarked.append(_excerpt_at(texts, row, rng.choice(others), window))
    silent: list[Excerpt] = []
    rest = sorted(set(range(len(texts))) - {row for row, _ in (*shown, *scored)})
    for row in rng.sample(rest, len(rest)):
        at = rng.randrange(BEFORE, max(BEFORE + 1, len(texts[row]) - AFTER))
        window = range(max(0, at - BEFORE), min(len(texts[row]), at + 1 + AFTER))
        if at < len(texts[row]) and not fires[row, window.start : window.stop].any():
            silent.append(_excerpt_at(texts, row, at))
    if len(shown) < n_shown or len(scored) < n_scored or len(silent) < n_scored:
        return None
    return (
        [_excerpt_at(texts, *place) for place in shown],
        [_excerpt_at(texts, *place) for place in scored],
        silent[:n_scored],
        mismarked,
    )


def _in_weighted_order(rng: random.Random, items: list[int], weights: list[float]) -> list[int]:
    """The items in a random order in which heavy ones tend to come first."""
    pairs = zip(items, weights, strict=True)
    keyed = [(rng.random() ** (1 / weight), item) for item, weight in pairs]
    return [item for _, item in sorted(keyed, reverse=True)]


def _excerpt_at(texts: list[list[str]], row: int, at: int, window: range | None = None) -> Excerpt:
    """The text around a token, or a given window of it, with that token marked."""
    words = texts[row]
    window = window or range(max(0, at - BEFORE), min(len(words), at + 1 + AFTER))
    before, after = words[window.start : at], words[at + 1 : window.stop]
    return Excerpt("".join(before), words[at], "".join(after))


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
