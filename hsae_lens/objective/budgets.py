"""What a budget may be, which ones a loss looks at, and how much each one counts."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hsae_lens._util.did_you_mean import did_you_mean

SCHEDULES = {
    "uniform": lambda j: 1.0,
    "inverse": lambda j: 1.0 / j,
    "inverse_sqrt": lambda j: j**-0.5,
    "linear": lambda j: float(j),
    "square": lambda j: float(j * j),
}
"""Named weightings of a budget j, before they are normalised to sum 1.

``uniform`` is the paper's (arXiv 2505.24473). The inverse ones favour small budgets: they buy
explained variance at the sparse end of the frontier and pay for it at K. ``linear`` and ``square``
favour large ones, and find known features better (LOG.md).
"""


@dataclass(frozen=True, order=True)
class MeanBudget:
    """``k`` latents per token on average: a token uses all that exceed one threshold.

    Tokens differ in how many they need; the same threshold for all spends more where more latents
    are large. It is calibrated once (:func:`hsae_lens.calibrate`), and a token's own number does
    not depend on the tokens beside it.
    """

    k: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _tidy(self.k, "A mean budget"))

    def __str__(self) -> str:
        return f"mean-{self.k:g}"


@dataclass(frozen=True, order=True)
class ErrorTarget:
    """The fewest latents with which a token's error is at most ``share``, up to K.

    ``share`` is of the mean squared distance of activations from their mean, so that it is the
    unexplained share that each token is brought to, if K latents can.
    """

    share: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", _tidy(self.share, "An error target"))

    def __str__(self) -> str:
        return f"error-{self.share:g}"


Budget = int | MeanBudget | ErrorTarget
"""How many latents tokens use: each the same number, or by a rule that asks every token alone."""


def _tidy(value: Any, name: str) -> int | float:
    """A positive number as Python has it, whole ones as int; ValueError for anything else."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be a number above 0, got {value!r}.")
    return int(value) if float(value).is_integer() else float(value)


