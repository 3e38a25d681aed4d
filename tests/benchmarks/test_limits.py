"""The step that is measured where SAELens is missing, and what a failing peer costs a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.limits import limits
from benchmarks.loss import agreeing
from benchmarks.problems import BareStep, LossProblem, Shape
from benchmarks.session import Session
from benchmarks.subjects import trainer

SHAPE = Shape(16, 12, 40, 4)


def test_a_step_without_a_trainer_changes_the_weights_as_the_trainer_does() -> None:
    bare = BareStep(SHAPE, "cpu")
    made = trainer("ours", SHAPE, "cpu")
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    before = [weight.detach().clone() for weight in bare.weights]
    with torch.no_grad():
        for name, weight in zip(names, bare.weights, strict=True):
            getattr(made.sae, name).copy_(weight)
    for _ in range(3):
        want = made.step(bare.x).loss
        torch.testing.assert_close(bare(), want)
        made.n_training_steps += 1
    for name, weight, old in zip(names, bare.weights, before, strict=True):
        assert not torch.equal(weight, old)
        torch.testing.assert_close(weight, getattr(made.sae, name))


def test_limits_say_whether_the_step_had_a_trainer() -> None:
    (row,) = limits(Session("cpu", [SHAPE], rounds=1, dry=True))
    assert row["trainer"] is True
    assert row["ratio"] > 1


def test_a_peer_that_disagrees_leaves_the_others_their_row() -> None:
    problem = LossProblem(SHAPE, "cpu")

    def doubled() -> Any:
        return [2 * x for x in problem.ours()]

    calls = {"ours": problem.ours, "twice": doubled, "at K": doubled}
    run = Session("cpu", [SHAPE], goes_on=True)
    assert list(agreeing(run, calls, "here", skip=("at K",))) == ["ours", "at K"]
    assert run.failed == [
        "twice at here: SystemExit: twice disagrees in output 0: relative error 1.0e+00."
    ]
    with pytest.raises(SystemExit, match="twice disagrees"):  # the other command ends
        agreeing(Session("cpu", [SHAPE]), calls, "here", skip=())
