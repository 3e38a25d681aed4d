"""What the columns of tables are called for people, and what their figures mean.

Definitions have a version that is stamped beside the table. It rises when the same SAE would get
another figure. Tables without a stamp are from before there were versions.
"""

from __future__ import annotations

from typing import Any

LABELS = {
    "rule": "how latents are spent",
    "target": "asked for",
    "l0": "mean latents per token",
    "explained_variance": "explained variance",
    "adds": "explained variance it adds",
    "mse": "squared error",
    "ce_score": "recovered cross-entropy",
    "kl": "KL from the model",
    "dead": "share of dead latents",
    "dense": "share of dense latents",
    "agreement": "share in common",
    "logit_retention": "share of the preference kept",
    "test_auc": "test AUC",
    "mcc": "features found (MCC)",
    "mcc_used": "purity of the latents used (MCC)",
    "f1": "F1 of a latent for its feature",
    "nodes": "nodes in the circuit",
    "faithfulness": "what the circuit keeps",
    "completeness": "what the rest keeps",
}
"""What people read for a column: on axes, pages and cards, in advice and in ``hsae releases``."""

QUALITIES = ("explained_variance", "ce_score")
"""The columns that say how good an SAE is at a budget: they are drawn, listed and advised on."""

FRONTIER = (
    ("sae", "page command demo"),
    ("k", "page card command demo"),
    ("rule", "page card command"),  # these two only where not all budgets are fixed
    ("target", "page card command"),
    ("tokens", "card"),
    ("l0", "page card command demo"),
    ("explained_variance", "page card command demo"),
    ("fvu", ""),
    ("adds", "page"),
    ("mse", "page card demo"),
    ("cosine", "page"),
    ("l2_ratio", ""),
    ("dead", "card"),  # here before what needs a model, on the page after
    ("ce_score", "page card command demo"),
    ("ce_with_sae", "page"),
    ("ce_clean", ""),
    ("ce_ablated", ""),
    ("kl", "page card command"),
    ("dead", "page"),
    ("dense", "page"),
)
"""Every column of the frontier, and where people see it, in this order: the report's page, an SAE's
card, what ``hsae eval`` prints (command), the demo's table. Their standard errors are not named."""

DEFINITIONS = {
    "frontier": (
        1,
        "explained_variance is 1 − Σ‖x−x̂‖² / Σ‖x−mean x‖² over all judged tokens and dimensions; "
        "ce_score is (ablated − with SAE) / (ablated − clean) of the cross-entropy per token, "
        "ablated with zeros at the hook; l0, mse, cosine and kl are means over tokens; adds is "
        "what the k-th latent adds to the explained variance; dead and dense are the shares of "
        "latents that no judged token, or more than a tenth of them, used within k; standard "
        "errors are of a bootstrap over documents. k is how many latents each token may use; where "
        "the rule is mean, k is the mean number asked for: a token uses all that exceed the SAE's "
        "calibrated threshold, be it more than its largest budget, and l0 is what came out on this "
        "text; where it is error, target is the share of the calibrated variance to which each "
        "token's error is brought with its fewest first latents, or all k where that is not "
        "enough.",
    ),
    "tasks": (
        1,
        "accuracy is the share of pairs whose right next token is likelier than the wrong one; "
        "retention is (accuracy − 0.5) / (the model's − 0.5), logit_retention the mean logit "
        "difference over the model's, both NaN where the model is not better than guessing by two "
        "standard errors.",
    ),
    "curve": (1, "explained_variance and adds as in the frontier, at every budget 0..K."),
    "adaptive": (
        1,
        "l0 is the mean of active latents; fixed is the explained variance of one budget for all "
        "tokens with the same l0, interpolated between whole budgets.",
    ),
    "stability": (
        1,
        "agreement is the mean share of a token's first k active latents that are among the first "
        "k with Gaussian noise of a tenth of the activation's distance from the mean; shuffled is "
        "the same between unrelated tokens.",
    ),
    "contributions": (
        1,
        "a latent's worth is the mean fall of the squared error when it enters; rank_correlation "
        "is Spearman's, between two halves of the documents, over latents active in both.",
    ),
    "probing": (
        1,
        "test_auc is of an L1 logistic regression on the latents whose means differ most between "
        "the classes (sae-probes, setting normal); model_auc is of a logistic regression on the "
        "whole activation; retention is (test_auc − 0.5) / (model_auc − 0.5), NaN where model_auc "
        "is not above 0.5 by two standard errors.",
    ),
    "absorption": (
        1,
        "SAEBench's first-letter task: absorption is the mean share of a letter's direction that "
        "other latents carry, full_absorption the share of words where the letter's own latents "
        "are silent and one other carries it, over letters whose probe on the model has an F1 "
        "above 0.6; NaN with fewer than 20 such letters.",
    ),
    "interpretation": (
        1,
        "detection and fuzzing are balanced accuracies of a judge's answers from its own "
        "explanation, 0.5 is guessing; an answer in another form than the one asked for is NaN and "
        "counted in unanswered.",
    ),
    "comparison": (
        1,
        "regret is the explained variance (or recovered cross-entropy) of the best specialist "
        "minus that of the one SAE; the best is the family of the highest mean over seeds among "
        "those trained for this budget that spend latents by the same rule. With fixed budgets "
        "both use k latents of each token; on average, the one SAE is read off at the specialist's "
        "measured l0, between its own mean budgets, along the logarithm of l0, and outside "
        "them on the prolonged line of the nearest two. Intervals are 95%: of the mean over seeds "
        "by Student's t, and for explained variance, in quadrature, of a bootstrap over documents "
        "of the same difference, in which l0 and the choice of the best stay what they are; those "
        "of recovered cross-entropy, and of known features, are over seeds only.",
    ),
    "circuits": (
        1,
        "faithfulness is (m(C) − m(∅)) / (m(M) − m(∅)), completeness the same of everything but C; "
        "m is the mean of right minus wrong logit, M the model, ∅ every node replaced; areas are "
        "mean heights over log₂ of the number of nodes.",
    ),
}
"""A table's name: the version of its definitions, and these."""


def stamp(*names: str) -> dict[str, dict[str, Any]]:
    """The present definitions of some tables, as JSON keeps them."""
    return {
        name: {"version": version, "definition": text}
        for name, (version, text) in ((name, DEFINITIONS[name]) for name in names)
    }


def frontier_columns(place: str) -> list[str]:
    """The columns of the frontier that are shown at a place of :data:`FRONTIER`, in order."""
    return [column for column, places in FRONTIER if place in places.split()]


def axis_label(column: str) -> str:
    """A column's label, with a capital."""
    return LABELS[column][0].upper() + LABELS[column][1:]


def heading(column: str) -> str:
    """What stands over a column: its label, and its name where only that is in the definitions."""
    label = LABELS.get(column, column)
    same = label.lower() == column.replace("_", " ") or label == column
    return label if same else f"{label} ({column})"