def whole_number(value: Any, name: str) -> int:
    """``value`` as a Python int, which JSON can hold: numpy's integers are whole numbers too.

    Raises:
        ValueError: for anything else, True and 2.0 included; ``name`` says what it should be.
    """
    if not _is_whole(value):
        raise ValueError(f"{name} must be a whole number, got {value!r}.")
    return int(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_k(k: int, d_sae: int) -> int:
    """``k`` as a Python int; raises ValueError unless it is a whole number in 1..d_sae."""
    k = whole_number(k, "k")
    if not 1 <= k <= d_sae:
        raise ValueError(f"k must be in 1..d_sae={d_sae}, got {k}.")
    return k


def check_budget(
    budget: int, k: int, name: str = "budget", range_is: str = "this SAE's trained budgets"
) -> int:
    """``budget`` as a Python int, if it is one of 1..k.

    Raises:
        ValueError: if not; calls it ``name`` and says what the range is.
    """
    budget = whole_number(budget, name)
    if not 1 <= budget <= k:
        raise ValueError(f"{name} {budget} is outside 1..{k}, {range_is}.")
    return budget


def check_spending(budget: Budget, k: int) -> Budget:
    """A budget of any rule, if an SAE with the budgets 1..k can be asked for it.

    Raises:
        ValueError: for a fixed or mean budget outside 1..k.
    """
    if isinstance(budget, ErrorTarget):
        return budget
    if not isinstance(budget, MeanBudget):
        return check_budget(budget, k)
    if not 1 <= budget.k <= k:
        raise ValueError(
            f"A mean budget of {budget.k:g} is outside 1..{k}, this SAE's trained budgets."
        )
    return budget


def resolve_spending(budgets: Sequence[Budget], k: int) -> list[Budget]:
    """Budgets of any rule: the fixed ones first, then mean ones, then error targets.

    Raises:
        ValueError: if there are none, one is outside 1..k, or those of one rule do not ascend.
    """
    by_rule: list[list[Any]] = [
        [b for b in budgets if not isinstance(b, MeanBudget | ErrorTarget)],
        [b for b in budgets if isinstance(b, MeanBudget)],
        [b for b in budgets if isinstance(b, ErrorTarget)],
    ]
    fixed, *others = by_rule
    if fixed or not any(others):
        by_rule[0] = resolve_budgets(fixed, k)
    for some in others:
        if any(b <= a for a, b in itertools.pairwise(some)):
            raise ValueError(
                f"Budgets of one rule must be ascending without repeats, got "
                f"{', '.join(map(str, some))}."
            )
    return [check_spending(budget, k) for some in by_rule for budget in some]


def budget_rows(budgets: Sequence[Budget], k: int) -> list[dict[str, Any]]:
    """How budgets stand in a table, the first columns of a row each.

    ``k`` is the number asked for: of each token, on average, or at most (of an error target: K,
    which is ``k`` here). Where not all are fixed, ``rule`` ("fixed", "mean" or "error") and
    ``target`` (that number, or the error's share) follow.
    """
    if all(isinstance(budget, int) for budget in budgets):
        return [{"k": budget} for budget in budgets]
    rows = []
    for budget in budgets:
        if isinstance(budget, ErrorTarget):
            rows.append({"k": k, "rule": "error", "target": budget.share})
        elif isinstance(budget, MeanBudget):
            rows.append({"k": budget.k, "rule": "mean", "target": budget.k})
        else:
            rows.append({"k": budget, "rule": "fixed", "target": budget})
    return rows


def resolve_budgets(budgets: Sequence[int] | None, k: int) -> list[int]:
    """The budgets the loss looks at, J: every 1..k when ``budgets`` is None.

    Raises:
        ValueError: if k < 1, or the budgets are empty, not whole numbers, not strictly ascending,
            or outside 1..k.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    if budgets is None:
        return list(range(1, k + 1))
    given = list(budgets)
    if not given:
        raise ValueError("budgets is empty. Leave it None for every budget 1..k, or name some.")
    if not all(_is_whole(j) for j in given):
        raise ValueError(f"budgets must be whole numbers, got {given}.")
    result = [int(j) for j in given]
    if any(b <= a for a, b in itertools.pairwise(result)):
        raise ValueError(
            f"budgets must be ascending without repeats, got {result}. "
            f"Did you mean {sorted(set(result))}?"
        )
    if result[0] < 1 or result[-1] > k:
        outside = [j for j in result if not 1 <= j <= k]
        raise ValueError(f"budgets {outside} are outside 1..k={k}.")
    return result


def resolve_weights(weights: str | Sequence[float] | None, budgets: Sequence[int]) -> list[float]:
    """One weight per budget, normalised to sum 1.

    Args:
        weights: a name from :data:`SCHEDULES`, or one non-negative number per budget. None is
            ``"uniform"``.

    Raises:
        ValueError: for an unknown name, a wrong length, negative, non-finite or all-zero weights.
    """
    if weights is None:
        weights = "uniform"
    if isinstance(weights, str):
        if weights not in SCHEDULES:
            raise ValueError(
                f"Unknown budget weighting {weights!r}.{did_you_mean(weights, SCHEDULES)} "
                "Or give a list with one number per budget."
            )
        raw = [SCHEDULES[weights](j) for j in budgets]
    else:
        raw = [float(w) for w in weights]
        if len(raw) != len(budgets):
            raise ValueError(
                f"budget_weights has {len(raw)} numbers for {len(budgets)} budgets; "
                "give one per budget."
            )
        if any(not math.isfinite(w) or w < 0 for w in raw):
            raise ValueError(f"budget_weights must be finite and not negative, got {raw}.")
    total = math.fsum(raw)
    if total <= 0:
        raise ValueError("budget_weights are all zero; at least one budget must count.")
    return [w / total for w in raw]


def powers_of_two(k: int) -> list[int]:
    """1, 2, 4, … and k itself: the budgets shown when nobody asked for particular ones."""
    return sorted({*(2**i for i in range(k.bit_length()) if 2**i <= k), k})
