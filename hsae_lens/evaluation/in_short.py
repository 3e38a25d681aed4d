"""What a page says first, to somebody who decides and does not train: tables in, words out.

No HTML here; ``report.py`` has the page. ``rows`` are those of the SAE's frontier whose budgets are
fixed, the smallest first, and ``by`` the qualities that are worth a share (``kept.py``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from hsae_lens._util.columns import QUALITIES
from hsae_lens._util.tables import rows_by_rule
from hsae_lens.evaluation.frontier.adaptive import beside_fixed
from hsae_lens.evaluation.frontier.advice import Advice
from hsae_lens.evaluation.kept import (
    MOST,
    how_to_read,
    kept_table,
    listed,
    percent,
    plain_number,
    shown_qualities,
    worth_a_share,
)
from hsae_lens.evaluation.run_folder import EvalRun
from hsae_lens.sae.controls import RANDOM_DECODER

BY = {"explained_variance": "activations", "ce_score": "predictions"}
GIVES = {"explained_variance": "explained", "ce_score": "of predictions kept"}
"""What the qualities are of, and what stands after a figure of theirs."""

WHAT_AN_SAE_IS = (
    "A sparse autoencoder (SAE) rewrites what a language model holds at one point of its work as a "
    "mix of a few out of many learnt patterns (latents), which people can look at one by one."
)


@dataclass(frozen=True)
class InShort:
    """The first screen in words.

    what: the thing, for who has never seen one.  kept: a row per budget, cells are words, in a
    second line what they are of.  reading: how to read it.  points: a few words and their sentence.
    """

    what: str
    kept: pd.DataFrame
    reading: str
    points: dict[str, str]


def run_in_short(run: EvalRun) -> InShort:
    """The first screen of a run's page."""
    mine = run.frontier[run.frontier["sae"] == run.about]
    rows = rows_by_rule(mine).sort_values("k")
    advices, refused = worth_a_share(rows)
    kept = kept_table(rows, advices, run.own_metrics)
    middle = rows["k"].iloc[len(rows) // 2] if len(rows) else math.nan
    at = next((advices[of].k for of in reversed(QUALITIES) if of in advices), middle)
    points = {
        "Which budget": _which(advices, refused),
        "What one SAE saves": _saved(run, len(kept)) if run.hierarchical else "",
        "What is given up": _given_up(run, rows, at),
        "Budgets on average": _on_average(mine, advices, at),
        "Beside others": _beside_others(run, advices, at),
        "What is uncertain": _uncertain(run, mine, rows),
    }
    reading = how_to_read(rows, advices, run.own_metrics)
    return InShort(_what_it_is(run), kept, reading, {n: text for n, text in points.items() if text})


def what_one_saves(n_budgets: int, size: int | None, training_time: str | None = None) -> str:
    """One SAE beside one for each of some budgets, in runs and files.

    Args:
        size: of its weights, in bytes, if it is known.
        training_time: in the SAE's own words, if it says.
    """
    each, all_of_them = (
        (f" ({size_in_words(size)})", f", {size_in_words(n_budgets * size)}") if size else ("", "")
    )
    text = f"One training run and one file{each} for every budget"
    if n_budgets > 1:
        text += (
            f"; an SAE for each of the {n_budgets} above takes {n_budgets} runs and {n_budgets} "
            f"files{all_of_them}"
        )
    time = f" Its training took {training_time.strip().rstrip('.')}." if training_time else ""
    return f"{text}.{time}"


def _what_it_is(run: EvalRun) -> str:
    facts = run.facts
    text = (
        f"{WHAT_AN_SAE_IS} Here: {facts['model']} at {facts['hook']}, {facts['d_in']:,} numbers "
        f"for each token (a word or a part of one), {facts['d_sae']:,} latents. The budget k is "
        "how many latents a token may use: few are easier to read, many keep more. "
    )
    if run.hierarchical:
        each = f"every k up to {facts['k']}"
        return f"{text}SAEs are usually trained for one k; this one serves {each} from one file."
    trained = f" (k={facts['k']})" if facts["k"] else ""
    return text + (
        f"This is a stock SAE, trained for one sparsity{trained}; at another budget each token’s "
        "code is cut to its k largest latents."
    )


def _which(advices: Mapping[str, Advice], refused: Sequence[str]) -> str:
    if not advices:
        return " ".join(refused)
    each = listed([f"k={advice.k} by the {BY[of]}" for of, advice in advices.items()])
    if len(advices) > 1 and len(ks := {advice.k for advice in advices.values()}) == 1:
        each = f"k={ks.pop()} by either measure"
    largest = next(iter(advices.values())).largest
    text = f"The smallest judged that keeps {MOST:.0%} of what k={largest} does is {each}."
    return " ".join([text, *refused])


def _saved(run: EvalRun, n_budgets: int) -> str:
    return what_one_saves(n_budgets, run.facts.get("bytes"), run.facts.get("training_time"))


def _given_up(run: EvalRun, rows: pd.DataFrame, at: float) -> str:
    text = ""
    if len(rows) and {"ce_clean", "ce_with_sae", "ce_ablated"} <= {*rows}:
        row = rows.iloc[int((rows["k"] - at).abs().argmin())]
        text = (
            f"At k={row['k']:g} the model’s error at the next token (cross-entropy) goes from "
            f"{row['ce_clean']:.2f} to {row['ce_with_sae']:.2f} nats; with zeros at this point it "
            f"is {row['ce_ablated']:.2f}. "
        )
    if run.hierarchical:
        text += (
            "An SAE trained for one budget alone can do somewhat better there, mostly at the "
            "smallest budgets and the largest, and its latents mix less of what occurs together; "
            "`hsae compare` measures it."
        )
    return text.strip()


def _on_average(mine: pd.DataFrame, by: Collection[str], at: float) -> str:
    """What spending on average gains over a fixed budget of the same l0, at one mean budget.

    The one nearest to ``at``: not the one that gains most.
    """
    table = rows_by_rule(beside_fixed(mine), "mean").dropna(subset="fixed explained_variance")
    if table.empty:
        return ""
    row = table.iloc[int((table["k"] - at).abs().argmin())]
    gives = [f"{row[of]:.1%} {GIVES[of]}" for of in shown_qualities(by)]
    fixed = [f"{row[f'fixed {of}']:.1%}" for of in shown_qualities(by)]
    return (
        f"{row['k']:g} latents per token on average (here {row['l0']:.1f}), more for hard tokens, "
        f"give {' and '.join(gives)}; as many for each token give {' and '.join(fixed)}."
    )


def _beside_others(run: EvalRun, by: Collection[str], at: float) -> str:
    """The other SAEs and the control at the same fixed budget."""
    rows, shown = rows_by_rule(run.frontier), shown_qualities(by)
    at_k = {str(name): of.iloc[0] for name, of in rows[rows["k"] == at].groupby("sae", sort=False)}
    if len(at_k) < 2:
        return ""
    names = {run.about: "this SAE", RANDOM_DECODER: f"{RANDOM_DECODER} (has learnt nothing)"}
    said = [
        f"{names.get(name, name)} {' and '.join(percent(row[of]) for of in shown)}"
        for name, row in at_k.items()
    ]
    return f"At k={at:g}, {' and '.join(GIVES[of] for of in shown)}: {', '.join(said)}."


def _uncertain(run: EvalRun, mine: pd.DataFrame, rows: pd.DataFrame) -> str:
    facts, n_tokens = run.facts, run.facts["tokens"]
    if "tokens" in mine and mine["tokens"].notna().all():
        n_tokens = int(mine["tokens"].iloc[0])
    documents = f" of {facts['documents']:,} documents" if "documents" in facts else ""
    text = (
        f"Judged on {n_tokens:,} tokens{documents} ({facts['text']}); another kind of text may "
        f"come out otherwise. {_errors(rows, run.own_metrics)} "
    )
    if "interpretation" not in run.tables:
        return text + "What single latents mean is not checked here."
    n_latents = len(run.tables["interpretation"])
    return text + f"What {n_latents:,} latents mean was asked of a language model, see below."


def _errors(rows: pd.DataFrame, own: Mapping[str, str]) -> str:
    """Two standard errors, the largest over budgets."""
    each = {of: f"{200 * rows[f'{of}_se'].max():.1f} points ({words})"
            for of, words in BY.items() if f"{of}_se" in rows}  # fmt: skip
    each |= {name: f"{plain_number(2 * rows[f'{name}_se'].max())} ({name})"
             for name in own if f"{name}_se" in rows}  # fmt: skip
    if not each:
        return "There are no standard errors (too few documents, or none asked for)."
    return f"Two standard errors over documents are at most {listed(each.values())}."


def size_in_words(n_bytes: int) -> str:
    """Bytes as people say them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.{0 if n_bytes >= 10 * size else 1}f} {unit}"
    return f"{max(1, round(n_bytes / 1e3))} KB"
