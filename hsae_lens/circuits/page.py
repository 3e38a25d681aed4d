"""What ``hsae circuits`` found, as one self-contained page. It computes nothing new."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pandas as pd

from hsae_lens._util.html import definitions_html, folded_table_html, table_html, write_page
from hsae_lens._util.tables import RULE_NAMES, rows_by_rule, shown_columns, with_rules
from hsae_lens.circuits.inputs import NEURONS, OURS
from hsae_lens.circuits.metrics import CIRCUIT_METRICS
from hsae_lens.circuits.plots import circuit_svg, curve_svg
from hsae_lens.circuits.result import CircuitsResult
from hsae_lens.circuits.sites import ERROR, model_order
from hsae_lens.sae.controls import RANDOM_DECODER

AT = {
    "fixed": "At budget k={:g}",
    "mean": "At {:g} latents per token on average",
    "error": "With each token’s error brought to {:.0%}",
}
"""How the summary names a budget, by its rule."""


def write_circuits(result: CircuitsResult, out: str | Path) -> Path:
    """The page of a run: summary, curves, graph, nodes, nesting, edges, how it was made."""
    sections = (_summary, _curves, _graph, _nodes, _nested, _edges, _how)
    title = f"Circuits of {result.facts['task']} in {result.facts['model']}"
    return write_page(title, "\n".join(section(result) for section in sections), out)


def _summary(result: CircuitsResult) -> str:
    facts = result.facts
    right, wrong = (repr(word) for word in facts["answer"])
    lines = [
        f"The behaviour: after “{escape(''.join(facts['tokens']))}” the model prefers one word to "
        f"another (in the first pair {escape(right)} to {escape(wrong)}). It is right on "
        f"{facts['accuracy']:.0%} of the pairs.",
    ]
    ours = [OURS + how for how in RULE_NAMES.values()]
    mine = with_rules(result.curve[result.curve["sae"].isin(ours)])
    for (_, rule, target), rows in mine.groupby(["sae", "rule", "target"], sort=False):
        at = AT[str(rule)].format(target)
        enough = rows[rows["faithfulness"] >= 0.9]
        if len(enough):
            first = enough.iloc[0]
            lines.append(
                f"{at}, <b>{first['nodes']:.0f} nodes</b> keep "
                f"{first['faithfulness']:.0%} of the preference; without them "
                f"{first['completeness']:.0%} is left."
            )
        else:
            best = rows.sort_values("faithfulness").iloc[-1]
            lines.append(
                f"{at} no circuit tried keeps 90%: {best['nodes']:.0f} nodes keep "
                f"{best['faithfulness']:.0%}."
            )
    fixed = rows_by_rule(result.nodes)
    errors = fixed[fixed["latent"] == ERROR].groupby("k")["share"].sum()
    for k in errors.index:
        lines.append(
            f"At k={k}, error nodes carry {errors[k]:.0%}: what no latent of the SAE says."
        )
    items = "".join(f"<li>{line}</li>" for line in lines)
    name = escape(facts["task"].replace("_", " "))
    return f"<h1>{name}</h1>\n<h2>In short</h2>\n<ul>{items}</ul>"


def _curves(result: CircuitsResult) -> str:
    figures = "".join(curve_svg(result.curve, measure) for measure in CIRCUIT_METRICS)
    return (
        "<h2>How small a circuit is enough</h2>"
        "<p>First, how much of the preference is left when only the circuit’s nodes keep their "
        "values (1 is the whole model, 0 is every node replaced). Then, when the circuit alone is "
        f"replaced. Circuits were found on {result.facts['finding']} pairs and judged on "
        f"{result.facts['judging']} others that share no prompt with them.{_spending(result)}</p>"
        f'<div class="figures">{figures}</div>'
        "<p>Mean height over log₂ of the number of nodes: more is better for faithfulness, less "
        f"for completeness.</p>{table_html(shown_columns(result.areas))}"
        f"{folded_table_html('All figures', shown_columns(result.curve))}"
    )


def _spending(result: CircuitsResult) -> str:
    """What the labels of budgets that ask every token mean, if there are any."""
    meanings = {
        "mean": "“on average” the same dictionary’s tokens use all latents above one threshold, k "
        "of them on average over text",
        "error": "“by error” each token uses the fewest latents that leave no more than a share of "
        "the variance",
    }
    rules = set(result.curve.get("rule", []))
    said = [text for rule, text in meanings.items() if rule in rules]
    if not said:
        return ""
    return (
        f" Budgets are so many latents of every token; {'; '.join(said)}. The controls have their "
        "thresholds from CPython’s reference."
    )


def _graph(result: CircuitsResult) -> str:
    facts = result.facts
    return (
        "<h2>The circuit</h2>"
        "<p>A node is a latent at a token. Its colour says at which budget it enters, its size and "
        "its line how much it contributes: blue for the right answer, orange against it.</p>"
        f'<div class="wide">'
        f"{circuit_svg(result.nodes, facts['tokens'], facts['answer'], result.edges)}</div>"
    )


def _nodes(result: CircuitsResult) -> str:
    wide = rows_by_rule(result.nodes).pivot_table(
        index=["site", "position", "token", "latent"], columns="k", values="share"
    )
    order = wide.abs().max(axis=1).sort_values(ascending=False).index
    table = wide.loc[order].reset_index()
    table = table.sort_values("site", key=lambda s: s.map(model_order), kind="stable")
    table.columns = [f"share at k={c}" if isinstance(c, int) else str(c) for c in table.columns]
    if len(result.latents):
        words = result.latents[["site", "latent", "fires_on", "promotes"]]
        table = table.merge(words, on=["site", "latent"], how="left")
    table["latent"] = table["latent"].map(lambda n: "error" if n == ERROR else n)
    table = table.map(lambda cell: "" if isinstance(cell, float) and pd.isna(cell) else cell)
    return (
        "<h2>Its nodes</h2>"
        "<p>The share of everything that latents and errors contribute together. What a latent "
        "fires on is counted in CPython’s reference, what it promotes is read off its decoder row; "
        "both describe, neither explains.</p>"
        f"{table_html(table)}"
    )


def _nested(result: CircuitsResult) -> str:
    return (
        "<h2>One circuit at every budget</h2>"
        "<p>How many of a budget’s latents (those with a hundredth of everything or more) are in a "
        f"larger budget’s circuit too.</p>{table_html(result.nesting, 2)}"
    )


def _edges(result: CircuitsResult) -> str:
    if result.edges is None:
        return ""
    return (
        "<h2>Edges between sites</h2>"
        "<p>How much of a node’s contribution passes through a later node, at the smallest budget, "
        f"to first order at the clean prompts.</p>{table_html(result.edges.head(40))}"
    )


def _how(result: CircuitsResult) -> str:
    facts, settings = result.facts, result.facts["settings"]
    empty = {
        "resample": "its value in the corrupt prompt; with everything replaced that is the corrupt "
        "activation itself, at every budget and for every SAE",
        "mean": "its mean over all prompts at that position; with everything replaced that is the "
        "mean activation, at every budget and for every SAE",
        "zero": "zero; with everything replaced that is the SAE’s bias",
    }[settings["replace"]]
    errors = {
        "remove": "are in no circuit, so only latents can explain",
        "keep": "are in every circuit",
        "default": "compete with latents for a place in a circuit",
    }[settings["errors"]]
    gradient = (
        "one gradient at the clean prompts"
        if settings["steps"] == 1
        else f"integrated gradients of {settings['steps']} steps"
    )
    items = [
        "The metric is the right minus the wrong word’s logit at the last position.",
        f"Contributions are attributions by {gradient}, the same for all budgets; positive ones "
        "speak for the right word.",
        "Faithfulness: (m(C) − m(∅)) / (m(M) − m(∅)), completeness the same of everything but C; "
        "m is the metric’s mean, M the model, ∅ every node replaced.",
        f"A node is replaced by {empty}. Contributions are those of this replacement too.",
        f"Error nodes, what a budget’s latents leave of an activation, {errors}.",
        "Special tokens and positions the SAE was not trained on are left as they are.",
    ]
    if {RANDOM_DECODER, NEURONS} & set(result.curve["sae"]):
        items.append(
            "The random decoder (as many latents, random directions) and the model’s own neurons "
            "show what a dictionary scores that has learnt nothing."
        )
    return (
        "<h2>How these figures were made</h2>"
        f"<p><code>hsae circuits</code> of hsae_lens {escape(facts['hsae_lens'])} with torch "
        f"{escape(facts['torch'])}, the model in {facts['dtype']}, in {facts['seconds']} s. "
        f"Settings: <code>{escape(json.dumps(settings))}</code></p>"
        f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"
        f"{definitions_html(facts, ['circuits'])}"
    )
