"""A hierarchical SAE as a stock SAELens one, which loads without this package."""

from __future__ import annotations

from pathlib import Path

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME

from hsae_lens._util.paths import expand_home
from hsae_lens.objective.budgets import MeanBudget
from hsae_lens.releases.opening import folder_of, open_hierarchical
from hsae_lens.sae.saved_files import save_whole


def export_sae(
    where: str | Path, k: int | MeanBudget, out: str | Path, overwrite: bool = False
) -> Path:
    """Writes a stock SAELens SAE at one budget, which loads without this package.

    Args:
        where: as :func:`open_sae` takes it.
        k: a number for a TopK SAE, :class:`MeanBudget` for a JumpReLU SAE. There is no stock SAE
            for an error target.
        out: the folder to write.
        overwrite: whether an SAE that is in ``out`` may be replaced; ``where`` itself never is.

    Returns:
        The folder ``out``.

    Raises:
        ValueError: if ``k`` is outside the trained budgets, the SAE is not calibrated for a mean
            budget, or ``out`` holds an SAE. See also :func:`open_sae`.
    """
    out, source = expand_home(out), folder_of(where)
    if source and out.resolve() == source.resolve():
        raise ValueError(
            f"{out} holds the SAE that is to be exported, and a stock SAE in its place would know "
            "one budget only. Give another folder."
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file. Give a folder to write.")
    there = [name for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME) if (out / name).exists()]
    if there and not overwrite:
        raise ValueError(
            f"{out} holds {' and '.join(there)} already. Give another folder, or overwrite "
            "(--overwrite)."
        )
    sae = open_hierarchical(where)
    stock = sae.at_mean_k(k.k) if isinstance(k, MeanBudget) else sae.at_k(k)
    save_whole(stock.save_model, out)
    return out
