"""What a pilot found, in sentences for somebody who decides and does not train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from hsae_lens._util.columns import LABELS
from hsae_lens.comparison.material import OTHER_KIND
from hsae_lens.pilot.confirming import DEFAULTS, RECOMMENDED, Confirmed
from hsae_lens.pilot.full_run import FullRun
from hsae_lens.pilot.look import Look
from hsae_lens.pilot.search import Findings, PilotSettings, Point

NAMES = {
    "lr": "learning rate",
    "budget_weights": "weights of the budgets",
    "aux_loss_coefficient": "weight of the dead latents' loss",
    "d_sae": "latents",
    "k": "largest budget K",
}


KEPT = {"explained_variance": "of the activations", "ce_score": "of the predictions"}


@dataclass(frozen=True)
class PilotResult:
    """All that a pilot ends with. settings: those of the recipe."""

    look: Look
    findings: Findings
    confirmed: Confirmed
    settings: PilotSettings
    run: FullRun
    budgets: Sequence[int]
    pilot_seconds: float
    held_tokens: int
    held_documents: int

    @property
    def shown(self) -> str:
        """Which of the two SAEs at the end is the recipe's."""
        return RECOMMENDED if self.settings != self.findings.default else DEFAULTS


def in_short_of_pilot(result: PilotResult) -> dict[str, str]:
    """A heading and what is under it, in the order to read them."""
    return {
        "What this is": (
            "A sparse autoencoder (SAE) rewrites what a language model computes at one place as a "
            "few items of a learnt dictionary, its latents, so that people can look at them one by "
            "one. How many it may use for a word is its budget. This pilot trained "
            f"{len(result.findings.points)} small ones in {time_in_words(result.pilot_seconds)} to "
            "settle how a large one should be trained."
        ),
        "What to do": what_to_do(result),
        "What one SAE for all budgets saves": _savings(result),
        "What is given up": _given_up(result),
        "What is uncertain": _uncertain(result),
    }


def what_to_do(result: PilotResult) -> str:
    """The recommendation, and on what it stands."""
    found, confirmed = result.findings, result.confirmed
    if confirmed.gain is None:
        return (
            "Train with the defaults: nothing that was tried was better by more than two equal "
            f"trainings differ ({found.noise:.4f} of the variance explained)."
        )
    gain = f"{confirmed.gain:+.3f} ± {confirmed.interval:.3f}"
    tried = _changes(result, confirmed.settings)
    if not confirmed.holds:
        return (
            f"Train with the defaults. The short trainings favoured {tried}; trained longer and "
            f"judged on other text, the gain was {gain} of the variance explained, which is none "
            "that can be told from chance."
        )
    said = (
        f"On text that no training saw, {tried}: the mean of the variance explained at budgets "
        f"{_list(result.budgets)} is {gain} above that with the defaults, after {confirmed.steps} "
        "steps."
    )
    if result.settings == found.default:
        return (
            "Train with the defaults: a shorter training is better with another learning rate, one "
            f"as long as yours is not known to be. {said}"
        )
    return f"Train with {_changes(result, result.settings)}. {said}"


def _changes(result: PilotResult, settings: PilotSettings) -> str:
    return "; ".join(
        f"{NAMES[name]} {_value(after)} instead of {_value(before)}"
        for name, (before, after) in result.findings.changed(settings).items()
    )


def how_rates_fall(result: PilotResult) -> str:
    """How the best rate goes with the length of a training, and what that makes of it."""
    found = result.findings
    steps = result.run.steps
    how = "was not measured, for time; usually it is its square root"
    if found.falls is not None:
        how = f"was its power {found.falls:.2f}"
    return (
        f"Longer trainings want lower learning rates: the best after {found.steps} steps was about "
        f"{found.optimum:.2g}, and how it goes with the number of steps {how}. That makes about "
        f"{found.lr_for(steps):.2g} for the {steps:,} steps of the full run, which is extrapolated."
    )


def _savings(result: PilotResult) -> str:
    run, n = result.run, len(result.budgets)
    time, file = time_in_words(run.seconds), size_in_words(run.file_bytes)
    return (
        f"One training of {time} for {run.tokens:,} tokens and one file of {file}, instead of {n} "
        f"trainings ({time_in_words(n * run.seconds)}, if each takes as long) and {n} files "
        f"({size_in_words(n * run.file_bytes)}), one for each budget of {_list(result.budgets)}. "
        f"It takes about {size_in_words(run.bytes)} of memory. On this machine, the language model "
        f"has {run.model_seconds / run.seconds:.0%} of the time."
    )


def _given_up(result: PilotResult) -> str:
    said = []
    if result.shown == RECOMMENDED:
        ours, theirs = (
            result.confirmed.of(name).set_index("k")["explained_variance"]
            for name in (RECOMMENDED, DEFAULTS)
        )
        change = ours - theirs
        if change.min() < 0:
            said.append(
                f"With these settings budget {change.idxmin()} explains {-change.min():.3f} less "
                "than with the defaults; if it matters most to you, name the budgets that do "
                "(--budgets)."
            )
    said.append(
        "An SAE that is trained for one budget alone can be better at it, most at the smallest and "
        "the largest; hsae compare says by how much on your text."
    )
    return " ".join(said)


def _uncertain(result: PilotResult) -> str:
    other = result.confirmed.of(result.shown, OTHER_KIND)["explained_variance"].mean()
    same = result.confirmed.of(result.shown)["explained_variance"].mean()
    said = (
        f"These are short trainings, of {result.findings.steps} steps; how well their settings do "
        f"in the {result.run.steps:,} of the full run is not known. The figures are of "
        f"{result.held_tokens:,} tokens of {result.held_documents} documents; on text of another "
        f"kind (CPython's reference) the mean is {other:.3f} instead of {same:.3f}. Nobody "
        "has looked at what single latents mean."
    )
    if result.findings.out_of_time:
        said += f" Not tried, for time: {', '.join(result.findings.out_of_time)}."
    return said


def kept_at_budgets(result: PilotResult) -> pd.DataFrame:
    """Which budget keeps how much: of text of the training text's kind, as percentages."""
    rows = result.confirmed.of(result.shown)
    columns = {"k": "latents per token"}
    columns |= {of: f"{share} ({LABELS[of]})" for of, share in KEPT.items()}
    table = rows[[name for name in columns if name in rows]].copy()
    for name in [name for name in table if name != "k"]:
        table[name] = [f"{share:.0%}" for share in table[name]]
    return table.rename(columns=columns)


def prices(result: PilotResult) -> list[str]:
    """What another width or K would bring and cost, a line each."""
    said = []
    for axis, measured in result.findings.prices:
        best = next(
            p for p in result.findings.points
            if p.point == Point(result.findings.best, result.findings.steps)
        )  # fmt: skip
        common = list(measured.explained)
        gain = measured.merit() - best.merit(common)
        value = getattr(measured.point.settings, axis.name)
        ratio = measured.step_seconds / best.step_seconds if best.step_seconds else float("nan")
        at = "" if len(common) == len(best.explained) else f" at budgets up to {max(common)}"
        said.append(
            f"{NAMES[axis.name]} {value:,}: {gain:+.3f} of the variance explained{at}, "
            f"{ratio:.1f} times as long a step."
        )
    return said


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _list(budgets: Sequence[int]) -> str:
    return ", ".join(map(str, budgets))


def time_in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def size_in_words(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.3g} MB"
