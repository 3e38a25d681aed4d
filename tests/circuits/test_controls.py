"""The neurons, as the dictionary that a circuit is compared with."""

from __future__ import annotations

from typing import Any

import torch
from helpers.circuits import HOOKS

from hsae_lens.circuits import neuron_basis
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooks import activations_at


def test_neurons_lose_nothing(model: Any, saes: Any, task: TokenizedTask) -> None:
    x = activations_at(model, task.clean, HOOKS[1:])[HOOKS[1]].flatten(0, 1)
    basis = neuron_basis(saes[1], x.mean(0))
    torch.testing.assert_close(basis(x), x)
    basis.budget = 1
    off = (basis(x) - x).abs()
    assert ((off > 1e-9).sum(-1) == 31).all()
    assert (x - x.mean(0)).abs().argmax(-1).equal(off.argmin(-1))
