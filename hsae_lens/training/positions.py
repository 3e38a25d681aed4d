"""Whether a model parks outliers on the first positions of its sequences; said before training."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)


def say_outlier_positions(store: Any, factor: float) -> None:
    """One line if sequences begin with positions that are outliers in most of them.

    Looks at one batch of prompts and puts it back: training sees the same sequences as without.

    Args:
        store: SAELens' ``ActivationsStore``, with a language model. factor: what an outlier is, in
            medians of the batch.
    """
    tokens = store.get_batch_tokens(move_to_model_device=False)
    _put_back(store, tokens)
    x = store.get_activations(store.get_batch_tokens())  # the same, where the model is
    _put_back(store, tokens)
    given = slice(*store.seqpos_slice)
    seen = range(store.context_size)[given]
    n = leading_outliers(x, factor)
    if 0 < n < len(seen):
        later = (seen[n], given.stop) if given.step is None else (seen[n], given.stop, given.step)
        logger.warning(
            f"Positions {', '.join(map(str, seen[:n]))} hold outliers in most sequences, which are "
            f"left out by their norm; seqpos_slice={later} leaves out the positions."
        )


def _put_back(store: Any, tokens: torch.Tensor) -> None:
    store.iterable_sequences = itertools.chain(tokens, store.iterable_sequences)


def leading_outliers(x: torch.Tensor, factor: float) -> int:
    """How many first positions of ``[batch, context, d_in]`` are outliers in most sequences."""
    norms = x.flatten(2).norm(dim=-1).float()
    often = (norms > factor * norms.median()).float().mean(0) > 0.5
    return int(often.int().cumprod(0).sum())
