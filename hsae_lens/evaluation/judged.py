"""What is judged: which SAEs at which budgets, and which tokens count, by one rule everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.util import get_special_token_ids
from tqdm.auto import tqdm

from hsae_lens.budgets import powers_of_two, resolve_budgets
from hsae_lens.models import hook_activations, sequences_at_once
from hsae_lens.sae import largest_budget


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
    sae: SAE[Any], budgets: Sequence[int] | None = None, name: str = "The SAE"
) -> list[int]:
    """The budgets to judge an SAE at: those asked for, else 1, 2, 4, … k.

    Raises:
        ValueError: for budgets it does not have, a transcoder, or an error term left on.
    """
    check_autoencoder(sae, name)
    largest = largest_budget(sae)
    try:
        return resolve_budgets(powers_of_two(largest) if budgets is None else budgets, largest)
    except ValueError as error:
        raise ValueError(f"{name} cannot be judged so: {error}") from None


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


@dataclass(frozen=True)
class Judged:
    """Leaves out special tokens, positions outside a slice, and outlier norms.

    Attributes:
        positions: of a sequence, that count.
        max_norm: the longest activation that counts.
        special: token ids that do not count (BOS, EOS, PAD, …).
    """

    positions: slice
    max_norm: float
    special: torch.Tensor

    @classmethod
    def by(
        cls,
        sae: SAE[Any],
        model: Any,
        seqpos_slice: tuple[int | None, ...] | None = None,
        max_norm: float | None = None,
    ) -> Judged:
        """As asked, else as the SAE was trained (its metadata ``seqpos_slice``, ``max_norm``)."""
        metadata = sae.cfg.metadata
        return cls(
            slice(*(seqpos_slice or metadata.seqpos_slice or (None,))),
            longest(sae, max_norm),
            torch.tensor(get_special_token_ids(model.tokenizer)),
        )

    def __call__(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Whether each token ``[batch, context]`` with activation ``[…, d_in]`` counts."""
        keep = torch.zeros_like(tokens, dtype=torch.bool)
        keep[:, self.positions] = True
        keep &= ~torch.isin(tokens, self.special.to(tokens.device))
        return keep & (x.norm(dim=-1) <= self.max_norm)


def longest(sae: SAE[Any], max_norm: float | None = None) -> float:
    """The longest activation to judge: as asked, else the SAE's metadata, else no limit."""
    return float(max_norm or sae.cfg.metadata.max_norm or "inf")


@torch.no_grad()
def judged_activations(
    sae: SAE[Any], model: Any, tokens: torch.Tensor, batch_size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that count: activations ``[n, d_in]``, float32, and of which sequence ``[n]``.

    Raises:
        ValueError: if none does.
    """
    batch_size = batch_size or sequences_at_once(model, tokens.shape[1])
    judged, kept, sequences = Judged.by(sae, model), [], []
    numbers = torch.arange(len(tokens)).split(batch_size)
    for batch, here in zip(tqdm(tokens.split(batch_size), "Activations"), numbers, strict=True):
        x = hook_activations(model, batch, sae.cfg.metadata.hook_name).flatten(2).cpu()
        keep = judged(batch.cpu(), x)
        kept.append(x[keep].float())
        sequences.append(here[:, None].expand(keep.shape)[keep])
    if not any(map(len, kept)):
        raise ValueError(
            f"No token is left to judge in {tokens.numel():,}: give more text, or see the SAE's "
            "seqpos_slice and max_norm."
        )
    return torch.cat(kept), torch.cat(sequences)
