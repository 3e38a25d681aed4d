"""Hook functions for ``hook_sae_acts_post``: latents of an attached SAE, by rank or by number.

>>> hook = model.get_sae_hook_name(sae)  # a bridge; else hook_name + ".hook_sae_acts_post"
>>> model.run_with_hooks_with_saes(tokens, saes=[sae], fwd_hooks=[(hook, ablate(ranks=(1, 8)))])
... # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Hook = Callable[..., torch.Tensor]


def ablate(latents: Sequence[int] = (), ranks: tuple[int, int] | None = None) -> Hook:
    """A hook that sets latents to zero: those numbered, and those with a rank in ``ranks``.

    Args:
        latents: numbers in 0..d_sae−1.
        ranks: first and last rank, 1 being a token's largest latent.

    Raises:
        ValueError: if it would ablate nothing, or the ranks are not 1 ≤ first ≤ last.
    """
    if not latents and ranks is None:
        raise ValueError("Nothing to ablate: give latents, ranks=(first, last), or both.")
    _check_ranks(ranks)

    def hook(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
        gone = _ranked(acts, ranks) if ranks else torch.zeros_like(acts, dtype=torch.bool)
        if latents:
            gone[..., list(latents)] = True
        return torch.where(gone, torch.zeros_like(acts), acts)

    return hook


def keep(latents: Sequence[int] = (), ranks: tuple[int, int] | None = None) -> Hook:
    """A hook that sets everything else to zero; arguments as for :func:`ablate`."""
    ablated = ablate(latents, ranks)
    return lambda acts, hook=None: acts - ablated(acts)


def steer(latent: int, to: float | None = None, by: float = 1.0) -> Hook:
    """A hook that sets a latent ``to`` a value at every position, or multiplies it ``by`` one."""

    def hook(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
        acts = acts.clone()
        acts[..., latent] = acts[..., latent] * by if to is None else to
        return acts

    return hook


def _check_ranks(ranks: tuple[int, int] | None) -> None:
    if ranks is not None and not 1 <= ranks[0] <= ranks[1]:
        raise ValueError(f"ranks must be (first, last) with 1 ≤ first ≤ last, got {ranks}.")


def _ranked(acts: torch.Tensor, ranks: tuple[int, int]) -> torch.Tensor:
    """Which active latents ``[..., d_sae]`` have a rank within the range."""
    first, last = ranks
    top = acts.topk(min(last, acts.shape[-1]), dim=-1)
    inside = torch.zeros_like(acts, dtype=torch.bool)
    inside.scatter_(-1, top.indices[..., first - 1 :], True)
    return inside & (acts != 0)
