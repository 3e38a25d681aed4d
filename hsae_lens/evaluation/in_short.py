"""What a page says first, to somebody who decides and does not train: tables in, words out.

No HTML here; ``report.py`` has the page. Of one SAE, ``rows`` are those of its frontier whose
budgets are fixed, the smallest first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from hsae_lens._util.columns import LABELS, QUALITIES
from hsae_lens._util.tables import rows_by_rule
from hsae_lens.evaluation.frontier.adaptive import beside_fixed
from hsae_lens.evaluation.frontier.advice import Advice, advise
from hsae_lens.evaluation.run_folder import EvalRun
from hsae_lens.sae.controls import RANDOM_DECODER

MOST = 0.95  # of what the largest budget does: what advice is about
SHARES = {0: (), 1: (0.8, 0.9, MOST, 0.99), 2: (0.8, MOST)}
"""The shares whose smallest budgets are shown, by how many qualities: five rows at most."""

HEADINGS = {"explained_variance": "Activations explained", "ce_score": "Predictions kept"}
BY = {"explained_variance": "activations", "ce_score": "predictions"}
GIVES = {"explained_variance": "explained", "ce_score": "of predictions kept"}
"""What the qualities are called in the table, in brackets and after a figure."""


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


def in_short(run: EvalRun) -> InShort:
    """The first screen of a run's page."""
    mine = run.frontier[run.frontier["sae"] == run.about]
    rows = rows_by_rule(mine).sort_values("k")
    advices, refused = worth_a_share(rows)
    kept = kept_table(rows, advices, run.own_metrics)
    at = next((advices[of].k for of in reversed(QUALITIES) if of in advices), None)
    points = {
        "Which budget": _which(advices, refused),
        "What one SAE saves": _saved(run, len(kept)) if run.hierarchical else "",
        "What is given up": _given_up(run, rows, at),
        "Budgets on average": _on_average(mine, at),
        "Beside others": _beside_others(run, at),
        "What is uncertain": _uncertain(run, mine, rows),
    }
    reading = how_to_read(rows, advices, run.own_metrics)
    return InShort(_what_it_is(run), kept, reading, {n: text for n, text in points.items() if text})


def worth_a_share(rows: pd.DataFrame) -> tuple[dict[str, Advice], list[str]]:
    """The advice by each quality, and why there is none by the others."""
    advices, refused = {}, []
    for of in (of for of in QUALITIES if of in rows):
        try:
            advice = advise(rows, MOST, of)
        except ValueError as error:
            refused.append(str(error))
            continue
        if advice.beware:
            refused.append(f"No advice by the {LABELS[of]}: {advice.beware}")
        else:
            advices[of] = advice
    return advices, refused


