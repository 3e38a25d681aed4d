"""Folders of ``hsae eval`` in, one self-contained HTML page out. It computes nothing new.

Below, a function writes each section, in the order of the page; ``SECTIONS``, at the end, lists
them. The script of the section that follows a token is ``explorer.js``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

import pandas as pd

from hsae_lens._util.columns import LABELS, QUALITIES, frontier_columns
from hsae_lens._util.html import definitions_html, folded_table_html, table_html, write_page
from hsae_lens._util.tables import rows_by_rule, rules_of, shown_columns
from hsae_lens.evaluation.frontier.adaptive import beside_fixed
from hsae_lens.evaluation.frontier.own_metrics import metric_name
from hsae_lens.evaluation.in_short import InShort, run_in_short
from hsae_lens.evaluation.plots import (
    adaptive_svg,
    frontier_svg,
    probing_svg,
    stability_svg,
    tasks_svg,
    worth_svg,
)
from hsae_lens.evaluation.run_folder import EvalRun, RunFolder


def write_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """One page over one or more runs of ``hsae eval``; opens from a file and fetches nothing.

    Raises:
        FileNotFoundError, ValueError: if a folder is not a whole run; which file, and the mend.
    """
    runs = [RunFolder(folder).read() for folder in folders]
    title = f"Sparse autoencoders of {', '.join(dict.fromkeys(r.facts['model'] for r in runs))}"
    explorer = resources.files("hsae_lens.evaluation").joinpath("explorer.js")
    body = "\n".join(_page_of_run(run) for run in runs)
    return write_page(title, body, out, explorer.read_text(encoding="utf-8"))


def _page_of_run(run: EvalRun) -> str:
    return "\n".join(section(run) for section in SECTIONS)


def _summary(run: EvalRun) -> str:
    return f"<h1>{escape(run.about)}</h1>\n{first_screen_html(run_in_short(run))}"


def first_screen_html(short: InShort) -> str:
    """What a page says first; commands in backticks become code."""
    points = "".join(
        f"<li><b>{escape(name)}.</b> {_with_code(text)}</li>" for name, text in short.points.items()
    )
    return (
        f'<h2>In short</h2>\n<p class="short">{escape(short.what)}</p>\n<div class="kept">'
        f'<div>{_kept_html(short.kept)}<p class="lead">{escape(short.reading)}</p></div>'
        f"<ul>{points}</ul></div>"
    )


def _kept_html(kept: pd.DataFrame) -> str:
    """Cells of words, a second line small."""

    def cell(tag: str, words: str) -> str:
        first, _, second = words.partition("\n")
        small = f"<small>{escape(second)}</small>" if second else ""
        return f"<{tag}>{escape(first)}{small}</{tag}>"

    rows = [("th", [*kept.columns]), *(("td", row) for row in kept.to_numpy().tolist())]
    html = "".join(f"<tr>{''.join(cell(tag, words) for words in row)}</tr>" for tag, row in rows)
    return f'<div class="scroll"><table>{html}</table></div>' if len(kept) else ""


def _with_code(text: str) -> str:
    return re.sub(r"`(hsae [a-z]+)`", r"<code>\1</code>", escape(text))


def _quality(run: EvalRun) -> str:
    own = run.own_metrics
    figures = "".join(frontier_svg(run.frontier, of) for of in QUALITIES if of in run.frontier)
    figures += "".join(frontier_svg(run.frontier, name, own[name]) for name in own)
    shown = shown_columns(run.frontier, [*frontier_columns("page"), *own])
    shown = shown.rename(columns={name: f"{label} ({name})" for name, label in own.items()})
    bands = " Bands are two standard errors." if "explained_variance_se" in run.frontier else ""
    then = " Last, measures of the user’s own." if own else ""
    return (
        "<h2>Quality at every budget</h2>"
        "<p>First, how much of the activations’ variance the first k latents explain; then, how "
        "much of the model’s behaviour survives when it goes on from the reconstruction: 1 is the "
        f"model itself, 0 is the layer set to zero.{then}{bands}{_line_key(run.frontier)}</p>"
        f'<div class="figures">{figures}</div>'
        f"{folded_table_html('All figures', shown)}"
    )


def _line_key(table: pd.DataFrame) -> str:
    """How a picture tells the rules of budgets apart, if it has several."""
    key = {"mean": "Broken lines are budgets on average", "error": "dotted ones error targets"}
    there = set(rules_of(table)) - (set() if "l0" in table else {"error"})
    said = " and ".join(text for rule, text in key.items() if rule in there)
    where = ", at the number of latents per token that they took here" if "l0" in table else ""
    return f" {said[0].upper()}{said[1:]}{where}." if said else ""


def _behaviour(run: EvalRun) -> str:
    if "tasks" not in run.tables:
        return ""
    tasks = run.tables["tasks"]
    mine = tasks[tasks["sae"] == run.about]
    able = mine.dropna(subset="logit_retention")
    unable = [task for task in mine["task"].unique() if task not in set(able["task"])]
    left_out = (
        f" Left out, because the model itself guesses: {escape(', '.join(unable))}."
        if unable
        else ""
    )
    shown = shown_columns(tasks, ["sae", "task", "k", "rule", "target", "accuracy",
                                  "model_accuracy", "logit_diff", "retention"])  # fmt: skip
    figure = tasks_svg(able) if len(able) else ""
    return (
        "<h2>Behaviours that survive</h2>"
        "<p>Small tasks with one right and one wrong next word: how much of the model’s preference "
        "for the right one is left when it goes on from k latents. 1 is the model."
        f"{_line_key(tasks)}{left_out}"
        f'</p><div class="figures">{figure}</div>'
        f"{folded_table_html('All figures, and the controls', shown)}"
    )


def _explorer(run: EvalRun) -> str:
    if not run.examples:
        return ""
    # No "<" inside the script element: it could end it, or begin a comment in it.
    data = json.dumps(run.examples, allow_nan=False).replace("<", "\\u003c")
    on_average = (
        " On average, each token takes the latents that exceed one threshold; the small figure is "
        "how many."
        if all("mean" in example for example in run.examples)
        else ""
    )
    return (
        "<h2>Follow a token latent by latent</h2>"
        "<p>Move the budget and choose a token. The bluer a token, the more of its activation is "
        f"explained; grey ones are left as they are.{on_average}</p>"
        '<div class="explorer"><div class="texts"></div><div class="modes" role="group" '
        'aria-label="How the budget is spent"></div>'
        '<label>Budget <input class="slider" type="range" min="0" step="1" value="0">'
        '<output class="shown"></output></label>'
        '<div class="tokens"></div><div class="detail"></div>'
        f'<script type="application/json">{data}</script></div>'
    )


def _worth_of_latents(run: EvalRun) -> str:
    if "curve" not in run.tables:
        return ""
    curve = run.tables["curve"]
    adds = curve["adds"][curve["k"] > 0].tolist()
    middle = (len(adds) + 1) // 2
    text = (
        "A token’s latents enter in order of activation. On average the first adds "
        f"{adds[0]:.3f} to the explained variance, the one at rank {middle} "
        f"{adds[middle - 1]:.4f}."
    )
    figures = worth_svg(run.tables["curve"])
    if "stability" in run.tables:
        text += (
            " The order is not an accident if the same latents come first when noise of a tenth of "
            "the activation is added, far more often than for unrelated tokens."
        )
        figures += stability_svg(run.tables["stability"])
    if "contributions" in run.tables:
        row = run.tables["contributions"].iloc[0]
        text += (
            f" Over {row['latents']:.0f} latents, what each is worth in one half of the documents "
            f"and in the other correlates at {row['rank_correlation']:.2f} (ranks; "
            f"{row['shuffled']:.2f} if shuffled)."
        )
    return f'<h2>What each latent is worth</h2><p>{text}</p><div class="figures">{figures}</div>'


def _adaptive_budgets(run: EvalRun) -> str:
    parts = [part for part in (_by_own_thresholds(run), _by_thresholds_of_the_text(run)) if part]
    if not parts:
        return ""
    return (
        "<h2>Different budgets for different tokens</h2>"
        "<p>The same mean number of latents, spent where it helps: with one threshold on the "
        "activations, or with latents added to each token until its error is small enough.</p>"
        + "".join(parts)
    )


def _by_own_thresholds(run: EvalRun) -> str:
    """What the SAE does when it is told so: rows of the frontier."""
    table = beside_fixed(run.frontier[run.frontier["sae"] == run.about])
    if table.empty:
        return ""
    columns = ["rule", "target", "l0", *(c for of in QUALITIES for c in (of, f"fixed {of}"))]
    shown = shown_columns(table, columns).rename(
        columns={f"fixed {of}": f"{LABELS[of]}, a fixed budget of this l0" for of in QUALITIES}
    )
    return (
        "<p>With the SAE’s own thresholds, which were calibrated before this run: what was asked "
        "for, a mean number of latents or a share of error, and beside it the number that came out "
        "on this text. At a mean budget a token may use more latents than the largest budget.</p>"
        f"{table_html(shown)}"
    )


def _by_thresholds_of_the_text(run: EvalRun) -> str:
    """What the best thresholds for just this text would do: the table of the adaptive frontier."""
    if "adaptive" not in run.tables:
        return ""
    table = run.tables["adaptive"]
    return (
        "<p>With thresholds taken from the judged text itself, so that the mean is met on it, and "
        "at most K latents for a token.</p>"
        f'<div class="figures">{adaptive_svg(table)}</div>'
        f"{folded_table_html('All figures', table)}"
    )


def _autointerp(run: EvalRun) -> str:
    if "interpretation" not in run.tables:
        return ""
    table = run.tables["interpretation"]
    if "unanswered" not in table:  # an earlier version's
        missing = table[["detection", "fuzzing"]].isna().sum(axis=1)
        table = table.assign(unanswered=missing)
    scores = table.groupby(["sae", "ranks"], sort=False).agg(
        latents=("latent", "size"),
        detection=("detection", "mean"),
        fuzzing=("fuzzing", "mean"),
        unanswered=("unanswered", "sum"),
    )
    return (
        "<h2>Can a judge say what latents stand for?</h2>"
        "<p>A language model explained each latent from examples and then had to tell, from the "
        "explanation alone, in which other excerpts it fires (detection) and which of their words "
        "make it fire (fuzzing). 0.5 is guessing. Latents are grouped by how early they come in a "
        "token’s code; unanswered counts questions without an answer in the form asked for, which "
        "are left out of the means.</p>"
        f"{table_html(scores.reset_index())}"
        f"{folded_table_html('Each latent and its explanation', table)}"
    )


def _probing(run: EvalRun) -> str:
    if "probing" not in run.tables:
        return ""
    table = run.tables["probing"]
    figures = "".join(probing_svg(table, size) for size in sorted(table["probe_size"].unique()))
    names = ", ".join(map(escape, table["dataset"].unique()))
    return (
        "<h2>Labels that few latents hold</h2>"
        f"<p>sae-probes on {names}: how well a label is read off one or a few latents of a text’s "
        "last token, when the token has k latents. 0.5 is guessing; model_auc is a probe on the "
        "whole activation, and retention how much of what it is above guessing is kept."
        f"{_line_key(table)}</p>"
        f'<div class="figures">{figures}</div>'
        f"{folded_table_html('All figures', shown_columns(table))}"
    )


def _absorption(run: EvalRun) -> str:
    if "absorption" not in run.tables:
        return ""
    table = run.tables["absorption"]
    first = table.iloc[0]
    spells = (
        "Does the model spell? A probe on its activations names the letter of "
        f"{first['probe_accuracy']:.0%} of held-out words, and {first['letters']:.0f} of 26 "
        "letters are read well enough to count."
    )
    if table["absorption"].isna().all():
        spells += " That is too few to speak of absorption."
    return (
        "<h2>Latents that stand in for others</h2>"
        "<p>SAEBench’s first-letter task: how much of a word’s letter is carried by other latents "
        "where the letter’s own should be active (absorption; full where those are silent and one "
        "other carries it). Smaller is better, but only where single latents mark letters at all: "
        f"letter_f1 says how well the best one does. {spells}</p>"
        f"{table_html(shown_columns(table))}"
    )


def _how_made(run: EvalRun) -> str:
    facts = run.facts
    settings = {k: v for k, v in facts["settings"].items() if v is not None and v != []}
    notes = [
        "Special tokens, positions the SAE was not trained on and outlier norms are left out of "
        "every figure and left as they are in the model. Every budget sees the same tokens."
    ]
    if run.hierarchical:
        notes.append(
            "The random decoder has as many latents in random directions, read off with one fitted "
            "gain: what a dictionary of this size scores without having learnt anything."
        )
    if not rows_by_rule(run.frontier, "mean").empty:
        notes.append(
            "Its thresholds for mean budgets are set on the judged text itself, the SAE’s own were "
            "set before."
        )
    own = {metric_name(given): given for given in facts["settings"].get("metrics", [])}
    notes += [
        f"{escape(name)} is of the user’s own, {escape(given)}: {escape(run.own_metrics[name])}; a "
        "mean over tokens."
        for name, given in own.items()
        if name in run.own_metrics
    ]
    return (
        "<h2>How these figures were made</h2>"
        f"<p><code>hsae eval</code> of hsae_lens {escape(facts['hsae_lens'])} with torch "
        f"{escape(facts['torch'])}, in {facts['seconds']:.0f} s, on {facts['tokens']:,} tokens of "
        f"{escape(facts['text'])}. Settings: <code>{escape(json.dumps(settings))}</code></p>"
        f"{definitions_html(facts, run.tables)}<ul>{''.join(f'<li>{note}</li>' for note in notes)}"
        "</ul>"
    )


SECTIONS = (
    _summary,
    _quality,
    _behaviour,
    _explorer,
    _worth_of_latents,
    _adaptive_budgets,
    _autointerp,
    _probing,
    _absorption,
    _how_made,
)
"""In the order of the page; each gives HTML, or nothing where the run has no such table."""
