"""What a pilot found, in sentences for somebody who decides and does not train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hsae_lens.comparison.material import OTHER_KIND
from hsae_lens.evaluation.in_short import WHAT_AN_SAE_IS, InShort, size_in_words
from hsae_lens.evaluation.kept import how_to_read, kept_table, worth_a_share
from hsae_lens.pilot.confirming import DEFAULTS, RECOMMENDED, Confirmed
from hsae_lens.pilot.full_run import FullRun
from hsae_lens.pilot.look import Look
from hsae_lens.pilot.search import Axis, Findings, Measured, PilotSettings, Point

NAMES = {
    "lr": "learning rate",
    "budget_weights": "weights of the budgets",
    "aux_loss_coefficient": "weight of the dead latents' loss",
    "d_sae": "latents",
    "k": "largest budget K",
}


@dataclass(frozen=True)
class PilotResult:
    """All that a pilot ends with. settings: the recipe's.  own_metrics: labels by column."""

    model_name: str
    hook_name: str
    look: Look
    findings: Findings
    confirmed: Confirmed
    settings: PilotSettings
    run: FullRun
    budgets: Sequence[int]
    pilot_seconds: float
    held_tokens: int
    held_documents: int
    own_metrics: Mapping[str, str]

    @property
    def shown(self) -> str:
        """Which of the two SAEs at the end is the recipe's."""
        return RECOMMENDED if self.settings != self.findings.default else DEFAULTS


def pilot_in_short(result: PilotResult) -> InShort:
    """The first screen of a pilot's page."""
    rows = result.confirmed.of(result.shown)
    advices, _ = worth_a_share(rows)
    return InShort(
        what=_what_it_is(result),
        kept=kept_table(rows, advices, result.own_metrics),
        reading=how_to_read(rows, advices, result.own_metrics),
        points={
            "What to do": what_to_do(result),
            "What one SAE saves": _saved(result),
            "What is given up": _given_up(result),
            "What is uncertain": _uncertain(result),
        },
    )


def _what_it_is(result: PilotResult) -> str:
    return (
        f"{WHAT_AN_SAE_IS} The budget k is how many a token may use. Before a long training at "
        f"{result.hook_name} of {result.model_name}, this pilot trained "
        f"{len(result.findings.points)} small ones in {time_in_words(result.pilot_seconds)}."
    )


def what_to_do(result: PilotResult) -> str:
    """The recommendation, and on what it stands."""
    found, confirmed = result.findings, result.confirmed
    if confirmed.gain is None and found.best != found.default:
        return (
            f"Train with the defaults. A learning rate of {found.best.lr:g} was better only after "
            f"{found.steps} steps; longer trainings want lower ones, about the default's."
        )
    if confirmed.gain is None:
        return (
            "Train with the defaults: nothing that was tried was better by more than two equal "
            f"trainings differ ({found.noise:.4f} of the variance explained)."
        )
    gain = f"{confirmed.gain:+.3f} ± {confirmed.interval:.3f}"
    tried = _changes(result, confirmed.settings)
    said = (
        f"On text that no training saw, after {confirmed.steps} steps with two other seeds, the "
        f"mean of the variance explained at budgets {_list(result.budgets)} differs from the "
        f"defaults' by {gain} (95%, over documents and trainings)."
    )
    if not confirmed.holds:
        return f"Train with the defaults. The search favoured {tried}. {said}"
    if result.settings == found.default:
        return (
            f"Train with the defaults: {tried} is better in trainings as short as these, and not "
            f"known to be in one as long as yours. {said}"
        )
    if result.settings.lr != confirmed.settings.lr:
        said += f" There the learning rate was {confirmed.settings.lr:g}, as that is shorter."
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
    how = "was not measured, for time (usually its root)"
    if found.falls is not None:
        how = f"was its power {found.falls:.2f}"
    return (
        f"Longer trainings want lower learning rates: the best after {found.steps} steps was about "
        f"{found.optimum:.2g}, and how it goes with the number of steps {how}. That makes about "
        f"{found.lr_for(steps):.2g} for the {steps:,} steps of the full run; the recipe goes no "
        "further than rates that were tried."
    )


def _saved(result: PilotResult) -> str:
    run, n = result.run, len(result.budgets)
    return (
        f"One training of about {time_in_words(run.seconds)} here ({run.tokens:,} tokens) and one "
        f"file of {size_in_words(run.file_bytes)} for every budget; an SAE for each of k="
        f"{_list(result.budgets)} takes {n} trainings, {time_in_words(n * run.seconds)} if each is "
        f"as long, and {n} files, {size_in_words(n * run.file_bytes)}. The training needs about "
        f"{size_in_words(run.bytes)} of memory; the language model has "
        f"{run.model_seconds / run.seconds:.0%} of its time."
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
        "the largest; `hsae compare` says by how much on your text."
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


def prices(result: PilotResult) -> list[str]:
    """What another width or K would bring and cost, a line each."""
    said = []
    for axis, measured in result.findings.prices:
        if measured.failed:
            said.append(f"{_named(axis, measured)} could not be trained: {measured.failed}")
            continue
        best = next(
            p for p in result.findings.points
            if p.point == Point(result.findings.best, result.findings.steps)
        )  # fmt: skip
        common = list(measured.explained)
        gain = measured.merit() - best.merit(common)
        ratio = measured.step_seconds / best.step_seconds if best.step_seconds else float("nan")
        at = "" if len(common) == len(best.explained) else f" at budgets up to {max(common)}"
        said.append(
            f"{_named(axis, measured)}: {gain:+.3f} of the variance explained{at}, "
            f"{ratio:.1f} times as long a step."
        )
    return said


def _named(axis: Axis, measured: Measured) -> str:
    return f"{NAMES[axis.name]} {getattr(measured.point.settings, axis.name):,}"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _list(budgets: Sequence[int]) -> str:
    return ", ".join(map(str, budgets))


def time_in_words(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
