"""Which SAEs can be judged, at which budgets, and together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sae_lens import SAE

from hsae_lens.objective.budgets import (
    Budget,
    ErrorTarget,
    MeanBudget,
    powers_of_two,
    resolve_budgets,
    resolve_spending,
)
from hsae_lens.sae.codes import check_budget_of, largest_budget
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

logger = logging.getLogger(__name__)


def check_autoencoder(sae: SAE[Any], name: str = "The SAE") -> None:
    """Raises ValueError for an SAE whose output is not its own account of its input."""
    metadata = sae.cfg.metadata
    if hasattr(sae.cfg, "d_out") or metadata.hook_name_out not in (None, metadata.hook_name):
        raise ValueError(
            f"{name} is a transcoder: it writes {metadata.hook_name_out or 'another activation'}, "
            f"not the {metadata.hook_name} that it reads, and cannot be judged against it. Give an "
            "SAE that reads and writes one hook."
        )
    if sae.use_error_term:
        raise ValueError(
            f"{name} has its error term on: its output equals its input at every k. Turn "
            "use_error_term off."
        )


def budgets_of(
    sae: SAE[Any], budgets: Sequence[Budget] | None = None, name: str = "The SAE"
) -> list[Budget]:
    """The budgets to judge an SAE at: those asked for, fixed ones first, else 1, 2, 4, … k.

    Raises:
        ValueError: for budgets it does not have, a transcoder, or an error term left on.
    """
    check_autoencoder(sae, name)
    try:
        asked = powers_of_two(largest_budget(sae)) if budgets is None else budgets
        resolved = resolve_spending(asked, largest_budget(sae))
        return [check_budget_of(sae, budget) for budget in resolved]
    except ValueError as error:
        raise ValueError(f"{name} cannot be judged so: {error}") from None


def all_budgets(
    sae: SAE[Any],
    fixed: Sequence[int] | None,
    mean: Sequence[float] = (),
    errors: Sequence[float] = (),
    name: str = "The SAE",
) -> list[Budget]:
    """The budgets that settings ask of an SAE; of a stock one the fixed ones, and the log says so.

    Raises:
        ValueError: as :func:`budgets_of`.
    """
    asked: list[Budget] = list(budgets_of(sae, fixed, name))
    others: list[Budget] = [*map(MeanBudget, mean), *map(ErrorTarget, errors)]
    if others and not isinstance(sae, HierarchicalTopKSAE):
        logger.warning("Left out: mean budgets and error targets of %s, a stock SAE.", name)
        return asked
    return budgets_of(sae, [*asked, *others], name)


def budgets_up_to(largest: int, budgets: Sequence[int] | None = None) -> list[int]:
    """The fixed budgets asked for, else 1, 2, 4, … largest.

    Raises:
        ValueError: if one is outside 1..largest, or there are none.
    """
    return resolve_budgets(powers_of_two(largest) if budgets is None else budgets, largest)


def check_same_hook(saes: Mapping[str, SAE[Any]]) -> None:
    """Raises ValueError if SAEs are of several hooks or widths or of none, or there are no SAEs."""
    hooks = {(sae.cfg.metadata.hook_name, sae.cfg.d_in) for sae in saes.values()}
    if not hooks:
        raise ValueError("There are no SAEs to judge.")
    if len(hooks) > 1:
        listed = "; ".join(
            f"{name}: {sae.cfg.metadata.hook_name}, width {sae.cfg.d_in}"
            for name, sae in saes.items()
        )
        raise ValueError(f"The SAEs are not of one hook, so they cannot be compared: {listed}.")
    if not next(iter(hooks))[0]:
        raise ValueError(
            f"{next(iter(saes))} does not say which hook it is for: set sae.cfg.metadata.hook_name."
        )
