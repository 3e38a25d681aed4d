"""Hook functions for ``hook_sae_acts_post``: latents of an attached SAE, by number or by rank.

>>> hook = model.get_sae_hook_name(sae)  # a bridge; else hook_name + ".hook_sae_acts_post"
>>> model.run_with_hooks_with_saes(tokens, saes=[sae], fwd_hooks=[(hook, ablate(ranks=(1, 8)))])
... # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

Hook = Callable[..., torch.Tensor]


def ablate(latents: Iterable[int] = (), ranks: tuple[int, int] | None = None) -> Hook:
    """A hook that sets latents to zero: those numbered, and those with a rank in ``ranks``.

    Args:
        latents: numbers in 0..d_sae−1.
        ranks: first and last rank, 1 being a token's largest latent (of either sign).

    Raises:
        ValueError: if it would ablate nothing, for the error node's -1, or if the ranks are not
            1 ≤ first ≤ last.
    """
    numbers = _numbers(latents)
    if not numbers and ranks is None:
        raise ValueError("Nothing to ablate: give latents, ranks=(first, last), or both.")
    if ranks is not None and not 1 <= ranks[0] <= ranks[1]:
        raise ValueError(f"ranks must be (first, last) with 1 ≤ first ≤ last, got {ranks}.")

    def hook(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
        _check_inside(numbers, acts)
        gone = _ranked(acts, ranks) if ranks else torch.zeros_like(acts, dtype=torch.bool)
        gone[..., numbers] = True
        return torch.where(gone, torch.zeros_like(acts), acts)

    return hook


def keep(latents: Iterable[int] = (), ranks: tuple[int, int] | None = None) -> Hook:
    """A hook that sets everything else to zero; arguments as for :func:`ablate`."""
    ablated = ablate(latents, ranks)
    return lambda acts, hook=None: acts - ablated(acts)


def steer(
    latent: int, *, to: float | None = None, add: float | None = None, times: float | None = None
) -> Hook:
    """A hook that changes one latent at every position: sets it, adds to it, or multiplies it.

    A latent that is silent somewhere is switched on there by ``to`` and ``add``, not by ``times``.

    Raises:
        ValueError: unless exactly one of ``to``, ``add`` and ``times`` is given, or for the error
            node's -1.
    """
    (number,) = _numbers([latent])
    if sum(value is not None for value in (to, add, times)) != 1:
        raise ValueError("Say how to steer: exactly one of to=, add= and times=.")

    def hook(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
        _check_inside([number], acts)
        acts = acts.clone()
        before = acts[..., number]
        if to is not None:
            acts[..., number] = to
        elif add is not None:
            acts[..., number] = before + add
        elif times is not None:
            acts[..., number] = before * times
        return acts

    return hook


def _numbers(latents: Iterable[int]) -> list[int]:
    numbers = [int(latent) for latent in latents]
    if any(number < 0 for number in numbers):
        raise ValueError(
            f"Latents are numbered from 0, got {numbers}. -1 in a table of nodes is the error "
            "node, which is no latent: replace it with hsae_lens.circuits.Ablator."
        )
    return numbers


def _check_inside(numbers: list[int], acts: torch.Tensor) -> None:
    if numbers and max(numbers) >= acts.shape[-1]:
        raise ValueError(f"No latent {max(numbers)}: the SAE has {acts.shape[-1]}.")


def _ranked(acts: torch.Tensor, ranks: tuple[int, int]) -> torch.Tensor:
    """Which active latents ``[..., d_sae]`` have a rank within the range."""
    first, last = ranks
    # By size: latents of some architectures (AbsTopK) are active below zero too.
    top = acts.abs().topk(min(last, acts.shape[-1]), dim=-1)
    inside = torch.zeros_like(acts, dtype=torch.bool)
    inside.scatter_(-1, top.indices[..., first - 1 :], True)
    return inside & (acts != 0)
