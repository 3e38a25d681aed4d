"""Reads and changes a language model's activations at TransformerLens hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name

from hsae_lens._util.private_names import own_hook_name
from hsae_lens.models.hooked_model import HookedModel

MOST_SEQUENCES = 16

LOGITS_BYTES = 512 << 20  # in float32: two such tensors, clean and changed, are held at once


def input_device(model: HookedModel) -> torch.device:
    """Where a hooked model wants its tokens."""
    return next(model.parameters()).device


def check_bare(model: HookedModel) -> None:
    """Raises ValueError if SAEs are attached to the model: what it computes is then theirs."""
    if attached := list(getattr(model, "acts_to_saes", {})):
        raise ValueError(
            f"SAEs are attached to the model at {', '.join(attached)}, so that its activations are "
            "not its own: model.reset_saes() first."
        )


def sequences_at_once(model: HookedModel, context_size: int) -> int:
    """How many sequences to run together so that their logits take no more than LOGITS_BYTES."""
    one = 4 * context_size * model.cfg.d_vocab
    return max(1, min(MOST_SEQUENCES, LOGITS_BYTES // one))


def hook_activations(model: HookedModel, tokens: torch.Tensor, hook_name: str) -> torch.Tensor:
    """:func:`activations_at` of one hook."""
    return activations_at(model, tokens, [hook_name])[hook_name]


@torch.no_grad()
def activations_at(
    model: HookedModel, tokens: torch.Tensor, hook_names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Hooks' activations ``[batch, context, ...]``, running only the layers before the last one.

    Raises:
        ValueError: if the model lacks a hook (a bridge alias must resolve, never give nothing), or
            SAEs are attached to it.
    """
    check_bare(model)
    layers = [extract_stop_at_layer_from_tlens_hook_name(name) for name in hook_names]
    own = {name: own_hook_name(model, name) for name in hook_names}
    _, cache = model.run_with_cache(
        tokens.to(input_device(model)),
        names_filter=list(own.values()),
        stop_at_layer=None if None in layers else max(n for n in layers if n is not None),
        prepend_bos=False,
    )
    for name in hook_names:
        if own[name] not in cache.cache_dict:
            raise ValueError(missing_hook(name))
    return {name: cache[own[name]] for name in hook_names}


def run_changed(
    model: HookedModel,
    tokens: torch.Tensor,
    changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor | None]],
) -> torch.Tensor:
    """The model's logits ``[batch, context, d_vocab]`` with hooks' activations passed through
    functions of them; a function that gives None only looks. Differentiable.

    Raises:
        ValueError: if a hook never fires (the model would look as if nothing mattered), or SAEs are
            attached to the model.
    """
    check_bare(model)
    fired: set[str] = set()

    def hook(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Any:
        def run(acts: torch.Tensor, hook: Any) -> torch.Tensor | None:
            fired.add(name)
            return change(acts)

        return run

    own = {name: own_hook_name(model, name) for name in changes}
    for name in changes:
        if own[name] not in model.hook_dict:
            raise ValueError(missing_hook(name))
    logits: torch.Tensor = model.run_with_hooks(
        tokens.to(input_device(model)),
        prepend_bos=False,
        fwd_hooks=[(own[name], hook(name, change)) for name, change in changes.items()],
    )
    for name in changes:
        if name not in fired:
            raise ValueError(missing_hook(name))
    return logits


@torch.no_grad()
def logits_with(
    model: HookedModel, tokens: torch.Tensor, hook_name: str, new: torch.Tensor
) -> torch.Tensor:
    """The model's logits ``[batch, context, d_vocab]`` with one hook's activations replaced."""
    return run_changed(model, tokens, {hook_name: lambda acts: new})


def missing_hook(hook_name: str) -> str:
    """What to tell somebody whose model has no such hook."""
    return (
        f"The model has no hook {hook_name!r}. TransformerLens names look like "
        "'blocks.3.hook_resid_post'."
    )
