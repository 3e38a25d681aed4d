"""Outlier positions are found and said, and nothing is taken from the training data."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hsae_lens.training.positions import leading_outliers, say_outlier_positions


def sequences(at: list[int], share: float = 1.0) -> torch.Tensor:
    x = torch.randn(10, 16, 8, generator=torch.Generator().manual_seed(0))
    for position in at:
        x[: int(10 * share), position] *= 100
    return x


@pytest.mark.parametrize(
    ("at", "share", "n"),
    [
        ([], 1.0, 0),
        ([0], 1.0, 1),
        ([0, 1], 0.6, 2),
        ([0, 1], 0.4, 0),
        ([0, 5], 1.0, 1),
        ([5], 1, 0),
    ],
)
def test_leading_outliers(at: list[int], share: float, n: int) -> None:
    assert leading_outliers(sequences(at, share), 5.0) == n


class Store:
    """What is asked of SAELens' store, with activations that are given."""

    context_size = 16

    def __init__(self, x: torch.Tensor, seqpos_slice: tuple[int | None, ...]) -> None:
        self.x, self.seqpos_slice = x, seqpos_slice
        self.iterable_sequences = iter(torch.arange(20 * 16).reshape(20, 16))

    def get_batch_tokens(self, move_to_model_device: bool = True) -> torch.Tensor:
        return torch.stack([next(self.iterable_sequences) for _ in range(10)])

    def get_activations(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.x[:, slice(*self.seqpos_slice)]


@pytest.mark.parametrize(
    ("seqpos_slice", "said"),
    [((None,), ["Positions 0, 1, 2 hold .* seqpos_slice=\\(3, None\\)"]),
     ((1, None), ["Positions 1, 2 hold .* seqpos_slice=\\(3, None\\)"]), ((3, None), []),
     ((14,), ["Positions 0, 1, 2 hold .* seqpos_slice=\\(3, 14\\)"]),
     ((1, -2, 1), ["Positions 1, 2 hold .* seqpos_slice=\\(3, -2, 1\\)"])],
)  # fmt: skip
def test_what_is_said(seqpos_slice: Any, said: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hsae_lens"):
        say_outlier_positions(Store(sequences([0, 1, 2]), seqpos_slice), 5.0)
    assert len(caplog.messages) == len(said)
    for message, pattern in zip(caplog.messages, said, strict=True):
        assert re.match(pattern, message)


def test_training_sees_the_same_sequences(make_runner: Callable[..., Any]) -> None:
    looked, fresh = make_runner().activations_store, make_runner().activations_store
    say_outlier_positions(looked, 5.0)
    for _ in range(3):
        assert torch.equal(looked.get_batch_tokens(), fresh.get_batch_tokens())