def kept_table(
    rows: pd.DataFrame, by: Iterable[str], own: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Which budget keeps how much, in words: a few budgets, chosen by :data:`SHARES`.

    Args:
        by: the qualities that are worth a share, :func:`worth_a_share`.
        own: labels of the columns that are metrics of the user's own.
    """
    by = list(by)
    ks = {advise(rows, share, of).k for of in by for share in SHARES[len(by)]}
    ks |= {rows["k"].iloc[n] for n in ((-1,) if by else (0, len(rows) // 2, -1)) if len(rows)}
    shown, last = rows[rows["k"].isin(ks)], rows.iloc[-1:]
    table = {"Budget\nlatents per token": [f"k={k:g}" for k in shown["k"]]}
    for of in (of for of in QUALITIES if of in by or of == "explained_variance"):
        best = last[["k", of]].iloc[0] if of in by else None
        table[f"{HEADINGS[of]}\n{LABELS[of]}"] = [_kept(value, best) for value in shown[of]]
    for name, label in (own or {}).items():
        table[_own_heading(name, label)] = [plain_number(value) for value in shown[name]]
    return pd.DataFrame(table)


def how_to_read(rows: pd.DataFrame, by: Iterable[str], own: Mapping[str, str] | None = None) -> str:
    """How the rows of :func:`kept_table` were chosen, and what its columns are."""
    by, text = list(by), ""
    if by:
        largest = f"k={rows['k'].iloc[-1]:g}"
        shares = _listed([f"{share:.0%}" for share in SHARES[len(by)]])
        either = " by either measure" if len(by) > 1 else ""
        text = (
            f"Rows: the smallest budgets judged that keep {shares} of what {largest} does{either}, "
            f"and {largest}. "
        )
    text += "Explained: the share of the activations’ variance that is in the rewriting."
    if "ce_score" in by:
        text += " Kept: 100% is the model itself, 0% the model with zeros at this point."
    if own:
        text += f" {_listed(own.values())}: of the user’s own, a mean over tokens."
    return text


def what_one_saves(n_budgets: int, size: int | None, training_time: str | None = None) -> str:
    """One SAE beside one for each of some budgets, in runs and files.

    Args:
        size: of its weights, in bytes, if it is known.
        training_time: in the SAE's own words, if it says.
    """
    each, all_of_them = (f" ({_size(size)})", f", {_size(n_budgets * size)}") if size else ("", "")
    text = f"One training run and one file{each} for every budget"
    if n_budgets > 1:
        text += (
            f"; an SAE for each of the {n_budgets} above takes {n_budgets} runs and {n_budgets} "
            f"files{all_of_them}"
        )
    time = f" Its training took {training_time.strip().rstrip('.')}." if training_time else ""
    return f"{text}.{time}"


def plain_number(value: float) -> str:
    """Three digits, and no power of ten where a number of this size is usually written out."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def percent(share: float) -> str:
    """Whole percents, and tenths near 100%."""
    if not math.isfinite(share):
        return "–"
    return f"{share:.1%}" if 0.985 <= share < 1 else f"{share:.0%}"


def _what_it_is(run: EvalRun) -> str:
    facts = run.facts
    text = (
        "A sparse autoencoder (SAE) rewrites what a language model holds at one point of its work "
        "as a mix of a few out of many learnt patterns (latents), which people can look at one by "
        f"one. Here: {facts['model']} at {facts['hook']}, {facts['d_in']:,} numbers for each token "
        f"(a word or a part of one), {facts['d_sae']:,} latents. The budget k is how many latents "
        "a token may use: few are easier to read, many keep more. "
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
    each = _listed([f"k={advice.k} by the {BY[of]}" for of, advice in advices.items()])
    largest = next(iter(advices.values())).largest
    text = f"The smallest judged that keeps {MOST:.0%} of what k={largest} does is {each}."
    return " ".join([text, *refused])


def _saved(run: EvalRun, n_budgets: int) -> str:
    return what_one_saves(n_budgets, run.facts.get("bytes"), run.facts.get("training_time"))


def _given_up(run: EvalRun, rows: pd.DataFrame, at: float | None) -> str:
    text = ""
    if at is not None and {"ce_score", "ce_clean", "ce_with_sae", "ce_ablated"} <= {*rows}:
        row = rows[rows["k"] == at].iloc[0]
        text = (
            f"At k={at:g} the model’s error at the next token (cross-entropy) goes from "
            f"{row['ce_clean']:.2f} to {row['ce_with_sae']:.2f} nats; with zeros at this point it "
            f"is {row['ce_ablated']:.2f}. "
        )
    if run.hierarchical:
        text += (
            "An SAE trained for one budget alone can do somewhat better there, mostly at the "
            "smallest budgets and the largest, and mixes less what occurs together; `hsae compare` "
            "measures it."
        )
    return text.strip()


def _on_average(mine: pd.DataFrame, at: float | None) -> str:
    """What spending on average gains over a fixed budget of the same l0, at one mean budget.

    The one nearest to the advice, else to the middle of the table: not the one that gains most.
    """
    table = rows_by_rule(beside_fixed(mine), "mean").dropna(subset="fixed explained_variance")
    if table.empty:
        return ""
    near = at if at is not None else rows_by_rule(mine)["k"].median()
    row = table.iloc[int((table["k"] - near).abs().argmin())]
    gives = [f"{row[of]:.1%} {words}" for of, words in GIVES.items() if of in mine]
    fixed = [f"{row[f'fixed {of}']:.1%}" for of in GIVES if of in mine]
    return (
        f"{row['k']:g} latents per token on average (here {row['l0']:.1f}), more for hard tokens, "
        f"give {' and '.join(gives)}; as many for each token give {' and '.join(fixed)}."
    )


def _beside_others(run: EvalRun, at: float | None) -> str:
    """The other SAEs and the control at the same fixed budget."""
    rows = rows_by_rule(run.frontier)
    at_k = {str(name): of.iloc[0] for name, of in rows[rows["k"] == at].groupby("sae", sort=False)}
    if len(at_k) < 2:
        return ""
    names = {run.about: "this SAE", RANDOM_DECODER: f"{RANDOM_DECODER} (has learnt nothing)"}
    there = {of: words for of, words in GIVES.items() if of in rows}
    said = [
        f"{names.get(name, name)} {' and '.join(percent(row[of]) for of in there)}"
        for name, row in at_k.items()
    ]
    return f"At k={at:g}, {' and '.join(there.values())}: {', '.join(said)}."


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
        return "There are no standard errors."
    return f"Two standard errors over documents are at most {_listed(each.values())}."


def _kept(value: float, best: pd.Series[float] | None) -> str:
    if best is None or value >= (most := best.iloc[1]):
        return percent(value)
    return f"{percent(value)}\n{percent(value / most)} of k={best['k']:g}"


def _own_heading(name: str, label: str) -> str:
    return f"{label}\n{name}" if label.replace(" ", "_") != name else label


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _size(n_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.{0 if n_bytes >= 10 * size else 1}f} {unit}"
    return f"{max(1, round(n_bytes / 1e3))} KB"
