"""Folders of ``hsae eval`` in, one self-contained HTML page out. It computes nothing new."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from hsae_lens.evaluation.advice import QUALITIES, advise
from hsae_lens.plots import (
    adaptive_svg,
    frontier_svg,
    probing_svg,
    stability_svg,
    tasks_svg,
    worth_svg,
)
from hsae_lens.report.shell import table_html, write_page

SHOWN = ["sae", "k", "l0", "explained_variance", "adds", "mse", "cosine", "ce_score", "ce_with_sae",
         "kl", "dead", "dense"]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What ``hsae eval`` left in a folder: its frontier and whatever other tables it wrote."""

    facts: dict[str, Any]
    frontier: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    examples: list[dict[str, Any]] | None

    @property
    def about(self) -> str:
        """The SAE that the page is about: the first one evaluated."""
        return str(self.frontier["sae"].iloc[0])


def is_run(folder: str | Path) -> bool:
    """Whether ``hsae eval`` wrote this folder."""
    return all((Path(folder) / name).exists() for name in ("run.json", "frontier.csv"))


def read_run(folder: str | Path) -> Run:
    """Reads a folder of ``hsae eval``.

    Raises:
        FileNotFoundError: if it is not one.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise FileNotFoundError(
            f"{folder} has no run.json and frontier.csv; `hsae eval` makes them."
        )

    examples = folder / "examples.json"
    return Run(
        json.loads((folder / "run.json").read_text(encoding="utf-8")),
        pd.read_csv(folder / "frontier.csv"),
        {file.stem: pd.read_csv(file) for file in folder.glob("*.csv")},
        json.loads(examples.read_text(encoding="utf-8")) if examples.exists() else None,
    )


def write_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """One page over one or more runs of ``hsae eval``; opens from a file and fetches nothing.

    Raises:
        FileNotFoundError: if a folder is not a run.
    """
    runs = [read_run(folder) for folder in folders]
    title = f"Sparse autoencoders of {', '.join(dict.fromkeys(r.facts['model'] for r in runs))}"
    explorer = resources.files("hsae_lens.report").joinpath("explorer.js")
    body = "\n".join(_chapter(run) for run in runs)
    return write_page(title, body, out, explorer.read_text(encoding="utf-8"))


def _chapter(run: Run) -> str:
    return "\n".join(section(run) for section in SECTIONS)


def _summary(run: Run) -> str:
    facts, mine = run.facts, run.frontier[run.frontier["sae"] == run.about]
    lines = [
        f"It rewrites each activation of <b>{escape(facts['model'])}</b> at "
        f"<code>{escape(facts['hook'])}</code>, {facts['d_in']} numbers, as at most {facts['k']} "
        f"of {facts['d_sae']:,} latents. One file serves every budget k, how many latents to use."
    ]
    at_most = mine.sort_values("k").iloc[-1]
    for of in QUALITIES:
        if of in mine and at_most[of] > 0:
            lines.append(
                f"To keep 95% of the {QUALITIES[of]}: <b>{escape(str(advise(mine, 0.95, of)))}</b>"
            )
    if "ce_score" in mine and at_most["ce_score"] > 0:
        k = advise(mine, 0.95, "ce_score").k
        row = mine[mine["k"] == k].iloc[0]
        lines.append(
            f"What k={k} costs: the model's cross-entropy goes from {row['ce_clean']:.2f} to "
            f"{row['ce_with_sae']:.2f} nats per token; without the layer it is "
            f"{row['ce_ablated']:.2f}."
        )
        for name, rows in run.frontier.groupby("sae", sort=False):
            if name != run.about and k in set(rows["k"]):
                other = rows[rows["k"] == k].iloc[0]["ce_score"]
                lines.append(
                    f"At the same k, <b>{escape(str(name))}</b> recovers {other:.0%} of the "
                    f"cross-entropy, this one {row['ce_score']:.0%}."
                )
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f"<h1>{escape(run.about)}</h1>\n<h2>In short</h2>\n<ul>{items}</ul>"


def _quality(run: Run) -> str:
    figures = "".join(frontier_svg(run.frontier, of) for of in QUALITIES if of in run.frontier)
    shown = run.frontier[[column for column in SHOWN if column in run.frontier]]
    return (
        "<h2>Quality at every budget</h2>"
        "<p>First, how much of the activations’ variance the first k latents explain; then, how "
        "much of the model’s behaviour survives when it goes on from the reconstruction: 1 is the "
        "model itself, 0 is the layer set to zero. Bands are two standard errors.</p>"
        f'<div class="figures">{figures}</div>'
        f"<details><summary>All figures</summary>{table_html(shown)}</details>"
    )


def _behaviour(run: Run) -> str:
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
    shown = tasks[["sae", "task", "k", "accuracy", "model_accuracy", "logit_diff", "retention"]]
    figure = tasks_svg(able) if len(able) else ""
    return (
        "<h2>Behaviours that survive</h2>"
        "<p>Small tasks with one right and one wrong next word: how much of the model’s preference "
        f"for the right one is left when it goes on from k latents. 1 is the model.{left_out}"
        f'</p><div class="figures">{figure}</div>'
        f"<details><summary>All figures, and the controls</summary>{table_html(shown)}</details>"
    )


def _order(run: Run) -> str:
    if "curve" not in run.tables:
        return ""
    curve, middle = run.tables["curve"].set_index("k")["adds"], len(run.tables["curve"]) // 2
    text = (
        "A token’s latents enter in order of activation. On average the first adds "
        f"{curve[1]:.3f} to the explained variance, the one at rank {middle} {curve[middle]:.4f}."
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


def _adaptive(run: Run) -> str:
    if "adaptive" not in run.tables:
        return ""
    table = run.tables["adaptive"]
    return (
        "<h2>Different budgets for different tokens</h2>"
        "<p>The same mean number of latents, spent where it helps: with one threshold on the "
        "activations, or with latents added to each token until its error is small enough.</p>"
        f'<div class="figures">{adaptive_svg(table)}</div>'
        f"<details><summary>All figures</summary>{table_html(table)}</details>"
    )


def _meaning(run: Run) -> str:
    if "interpretation" not in run.tables:
        return ""
    table = run.tables["interpretation"]
    scores = table.groupby(["sae", "ranks"], sort=False).agg(
        latents=("latent", "size"),
        detection=("detection", "mean"),
        fuzzing=("fuzzing", "mean"),
        no_answer=("detection", lambda scores: scores.isna().mean()),
    )
    return (
        "<h2>Can a judge say what latents stand for?</h2>"
        "<p>A language model explained each latent from examples and then had to tell, from the "
        "explanation alone, in which other excerpts it fires (detection) and which of their words "
        "make it fire (fuzzing). 0.5 is guessing. Latents are grouped by how early they come in a "
        "token’s code; no_answer is the share of answers that were none.</p>"
        f"{table_html(scores.reset_index())}"
        f"<details><summary>Each latent and its explanation</summary>{table_html(table)}</details>"
    )


def _probing(run: Run) -> str:
    if "probing" not in run.tables:
        return ""
    table = run.tables["probing"]
    figures = "".join(probing_svg(table, size) for size in sorted(table["probe_size"].unique()))
    names = ", ".join(map(escape, table["dataset"].unique()))
    return (
        "<h2>Labels that few latents hold</h2>"
        f"<p>sae-probes on {names}: how well a label is read off one or a few latents of a text’s "
        "last token, when the token has k latents. 0.5 is guessing; model_auc is a probe on the "
        "whole activation, and retention how much of what it is above guessing is kept.</p>"
        f'<div class="figures">{figures}</div>'
        f"<details><summary>All figures</summary>{table_html(table)}</details>"
    )


def _absorption(run: Run) -> str:
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
        f"letter_f1 says how well the best one does. {spells}</p>{table_html(table)}"
    )


def _explorer(run: Run) -> str:
    if not run.examples:
        return ""
    # No "<" inside the script element: it could end it, or begin a comment in it.
    data = json.dumps(run.examples, allow_nan=False).replace("<", "\\u003c")
    return (
        "<h2>Follow a token latent by latent</h2>"
        "<p>Move the budget and choose a token. The bluer a token, the more of its activation is "
        "explained; grey ones are left as they are.</p>"
        '<div class="explorer"><div class="texts"></div>'
        '<label>Budget <input class="slider" type="range" min="0" step="1" value="0">'
        '<output class="shown"></output></label>'
        '<div class="tokens"></div><div class="detail"></div>'
        f'<script type="application/json">{data}</script></div>'
    )


def _how(run: Run) -> str:
    facts = run.facts
    settings = {k: v for k, v in facts["settings"].items() if v is not None}
    return (
        "<h2>How these figures were made</h2>"
        f"<p><code>hsae eval</code> of hsae_lens {escape(facts['hsae_lens'])} with torch "
        f"{escape(facts['torch'])}, in {facts['seconds']:.0f} s, on {facts['tokens']:,} tokens of "
        f"{escape(facts['text'])}. Settings: <code>{escape(json.dumps(settings))}</code></p>"
        "<ul><li>Explained variance: 1 − Σ‖x−x̂‖² / Σ‖x−mean x‖², over all tokens and dimensions. "
        "Special tokens, positions the SAE was not trained on and outlier norms are left out of "
        "every figure and left as they are in the model.</li>"
        "<li>Cross-entropy recovered: (ablated − with SAE) / (ablated − clean), ablated with "
        "zeros. Definitions are SAELens’; every budget sees the same tokens.</li>"
        "<li>Standard errors: bootstrap over documents.</li>"
        "<li>The random decoder has as many latents in random directions, read off with one fitted "
        "gain: what a dictionary of this size scores without having learnt anything.</li></ul>"
    )


SECTIONS = (
    _summary,
    _quality,
    _behaviour,
    _explorer,
    _order,
    _adaptive,
    _meaning,
    _probing,
    _absorption,
    _how,
)
"""In the order of the page; each gives HTML, or nothing where the run has no such table."""
