"""How much of a behaviour survives when the model goes on from k latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from hsae_lens.evaluation.checks import budgets_of
from hsae_lens.evaluation.tasks.builtin import TASKS, make_task
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import (
    check_bare,
    hook_activations,
    input_device,
    logits_with,
    sequences_at_once,
)
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.objective.budgets import Budget, budget_rows
from hsae_lens.sae.codes import each_reconstruction, largest_budget

CHANCE = 0.5


@torch.no_grad()
def evaluate_tasks(
    sae: SAE[Any],
    model: HookedModel,
    tasks: Sequence[str | TokenizedTask] | None = None,
    budgets: Sequence[Budget] | None = None,
    *,
    n: int = 64,
    mask: TokenMask | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The model's accuracy on small tasks with its activations replaced by k latents.

    A pair counts as solved if the right next token is likelier than the wrong one: chance is 0.5.

    Args:
        tasks: names from :data:`hsae_lens.evaluation.tasks.TASKS`, or tokenized tasks; None for
            all of them.
        budgets: as :func:`evaluate_budgets` takes them; None for 1, 2, 4, … k.
        n: pairs of each named task.
        mask: which positions are replaced; None for those the SAE was trained on.
        batch_size: prompts per forward pass; None as in :func:`evaluate_budgets`.

    Returns:
        A row per task and budget: ``task``, ``k`` (and, if not all are fixed, ``rule`` and
        ``target``), ``accuracy``, ``logit_diff`` (mean of right −
        wrong), ``model_accuracy``, ``model_logit_diff``, ``retention`` ((accuracy − 0.5) /
        (the model's − 0.5)) and ``logit_retention`` (logit_diff / the model's). Both retentions are
        NaN where the model itself is not better than guessing by two standard errors: there is
        nothing to retain.

    Raises:
        ValueError: for an unknown task, bad budgets, an SAE that :func:`evaluate_budgets` refuses,
            or a task whose last position is left as it is (the answer would be the model's own at
            every k).
    """
    resolved = budgets_of(sae, budgets)
    made = [
        make_task(task, model.tokenizer, n) if isinstance(task, str) else task
        for task in (TASKS if tasks is None else tasks)
    ]
    mask = mask or TokenMask.from_sae(sae, model)
    rows = []
    for task in tqdm(made, desc="Tasks", disable=not progress):
        size = batch_size or sequences_at_once(model, task.clean.shape[1])
        parts = [
            _logit_diffs(sae, model, task[n : n + size], resolved, mask)
            for n in range(0, len(task), size)
        ]
        want, *got = torch.cat(parts, dim=1)
        accuracy = (want > 0).double().mean().item()
        able = better_than_guessing(accuracy, len(want)) and want.mean() > 0
        in_table = budget_rows(resolved, largest_budget(sae))
        for budget, diff in zip(in_table, got, strict=True):
            solved = (diff > 0).double().mean().item()
            rows.append(
                {
                    "task": task.name,
                    **budget,
                    "accuracy": solved,
                    "logit_diff": diff.mean().item(),
                    "model_accuracy": accuracy,
                    "model_logit_diff": want.mean().item(),
                    "retention": (solved - CHANCE) / (accuracy - CHANCE) if able else float("nan"),
                    "logit_retention": (diff.mean() / want.mean()).item() if able else float("nan"),
                }
            )
    return pd.DataFrame(rows)


def _logit_diffs(
    sae: SAE[Any], model: HookedModel, task: TokenizedTask, budgets: list[Budget], mask: TokenMask
) -> torch.Tensor:
    """Right minus wrong logit at the last position, of the model and at each budget ``[1 + B, n]``.

    Raises:
        ValueError: if the last position is left as it is.
    """
    tokens, hook_name = task.clean.to(input_device(model)), sae.cfg.metadata.hook_name
    original = hook_activations(model, tokens, hook_name)
    x = original.flatten(2)
    keep = mask(tokens, x)[..., None]
    if not keep[:, -1].all():
        raise ValueError(
            f"The last position of the task {task.name!r}, {tokens.shape[1] - 1}, is not one "
            "that the SAE replaces (its seqpos_slice and max_norm)."
        )

    def diff(new: torch.Tensor) -> torch.Tensor:
        logits = logits_with(model, tokens, hook_name, new.reshape(original.shape))
        return task.metric(logits[:, -1:].double())

    return torch.stack(
        [
            diff(original),
            *(
                diff(torch.where(keep, x_hat.flatten(2).to(x), x))
                for _, _, x_hat in each_reconstruction(sae, original, keep[..., 0], budgets)
            ),
        ]
    )


@torch.no_grad()
def check_able(task: TokenizedTask, model: HookedModel, batch_size: int | None = None) -> float:
    """The model's accuracy on the clean prompts; takes one pass over them.

    Raises:
        ValueError: if it is not better than guessing by two standard errors: there is then nothing
            to explain.
    """
    check_bare(model)
    size = batch_size or sequences_at_once(model, task.clean.shape[1])
    values = []
    for start in range(0, len(task), size):
        batch = task[start : start + size]
        values.append(batch.metric(model(batch.clean.to(input_device(model)), prepend_bos=False)))
    accuracy = (torch.cat(values) > 0).double().mean().item()
    if not better_than_guessing(accuracy, len(task)):
        raise ValueError(
            f"The model solves {accuracy:.0%} of the {len(task)} pairs of {task.name!r}, which "
            "guessing might do too: there is no behaviour to find a circuit for. Take another task "
            "or model, or more pairs."
        )
    return accuracy


def better_than_guessing(accuracy: float, n: int) -> bool:
    """Whether an accuracy on ``n`` two-way choices is above 0.5 by two standard errors."""
    return accuracy > CHANCE + 2 * (0.25 / n) ** 0.5
