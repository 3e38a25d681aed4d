"""Prompts: what they must be, how they are cut, and what is measured on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.circuits import HOOKS

from hsae_lens.circuits import Ablator, Prompts, attribute_budgets
from hsae_lens.circuits.prompts import as_prompts
from hsae_lens.evaluation.tasks.metrics import LogitDiff
from hsae_lens.evaluation.tasks.pairs import TokenizedTask


def test_a_task_is_prompts_with_its_own_metric(model: Any, saes: Any, task: TokenizedTask) -> None:
    mine = Prompts(task.clean, task.metric, task.corrupt)
    assert Ablator(model, saes, task)(8) == Ablator(model, saes, mine)(8)
    assert as_prompts(mine) is mine
    with pytest.raises(TypeError, match="a task, or Prompts.*, got Tensor"):
        attribute_budgets(model, saes, task.clean, [8])  # type: ignore[arg-type]


def test_prompts_that_do_not_fit_are_said(model: Any, saes: Any, task: TokenizedTask) -> None:
    with pytest.raises(ValueError, match="must be tokens"):
        Prompts(["The keys"], task.metric)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be tokens"):
        Prompts(task.clean[:0], task.metric)
    with pytest.raises(ValueError, match="of one shape"):
        Prompts(task.clean, task.metric, task.corrupt[:, 1:])
    with pytest.raises(ValueError, match="batch_size"):
        attribute_budgets(model, saes, task, [8], batch_size=0, progress=False)
    for metric, message in (
        (lambda logits: logits.mean(), "Leave the mean over sequences out"),
        (lambda logits: task.metric[:4](logits), "4 answers for the logits of 6 prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            attribute_budgets(model, saes, Prompts(task.clean, metric), [8], progress=False)


def test_batches_hold_all_prompts_with_their_metric(task: TokenizedTask) -> None:
    batches = list(as_prompts(task).batches(4))
    assert [(batch.rows, len(batch.prompts)) for batch in batches] == [
        (slice(0, 4), 4),
        (slice(4, 8), 2),
    ]
    for part in ("clean", "corrupt"):
        joined = torch.cat([getattr(batch.prompts, part) for batch in batches])
        assert joined.equal(getattr(task, part))
    logits = torch.randn(2, 3, 300)
    assert batches[1].prompts.measure(logits).equal(task.metric[4:](logits))


def test_an_unslicable_metric_sees_all_pairs_at_once(model: Any, saes: Any, task: Any) -> None:
    unslicable = Prompts(task.clean, lambda logits: task.metric(logits), task.corrupt)
    assert len(list(unslicable.batches(2))) == 1
    sliced = attribute_budgets(model, saes, task, [8], batch_size=2, progress=False)
    whole = attribute_budgets(model, saes, unslicable, [8], progress=False)
    for name in HOOKS:
        torch.testing.assert_close(sliced.sites[name].mean(8), whole.sites[name].mean(8))
    assert isinstance(task.metric[:2], LogitDiff)
